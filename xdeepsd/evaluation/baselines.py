"""What a model has to beat: interpolation and the climatology ratio, each as it is and with coarse means kept."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xdeepsd.grids.interpolate import interpolate, upsample
from xdeepsd.models.conserve import cell_weights, conserve
from xdeepsd.models.static import fill


def climatology_ratio(
    coarse: xr.DataArray, like: xr.DataArray, fine_mean: xr.DataArray, coarse_mean: xr.DataArray
) -> xr.DataArray:
    """Bilinear interpolation times the ratio of the training means: the strongest simple baseline.

    ``interpolate(coarse) * fine_mean / upsample(coarse_mean)``: it already knows the constant part of the fine pattern.

    Parameters
    ----------
    coarse, like
        As in `xdeepsd.grids.interpolate.interpolate`.
    fine_mean, coarse_mean
        ``(lat, lon)`` means over the training days (not the test days) on the two grids, in the units of ``coarse``.

    Returns
    -------
    As `xdeepsd.grids.interpolate.interpolate`; lazy if ``coarse`` is. The means are computed. The ratio is 1 where the
    interpolated mean is 0.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> coarse = xdeepsd.coarsen(truth, 4)
    >>> fine = xdeepsd.climatology_ratio(coarse, truth, truth.mean("time"), coarse.mean("time"))
    >>> table = xdeepsd.compare({"ratio": fine, "bilinear": xdeepsd.interpolate(coarse, truth)}, truth)
    >>> bool(table.loc["ratio", "rmse"] < table.loc["bilinear", "rmse"])
    True
    """
    fine, below = (np.asarray(da.transpose("lat", "lon").values, np.float64) for da in (fine_mean, coarse_mean))
    between = upsample(fill(below), fine.shape[0] // below.shape[0])
    ratio = np.where(between > 0, fill(fine) / np.where(between > 0, between, 1.0), 1.0).astype(coarse.dtype)
    result = interpolate(coarse, like)
    return (result * xr.DataArray(ratio, dims=("lat", "lon"))).assign_attrs(coarse.attrs)


def keep_means(
    fine: xr.DataArray, coarse: xr.DataArray, like: xr.DataArray, mask: xr.DataArray | None = None
) -> xr.DataArray:
    """``fine``, scaled so that each coarse cell keeps its mean (`xdeepsd.models.conserve.conserve`, multiplicative).

    Parameters
    ----------
    fine
        ``(..., lat, lon)`` on the grid of ``like``, such as an interpolation of ``coarse``; in the units of ``coarse``.
    coarse, like
        As in `xdeepsd.grids.interpolate.interpolate`.
    mask
        ``(lat, lon)`` on the fine grid: True (or a share) where values are wanted; these cells count in the mean,
        weighted by area. None: wherever ``like`` is observed on any day.

    Returns
    -------
    As ``fine``, with NaN where ``fine`` is NaN and inside missing coarse cells; lazy if ``fine`` or ``like`` is. The
    mean over the cells that count equals the coarse value to within 1e-6 of it; blocks where none counts are unchanged.
    """
    factor = like.sizes["lat"] // coarse.sizes["lat"]
    if mask is None:
        mask = like.notnull()
        mask = mask.any([dim for dim in mask.dims if dim not in ("lat", "lon")])
    lat = like["lat"].values

    def scale(values: np.ndarray, low: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        if not wanted.any():
            return values
        missing = np.isnan(values) | np.isnan(low).repeat(factor, -2).repeat(factor, -1)
        weights = cell_weights(lat, values.shape[-1], wanted) * ~missing
        kept = conserve(np.nan_to_num(values), np.nan_to_num(low), weights, factor, "multiplicative")
        kept[missing] = np.nan
        return kept

    block = {"lat": "coarse_lat", "lon": "coarse_lon"}
    wide = mask.transpose("lat", "lon").drop_vars(mask.coords)
    return xr.apply_ufunc(
        scale,
        fine,
        coarse.drop_vars(["lat", "lon"], errors="ignore").rename(block),
        wide,
        input_core_dims=[["lat", "lon"], list(block.values()), ["lat", "lon"]],
        output_core_dims=[["lat", "lon"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[fine.dtype],
        keep_attrs=True,
    )


def baselines(
    coarse: xr.DataArray,
    like: xr.DataArray,
    fine_mean: xr.DataArray | None = None,
    coarse_mean: xr.DataArray | None = None,
    mask: xr.DataArray | None = None,
) -> dict[str, xr.DataArray]:
    """What a model has to beat: "bilinear", "bicubic" and, where the training means are given, "climatology ratio".

    Each also with coarse means kept (`keep_means`), under the names "bilinear, means kept" and so on.
    Arguments as in `climatology_ratio` and `keep_means`; lazy if ``coarse`` is.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> list(xdeepsd.baselines(xdeepsd.coarsen(truth, 4), truth))
    ['bilinear', 'bicubic', 'bilinear, means kept', 'bicubic, means kept']
    """
    fields = {"bilinear": interpolate(coarse, like), "bicubic": interpolate(coarse, like, method="cubic")}
    if fine_mean is not None and coarse_mean is not None:
        fields["climatology ratio"] = climatology_ratio(coarse, like, fine_mean, coarse_mean)
    return fields | {f"{name}, means kept": keep_means(da, coarse, like, mask) for name, da in fields.items()}
