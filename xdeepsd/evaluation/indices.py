"""Climate indices of daily precipitation, and how far those of a prediction are from those of the truth; lazily.

Defined as by the ETCCDI (Zhang et al., WIREs Climate Change 2011) and in VALUE (Maraun et al., Earth's Future 2015).
Everything is reduced along time chunk by chunk; the 98th percentile keeps 2 % of the days.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr

from xdeepsd.evaluation.fields import alike, dated, prepared, regions_of
from xdeepsd.models.conserve import cell_weights

WET = 1.0  # mm day-1
YEAR = 365.25
RETURN_PERIOD, LEAST_YEARS = 20, 10
LOOK_BACK = 4  # days before each, for the wettest 5
_STRIP = 2**15  # cells that are reduced at a time: what is computed of them on the way stays in the cache
UNITS = {
    "R01": "1", "SDII": "mm day-1", "R10": "days year-1", "R20": "days year-1", "RX1day": "mm", "RX5day": "mm",
    "P98Wet": "mm day-1", "P98WetAmount": "mm year-1", "CDD": "days", "CWD": "days", "WW": "1", "DW": "1", "AC1": "1",
    "AnnualCycleAmp": "mm day-1", "VarY": "mm day-1", "RV20": "mm", "WetSpell": "days", "DrySpell": "days",
}  # fmt: skip
LONG_NAMES = {
    "R01": "share of wet days", "SDII": "mean amount of wet days", "R10": "days of 10 mm or more",
    "R20": "days of 20 mm or more", "RX1day": "wettest day of a year", "RX5day": "wettest 5 days of a year",
    "P98Wet": "98th percentile of wet days", "P98WetAmount": "amount of the days above P98Wet",
    "CDD": "longest dry spell of a year", "CWD": "longest wet spell of a year",
    "WW": "chance that a wet day follows a wet day", "DW": "chance that a wet day follows a dry day",
    "AC1": "correlation of successive days", "AnnualCycleAmp": "range of the monthly means",
    "VarY": "standard deviation of the annual means", "RV20": "daily amount exceeded once in 20 years",
    "WetSpell": "mean length of the wet spells", "DrySpell": "mean length of the dry spells",
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
      L-moments (Hosking, J. R. Stat. Soc. B 1990); NaN for fewer than 10 years;
    * ``WetSpell``, ``DrySpell``: mean length of the wet and the dry spells (`xdeepsd.compare_spells`: all lengths).

    Raises
    ------
    ValueError
        No dates, latitude or longitude, or units that are none of precipitation.

    Examples
    --------
    >>> import xdeepsd
    >>> rain = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> indices = xdeepsd.climate_indices(rain)
    >>> bool(indices["RX1day"].max() == rain.max())
    True
    """
    return _indices(dated(prepared(precipitation, "precipitation")))


def compare_indices(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
    regions: xr.DataArray | None = None,
) -> xr.Dataset:
    """`climate_indices` of a prediction and of what stands beside it, less those of the truth.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`: the same cells and days count in all of them.
    regions
        As in `xdeepsd.evaluate`: the one number is then one for each of them, ``(name, index, region)``.

    Returns
    -------
    Lazy if the input is: a map of bias ``(name, lat, lon)`` for each index, in its units; and ``relative_error``
    ``(name, index)``: the mean of the absolute bias over the mean of the index in the truth, both weighted by area.
    NaN where an index is undefined. Errors as in `xdeepsd.evaluate`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> bias = xdeepsd.compare_indices(bilinear, truth)
    >>> bool(bias["R01"].mean() > 0), bool(bias["SDII"].mean() < 0)  # wet too often, and too little
    (True, True)
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    known = _indices(dated(observed))
    found = _joined({name: _indices(dated(da)) for name, da in fields.items()})
    return _summed_up(found - known, known, None if regions is None else regions_of(regions, observed))


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

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=2, shape=(16, 16), warming=3)["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> earlier, later = ([field.sel(time=year) for field in (bilinear, truth)] for year in ("2001", "2002"))
    >>> found = xdeepsd.compare_changes((earlier[0], later[0]), (earlier[1], later[1]))
    >>> float(found["relative_error"].sel(name="prediction", index="RX1day")) > 0
    True
    """
    periods = [alike(y, {"prediction": p}) for p, y in zip(prediction, truth, strict=True)]
    before, after = (_indices(dated(observed)) for observed, _ in periods)
    found = [_joined({name: _indices(dated(da)) for name, da in fields.items()}) for _, fields in periods]
    return _summed_up((found[1] - found[0]) - (after - before), after - before)


def _joined(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    return xr.concat(list(parts.values()), "name").assign_coords(name=list(parts))


def _summed_up(
    apart: xr.Dataset, known: xr.Dataset, regions: tuple[xr.DataArray, list[Any]] | None = None
) -> xr.Dataset:
    area = xr.DataArray(cell_weights(known["lat"].values, known.sizes["lon"]), dims=("lat", "lon"))

    if regions is not None:
        codes, labels = regions
        area = area * (codes == xr.DataArray(np.arange(len(labels)), {"region": labels}, "region"))

    def mean(name: str, da: xr.DataArray) -> xr.DataArray:
        there = apart[name].notnull() & known[name].notnull()
        return (abs(da).where(there, 0.0) * area).sum(("lat", "lon"))

    numbers = [mean(name, apart[name]) / mean(name, known[name]).where(lambda da: da > 0) for name in UNITS]
    attrs = {"long_name": "mean absolute error over the mean of the truth", "units": "1"}
    for name in UNITS:
        apart[name].attrs = {"long_name": f"error of: {LONG_NAMES[name]}", "units": UNITS[name]}
    whole = xr.concat(numbers, "index").assign_coords(index=list(UNITS)).transpose("name", "index", ...)
    return apart.assign(relative_error=whole.assign_attrs(attrs))


# --- the indices ------------------------------------------------------------------------------------------------------


def _indices(da: xr.DataArray) -> xr.Dataset:
    if "member" in da.dims:
        members = [_indices(da.isel(member=i, drop=True)) for i in range(da.sizes["member"])]
        return xr.concat(members, "member").mean("member", skipna=False, keep_attrs=True)
    da = da.transpose("time", "lat", "lon")
    dates, days = da["time"].dt, da.sizes["time"]
    labels, keep = (dates.year.values, dates.month.values), min(int(0.02 * days) + 2, days)
    values = _finish(_add(None, [da.values], *labels, keep)) if da.chunks is None else _lazily(da.data, *labels, keep)
    maps = xr.DataArray(values, {dim: da[dim] for dim in ("lat", "lon")}, ("index", "lat", "lon"))
    return xr.Dataset(
        {
            name: maps[k].assign_attrs(long_name=LONG_NAMES[name], units=units)
            for k, (name, units) in enumerate(UNITS.items())
        }
    )


def _lazily(data: Any, years: np.ndarray, months: np.ndarray, keep: int) -> Any:
    """`_finish` of the parts of all chunks of days, each added to those before it: a tree of them, as in the graphs of
    xarray's reductions, keeps most of them in memory."""
    add, finish = (dask.delayed(function, pure=True) for function in (_add, _finish))
    blocks, ends = data.to_delayed(optimize_graph=False), np.cumsum(data.chunks[0])
    rows = []
    for i, height in enumerate(data.chunks[1]):
        row = []
        for j, width in enumerate(data.chunks[2]):
            part = None
            for k, (end, size) in enumerate(zip(ends, data.chunks[0], strict=True)):
                # With the chunks before that hold the days that are looked back to
                first = int(np.searchsorted(ends, max(end - size - LOOK_BACK, 0), "right"))
                span = slice(end - size, end)
                part = add(part, list(blocks[first : k + 1, i, j]), years[span], months[span], keep)
            row.append(dask.array.from_delayed(finish(part), (len(UNITS), height, width), np.float64))
        rows.append(row)
    return dask.array.concatenate([dask.array.concatenate(row, axis=2) for row in rows], axis=1)


# Of a strip of rows: sums over all days; of the months; maxima, sums and runs of the years; the highest days
Part = tuple[np.ndarray, dict[int, np.ndarray], dict[int, list[np.ndarray]], np.ndarray]


def _add(
    parts: list[Part] | None, blocks: list[np.ndarray], years: np.ndarray, months: np.ndarray, keep: int
) -> list[Part]:
    """The parts of all chunks up to the last of ``blocks``, from those of the chunks before it, strip by strip."""
    height, width = blocks[-1].shape[1:]
    rows = max(1, _STRIP // max(width, 1))
    strips = [slice(first, first + rows) for first in range(0, height, rows)]
    before: list[Part | None] = [None] * len(strips) if parts is None else list(parts)
    return [
        _add_strip(part, [block[:, strip] for block in blocks], years, months, keep)
        for part, strip in zip(before, strips, strict=True)
    ]


def _finish(parts: list[Part]) -> np.ndarray:
    """``(index, lat, lon)`` in the order of `UNITS`."""
    return np.concatenate([_finish_strip(part) for part in parts], axis=1)


def _part(blocks: list[np.ndarray], years: np.ndarray, months: np.ndarray, keep: int) -> Part:
    """What the indices need of the last of the blocks ``(time, lat, lon)``; those before it are looked back to."""
    x = blocks[-1].astype(np.float64)
    nothing = np.full((LOOK_BACK, *x.shape[1:]), np.nan)
    padded = np.concatenate([nothing, *(block[-LOOK_BACK:] for block in blocks[:-1]), x])[-len(x) - LOOK_BACK :]
    shifted = [padded[LOOK_BACK - k : LOOK_BACK - k + len(x)] for k in range(LOOK_BACK + 1)]
    before, five = shifted[1], np.sum(shifted, axis=0)
    wet, known, wet_before = x >= WET, np.isfinite(x), before >= WET
    follows = known & np.isfinite(before)
    now, then, amounts = np.where(follows, x, 0.0), np.where(follows, before, 0.0), np.where(known, x, 0.0)
    sums = [
        known, wet, np.where(wet, x, 0.0), x >= 10, x >= 20, follows & wet_before, follows & ~wet_before,
        follows & wet_before & wet, follows & ~wet_before & wet, follows, now, then, now**2, then**2, now * then,
        wet & ~wet_before, known & ~wet & ~(before < WET),
    ]  # fmt: skip
    total = np.stack([field.sum(0, dtype=np.float64) for field in sums])
    of_months = {}
    for month in np.unique(months):
        of_months[int(month)] = np.stack(
            [field[months == month].sum(0, dtype=np.float64) for field in (amounts, known)]
        )
    of_years = {}
    for year in np.unique(years):
        here = years == year
        of_years[int(year)] = [
            np.fmax.reduce(blocks[-1][here]), np.fmax.reduce(five[here]),
            np.stack([field[here].sum(0, dtype=np.float64) for field in (amounts, known)]),
            _runs(x[here] < WET), _runs(wet[here]),
        ]  # fmt: skip
    return total, of_months, of_years, _highest(np.where(wet, blocks[-1], blocks[-1].dtype.type(-1)), keep)


def _add_strip(part: Part | None, blocks: list[np.ndarray], years: np.ndarray, months: np.ndarray, keep: int) -> Part:
    new = _part(blocks, years, months, keep)
    if part is None:
        return new
    of_months, of_years = dict(part[1]), dict(part[2])
    for month, seen in new[1].items():
        of_months[month] = of_months[month] + seen if month in of_months else seen
    for year, fields in new[2].items():
        if year in of_years:
            wettest, five, both, dry, wet = of_years[year]
            fields = [
                np.fmax(wettest, fields[0]), np.fmax(five, fields[1]), both + fields[2],
                _join(np.concatenate([dry, fields[3]])), _join(np.concatenate([wet, fields[4]])),
            ]  # fmt: skip
        of_years[year] = fields
    return part[0] + new[0], of_months, of_years, _highest(np.concatenate([part[3], new[3]]), keep)


def _highest(days: np.ndarray, keep: int) -> np.ndarray:
    # A copy, for a view of the highest would keep all the others in memory.
    return np.partition(days, -keep, axis=0)[-keep:].copy() if len(days) > keep else days


def _finish_strip(part: Part) -> np.ndarray:
    total, of_months, of_years, highest = part
    days, wet, amount, ten, twenty, after_wet, after_dry, wet_wet, dry_wet, pairs, x, y, xx, yy, xy, *spells = total
    years = [np.stack(fields) for fields in zip(*of_years.values(), strict=True)]
    wettest, five, both, dry_runs, wet_runs = years
    wettest, highest = wettest.astype(np.float64), highest.astype(np.float64)  # kept as they came, to take less memory
    means = np.stack([_ratio(fields[0], fields[1]) for fields in of_months.values()])
    annual, seen = _ratio(both[:, 0], both[:, 1]), both[:, 1] > 0
    top = np.sort(highest, axis=0)[::-1]
    place = np.clip(0.02 * (wet - 1), 0, None)
    low, high = (np.take_along_axis(top, f(place).astype(int)[None], 0)[0] for f in (np.ceil, np.floor))
    percentile = np.where(wet > 0, high + (place - np.floor(place)) * (low - high), np.nan)
    above = np.where(top > percentile, top, 0.0).sum(0)
    spread = [_ratio(square, pairs) - _ratio(v, pairs) ** 2 for square, v in ((xx, x), (yy, y))]
    spread = [
        np.where(v > 1e-12 * _ratio(square, pairs), v, np.nan) for v, square in zip(spread, (xx, yy), strict=True)
    ]
    correlation = (_ratio(xy, pairs) - _ratio(x * y, pairs**2)) / np.sqrt(spread[0] * spread[1])
    found = {
        "R01": _ratio(wet, days), "SDII": _ratio(amount, wet), "R10": _ratio(ten * YEAR, days),
        "R20": _ratio(twenty * YEAR, days), "RX1day": _mean(wettest), "RX5day": _mean(five), "P98Wet": percentile,
        "P98WetAmount": _ratio(above * YEAR, days), "CDD": _mean(np.where(seen, dry_runs[:, 3], np.nan)),
        "CWD": _mean(np.where(seen, wet_runs[:, 3], np.nan)), "WW": _ratio(wet_wet, after_wet),
        "DW": _ratio(dry_wet, after_dry), "AC1": correlation,
        "AnnualCycleAmp": means.max(0) - means.min(0) if len(means) == 12 else np.full_like(days, np.nan),
        "VarY": np.sqrt(_mean((annual - _mean(annual)) ** 2, 1)), "RV20": _return_value(wettest),
        "WetSpell": _ratio(wet, spells[0]), "DrySpell": _ratio(days - wet, spells[1]),
    }  # fmt: skip
    return np.stack([found[name] for name in UNITS])


def _ratio(of: np.ndarray, by: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    return np.divide(of, by, out=np.full(np.shape(of), np.nan), where=by > 0)


def _mean(of_years: np.ndarray, fewer: int = 0) -> np.ndarray:
    """The sum over the years that have a value, over ``fewer`` than their number."""
    there = np.isfinite(of_years)
    return _ratio(np.where(there, of_years, 0.0).sum(0), there.sum(0) - fewer)


def _return_value(maxima: np.ndarray) -> np.ndarray:
    """Of annual maxima ``(year, lat, lon)``: Gumbel by L-moments."""
    n, order = np.isfinite(maxima).sum(0), np.arange(len(maxima))[:, None, None]
    ordered = np.sort(maxima, axis=0)  # NaN last
    first = np.nansum(ordered, 0) / np.maximum(n, 1)
    second = np.nansum(ordered * order, 0) / np.maximum(n * (n - 1), 1)
    scale = (2 * second - first) / np.log(2)
    found = first - np.euler_gamma * scale - scale * np.log(-np.log(1 - 1 / RETURN_PERIOD))
    return np.where(n >= LEAST_YEARS, found, np.nan)


def _runs(holds: np.ndarray) -> np.ndarray:
    """``(4, lat, lon)``: days, length of the run at the start and at the end, longest run."""
    now, longest, first = (np.zeros(holds.shape[1:], np.int32) for _ in range(3))
    unbroken = np.ones(holds.shape[1:], bool)
    for day in holds:
        now = (now + 1) * day
        np.maximum(longest, now, out=longest)
        unbroken &= day
        first += unbroken
    return np.stack([np.full_like(now, len(holds)), first, now, longest])


def _join(parts: np.ndarray) -> np.ndarray:
    """`_runs` of successive chunks, four rows for each, as those of all of them."""
    days, first, last, longest = parts[:4]
    for at in range(4, len(parts), 4):
        other = parts[at : at + 4]
        longest = np.maximum(np.maximum(longest, other[3]), last + other[1])
        first = np.where(first == days, days + other[1], first)
        last = np.where(other[2] == other[0], last + other[0], other[2])
        days = days + other[0]
    return np.stack([days, first, last, longest])
