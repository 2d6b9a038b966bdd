"""Which days are for training, validation and test: whole days, never the same one twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

# Years as numbers, dates as text, or a fraction of the days at the end
Days = Sequence[int | str] | float | None


class Split(NamedTuple):
    """Positions along time of the days of each part, increasing."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_days(
    time: xr.DataArray, train: Sequence[int | str] | None = None, validation: Days = None, test: Days = None
) -> Split:
    """Assign whole days to training, validation and test.

    Parameters
    ----------
    time
        The ``time`` coordinate, of any calendar.
    train, validation, test
        A list of years (2004), months or days ("2004-07", "2004-07-15") and ranges of them ("2004-06-01/2004-08-31");
        or for ``validation`` and ``test`` a fraction of all days: test days are the last ones, validation days those
        before them. ``train`` None: all days that are in neither of the other two.

    Raises
    ------
    ValueError
        The days are not in ascending order, two parts overlap, a date is not among the days, or none is left for
        training.

    Examples
    --------
    >>> time = xr.date_range("2001-01-01", "2002-12-31")
    >>> [len(part) for part in split_days(xr.DataArray(time, dims="time"), validation=["2002-11"], test=["2002-12"])]
    [669, 30, 31]
    """
    size = last = time.size
    index = time.to_index()
    if not (index.is_monotonic_increasing and index.is_unique):
        raise ValueError(
            f"The {size} days are not in order, or a day occurs twice. Needed: increasing days. Type "
            "ds.sortby('time').drop_duplicates('time')."
        )
    chosen: dict[str, np.ndarray] = {}
    for name, wanted in (("test", test), ("validation", validation)):
        if isinstance(wanted, float):
            count = round(wanted * size)
            chosen[name] = np.arange(max(last - count, 0), last)
            last -= count
        else:
            chosen[name] = _select(time, wanted or (), name)
    chosen["train"] = (
        np.setdiff1d(np.arange(size), np.union1d(chosen["test"], chosen["validation"]))
        if train is None
        else _select(time, train, "train")
    )
    for one, other in (("validation", "test"), ("train", "validation"), ("train", "test")):
        overlap = np.intersect1d(chosen[one], chosen[other])
        if overlap.size:
            raise ValueError(
                f"The {one} and {other} days have {overlap.size} days in common, first "
                f"{str(time.values[overlap[0]])[:10]}. Needed: no day in both, or the errors reported would be too "
                f"small. Take these days out of {one} or {other}."
            )
    if not chosen["train"].size:
        raise ValueError(
            f"No day is left for training: of {size} days, {chosen['validation'].size} are for validation and "
            f"{chosen['test'].size} for test. Needed: at least one. Type smaller validation=... and test=...."
        )
    return Split(chosen["train"], chosen["validation"], chosen["test"])


def within(time: xr.DataArray, period: str) -> np.ndarray:
    """Positions along ``time`` of the days of a period: ``"2004"``, ``"2004-07"`` or ``"2004-06-01/2004-08-31"``."""
    first, _, end = period.partition("/")
    positions = xr.DataArray(np.arange(time.size), {"time": time.values}, ("time",))
    return positions.sel(time=slice(first, end or first)).values


def _select(time: xr.DataArray, wanted: Sequence[int | str], name: str) -> np.ndarray:
    found = [np.empty(0, int)]
    for item in wanted:
        if isinstance(item, str):
            try:
                part = within(time, item)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{name} has {item!r}, which is not a date ({error}). Needed: a year as a number, '2004-07', "
                    "'2004-07-15' or '2004-06-01/2004-08-31'."
                ) from error
        else:
            part = np.flatnonzero(time.dt.year.values == int(item))
        if not part.size:
            raise ValueError(
                f"{name} has {item!r}, but there is no such day: the levels go from {str(time.values[0])[:10]} to "
                f"{str(time.values[-1])[:10]}."
            )
        found.append(part)
    return np.unique(np.concatenate(found))
