"""Interpolation to a grid finer by a whole factor: the baselines, and (bilinear) the first step of every stage."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from xdeepsd.grids.missing import fill_nearest


def _positions(size: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of each fine cell along an axis of ``size`` coarse cells, and the coarse cell to the left of it."""
    position = (np.arange(size * factor) + 0.5) / factor - 0.5
    return position, np.floor(position).astype(np.intp)


def upsample(field: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, edges replicated.

    ``(..., lat, lon)`` to ``(..., factor * lat, factor * lon)``, same units and dtype; NaN spreads to the fine cells
    it touches. Gives the same numbers as `xdeepsd.models.srcnn.upsample_tensor`, without torch.

    >>> upsample(np.array([[0.0, 4.0]]), 2)
    array([[0., 1., 3., 4.],
           [0., 1., 3., 4.]])
    """
    for axis in (-2, -1):
        position, left = _positions(field.shape[axis], factor)
        weight = (position - left).astype(field.dtype).reshape((-1, 1) if axis == -2 else (-1,))
        at_left, at_right = (np.take(field, cell, axis, mode="clip") for cell in (left, left + 1))
        field = at_left * (1 - weight) + at_right * weight
    return field


def upsample_cubic(field: np.ndarray, factor: int) -> np.ndarray:
    """Bicubic interpolation with half-pixel centres, edges replicated: cubic convolution with a = -0.75.

    ``(..., lat, lon)`` to ``(..., factor * lat, factor * lon)``, same units and dtype. Gives the numbers of
    torch's ``interpolate(mode="bicubic", align_corners=False)`` and of OpenCV's INTER_CUBIC (Keys 1981, equation 4,
    leaves ``a`` free). It overshoots: precipitation may come out negative.

    >>> upsample_cubic(np.array([[0.0, 4.0]]), 2).round(3)
    array([[-0.422,  0.906,  3.094,  4.422],
           [-0.422,  0.906,  3.094,  4.422]])
    """
    a = -0.75
    for axis in (-2, -1):
        position, left = _positions(field.shape[axis], factor)
        total = 0.0
        for tap in (-1, 0, 1, 2):
            away = np.abs(position - left - tap)
            near = (a + 2) * away**3 - (a + 3) * away**2 + 1
            far = a * (away**3 - 5 * away**2 + 8 * away - 4)
            weight = np.where(away <= 1, near, far).astype(field.dtype).reshape((-1, 1) if axis == -2 else (-1,))
            total = total + weight * np.take(field, left + tap, axis, mode="clip")
        field = np.asarray(total)
    return field


def interpolate(
    coarse: xr.DataArray, like: xr.DataArray, reach: int = 8, method: Literal["linear", "cubic"] = "linear"
) -> xr.DataArray:
    """Bilinear or bicubic interpolation of coarse maps to the grid of ``like``, finer by a whole factor: the baselines.

    Parameters
    ----------
    coarse
        ``(..., lat, lon)``, any units; NaN = missing. Each map must be in one chunk.
    like
        ``(..., lat, lon)`` on the fine grid, with latitude and longitude in the same order.
    reach
        Missing cells are filled from the nearest observed one within this many cells, as for a model.
    method
        "linear" (`upsample`) or "cubic" (`upsample_cubic`, clipped at 0 like a model's output).

    Returns
    -------
    ``(..., lat, lon)`` on the coordinates of ``like``, dtype of ``coarse``, NaN inside missing coarse cells; lazy if
    ``coarse`` is. Raises ValueError if the fine sizes are not one whole multiple of the coarse ones.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> coarse = xr.DataArray([[0.0, 4.0]], coords={"lat": [0.0], "lon": [0.0, 2.0]}, dims=("lat", "lon"))
    >>> fine = xr.Dataset(coords={"lat": [-0.5, 0.5], "lon": [-0.5, 0.5, 1.5, 2.5]})
    >>> like = xr.DataArray(0.0, fine.coords, dims=("lat", "lon"))
    >>> xdeepsd.interpolate(coarse, like).values
    array([[0., 1., 3., 4.],
           [0., 1., 3., 4.]])
    """
    if method not in ("linear", "cubic"):
        raise ValueError(f"method is {method!r}. Needed: 'linear' or 'cubic'.")
    factor = like.sizes["lat"] // coarse.sizes["lat"]
    have = (like.sizes["lat"], like.sizes["lon"])
    if have != (factor * coarse.sizes["lat"], factor * coarse.sizes["lon"]):
        raise ValueError(
            f"like has {have[0]} x {have[1]} cells, but the coarse map has {coarse.sizes['lat']} x "
            f"{coarse.sizes['lon']}. Needed: the same whole factor along both axes."
        )

    def fine(values: np.ndarray) -> np.ndarray:
        days = values.reshape(-1, *values.shape[-2:])
        filled = fill_nearest(days, reach)
        result = upsample(filled, factor) if method == "linear" else upsample_cubic(filled, factor).clip(min=0)
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
