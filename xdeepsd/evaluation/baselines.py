"""What a model has to beat: interpolation, the climatology ratio and BCSD, as they are and with coarse means kept."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import xarray as xr

from xdeepsd._extras import require
from xdeepsd.evaluation.fields import days_of
from xdeepsd.grids.interpolate import interpolate, upsample
from xdeepsd.grids.regrid import coarsen
from xdeepsd.inference.correction import in_columns, labels_of
from xdeepsd.levels.days import name_span
from xdeepsd.models.conserve import cell_weights, conserve
from xdeepsd.models.static import fill

GROUPS = ("time", "time.season", "time.month")


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


def map_quantiles(
    coarse: xr.DataArray,
    past: xr.DataArray,
    observed: xr.DataArray,
    *,
    group: str = "time",
    nquantiles: int = 50,
    max_factor: float | None = 10.0,
) -> xr.DataArray:
    """Empirical quantile mapping of each coarse cell, by xsdba: the bias correction of BCSD.

    Fitted by `xsdba.EmpiricalQuantileMapping` with factors (``kind="*"``), and applied value by value: unlike the
    quantile delta mapping of `xdeepsd.fit_correction` it needs no other days, so a chunk of days is mapped alone.

    Parameters
    ----------
    coarse
        ``(..., time, lat, lon)``.
    past, observed
        ``(time, lat, lon)``: the same product, and what was observed, on its grid, in the same units, on the training
        days. NaN is left out. They are computed.
    group
        Days with factors of their own: "time" (all together), "time.season" or "time.month".
    nquantiles
        Quantiles of a group; beyond the highest its factor counts.
    max_factor
        Factors are at most this, as in `xdeepsd.fit_correction`; they explode where the past is all but dry. None: no
        limit.

    Returns
    -------
    As ``coarse``; lazy if it is. A dry day stays dry, and a cell without factors (never wet, or never observed) stays
    as it is.

    Raises
    ------
    ImportError
        xsdba is missing.
    ValueError
        ``past`` and ``observed`` have other days or other cells; an unknown ``group``; a day of ``coarse`` in a group
        without training days.
    """
    require("bias", "BCSD")
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}; needed: {', '.join(map(repr, GROUPS))}.")
    if not days_of(past).equals(days_of(observed)) or past.sizes != observed.sizes:
        raise ValueError(
            f"The past coarse field has {dict(past.sizes)}, {name_span(past)}, and what was observed, on that grid, "
            f"{dict(observed.sizes)}, {name_span(observed)}. Needed: the same days and cells. Type "
            "past.sel(time=observed['time'])."
        )
    columns = [da.transpose("time", "lat", "lon") for da in (past, observed)]
    columns = [in_columns(da, da.sizes["time"]).drop_vars(list(da.coords)) for da in columns]
    labels, wanted = (np.array(labels_of(da["time"], group)) for da in (past, coarse))
    groups = list(dict.fromkeys(labels))
    if others := sorted(set(wanted) - set(groups)):
        raise ValueError(
            f"There are days of the {group.partition('.')[2]} {', '.join(others)}, but none among the training days. "
            "Needed: training days in each group. Type group='time'."
        )
    at = np.array([groups.index(label) for label in wanted])
    sizes = {"group": len(groups), "quantiles": nquantiles}
    factors, nodes = xr.apply_ufunc(
        _quantiles, *columns, input_core_dims=[["time"]] * 2, output_core_dims=[[*sizes]] * 2, dask="parallelized",
        kwargs={"labels": labels, "time": past["time"].values, "nquantiles": nquantiles},
        output_dtypes=[np.float64] * 2, dask_gufunc_kwargs={"output_sizes": sizes},
    )  # fmt: skip
    # Computed, for a lazy fit would wait for all training days with the days to be mapped in memory.
    fitted = xr.Dataset({"factors": factors, "nodes": nodes}).compute()
    fitted["factors"] = fitted["factors"].clip(max=max_factor)
    mapped = xr.apply_ufunc(
        _mapped, coarse.transpose(..., "time", "lat", "lon"), xr.DataArray(at, dims="time"), fitted["factors"],
        fitted["nodes"], input_core_dims=[[], [], [*sizes], [*sizes]], dask="parallelized",
        output_dtypes=[coarse.dtype], keep_attrs=True,
    )  # fmt: skip
    return mapped.transpose(*coarse.dims)


def _quantiles(
    past: np.ndarray, observed: np.ndarray, *, labels: np.ndarray, time: np.ndarray, nquantiles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors, and the quantiles of the past that they belong to, ``(lat, lon, group, quantiles)``, by xsdba."""
    from xsdba import EmpiricalQuantileMapping

    groups = list(dict.fromkeys(labels))
    out = np.full((2, *past.shape[:2], len(groups), nquantiles), np.nan, np.float64)
    for number, group in enumerate(groups):
        here = labels == group
        ref, hist = (
            xr.DataArray(a[..., here], {"time": time[here]}, ("lat", "lon", "time"), attrs={"units": "mm d-1"})
            for a in (observed, past)
        )
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # cells without values
            trained = EmpiricalQuantileMapping.train(
                ref, hist, nquantiles=nquantiles, kind="*", group="time", skip_input_checks=True
            ).ds.isel(group=0, drop=True)
        out[:, :, :, number] = [trained[name].transpose("lat", "lon", "quantiles") for name in ("af", "hist_q")]
    out[0][~np.isfinite(out[0])] = np.nan
    # Quantiles at which the past is dry have no factor: the first one above them counts for these.
    first = np.isfinite(out[0]).argmax(-1)[..., None]
    dry = np.arange(nquantiles) < first
    for field in out:
        np.copyto(field, np.take_along_axis(field, first, -1), where=dry)
    return out[0], out[1]


def _mapped(values: np.ndarray, at: np.ndarray, factors: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """``(..., time, lat, lon)`` times the factors, between quantiles linearly; ``at`` ``(time, 1, 1)``: each group.

    The numbers of ``EmpiricalQuantileMapping.adjust(interp="linear")``, which loops over cells and needs all days.
    """
    out = values.copy()
    for number in np.unique(at):
        here = np.flatnonzero(at.ravel() == number)
        x, y, q = values[..., here, :, :].astype(np.float64), factors[:, :, number], nodes[:, :, number]
        above = np.zeros(x.shape, np.intp)
        for k in range(q.shape[-1]):
            above += x > q[..., k]
        below = (above - 1).clip(0)
        above = above.clip(max=q.shape[-1] - 1)
        rows, columns = np.indices(q.shape[:2])
        low, high = q[rows, columns, below], q[rows, columns, above]
        part = np.where(high > low, np.clip(x - low, 0, None) / np.where(high > low, high - low, 1), 0.0)
        factor = (1 - part) * y[rows, columns, below] + part * y[rows, columns, above]
        out[..., here, :, :] = np.where(np.isfinite(factor), x * factor, x)
    return out


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


def bcsd(
    coarse: xr.DataArray,
    like: xr.DataArray,
    past: tuple[xr.DataArray, xr.DataArray],
    *,
    group: str = "time",
    nquantiles: int = 50,
) -> xr.DataArray:
    """Bias correction and spatial disaggregation: quantile mapping on the coarse grid, then the climatology ratio.

    Wood et al. (Climatic Change 2004), of days. Where the coarse field is the mean of the observed one there is no bias
    to correct, and what is left is `climatology_ratio`.

    Parameters
    ----------
    coarse, like
        As in `xdeepsd.grids.interpolate.interpolate`; ``(..., time, lat, lon)``.
    past
        ``(fine, coarse)``, ``(time, lat, lon)``: what was observed on the training days (not the test days), and the
        coarse field of the same days, on the grids of ``like`` and ``coarse``, in the units of ``coarse``. They are
        computed.
    group, nquantiles
        As in `map_quantiles`.

    Returns
    -------
    As `climatology_ratio`; lazy if ``coarse`` is. Errors as in `map_quantiles`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"].fillna(0)
    >>> coarse = xdeepsd.coarsen(truth, 4)
    >>> past, later = slice("2001-01", "2001-08"), slice("2001-09", "2001-12")
    >>> fine = xdeepsd.bcsd(coarse.sel(time=later), truth, (truth.sel(time=past), coarse.sel(time=past)), nquantiles=20)
    >>> dict(fine.sizes)
    {'time': 122, 'lat': 16, 'lon': 16}
    """
    mapped, fine_mean, coarse_mean = _mapped_and_means(coarse, like, past, group, nquantiles)
    return climatology_ratio(mapped, like, fine_mean, coarse_mean)


def _mapped_and_means(
    coarse: xr.DataArray, like: xr.DataArray, past: tuple[xr.DataArray, xr.DataArray], group: str, nquantiles: int
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The coarse field with the quantiles of what was observed, and the means of that on both grids; computes these."""
    fine, low = past
    fine = fine.assign_coords(lat=like["lat"], lon=like["lon"])
    whole = fine if fine.chunks is None else fine.chunk(lat=-1, lon=-1)
    observed = coarsen(whole, like.sizes["lat"] // coarse.sizes["lat"])
    mapped = map_quantiles(coarse, low, observed, group=group, nquantiles=nquantiles)
    fine_mean, coarse_mean = dask.compute(whole.mean("time"), observed.mean("time"))
    return mapped, fine_mean, coarse_mean


def baselines(
    coarse: xr.DataArray,
    like: xr.DataArray,
    fine_mean: xr.DataArray | None = None,
    coarse_mean: xr.DataArray | None = None,
    mask: xr.DataArray | None = None,
    *,
    past: tuple[xr.DataArray, xr.DataArray] | None = None,
    group: str = "time",
) -> dict[str, xr.DataArray]:
    """What a model has to beat, by name: "bilinear", "bicubic", "climatology ratio" and "BCSD".

    The climatology ratio needs the training means or the ``past``, BCSD the latter. Each is there also with coarse
    means kept (`keep_means`), under the names "bilinear, means kept" and so on; BCSD keeps those that its quantile
    mapping gives.

    Parameters
    ----------
    coarse, like, fine_mean, coarse_mean
        As in `climatology_ratio`.
    mask
        As in `keep_means`.
    past, group
        As in `bcsd`. The means of the climatology ratio follow from the ``past`` where they are not given.

    Returns
    -------
    Lazy if ``coarse`` is; the means and the quantiles of the ``past`` are computed. Errors as in `bcsd`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> list(xdeepsd.baselines(xdeepsd.coarsen(truth, 4), truth))
    ['bilinear', 'bicubic', 'bilinear, means kept', 'bicubic, means kept']
    """
    fields = {"bilinear": interpolate(coarse, like), "bicubic": interpolate(coarse, like, method="cubic")}
    mapped = None
    if past is not None:
        mapped, fine_past, observed_past = _mapped_and_means(coarse, like, past, group, 50)
        if fine_mean is None or coarse_mean is None:
            fine_mean, coarse_mean = fine_past, past[1].mean("time")
    if fine_mean is not None and coarse_mean is not None:
        fields["climatology ratio"] = climatology_ratio(coarse, like, fine_mean, coarse_mean)
    below = dict.fromkeys(fields, coarse)
    if mapped is not None:
        fields["BCSD"], below["BCSD"] = climatology_ratio(mapped, like, fine_past, observed_past), mapped
    return fields | {f"{name}, means kept": keep_means(da, below[name], like, mask) for name, da in fields.items()}
