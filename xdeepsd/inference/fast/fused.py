"""The fast forward of one trained stage on a CPU: the numbers of the plain one (`xdeepsd.Stage`), many times faster.

Two facts take away most of the work of the plain forward: upsampling is linear, so that it and the first convolution
are, for each sub-pixel phase, one small convolution on the coarse grid (6 x 6 instead of 9 x 9 at factor 2); and the
static fields never change, so that their share of the first convolution is computed once for all days. What remains
streams through the cache row by row (`kernels`). Cells outside ``wanted`` are not computed.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from scipy import ndimage

from xdeepsd.inference.fast import kernels
from xdeepsd.models.transform import TRANSFORMS, transform

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from xdeepsd.models.stage import Stage

Tile = tuple[tuple[int, int], tuple[int, int]]  # first and last of the coarse rows, and of the columns

_DAYS = 64  # days of one pass: bounds the buffers; the static fields' share is computed once for each pass
_STATIC_ROW = 2**18  # bytes of the static fields' share of one coarse row of a tile: with the rest it stays in L2
_KEEP = 2**22  # numbers (16 MiB) of a buffer that a thread keeps between calls
_RIGHT = 64  # columns that the last panel may read beyond the map, on any processor


@dataclass(frozen=True, eq=False)
class FusedStage:
    """One stage on one map, ready to run; made by `prepare`. Plain numpy: pickle it, share it between threads.

    ``(days, lat, lon)`` to ``(days, factor * lat, factor * lon)``: see `__call__`.
    """

    shape: tuple[int, int]  # of the coarse map
    factor: int
    channels: tuple[int, ...]  # outputs of every layer but the last
    kernels: tuple[int, ...]
    residual: bool
    # The first layer on the coarse field, per phase: rows and columns that it sees, weights (rows, columns, outputs).
    first: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    static_weights: np.ndarray  # (kernel**2, static, outputs)
    # Of the layers after the first: (kernel**2, inputs, outputs). Of the last one (columns of the kernel, inputs, rows
    # of the kernel): a row of inputs adds to as many rows of output.
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]  # of every layer but the last
    last_bias: float
    static: np.ndarray  # (static, p, q, rows, columns): normalised, edges replicated, by phase
    wanted: np.ndarray | None  # (factor * lat, factor * lon)
    precision: Literal["float32", "bfloat16"] = "float32"
    transform: str | None = None

    @property
    def _reach(self) -> tuple[int, ...]:
        """Coarse cells that each chain must compute beyond the output: see `kernels.Plan`."""
        reach = [_cells(self.kernels[-1] // 2, self.factor)]
        for kernel in self.kernels[-2:0:-1]:
            if kernel > 1:
                reach.insert(0, reach[0] + _cells(kernel // 2, self.factor))
        return tuple(reach)

    def __call__(self, coarse: np.ndarray, threads: int = 1) -> np.ndarray:
        """Fine precipitation of some days, as `xdeepsd.Stage.__call__` defines it.

        Parameters
        ----------
        coarse
            ``(days, lat, lon)`` float32, units of the model, no NaN.
        threads
            1 under Dask, whose threads each call this (the GIL is released); more for one large input.

        Returns
        -------
        ``(days, factor * lat, factor * lon)`` float32, same units, at least 0; 0 where not ``wanted``. Each day's bits
        depend on that day only: not on the other days, the threads or ``wanted``.
        """
        if coarse.ndim != 3 or coarse.shape[1:] != self.shape:
            raise ValueError(
                f"The coarse field has the shape {coarse.shape}; needed: (days, {self.shape[0]}, {self.shape[1]}), the "
                "map that prepare(stage, static) was called for."
            )
        _check_precision(self.precision)
        pairs = True if self.precision == "bfloat16" else None
        lat, lon = self.shape
        out = np.empty((len(coarse), self.factor * lat, self.factor * lon), np.float32)
        widest = max(kernels.PANEL, _STATIC_ROW // (4 * self.factor**2 * self.channels[0]))
        strips = _split(lon, math.ceil(lon / widest))
        bands = _split(lat, threads)
        plan = _plan(self, strips[0][1] - strips[0][0], min(_DAYS, len(coarse)))
        static, needed = _writeable(self.static), self._needed()
        wanted = np.zeros((0, 0), bool) if self.wanted is None else _writeable(self.wanted)
        for day in range(0, len(coarse), _DAYS):
            days = slice(day, day + _DAYS)
            x = _padded(transform(np.asarray(coarse[days], np.float32), self.transform), plan.x_pad)
            source = x
            if pairs:
                source = np.zeros_like(x)
                kernels.neighbours(x.view(np.uint32), source.view(np.uint32))

            def tile(item: Tile, x: np.ndarray = x, source: np.ndarray = source, days: slice = days) -> None:
                work = _work(self, plan, len(out[days]))
                kernels.run(
                    pairs, plan, work, x, source, static.reshape(-1), wanted, needed, out[days], *item[0], *item[1]
                )

            items = [(band, strip) for band in bands for strip in strips]
            if threads == 1:
                for item in items:
                    tile(item)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(tile, items))
        return out

    def _needed(self) -> np.ndarray:
        """Coarse cells that each chain and the last layer compute: ``(chains + 1, lat + 2 edge, lon + 2 edge)``."""
        lat, lon = self.shape
        reach = self._reach
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
) -> FusedStage | None:
    """Fold a stage's normalisers, its upsampling and its static fields into what the fast forward needs.

    Parameters
    ----------
    stage
        A trained `xdeepsd.Stage`.
    static
        ``(static, factor * lat, factor * lon)`` from `xdeepsd.models.static.stage_channels`: float32, not normalised.
    wanted
        ``(factor * lat, factor * lon)`` bool; where it is False the result is 0 and is not computed. None: everywhere.
    precision
        "bfloat16" multiplies numbers of 8 bits and adds them up in float32, about 1.6 times as fast, on processors
        that have it (`kernels.HAS_BFLOAT16`); ValueError on others.

    Returns
    -------
    The stage ready to run on this map. None where the network has no hidden layer: take ``stage`` itself.
    """
    _check_precision(precision)
    config = stage.config
    factor, count = config.factor, len(config.static)
    if len(config.kernels) < 2:
        return None
    lat, lon = (size // factor for size in static.shape[-2:])
    weights = [_double(layer.weight) for layer in stage.net.layers]
    biases = [_double(layer.bias) for layer in stage.net.layers]
    weights[-1], biases[-1] = weights[-1] * stage.target.std, biases[-1] * stage.target.std + stage.target.mean

    # Precipitation: the normaliser goes into weights and bias; interpolation weights add up to 1.
    x_weights = weights[0][:, 0] / stage.precipitation.std
    biases[0] = biases[0] - stage.precipitation.mean * x_weights.sum(axis=(1, 2))
    upsampling = [_upsampling(config.kernels[0] // 2, p, factor) for p in range(factor)]
    first = []
    for rows, row_weights in upsampling:
        for columns, column_weights in upsampling:
            folded = np.einsum("oyx,ya,xb->abo", x_weights, row_weights, column_weights)
            first.append((rows, columns, folded.astype(np.float32)))

    fused = FusedStage(
        shape=(lat, lon),
        factor=factor,
        channels=config.channels,
        kernels=config.kernels,
        residual=config.residual,
        first=tuple(first),
        static_weights=_by_tap(weights[0][:, 1:]),
        weights=(*(_by_tap(w) for w in weights[1:-1]), weights[-1][0, :, ::-1].transpose(2, 0, 1).astype(np.float32)),
        biases=tuple(b.astype(np.float32) for b in biases[:-1]),
        last_bias=float(biases[-1][0]),
        static=np.zeros(0, np.float32),
        wanted=None if wanted is None else np.ascontiguousarray(wanted, bool),
        precision=precision,
        transform=stage.transform,
    )
    margin = fused._reach[0] + _cells(config.kernels[0] // 2, factor)
    normalized = np.zeros((count, lat + 2 * margin, factor, lon + 2 * margin + _RIGHT, factor), np.float32)
    for i, normalizer in enumerate(stage.static.values()):
        field = normalizer.apply(np.asarray(static[i], np.float64))
        padded = np.pad(field, ((margin * factor,) * 2, (margin * factor, (margin + _RIGHT) * factor)), mode="edge")
        normalized[i] = padded.reshape(normalized.shape[1:])
    object.__setattr__(fused, "static", np.ascontiguousarray(normalized.transpose(0, 2, 4, 1, 3)))
    return fused


def try_out() -> None:
    """Compute a tiny stage, which compiles the kernels; raises whatever numba and LLVM raise where they cannot."""
    one = np.ones((1, 1, 1), np.float32)
    tiny = FusedStage(
        shape=(1, 1), factor=1, channels=(1,), kernels=(1, 1), residual=False,
        first=((np.zeros(1, np.intp), np.zeros(1, np.intp), one),), static_weights=one[:, :0], weights=(one,),
        biases=(np.zeros(1, np.float32),), last_bias=0.0, static=np.zeros((0, 1, 1, 1, 1 + _RIGHT), np.float32),
        wanted=None,
    )  # fmt: skip
    if tiny(one).item() != 1.0:
        raise RuntimeError(f"a stage that gives back its input gave {tiny(one).item()} for 1")


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; needed: 'float32' or 'bfloat16'.")
    if precision == "bfloat16" and not kernels.HAS_BFLOAT16:
        raise ValueError(
            "precision='bfloat16' needs a processor with avx512_bf16 and numba 0.62 or newer; this machine lacks one "
            "of them. Type precision='float32'."
        )


def _double(parameter: Tensor | Module) -> np.ndarray:
    return np.asarray(cast("Tensor", parameter).detach().cpu(), np.float64)


def _cells(fine: int, factor: int) -> int:
    """Coarse cells that hold ``fine`` cells beyond a coarse cell's edge."""
    return math.ceil(fine / factor)


def _split(size: int, parts: int) -> list[tuple[int, int]]:
    """``size`` cells in at most ``parts`` equal pieces; the first is the largest."""
    length = math.ceil(size / min(parts, size))
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def _upsampling(radius: int, phase: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Coarse cells that the fine cells within ``radius`` of a phase's cell are interpolated from.

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


def _blocked(weights: np.ndarray) -> np.ndarray:
    """``(taps, outputs)`` in the order in which the kernel reads them: by block of outputs, then by tap."""
    blocks, done = [], 0
    while done < weights.shape[1]:
        size = next(block for block in kernels.BLOCKS if block <= weights.shape[1] - done)
        blocks.append(weights[:, done : done + size].ravel())
        done += size
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _paired(outputs: int) -> list[tuple[int, int]]:
    """Which outputs the kernel writes together as two bfloat16: see `kernels._product`; ``outputs`` means none."""
    pairs, done = [], 0
    while done < outputs:
        size = next(block for block in kernels.BLOCKS if block <= outputs - done)
        pairs += [(i, i + 1 if i + 1 < done + size else outputs) for i in range(done, done + size, 2)]
        done += size
    return pairs


def _pack(weights: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Two inputs' weights in one number of two bfloat16: ``(..., inputs, outputs)`` to ``(..., pairs, outputs)``."""
    none = np.zeros((*weights.shape[:-2], 1, weights.shape[-1]), np.float32)
    low, high = np.moveaxis(np.concatenate([weights, none], axis=-2)[..., np.array(pairs), :], -2, 0)
    bits = [np.ascontiguousarray(half).view(np.uint32) for half in (low, high)]
    low, high = ((b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1))) >> np.uint32(16) for b in bits)
    return (low | high << np.uint32(16)).view(np.float32)


def _neighbours(kernel: int, phase: int, factor: int) -> list[tuple[int, int]]:
    """``(phase, coarse cell)`` of the fine cells under a kernel's row or column, seen from a cell of ``phase``."""
    return [((phase + d) % factor, (phase + d) // factor) for d in range(-(kernel // 2), kernel // 2 + 1)]


def _under(kernel: int, phase: int, factor: int) -> list[tuple[int, int, int, int]]:
    """Row phase, coarse row, column phase and coarse column of the fine cells under a kernel, seen from a ``phase``."""
    rows, columns = (_neighbours(kernel, p, factor) for p in divmod(phase, factor))
    return [(*row, *column) for row in rows for column in columns]


def _writeable(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy if it is read-only (Dask's): one type, one compilation."""
    return array if array.flags.writeable else array.copy()


def _padded(coarse: np.ndarray, pad: int) -> np.ndarray:
    """Days with ``pad`` replicated cells around them, and the columns that the last panel may read; flat."""
    days, lat, lon = coarse.shape
    shape = (days, lat + 2 * pad, lon + 2 * pad + _RIGHT)
    flat = _buffer("x", math.prod(shape))
    x = flat.reshape(shape)
    rows = slice(pad, pad + lat)
    x[:, rows, pad : pad + lon] = coarse
    x[:, rows, :pad] = coarse[..., :1]
    x[:, rows, pad + lon :] = coarse[..., -1:]
    x[:, :pad] = x[:, pad : pad + 1]
    x[:, pad + lat :] = x[:, pad + lat - 1 : pad + lat]
    return flat


def _aligned(size: int) -> np.ndarray:
    """Zeros that start at a cache line: vectors do not straddle two."""
    buffer = np.zeros(size + 16, np.float32)
    start = -buffer.ctypes.data // 4 % 16
    return buffer[start : start + size]


_kept = threading.local()


def _buffer(name: str, size: int) -> np.ndarray:
    """Numbers to write to; those of this thread's last call where they are enough, since new memory costs page faults.

    One for each name; what it holds is overwritten by the next call with that name in the same thread.
    """
    if size > _KEEP:
        return _aligned(size)
    kept = getattr(_kept, name, None)
    if kept is None or kept.size < size:
        kept = _aligned(size)
        setattr(_kept, name, kept)
    return kept[:size]


def _zeros(name: str, size: int) -> np.ndarray:
    """`_buffer` of zeros."""
    buffer = _buffer(name, size)
    buffer[:] = 0.0
    return buffer


def _plan(stage: FusedStage, columns: int, days: int) -> kernels.Plan:
    """Lay out the network for tiles of at most ``columns`` coarse columns and ``days`` days on this processor."""
    factor, phases, reach = stage.factor, stage.factor**2, stage._reach
    chains, edge = len(reach), reach[0]
    first_layer = [0, *(i for i, kernel in enumerate(stage.kernels[:-1]) if i and kernel > 1), len(stage.channels)]
    # An odd number of cache lines: columns of a power of two would share a few sets of the cache.
    width = (math.ceil((columns + 2 * edge + kernels.PANEL) / 16) | 1) * 16

    # In bfloat16 two inputs are one number: two neighbours of the coarse field, two outputs of the layer before.
    halved = stage.precision == "bfloat16"
    pairs = [_paired(count) for count in stage.channels] if halved else []
    stored = [len(p) for p in pairs] if halved else list(stage.channels)

    weights: list[np.ndarray] = []
    weight_at: list[int] = []

    def add(values: np.ndarray, taps: int | None = None) -> int:
        """Append a layer's weights, filled up to ``taps`` taps with zeros; returns its number of taps."""
        values = values.reshape(-1, values.shape[-1])
        weight_at.append(sum(w.size for w in weights))
        missing = 0 if taps is None else taps - len(values)
        weights.extend([_blocked(values), np.zeros(missing * values.shape[-1], np.float32)])
        return len(values)

    # The first layer on the coarse field.
    step = 2 if halved else 1
    x_pad = edge + max(1, max(int(np.abs(cells).max()) for rows, cols, _ in stage.first for cells in (rows, cols)))
    x_row = stage.shape[1] + 2 * x_pad + _RIGHT
    x_rows = stage.shape[0] + 2 * x_pad
    x_offsets = [np.add.outer(rows * x_row, cols[::step]).ravel() for rows, cols, _ in stage.first]
    most = max(offsets.size for offsets in x_offsets)
    x_taps = []
    for _, cols, folded in stage.first:
        neighbours = [(i, i + 1) for i in range(0, len(cols), 2)]  # an odd one out is paired with a weight of zero
        x_taps.append(add(_pack(folded, neighbours) if halved else folded, most))
    x_offset = np.array([np.pad(offsets, (0, most - offsets.size)) for offsets in x_offsets])

    # Its share of the static fields.
    margin = edge + _cells(stage.kernels[0] // 2, factor)
    fields, _, _, static_rows, static_row = stage.static.shape
    static_offset = [
        ((field * phases + p2 * factor + q2) * static_rows + row) * static_row + column
        for phase in range(phases)
        for p2, row, q2, column in _under(stage.kernels[0], phase, factor)
        for field in range(fields)
    ]
    static_weight_at = sum(w.size for w in weights)
    static_taps = add(stage.static_weights)

    # The layers after it. Those of a chain's start read what the chain before has stored.
    taps = [most]
    for i, later in enumerate(stage.weights):
        taps.append(add(_pack(later, pairs[i]) if halved else later))
    inner_taps = max(taps[i] for i in first_layer[1:-1]) if chains > 1 else 1
    inner = np.zeros((chains, phases, inner_taps, 2), np.intp)
    for chain, layer in enumerate(first_layer[1:-1], 1):
        channels = stored[layer - 1]
        for phase in range(phases):
            inner[chain, phase, : taps[layer]] = [
                (((p2 * factor + q2) * channels + channel) * width + column, row)
                for p2, row, q2, column in _under(stage.kernels[layer], phase, factor)
                for channel in range(channels)
            ]
    ring = [2 * (reach[i] - reach[i + 1]) + 1 for i in range(chains - 1)] + [1]
    hidden_day = [ring[i] * phases * stored[first_layer[i + 1] - 1] * width for i in range(chains - 1)] + [0]
    kernel = stage.kernels[-1]
    last_offset = [
        (q2 * stored[-1] + channel) * width + column
        for q in range(factor)
        for q2, column in _neighbours(kernel, q, factor)
        for channel in range(stored[-1])
    ]

    panel_offset = np.arange(max(stored)) * kernels.PANEL
    tables = [np.asarray(table, np.intp) for table in (x_offset.ravel(), static_offset, last_offset, panel_offset)]
    offset_at = np.cumsum([0, *(table.size for table in tables)]).tolist()
    layers_at = weight_at[phases + 1 :]
    return kernels.Plan(
        factor=factor,
        reach=np.array(reach),
        first_layer=np.array(first_layer),
        taps=np.array(taps[:-1]),
        outputs=np.array(stage.channels),
        stored=np.array(stored),
        weight_at=np.array([0, *layers_at[:-1]]),
        bias_at=np.cumsum([0, *stage.channels[:-1]]) * kernels.PANEL,
        ring=np.array(ring),
        hidden_at=np.cumsum([0, *hidden_day[:-1]]) * days,
        hidden_day=np.array(hidden_day),
        width=width,
        x_row=x_row,
        x_day=x_rows * x_row,
        x_pad=x_pad,
        x_taps=np.array(x_taps),
        x_offset_at=offset_at[0],
        static_row=static_row,
        static_pad=margin,
        static_taps=static_taps,
        static_offset_at=offset_at[1],
        static_weight_at=static_weight_at,
        inner_taps=inner_taps,
        inner_offset=inner[..., 0].ravel(),
        inner_row=inner[..., 1].ravel(),
        panel_offset_at=offset_at[3],
        last_kernel=kernel,
        last_taps=taps[-1],
        last_offset_at=offset_at[2],
        last_weight_at=layers_at[-1],
        last_bias=np.float32(stage.last_bias),  # type: ignore[arg-type]
        residual=stage.residual,
        transform=TRANSFORMS.index(stage.transform),
        weights=np.concatenate(weights),
        bias=np.repeat(np.concatenate(stage.biases), kernels.PANEL),
        offset=np.concatenate(tables),
        panel=kernels.PANEL,
    )


def _work(stage: FusedStage, plan: kernels.Plan, days: int) -> kernels.Work:
    """Buffers of one tile of ``days`` days."""
    phases, chains = stage.factor**2, len(plan.reach)
    panels = (chains + 1, plan.width // kernels.LANES + 1)
    return kernels.Work(
        static=_zeros("static", phases * stage.channels[0] * plan.width if plan.static_taps else 0),
        hidden=_zeros("hidden", int(plan.hidden_at[-1] + stage.factor * plan.stored[-1] * plan.width)),
        panel=_zeros("panel", 2 * int(plan.stored.max()) * kernels.PANEL),
        rows=_zeros("rows", days * (stage.factor + plan.last_kernel - 1) * stage.factor * plan.width),
        offset=np.zeros(plan.inner_offset.shape, np.intp),
        start=np.zeros(panels, np.intp),
        vectors=np.zeros(panels, np.intp),
        panels=np.zeros(chains + 1, np.intp),
    )
