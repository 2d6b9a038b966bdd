"""What period a value stands for, and hours put together to days."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xdeepsd.grids.days import period, to_days


def series(freq="3h", periods=48, start="2001-02-27", calendar="standard", chunks=None, **attrs):
    """A map of two by three cells with random rain, and its time."""
    time = xr.date_range(start, periods=periods, freq=freq, calendar=calendar, use_cftime=calendar != "standard")
    rng = np.random.default_rng(3)
    ds = xr.Dataset(
        {"pr": (("time", "lat", "lon"), rng.gamma(0.3, 2, (periods, 2, 3)).astype("f4"), {"units": "mm"} | attrs)},
        {"time": time, "lat": [1.0, 2], "lon": [3.0, 4, 5]},
    )
    return ds if chunks is None else ds.chunk(time=chunks)


def with_bounds(ds, before="0h", after="3h", name="time_bnds"):
    """Each step from ``before`` its stamp to ``after`` it."""
    edges = [ds["time"].values + pd.Timedelta(offset).to_timedelta64() for offset in (before, after)]
    ds = ds.assign({name: (("time", "bnds"), np.stack(edges, axis=1))})
    ds["time"].attrs["bounds"] = name
    return ds


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian"])
@pytest.mark.parametrize("chunks", [None, 5, 48])
def test_days_are_those_of_resample(calendar, chunks):
    ds = series(calendar=calendar, chunks=chunks)
    for amount in (True, False):
        days, edges = to_days(ds["pr"], ds, 0.125, amount, 24)
        whole = series(calendar=calendar)["pr"].resample(time="1D")
        wanted = whole.sum() if amount else whole.mean()
        np.testing.assert_allclose(days, wanted, rtol=1e-5)
        np.testing.assert_array_equal(days["time"], wanted["time"])
        np.testing.assert_array_equal(edges[:, 0], wanted["time"])
        np.testing.assert_array_equal(edges[1:, 0], edges[:-1, 1])
        assert type(days["time"].values[0]) is type(wanted["time"].values[0])
        assert days.dtype == np.float32
        assert days.dims == ("time", "lat", "lon")


@given(st.integers(1, 24), st.sampled_from([1, 2, 3, 4, 6, 8, 12]), st.integers(49, 90), st.integers(1, 40))
def test_any_boundary_against_a_sum_by_hand(day_ends, hours, periods, chunk):
    if day_ends % hours:
        day_ends = day_ends // hours * hours or 24
    ds = series(f"{hours}h", periods)
    values, stamps = ds["pr"].values.astype(float), ds["time"].values
    days, edges = to_days(ds["pr"].chunk(time=chunk), ds, hours / 24, True, day_ends)
    first = np.datetime64("2001-02-27", "D")
    wanted = {}
    for day in range(periods * hours // 24 + 2):
        end = first + np.timedelta64(day, "D") + np.timedelta64(day_ends, "h")
        inside = (stamps >= end - np.timedelta64(24, "h")) & (stamps < end)
        if inside.sum() == 24 // hours:
            wanted[first + day] = values[inside].sum(axis=0)
    np.testing.assert_array_equal(days["time"].values.astype("M8[D]"), list(wanted))
    np.testing.assert_allclose(days, list(wanted.values()), rtol=1e-5)
    assert (edges[:, 1] - edges[:, 0] == np.timedelta64(24, "h")).all()


def test_no_data_is_read(no_compute):
    ds = series(chunks=7)
    with no_compute():
        days, _ = to_days(ds["pr"], ds, 0.125, True, 12)
    assert days.chunks is not None
    assert days.data.name == to_days(ds["pr"], ds, 0.125, True, 12)[0].data.name, "a store could not be resumed"


def test_a_missing_step_makes_the_day_missing(caplog):
    ds = series()
    gap = ds.isel(time=np.delete(np.arange(48), 12))
    days, _ = to_days(gap["pr"], gap, 0.125, True, 24)
    np.testing.assert_array_equal(days.isnull().all(("lat", "lon")), [False, True, False, False, False, False])
    assert "1 steps of 'pr' are missing" in caplog.text
    ds["pr"][12, 0, 0] = np.nan
    days, _ = to_days(ds["pr"], ds, 0.125, True, 24)
    assert days.isnull().sum() == 1
    season = series(periods=48).isel(time=[*range(16), *range(32, 48)])  # a season's gap makes no days
    days, _ = to_days(season["pr"], season, 0.125, True, 24)
    assert days.sizes["time"] == 4
    assert days.notnull().all()


def test_days_cut_at_either_end_are_left_out():
    ds = series().isel(time=slice(3, 45))
    days, _ = to_days(ds["pr"], ds, 0.125, True, 24)
    assert days["time"].dt.day.values.tolist() == [28, 1, 2, 3]


def test_stamps_at_the_end_the_middle_and_the_beginning():
    """ERA5 stamps the end of an hour (its bounds say so), CMIP the middle."""
    begin = series()
    wanted = to_days(begin["pr"], begin, 0.125, True, 24)[0].values
    end = begin.assign_coords(time=begin["time"].values + np.timedelta64(3, "h"))
    end = with_bounds(end, before="-3h", after="0h")
    middle = begin.assign_coords(time=begin["time"].values + np.timedelta64(90, "m"))
    rounded = with_bounds(begin)  # off by some seconds, as float days are
    rounded["time_bnds"] = rounded["time_bnds"] + np.timedelta64(7, "s")
    for ds in (end, middle, with_bounds(begin), rounded):
        days, _ = to_days(ds["pr"], ds, 0.125, True, 24)
        np.testing.assert_array_equal(days, wanted)


def test_what_does_not_make_days_is_refused():
    ds = series()
    with pytest.raises(
        ValueError, match=r"ends at 10 UTC does not consist of whole steps.*begin at 0, 3, 6.*day_ends=0"
    ):
        to_days(ds["pr"], ds, 0.125, True, 10)
    with pytest.raises(ValueError, match="does not consist of whole steps"):
        to_days(series("5h")["pr"], ds, 5 / 24, True, 0)
    with pytest.raises(ValueError, match=r"No day of 'pr' is complete: 4 steps of 3 h"):
        to_days(ds["pr"][:4], ds, 0.125, True, 24)
    twice = ds.isel(time=[0, 1, 1, 2])
    with pytest.raises(ValueError, match=r"out of order.*sortby\('time'\).drop_duplicates\('time'\)"):
        to_days(twice["pr"], twice, 0.125, True, 24)


def month(**attrs):
    return series("MS", 5, "2001-01-01").assign_attrs(attrs)


@pytest.mark.parametrize(
    ("ds", "days", "known_by"),
    [
        (series("D"), 1, "steps"),
        (series("3h"), 0.125, "steps"),
        (with_bounds(series("3h")), 0.125, "steps"),
        (series("D").isel(time=slice(0, 40, 7)), 7, "gaps"),  # chosen days
        (with_bounds(series("D", 40), after="24h").isel(time=slice(0, 40, 7)), 1, "bounds"),
        (with_bounds(series("6h"), before="-48h", after="0h"), 2, "bounds"),  # running sums
        (month(), 30.5, "steps"),
        (month(frequency="mon"), 30, "frequency"),
        (month(frequency="day"), 1, "frequency"),  # the first of each month
        (series("YS", 4, "2001-01-01"), 365, "steps"),
        (series(periods=1).assign_attrs(frequency="3hr"), 0.125, "frequency"),
        (series(periods=1).assign_attrs(frequency="subhr"), None, ""),
        (with_bounds(series(periods=1), after="6h"), 0.25, "bounds"),
        (series(periods=1, cell_methods="time: sum (interval: 30 minutes)"), None, ""),
        (series("D").assign_attrs(frequency="3hr"), 1, "steps"),  # summed with cdo, which keeps the attribute
    ],
)
def test_periods(ds, days, known_by):
    found = period(ds["pr"], ds)
    assert found.known_by == known_by
    assert found.days == pytest.approx(days) if days else found.days is None
