"""What the metadata of the input say, for the log and for the audit; reads no values."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import axes
from xdeepsd.inference.inputs import Prepared


def found(ready: Prepared) -> dict[str, Any]:
    """Variable, units, period, calendar, days and missing days of the input; the range of the elevation, m.

    ``elevation`` is None where there is none or it is lazy. ``first`` and ``last`` are dates, "" without time.
    """
    time, stands_for = axes.find_time(ready.given), ready.adapted.period
    heights = ready.maps.get("elevation")
    dates = dates_of(ready.given, ends=True)
    return {
        "variable": str(ready.given.name),
        "units": str(ready.given.attrs["units"]),
        "period": f"{stands_for} (by its {stands_for.known_by})" if stands_for.known_by else str(stands_for),
        "calendar": str(ready.given[time].dt.calendar) if dates else "none",
        "days": 1 if time is None else ready.given.sizes.get(time, 1),
        "first": dates[0] if dates else "",
        "last": dates[-1] if dates else "",
        "missing_days": _missing_days(ready.given[time]) if dates else 0,
        "elevation": range_of(heights) if isinstance(heights, np.ndarray) else None,
    }


def lines(seen: dict[str, Any]) -> list[tuple[str, str]]:
    """What `found` found, as pairs of text."""
    out = [
        ("precipitation", f"{seen['variable']!r} in {seen['units']}, each value of {seen['period']}"),
        ("days", f"{seen['days']}, {seen['first']} to {seen['last']}, calendar {seen['calendar']}"),
        ("dates that are not there", str(seen["missing_days"])),
    ]
    if seen["elevation"] is not None:
        out.append(("elevation", "{:.0f} to {:.0f} m".format(*seen["elevation"])))
    return out


def range_of(values: Any) -> tuple[float, float] | None:
    """Smallest and largest; None if all are missing. Computes what is lazy."""
    values = np.asarray(values)
    there = values[np.isfinite(values)]
    return (float(there.min()), float(there.max())) if there.size else None


def dates_of(da: xr.DataArray, ends: bool = False) -> list[str]:
    """The date of each day (only of the ``ends``) as text, in the calendar's own days; none without dates."""
    name = axes.find_time(da)
    if name is None:
        return []
    time = da[name][[0, -1]] if ends and da[name].size > 2 else da[name]
    if time.dtype.kind not in "MO" or not axes.is_time(time):
        return []
    parts = (np.atleast_1d(getattr(time.dt, part).values) for part in ("year", "month", "day"))
    return [f"{y:04d}-{m:02d}-{d:02d}" for y, m, d in zip(*parts, strict=True)]


def _missing_days(time: xr.DataArray) -> int:
    """Dates between the first and the last that are not there, in the calendar's own days."""
    days = axes.days_since_first(np.atleast_1d(time.values))
    if days is None or days.size < 2:
        return 0
    there = np.unique(np.floor(days + 1e-6))
    return int(there[-1] - there[0]) + 1 - there.size
