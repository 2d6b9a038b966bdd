"""Whole days, never the same one twice."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xdeepsd.levels.splits import split_days


def days(start="2000-01-01", end="2003-12-31", **kwargs):
    return xr.DataArray(xr.date_range(start, end, **kwargs), dims="time")


def test_years_lists_and_fractions():
    time = days()
    split = split_days(time, validation=[2002], test=[2003])
    assert [len(p) for p in split] == [366 + 365, 365, 365]
    split = split_days(time, validation=0.25, test=0.25)
    assert split.test[-1] == time.size - 1
    assert split.validation[-1] + 1 == split.test[0]
    split = split_days(time, train=[2000], validation=["2001-02", "2001-03-05", "2001-06-01/2001-06-10"])
    assert len(split.train) == 366
    assert len(split.validation) == 28 + 1 + 10


def test_other_calendars():
    time = days("2000-01-01", "2001-12-30", calendar="360_day", use_cftime=True)
    split = split_days(time, validation=[2001], test=["2000-02-30"])
    assert [len(p) for p in split] == [359, 360, 1]


@given(st.integers(3, 400), st.floats(0, 0.45), st.floats(0, 0.45))
def test_every_day_once(count, validation, test):
    time = days("2000-01-01", None, periods=count)
    if round(validation * count) + round(test * count) == count:  # of few days rounding may take the last one
        with pytest.raises(ValueError, match="No day is left for training"):
            split_days(time, validation=validation, test=test)
        return
    split = split_days(time, validation=validation, test=test)
    assert sorted(np.concatenate(split).tolist()) == list(range(count))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"train": [2000, 2001], "validation": [2001]},
            r"train and validation days have 365 days in common.*2001-01-01",
        ),
        ({"train": ["2000-05"], "test": ["2000-05-31"]}, "train and test days have 1 days in common.*2000-05-31"),
        ({"validation": [2001], "test": ["2001-03"]}, "validation and test days have 31 days in common"),
        ({"validation": [1999]}, "validation has 1999, but there is no such day: .* from 2000-01-01 to 2003-12-31"),
        ({"test": ["soon"]}, "test has 'soon', which is not a date"),
        ({"validation": 0.5, "test": 0.6}, "No day is left for training"),
    ],
)
def test_errors(kwargs, match):
    with pytest.raises(ValueError, match=match):
        split_days(days(), **kwargs)


def test_days_in_order():
    time = days()
    for broken in (time[::-1], xr.concat([time, time[-1:]], "time")):
        with pytest.raises(ValueError, match=r"not in order.*sortby\('time'\).drop_duplicates"):
            split_days(broken)
