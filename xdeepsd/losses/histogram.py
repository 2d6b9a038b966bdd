"""Passes over the values of any array: moments, linear binning, table look-up; the loops are in `compiled`.

Linear binning shares each value between its two neighbours on an even grid, so that the histogram keeps the mean
(Wand 1994, Fast computation of multivariate kernel estimators). KDEpy has a compiled version for arrays in memory;
this one takes one chunk at a time, releases the GIL, skips missing values and sums up over Dask.

All passes take a ``threshold`` (values below it, *dry*, are left out; -inf for none) and a ``transform`` ("log1p",
"sqrt" or None) that is applied to the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial, reduce
from operator import add
from typing import Any

import dask.array as da
import numpy as np
from dask.system import CPU_COUNT

from xdeepsd._extras import require
from xdeepsd.models.transform import TRANSFORMS, Transform

_PIECE = 2**19  # values of an array in memory that a thread takes at a time


@cache
def _loops() -> Any:
    """The module with the compiled loops; without numba, an ImportError that says what to type."""
    require("fast", "DenseWeight")
    from xdeepsd.losses import compiled

    return compiled


@dataclass(frozen=True)
class Moments:
    """The result of one pass over the values.

    Counts of values that are ``finite``, ``infinite`` and 0 (``zeros``). The ``n`` finite values at or above the
    threshold, of which ``negative`` are below 0, have, after the transform, the ``mean``, the sum of squared deviations
    ``squares``, and the extremes ``minimum`` and ``maximum`` (inf and -inf where ``n`` is 0).
    """

    finite: int
    infinite: int
    zeros: int
    negative: int
    n: int
    mean: float
    squares: float
    minimum: float
    maximum: float

    def __add__(self, other: Moments) -> Moments:
        """Moments of the values of both together (Chan, Golub, LeVeque 1983)."""
        n = self.n + other.n
        share = other.n / n if n else 0.0
        step = other.mean - self.mean
        return Moments(
            self.finite + other.finite,
            self.infinite + other.infinite,
            self.zeros + other.zeros,
            self.negative + other.negative,
            n,
            self.mean + step * share,
            self.squares + other.squares + step * step * share * self.n,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


def _floats(values: np.ndarray) -> np.ndarray:
    """Values as native floats, NaN where masked; a copy only where needed."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    native = values.dtype in (np.float32, np.float64) and values.dtype.isnative
    return values if native else values.astype(np.float64)


def _total(values: np.ndarray | da.Array, function: Callable[[np.ndarray], Any], scheduler: str | None = None) -> Any:
    """Sum of ``function`` over the chunks, added in a tree; for arrays in memory over pieces, by one thread per CPU."""
    if isinstance(values, da.Array):
        ones = tuple((1,) * n for n in values.numblocks)
        meta = np.empty((0,) * values.ndim, object)
        entries = da.map_blocks(_as_entry, values, function=function, chunks=ones, dtype=object, meta=meta)
        return entries.sum().compute(scheduler=scheduler)
    flat = values.ravel(order="K")
    starts = range(0, max(flat.size, 1), _PIECE)
    parts: list[Any] = [None] * len(starts)  # in the order of the values: sums do not depend on thread timing
    pieces = iter(list(enumerate(starts)))

    def work() -> None:
        for i, start in pieces:  # one iterator for all threads: a free thread takes the next piece
            parts[i] = function(flat[start : start + _PIECE])

    # This thread works too: otherwise it would only wait, for milliseconds until other threads wake up.
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        others = [pool.submit(work) for _ in range(min(CPU_COUNT, len(starts)) - 1)]
        work()
        for other in others:
            other.result()
    return reduce(add, parts)


def _as_entry(block: np.ndarray, function: Callable[[np.ndarray], Any]) -> np.ndarray:
    """The result for a chunk as an array of one object, so that Dask's own sum adds up the results."""
    entry = np.empty(1, object)
    entry[0] = function(block)
    return entry.reshape((1,) * block.ndim)


def _block_moments(block: np.ndarray, threshold: float, transform: int) -> Moments:
    flat = _floats(block).ravel(order="K")
    least = flat.dtype.type(threshold)
    if float(least) < threshold:  # rounded down to float32: take the next float above
        least = np.nextafter(least, flat.dtype.type(math.inf))
    return Moments(*_loops().take_moments(flat, least, transform))


def _block_counts(block: np.ndarray, threshold: float, transform: int, grid: np.ndarray) -> np.ndarray:
    inverse_step = (grid.size - 1) / (grid[-1] - grid[0]) * 2 ** _loops().FRACTION
    flat = _floats(block).ravel(order="K")
    return np.asarray(_loops().bin_values(flat, threshold, transform, grid[0], inverse_step, grid.size))


def moments(
    values: np.ndarray | da.Array,
    threshold: float = -math.inf,
    transform: Transform | None = None,
    *,
    scheduler: str | None = None,
) -> Moments:
    """Moments of all values, whatever their order, chunks and dtype; sums are float64, about one of the values.

    Computes a lazy array, chunk by chunk (``scheduler`` None: the current one). NaN is never counted.

    >>> moments(np.array([0.0, 1.0, 5.0, np.nan])).mean
    2.0
    """
    return _total(
        values, partial(_block_moments, threshold=threshold, transform=TRANSFORMS.index(transform)), scheduler
    )


def linear_binning(
    values: np.ndarray | da.Array,
    grid: np.ndarray,
    threshold: float = -math.inf,
    transform: Transform | None = None,
    *,
    scheduler: str | None = None,
) -> np.ndarray:
    """Histogram on the points of an even ``grid``: each value is shared between its two neighbours.

    Computes a lazy array, chunk by chunk (``scheduler`` None: the current one), with at most one chunk and one
    histogram per thread in memory. NaN, infinite values and values beyond the grid are not counted. Returns float64
    of the grid's size.

    >>> linear_binning(np.array([0.25, 2.0, np.nan]), np.array([0.0, 1.0, 2.0]))
    array([0.75, 0.25, 1.  ])
    """
    return _total(
        values, partial(_block_counts, threshold=threshold, transform=TRANSFORMS.index(transform), grid=grid), scheduler
    )


def look_up(
    values: np.ndarray,
    grid: np.ndarray,
    table: np.ndarray,
    threshold: float = -math.inf,
    transform: Transform | None = None,
    dry: float = math.nan,
) -> np.ndarray:
    """Interpolate ``table`` (on an even ``grid`` of transformed values) linearly at ``values``.

    Like ``numpy.interp``, without the search. Returns float64 of the shape of ``values`` (numpy); NaN for NaN, ``dry``
    below the threshold, the table's end values beyond the grid.

    >>> look_up(np.array([0.25, 9.0, np.nan]), np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 6.0]))
    array([ 1.,  6., nan])
    """
    out = np.empty(values.shape)
    inverse_step = (grid.size - 1) / (grid[-1] - grid[0])
    flat = _floats(values).reshape(-1)
    _loops().look_up_values(
        flat, threshold, TRANSFORMS.index(transform), dry, grid[0], inverse_step, table, out.reshape(-1)
    )
    return out
