"""What a model has to beat: interpolation and the climatology ratio."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xdeepsd.grids.interpolate import interpolate, upsample
from xdeepsd.models.static import fill


def climatology_ratio(
    coarse: xr.DataArray, like: xr.DataArray, fine_mean: xr.DataArray, coarse_mean: xr.DataArray
) -> xr.DataArray:
    """Bilinear interpolation times the ratio of the training means: the strongest simple baseline.

    ``interpolate(coarse) * fine_mean / upsample(coarse_mean)``: what is fixed in the fine pattern is known already.

    Parameters
    ----------
    coarse, like
        As in `xdeepsd.grids.interpolate.interpolate`.
    fine_mean, coarse_mean
        ``(lat, lon)`` means of the training days on both grids (not of the days that are tested), units of ``coarse``.

    Returns
    -------
    As `xdeepsd.grids.interpolate.interpolate`; lazy if ``coarse`` is. The means are computed. The ratio is 1 where the
    interpolated mean is 0.
    """
    fine, below = (np.asarray(da.transpose("lat", "lon").values, np.float64) for da in (fine_mean, coarse_mean))
    between = upsample(fill(below), fine.shape[0] // below.shape[0])
    ratio = np.where(between > 0, fill(fine) / np.where(between > 0, between, 1.0), 1.0).astype(coarse.dtype)
    result = interpolate(coarse, like)
    return (result * xr.DataArray(ratio, dims=("lat", "lon"))).assign_attrs(coarse.attrs)


def baselines(
    coarse: xr.DataArray,
    like: xr.DataArray,
    fine_mean: xr.DataArray | None = None,
    coarse_mean: xr.DataArray | None = None,
) -> dict[str, xr.DataArray]:
    """What a model has to beat: "bilinear", "bicubic" and, where the training means are given, "climatology ratio".

    Arguments as in `climatology_ratio`; lazy if ``coarse`` is.
    """
    fields = {"bilinear": interpolate(coarse, like), "bicubic": interpolate(coarse, like, method="cubic")}
    if fine_mean is not None and coarse_mean is not None:
        fields["climatology ratio"] = climatology_ratio(coarse, like, fine_mean, coarse_mean)
    return fields
