"""The fast forward of one trained stage on a CPU: the numbers of the plain one (`xdeepsd.Stage`), many times faster.

Two facts save most of the work of the plain forward: upsampling is linear, so it and the first convolution together
are, for each sub-pixel phase, one small convolution on the coarse grid (6 x 6 instead of 9 x 9 at factor 2); and the
static fields never change, so their contribution to the first convolution is computed once for all days. The rest
streams through the cache row by row (`compiled`). Cells outside ``wanted`` are not computed.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from scipy import ndimage

from xdeepsd.inference.fast import NO_BFLOAT16, compiled, layout, why_not
from xdeepsd.inference.fast.conserve import conserve
from xdeepsd.models.conserve import Conserve
from xdeepsd.models.transform import transform

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from xdeepsd.models.stage import Stage

_DAYS = 64  # days per pass: limits the buffers; the static contribution is computed once per pass
_STATIC_ROW = 2**18  # bytes of the static contribution to one coarse row of a tile: it fits in L2 with the rest


@dataclass(frozen=True, eq=False)
class FusedStage:
    """One stage on one map, ready to run; made by `prepare`. Plain numpy, so it can be pickled and shared by threads.

    ``(days, lat, lon)`` to ``(days, factor * lat, factor * lon)``: see `__call__`.
    """

    shape: tuple[int, int]  # of the coarse map
    factor: int
    channels: tuple[int, ...]  # outputs of every layer but the last
    kernels: tuple[int, ...]
    # The first layer on the coarse field, per phase: the rows and columns it sees, weights (rows, columns, outputs).
    first: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    static_weights: np.ndarray  # (kernel**2, static, outputs)
    # Of the layers after the first: (kernel**2, inputs, outputs). Of the last one: (kernel columns, inputs, kernel
    # rows), since one row of inputs adds to that many rows of output.
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]  # of every layer but the last
    last_bias: float
    static: np.ndarray  # (static, p, q, rows, columns): normalised, edges replicated, by phase
    wanted: np.ndarray | None = None  # (factor * lat, factor * lon)
    residual: bool = False
    transform: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    conserve: Conserve | None = None  # for "softmax", `conserve` turns the network's raw output into values
    cells: np.ndarray | None = None  # (factor * lat, factor * lon): weight of each cell in the mean of its coarse cell

    @property
    def reach(self) -> tuple[int, ...]:
        """Coarse cells that each chain must compute beyond the output: see `layout.Chains`."""
        return layout.find_reach(self.kernels, self.factor)

    def __call__(self, coarse: np.ndarray, threads: int = 1) -> np.ndarray:
        """Fine precipitation for some days, as `xdeepsd.Stage.__call__` defines it.

        Parameters
        ----------
        coarse
            ``(days, lat, lon)`` float32, in the model's units, without NaN.
        threads
            1 under Dask, whose threads each call this (the GIL is released); more for one large input.

        Returns
        -------
        ``(days, factor * lat, factor * lon)`` float32, same units, at least 0; 0 where not ``wanted``. Each day's bits
        depend on that day only, not on the other days, the threads or ``wanted``.
        """
        if coarse.ndim != 3 or coarse.shape[1:] != self.shape:
            raise ValueError(
                f"The coarse field has the shape {coarse.shape}; needed: (days, {self.shape[0]}, {self.shape[1]}), the "
                "map that prepare(stage, static) was called for."
            )
        _check_precision(self.precision)
        lat, lon = self.shape
        out = np.empty((len(coarse), self.factor * lat, self.factor * lon), np.float32)
        widest = max(compiled.PANEL, _STATIC_ROW // (4 * self.factor**2 * self.channels[0]))
        strips = _split(lon, math.ceil(lon / widest))
        tiles = [(*rows, *columns) for rows in _split(lat, threads) for columns in strips]
        plan = layout.make_plan(self, strips[0][1] - strips[0][0], min(_DAYS, len(coarse)))
        static, needed = layout.writeable(self.static).reshape(-1), self._needed()
        wanted = np.zeros((0, 0), bool) if self.wanted is None else layout.writeable(self.wanted)
        pairs = True if self.precision == "bfloat16" else None
        for start in range(0, len(coarse), _DAYS):
            days = out[start : start + _DAYS]
            x = transform(np.asarray(coarse[start : start + _DAYS], np.float32), self.transform)
            x = source = layout.padded(x, plan.coarse.pad)
            if pairs:
                source = np.zeros_like(x)
                compiled.neighbours(x.view(np.uint32), source.view(np.uint32))

            def run(
                tile: tuple[int, ...], x: np.ndarray = x, source: np.ndarray = source, days: np.ndarray = days
            ) -> None:
                work = layout.make_work(self, plan, len(days))
                compiled.run(pairs, plan, work, x, source, static, wanted, needed, days, *tile)

            if threads == 1:
                for tile in tiles:
                    run(tile)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(run, tiles))
            if self.conserve is not None:
                assert self.cells is not None
                conserve(days, coarse[start : start + _DAYS], self.cells, self.factor, self.conserve)
        return out

    def _needed(self) -> np.ndarray:
        """Coarse cells that each chain and the last layer compute: ``(chains + 1, lat + 2 edge, lon + 2 edge)``."""
        lat, lon = self.shape
        reach = self.reach
        wanted = np.zeros((lat + 2 * reach[0], lon + 2 * reach[0]), bool)
        inner = wanted[reach[0] : reach[0] + lat, reach[0] : reach[0] + lon]
        if self.wanted is None:
            inner[:] = True
        else:
            inner[:] = self.wanted.reshape(lat, self.factor, lon, self.factor).any(axis=(1, 3))
        # The last layer adds a row of hidden values to the rows of output around it, column by column.
        footprints = [(2 * cells + 1, 2 * cells + 1) for cells in reach] + [(2 * reach[-1] + 1, 1)]
        return np.stack([ndimage.maximum_filter(wanted, size, mode="constant") for size in footprints])


def prepare(
    stage: Stage,
    static: np.ndarray,
    wanted: np.ndarray | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    cells: np.ndarray | None = None,
) -> FusedStage | None:
    """Fold a stage's normalisers, its upsampling and its static fields into what the fast forward needs.

    Parameters
    ----------
    stage
        A trained `xdeepsd.Stage`.
    static
        ``(static, factor * lat, factor * lon)`` from `xdeepsd.models.static.stage_channels`: float32, not normalised.
    wanted
        ``(factor * lat, factor * lon)`` bool; where False, nothing is computed and the result is 0. None: everywhere.
    precision
        "bfloat16" multiplies 8-bit numbers and sums in float32, about 1.6 times as fast, on processors that support it
        (`compiled.HAS_BFLOAT16`); ValueError on others.
    cells
        ``(factor * lat, factor * lon)`` float64 from `xdeepsd.models.conserve.cell_weights`, where the stage keeps
        coarse means; None: all cells count the same. A cell that counts must be ``wanted``.

    Returns
    -------
    The stage ready to run on this map. None if there is a reason against it (`why_not`): use ``stage`` itself.
    """
    _check_precision(precision)
    config = stage.config
    if why_not(config):
        return None
    weights = [_double(layer.weight) for layer in stage.net.layers]
    biases = [_double(layer.bias) for layer in stage.net.layers]
    if config.conserve != "softmax":
        weights[-1], biases[-1] = weights[-1] * stage.target.std, biases[-1] * stage.target.std + stage.target.mean

    # Precipitation: the normaliser can go into weights and bias, since interpolation weights sum to 1.
    x_weights = weights[0][:, 0] / stage.precipitation.std
    biases[0] = biases[0] - stage.precipitation.mean * x_weights.sum(axis=(1, 2))
    return FusedStage(
        shape=(static.shape[-2] // config.factor, static.shape[-1] // config.factor),
        factor=config.factor,
        channels=config.channels,
        kernels=config.kernels,
        first=_with_upsampling(x_weights, config.factor),
        static_weights=_by_tap(weights[0][:, 1:]),
        weights=(*(_by_tap(w) for w in weights[1:-1]), weights[-1][0, :, ::-1].transpose(2, 0, 1).astype(np.float32)),
        biases=tuple(b.astype(np.float32) for b in biases[:-1]),
        last_bias=float(biases[-1][0]),
        static=_normalized(stage, static),
        wanted=None if wanted is None else np.ascontiguousarray(wanted, bool),
        residual=config.residual,
        transform=stage.transform,
        precision=precision,
        conserve=config.conserve,  # type: ignore[arg-type]
        cells=np.ones(static.shape[-2:]) if cells is None else cells,
    )


def try_out() -> None:
    """Compute a tiny stage, which compiles everything; raises whatever numba or LLVM raise if that fails."""
    one = np.ones((1, 1, 1), np.float32)
    tiny = FusedStage(
        shape=(1, 1), factor=1, channels=(1,), kernels=(1, 1),
        first=((np.zeros(1, np.intp), np.zeros(1, np.intp), one),), static_weights=one[:, :0], weights=(one,),
        biases=(np.zeros(1, np.float32),), last_bias=0.0,
        static=np.zeros((0, 1, 1, 1, 1 + layout.RIGHT), np.float32),
    )  # fmt: skip
    if tiny(one).item() != 1.0:
        raise RuntimeError(f"a stage that gives back its input gave {tiny(one).item()} for 1")


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; needed: 'float32' or 'bfloat16'.")
    if precision == "bfloat16" and not compiled.HAS_BFLOAT16:
        raise ValueError(NO_BFLOAT16)


def _double(parameter: Tensor | Module) -> np.ndarray:
    return np.asarray(cast("Tensor", parameter).detach().cpu(), np.float64)


def _split(size: int, parts: int) -> list[tuple[int, int]]:
    """Split ``size`` cells into at most ``parts`` pieces of equal size; the first is the largest."""
    length = math.ceil(size / min(parts, size))
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def _with_upsampling(weights: np.ndarray, factor: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Turn ``(outputs, rows, columns)`` weights on the interpolated field into `FusedStage.first` on the coarse one."""
    upsampling = [_upsampling(weights.shape[-1] // 2, p, factor) for p in range(factor)]
    first = []
    for rows, row_weights in upsampling:
        for columns, column_weights in upsampling:
            folded = np.einsum("oyx,ya,xb->abo", weights, row_weights, column_weights)
            first.append((rows, columns, folded.astype(np.float32)))
    return tuple(first)


def _upsampling(radius: int, phase: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Coarse cells from which the fine cells within ``radius`` of a phase's cell are interpolated.

    Returns their positions relative to the coarse cell and the ``(2 radius + 1, cells)`` weights of bilinear
    interpolation (half-pixel centres).
    """
    position = (phase + np.arange(-radius, radius + 1) + 0.5) / factor - 0.5
    left = np.floor(position).astype(np.intp)
    cells = np.arange(left[0], left[-1] + 2)
    weights = np.zeros((len(position), len(cells)))
    rows = np.arange(len(position))
    weights[rows, left - left[0]] += 1 - (position - left)
    weights[rows, left - left[0] + 1] += position - left
    used = weights.any(axis=0)
    return cells[used], weights[:, used]


def _by_tap(weights: np.ndarray) -> np.ndarray:
    """Convolution weights ``(outputs, inputs, rows, columns)`` as float32 ``(rows * columns, inputs, outputs)``."""
    outputs, inputs, rows, columns = weights.shape
    return weights.transpose(2, 3, 1, 0).reshape(rows * columns, inputs, outputs).astype(np.float32)


def _normalized(stage: Stage, static: np.ndarray) -> np.ndarray:
    """Normalised static fields with replicated edges, by phase: `FusedStage.static`."""
    kernels, factor = stage.config.kernels, stage.config.factor
    margin = layout.find_reach(kernels, factor)[0] + layout.cells(kernels[0] // 2, factor)
    lat, lon = (size // factor + 2 * margin for size in static.shape[-2:])
    normalized = np.zeros((len(stage.static), lat, factor, lon + layout.RIGHT, factor), np.float32)
    around = (margin * factor,) * 2, (margin * factor, (margin + layout.RIGHT) * factor)
    for i, normalizer in enumerate(stage.static.values()):
        field = np.pad(normalizer.apply(np.asarray(static[i], np.float64)), around, mode="edge")
        normalized[i] = field.reshape(normalized.shape[1:])
    return np.ascontiguousarray(normalized.transpose(0, 2, 4, 1, 3))
