"""Look at the input of a model before downscaling it: what was understood, what is missing, what is odd."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr

from xdeepsd.grids import axes
from xdeepsd.grids.units import precipitation_factor
from xdeepsd.inference.correction import Correction, as_correction
from xdeepsd.inference.found import dates_of, found, lines, range_of
from xdeepsd.inference.inputs import Prepared, prepare
from xdeepsd.models.stack import LARGEST, StackedSRCNN
from xdeepsd.models.transform import transform
from xdeepsd.models.variable import clean

DRIZZLE = 1.0  # mm day-1; what is wetter is a wet day to most indices of extremes
LAGS = (-2, -1, 0, 1, 2)  # days
_DAYS_ACCUMULATED = 4  # that no value falls on fewer days may be chance
_DAYS_COMPARED = 1000  # with the observed field: enough to tell a shift, little to hold in memory


@dataclass(frozen=True)
class Audit:
    """What `audit` found; ``print`` shows it as lines, `rows` as pairs of text.

    Parameters
    ----------
    variable, units, period, calendar
        As found; the period says what tells it.
    days, first, last, missing_days
        Days downscaled, the dates of the first and last, and how many dates between them are not there.
    elevation
        Lowest and highest of the target grid, m; None for a model without it.
    adapted
        What is done to the input before the first stage: hours put together to days, regridding.
    covered
        Share of the wanted coarse cells with a value on any day.
    missing
        Share of the values in these cells that are missing.
    dry, drizzle
        Share of the values that are 0, and that lie between 0 and 1 mm day-1.
    mean, largest
        mm day-1.
    largest_sd
        How many standard deviations of the training days the largest value lies above their mean, in the space in which
        the first stage was trained.
    largest_trained, above_trained
        The largest precipitation of the coarsest level on the training days, mm day-1, and how many values lie above
        it. None and 0 for a model saved before this was recorded.
    accumulated
        Whether no value is ever below that of the day before, as of amounts since the start of a run.
    lags
        Correlation with the observed field, of all coarse cells and days at hand, by the days that the observations are
        taken later; empty without an observed field.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1).isel(time=[0, 1, 4])
    >>> found = xdeepsd.audit(xdeepsd.coarsen(climate["precipitation"], 8), xdeepsd.load_model("demo"))
    >>> found.period, found.missing_days  # print(found) shows all of it
    ('1 day (by its steps)', 2)
    """

    variable: str
    units: str
    period: str
    calendar: str
    days: int
    first: str
    last: str
    missing_days: int
    elevation: tuple[float, float] | None
    adapted: tuple[str, ...]
    covered: float
    missing: float
    dry: float
    drizzle: float
    mean: float
    largest: float
    largest_sd: float
    largest_trained: float | None
    above_trained: int
    accumulated: bool
    lags: dict[int, float]

    def rows(self) -> list[tuple[str, str]]:
        """What was looked at, and what was found."""
        rows = [
            *lines(vars(self)),
            *(("done", text) for text in self.adapted),
            ("coarse cells with values", f"{self.covered:.1%} of those wanted"),
            ("missing values in these", f"{self.missing:.2%}"),
            ("dry, drizzle, wetter", f"{self.dry:.1%} 0, {self.drizzle:.1%} below {DRIZZLE:g} mm day-1, the rest"),
            ("mean, largest", f"{self.mean:.3g}, {self.largest:.4g} mm day-1"),
            ("largest, above the training days' mean", f"{self.largest_sd:.1f} of their standard deviations"),
        ]
        if self.largest_trained is not None:
            rows.append((f"above the {self.largest_trained:.4g} mm day-1 of training", f"{self.above_trained} values"))
        rows += [(f"correlation, observed {lag:+d} days", f"{r:.2f}") for lag, r in self.lags.items()]
        return rows

    def notes(self) -> list[str]:
        """What deserves a look, in sentences."""
        notes = []
        if self.missing_days:
            notes.append(f"{self.missing_days} dates between {self.first} and {self.last} are not there.")
        if self.accumulated:
            notes.append(
                f"No value is ever below that of the day before: {self.variable!r} seems to be accumulated since the "
                "start of the run. Needed: the amount of each day. Type ds.diff('time', label='lower')."
            )
        if self.above_trained:
            notes.append(
                f"{self.above_trained} values are larger than any of the training days, up to {self.largest:.4g} "
                f"against {self.largest_trained:.4g} mm day-1: the model has not learned from such rain."
            )
        if self.covered < 0.99:
            notes.append(f"{1 - self.covered:.1%} of the coarse cells that are wanted have no value on any day.")
        if self.drizzle > 0.5:
            notes.append(
                f"{self.drizzle:.0%} of the values are drizzle below {DRIZZLE:g} mm day-1, as of climate models that "
                "rain too often and too little: a bias that downscaling passes on."
            )
        best = max(self.lags, key=lambda lag: self.lags[lag], default=0)
        if best and self.lags[best] > self.lags.get(0, -1.0) + 0.05:
            way = f"{abs(best)} day{'s' * (abs(best) > 1)} {'later' if best > 0 else 'earlier'}"
            notes.append(
                f"The observed field fits better {way} (correlation {self.lags[best]:.2f} against "
                f"{self.lags.get(0, np.nan):.2f} on the same date): the two date their days differently, as products "
                "do whose days end at different hours."
            )
        return notes

    def __str__(self) -> str:
        """The rows and the notes."""
        width = max(len(what) for what, _ in self.rows())
        return "\n".join([*(f"{what:<{width}}  {found}" for what, found in self.rows()), *self.notes()])


def audit(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN,
    static: xr.Dataset | xr.DataArray | None = None,
    *,
    observed: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    mask: xr.DataArray | None = None,
    units: str | None = None,
    day_ends: float | None = None,
    allow_partial: bool = True,
    bias_correct: Correction | str | os.PathLike[str] | None = None,
) -> Audit:
    """Look at the input of `xdeepsd.downscale` before it is used. Reads it all once, chunk by chunk.

    Parameters
    ----------
    ds, model, static, variable, mask, units, day_ends, bias_correct
        As in `xdeepsd.downscale`; with ``bias_correct`` what is looked at is corrected.
    observed
        Observed precipitation of some of the same dates, on any grid that overlaps the model's: the correlation with it
        is computed for shifts of up to two days. Means something for reanalyses, hindcasts and other products, not for
        a climate model that runs freely.
    allow_partial
        False: an error where the input does not cover the model's domain. True: the share is reported.

    Returns
    -------
    `Audit`, of the values on the model's coarse grid, in mm day-1.

    Raises
    ------
    ValueError, TypeError
        As `xdeepsd.downscale`; and where the observed field shares no date with the input.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1).isel(time=slice(3))
    >>> coarse = xdeepsd.coarsen(climate["precipitation"], 8)
    >>> found = xdeepsd.audit(coarse, xdeepsd.load_model("demo"))
    >>> found.days, found.units, found.covered
    (3, 'mm day-1', 1.0)
    """
    correction = None if bias_correct is None else as_correction(bias_correct)
    ready = prepare(ds, model, static, variable, mask, units, day_ends, allow_partial, correction)
    rain, wanted = _rain(ready, model), _wanted(ready, model.scale)
    trained = model.training.get(LARGEST)
    trained = None if trained is None else float(trained) * precipitation_factor(model.units)
    seen = _statistics(rain, wanted, np.inf if trained is None else trained)
    dates = dates_of(ready.given)
    stage = model.stages[0]
    largest = torch.tensor(max(seen["largest"], 0.0) / precipitation_factor(model.units), dtype=torch.float64)
    level = float(transform(largest, stage.transform))
    lags = {} if observed is None else _lags(rain, dates, observed, model, static, mask)
    known = found(ready)
    heights = ready.maps.get("elevation")
    return Audit(
        **known | {"elevation": None if heights is None else range_of(heights)},
        adapted=ready.adapted.done,
        largest_sd=(level - stage.precipitation.mean) / stage.precipitation.std,
        largest_trained=trained,
        lags=lags,
        **seen,
    )


def _rain(ready: Prepared, model: StackedSRCNN) -> xr.DataArray:
    """The values the first stage gets, mm day-1, ``(..., time, lat, lon)``. Lazy if the input is."""
    return clean(ready.coarse, ready.values) * (ready.values.factor * precipitation_factor(model.units))


def _wanted(ready: Prepared, scale: int) -> np.ndarray:
    """``(lat, lon)`` coarse cells with any wanted fine cell."""
    nlat, nlon = ready.coarse.shape[-2:]
    if ready.mask is None:
        return np.ones((nlat, nlon), bool)
    return np.asarray(np.asarray(ready.mask).reshape(nlat, scale, nlon, scale).any(axis=(1, 3)))


def _statistics(rain: xr.DataArray, wanted: np.ndarray, trained: float) -> dict[str, Any]:
    """Shares and moments over wanted cells that ever have a value, in one pass."""
    rain = rain.where(xr.DataArray(wanted, dims=("lat", "lon")))
    others = [dim for dim in rain.dims if dim not in ("lat", "lon")]
    steps = rain.diff("time") if "time" in rain.dims else rain.where(False)
    counts = xr.Dataset(
        {
            "seen": rain.notnull().sum(others),
            "dry": (rain == 0).sum(others),
            "drizzle": ((rain > 0) & (rain < DRIZZLE)).sum(others),
            "sum": rain.sum(others, dtype=np.float64),
            "largest": rain.max(others),
            "above": (rain > trained * (1 + 1e-6)).sum(others),
            "rises": (steps > 0).sum(others),
            "falls": (steps < 0).sum(others),
        }
    )
    (counts,) = dask.compute(counts)
    values = int(np.prod([rain.sizes[dim] for dim in others]))
    ever = (counts["seen"] > 0).values
    seen = max(int(counts["seen"].sum()), 1)
    return {
        "covered": float(ever.sum() / max(wanted.sum(), 1)),
        "missing": float(1 - seen / max(int(ever.sum()) * values, 1)),
        "dry": float(counts["dry"].sum() / seen),
        "drizzle": float(counts["drizzle"].sum() / seen),
        "mean": float(counts["sum"].sum() / seen),
        "largest": float(counts["largest"].max()),
        "above_trained": int(counts["above"].sum()),
        "accumulated": rain.sizes.get("time", 1) >= _DAYS_ACCUMULATED
        and bool(counts["rises"].any())
        and not counts["falls"].any(),
    }


def _lags(
    rain: xr.DataArray, dates: list[str], observed: Any, model: StackedSRCNN, static: Any, mask: Any
) -> dict[int, float]:
    """Correlation with the observed field, shifted by each of `LAGS` days, over cells and days that both have."""
    there = prepare(observed, model, static, None, mask, allow_partial=True)
    time = axes.find_time(there.given)
    theirs = {date: i for i, date in enumerate(dates_of(there.given))}
    common = [i for i, date in enumerate(dates) if date in theirs][:_DAYS_COMPARED]
    if not common or time is None:
        raise ValueError(
            f"The observed field has no date of the input, whose days are {dates[:1]} to {dates[-1:]}. Needed: some "
            "days of both, or observed=None."
        )
    since = axes.days_since_first(there.given[time].values)
    assert since is not None
    number = np.floor(since + 1e-6).astype(int)  # gaps are longer than a day
    place = {day: i for i, day in enumerate(number.tolist())}
    ours, seen = (
        da.isel({dim: 0 for dim in da.dims if dim not in ("time", "lat", "lon")})  # the first member
        for da in (rain, _rain(there, model))
    )
    at = [theirs[dates[i]] for i in common]
    low, high = max(min(at) + min(LAGS), 0), max(at) + max(LAGS) + 1
    a, b = dask.compute(ours.isel(time=common).values, seen.isel(time=slice(low, high)).values)
    found = {}
    for lag in LAGS:
        pairs = [(n, place[day] - low) for n, i in enumerate(at) if (day := number[i] + lag) in place]
        x, y = a[[n for n, _ in pairs]].ravel(), b[[i for _, i in pairs]].ravel()
        both = np.isfinite(x) & np.isfinite(y)
        if both.sum() > 2 and x[both].std() > 0 and y[both].std() > 0:
            found[lag] = float(np.corrcoef(x[both], y[both])[0, 1])
    return found
