"""The compiled core of `fused`: register-blocked vector code, written once for every processor (numba, LLVM).

One building block does all convolutions: `_product` keeps ``outputs x vectors`` accumulators in registers and adds
``weight[tap, output] * x[offset[tap] + column]`` for all taps. An offset table makes it a 9 x 9 convolution of the
coarse field, a 3 x 3 of hidden channels or a 1 x 1. It is emitted as LLVM vectors, which become AVX-512, AVX2 or NEON.

The order of additions of each value depends on nothing but the network: not on the tile, the lane, the other days or
the mask. So any of these gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from xdeepsd.models.transform import invert_number


def _features() -> set[str]:
    """What numba compiles for: the processor here, unless NUMBA_CPU_FEATURES says otherwise."""
    given = getattr(config, "CPU_FEATURES", None)
    return set((given or llvmlite.binding.get_host_cpu_features().flatten()).split(","))


def _vectors() -> tuple[int, int]:
    """Floats in a vector register, and vectors side by side (a panel): 8 outputs by a panel must fit in registers."""
    if "+avx512f" in _FEATURES:
        return 16, 3  # 32 registers of 16
    if "+avx2" in _FEATURES:
        return 8, 1  # 16 registers of 8
    return 4, 3  # NEON: 32 registers of 4


_FEATURES = _features()
LANES, WIDEST = _vectors()
# LLVM 15 (numba before 0.62) has the instruction under another type.
HAS_BFLOAT16 = {"+avx512bf16", "+avx512f"} <= _FEATURES and llvmlite.binding.llvm_version_info[0] > 15
PANEL = LANES * WIDEST
BLOCKS = (8, 5, 1)  # outputs computed together; every number of outputs is a sum of these, largest first


class Plan(NamedTuple):
    """Where everything lies, in floats from the start of its array. Rows and columns are those of the coarse grid.

    A *chain* is a convolution with a reach (the first layer, or a later one of kernel > 1) and the 1 x 1 layers after
    it, computed panel by panel. The last convolution is not part of a chain. All hidden values are kept by sub-pixel
    phase ``(p, q)``: fine cell ``(factor * row + p, factor * column + q)``.
    """

    factor: int
    reach: np.ndarray  # (chains,) coarse rows and columns beyond the tile that the chain must compute
    first_layer: np.ndarray  # (chains + 1,) index of the chain's first layer
    taps: np.ndarray  # (layers,) inputs of one output; for the first layer the most of any phase
    outputs: np.ndarray  # (layers,)
    stored: np.ndarray  # (layers,) rows that the outputs take: as many, or pairs of them in bfloat16
    weight_at: np.ndarray  # (layers,) start in weights
    bias_at: np.ndarray  # (layers,) start in bias
    ring: np.ndarray  # (chains,) coarse rows kept of the chain's output
    hidden_at: np.ndarray  # (chains,) start of the chain's output in hidden
    hidden_day: np.ndarray  # (chains,) floats of one day in it; 0: one day only (the last chain)
    width: int  # columns of all buffers of a tile, a multiple of LANES
    x_row: int  # floats of a row, and of a day, of the padded coarse input
    x_day: int
    x_pad: int
    x_taps: np.ndarray  # (factor**2,) taps of the first layer on the coarse field for each phase
    x_offset_at: int  # start in offset of (factor**2, taps[0])
    static_row: int
    static_pad: int
    static_taps: int
    static_offset_at: int  # (factor**2, static_taps)
    static_weight_at: int
    inner_taps: int
    inner_offset: (
        np.ndarray
    )  # (chains, factor**2, inner_taps), flat: of later chains' first layers, without the ring's row
    inner_row: np.ndarray  # the same size: how many coarse rows away the tap is
    panel_offset_at: int  # (most channels,), of 1 x 1 layers in a panel
    last_kernel: int
    last_taps: int
    last_offset_at: int  # (factor, last_taps)
    last_weight_at: int
    last_bias: float
    residual: bool
    transform: int  # its place in TRANSFORMS
    weights: np.ndarray
    bias: np.ndarray  # every bias repeated for a panel
    offset: np.ndarray  # from a position in the source to each tap
    panel: int  # PANEL, as a number that numba does not compile for


class Work(NamedTuple):
    """Buffers of one tile. They bound the memory: their size depends on the network and the tile, not on the map."""

    static: np.ndarray  # the first layer's share of the static fields, one coarse row
    hidden: np.ndarray
    panel: np.ndarray  # two panels of the most channels
    rows: np.ndarray  # output rows not complete yet, (days, factor + kernel - 1, factor, width)
    offset: np.ndarray  # inner_offset with the ring's rows
    start: np.ndarray  # (chains + 1, panels)
    vectors: np.ndarray  # (chains + 1, panels)
    panels: np.ndarray  # (chains + 1,) number of panels of this row


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at first use, without the GIL; kept on disk for the next process where a folder can be written."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True, error_model="numpy")(function)


_invert = numba.njit(invert_number)


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


@intrinsic(prefer_literal=True)
def _product(  # type: ignore[no-untyped-def]
    typing, outputs, pairs_in, pairs_out, vectors, x, x_at, offset, offset_at, taps, weight, weight_at,
    init, init_at, init_row, out, out_at, out_row, floor,
):  # fmt: skip
    """``out[m, j] = max(floor, init[m, j] + sum over t of weight[t, m] * x[offset[t] + j])`` for one block of outputs.

    ``m < outputs`` (a literal) and ``j < vectors * LANES``. Positions are in floats from the start of the flat arrays;
    ``init_row`` and ``out_row`` are the steps from one output to the next. ``taps`` is at least 1. Nothing is checked.

    ``pairs_in`` is None or True: then each float of ``x`` and ``weight`` holds two bfloat16 and a tap is two taps.
    ``pairs_out`` likewise: outputs 0 and 1, 2 and 3, ... are written as pairs. Returns the rows written.
    """
    n = types.intp
    signature = types.intp(
        outputs, pairs_in, pairs_out, n, x, n, offset, n, n, weight, n, init, n, n, out, n, n, types.float32
    )  # fmt: skip
    rows = outputs.literal_value
    paired_in, paired_out = (not isinstance(t, types.NoneType) for t in (pairs_in, pairs_out))
    index, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
    pairs = ir.VectorType(_BFloat16(), 2 * LANES)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _, _, _, vectors, _, x_at, _, offset_at, taps, _, weight_at, _, init_at, init_row, _, out_at, out_row, floor = (
            args
        )

        def declare(name, result, *arguments):  # type: ignore[no-untyped-def]
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)

        def pointer(i, at):  # type: ignore[no-untyped-def]
            return builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [at])

        def address(base, row, size, column):  # type: ignore[no-untyped-def]
            return builder.gep(builder.gep(base, [builder.mul(size, index(row))]), [index(column * LANES)])

        def load(at):  # type: ignore[no-untyped-def]
            value = builder.load(builder.bitcast(at, vector.as_pointer()))
            value.align = 4
            return value

        def splat(scalar):  # type: ignore[no-untyped-def]
            undefined = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
            return builder.shuffle_vector(
                one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            )

        def multiply_add(total, x, factor):  # type: ignore[no-untyped-def]
            if paired_in:
                dot = declare("llvm.x86.avx512bf16.dpbf16ps.512", vector, vector, pairs, pairs)
                return builder.call(dot, [total, builder.bitcast(x, pairs), builder.bitcast(factor, pairs)])
            fused = declare(f"llvm.fmuladd.v{LANES}f32", vector, vector, vector, vector)  # where the processor has it
            return builder.call(fused, [x, factor, total])

        def interleave(even, odd):  # type: ignore[no-untyped-def]
            halves = [builder.fptrunc(half, ir.VectorType(_BFloat16(), LANES)) for half in (even, odd)]
            order = [half * LANES + lane for lane in range(LANES) for half in (0, 1)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order)
            return builder.bitcast(builder.shuffle_vector(*halves, mask), vector)

        x, offset, weight = pointer(4, x_at), pointer(6, offset_at), pointer(9, weight_at)
        init, out = pointer(11, init_at), pointer(14, out_at)

        def block(columns):  # type: ignore[no-untyped-def]
            """All taps for ``rows`` outputs by ``columns`` vectors: the sums stay in registers."""
            cells = [(m, j) for m in range(rows) for j in range(columns)]
            start = [load(address(init, m, init_row, j)) for m, j in cells]
            before, loop = builder.block, builder.append_basic_block("taps")
            after = builder.append_basic_block("sums")
            builder.branch(loop)
            builder.position_at_end(loop)
            tap = builder.phi(index)
            sums = [builder.phi(vector) for _ in cells]
            x_tap = builder.gep(x, [builder.load(builder.gep(offset, [tap]))])
            weight_tap = builder.gep(weight, [builder.mul(tap, index(rows))])
            loaded = [load(builder.gep(x_tap, [index(j * LANES)])) for j in range(columns)]
            added = []
            for m in range(rows):  # one weight at a time: all would not fit in registers beside the sums
                factor = splat(builder.load(builder.gep(weight_tap, [index(m)])))
                added += [multiply_add(sums[m * columns + j], loaded[j], factor) for j in range(columns)]
            following = builder.add(tap, index(1))
            branch = builder.cbranch(builder.icmp_signed("<", following, taps), loop, after)
            if rows * columns > 8:  # enough for the pipeline; unrolled, the sums no longer fit in registers
                loop_id = builder.module.add_metadata([builder.module.add_metadata(["llvm.loop.unroll.disable"])])
                loop_id.operands = (loop_id, *loop_id.operands)  # LLVM wants the node itself first
                branch.set_metadata("llvm.loop", loop_id)
            for phi, first, later in zip([tap, *sums], [index(0), *start], [following, *added], strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(later, loop)
            builder.position_at_end(after)
            lowest = splat(floor)
            # This way round NaN stays NaN, as in torch.
            values = [builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value) for value in added]
            if paired_out:
                values += [ir.Constant(vector, [0.0] * LANES)] * (columns * (rows % 2))
                values = [interleave(values[m * columns + j], values[(m + 1) * columns + j])
                          for m in range(0, rows, 2) for j in range(columns)]  # fmt: skip
            for i, value in enumerate(values):
                at = address(out, i // columns, out_row, i % columns)
                builder.store(value, builder.bitcast(at, vector.as_pointer())).align = 4

        for columns in range(WIDEST, 1, -1):
            with builder.if_then(builder.icmp_signed("==", vectors, index(columns))):
                block(columns)
        with builder.if_then(builder.icmp_signed("==", vectors, index(1))):
            block(1)
        return index((rows + 1) // 2 if paired_out else rows)

    return signature, generate


@_jit
def _layer(  # type: ignore[no-untyped-def]
    pairs_in, pairs_out, vectors, x, x_at, offset, offset_at, taps, weight, weight_at,
    init, init_at, init_row, out, out_at, out_row, outputs, floor,
):  # fmt: skip
    """All outputs of a layer on one panel of ``vectors`` vectors: see `_product`."""
    done = 0
    while done < outputs:
        w, i = weight_at + done * taps, init_at + done * init_row
        if outputs - done >= 8:
            rows = _product(
                8, pairs_in, pairs_out, vectors, x, x_at, offset, offset_at, taps, weight, w,
                init, i, init_row, out, out_at, out_row, floor,
            )  # fmt: skip
            done += 8
        elif outputs - done >= 5:
            rows = _product(
                5, pairs_in, pairs_out, vectors, x, x_at, offset, offset_at, taps, weight, w,
                init, i, init_row, out, out_at, out_row, floor,
            )  # fmt: skip
            done += 5
        else:
            rows = _product(
                1, pairs_in, pairs_out, vectors, x, x_at, offset, offset_at, taps, weight, w,
                init, i, init_row, out, out_at, out_row, floor,
            )  # fmt: skip
            done += 1
        out_at += rows * out_row


@_jit
def _panels(needed, start, vectors):  # type: ignore[no-untyped-def]
    """Cover the True columns of one row by disjoint panels: fills ``start`` and ``vectors``, returns their number."""
    count, column = 0, 0
    while column < needed.size:
        if not needed[column]:
            column += 1
            continue
        # A run ends where a whole vector of columns is not needed.
        last = column
        for j in range(column + 1, needed.size):
            if needed[j]:
                last = j
            elif j - last >= LANES:
                break
        left = (last - column) // LANES + 1
        pieces = (left + WIDEST - 1) // WIDEST
        for piece in range(pieces):
            size = (left + pieces - piece - 1) // (pieces - piece)  # 4 vectors are 2 + 2, not 3 + 1
            start[count], vectors[count] = column, size
            count += 1
            column += size * LANES
            left -= size
    return count


@_jit
def neighbours(x, pairs):  # type: ignore[no-untyped-def]
    """Each value and the one after it as two bfloat16 (rounded to nearest even); bits of float32 in, bits out."""
    for i in range(x.size - 1):
        low = (x[i] + np.uint32(0x7FFF) + ((x[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        high = (x[i + 1] + np.uint32(0x7FFF) + ((x[i + 1] >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        pairs[i] = low | high


@_jit
def _finish(plan, x, x_at, rows, rows_at, out, wanted, day, row, first, last):  # type: ignore[no-untyped-def]
    """Write one complete row of fine cells: interleave the phases, add the interpolated input, clip at 0."""
    factor, edge = plan.factor, plan.reach[0]
    row_position = (row % factor + 0.5) / factor - 0.5
    below = int(np.floor(row_position))
    weight_row = np.float32(row_position - below)
    line = x_at + (row // factor + plan.x_pad + below) * plan.x_row + plan.x_pad
    for q in range(factor):
        position = (q + 0.5) / factor - 0.5
        left = int(np.floor(position))
        weight_column = np.float32(position - left)
        values = rows_at + q * plan.width + edge
        for j in range(last - first):
            value = rows[values + j] + plan.last_bias  # last: sums of small numbers round less
            if plan.residual:
                at = line + first + j + left
                upper = x[at] * (np.float32(1) - weight_column) + x[at + 1] * weight_column
                at += plan.x_row
                lower = x[at] * (np.float32(1) - weight_column) + x[at + 1] * weight_column
                value += upper * (np.float32(1) - weight_row) + lower * weight_row
            if value < 0:  # not max(), which may lose a NaN
                value = np.float32(0)
            value = _invert(value, plan.transform)
            column = factor * (first + j) + q
            if wanted.size and not wanted[row, column]:
                value = np.float32(0)
            out[day, row, column] = value


@_jit
def run(pairs, plan, work, x, x_source, static, wanted, needed, out, row_first, row_last, column_first, column_last):  # type: ignore[no-untyped-def]
    """Compute the coarse cells ``[row_first, row_last) x [column_first, column_last)`` of all days.

    ``pairs`` is None in float32 and True in bfloat16; ``x_source`` is what the first layer reads: ``x``, or its
    `neighbours` in bfloat16.

    Rows of coarse cells stream through the network: each is computed once, for all days, with the static fields' share
    computed once for all of them. A later chain runs as many rows behind as it looks ahead.
    """
    factor, width, kernel = plan.factor, plan.width, plan.last_kernel
    chains, phases, radius = plan.reach.size, factor * factor, (kernel - 1) // 2
    edge = plan.reach[0]
    tile = column_last - column_first
    low = np.float32(-np.inf)
    zero = np.float32(0)
    kept = factor + kernel - 1  # fine rows that the rows of one coarse row add to
    rows_day = kept * factor * width
    count = work.panels
    days = out.shape[0]
    work.rows[:] = zero

    for step in range(row_first - edge, row_last + edge):
        for chain in range(chains):
            row = step - edge + plan.reach[chain]
            count[chain] = 0
            if row < row_first - plan.reach[chain]:
                continue
            inside = needed[chain, row + edge, column_first : column_last + 2 * edge]
            count[chain] = _panels(inside, work.start[chain], work.vectors[chain])
            if chain == chains - 1:
                inside = needed[chains, row + edge, column_first + edge : column_last + edge]
                count[chains] = _panels(inside, work.start[chains], work.vectors[chains])
            if chain == 0:
                if plan.static_taps:
                    at = (row + plan.static_pad) * plan.static_row + column_first - edge + plan.static_pad
                    for phase in range(phases):
                        for i in range(count[0]):
                            _layer(
                                None, None, work.vectors[0, i], static, at + work.start[0, i],
                                plan.offset, plan.static_offset_at + phase * plan.static_taps, plan.static_taps,
                                plan.weights, plan.static_weight_at,
                                plan.bias, plan.bias_at[0], plan.panel,
                                work.static, phase * plan.outputs[0] * width + work.start[0, i], width,
                                plan.outputs[0], low,
                            )  # fmt: skip
            else:
                size = plan.ring[chain - 1]
                step_row = phases * plan.stored[plan.first_layer[chain] - 1] * width
                for phase in range(phases):
                    for tap in range(plan.taps[plan.first_layer[chain]]):
                        at = (chain * phases + phase) * plan.inner_taps + tap
                        ring = (row + edge + plan.inner_row[at]) % size
                        work.offset[at] = plan.inner_offset[at] + ring * step_row

        for day in range(days):
            for chain in range(chains):
                row = step - edge + plan.reach[chain]
                if row < row_first - plan.reach[chain]:
                    continue
                begin, end = plan.first_layer[chain], plan.first_layer[chain + 1]
                hidden_row = plan.hidden_at[chain] + day * plan.hidden_day[chain]
                stored = plan.stored[end - 1]
                x_at = day * plan.x_day + (row + plan.x_pad) * plan.x_row + column_first - edge + plan.x_pad
                rows_at = day * rows_day
                for p in range(factor):
                    ring_row = ((row + edge) % plan.ring[chain]) * factor + p if chain < chains - 1 else 0
                    for q in range(factor):
                        phase = p * factor + q
                        for i in range(count[chain]):
                            u, vectors = work.start[chain, i], work.vectors[chain, i]
                            for layer in range(begin, end):
                                source, target = (
                                    (layer % 2) * work.panel.size // 2,
                                    (1 - layer % 2) * work.panel.size // 2,
                                )
                                target_row, buffer = plan.panel, work.panel
                                if layer == end - 1:
                                    buffer, target_row = work.hidden, width
                                    target = hidden_row + (ring_row * factor + q) * stored * width + u
                                if layer == 0:
                                    if plan.static_taps:
                                        init, init_at = work.static, phase * plan.outputs[0] * width + u
                                        init_row = width
                                    else:
                                        init, init_at, init_row = plan.bias, plan.bias_at[0], plan.panel
                                    _layer(
                                        pairs, pairs, vectors, x_source, x_at + u,
                                        plan.offset, plan.x_offset_at + phase * plan.taps[0], plan.x_taps[phase],
                                        plan.weights, plan.weight_at[0] + phase * plan.taps[0] * plan.outputs[0],
                                        init, init_at, init_row, buffer, target, target_row,
                                        plan.outputs[0], zero,
                                    )  # fmt: skip
                                elif layer == begin:
                                    _layer(
                                        pairs, pairs, vectors, work.hidden,
                                        plan.hidden_at[chain - 1] + day * plan.hidden_day[chain - 1] + u,
                                        work.offset, (chain * phases + phase) * plan.inner_taps, plan.taps[layer],
                                        plan.weights, plan.weight_at[layer],
                                        plan.bias, plan.bias_at[layer], plan.panel, buffer, target, target_row,
                                        plan.outputs[layer], zero,
                                    )  # fmt: skip
                                else:
                                    _layer(
                                        pairs, pairs, vectors, work.panel, source,
                                        plan.offset, plan.panel_offset_at, plan.taps[layer],
                                        plan.weights, plan.weight_at[layer],
                                        plan.bias, plan.bias_at[layer], plan.panel, buffer, target, target_row,
                                        plan.outputs[layer], zero,
                                    )  # fmt: skip
                    if chain == chains - 1:
                        # This fine row's share of the kernel rows of output around it, added up in registers.
                        for q in range(factor):
                            for i in range(count[chains]):
                                u = work.start[chains, i] + edge
                                at = rows_at + (p * factor + q) * width + u
                                _layer(
                                    pairs, None, work.vectors[chains, i], work.hidden, plan.hidden_at[chain] + u,
                                    plan.offset, plan.last_offset_at + q * plan.last_taps, plan.last_taps,
                                    plan.weights, plan.last_weight_at,
                                    work.rows, at, factor * width, work.rows, at, factor * width,
                                    kernel, low,
                                )  # fmt: skip
            row = step - edge + plan.reach[chains - 1]
            if row < row_first - plan.reach[chains - 1]:
                continue
            for t in range(factor):
                fine_row = factor * row - radius + t
                if factor * row_first <= fine_row < factor * row_last:
                    _finish(
                        plan, x, day * plan.x_day,
                        work.rows, day * rows_day + t * factor * width,
                        out, wanted, day, fine_row, column_first, column_first + tile,
                    )  # fmt: skip
            moved = (kept - factor) * factor * width
            at = day * rows_day
            for j in range(moved):
                work.rows[at + j] = work.rows[at + j + factor * factor * width]
            for j in range(moved, rows_day):
                work.rows[at + j] = zero
