"""Bilinear interpolation to a grid a whole factor finer: the baseline, and the first step of every stage ."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xdeepsd.missing import fill_nearest


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


def interpolate(coarse: xr.DataArray, like: xr.DataArray, reach: int = 8) -> xr.DataArray:
    """Bilinear interpolation of a coarse map to the grid of ``like``, a whole factor finer: the baseline.

    Parameters
    ----------
    coarse
        ``(..., lat, lon)``, any units; NaN = missing. Its map must be one chunk.
    like
        ``(..., lat, lon)`` on the fine grid, in the same order of latitude and longitude.
    reach
        Missing cells are filled from the nearest observed one within so many cells, as for a model.

    Returns
    -------
    ``(..., lat, lon)`` on the coordinates of ``like``, dtype of ``coarse``, NaN inside missing coarse cells; lazy if
    ``coarse`` is. Raises ValueError where the sizes are not a whole multiple.
    """
    factor = like.sizes["lat"] // coarse.sizes["lat"]
    have = (like.sizes["lat"], like.sizes["lon"])
    if have != (factor * coarse.sizes["lat"], factor * coarse.sizes["lon"]):
        raise ValueError(
            f"like has {have[0]} x {have[1]} cells, the coarse map {coarse.sizes['lat']} x {coarse.sizes['lon']}. "
            "Needed: one whole factor for both."
        )

    def fine(values: np.ndarray) -> np.ndarray:
        days = values.reshape(-1, *values.shape[-2:])
        result = upsample(fill_nearest(days, reach), factor)
        result[np.isnan(days).repeat(factor, axis=1).repeat(factor, axis=2)] = np.nan
        return result.reshape(*values.shape[:-2], *result.shape[-2:])

    result = xr.apply_ufunc(
        fine,
        coarse.drop_vars(["lat", "lon"], errors="ignore"),
        input_core_dims=[["lat", "lon"]],
        output_core_dims=[["fine_lat", "fine_lon"]],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"fine_lat": have[0], "fine_lon": have[1]}},
        output_dtypes=[coarse.dtype],
        keep_attrs=True,
    )
    result = result.rename(fine_lat="lat", fine_lon="lon")
    return result.assign_coords(lat=like["lat"], lon=like["lon"])
