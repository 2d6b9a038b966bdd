"""An independent coarse product as the coarsest level: `make_levels(coarse=...)`, `build_levels(coarse=...)`."""

import logging

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdeepsd
from xdeepsd.levels import disk
from xdeepsd.levels.coarse import product_of, with_coarse

DAYS = 12


def observed(days=DAYS, nlat=8, nlon=12, seed=0):
    """Half-degree rain, latitude descending, with an ocean in the north-west."""
    values = np.random.default_rng(seed).gamma(0.3, 8.0, (days, nlat, nlon)).astype(np.float32)
    values[:, :2, :4] = np.nan
    coords = {
        "time": ("time", xr.date_range("2000-01-01", periods=days), {"standard_name": "time"}),
        "lat": 44.75 - 0.5 * np.arange(nlat),
        "lon": -9.75 + 0.5 * np.arange(nlon),
    }
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="rr", attrs={"units": "mm day-1"})


def reanalysis(days=DAYS, start="2000-01-01", seed=1, west=-11.0):
    """Rain of another grid, latitude ascending, in kg m-2 s-1, with round-off below 0."""
    lat, lon = np.array([40.2, 42.1, 44.0, 45.9]), west + 1.9 * np.arange(5)
    rate = np.random.default_rng(seed).gamma(0.4, 6.0, (days, lat.size, lon.size)) / 86400
    rate[:, 1, 2] = -1e-10
    coords = {"time": xr.date_range(start, periods=days), "latitude": lat, "longitude": lon}
    attrs = {"units": "kg m-2 s-1", "standard_name": "precipitation_flux"}
    da = xr.DataArray(rate.astype(np.float32), coords, ("time", "latitude", "longitude"), name="pr", attrs=attrs)
    return xr.Dataset({"pr": da}, attrs={"title": "a reanalysis"})


def by_hand(ds, level):
    """Overlap means in float64, cell by cell: edges half-way between centres, areas from sin(latitude)."""

    def edges(centres):
        middle = (centres[:-1] + centres[1:]) / 2
        return np.sort(np.r_[2 * centres[0] - middle[0], middle, 2 * centres[-1] - middle[-1]])

    rain = np.maximum(ds["pr"].values.astype(np.float64), 0) * 86400
    lat, lon = edges(ds["latitude"].values), edges(ds["longitude"].values)
    out = np.full(level["precipitation"].shape, np.nan)
    for i, y in enumerate(level["lat"].values):
        for j, x in enumerate(level["lon"].values):
            below = above = 0.0
            for m in range(lat.size - 1):
                south, north = np.clip([lat[m], lat[m + 1]], y - 1, y + 1)
                for n in range(lon.size - 1):
                    west, east = np.clip([lon[n], lon[n + 1]], x - 1, x + 1)
                    area = (np.sin(np.deg2rad(north)) - np.sin(np.deg2rad(south))) * (east - west)
                    above, below = above + area * rain[:, m, n], below + area
            if below > 0:
                out[:, i, j] = above / below
    return out


def test_the_product_is_the_coarsest_level():
    ds, da = reanalysis(), observed()
    levels, alone = xdeepsd.make_levels(da, factors=(2, 2), coarse=ds), xdeepsd.make_levels(da, factors=(2, 2))
    np.testing.assert_allclose(levels[0]["precipitation"], by_hand(ds, levels[0]), rtol=1e-5, atol=1e-6)
    assert float(levels[0]["precipitation"].min()) >= 0
    assert levels[0]["precipitation"].dtype == np.float32
    assert levels[0]["precipitation"].attrs["units"] == "mm day-1"
    assert [product_of(level) for level in levels] == ["a reanalysis", None, None]
    for level, same in zip(levels, alone, strict=True):
        assert list(level.data_vars) == list(same.data_vars)
        xr.testing.assert_identical(level.drop_vars("precipitation"), same.drop_vars("precipitation"))
    for level, same in zip(levels[1:], alone[1:], strict=True):
        xr.testing.assert_identical(level, same)
    again = xdeepsd.regrid(ds, levels[0])["pr"] * 86400  # what a user types before downscale
    np.testing.assert_allclose(again, levels[0]["precipitation"], rtol=1e-5, atol=1e-4)


def test_a_first_factor_of_one():
    levels = xdeepsd.make_levels(observed(), factors=(1, 2, 2), coarse=reanalysis())
    assert [(level.sizes["lat"], level.sizes["lon"]) for level in levels] == [(2, 3), (2, 3), (4, 6), (8, 12)]
    two = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=reanalysis())
    xr.testing.assert_equal(levels[0], two[0])
    xr.testing.assert_equal(levels[1], xdeepsd.make_levels(observed(), factors=(2, 2))[0])
    assert levels[1].attrs["factors"] == [1, 2, 2]
    for factors, coarse in (((1, 2), None), ((2, 1), reanalysis()), ((1, 1), reanalysis()), ((0,), reanalysis())):
        with pytest.raises(ValueError, match="whole numbers of 2 or more"):
            xdeepsd.make_levels(observed(), factors=factors, coarse=coarse)


def test_days_are_matched_by_date(caplog):
    caplog.set_level(logging.INFO, "xdeepsd")
    ds = reanalysis(20, "1999-12-28")
    noon = ds.assign_coords(time=ds["time"] + np.timedelta64(12, "h")).isel(time=np.r_[:8, 10:20])
    levels = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=noon)
    days = np.delete(observed()["time"].values, [4, 5])
    assert all(np.array_equal(level["time"].values, days) for level in levels)
    wanted = by_hand(ds.sel(time=days), levels[0])
    np.testing.assert_allclose(levels[0]["precipitation"], wanted, rtol=1e-5, atol=1e-6)
    xr.testing.assert_equal(levels[-1], xdeepsd.make_levels(observed().sel(time=days), factors=(2, 2))[-1])
    assert "2 observed days are left out, the coarse product lacks them: 2000-01-05..2000-01-06" in caplog.text
    assert "8 days of the coarse product that were not observed are left out: 1999-12-28..1999-12-31" in caplog.text


@given(ours=st.sets(st.integers(0, 11), min_size=1), theirs=st.sets(st.integers(0, 11), min_size=1))
@settings(max_examples=20, deadline=None)
def test_any_days(ours, theirs):
    """Each day of the coarsest level is that day of the product, whatever days the two have."""
    da, ds = observed().isel(time=sorted(ours)), reanalysis().isel(time=sorted(theirs))
    if not ours & theirs:
        with pytest.raises(ValueError, match="no day is in both"):
            xdeepsd.make_levels(da, factors=(2, 2), coarse=ds)
        return
    levels = xdeepsd.make_levels(da, factors=(2, 2), coarse=ds)
    common = sorted(ours & theirs)
    assert np.array_equal(levels[0]["time"], observed()["time"][common])
    whole = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=reanalysis())
    for level, every in zip(levels, whole, strict=True):
        xr.testing.assert_equal(level["precipitation"], every["precipitation"].isel(time=common))


def test_a_coarsest_level_of_one_cell():
    da = observed(nlon=4)
    levels = xdeepsd.make_levels(da, factors=(2, 4), coarse=reanalysis(), edges="pad")
    assert levels[0].sizes["lat"] == levels[0].sizes["lon"] == 1
    assert bool(levels[0]["precipitation"].notnull().all())


def without_units():
    ds = reanalysis()
    del ds["pr"].attrs["units"]
    return ds


def cftime_days():
    return reanalysis().convert_calendar("noleap", use_cftime=True)


def six_hourly():
    return reanalysis().resample(time="6h").ffill()


BAD = {
    "other days": (lambda: reanalysis(start="2010-01-01"), "12 from 2010-01-01 to 2010-01-12.*no day is in both"),
    "other calendar": (cftime_days, r"calendar 'noleap'.*convert_calendar\('standard'"),
    "elsewhere": (lambda: reanalysis(west=60.0), "does not cover the fine grid: lon -10 to -4 are missing"),
    "too far east": (lambda: reanalysis(west=-8.0), r"does not cover the fine grid: lon -10 to -8\.95 are missing"),
    "too small": (lambda: reanalysis().isel(latitude=slice(1, None)), r"lat 41 to 41\.15 are missing"),
    "no units": (without_units, "The coarse product: The precipitation has no units"),
    "no time": (lambda: reanalysis().isel(time=0), "The coarse product: it has the dims"),
    "members": (lambda: reanalysis().expand_dims(member=2), "The coarse product: it has the dims"),
    "several times a day": (six_hourly, "The coarse product: The day 2000-01-01 occurs twice with different data"),
    "another variable": (
        lambda: reanalysis()["pr"].rename("tas").assign_attrs(standard_name="air_temperature").to_dataset(),
        "The coarse product: No precipitation among the variables",
    ),
    "below zero": (lambda: reanalysis() * 0 - 1e-3, "has values down to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_products_are_refused(case, tmp_path):
    make, text = BAD[case]
    ds = make()
    if case == "several times a day":
        ds["pr"] = ds["pr"] * xr.DataArray(np.linspace(1, 2, ds.sizes["time"]).astype("float32"), dims="time")
    if case == "below zero":
        ds["pr"].attrs = reanalysis()["pr"].attrs
    with pytest.raises(ValueError, match=text):
        xdeepsd.make_levels(observed(), factors=(2, 2), coarse=ds)
    if case != "below zero":  # found while it is read
        with pytest.raises(ValueError, match=text):
            xdeepsd.build_levels(observed(), factors=(2, 2), path=tmp_path / "l.zarr", coarse=ds)
        assert not (tmp_path / "l.zarr").exists()


def test_a_finer_product_is_averaged(caplog):
    """No information is made up: the means are those of the product, and the log says that detail is lost."""
    fine = observed(seed=3).fillna(0.0)
    levels = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=fine)
    np.testing.assert_allclose(levels[0]["precipitation"], xdeepsd.coarsen(fine, 4), rtol=1e-5)
    assert "has cells of 0.5 degrees, the coarsest level 2: it is averaged" in caplog.text
    caplog.clear()
    xdeepsd.make_levels(observed(), factors=(2, 2), coarse=reanalysis())
    assert not caplog.text


def test_a_global_product_of_another_convention():
    lon = np.arange(0, 360, 2.5)
    wide = xr.DataArray(
        np.random.default_rng(0).random((DAYS, 8, lon.size)).astype("float32"),
        {"time": xr.date_range("2000-01-01", periods=DAYS), "lat": 50 - 2.0 * np.arange(8), "lon": lon},
        ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"},
    )  # fmt: skip
    levels = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=wide)
    east = wide.assign_coords(lon=(lon + 180) % 360 - 180).sortby("lon").sel(lon=slice(-20, 10))
    xr.testing.assert_allclose(levels[0], xdeepsd.make_levels(observed(), factors=(2, 2), coarse=east)[0])


def test_a_curvilinear_product():
    pytest.importorskip("spherely")
    ds = reanalysis()
    lat, lon = np.meshgrid(ds["latitude"], ds["longitude"], indexing="ij")
    coords = {"time": ds["time"], "lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    turned = xr.DataArray(ds["pr"].values, coords, ("time", "y", "x"), name="pr", attrs=ds["pr"].attrs)
    flat = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=ds)[0]
    level = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=turned)[0]
    np.testing.assert_allclose(level["precipitation"], flat["precipitation"], atol=0.2)  # great circles, not parallels
    with pytest.raises(ValueError, match="cells of the coarsest level take nothing from it"):
        xdeepsd.make_levels(observed(), factors=(2, 2), coarse=turned.isel(x=slice(0, 3)))


def test_building_computes_nothing(no_compute, tmp_path):
    lazy, da = reanalysis().chunk(time=5), observed().chunk(time=5)
    land = observed().notnull().any("time")
    with no_compute():
        levels = xdeepsd.make_levels(da, factors=(1, 2, 2), coarse=lazy, mask=land)
    assert levels[0]["precipitation"].chunks[0] == (5, 5, 2)
    xr.testing.assert_equal(
        levels[0].compute(), xdeepsd.make_levels(observed(), factors=(1, 2, 2), coarse=reanalysis(), mask=land)[0]
    )


@pytest.mark.parametrize("factors", [(2, 2), (1, 2)])
def test_the_store_is_the_levels(tmp_path, factors):
    levels = xdeepsd.make_levels(observed(), factors=factors, coarse=reanalysis(), climatology=slice("2000", "2000"))
    out = xdeepsd.build_levels(
        observed(), factors=factors, path=tmp_path / "l.zarr", coarse=reanalysis(), chunk_mb=0.002,
        climatology=slice("2000", "2000"),
    )  # fmt: skip
    for one, other in zip(out, levels, strict=True):
        assert product_of(one) == product_of(other)
        assert set(one.data_vars) == set(other.data_vars)
        xr.testing.assert_allclose(one.compute(), other.compute(), rtol=1e-6)


def test_interrupted_resumed_and_appended(tmp_path, monkeypatch):
    path, write = tmp_path / "l.zarr", disk.write_days
    given = {"factors": (2, 2), "path": path, "chunk_mb": 0.0012}  # three days in a chunk

    def fails(store, days, *arrays):
        if days[0] >= 6:
            raise OSError("disk full")
        return write(store, days, *arrays)

    monkeypatch.setattr(disk, "write_days", fails)
    with pytest.raises(OSError, match="disk full"), dask.config.set(num_workers=1):
        xdeepsd.build_levels(observed(8), coarse=reanalysis(8), **given)
    assert xdeepsd.open_levels(path)[0].sizes["time"] == 6
    written = []
    monkeypatch.setattr(disk, "write_days", lambda *a: written.append(a[1][0]) or write(*a))
    xdeepsd.build_levels(observed(8), coarse=reanalysis(8), **given)
    assert min(written) == 6
    written.clear()
    out = xdeepsd.build_levels(observed(), coarse=reanalysis(), **given)  # four more days
    assert min(written) == 8
    wanted = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=reanalysis())
    assert [product_of(level) for level in out] == ["a reanalysis", None, None]
    for one, other in zip(out, wanted, strict=True):
        np.testing.assert_allclose(one["precipitation"], other["precipitation"], rtol=1e-6)


def test_another_product_in_the_store_is_refused(tmp_path):
    given = {"factors": (2, 2), "path": tmp_path / "l.zarr"}
    xdeepsd.build_levels(observed(), coarse=reanalysis(), **given)
    with pytest.raises(ValueError, match=r"coarse was '4 x 5 cells.*', is None"):
        xdeepsd.build_levels(observed(), **given)
    with pytest.raises(ValueError, match="coarse was"):
        xdeepsd.build_levels(observed(), coarse=reanalysis(west=-12.0), **given)
    with pytest.raises(ValueError, match=r"12 days are already in .* with different data"):
        xdeepsd.build_levels(observed(), coarse=reanalysis(seed=2), **given)
    xdeepsd.build_levels(observed(), factors=(2, 2), path=tmp_path / "alone.zarr")
    with pytest.raises(ValueError, match="coarse was None, is '4 x 5 cells"):
        xdeepsd.build_levels(observed(), factors=(2, 2), path=tmp_path / "alone.zarr", coarse=reanalysis())


def test_days_that_the_product_lacks(tmp_path):
    given = {"factors": (2, 2), "path": tmp_path / "l.zarr", "coarse": reanalysis().isel(time=np.r_[:4, 6:12])}
    with pytest.raises(ValueError, match=r"2 days are missing between .*: 2000-01-05\.\.2000-01-06"):
        xdeepsd.build_levels(observed(), **given)
    assert xdeepsd.build_levels(observed(), allow_missing=True, **given)[0].sizes["time"] == 10
    empty = reanalysis()
    empty["pr"][3] = np.nan
    with pytest.raises(ValueError, match="1 days have no values at all: 2000-01-04"):
        xdeepsd.build_levels(observed(), factors=(2, 2), path=tmp_path / "gap.zarr", coarse=empty)


def test_the_store_is_not_its_own_product(tmp_path):
    path = tmp_path / "l.zarr"
    levels = xdeepsd.build_levels(observed(), factors=(2, 2), path=path)
    with pytest.raises(ValueError, match="The precipitation is read from"):
        xdeepsd.build_levels(observed(), factors=(2, 2), path=path, coarse=levels[1])


def test_levels_that_exist_take_a_product(tmp_path):
    path = tmp_path / "l.zarr"
    xdeepsd.build_levels(observed(), factors=(2, 2), path=path)
    some = reanalysis().isel(time=slice(2, None))
    out = with_coarse(xdeepsd.open_levels(path), some)
    wanted = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=some)
    for one, other in zip(out, wanted, strict=True):
        np.testing.assert_allclose(one["precipitation"], other["precipitation"], rtol=1e-6)
        assert np.array_equal(one["time"], other["time"])
    with pytest.raises(ValueError, match=r"with a coarse product already \(a reanalysis\)"):
        with_coarse(out, some)


def test_what_the_product_is_called(tmp_path):
    def name(coarse):
        return product_of(xdeepsd.make_levels(observed(), factors=(2, 2), coarse=coarse)[0])

    ds = reanalysis()
    assert name(ds) == "a reanalysis"
    assert name(ds["pr"]) == "pr"
    ds.drop_attrs(deep=False).to_netcdf(tmp_path / "ncep.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "ncep.nc") as file:
        assert name(file) == "pr of ncep.nc"
    two = ds.assign(tp=ds["pr"] * 2)
    with pytest.raises(ValueError, match="The coarse product: Several candidates"):
        name(two)
    levels = xdeepsd.make_levels(observed(), factors=(2, 2), coarse=two, coarse_variable="pr")
    assert product_of(levels[0]) == "a reanalysis"
