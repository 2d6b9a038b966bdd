"""Memory layout for computing a stage: the network, arranged for the compiled loops, and their buffers."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xdeepsd.inference.fast.compiled import BLOCKS, LANES, PANEL
from xdeepsd.models.transform import TRANSFORMS

if TYPE_CHECKING:
    from xdeepsd.inference.fast.fused import FusedStage

RIGHT = 64  # columns that the last panel may read beyond the map, on any processor
_KEEP = 2**22  # a thread keeps buffers of up to this many numbers (16 MiB) between calls


class Chains(NamedTuple):
    """Convolutions with a reach (the first layer, and later ones of kernel > 1), each with the 1 x 1 layers after it.

    A chain is computed panel by panel and keeps its output in ``hidden``. The last convolution is not part of a chain.
    """

    reach: np.ndarray  # (chains,) coarse rows and columns beyond the tile that the chain must compute
    first_layer: np.ndarray  # (chains + 1,) index of the chain's first layer
    ring: np.ndarray  # (chains,) coarse rows of the chain's output that are kept
    hidden_at: np.ndarray  # (chains,) start of the chain's output in hidden
    hidden_day: np.ndarray  # (chains,) floats per day in it; 0: it holds only one day (the last chain)


class Layers(NamedTuple):
    """All layers but the last, ``(layers,)`` each."""

    taps: np.ndarray  # inputs per output; for the first layer, the maximum over the phases
    outputs: np.ndarray
    stored: np.ndarray  # rows that the outputs take: one each, or one per pair in bfloat16
    weight_at: np.ndarray  # start in weights
    bias_at: np.ndarray  # start in bias


class Coarse(NamedTuple):
    """The padded coarse input and the first layer's taps on it."""

    row: int  # floats per row, and per day
    day: int
    pad: int
    taps: np.ndarray  # (factor**2,)
    offset_at: int  # where the (factor**2, layers.taps[0]) offsets start


class Static(NamedTuple):
    """The static fields and the first layer's taps on them."""

    row: int
    pad: int
    taps: int
    offset_at: int  # (factor**2, taps)
    weight_at: int


class Inner(NamedTuple):
    """Taps of the first layer of each later chain on the output of the previous chain."""

    taps: int  # the maximum over the chains
    offset_at: int  # (chains, factor**2, taps)
    offset: np.ndarray  # the offsets, flat, without the row of the ring, which changes from row to row
    row: np.ndarray  # of the same size: how many coarse rows away the tap is


class Last(NamedTuple):
    """The last convolution, and what is done with its output."""

    kernel: int
    taps: int
    offset_at: int  # (factor, taps)
    weight_at: int
    bias: float
    residual: bool
    floor: float  # the lowest value: 0, or no limit for the raw network output
    transform: int  # position in TRANSFORMS of the transform to invert


class Plan(NamedTuple):
    """Where everything is stored, in floats from the start of its array. Rows and columns refer to the coarse grid.

    All hidden values are kept by sub-pixel phase ``(p, q)``: fine cell ``(factor * row + p, factor * column + q)``.
    """

    factor: int
    width: int  # columns of all buffers of a tile, a multiple of LANES
    panel: int  # PANEL, as a variable, so that numba does not compile it in
    panel_offset_at: int  # (most channels,), for the 1 x 1 layers in a panel
    chains: Chains
    layers: Layers
    coarse: Coarse
    static: Static
    inner: Inner
    last: Last
    weights: np.ndarray
    bias: np.ndarray  # each bias repeated across a panel
    offset: np.ndarray  # from a position in the source to each tap


class Work(NamedTuple):
    """Buffers of one tile. They limit the memory: their size depends on the network and the tile, not the map."""

    static: np.ndarray  # the static fields' contribution to the first layer, for one coarse row
    hidden: np.ndarray
    panel: np.ndarray  # two panels of the largest number of channels
    rows: np.ndarray  # output rows still incomplete, (days, factor + kernel - 1, factor, width)
    offset: np.ndarray  # the plan's offsets, with the ring's rows added to the inner ones
    start: np.ndarray  # (chains + 1, panels) first column of each panel of this row
    vectors: np.ndarray  # (chains + 1, panels)
    panels: np.ndarray  # (chains + 1,) number of panels


# --- the network ------------------------------------------------------------------------------------------------------


def make_plan(stage: FusedStage, columns: int, days: int) -> Plan:
    """Lay out the network for tiles of at most ``columns`` coarse columns and ``days`` days on this processor."""
    factor, reach = stage.factor, stage.reach
    # An odd number of cache lines: with a power of two, all rows would compete for a few sets of the cache.
    width = (math.ceil((columns + 2 * reach[0] + PANEL) / 16) | 1) * 16

    # In bfloat16 two inputs share one number: two neighbours of the coarse field, or two outputs of the previous layer.
    halved = stage.precision == "bfloat16"
    pairs = [_paired(count) for count in stage.channels] if halved else []
    stored = [len(p) for p in pairs] if halved else list(stage.channels)
    later = [_pack(w, pairs[i]) if halved else w for i, w in enumerate(stage.weights)]

    pad = reach[0] + max(1, max(int(np.abs(cells).max()) for rows, cols, _ in stage.first for cells in (rows, cols)))
    x_row = stage.shape[1] + 2 * pad + RIGHT
    x_offset, x_taps, x_weights = _coarse_taps(stage, x_row, halved)
    static_offset = _static_offsets(stage)
    taps = [x_offset.shape[1], *(w.shape[0] * w.shape[1] for w in later)]
    chains = _chains(stage, stored, width, days)
    inner_offset, inner_row = _inner_offsets(stage, chains.first_layer, taps, stored, width)
    last_offset = [
        (q2 * stored[-1] + channel) * width + column
        for q in range(factor)
        for q2, column in _neighbours(stage.kernels[-1], q, factor)
        for channel in range(stored[-1])
    ]
    panel_offset = np.arange(max(stored)) * PANEL

    offset_at, offset = _end_to_end([x_offset, static_offset, last_offset, panel_offset, inner_offset], np.intp)
    weight_at, weights = _end_to_end([x_weights, *map(_blocked, (stage.static_weights, *later))], np.float32)
    return Plan(
        factor=factor,
        width=width,
        panel=PANEL,
        panel_offset_at=offset_at[3],
        chains=chains,
        layers=Layers(
            taps=np.array(taps[:-1]),
            outputs=np.array(stage.channels),
            stored=np.array(stored),
            weight_at=np.array([weight_at[0], *weight_at[2:-1]]),
            bias_at=np.cumsum([0, *stage.channels[:-1]]) * PANEL,
        ),
        coarse=Coarse(x_row, (stage.shape[0] + 2 * pad) * x_row, pad, x_taps, offset_at[0]),
        static=Static(
            row=stage.static.shape[-1],
            pad=reach[0] + cells(stage.kernels[0] // 2, factor),
            taps=stage.static_weights.shape[0] * stage.static_weights.shape[1],
            offset_at=offset_at[1],
            weight_at=weight_at[1],
        ),
        inner=Inner(inner_offset.shape[-1], offset_at[4], inner_offset.ravel(), inner_row.ravel()),
        last=Last(
            kernel=stage.kernels[-1],
            taps=taps[-1],
            offset_at=offset_at[2],
            weight_at=weight_at[-1],
            bias=np.float32(stage.last_bias),  # type: ignore[arg-type]
            residual=stage.residual,
            floor=np.float32(-np.inf if stage.conserve == "softmax" else 0.0),  # type: ignore[arg-type]
            transform=TRANSFORMS.index(None if stage.conserve == "softmax" else stage.transform),
        ),
        weights=weights,
        bias=np.repeat(np.concatenate(stage.biases), PANEL),
        offset=offset,
    )


def _coarse_taps(stage: FusedStage, x_row: int, halved: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first layer on the coarse field: offsets, number of taps and weights per phase, padded with zeros."""
    offsets = [np.add.outer(rows * x_row, cols[:: 2 if halved else 1]).ravel() for rows, cols, _ in stage.first]
    most = max(one.size for one in offsets)
    weights = []
    for _, cols, folded in stage.first:
        neighbours = [(i, i + 1) for i in range(0, len(cols), 2)]  # a column left over is paired with a weight of zero
        blocked = _blocked(_pack(folded, neighbours) if halved else folded)
        weights.append(np.pad(blocked, (0, most * stage.channels[0] - blocked.size)))
    filled = np.array([np.pad(one, (0, most - one.size)) for one in offsets])
    return filled, np.array([one.size for one in offsets]), np.array(weights)


def _static_offsets(stage: FusedStage) -> list[int]:
    """Offsets from a coarse cell to the first layer's taps on the static fields, by phase."""
    factor, phases = stage.factor, stage.factor**2
    fields, _, _, rows, columns = stage.static.shape
    return [
        ((field * phases + p2 * factor + q2) * rows + row) * columns + column
        for phase in range(phases)
        for p2, row, q2, column in _under(stage.kernels[0], phase, factor)
        for field in range(fields)
    ]


def _chains(stage: FusedStage, stored: list[int], width: int, days: int) -> Chains:
    reach, later = stage.reach, [i for i, kernel in enumerate(stage.kernels[:-1]) if i and kernel > 1]
    ring = [2 * (reach[i] - reach[i + 1]) + 1 for i in range(len(reach) - 1)] + [1]
    hidden_day = [rows * stage.factor**2 * stored[layer - 1] * width for rows, layer in zip(ring, later, strict=False)]
    return Chains(
        reach=np.array(reach),
        first_layer=np.array([0, *later, len(stage.channels)]),
        ring=np.array(ring),
        hidden_at=np.cumsum([0, *hidden_day]) * days,
        hidden_day=np.array([*hidden_day, 0]),
    )


def _inner_offsets(
    stage: FusedStage, first_layer: np.ndarray, taps: list[int], stored: list[int], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """``offset`` and ``row`` of `Inner`, each ``(chains, phases, most taps)``."""
    factor, phases = stage.factor, stage.factor**2
    layers = [int(layer) for layer in first_layer[1:-1]]
    inner = np.zeros((len(layers) + 1, phases, max((taps[layer] for layer in layers), default=1), 2), np.intp)
    for chain, layer in enumerate(layers, 1):
        channels = stored[layer - 1]
        for phase in range(phases):
            inner[chain, phase, : taps[layer]] = [
                (((p2 * factor + q2) * channels + channel) * width + column, row)
                for p2, row, q2, column in _under(stage.kernels[layer], phase, factor)
                for channel in range(channels)
            ]
    return inner[..., 0], inner[..., 1]


def find_reach(kernels: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """Coarse cells that each chain must compute beyond the output."""
    reach = [cells(kernels[-1] // 2, factor)]
    for kernel in kernels[-2:0:-1]:
        if kernel > 1:
            reach.insert(0, reach[0] + cells(kernel // 2, factor))
    return tuple(reach)


def cells(fine: int, factor: int) -> int:
    """Number of coarse cells that ``fine`` cells beyond a coarse cell's edge reach into."""
    return math.ceil(fine / factor)


def _end_to_end(parts: list[Any], dtype: type) -> tuple[list[int], np.ndarray]:
    """Where each part starts, and all of them as one flat array."""
    flat: list[np.ndarray] = [np.asarray(part, dtype).ravel() for part in parts]
    return np.cumsum([0, *(part.size for part in flat)]).tolist()[:-1], np.concatenate(flat)


def _blocked(weights: np.ndarray) -> np.ndarray:
    """Weights ``(..., outputs)`` in the order the product reads them: by block of outputs, then by tap."""
    taps, blocks, done = weights.reshape(-1, weights.shape[-1]), [], 0
    while done < taps.shape[1]:
        size = _block(taps.shape[1] - done)
        blocks.append(taps[:, done : done + size].ravel())
        done += size
    return np.concatenate(blocks)


def _block(left: int) -> int:
    """Number of outputs to compute together when ``left`` remain."""
    return next(block for block in BLOCKS if block <= left)


def _paired(outputs: int) -> list[tuple[int, int]]:
    """Outputs written together as two bfloat16, see `compiled._product`; the index ``outputs`` means no partner."""
    pairs, done = [], 0
    while done < outputs:
        size = _block(outputs - done)
        pairs += [(i, i + 1 if i + 1 < done + size else outputs) for i in range(done, done + size, 2)]
        done += size
    return pairs


def _pack(weights: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Pack the weights of two inputs as two bfloat16: ``(..., inputs, outputs)`` to ``(..., pairs, outputs)``."""
    none = np.zeros((*weights.shape[:-2], 1, weights.shape[-1]), np.float32)
    low, high = np.moveaxis(np.concatenate([weights, none], axis=-2)[..., np.array(pairs), :], -2, 0)
    bits = [np.ascontiguousarray(half).view(np.uint32) for half in (low, high)]
    low, high = ((b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1))) >> np.uint32(16) for b in bits)
    return (low | high << np.uint32(16)).view(np.float32)


def _neighbours(kernel: int, phase: int, factor: int) -> list[tuple[int, int]]:
    """``(phase, coarse cell)`` of the fine cells under a kernel's row or column, seen from a cell of ``phase``."""
    return [((phase + d) % factor, (phase + d) // factor) for d in range(-(kernel // 2), kernel // 2 + 1)]


def _under(kernel: int, phase: int, factor: int) -> list[tuple[int, int, int, int]]:
    """Row phase, coarse row, column phase and coarse column of the fine cells under a kernel, seen from ``phase``."""
    rows, columns = (_neighbours(kernel, p, factor) for p in divmod(phase, factor))
    return [(*row, *column) for row in rows for column in columns]


# --- buffers ----------------------------------------------------------------------------------------------------------


def make_work(stage: FusedStage, plan: Plan, days: int) -> Work:
    """Make the buffers for one tile of ``days`` days."""
    phases, chains, stored = stage.factor**2, len(plan.chains.reach), plan.layers.stored
    panels = (chains + 1, plan.width // LANES + 1)
    return Work(
        static=_zeros("static", phases * stage.channels[0] * plan.width if plan.static.taps else 0),
        hidden=_zeros("hidden", int(plan.chains.hidden_at[-1] + stage.factor * stored[-1] * plan.width)),
        panel=_zeros("panel", 2 * int(stored.max()) * PANEL),
        rows=_zeros("rows", days * (stage.factor + plan.last.kernel - 1) * stage.factor * plan.width),
        offset=plan.offset.copy(),
        start=np.zeros(panels, np.intp),
        vectors=np.zeros(panels, np.intp),
        panels=np.zeros(chains + 1, np.intp),
    )


def padded(coarse: np.ndarray, pad: int) -> np.ndarray:
    """Days padded by ``pad`` replicated cells, plus the columns that the last panel may read beyond them; flat."""
    days, lat, lon = coarse.shape
    shape = (days, lat + 2 * pad, lon + 2 * pad + RIGHT)
    flat = _buffer("x", math.prod(shape))
    x = flat.reshape(shape)
    rows = slice(pad, pad + lat)
    x[:, rows, pad : pad + lon] = coarse
    x[:, rows, :pad] = coarse[..., :1]
    x[:, rows, pad + lon :] = coarse[..., -1:]
    x[:, :pad] = x[:, pad : pad + 1]
    x[:, pad + lat :] = x[:, pad + lat - 1 : pad + lat]
    return flat


def writeable(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy if it is read-only, as Dask's are: with one type, numba compiles only once."""
    return array if array.flags.writeable else array.copy()


def _aligned(size: int) -> np.ndarray:
    """Zeros aligned to a cache line, so that no vector straddles two."""
    buffer = np.zeros(size + 16, np.float32)
    start = -buffer.ctypes.data // 4 % 16
    return buffer[start : start + size]


_kept = threading.local()


def _buffer(name: str, size: int) -> np.ndarray:
    """A buffer to write to, reused from this thread's last call if large enough, since new memory costs page faults.

    There is one per name; the next call with that name in the same thread overwrites it.
    """
    if size > _KEEP:
        return _aligned(size)
    kept = getattr(_kept, name, None)
    if kept is None or kept.size < size:
        kept = _aligned(size)
        setattr(_kept, name, kept)
    return kept[:size]


def _zeros(name: str, size: int) -> np.ndarray:
    """A `_buffer` filled with zeros."""
    buffer = _buffer(name, size)
    buffer[:] = 0.0
    return buffer
