"""Coarse means kept: the mean of the fine cells is the value of their coarse cell. For tensors and arrays alike."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xdeepsd.grids.cells import infer_edges
from xdeepsd.models.transform import transform

Conserve = Literal["multiplicative", "additive", "softmax"]
KINDS: tuple[Conserve | None, ...] = (None, "multiplicative", "additive", "softmax")

# A mean below this fraction of the coarse value holds no pattern, and its gradients would be unbounded: taken as dry.
NOTHING = 1e-9
# exp(-60) is 1e-26, so that the driest cell of "softmax" stays above 0 in float32.
_DRIEST = -60.0
# mm day-1: as good as dry, but the square root still has a finite slope.
_LEAST = 1e-8


def check(kind: str | None, argument: str = "conserve") -> None:
    """Raise ValueError for anything but one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"{argument} is {kind!r}; needed: one of {', '.join(map(repr, KINDS))}.")


def cell_weights(lat: np.ndarray, columns: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Weight of each cell in the mean of its block: its area on the sphere times the fraction of it that is wanted.

    Parameters
    ----------
    lat
        ``(lat,)`` centres in degrees, ascending or descending; the edges lie half-way between.
    columns
        Number of longitudes, evenly spaced.
    mask
        ``(lat, columns)``: True where values are wanted, or the fraction of each cell where they are. None: everywhere.

    Returns
    -------
    ``(lat, columns)`` float64, from 0 (does not count) to 1 (the largest cell, wanted). The areas are the same as in
    `xdeepsd.coarsen`. ValueError if the mask has another shape or leaves no cell.

    >>> cell_weights(np.array([60.25, 59.75]), 2, np.array([[True, True], [True, False]])).round(3)
    array([[0.985, 0.985],
           [1.   , 0.   ]])
    """
    lat = np.asarray(lat, np.float64)
    edges = infer_edges(lat)
    area = np.ones(1) if edges is None else np.abs(np.diff(np.sin(np.deg2rad(np.clip(edges, -90.0, 90.0)))))
    shape = (lat.size, columns)
    wanted = np.ones(shape) if mask is None else np.asarray(mask, np.float64)
    if wanted.shape != shape or not (wanted > 0).any():
        raise ValueError(
            f"The mask has {' x '.join(map(str, wanted.shape))} cells, {np.count_nonzero(wanted > 0)} of them wanted, "
            f"on a grid of {shape[0]} x {columns}: no mean can be kept. Needed: a map of the fine grid, True where "
            "values are wanted. Look at the mask."
        )
    return (area / area.max())[:, None] * wanted


def conserve(fine: Any, coarse: Any, weights: Any, factor: int, kind: Conserve | str) -> Any:
    """Adjust fine precipitation so that its weighted mean over each block is the coarse value. Tensors or numpy.

    With ``x`` the coarse value, ``y`` the fine ones and ``mean`` over the block, weighted:

    * "multiplicative": ``y x / mean(y)``, or ``x`` everywhere if all y are 0 and x is not.
    * "additive": ``y + x - mean(y)``, clipped at 0, then multiplicative, because clipping adds mass.
    * "softmax": ``x exp(y) / mean(exp(y))`` (Harder et al., JMLR 2023), y any real number.

    Parameters
    ----------
    fine
        ``(..., factor * lat, factor * lon)``, mm day-1, at least 0; for "softmax" the exponents. No NaN.
    coarse
        ``(..., lat, lon)``, mm day-1. No NaN; values below 0 count as 0.
    weights
        ``(factor * lat, factor * lon)`` as from `cell_weights`, or one for each map. Cells with weight 0 do not count
        and are left unchanged ("softmax": set to ``x``).
    factor
        Fine cells per coarse cell along an axis.
    kind
        One of `KINDS` except None.

    Returns
    -------
    Shape and dtype of ``fine``, at least 0. Means are exact to 1e-6 of the coarse value in float32 (summed in
    float64). A dry coarse cell gives dry fine cells; otherwise positive values stay positive, except with "additive".
    A mean(y) below 1e-9 x counts as 0, so that nothing is scaled by more than 1e9 and gradients are finite everywhere.

    >>> conserve(np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[3.0]]), np.ones((2, 2)), 2, "multiplicative")
    array([[3., 0.],
           [6., 3.]])
    """
    check(kind)
    if kind is None:
        return fine
    *lead, nlat, nlon = fine.shape
    blocks = (nlat // factor, factor, nlon // factor, factor)
    y, w = fine.reshape(*lead, *blocks), weights.reshape(*weights.shape[:-2], *blocks)
    x = coarse.clip(min=0)[..., :, None, :, None]
    if kind == "softmax":
        lib = _library(y)
        largest = lib.amax(lib.where(w > 0, y, -np.inf), axis=(-3, -1), keepdims=True)
        kept = _scaled(lib.exp((y - largest).clip(min=_DRIEST, max=0.0)), x, w)
        y = x  # for cells that do not count
    elif kind == "additive":
        kept = _scaled((y + (x - _mean(y, w))).clip(min=0), x, w)
    else:
        kept = _scaled(y, x, w)
    return _library(kept).where(w > 0, kept, y).reshape(fine.shape)


def transform_kept(kept: Any, name: str | None) -> Any:
    """`transform` of the output of `conserve`, with finite gradients, which the square root at 0 does not have.

    Values below 1e-8 mm day-1 count as 1e-8 (square root: 1e-4) and have gradient 0. Tensors or numpy.
    """
    return transform(kept.clip(min=_LEAST), name)


def _scaled(y: Any, x: Any, w: Any) -> Any:
    """``y x / mean(y)`` of blocks ``(..., lat, factor, lon, factor)``, and ``x`` where the mean is next to nothing."""
    mean = _mean(y, w)
    holds = mean > NOTHING * x
    lib = _library(y)
    return lib.where(holds, y * (x / lib.where(holds, mean, 1.0)), x)


def _mean(y: Any, w: Any) -> Any:
    """Weighted mean of each block, summed in float64, returned in the dtype of ``y``; 0 where no cell counts.

    The cells are added in a fixed order, so that a tile of the map or some of the days give the same bits.
    """
    lib = _library(y)
    # Apple's GPUs have no float64.
    wide = lib.float32 if getattr(getattr(y, "device", None), "type", None) == "mps" else lib.float64
    cells = list(np.ndindex(y.shape[-3], y.shape[-1]))
    above, below = (sum(_cast(v[..., :, i, :, j], wide) for i, j in cells) for v in (w * y, w))
    return _cast(above / lib.where(below > 0, below, 1.0), y.dtype)[..., :, None, :, None]


def _cast(values: Any, dtype: Any) -> Any:
    return values.astype(dtype, copy=False) if isinstance(values, np.ndarray) else values.to(dtype)


def _library(values: Any) -> Any:
    """numpy or torch: the functions used here have the same names in both."""
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch
