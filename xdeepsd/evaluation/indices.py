"""Climate indices of daily precipitation, and how far those of a prediction are from those of the truth; lazily.

Defined as by the ETCCDI (Zhang et al., WIREs Climate Change 2011) and in VALUE (Maraun et al., Earth's Future 2015).
Everything is reduced along time chunk by chunk; the 98th percentile keeps 2 % of the days.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array
import numpy as np
import xarray as xr

from xdeepsd.evaluation.evaluate import alike, prepared
from xdeepsd.levels.days import missing_days
from xdeepsd.models.conserve import cell_weights

WET = 1.0  # mm day-1
YEAR = 365.25
RETURN_PERIOD, LEAST_YEARS = 20, 10
UNITS = {
    "R01": "1", "SDII": "mm day-1", "R10": "days year-1", "R20": "days year-1", "RX1day": "mm", "RX5day": "mm",
    "P98Wet": "mm day-1", "P98WetAmount": "mm year-1", "CDD": "days", "CWD": "days", "WW": "1", "DW": "1", "AC1": "1",
    "AnnualCycleAmp": "mm day-1", "VarY": "mm day-1", "RV20": "mm",
}  # fmt: skip
LONG_NAMES = {
    "R01": "share of wet days", "SDII": "mean amount of wet days", "R10": "days of 10 mm or more",
    "R20": "days of 20 mm or more", "RX1day": "wettest day of a year", "RX5day": "wettest 5 days of a year",
    "P98Wet": "98th percentile of wet days", "P98WetAmount": "amount of the days above P98Wet",
    "CDD": "longest dry spell of a year", "CWD": "longest wet spell of a year",
    "WW": "chance that a wet day follows a wet day", "DW": "chance that a wet day follows a dry day",
    "AC1": "correlation of successive days", "AnnualCycleAmp": "range of the monthly means",
    "VarY": "standard deviation of the annual means", "RV20": "daily amount exceeded once in 20 years",
}  # fmt: skip


def climate_indices(precipitation: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Climate indices of each cell.

    Parameters
    ----------
    precipitation
        ``(time, lat, lon)`` with dates, also with ``member``; any units of precipitation. NaN = missing: the day counts
        in nothing, and ends a spell; so do days that are left out.

    Returns
    -------
    Maps ``(lat, lon)``, float64, the mean over members; lazy if the input is. Wet is 1 mm or more. "Of a year" is the
    mean over the calendar years, those that are covered in part as they are; counts are per 365.25 days.

    * ``R01`` share of wet days, ``SDII`` their mean amount, ``R10`` and ``R20`` days of 10 and 20 mm or more;
    * ``RX1day``, ``RX5day`` the wettest day and 5 successive days of a year, ``CDD``, ``CWD`` the longest dry and wet
      spell in a year;
    * ``P98Wet`` the 98th percentile of wet days, ``P98WetAmount`` what falls on days above it;
    * ``WW``, ``DW`` the chance that a wet day follows a wet, a dry day; ``AC1`` correlation of successive days;
    * ``AnnualCycleAmp`` the largest less the smallest monthly mean (NaN if a month is missing); ``VarY`` the standard
      deviation of the annual means (NaN for one year);
    * ``RV20``: the daily amount exceeded once in 20 years, of a Gumbel distribution fitted to the annual maxima by
      L-moments (Hosking, J. R. Stat. Soc. B 1990); NaN for fewer than 10 years.

    Raises
    ------
    ValueError
        No dates, latitude or longitude, or units that are none of precipitation.
    """
    return _indices(_dated(prepared(precipitation, "precipitation")))


def compare_indices(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
) -> xr.Dataset:
    """`climate_indices` of a prediction and of what stands beside it, less those of the truth.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`: the same cells and days count in all of them.

    Returns
    -------
    Lazy if the input is: a map of bias ``(name, lat, lon)`` for each index, in its units; and ``relative_error``
    ``(name, index)``: the mean of the absolute bias over the mean of the index in the truth, both weighted by area.
    NaN where an index is undefined. Errors as in `xdeepsd.evaluate`.
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    known = _indices(_dated(observed))
    found = _joined({name: _indices(_dated(da)) for name, da in fields.items()})
    return _summed_up(found - known, known)


def compare_changes(
    prediction: tuple[xr.Dataset | xr.DataArray, xr.Dataset | xr.DataArray],
    truth: tuple[xr.Dataset | xr.DataArray, xr.Dataset | xr.DataArray],
) -> xr.Dataset:
    """How each of the `climate_indices` changes from one period to a later one: in the prediction less in the truth.

    Parameters
    ----------
    prediction, truth
        The earlier and the later period of each, as in `xdeepsd.evaluate`: the days of both are the same within a
        period.

    Returns
    -------
    As `compare_indices`: maps of the change in the prediction less that in the truth, and ``relative_error``, the mean
    of its absolute value over that of the change in the truth. Errors as in `xdeepsd.evaluate`.
    """
    periods = [alike(y, {"prediction": p}) for p, y in zip(prediction, truth, strict=True)]
    before, after = (_indices(_dated(observed)) for observed, _ in periods)
    found = [_joined({name: _indices(_dated(da)) for name, da in fields.items()}) for _, fields in periods]
    return _summed_up((found[1] - found[0]) - (after - before), after - before)


def _dated(da: xr.DataArray) -> xr.DataArray:
    if not hasattr(da.indexes["time"], "year"):
        raise ValueError(
            f"The times are {da['time'].dtype}, such as {da['time'].values[:1]}. Needed: dates, from which the years "
            "and months follow. Type ds.assign_coords(time=xr.date_range('2001-01-01', periods=ds.sizes['time']))."
        )
    # The days left out, between winters for example, are missing: what is on both sides of them does not follow.
    absent = missing_days(da.indexes["time"])
    whole = da.reindex(time=da.indexes["time"].union(absent)) if len(absent) else da
    return whole.where(np.isfinite(whole))


def _joined(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    return xr.concat(list(parts.values()), "name").assign_coords(name=list(parts))


def _summed_up(apart: xr.Dataset, known: xr.Dataset) -> xr.Dataset:
    area = xr.DataArray(cell_weights(known["lat"].values, known.sizes["lon"]), dims=("lat", "lon"))

    def mean(name: str, da: xr.DataArray) -> xr.DataArray:
        there = apart[name].notnull() & known[name].notnull()
        return (abs(da).where(there, 0.0) * area).sum(("lat", "lon"))

    numbers = [mean(name, apart[name]) / mean(name, known[name]).where(lambda da: da > 0) for name in UNITS]
    attrs = {"long_name": "mean absolute error over the mean of the truth", "units": "1"}
    for name in UNITS:
        apart[name].attrs = {"long_name": f"error of: {LONG_NAMES[name]}", "units": UNITS[name]}
    whole = xr.concat(numbers, "index").assign_coords(index=list(UNITS)).transpose("name", "index")
    return apart.assign(relative_error=whole.assign_attrs(attrs))


# --- the indices ------------------------------------------------------------------------------------------------------


def _indices(da: xr.DataArray) -> xr.Dataset:
    if "member" in da.dims:
        members = [_indices(da.isel(member=i, drop=True)) for i in range(da.sizes["member"])]
        return xr.concat(members, "member").mean("member", skipna=False, keep_attrs=True)
    da = da.astype(np.float64)
    wet, known, before = da >= WET, da.notnull(), _before(da, 1)
    days, wet_days = known.sum("time"), wet.sum("time")
    years, follows = da.groupby("time.year"), known & before.notnull()
    wet_before = before >= WET
    after_wet, after_dry = (follows & wet_before).sum("time"), (follows & ~wet_before).sum("time")
    greatest, annual = years.max(), _ratio(years.sum(), years.count())
    months = da.groupby("time.month")
    monthly = _ratio(months.sum(), months.count())
    if monthly.sizes["month"] < 12:
        monthly = monthly * np.nan
    highest, above = _highest(da.where(wet), wet_days)
    five: Any = sum(_before(da, k) for k in range(5))
    found = {
        "R01": _ratio(wet_days, days), "SDII": _ratio(da.where(wet).sum("time"), wet_days),
        "R10": _ratio((da >= 10).sum("time") * YEAR, days), "R20": _ratio((da >= 20).sum("time") * YEAR, days),
        "RX1day": _mean(greatest), "RX5day": _mean(five.groupby("time.year").max()),
        "P98Wet": highest, "P98WetAmount": _ratio(above * YEAR, days),
        "CDD": _mean(_longest(da < WET).where(years.count() > 0)),
        "CWD": _mean(_longest(wet).where(years.count() > 0)),
        "WW": _ratio((wet & follows & wet_before).sum("time"), after_wet),
        "DW": _ratio((wet & follows & ~wet_before).sum("time"), after_dry),
        "AC1": _successive(da),
        "AnnualCycleAmp": monthly.max("month", skipna=False) - monthly.min("month", skipna=False),
        "VarY": _mean((annual - _mean(annual)) ** 2, 1) ** 0.5, "RV20": _return_value(greatest),
    }  # fmt: skip
    for name, field in found.items():
        found[name] = field.assign_attrs(long_name=LONG_NAMES[name], units=UNITS[name])
    return xr.Dataset(found)


def _ratio(of: xr.DataArray, by: xr.DataArray) -> xr.DataArray:
    """NaN, without the warnings of `mean`, where there is nothing to divide by."""
    return of / by.where(by > 0)


def _mean(of_years: xr.DataArray, fewer: int = 0) -> xr.DataArray:
    """The sum over the years that have a value, over ``fewer`` than their number."""
    return _ratio(of_years.sum("year"), of_years.notnull().sum("year") - fewer)


def _before(da: xr.DataArray, days: int) -> xr.DataArray:
    """Of each day, the value so many days before; NaN where there is none."""
    return da.shift(time=days) if days < da.sizes["time"] else da.where(False)


def _successive(da: xr.DataArray) -> xr.DataArray:
    """Correlation of each day with the day before, from sums: no day has to wait for the mean."""
    before = _before(da, 1)
    both = da.notnull() & before.notnull()
    x, y, n = da.where(both, 0.0), before.where(both, 0.0), both.sum("time")
    n = n.where(n > 0)
    mean_x, mean_y = (v.sum("time") / n for v in (x, y))
    spread = [(v**2).sum("time") / n - mean**2 for v, mean in ((x, mean_x), (y, mean_y))]
    spread = [v.where(v > 1e-12 * (v + mean**2)) for v, mean in zip(spread, (mean_x, mean_y), strict=True)]
    return ((x * y).sum("time") / n - mean_x * mean_y) / (spread[0] * spread[1]) ** 0.5


def _highest(rain: xr.DataArray, wet_days: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """98th percentile of the wet days (linear, as numpy), and the sum of those above it; from the highest 2 %."""
    rain = rain.transpose("time", "lat", "lon")
    keep = min(int(0.02 * rain.sizes["time"]) + 2, rain.sizes["time"])
    values = rain.fillna(-1.0).data

    def most(days: np.ndarray, axis: Any = None, keepdims: bool = True) -> np.ndarray:
        # A copy, for a view of the highest would keep all the others.
        return np.partition(days, -keep, axis=0)[-keep:].copy() if len(days) > keep else days

    def ordered(days: np.ndarray, axis: Any = None, keepdims: bool = True) -> np.ndarray:
        return np.sort(most(days), axis=0)[::-1]

    # `dask.array.topk` keeps whole chunks until they are joined.
    highest = ordered(values) if rain.chunks is None else dask.array.reduction(
        values, chunk=most, combine=most, aggregate=ordered, axis=0, keepdims=True, dtype=np.float64,
        concatenate=True, split_every=4, output_size=keep, meta=np.empty((0, 0, 0)),
    )  # fmt: skip
    top = xr.DataArray(
        highest, {"rank": np.arange(keep), "lat": rain["lat"], "lon": rain["lon"]}, ("rank", "lat", "lon")
    )
    place = 0.02 * (wet_days - 1).clip(0)
    above, below = (top.where(top["rank"] == row).sum("rank") for row in (np.floor(place), np.ceil(place)))
    percentile = (above + (place - np.floor(place)) * (below - above)).where(wet_days > 0)
    return percentile, top.where(top > percentile).sum("rank")


def _return_value(greatest: xr.DataArray) -> xr.DataArray:
    """Of annual maxima ``(year, lat, lon)``: Gumbel by L-moments."""
    if greatest.sizes["year"] < LEAST_YEARS:
        return greatest.isel(year=0, drop=True) * np.nan
    if greatest.chunks is not None:
        greatest = greatest.chunk(year=-1)

    def fit(values: np.ndarray) -> np.ndarray:
        n = np.isfinite(values).sum(-1)
        ordered = np.sort(values, axis=-1)  # NaN last
        first = np.nansum(ordered, -1) / np.maximum(n, 1)
        second = np.nansum(ordered * np.arange(values.shape[-1]), -1) / np.maximum(n * (n - 1), 1)
        scale = (2 * second - first) / np.log(2)
        found = first - np.euler_gamma * scale - scale * np.log(-np.log(1 - 1 / RETURN_PERIOD))
        return np.where(n >= LEAST_YEARS, found, np.nan)

    return xr.apply_ufunc(
        fit, greatest, input_core_dims=[["year"]], dask="parallelized", output_dtypes=[np.float64]
    )  # fmt: skip


def _longest(condition: xr.DataArray) -> xr.DataArray:
    """``(year, lat, lon)``: the most successive days of each year on which the condition holds."""
    condition, years = condition.transpose("time", "lat", "lon"), condition["time"].dt.year.values
    found = [_longest_run(condition.data[years == year]) for year in np.unique(years)]
    coords = {"year": np.unique(years), "lat": condition["lat"], "lon": condition["lon"]}
    stack = dask.array.stack if condition.chunks is not None else np.stack
    return xr.DataArray(stack(found).astype(np.float64), coords, ("year", "lat", "lon"))


def _longest_run(holds: Any) -> Any:
    """``(lat, lon)`` of ``(time, lat, lon)``, chunk by chunk: runs that go on from one to the next are joined."""
    if isinstance(holds, np.ndarray):
        return _runs(holds)[3]
    return dask.array.reduction(
        holds, chunk=_runs, combine=_join, aggregate=lambda *args, **kwargs: _join(*args, **kwargs)[3], axis=0,
        dtype=np.int64, concatenate=True, split_every=8, meta=np.empty((0, 0), np.int64),
    )  # fmt: skip


def _runs(holds: np.ndarray, axis: Any = None, keepdims: bool = True) -> np.ndarray:
    """``(4, lat, lon)``: days, length of the run at the start and at the end, longest run."""
    now, longest, first = (np.zeros(holds.shape[1:], np.int64) for _ in range(3))
    unbroken = np.ones(holds.shape[1:], bool)
    for day in holds:
        now = (now + 1) * day
        np.maximum(longest, now, out=longest)
        unbroken &= day
        first += unbroken
    return np.stack([np.full_like(now, len(holds)), first, now, longest])


def _join(parts: np.ndarray, axis: Any = None, keepdims: bool = True) -> np.ndarray:
    """`_runs` of successive chunks, four rows for each, as those of all of them."""
    days, first, last, longest = parts[:4]
    for at in range(4, len(parts), 4):
        other = parts[at : at + 4]
        longest = np.maximum(np.maximum(longest, other[3]), last + other[1])
        first = np.where(first == days, days + other[1], first)
        last = np.where(other[2] == other[0], last + other[0], other[2])
        days = days + other[0]
    return np.stack([days, first, last, longest])
