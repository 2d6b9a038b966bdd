"""The compiled core of `fused`: register-blocked vector code, written once for every processor (numba, LLVM).

All of it is in this one file, because numba's disk cache only checks the date of a single file.

One building block does all convolutions: `_product` keeps ``outputs x vectors`` accumulators in registers and adds
``weight[tap, output] * x[offset[tap] + column]`` for all taps. An offset table makes it a 9 x 9 convolution of the
coarse field, or a 3 x 3 or 1 x 1 convolution of hidden channels. It is emitted as LLVM vectors, which become AVX-512,
AVX2 or NEON.

The order in which each value is summed depends only on the network, not on the tile, the lane, the other days or the
mask. So the bits are the same whatever these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from xdeepsd.models.transform import invert_number


def _features() -> set[str]:
    """The processor features numba compiles for: those of this machine, unless NUMBA_CPU_FEATURES says otherwise."""
    given = getattr(config, "CPU_FEATURES", None)
    return set((given or llvmlite.binding.get_host_cpu_features().flatten()).split(","))


def _vectors() -> tuple[int, int]:
    """Floats per vector register, and vectors per panel: the sums of 8 outputs on a panel must fit in the registers."""
    if "+avx512f" in _FEATURES:
        return 16, 3  # 32 registers of 16
    if "+avx2" in _FEATURES:
        return 8, 1  # 16 registers of 8
    return 4, 3  # NEON: 32 registers of 4


_FEATURES = _features()
LANES, WIDEST = _vectors()
# LLVM 15 (numba before 0.62) has the instruction, but with another type.
HAS_BFLOAT16 = {"+avx512bf16", "+avx512f"} <= _FEATURES and llvmlite.binding.llvm_version_info[0] > 15
PANEL = LANES * WIDEST
BLOCKS = (8, 5, 1)  # outputs computed together; any number of outputs is split into these, largest first


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, to run without the GIL; cached on disk for later processes if a folder is writable."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True, error_model="numpy")(function)


_invert = numba.njit(invert_number)


class _BFloat16(ir.Type):
    """LLVM's bfloat type, for which llvmlite has no name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_PAIRS = ir.VectorType(_BFloat16(), 2 * LANES)


@intrinsic
def _at(typing, array, position):  # type: ignore[no-untyped-def]
    """Address of an element of a flat array. Plain integers cost nothing to choose between or pass on."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), _INDEX)

    return types.intp(array, types.intp), generate


@intrinsic(prefer_literal=True)
def _product(  # type: ignore[no-untyped-def]
    typing, outputs, pairs_in, pairs_out, vectors, x, offset, taps, weight, init, init_row, out, out_row, floor
):  # fmt: skip
    """``out[m, j] = max(floor, init[m, j] + sum over t of weight[t, m] * x[offset[t] + j])`` for one block of outputs.

    ``m < outputs`` (a literal) and ``j < vectors * LANES``. ``x``, ``offset``, ``weight``, ``init`` and ``out`` are
    addresses (`_at`); ``init_row`` and ``out_row`` are the distances in floats from one output to the next. ``taps``
    is at least 1. Nothing is checked.

    ``pairs_in`` is None or True. If True, each float of ``x`` and ``weight`` holds two bfloat16: one tap is two taps.
    ``pairs_out`` likewise: outputs 0 and 1, 2 and 3, ... are written as pairs. Returns the number of rows written.
    """
    signature = types.intp(outputs, pairs_in, pairs_out, *[types.intp] * 9, types.float32)
    rows = outputs.literal_value
    paired_in, paired_out = (not isinstance(t, types.NoneType) for t in (pairs_in, pairs_out))

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        vectors, x, offset, taps, weight, init, init_row, out, out_row, floor = args[3:]
        offset = builder.inttoptr(offset, _INDEX.as_pointer())
        x, weight, init, out = (builder.inttoptr(at, ir.FloatType().as_pointer()) for at in (x, weight, init, out))
        for columns in range(WIDEST, 0, -1):
            with builder.if_then(builder.icmp_signed("==", vectors, _INDEX(columns))):
                start = [_load(builder, _address(builder, init, *cell, init_row)) for cell in _cells(rows, columns)]
                sums = _add_taps(builder, rows, columns, paired_in, start, taps, x, offset, weight)
                _store(builder, rows, columns, paired_out, sums, floor, out, out_row)
        return _INDEX((rows + 1) // 2 if paired_out else rows)

    return signature, generate


def _cells(rows, columns):  # type: ignore[no-untyped-def]
    """Output and vector of each sum, in the order they are kept in."""
    return [(m, j) for m in range(rows) for j in range(columns)]


def _add_taps(builder, rows, columns, paired_in, start, taps, x, offset, weight):  # type: ignore[no-untyped-def]
    """Emit the loop over all taps for ``rows`` outputs by ``columns`` vectors: the sums stay in registers."""
    before, loop = builder.block, builder.append_basic_block("taps")
    after = builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    tap = builder.phi(_INDEX)
    sums = [builder.phi(_VECTOR) for _ in start]
    x_tap = builder.gep(x, [builder.load(builder.gep(offset, [tap]))])
    weight_tap = builder.gep(weight, [builder.mul(tap, _INDEX(rows))])
    loaded = [_load(builder, builder.gep(x_tap, [_INDEX(j * LANES)])) for j in range(columns)]
    added = []
    for m in range(rows):  # one weight at a time: all of them would not fit in the registers beside the sums
        factor = _splat(builder, builder.load(builder.gep(weight_tap, [_INDEX(m)])))
        added += [_multiply_add(builder, paired_in, sums[m * columns + j], loaded[j], factor) for j in range(columns)]
    following = builder.add(tap, _INDEX(1))
    branch = builder.cbranch(builder.icmp_signed("<", following, taps), loop, after)
    if rows * columns > 8:  # enough to fill the pipeline; if unrolled, the sums would not fit in the registers
        loop_id = builder.module.add_metadata([builder.module.add_metadata(["llvm.loop.unroll.disable"])])
        loop_id.operands = (loop_id, *loop_id.operands)  # LLVM wants the node itself first
        branch.set_metadata("llvm.loop", loop_id)
    for phi, first, later in zip([tap, *sums], [_INDEX(0), *start], [following, *added], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)
    builder.position_at_end(after)
    return added


def _store(builder, rows, columns, paired_out, sums, floor, out, out_row):  # type: ignore[no-untyped-def]
    """Write the sums, raised to ``floor`` where they are below it."""
    lowest = _splat(builder, floor)
    # This way round NaN stays NaN, as in torch.
    values = [builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value) for value in sums]
    if paired_out:
        values += [ir.Constant(_VECTOR, [0.0] * LANES)] * (columns * (rows % 2))
        values = [_interleave(builder, values[m * columns + j], values[(m + 1) * columns + j])
                  for m in range(0, rows, 2) for j in range(columns)]  # fmt: skip
    for value, cell in zip(values, _cells(rows, columns), strict=False):
        at = builder.bitcast(_address(builder, out, *cell, out_row), _VECTOR.as_pointer())
        builder.store(value, at).align = 4


def _address(builder, base, row, column, size):  # type: ignore[no-untyped-def]
    """Address of the vector ``column`` in row ``row``; rows are ``size`` floats apart."""
    return builder.gep(builder.gep(base, [builder.mul(size, _INDEX(row))]), [_INDEX(column * LANES)])


def _load(builder, at):  # type: ignore[no-untyped-def]
    value = builder.load(builder.bitcast(at, _VECTOR.as_pointer()))
    value.align = 4
    return value


def _splat(builder, scalar):  # type: ignore[no-untyped-def]
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _multiply_add(builder, paired, total, x, factor):  # type: ignore[no-untyped-def]
    def declare(name, *arguments):  # type: ignore[no-untyped-def]
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, arguments), name)

    if paired:
        dot = declare("llvm.x86.avx512bf16.dpbf16ps.512", _VECTOR, _PAIRS, _PAIRS)
        return builder.call(dot, [total, builder.bitcast(x, _PAIRS), builder.bitcast(factor, _PAIRS)])
    fused = declare(f"llvm.fmuladd.v{LANES}f32", _VECTOR, _VECTOR, _VECTOR)  # fused where the processor can
    return builder.call(fused, [x, factor, total])


def _interleave(builder, even, odd):  # type: ignore[no-untyped-def]
    """Two vectors merged into one vector of bfloat16 pairs."""
    halves = [builder.fptrunc(half, ir.VectorType(_BFloat16(), LANES)) for half in (even, odd)]
    order = [half * LANES + lane for lane in range(LANES) for half in (0, 1)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order)
    return builder.bitcast(builder.shuffle_vector(*halves, mask), _VECTOR)


@jit
def _layer(  # type: ignore[no-untyped-def]
    pairs_in, pairs_out, vectors, x, offset, taps, weight, init, init_row, out, out_row, outputs, floor
):  # fmt: skip
    """Compute all outputs of a layer on one panel of ``vectors`` vectors: see `_product`."""
    done = 0
    while done < outputs:
        w, i = weight + 4 * done * taps, init + 4 * done * init_row  # bytes
        if outputs - done >= 8:
            rows = _product(8, pairs_in, pairs_out, vectors, x, offset, taps, w, i, init_row, out, out_row, floor)
            done += 8
        elif outputs - done >= 5:
            rows = _product(5, pairs_in, pairs_out, vectors, x, offset, taps, w, i, init_row, out, out_row, floor)
            done += 5
        else:
            rows = _product(1, pairs_in, pairs_out, vectors, x, offset, taps, w, i, init_row, out, out_row, floor)
            done += 1
        out += 4 * rows * out_row


@jit
def _panels(needed, start, vectors):  # type: ignore[no-untyped-def]
    """Cover the True columns of one row with disjoint panels: fill ``start`` and ``vectors``, return their number."""
    count, column = 0, 0
    while column < needed.size:
        if not needed[column]:
            column += 1
            continue
        # A run ends at a gap of a whole vector of unneeded columns.
        last = column
        for j in range(column + 1, needed.size):
            if needed[j]:
                last = j
            elif j - last >= LANES:
                break
        left = (last - column) // LANES + 1
        pieces = (left + WIDEST - 1) // WIDEST
        for piece in range(pieces):
            size = (left + pieces - piece - 1) // (pieces - piece)  # 4 vectors are split 2 + 2, not 3 + 1
            start[count], vectors[count] = column, size
            count += 1
            column += size * LANES
            left -= size
    return count


@jit
def neighbours(x, pairs):  # type: ignore[no-untyped-def]
    """Each value and the next as two bfloat16 (rounded to nearest even). Takes and returns float32 bit patterns."""
    for i in range(x.size - 1):
        low = (x[i] + np.uint32(0x7FFF) + ((x[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        high = (x[i + 1] + np.uint32(0x7FFF) + ((x[i + 1] >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        pairs[i] = low | high


# --- rows of coarse cells, streaming through the network --------------------------------------------------------------


@jit
def run(pairs, plan, work, x, x_source, static, wanted, needed, out, row_first, row_last, column_first, column_last):  # type: ignore[no-untyped-def]
    """Compute the coarse cells ``[row_first, row_last) x [column_first, column_last)`` of all days.

    ``pairs`` is None in float32 and True in bfloat16; ``x_source`` is what the first layer reads: ``x``, or its
    `neighbours` in bfloat16. ``plan`` and ``work`` come from `layout`.

    Rows of coarse cells stream through the network: each row is computed once, on all days, and the contribution of the
    static fields once for all days. Each later chain runs behind by as many rows as it looks ahead.
    """
    reach = plan.chains.reach
    edge, last = reach[0], reach.size - 1
    work.rows[:] = np.float32(0)
    for step in range(row_first - edge, row_last + edge):
        for chain in range(reach.size):
            row = step - edge + reach[chain]
            work.panels[chain] = 0
            if row >= row_first - reach[chain]:
                _begin_row(plan, work, static, needed, chain, row, column_first, column_last)
        for day in range(out.shape[0]):
            for chain in range(reach.size):
                row = step - edge + reach[chain]
                if row >= row_first - reach[chain]:
                    _hidden_row(pairs, plan, work, x_source, chain, row, day, column_first)
            row = step - edge + reach[last]
            if row >= row_first - reach[last]:
                _finish_rows(plan, work, x, wanted, out, day, row, row_first, row_last, column_first, column_last)


@jit
def _begin_row(plan, work, static, needed, chain, row, column_first, column_last):  # type: ignore[no-untyped-def]
    """Prepare what is the same on all days: the panels, the static contribution, and where the ring's rows are."""
    phases, width = plan.factor * plan.factor, plan.width
    edge, chains = plan.chains.reach[0], plan.chains.reach.size
    inside = needed[chain, row + edge, column_first : column_last + 2 * edge]
    work.panels[chain] = _panels(inside, work.start[chain], work.vectors[chain])
    if chain == chains - 1:
        inside = needed[chains, row + edge, column_first + edge : column_last + edge]
        work.panels[chains] = _panels(inside, work.start[chains], work.vectors[chains])
    if chain > 0:
        layer = plan.chains.first_layer[chain]
        ring_row = phases * plan.layers.stored[layer - 1] * width
        for phase in range(phases):
            for tap in range(plan.layers.taps[layer]):
                at = (chain * phases + phase) * plan.inner.taps + tap
                ring = (row + edge + plan.inner.row[at]) % plan.chains.ring[chain - 1]
                work.offset[plan.inner.offset_at + at] = plan.inner.offset[at] + ring * ring_row
    elif plan.static.taps:
        at = (row + plan.static.pad) * plan.static.row + column_first - edge + plan.static.pad
        for phase in range(phases):
            for i in range(work.panels[0]):
                _layer(
                    None, None, work.vectors[0, i], _at(static, at + work.start[0, i]),
                    _at(work.offset, plan.static.offset_at + phase * plan.static.taps), plan.static.taps,
                    _at(plan.weights, plan.static.weight_at), _at(plan.bias, plan.layers.bias_at[0]), plan.panel,
                    _at(work.static, phase * plan.layers.outputs[0] * width + work.start[0, i]), width,
                    plan.layers.outputs[0], np.float32(-np.inf),
                )  # fmt: skip


@jit
def _hidden_row(pairs, plan, work, x, chain, row, day, column_first):  # type: ignore[no-untyped-def]
    """One coarse row of a chain on one day, panel by panel; `_add_row` takes the output of the last chain."""
    factor, width, layers, edge = plan.factor, plan.width, plan.layers, plan.chains.reach[0]
    begin, end = plan.chains.first_layer[chain], plan.chains.first_layer[chain + 1]
    last = chain == plan.chains.reach.size - 1
    hidden = plan.chains.hidden_at[chain] + day * plan.chains.hidden_day[chain]
    x_at = day * plan.coarse.day + (row + plan.coarse.pad) * plan.coarse.row + column_first - edge + plan.coarse.pad
    before = plan.chains.hidden_at[chain - 1] + day * plan.chains.hidden_day[chain - 1]
    half = work.panel.size // 2
    for p in range(factor):
        ring = 0 if last else ((row + edge) % plan.chains.ring[chain]) * factor + p
        for q in range(factor):
            phase = p * factor + q
            hidden_at = hidden + (ring * factor + q) * layers.stored[end - 1] * width
            for i in range(work.panels[chain]):
                u, vectors = work.start[chain, i], work.vectors[chain, i]
                for layer in range(begin, end):
                    source, offset_at = _at(work.panel, (layer % 2) * half), plan.panel_offset_at
                    taps, weight_at = layers.taps[layer], layers.weight_at[layer]
                    init, init_row = _at(plan.bias, layers.bias_at[layer]), plan.panel
                    out, out_row = _at(work.panel, (1 - layer % 2) * half), plan.panel
                    if layer == 0:
                        source, offset_at = _at(x, x_at + u), plan.coarse.offset_at + phase * taps
                        weight_at += phase * taps * layers.outputs[0]
                        taps = plan.coarse.taps[phase]
                        if plan.static.taps:
                            init, init_row = _at(work.static, phase * layers.outputs[0] * width + u), width
                    elif layer == begin:
                        source = _at(work.hidden, before + u)
                        offset_at = plan.inner.offset_at + (chain * factor * factor + phase) * plan.inner.taps
                    if layer == end - 1:
                        out, out_row = _at(work.hidden, hidden_at + u), width
                    _layer(
                        pairs, pairs, vectors, source, _at(work.offset, offset_at), taps, _at(plan.weights, weight_at),
                        init, init_row, out, out_row, layers.outputs[layer], np.float32(0),
                    )  # fmt: skip
        if last:
            _add_row(pairs, plan, work, day, p)


@jit
def _add_row(pairs, plan, work, day, p):  # type: ignore[no-untyped-def]
    """Add a fine row's contribution to the output rows under the kernel around it; the sums stay in registers."""
    last, factor, width = plan.last, plan.factor, plan.width
    chains = plan.chains.reach.size
    rows_at = (day * (factor + last.kernel - 1) + p) * factor * width
    for q in range(factor):
        for i in range(work.panels[chains]):
            u = work.start[chains, i] + plan.chains.reach[0]
            at = _at(work.rows, rows_at + q * width + u)
            _layer(
                pairs, None, work.vectors[chains, i], _at(work.hidden, plan.chains.hidden_at[chains - 1] + u),
                _at(work.offset, last.offset_at + q * last.taps), last.taps, _at(plan.weights, last.weight_at),
                at, factor * width, at, factor * width, last.kernel, np.float32(-np.inf),
            )  # fmt: skip


@jit
def _finish_rows(plan, work, x, wanted, out, day, row, row_first, row_last, column_first, column_last):  # type: ignore[no-untyped-def]
    """Write the fine rows completed by the coarse row ``row``, and make room for the next ones."""
    factor, kernel = plan.factor, plan.last.kernel
    fine = factor * plan.width
    at = day * (factor + kernel - 1) * fine
    for t in range(factor):
        fine_row = factor * row - (kernel - 1) // 2 + t
        if factor * row_first <= fine_row < factor * row_last:
            _finish(
                plan, x, day * plan.coarse.day, work.rows, at + t * fine, out, wanted, day, fine_row,
                column_first, column_last,
            )  # fmt: skip
    kept = (kernel - 1) * fine
    for j in range(at, at + kept):
        work.rows[j] = work.rows[j + factor * fine]
    for j in range(at + kept, at + kept + factor * fine):
        work.rows[j] = np.float32(0)


@jit
def _finish(plan, x, x_at, rows, rows_at, out, wanted, day, row, first, last):  # type: ignore[no-untyped-def]
    """Write one complete row of fine cells: interleave the phases, add the interpolated input, clip."""
    factor, edge = plan.factor, plan.chains.reach[0]
    row_position = (row % factor + 0.5) / factor - 0.5
    below = int(np.floor(row_position))
    weight_row = np.float32(row_position - below)
    line = x_at + (row // factor + plan.coarse.pad + below) * plan.coarse.row + plan.coarse.pad
    for q in range(factor):
        position = (q + 0.5) / factor - 0.5
        left = int(np.floor(position))
        weight_column = np.float32(position - left)
        values = rows_at + q * plan.width + edge
        for j in range(last - first):
            value = rows[values + j] + plan.last.bias  # bias last: sums of small numbers have less rounding
            if plan.last.residual:
                at = line + first + j + left
                upper = x[at] * (np.float32(1) - weight_column) + x[at + 1] * weight_column
                at += plan.coarse.row
                lower = x[at] * (np.float32(1) - weight_column) + x[at + 1] * weight_column
                value += upper * (np.float32(1) - weight_row) + lower * weight_row
            if value < plan.last.floor:  # not max(), which could lose a NaN
                value = plan.last.floor
            value = _invert(value, plan.last.transform)
            column = factor * (first + j) + q
            if wanted.size and not wanted[row, column]:
                value = np.float32(0)
            out[day, row, column] = value
