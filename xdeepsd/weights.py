"""Regridding weights: built from two grids, applied to arrays, saved and loaded (numpy, scipy, numba)."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import sparse

from xdeepsd.grid import Grid

# Edges nearer than this (degrees) are one edge: about 35 roundings at 180 degrees.
_SAME_EDGE = 1e-12


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights from one grid to another: two small matrices along lat and lon, or one over all cells.

    ``lat`` ``(target nlat, source nlat)`` and ``lon`` ``(target nlon, source nlon)`` where the weights are a product,
    else ``matrix`` ``(target cells, source cells)`` in row-major order of the cells. float64 CSR.
    """

    method: str
    source: Grid
    target: Grid
    lat: sparse.csr_array | None = None
    lon: sparse.csr_array | None = None
    matrix: sparse.csr_array | None = None


def _snap(edges: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Move ``edges`` onto the nearest of ``onto`` (ascending) where both are the same but for rounding."""
    right = np.clip(np.searchsorted(onto, edges), 1, onto.size - 1)
    nearest = np.where(edges - onto[right - 1] < onto[right] - edges, onto[right - 1], onto[right])
    return np.where(np.abs(edges - nearest) < _SAME_EDGE, nearest, edges)


def overlaps(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where intervals of two partitions meet: (target index, source index, low, high) of each common piece.

    Both are edges, ascending or descending; indices are those of the intervals in the order given.
    """
    source_up, target_up = np.sort(source), np.sort(target)
    source_up = _snap(source_up, target_up)
    low, high = max(source_up[0], target_up[0]), min(source_up[-1], target_up[-1])
    cuts = np.unique(np.concatenate([source_up, target_up]))
    cuts = cuts[(cuts >= low) & (cuts <= high)]
    middle = (cuts[:-1] + cuts[1:]) / 2
    i = np.searchsorted(source_up, middle) - 1
    j = np.searchsorted(target_up, middle) - 1
    if source[0] > source[-1]:
        i = source.size - 2 - i
    if target[0] > target[-1]:
        j = target.size - 2 - j
    return j, i, cuts[:-1], cuts[1:]


def _shares(row: np.ndarray, col: np.ndarray, size: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.coo_array((size, (row, col)), shape=shape).tocsr()


def conservative_axes(source: Grid, target: Grid) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Share of each target interval that lies in each source interval, by sin(lat) and by lon (whole turns wrapped)."""
    row, col, low, high = overlaps(source.lat_bounds, target.lat_bounds)
    height = np.abs(np.diff(np.sin(np.deg2rad(target.lat_bounds))))
    lat = _shares(
        row,
        col,
        (np.sin(np.deg2rad(high)) - np.sin(np.deg2rad(low))) / height[row],
        (target.lat.size, source.lat.size),
    )
    parts = []
    width = np.abs(np.diff(target.lon_bounds))
    nearest = np.round((target.lon_bounds.mean() - source.lon_bounds.mean()) / 360.0)
    for turn in (-1, 0, 1):
        row, col, low, high = overlaps(source.lon_bounds + 360.0 * (nearest + turn), target.lon_bounds)
        parts.append((row, col, (high - low) / width[row]))
    row, col, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    return lat, _shares(row, col, share, (target.lon.size, source.lon.size))


@numba.njit(nogil=True)
def _separable(values, lat_start, lat_col, lat_share, lon_start, lon_col, lon_share, skipna, least, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """``out[n, i, j] = sum lat[i, a] * lon[j, b] * values[n, a, b]``, over lat first: whole rows, one after another.

    With ``skipna`` the sum is over values that are not NaN and is divided by their weight; NaN where that is below
    ``least``.
    """
    nlon = values.shape[2]
    total = np.empty(nlon)
    valid = np.empty(nlon)
    for n in range(values.shape[0]):
        for i in range(out.shape[1]):
            total[:] = 0.0
            valid[:] = 0.0
            for k in range(lat_start[i], lat_start[i + 1]):
                row = values[n, lat_col[k]]
                share = lat_share[k]
                if skipna:
                    for b in range(nlon):
                        seen = row[b] == row[b]
                        total[b] += share * row[b] if seen else 0.0
                        valid[b] += share if seen else 0.0
                else:
                    for b in range(nlon):
                        total[b] += share * row[b]
            for j in range(out.shape[2]):
                above = 0.0
                below = 0.0
                for k in range(lon_start[j], lon_start[j + 1]):
                    above += lon_share[k] * total[lon_col[k]]
                    below += lon_share[k] * valid[lon_col[k]]
                if skipna:
                    above = above / below if below >= least else np.nan
                out[n, i, j] = above


def apply(values: np.ndarray, weights: Weights, skipna: bool, na_thres: float) -> np.ndarray:
    """Weighted sums of ``(..., lat, lon)`` on the target grid, accumulated in float64, in the dtype of ``values``.

    ``skipna`` and ``na_thres`` are those of xESMF: the sum over what is not NaN, divided by its weight; NaN where this
    weight is below ``clip(1 - na_thres, 1e-6, 1 - 1e-6)``.
    """
    least = float(np.clip(1.0 - na_thres, 1e-6, 1.0 - 1e-6))
    assert weights.lat is not None
    assert weights.lon is not None
    flat = np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]))
    out = np.empty((len(flat), *weights.target.shape), flat.dtype)
    lat, lon = weights.lat, weights.lon
    _separable(flat, lat.indptr, lat.indices, lat.data, lon.indptr, lon.indices, lon.data, skipna, least, out)
    return out.reshape(*values.shape[:-2], *weights.target.shape)
