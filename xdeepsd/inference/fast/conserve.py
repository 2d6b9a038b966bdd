"""Coarse means kept: adjust fine cells in place so that their mean is the coarse value (compiled).

Blocks are independent, so the bits are the same however the days and maps are split. Sums are in float64.
"""

from __future__ import annotations

import numpy as np

from xdeepsd.inference.fast.compiled import jit
from xdeepsd.inference.fast.layout import writeable
from xdeepsd.models.conserve import NOTHING, Conserve, check


def conserve(fine: np.ndarray, coarse: np.ndarray, weights: np.ndarray, factor: int, kind: Conserve) -> None:
    """Change the fine cells ``y`` of each coarse cell so that their weighted mean is the coarse value ``x``.

    Parameters
    ----------
    fine
        ``(days, factor * lat, factor * lon)`` float32, changed in place. Precipitation, at least 0, not transformed;
        for "softmax" the network's own output ``u``, of any sign.
    coarse
        ``(days, lat, lon)`` float32, same units, the input of the same stage. Values below 0 count as 0.
    weights
        ``(factor * lat, factor * lon)`` float32 or float64, at least 0: the cell's area times its wanted share. A cell
        with weight 0 does not count and is left unchanged; with "softmax" it becomes ``x``.
    factor
        Fine cells per coarse cell along an axis.
    kind
        "multiplicative": ``y x / mean(y)``, or ``x`` everywhere if ``mean(y)`` is next to nothing. "additive":
        ``y + x - mean(y)``, clipped at 0, then multiplicative, since clipping raises the mean. "softmax": ``x exp(u)
        / mean(exp(u))``.

    Raises
    ------
    ValueError
        If the shapes do not fit together or ``kind`` is unknown.

    Notes
    -----
    The mean holds to 1e-6 (relative; float32 rounding). No value exceeds ``x`` times the sum of the block's weights
    divided by the cell's own weight. Where ``x`` is 0, the cells that count are 0; with NaN in a block or in its
    ``x``, they are NaN. "softmax": Harder et al., JMLR 2023.
    """
    days, lat, lon = coarse.shape
    shape = (factor * lat, factor * lon)
    if fine.shape != (days, *shape) or weights.shape != shape:
        raise ValueError(
            f"The shapes are {fine.shape} fine, {coarse.shape} coarse, {weights.shape} weights; needed with factor "
            f"{factor}: {(days, *shape)} fine and {shape} weights."
        )
    check(kind)
    arguments = fine, writeable(np.asarray(coarse, np.float32)), writeable(weights), factor
    if kind == "softmax":
        _softmax(*arguments)
    else:
        _keep_mean(*arguments, kind == "additive")


@jit
def _keep_mean(fine, coarse, weights, factor, additive):  # type: ignore[no-untyped-def]
    days, lat, lon = coarse.shape
    total, sums = _totals(weights, factor), np.empty(lon)
    shift, scale, instead = np.zeros(factor * lon), np.empty(factor * lon), np.empty(factor * lon)
    for day in range(days):
        for i in range(lat):
            rows = range(factor * i, factor * i + factor)
            if additive:
                shift[:], sums[:] = 0, 0
                for row in rows:
                    _add_up(fine[day, row], shift, weights[row], factor, sums)
                for j in range(lon):
                    shift[factor * j : factor * j + factor] = _amount(coarse[day, i, j]) - sums[j] / total[i, j]
            sums[:] = 0
            for row in rows:
                _add_up(fine[day, row], shift, weights[row], factor, sums)
            for j in range(lon):
                amount = np.float64(_amount(coarse[day, i, j]))
                block = slice(factor * j, factor * j + factor)
                mean = sums[j] / total[i, j]
                holds = not mean <= NOTHING * amount  # NaN is passed on
                scale[block] = amount / mean if holds else 0
                instead[block] = 0 if holds else amount
            for row in rows:
                line, weight = fine[day, row], weights[row]
                for column in range(line.size):
                    value = _amount(line[column] + shift[column]) * scale[column] + instead[column]
                    line[column] = value if weight[column] > 0 else line[column]


@jit
def _add_up(line, shift, weight, factor, sums):  # type: ignore[no-untyped-def]
    """Add a row's weighted values, shifted and clipped at 0, to the sum of each block."""
    for j in range(sums.size):
        for column in range(factor * j, factor * j + factor):
            if weight[column] > 0:
                sums[j] += weight[column] * _amount(line[column] + shift[column])


@jit
def _softmax(fine, coarse, weights, factor):  # type: ignore[no-untyped-def]
    days, lat, lon = coarse.shape
    total, none = _totals(weights, factor), np.zeros(factor * lon)
    most, sums = np.empty(lon), np.empty(lon)
    largest, scale, amount = np.empty(factor * lon), np.empty(factor * lon), np.empty(factor * lon)
    power = np.empty((factor, factor * lon))
    for day in range(days):
        for i in range(lat):
            most[:], sums[:] = -np.inf, 0
            for r in range(factor):
                line, weight, values = fine[day, factor * i + r], weights[factor * i + r], power[r]
                for column in range(line.size):  # separate from the next loop, which would otherwise branch
                    values[column] = line[column] if weight[column] > 0 else -np.inf
                for j in range(lon):
                    for column in range(factor * j, factor * j + factor):
                        most[j] = values[column] if values[column] > most[j] else most[j]
            for j in range(lon):
                largest[factor * j : factor * j + factor] = most[j]
            for r in range(factor):
                values = power[r]
                for column in range(values.size):
                    values[column] -= largest[column]
                _exp(power[r])
                _add_up(power[r], none, weights[factor * i + r], factor, sums)
            for j in range(lon):
                block = slice(factor * j, factor * j + factor)
                amount[block] = _amount(coarse[day, i, j])
                scale[block] = amount[factor * j] / (sums[j] / total[i, j])
            for r in range(factor):
                line, weight, values = fine[day, factor * i + r], weights[factor * i + r], power[r]
                for column in range(line.size):
                    value = values[column] * scale[column]
                    line[column] = value if weight[column] > 0 else amount[column]


@jit
def _exp(values):  # type: ignore[no-untyped-def]
    """exp of numbers of at most 0 (NaN: NaN), in place, to 1e-8 relative; vectorizes, unlike the library's exp."""
    scale = np.empty_like(values)
    bits = scale.view(np.int64)
    for k in range(values.size):
        value = values[k]
        if value < -700.0:  # 1e-304 is 0 in float32
            value = -700.0
        n = np.floor(value * 1.4426950408889634 + 0.5)
        x = value - n * 0.6931471805599453
        power = 1 / 720 + x * (1 / 5040)
        power = 1 / 6 + x * (1 / 24 + x * (1 / 120 + x * power))
        values[k] = 1 + x * (1 + x * (0.5 + x * power))
        if not n >= -1010.0:  # NaN has no power of two
            n = 0.0
        bits[k] = (np.int64(n) + 1023) << 52
    for k in range(values.size):
        values[k] *= scale[k]


@jit
def _totals(weights, factor):  # type: ignore[no-untyped-def]
    """Sum of the weights in each block."""
    total = np.zeros((weights.shape[0] // factor, weights.shape[1] // factor))
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            total[row // factor, column // factor] += weights[row, column]
    return total


@jit
def _amount(value):  # type: ignore[no-untyped-def]
    """The value, or 0 where it is negative; NaN stays NaN."""
    return value * 0 if value < 0 else value
