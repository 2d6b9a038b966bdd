"""Members drawn from a distribution: each cell's own distribution, coherent in space, the same however it is cut up."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xdeepsd import chance_above, expectation, quantile, sample
from xdeepsd.inference.sample import smooth_noise


def spread_out(days=4, nlat=12, nlon=15, seed=0, lat=0.5):
    """Distributions on a grid of half a degree, with a dry, a certain and a missing cell."""
    rng = np.random.default_rng(seed)
    shape = (days, nlat, nlon)
    chance, a, b = rng.uniform(0.1, 0.9, shape), rng.uniform(0.3, 6, shape), rng.uniform(0.5, 12, shape)
    chance[:, 0, 0] = b[:, 0, 0] = 0.0
    chance[:, 0, 1] = 1.0
    for part in (chance, a, b):
        part[1, 2, 3] = np.nan
    dims = ("time", "lat", "lon")
    fields = {
        name: (dims, part.astype(np.float32))
        for name, part in zip(("wet_chance", "shape", "scale"), (chance, a, b), strict=True)
    }
    coords = {
        "time": xr.date_range("2001-01-01", periods=days),
        "lat": ("lat", 45.25 - lat * np.arange(nlat), {"units": "degrees_north"}),
        "lon": ("lon", -9.75 + 0.5 * np.arange(nlon), {"units": "degrees_east"}),
    }
    ds = xr.Dataset(fields, coords, {"variable": "rr"})
    ds["scale"].attrs["units"] = "mm day-1"
    return ds


def test_over_members_each_cell_has_its_distribution():
    ds = spread_out(days=2, nlat=4, nlon=5)
    drawn = sample(ds, 3000, length=2.0)
    assert drawn.dims == ("member", "time", "lat", "lon")
    assert (drawn.name, drawn.attrs["units"], drawn.dtype) == ("rr", "mm day-1", np.float32)
    values, chance = drawn.values.astype(float), ds["wet_chance"].values
    assert (np.isnan(values) == np.isnan(chance)).all()
    assert (values[:, :, 0, 0] == 0).all()
    assert (values[:, :, 0, 1] > 0).all()
    error = 5 * np.sqrt(0.25 / 3000)
    np.testing.assert_allclose((values > 0).mean(0), np.where(np.isnan(chance), 0, chance), atol=error)
    for q in (0.5, 0.9, 0.99):
        limit = quantile(ds, q).values
        above = chance_above(ds, quantile(ds, q)).fillna(0)
        np.testing.assert_allclose((values > limit).mean(0), above, atol=error)
    values[:, 1, 2, 3] = 0.0
    spread = values.std(0) / np.sqrt(3000)
    assert (np.abs(values.mean(0) - expectation(ds).fillna(0)) <= 5.5 * spread + 1e-6).all()
    a, b = (ds[name].values.astype(float)[0, 3, 4] for name in ("shape", "scale"))
    wet = values[:, 0, 3, 4][values[:, 0, 3, 4] > 0]
    assert stats.kstest(wet, stats.gamma(a, scale=b).cdf).pvalue > 1e-3


@pytest.mark.parametrize("length", [1.0, 1.5, 3.0])
def test_the_field_has_the_correlation_asked_for(length):
    field = smooth_noise(0, 0, np.arange(30), np.arange(80), np.arange(80), length)
    assert abs(field.mean()) < 0.05
    assert field.std() == pytest.approx(1, abs=0.03)
    for lag in (1, 2, 4):
        expected = np.exp(-(lag**2) / (2 * length**2))
        for one, other in ((field[:, lag:], field[:, :-lag]), (field[..., lag:], field[..., :-lag])):
            assert (one * other).mean() == pytest.approx(expected, abs=0.04)
    assert abs((field[1:] * field[:-1]).mean()) < 0.04, "days are independent"


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (0.7, 0.253)])
def test_short_lengths(length, expected):
    field = smooth_noise(0, 0, np.arange(30), np.arange(80), np.arange(80), length)
    assert (field[:, 1:] * field[:, :-1]).mean() == pytest.approx(expected, abs=0.02)
    assert field.std() == pytest.approx(1, abs=0.02)


@settings(max_examples=15)
@given(
    rows=st.tuples(st.integers(0, 9), st.integers(2, 12)), columns=st.tuples(st.integers(0, 12), st.integers(2, 15)),
    days=st.sets(st.integers(0, 3), min_size=1), length=st.sampled_from([0, 0.5, 1.0, 2.5]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_part_is_the_same(rows, columns, days, length, seed):
    ds = spread_out()
    lat, lon = slice(rows[0], sum(rows)), slice(columns[0], sum(columns))
    whole = sample(ds, 2, seed=seed, length=length)
    part = ds.isel(time=sorted(days), lat=lat, lon=lon)
    xr.testing.assert_identical(
        sample(part, 3, seed=seed, length=length).isel(member=slice(0, 2)),
        whole.isel(time=sorted(days), lat=lat, lon=lon),
    )
    backwards = sample(part.isel(lat=slice(None, None, -1)), 1, seed=seed, length=length)
    xr.testing.assert_equal(backwards[0].isel(lat=slice(None, None, -1)), sample(part, 1, seed=seed, length=length)[0])


@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 3, "lat": 5, "lon": 4}, {"lat": 1}, {}])
def test_chunks_change_nothing(chunks, no_compute):
    ds = spread_out()
    with no_compute():
        lazy = sample(ds.chunk(chunks), 3, length=1.5)
    assert lazy.chunks[0] == (1, 1, 1)
    assert lazy.chunks[1:] == ds.chunk(chunks)["scale"].chunks
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), sample(ds, 3, length=1.5))


def test_members_seeds_and_days_differ():
    ds = spread_out()
    one, other = sample(ds, 2), sample(ds, 2, seed=1)
    assert not one[0].equals(one[1])
    assert not one.equals(other)
    same = xr.concat([ds.isel(time=[0])] * 4, "time").assign_coords(time=ds["time"])
    days = sample(same, 1)[0]
    assert not days[0].drop_vars("time").equals(days[1].drop_vars("time"))


def test_names_order_and_other_dims():
    ds = spread_out()
    expected = sample(ds, 2)
    turned = ds.rename(lat="latitude", time="day").transpose("lon", "latitude", "day")
    found = sample(turned, 2)
    assert found.dims == ("member", "lon", "latitude", "day")
    np.testing.assert_array_equal(found.transpose("member", "day", "latitude", "lon"), expected)
    runs = xr.concat([ds, ds], "run")
    np.testing.assert_array_equal(sample(runs, 2).sel(run=1).transpose(*expected.dims), expected)
    day = sample(ds.isel(time=0, drop=True), 2)
    assert day.dims == ("member", "lat", "lon")


def test_refused():
    ds = spread_out()
    for members in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"members is {members}; needed: a whole number of at least 1"):
            sample(ds, members)
    with pytest.raises(ValueError, match="length is -1; needed: a number of fine cells of at least 0"):
        sample(ds, 1, length=-1)
    with pytest.raises(ValueError, match="The distribution has a dim 'member' already"):
        sample(ds.expand_dims("member"), 1)
    with pytest.raises(ValueError, match="Needed: a distribution"):
        sample(ds.drop_vars("scale"), 1)
