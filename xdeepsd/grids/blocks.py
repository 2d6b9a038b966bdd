"""Block means: from a grid to one that is coarser by a whole factor."""

from __future__ import annotations

import numpy as np


def block_mean(field: np.ndarray, factor: int) -> np.ndarray:
    """Mean of blocks of ``factor`` x ``factor`` cells, NaN left out; NaN where the whole block is NaN.

    ``(..., lat, lon)`` to ``(..., lat / factor, lon / factor)``, same units, float64. Raises ValueError if a
    size is not a multiple of ``factor``.

    >>> block_mean(np.array([[1.0, 3.0], [np.nan, 5.0]]), 2)
    array([[3.]])
    """
    nlat, nlon = field.shape[-2:]
    if min(nlat, nlon) < factor:
        raise ValueError(
            f"A field of {nlat} x {nlon} cells is smaller than a block of {factor}. Needed: a factor of at most "
            f"{min(nlat, nlon)}."
        )
    if nlat % factor or nlon % factor:
        raise ValueError(
            f"A field of {nlat} x {nlon} cells does not divide into blocks of {factor}. Needed: both sizes a multiple "
            f"of {factor}. Type field.isel(lat=slice({nlat - nlat % factor}), lon=slice({nlon - nlon % factor}))."
        )
    blocks = np.asarray(field, np.float64).reshape(*field.shape[:-2], nlat // factor, factor, nlon // factor, factor)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=(-3, -1))
    total = np.where(valid, blocks, 0.0).sum(axis=(-3, -1))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
