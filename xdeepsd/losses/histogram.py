"""Compiled passes over the values of any array: moments, linear-binned histogram, look-up in a table.

Linear binning shares each value between its two neighbours on an even grid, so that the histogram keeps the mean
(Wand 1994, Fast computation of multivariate kernel estimators). KDEpy compiles the same for arrays in memory; here it
takes one chunk at a time, leaves the GIL, skips what is missing and adds up over Dask. numba is used because numpy
would need several arrays of the size of a chunk.

All passes take a ``threshold`` (values below it, *dry*, are left out; -inf for none) and a ``transform`` ("log1p",
"sqrt" or None) which is applied to the rest.
"""

# mypy: disallow-untyped-defs=False
# (numba's loops have no annotations: they are compiled for float32 and float64.)

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import dask.array as da
import numpy as np
from dask.system import CPU_COUNT
from numba import njit

from xdeepsd.models.transform import TRANSFORMS, Transform, transform_number

_BLOCK = 1024  # values: a block and its scratch arrays stay in the first-level cache
_PIECE = 2**19  # values that a thread takes at a time from an array in memory

# A value's place is known to 2**-28 of a grid step (shares are fractions of that size). One integer adds up shares in
# its lower 45 bits and values in its upper ones, for as many values (2**17) as fit before it is added to the counts.
_FRACTION, _COUNT, _FLUSH = 28, 45, 2**17 // _BLOCK
_ONE = 2**_COUNT


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile without the GIL; keep the code on disk where there is a folder to write to (an image may have none)."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:
            return njit(nogil=True, **options)(function)

    return decorate


_transform_number = njit(transform_number)

# --- One block of values --------------------------------------------------------------------------------------------
# Small loops without branches, so that the compiler makes SIMD code of them.


@_compiled(fastmath={"reassoc"})
def _count(values, threshold):
    """Count values that are finite, infinite, 0, negative (of those to count), and to count."""
    one, none = values.dtype.type(1), values.dtype.type(0)  # of the values' own type: twice as many float32 at a time
    finite = infinite = zeros = negative = wet = none
    for i in range(values.size):
        v = values[i]
        is_finite = abs(v) < math.inf
        is_wet = is_finite & (v >= threshold)
        finite += one if is_finite else none
        infinite += one if abs(v) == math.inf else none
        zeros += one if v == 0.0 else none
        negative += one if is_wet & (v < 0.0) else none
        wet += one if is_wet else none
    return np.int64(finite), np.int64(infinite), np.int64(zeros), np.int64(negative), np.int64(wet)


@_compiled()
def _transform(values, threshold, transform, out):
    """Write transformed values to ``out``, NaN where not finite or dry."""
    for i in range(values.size):
        v = np.float64(values[i])
        out[i] = v if (abs(v) < math.inf) & (v >= threshold) else math.nan
    if transform:
        for i in range(values.size):
            out[i] = _transform_number(out[i], transform) if out[i] > 0.0 else out[i]


@_compiled()
def _extremes(values, threshold, lowest, highest):
    """Update the lowest and highest value seen at each place of a block."""
    for i in range(values.size):
        v = values[i]
        is_wet = (abs(v) < math.inf) & (v >= threshold)
        lowest[i] = v if is_wet & (v < lowest[i]) else lowest[i]
        highest[i] = v if is_wet & (v > highest[i]) else highest[i]


@_compiled(fastmath={"reassoc", "nsz", "contract"})
def _sums(values, threshold, shift):
    """Sum and sum of squares of the differences to ``shift``, in any order."""
    total = squares = 0.0
    for i in range(values.size):
        v = values[i]
        difference = np.float64(v) - shift if (abs(v) < math.inf) & (v >= threshold) else 0.0
        total += difference
        squares += difference * difference
    return total, squares


@_compiled()
def _positions(values, threshold, start, inverse_step, points, left, packed):
    """Grid point to the left of each value, and a one with the share of the right neighbour; return the zeros counted.

    ``inverse_step`` counts in fractions, of which there are ``2**_FRACTION`` in a step. Zeros, and what is not
    counted, go to eight bins beyond the grid in turn: long runs of them (dry days, ocean) in one bin would each wait
    until the last one is stored.
    """
    last = (points - 1.0) * 2.0**_FRACTION
    zeros = 0
    for i in range(values.size):
        v = np.float64(values[i])
        position = (v - start) * inverse_step
        counted = (position >= 0.0) & (position <= last) & (v >= threshold)
        zeros += counted & (v == 0.0)
        fractions = np.int64(position if counted else 0.0)
        left[i] = fractions >> _FRACTION if counted & (v != 0.0) else points + (i & 7)
        packed[i] = _ONE | (fractions & (2**_FRACTION - 1))
    return zeros


# --- A flat array ---------------------------------------------------------------------------------------------------


@_compiled()
def _moments(values, threshold, transform):
    """As `Moments`; ``threshold`` is of the type of the values."""
    block = np.empty(_BLOCK)
    lowest, highest = np.empty(_BLOCK, values.dtype), np.empty(_BLOCK, values.dtype)
    lowest[:], highest[:] = math.inf, -math.inf
    finite = infinite = zeros = negative = n = 0
    mean = squares = 0.0
    for first in range(0, values.size, _BLOCK):
        raw = values[first : first + _BLOCK]
        counted = _count(raw, threshold)
        finite += counted[0]
        infinite += counted[1]
        zeros += counted[2]
        negative += counted[3]
        new = counted[4]
        if new == 0:
            continue
        x = block[: raw.size]
        if transform != 0:
            _transform(raw, threshold, transform, x)
        if n == 0:  # any of the values will do as the first shift
            k = 0
            while not ((abs(raw[k]) < math.inf) & (raw[k] >= threshold)):
                k += 1
            mean = np.float64(raw[k]) if transform == 0 else x[k]
        total, square = _sums(raw, threshold, mean) if transform == 0 else _sums(x, -math.inf, mean)
        _extremes(raw, threshold, lowest, highest)
        step = total / new
        squares += max(square - total * step, 0.0) + step * step * n * new / (n + new)
        mean += step * new / (n + new)
        n += new
    extremes = np.array([np.float64(lowest.min()), np.float64(highest.max())])
    if transform != 0 and n > 0:  # they rise with the values
        _transform(extremes, -math.inf, transform, extremes)
    return finite, infinite, zeros, negative, n, mean, squares, extremes[0], extremes[1]


@_compiled()
def _linear_binning(values, threshold, transform, start, inverse_step, points):
    block, left, packed = np.empty(_BLOCK), np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    both = np.zeros(points + 8, np.int64)  # number of values and sum of shares in one integer: one store for a value
    counts = np.zeros(points)
    zeros = 0
    for first in range(0, values.size, _BLOCK):
        raw = values[first : first + _BLOCK]
        if transform == 0:
            zeros += _positions(raw, threshold, start, inverse_step, points, left, packed)
        else:
            x = block[: raw.size]
            _transform(raw, threshold, transform, x)
            zeros += _positions(x, -math.inf, start, inverse_step, points, left, packed)
        for i in range(raw.size):
            both[np.uint64(left[i])] += packed[i]
        if (first // _BLOCK + 1) % _FLUSH == 0 or first + _BLOCK >= values.size:
            for k in range(points):
                share = (both[k] & (_ONE - 1)) / 2.0**_FRACTION
                counts[k] += (both[k] >> _COUNT) - share
                counts[min(k + 1, points - 1)] += share  # at the last point there is none
            both[:] = 0
    if zeros > 0:
        position = -start * inverse_step / 2.0**_FRACTION
        k = np.int64(position)
        counts[k] += zeros * (1.0 - (position - k))
        counts[min(k + 1, points - 1)] += zeros * (position - k)
    return counts


@_compiled()
def _look_up(values, threshold, transform, dry, start, inverse_step, table, out):
    last = table.size - 2
    for i in range(values.size):
        v = np.float64(values[i])
        if v != v:
            out[i] = math.nan
        elif v < threshold:
            out[i] = dry
        else:
            if transform:
                v = _transform_number(max(v, 0.0), transform)
            p = min(max((v - start) * inverse_step, 0.0), last + 1.0)
            k = min(int(p), last)
            out[i] = table[k] + (p - k) * (table[k + 1] - table[k])


# --- Any array ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """What one pass over the values gives.

    Counts of values that are ``finite``, ``infinite`` and 0 (``zeros``). The ``n`` finite values at or above the
    threshold, of which ``negative`` are below 0, have after the transform the ``mean``, the sum of squared deviations
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
        """Moments of the values of both (Chan, Golub, LeVeque 1983)."""
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
    """Sum of ``function`` over the chunks, added in a tree; in memory over pieces, by as many threads as there are."""
    if isinstance(values, da.Array):
        ones = tuple((1,) * n for n in values.numblocks)
        meta = np.empty((0,) * values.ndim, object)
        entries = da.map_blocks(_as_entry, values, function=function, chunks=ones, dtype=object, meta=meta)
        return entries.sum().compute(scheduler=scheduler)
    flat = values.ravel(order="K")
    starts = range(0, max(flat.size, 1), _PIECE)
    parts: list[Any] = [None] * len(starts)  # in the order of the values: sums do not depend on who computed what
    pieces = iter(list(enumerate(starts)))

    def work() -> None:
        for i, start in pieces:  # one iterator for all threads: who is free takes the next one
            parts[i] = function(flat[start : start + _PIECE])

    # This thread works too: another one may take milliseconds to wake up, in which it would do nothing but wait.
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        others = [pool.submit(work) for _ in range(min(CPU_COUNT, len(starts)) - 1)]
        work()
        for other in others:
            other.result()
    return reduce(add, parts)


def _as_entry(block: np.ndarray, function: Callable[[np.ndarray], Any]) -> np.ndarray:
    """The result for a chunk as an array of one object, so that Dask's own sum adds them up."""
    entry = np.empty(1, object)
    entry[0] = function(block)
    return entry.reshape((1,) * block.ndim)


def _block_moments(block: np.ndarray, threshold: float, transform: int) -> Moments:
    flat = _floats(block).ravel(order="K")
    least = flat.dtype.type(threshold)
    if float(least) < threshold:  # rounded down to float32: take the next one above
        least = np.nextafter(least, flat.dtype.type(math.inf))
    return Moments(*_moments(flat, least, transform))


def _block_counts(block: np.ndarray, threshold: float, transform: int, grid: np.ndarray) -> np.ndarray:
    inverse_step = (grid.size - 1) / (grid[-1] - grid[0]) * 2**_FRACTION
    return _linear_binning(_floats(block).ravel(order="K"), threshold, transform, grid[0], inverse_step, grid.size)


def moments(
    values: np.ndarray | da.Array,
    threshold: float = -math.inf,
    transform: Transform | None = None,
    *,
    scheduler: str | None = None,
) -> Moments:
    """Moments of all values, whatever their order, chunks and dtype: sums are float64 about a value among them.

    Computes a lazy array, chunk by chunk (``scheduler`` None: with the one that is set). NaN is never counted.

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

    Computes a lazy array, chunk by chunk (``scheduler`` None: with the one that is set); never more than a chunk and a
    histogram per thread are held. NaN, infinite values and values beyond the grid are not counted. float64 of the
    grid's size.

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

    ``numpy.interp`` without its search. float64 of the shape of ``values`` (numpy); NaN for NaN, ``dry`` below the
    threshold, the table's ends beyond the grid.

    >>> look_up(np.array([0.25, 9.0, np.nan]), np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 6.0]))
    array([ 1.,  6., nan])
    """
    out = np.empty(values.shape)
    inverse_step = (grid.size - 1) / (grid[-1] - grid[0])
    flat = _floats(values).reshape(-1)
    _look_up(flat, threshold, TRANSFORMS.index(transform), dry, grid[0], inverse_step, table, out.reshape(-1))
    return out
