"""Bilinear interpolation to a grid a whole factor finer: the baseline, and the first step of every stage (numpy)."""

from __future__ import annotations

import numpy as np


def _weights(size: int, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left index, right index and weight of the right one, for every fine cell along an axis of ``size`` cells."""
    position = (np.arange(size * factor) + 0.5) / factor - 0.5
    left = np.floor(position).astype(np.intp)
    right_weight = position - left
    return np.clip(left, 0, size - 1), np.clip(left + 1, 0, size - 1), right_weight


def upsample(field: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, edges replicated.

    ``(..., lat, lon)`` to ``(..., factor * lat, factor * lon)``, same units and dtype; NaN spreads to the fine cells
    it touches. The same numbers as `xdeepsd.srcnn.upsample`, without torch.

    >>> upsample(np.array([[0.0, 4.0]]), 2)
    array([[0., 1., 3., 4.],
           [0., 1., 3., 4.]])
    """
    for axis in (-2, -1):
        left, right, weight = _weights(field.shape[axis], factor)
        shape = (-1, 1) if axis == -2 else (-1,)
        weight = weight.astype(field.dtype).reshape(shape)
        field = np.take(field, left, axis) * (1 - weight) + np.take(field, right, axis) * weight
    return field
