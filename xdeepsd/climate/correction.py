"""Fit a bias correction of a climate model on the days that it and the observations have, lazily."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd._extras import require
from xdeepsd.grids import axes
from xdeepsd.inference.adapt import daily, to_grid, undecoded, values_as_given
from xdeepsd.inference.correction import GROUP, Correction, adapt_frequency, in_columns, labels_of, uniform_noise
from xdeepsd.inference.inputs import check_values, finer_grid, turned
from xdeepsd.models.noise import day_keys
from xdeepsd.models.variable import PRECIPITATION, Values, clean, find_variable

logger = logging.getLogger(__name__)

GROUPS = ("time", "time.season", "time.month", "time.dayofyear")


def fit_correction(
    history: xr.Dataset | xr.DataArray,
    observed: xr.Dataset | xr.DataArray,
    *,
    variable: str | None = None,
    observed_variable: str | None = None,
    units: str | None = None,
    day_ends: float | None = None,
    nquantiles: int | Sequence[float] = 50,
    group: str = "time.season",
    window: int = 1,
    kind: str = "*",
    interp: str = "linear",
    adapt_freq_thresh: float | None = None,
    max_tail_factor: float | None = 10.0,
    max_factor: float | None = 10.0,
    align_on: str = "year",
) -> Correction:
    """Fit a quantile delta mapping of a climate model's precipitation to observations, with xsdba.

    Parameters
    ----------
    history
        Precipitation of the climate model in a period that was observed; anything that `xdeepsd.downscale` takes: it is
        put together to days and regridded to the grid of ``observed``.
    observed
        Observed daily precipitation on the coarse grid of the model that will downscale: ``make_levels(...)[0]``,
        ``open_levels(store)[0]``, or another product after `xdeepsd.regrid`. Its latitudes and longitudes are regular.
    variable, observed_variable
        Names of the precipitation. None: found.
    units, day_ends
        Of ``history``, as in `xdeepsd.downscale`.
    nquantiles
        Number of quantiles of a group, or the quantiles themselves, between 0 and 1. More of them resolve the tail,
        and their factors there become noise: the highest of 50 is 0.99.
    group
        Days with factors of their own: "time" (all together), "time.season", "time.month" or "time.dayofyear".
    window
        Days of a moving window that are added to each day of a group in the fit, such as 31 with "time.dayofyear".
    kind
        "*": factors, a dry day stays dry; "+": differences, and what becomes negative is 0.
    interp
        Between quantiles: "linear" or "nearest".
    adapt_freq_thresh
        mm day-1. Where the climate model has more days up to this than were observed, some of them are made wet
        before the fit and in each series that is corrected (a function of the date and the cell alone), with at most
        what was observed at the quantile up to which the climate model is dry. None: dry days are left dry.
    max_tail_factor
        Values more than so many times above the highest quantile of the history are not corrected, since nothing is
        known of them. None: they get the factor of that quantile.
    max_factor
        With kind "*" factors are at most this; they explode where the climate model is all but dry. None: no limit. The
        log says how many factors were limited.
    align_on
        How days find each other where one of the two has years of 360 days: "year" (by the part of the year that has
        passed) or "date".

    Returns
    -------
    `Correction`, for the grid of ``observed``. Lazy if either is: building the graph computes nothing, and
    ``correction.save(path)`` computes it.

    Raises
    ------
    ImportError
        xsdba is not installed.
    ValueError, TypeError
        Before any work: no day in common, fewer days in a group than quantiles, units or values that cannot be
        precipitation, a grid that does not overlap, options that do not fit.

    Notes
    -----
    Cannon et al. (2015), doi 10.1175/JCLI-D-14-00754.1, equations 3 to 6; frequency adaptation: Themessl et al. (2012),
    doi 10.1007/s10584-011-0224-4. All days of a block of cells are in memory at a time.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> observed = climate["precipitation"].fillna(0)
    >>> history = (1.5 * observed).assign_attrs(observed.attrs)  # half as much again as was observed
    >>> correction = xdeepsd.fit_correction(history, observed, group="time", nquantiles=20)
    >>> round(float(correction.apply(history).mean() / observed.mean()), 2)
    1.0
    """
    require("bias", "The bias correction")
    options: dict[str, Any] = {"group": group, "window": window, "kind": kind, "interp": interp}
    options |= {"adapt_freq_thresh": adapt_freq_thresh, "max_tail_factor": max_tail_factor, "max_factor": max_factor}
    _check_options(options, align_on)
    quantiles = _quantiles(nquantiles)
    seen = _series("observed", observed, observed_variable, None, None)
    grid = finer_grid(seen, 1)
    seen, _ = turned(seen, grid)
    past = _series("history", history, variable, units, day_ends, grid)
    past, _ = turned(past, grid)
    calendar = str(past["time"].dt.calendar)
    if str(seen["time"].dt.calendar) != calendar:
        years = "360_day" in (str(seen["time"].dt.calendar), calendar)
        seen = seen.convert_calendar(calendar, align_on=align_on if years else None)
    past, seen = _common_days(past, seen)
    labels = labels_of(past["time"], group)
    groups, counts = np.unique(labels, return_counts=True)
    if counts.min() * window < quantiles.size:
        fewest = f" of the {group.partition('.')[2]} {groups[counts.argmin()]}" if group != "time" else ""
        raise ValueError(
            f"The history and the observed field have {counts.min()} days in common{fewest}, fewer than the "
            f"{quantiles.size} quantiles. Needed: a longer history, of years rather than months. Type "
            f"nquantiles={max(counts.min() * window // 2, 1)}, or group='time'."
        )
    lazy = past.chunks is not None or seen.chunks is not None
    past, seen = (da.chunk() if lazy and da.chunks is None else da for da in (past, seen))
    days = past.sizes["time"]
    past, seen = in_columns(past, days), in_columns(seen, days)
    cell = np.arange(past.sizes["lat"])[:, None] * 2**20 + np.arange(past.sizes["lon"])
    names = ["factors", "highest", *(["dry_observed", "dry_history", "wettest_added"] if adapt_freq_thresh else [])]
    fitted = xr.apply_ufunc(
        _fit, past, seen.assign_coords(past.coords), xr.DataArray(cell, dims=("lat", "lon")),
        input_core_dims=[["time"], ["time"], []],
        output_core_dims=[[GROUP, "quantiles"], *[[GROUP]] * (len(names) - 1)], dask="parallelized",
        kwargs={
            "time": past["time"].values, "groups": tuple(groups), "labels": np.array(labels), "options": options,
            "quantiles": quantiles,
        },
        output_dtypes=[np.float32] * len(names),
        dask_gufunc_kwargs={"output_sizes": {GROUP: groups.size, "quantiles": quantiles.size}},
    )  # fmt: skip
    first, last = (str(past["time"].values[i])[:10] for i in (0, -1))
    coords = {"lat": grid["lat"], "lon": grid["lon"], GROUP: groups, "quantiles": quantiles}
    data = xr.Dataset(dict(zip(names, (da.drop_vars(list(da.coords)) for da in fitted), strict=True)), coords)
    options |= {"calendar": calendar, "days": days, "first": first, "last": last}
    logger.info("The correction is fitted on %d days, %s to %s, by %s.", days, first, last, group)
    return Correction(data, options)


def _check_options(options: Mapping[str, Any], align_on: str) -> None:
    allowed = {"group": GROUPS, "kind": ("*", "+"), "interp": ("linear", "nearest")}
    for name, given, choices in (
        *((name, options[name], choices) for name, choices in allowed.items()),
        ("align_on", align_on, ("year", "date")),
    ):
        if given not in choices:
            raise ValueError(f"{name}={given!r}; needed: {' or '.join(map(repr, choices))}.")
    if int(options["window"]) != options["window"] or options["window"] < 1 or options["window"] % 2 == 0:
        raise ValueError(f"window={options['window']}; needed: an odd number of days.")
    for name, above in (("adapt_freq_thresh", 0), ("max_tail_factor", 1), ("max_factor", 1)):
        if options[name] is not None and not options[name] > above:
            raise ValueError(f"{name}={options[name]}; needed: a number above {above}, or None.")


def _quantiles(nquantiles: int | Sequence[float]) -> np.ndarray:
    from xsdba.utils import equally_spaced_nodes

    nodes = np.asarray(nquantiles, np.float32)
    if nodes.ndim == 0 and nodes >= 1 and nodes == np.round(nodes):
        return np.asarray(equally_spaced_nodes(int(nodes)), np.float32)
    if nodes.ndim != 1 or not nodes.size or not ((nodes >= 0) & (nodes <= 1)).all() or (np.diff(nodes) <= 0).any():
        raise ValueError(
            f"nquantiles={nquantiles}; needed: a whole number of at least 1, or ascending numbers from 0 to 1."
        )
    return nodes


def _series(
    role: str,
    ds: xr.Dataset | xr.DataArray,
    variable: str | None,
    units: str | None,
    day_ends: float | None,
    grid: xr.Dataset | None = None,
) -> xr.DataArray:
    """Daily precipitation ``(time, lat, lon)``, mm day-1, regridded to ``grid`` if there is one. Lazy if ``ds`` is."""
    if not isinstance(ds, xr.Dataset | xr.DataArray):
        raise TypeError(f"{role} is a {type(ds).__name__}; needed: an xarray Dataset or DataArray.")
    ds = axes.settle(ds)
    try:
        given = undecoded(find_variable(ds, variable, wanted="daily precipitation"))
        if units is not None:
            given = given.assign_attrs(units=units)
        check_values(str(given.name), given)
        axes.map_dims(given)
        as_given = values_as_given(given, PRECIPITATION)
        if given.chunks is None and not given.variable._in_memory:
            given = axes.chunk_unread(given)
        adapted = daily(given, ds, PRECIPITATION.units, day_ends, as_given)
        if grid is not None:  # what is not covered has no factor
            adapted = to_grid(adapted, ds, grid, None, 1, True, as_given)
        da, _ = axes.standardize(adapted.da)
        values = Values.of(da, PRECIPITATION.units, adapted.source)
    except ValueError as error:
        raise ValueError(f"The {role}: {error}") from error
    if set(da.dims) != {"time", "lat", "lon"} or not axes.is_time(da["time"].values):
        others = [dim for dim in da.dims if dim not in ("time", "lat", "lon")]
        take = f"{role}.isel({', '.join(f'{dim}=0' for dim in others)})" if others else "xr.decode_cf(ds)"
        raise ValueError(
            f"The {role} has the dims {da.dims}. Needed: a single series of days with dates on latitude and longitude. "
            f"Type {take}."
        )
    out = clean(da, values) * np.float32(values.factor)
    out = out.transpose("time", "lat", "lon").astype(np.float32, copy=False)
    return out.drop_vars([name for name in out.coords if name not in ("time", "lat", "lon")])


def _common_days(past: xr.DataArray, seen: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The days that both have, by their dates."""
    ours, theirs = (day_keys(da["time"].values) for da in (past, seen))
    common, at, there = np.intersect1d(ours, theirs, return_indices=True)
    if not common.size:
        ends = (f"{str(da['time'].values[0])[:10]} to {str(da['time'].values[-1])[:10]}" for da in (past, seen))
        raise ValueError(
            f"The history and the observed field have no day in common: {next(ends)} and {next(ends)}. Needed: "
            "years of both. Pass the historical run, not the scenario, as history."
        )
    return past.isel(time=at), seen.isel(time=there)


def _fit(
    past: np.ndarray,
    seen: np.ndarray,
    cells: np.ndarray,
    *,
    time: np.ndarray,
    groups: Sequence[str],
    labels: np.ndarray,
    options: Mapping[str, Any],
    quantiles: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """The factors of a block ``(lat, lon, time)``, and what else a `Correction` holds."""
    shape, days = past.shape[:2], past.shape[-1]
    factors = np.full((np.prod(shape, dtype=int), len(groups), quantiles.size), np.nan, np.float32)
    highest = np.full(factors.shape[:2], np.nan, np.float32)
    frequency = np.full((3, *highest.shape), np.nan, np.float32)
    past, seen = (a.reshape(-1, days) for a in (past, seen))
    have = np.flatnonzero(np.isfinite(past).any(axis=-1) & np.isfinite(seen).any(axis=-1))
    past, seen, threshold = past[have].copy(), seen[have].copy(), options["adapt_freq_thresh"]
    if threshold is not None and have.size:
        noise = uniform_noise(day_keys(time), cells.ravel()[have])
        for number, group in enumerate(groups):
            when = np.flatnonzero(labels == group)
            frequency[:, have, number] = _frequency(past[:, when], seen[:, when], threshold)
            shares = frequency[:, have, number]
            past[:, when], _ = adapt_frequency(past[:, when], noise[:, when], threshold, *shares)
    for number, group in enumerate(groups if have.size else ()):
        when = labels == group
        af, hist_q = _trained(past, seen, time, when, options, quantiles)
        factors[have, number], highest[have, number] = af, hist_q[:, -1]
    factors[~np.isfinite(factors)] = np.nan  # dry quantiles: these next to them count
    limit = options["max_factor"]
    if limit is not None and options["kind"] == "*":
        if (factors > limit).any():
            logger.info("%d of %d factors are limited to %g.", (factors > limit).sum(), factors.size, limit)
        factors = np.minimum(factors, limit)
    out = (factors, highest, *(frequency if threshold is not None else ()))
    return tuple(a.reshape(*shape, *a.shape[1:]) for a in out)


def _trained(
    past: np.ndarray,
    seen: np.ndarray,
    time: np.ndarray,
    when: np.ndarray,
    options: Mapping[str, Any],
    quantiles: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of one group and quantiles of its history, ``(cell, quantiles)``, by xsdba; ``when``: its days."""
    from xsdba.adjustment import QuantileDeltaMapping

    if (
        options["window"] > 1 and not when.all()
    ):  # every day of the group with its neighbours, each as often as it is one
        days = axes.days_since_first(time)
        assert days is not None
        near = np.abs(days[:, None] - days[when][None]) <= options["window"] // 2
        pick = np.nonzero(near.T)[1]
    else:
        pick = np.flatnonzero(when)
    with np.errstate(invalid="ignore", divide="ignore"):
        ref, hist = (
            xr.DataArray(a[:, pick], {"time": time[pick]}, ("cell", "time"), attrs={"units": "mm d-1"})
            for a in (seen, past)
        )
        trained = QuantileDeltaMapping.train(
            ref, hist, nquantiles=quantiles, kind=options["kind"], group="time", skip_input_checks=True
        ).ds
    drop = {dim: 0 for dim in trained["af"].dims if dim not in ("cell", "quantiles")}
    af, hist_q = (trained[name].isel(drop).transpose("cell", "quantiles").values for name in ("af", "hist_q"))
    return af, hist_q


def _frequency(past: np.ndarray, seen: np.ndarray, threshold: float) -> np.ndarray:
    """``(3, cell)``: shares of dry days observed and in the history, the wettest value that is added (NaN: none)."""
    out = np.full((3, past.shape[0]), np.nan, np.float32)
    for i, (ours, theirs) in enumerate(zip(past, seen, strict=True)):
        ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
        if ours.size and theirs.size:
            out[:2, i] = (theirs <= threshold).mean(), (ours <= threshold).mean()
            if out[1, i] > out[0, i]:
                out[2, i] = np.quantile(theirs, out[1, i])
    return out
