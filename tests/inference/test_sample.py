"""Members drawn from a distribution: each cell's own distribution, coherent in space, the same however it is cut up."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xdeepsd import chance_above, distribution, expectation, quantile, sample
from xdeepsd.inference.sample import smooth_noise

HEAD = {"channels": (6, 4), "kernels": (5, 1, 3), "head": "bernoulli_gamma"}


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


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (0.5, 0.037), (0.7, 0.253)])
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


# --- coarse means kept ------------------------------------------------------------------------------------------------


def kept(factor=3):
    """As if made with means kept over blocks; one whole block is missing on a day, and a cell is outside the mask."""
    ds = spread_out()
    for name in ds:
        ds[name][1, :factor, :factor] = np.nan
        ds[name][:, 7, 9] = np.nan
    return ds.assign_attrs(coarse_cells=[factor, float(ds["lat"].min()), float(ds["lon"].min())])


def block_means(field, factor):
    weights = np.cos(np.deg2rad(field["lat"])) * field.notnull()
    sums = [(part).coarsen(lat=factor, lon=factor).sum() for part in (weights * field.fillna(0), weights)]
    return (sums[0] / sums[1]).transpose(..., "time", "lat", "lon")


def test_means_are_kept_in_every_member():
    ds = kept()
    members = sample(ds, 5).astype(float)
    expected = block_means(expectation(ds).astype(float), 3)
    for member in members:
        np.testing.assert_allclose(block_means(member, 3), expected, rtol=1e-6)
    free = sample(ds.drop_attrs(deep=False), 5)
    np.testing.assert_array_equal(np.isnan(members), np.isnan(free))
    dry = (free.fillna(0) == 0).values
    assert (members.values[dry & (block_means(free, 3) > 0).values.repeat(3, 2).repeat(3, 3)] == 0).sum() > 100


@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 3, "lat": 6, "lon": 3}, {"lat": (3, 9)}])
def test_kept_whatever_the_chunks_or_the_part(chunks, no_compute):
    ds = kept()
    whole = sample(ds, 2)
    with no_compute():
        lazy = sample(ds.chunk(chunks), 2)
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), whole)
    part = {"lat": slice(3, 9), "lon": slice(6, 15), "time": slice(1, 3)}
    xr.testing.assert_identical(sample(ds.isel(part), 2), whole.isel(part))
    turned = sample(ds.isel(lat=slice(None, None, -1)), 2).isel(lat=slice(None, None, -1))
    np.testing.assert_allclose(turned, whole, rtol=1e-6)


def test_cut_coarse_cells_are_refused():
    ds = kept()
    for part in ({"lat": slice(1, 10)}, {"lon": slice(0, 14)}, {"lon": slice(2, 14)}):
        with pytest.raises(ValueError, match="some would be cut"):
            sample(ds.isel(part), 1)
    with pytest.raises(ValueError, match=r"the chunks along lat are \(5, 5, 2\). Needed: multiples of 3"):
        sample(ds.chunk(lat=5), 1)


def test_members_of_a_model_keep_the_coarse_means():
    """From the network to the members, each of which has the mean of the coarse input."""
    model = make_stack(1, gain=1.0, **HEAD, conserve="multiplicative")
    coarse = make_coarse()
    fine = make_static(coarse, 2)["elevation"]
    given = distribution(coarse, model, fine)
    assert given.attrs["coarse_cells"] == [2, float(fine["lat"].min()), float(fine["lon"].min())]
    for member in sample(given, 3):
        np.testing.assert_allclose(block_means(member.astype(float), 2), coarse, rtol=1e-5, atol=1e-6)
    assert "coarse_cells" not in distribution(coarse, make_stack(1, gain=1.0, **HEAD), fine).attrs


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
