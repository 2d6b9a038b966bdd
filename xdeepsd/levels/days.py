"""The days of a time axis: their names in messages, repeated and missing ones, their releases."""

from __future__ import annotations

import logging
from typing import Any

import dask
import numpy as np
import xarray as xr

logger = logging.getLogger(__name__)


def calendar_days(da: xr.DataArray) -> Any:
    """The calendar days of ``time`` as an index, without the hours."""
    index: Any = da.indexes["time"]
    return index.floor("D")


def name_days(days: Any) -> str:
    """Days of an index as text, consecutive days joined: ``2014-02-03, 2014-02-07..2014-02-09``; at most ten runs."""
    runs: list[list[Any]] = []
    for day in days:
        if runs and (day - runs[-1][-1]).days == 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    names = [str(r[0])[:10] if len(r) == 1 else f"{str(r[0])[:10]}..{str(r[-1])[:10]}" for r in runs[:10]]
    return ", ".join(names) + (f" and {len(runs) - 10} more" if len(runs) > 10 else "")


def name_span(da: xr.DataArray) -> str:
    """The days along ``time`` as text: ``3 from 2014-02-03 to 2014-02-05``."""
    if not da.sizes["time"]:
        return "no day"
    first, last = (str(da["time"].values[i])[:10] for i in (0, -1))
    return f"{da.sizes['time']} from {first} to {last}"


def each_once(da: xr.DataArray) -> np.ndarray:
    """Bool ``(time,)``, True for the days to take, each once: False where a day is repeated with the same values.

    Raises ValueError where the days are not in order, or a day occurs twice with different values.
    """
    days = calendar_days(da)
    if not days.is_monotonic_increasing:
        at = int(np.argmax(days[1:] < days[:-1]))
        raise ValueError(
            f"The days are not in order: {str(days[at])[:10]} is followed by {str(days[at + 1])[:10]}. Needed: "
            "ascending days. Type ds.sortby('time')."
        )
    again = np.asarray(days.duplicated())
    for i in np.flatnonzero(again):
        first = int(np.argmax(days == days[i]))
        a, b = dask.compute(da.isel(time=first).data, da.isel(time=i).data)
        if not np.array_equal(a, b, equal_nan=True):
            twice = da["time"].values[first], da["time"].values[i]
            later = "isel(time=~ds.indexes['time'].floor('D').duplicated(keep='last'))"
            last = "drop_duplicates('time', keep='last')" if twice[0] == twice[1] else later
            raise ValueError(
                f"The day {str(days[i])[:10]} occurs twice with different data (at {twice[0]} and {twice[1]}; they "
                f"differ by up to {np.nanmax(np.abs(a - b)):.4g}). Needed: each day once. Type ds.{last}, or "
                "ds.resample(time='1D').mean() for data at several times a day."
            )
    if again.any():
        logger.warning(
            "%d days occur twice with the same data: %s. Each is used once.", again.sum(), name_days(days[again])
        )
    return ~again


def missing_days(days: Any) -> Any:
    """Calendar days between the first and the last that are missing."""
    if len(days) < 2:
        return days[:0]
    calendar, cftime = getattr(days, "calendar", "standard"), isinstance(days, xr.CFTimeIndex)
    return xr.date_range(days[0], days[-1], freq="D", calendar=calendar, use_cftime=cftime).difference(days)


def releases(fine: xr.DataArray | xr.Dataset, da: xr.DataArray) -> np.ndarray:
    """The release of each day of ``da``, as `xdeepsd fetch` writes it to the Dataset ``fine``.

    Returns int32 ``(time, 2)``: the number of the release and its date in days since 1970; 0 where not known.
    """
    found = np.zeros((da.sizes["time"], 2), np.int32)
    for column, (name, kinds) in enumerate({"release": "iuf", "release_date": "M"}.items()):
        values = fine.get(f"{da.name}_{name}") if isinstance(fine, xr.Dataset) else None
        if values is None or values.size != len(found) or values.dtype.kind not in kinds:
            continue
        known = values.notnull().values
        numbers = values.values.astype("datetime64[D]") if kinds == "M" else values.values
        found[known, column] = numbers[known].astype(np.int64)
    return found


def newer_and_same(new: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the releases ``new`` came out after ``old``, and which are the same; both as `releases` returns them.

    Neither where that is not known. A number may be used again (the old names of PRISM's files have only three), so
    two releases are the same only if their dates are.

    >>> old = np.array([[1, 0], [2, 8], [3, 8], [2, 9], [2, 0]])
    >>> newer_and_same(np.array([[8, 0], [3, 9], [2, 9], [2, 9], [2, 0]]), old)
    (array([ True,  True,  True, False, False]), array([False, False, False,  True, False]))
    """
    known, dated = ((new[:, i] > 0) & (old[:, i] > 0) for i in (0, 1))
    number, date = (new[:, i].astype(np.int64) - old[:, i] for i in (0, 1))
    date = np.where(dated, date, 0)
    newer = known & ((date > 0) | ((date == 0) & (number > 0)))
    return newer, known & dated & (date == 0) & (number == 0)


def empty_days(da: xr.DataArray, numbers: np.ndarray) -> Any:
    """Days that are on the axis of a store of `fetch` but not fetched: release 0, and nothing in the map.

    A release may also be 0 because it is not known, so the maps of these days are read, unless no day has a release.
    """
    days = calendar_days(da)
    unknown = np.flatnonzero(numbers == 0)
    if unknown.size in (0, days.size):
        return days[:0]
    empty = da.isel(time=unknown).isnull().all(["lat", "lon"]).values
    return days[unknown[empty]]
