"""Days: how long a time each value of a series stands for, and steps of hours put together to days. Lazy."""

from __future__ import annotations

import datetime
import logging
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import axes

logger = logging.getLogger(__name__)

_SINCE = {"second": 1 / 86400, "minute": 1 / 1440, "hour": 1 / 24, "day": 1.0, "month": 365.25 / 12, "year": 365.25}
_UNITS = {"h": 1 / 24, "d": 1.0, "m": 30.0, "y": 365.0}
_SAME = 1e-3  # share of a period within which two are one: bounds and stamps may be rounded to minutes


@dataclass(frozen=True)
class Period:
    """Days that each value stands for (None: unknown), and what tells: "steps", "bounds", "frequency" or "gaps".

    "gaps": only that the steps are farther apart than a day, which may also be days taken from a longer series.
    """

    days: float | None
    known_by: str = ""

    def __str__(self) -> str:
        """In the unit that people would use."""
        if self.days is None:
            return "an unknown time"
        hours = self.days * 24
        return f"{hours:.4g} h" if hours < 23.9 else f"{self.days:.4g} days" if hours > 24.1 else "1 day"


def period(da: xr.DataArray, ds: xr.Dataset | xr.DataArray | None = None) -> Period:
    """How long a time each value of ``da`` stands for.

    Steps of a day or less tell it themselves. Otherwise the time bounds tell, then the attribute ``frequency`` (of
    ``ds``, where ``da`` comes from). The interval in cell_methods does not: it is that of the values before the sum.
    Reads time and, for other steps than a day, its bounds.
    """
    step = _shortest_step(da)
    if step is not None and abs(step - 1) <= _SAME:
        return Period(step, "steps")
    bounds = time_bounds(da, ds)
    length = 0.0
    if bounds is not None:
        length = float(np.median(np.abs(_days(bounds[:, 1], bounds[0, 0]) - _days(bounds[:, 0], bounds[0, 0]))))
    if step is not None and step < 1 and length < 1.5 * step:  # longer ones overlap, as those of running sums do
        return Period(step, "steps")
    if length > 0:
        return Period(length, "bounds")
    named = _frequency(ds) or _frequency(da)
    if named is not None and (step is None or step > 1):
        return Period(named, "frequency")
    if step is None:
        return Period(None)
    steps = np.diff(np.sort(_times(da)[1]))
    middle = float(np.median(steps[steps > 0]))
    regular = middle > 27 and (steps > 27).all() and ((steps < 32) | ((steps > 359) & (steps < 367))).all()
    return Period(middle, "steps" if regular else "gaps")  # months or years, or days with others left out


def _times(da: xr.DataArray) -> tuple[str | None, np.ndarray]:
    """The dim that holds dates or lead times, and its values as days since the first."""
    found = {
        str(name): days for name, index in da.indexes.items() if (days := axes.days_since_first(index)) is not None
    }
    # For a forecast, use the lead time, which counts from each start.
    lead = [name for name in found if da.indexes[name].dtype.kind == "m"]
    for name in lead or list(found):
        if found[name].size > 1:
            return name, found[name]
    time = axes.find_time(da)
    since = re.match(r"\s*([a-z]+?)s?\s+since\b", str(da[time].attrs.get("units", ""))) if time else None
    if since and since[1] in _SINCE and da[time].dtype.kind in "iuf":  # not decoded; months since ... cannot be
        return time, np.asarray(da[time], np.float64) * _SINCE[since[1]]
    return None, np.zeros(0)


def _shortest_step(da: xr.DataArray) -> float | None:
    """Days between neighbours in time; a longer step may be a gap. None if there are no two."""
    steps = np.diff(np.sort(_times(da)[1]))
    steps = steps[steps > 0]
    return float(steps.min()) if steps.size else None


def _frequency(obj: xr.Dataset | xr.DataArray | None) -> float | None:
    """Days by the attribute ``frequency``, such as "day", "3hr" or "mon"; None if it is not there or says nothing."""
    text = "" if obj is None else str(obj.attrs.get("frequency", "")).strip().lower()
    found = re.match(r"^(\d*)\s*(h|hr|hour|hourly|d|day|daily|mon|month|monthly|y|yr|year|yearly)s?(pt)?$", text)
    return int(found[1] or 1) * _UNITS[found[2][0]] if found else None


def time_bounds(da: xr.DataArray, ds: xr.Dataset | xr.DataArray | None) -> np.ndarray | None:
    """Begin and end of each step ``(n, 2)``, dates; None if ``ds`` has none."""
    name = axes.find_time(da)
    if name is None or not isinstance(ds, xr.Dataset) or name not in ds.coords:
        return None
    named = ds[name].attrs.get("bounds") or ds[name].encoding.get("bounds")
    if named not in ds.variables or ds[named].ndim != 2 or ds[named].shape != (da.sizes[name], 2):
        return None
    bounds = np.asarray(ds[named].transpose(name, ...).values)
    return bounds if axes.is_time(bounds) else None


def _days(dates: Any, start: Any) -> np.ndarray:
    """Days ``(n,)`` from ``start`` to dates (numpy or cftime)."""
    dates = np.asarray(dates)
    if dates.dtype.kind == "M":
        return np.asarray((dates - start) / np.timedelta64(1, "D"))
    return np.array([(date - start).total_seconds() / 86400 for date in dates])


def _midnight(date: Any) -> Any:
    if isinstance(date, np.datetime64):
        return date.astype("datetime64[D]").astype(date.dtype)
    return date.replace(hour=0, minute=0, second=0, microsecond=0)


def _dates(first: Any, days: np.ndarray) -> np.ndarray:
    """The dates ``days`` (float) after the midnight ``first``, to the second."""
    if isinstance(first, np.datetime64):
        return np.asarray(first + np.round(days * 86400).astype("timedelta64[s]"))
    return np.array([first + datetime.timedelta(seconds=round(day * 86400)) for day in days])


def to_days(
    da: xr.DataArray, ds: xr.Dataset | xr.DataArray, length: float, amount: bool, day_ends: float
) -> tuple[xr.DataArray, np.ndarray]:
    """Put steps of hours together to days. Lazy.

    Parameters
    ----------
    da
        Any dims; its time is found by `axes.find_time`.
    ds
        Where it comes from. The bounds of its time say when each step begins. Without them a step begins at its stamp,
        or half a step before it where all stamps lie in the middle between two whole steps.
    length
        Days that a step stands for, such as 0.125.
    amount
        True: the steps are added up. False: averaged.
    day_ends
        Hour (UTC) of its date at which a day ends: 24 or 0 for midnight, 12 for the days of PRISM.

    Returns
    -------
    The days, labelled with their dates at midnight, in the calendar of the input; and their bounds ``(n, 2)``. NaN in
    days with a step that is missing. Days without all their steps are left out at both ends and are NaN in between.
    Raises ValueError if steps do not make up days, overlap, or no day is complete.
    """
    time = axes.find_time(da)
    assert time is not None
    dates = da.indexes[time].values
    first = _midnight(dates[0])
    stamps, bounds = _days(dates, first), time_bounds(da, ds)
    begin = stamps if bounds is None else np.minimum(_days(bounds[:, 0], first), _days(bounds[:, 1], first))
    if bounds is None and np.allclose(stamps / length % 1, 0.5, atol=0.01):
        begin = stamps - length / 2
    steps, end = round(1 / length), (day_ends % 24 or 24) / 24
    within = (begin - end) / length
    if abs(steps * length - 1) > _SAME or not np.allclose(within, np.round(within), atol=0.1):
        hours = sorted({round(h, 3) % 24 for h in begin[:steps] * 24})
        raise ValueError(
            f"A day that ends at {day_ends:g} UTC does not consist of whole steps: those of {da.name!r} last "
            f"{length * 24:.4g} h and begin at {', '.join(f'{h:g}' for h in hours[:6])} UTC. Needed: a whole number of "
            f"steps from day to day. Type day_ends={hours[0]:g}, or pass daily data."
        )
    slot = np.round(within).astype(int)
    if slot.size > 1 and (np.diff(slot) <= 0).any():
        at = int(np.argmax(np.diff(slot) <= 0))
        raise ValueError(
            f"The time of {da.name!r} is out of order: {dates[at]} is followed by {dates[at + 1]}. Needed: every step "
            f"of {length * 24:.4g} h once. Type ds.sortby({time!r}).drop_duplicates({time!r})."
        )
    date = slot // steps + 1  # days after `first`; a day is dated by where it ends
    days, count = np.unique(date, return_counts=True)
    whole = np.flatnonzero(count == steps)
    if not whole.size:
        raise ValueError(
            f"No day of {da.name!r} is complete: {dates.size} steps of {length * 24:.4g} h from {dates[0]} to "
            f"{dates[-1]}. Needed: the {steps} steps of a day that ends at {day_ends:g} UTC. Type day_ends=... with "
            "another hour, or pass daily data."
        )
    days = days[whole[0] : whole[-1] + 1]
    dropped = int(count.sum() - count[whole[0] : whole[-1] + 1].sum())
    if dropped:
        logger.info("%d steps of %r at the ends do not make a whole day: left out.", dropped, da.name)
    wanted = ((days[:, None] - 1) * steps + np.arange(steps)).ravel()
    position = np.searchsorted(slot, wanted).clip(max=slot.size - 1)
    there = slot[position] == wanted
    bare = da.drop_vars([name for name, coord in da.coords.items() if time in coord.dims])
    if there.all() and (np.diff(position) == 1).all():
        bare = bare.isel({time: slice(int(position[0]), int(position[-1]) + 1)})
    else:
        logger.warning("%d steps of %r are missing: their days are NaN.", np.count_nonzero(~there), da.name)
        bare = bare.isel({time: position}).where(xr.DataArray(there, dims=time))
    if bare.chunks is not None:  # a day may not lie in two chunks
        ends = np.cumsum(bare.chunksizes[time])
        ends = np.unique(np.maximum(steps, np.round(ends / steps).astype(int) * steps))
        bare = bare.chunk({time: tuple(np.diff(ends, prepend=0).tolist())})
    groups = bare.coarsen({time: steps}).construct({time: (time, "step of the day")})
    out = (groups.sum if amount else groups.mean)("step of the day", skipna=False)
    edges = np.stack([_dates(first, days - 1 + end), _dates(first, days + end)], axis=1)
    out = out.astype(da.dtype, copy=False).assign_coords(
        {time: (time, _dates(first, days.astype(float)), da[time].attrs)}
    )
    out[time].encoding = {k: v for k, v in da[time].encoding.items() if k in {"units", "calendar", "dtype"}}
    out.name, out.attrs = da.name, dict(da.attrs)
    return out, edges
