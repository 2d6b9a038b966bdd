"""The loops of `histogram`, compiled with numba, each a single pass over a block of values.

numba is used because numpy would need several arrays as large as a chunk.
"""

# mypy: disallow-untyped-defs=False
# (The loops have no annotations: numba compiles them for float32 and float64.)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from xdeepsd.models.transform import transform_number

_BLOCK = 1024  # values: a block and its scratch arrays stay in the first-level cache

# A value's position is known to 2**-28 of a grid step (the unit of shares). One integer sums up shares in its lower 45
# bits and the number of values in its upper bits, for as many values (2**17) as fit; then it is added to the counts.
FRACTION, _COUNT, _FLUSH = 28, 45, 2**17 // _BLOCK
_ONE = 2**_COUNT


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile to run without the GIL; cache the code on disk if a folder is writable (in an image, none may be)."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:
            return njit(nogil=True, **options)(function)

    return decorate


_transform_number = njit(transform_number)

# --- One block of values --------------------------------------------------------------------------------------------
# Small loops without branches, so that the compiler turns them into SIMD code.


@_compiled(fastmath={"reassoc"})
def _count(values, threshold):
    """Count the values that are finite, infinite, 0, negative (not dry), and not dry."""
    one, none = values.dtype.type(1), values.dtype.type(0)  # in the values' dtype: SIMD handles twice as many float32
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
    """Update the lowest and highest value seen at each position in a block."""
    for i in range(values.size):
        v = values[i]
        is_wet = (abs(v) < math.inf) & (v >= threshold)
        lowest[i] = v if is_wet & (v < lowest[i]) else lowest[i]
        highest[i] = v if is_wet & (v > highest[i]) else highest[i]


@_compiled(fastmath={"reassoc", "nsz", "contract"})
def _sums(values, threshold, shift):
    """Sum and sum of squares of the differences from ``shift``, in any order."""
    total = squares = 0.0
    for i in range(values.size):
        v = values[i]
        difference = np.float64(v) - shift if (abs(v) < math.inf) & (v >= threshold) else 0.0
        total += difference
        squares += difference * difference
    return total, squares


@_compiled()
def _positions(values, threshold, start, inverse_step, points, left, packed):
    """Grid point left of each value, and a one packed with the right neighbour's share; returns how many zeros count.

    ``inverse_step`` is in fractions, ``2**FRACTION`` to a step. Zeros, and values that are not counted, go to eight
    bins beyond the grid in turn: in a single bin, each of a long run (dry days, ocean) would wait until the previous
    one is stored.
    """
    last = (points - 1.0) * 2.0**FRACTION
    zeros = 0
    for i in range(values.size):
        v = np.float64(values[i])
        position = (v - start) * inverse_step
        counted = (position >= 0.0) & (position <= last) & (v >= threshold)
        zeros += counted & (v == 0.0)
        fractions = np.int64(position if counted else 0.0)
        left[i] = fractions >> FRACTION if counted & (v != 0.0) else points + (i & 7)
        packed[i] = _ONE | (fractions & (2**FRACTION - 1))
    return zeros


# --- A flat array ---------------------------------------------------------------------------------------------------


@_compiled()
def take_moments(values, threshold, transform):
    """The fields of `Moments`; ``threshold`` has the dtype of the values."""
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
        if n == 0:  # any counted value will do as the first shift
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
    if transform != 0 and n > 0:  # transforms are increasing
        _transform(extremes, -math.inf, transform, extremes)
    return finite, infinite, zeros, negative, n, mean, squares, extremes[0], extremes[1]


@_compiled()
def bin_values(values, threshold, transform, start, inverse_step, points):
    """Counts ``(points,)`` float64: each value is shared between its two neighbours on the grid."""
    block, left, packed = np.empty(_BLOCK), np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    both = np.zeros(points + 8, np.int64)  # number of values and sum of shares in one integer: one store per value
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
                share = (both[k] & (_ONE - 1)) / 2.0**FRACTION
                counts[k] += (both[k] >> _COUNT) - share
                counts[min(k + 1, points - 1)] += share  # the last point has no right neighbour
            both[:] = 0
    if zeros > 0:
        position = -start * inverse_step / 2.0**FRACTION
        k = np.int64(position)
        counts[k] += zeros * (1.0 - (position - k))
        counts[min(k + 1, points - 1)] += zeros * (position - k)
    return counts


@_compiled()
def look_up_values(values, threshold, transform, dry, start, inverse_step, table, out):
    """Fill ``out`` from the table, interpolated linearly; ``dry`` below the threshold."""
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
