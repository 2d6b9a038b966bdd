import errno
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdeepsd
from xdeepsd.grids.blocks import block_mean
from xdeepsd.grids.regrid import coarsen
from xdeepsd.levels import disk as levels_module
from xdeepsd.levels import store as levels_store
from xdeepsd.levels.disk import build_levels, open_levels
from xdeepsd.levels.memory import fit_edges, make_levels
from xdeepsd.stores.whole import alone


def days(n, start="2000-01-01"):
    return np.datetime64(start, "ns") + np.arange(n) * np.timedelta64(1, "D")


def fine(n=10, nlat=16, nlon=24, start="2000-01-01", seed=0, **kwargs):
    """Daily rain with an ocean in the north-west, latitude descending."""
    values = np.random.default_rng(seed).gamma(0.3, 8.0, (n, nlat, nlon)).astype(np.float32)
    values[:, : nlat // 3, : nlon // 3] = np.nan
    coords = {"time": days(n, start), "lat": 45 - np.arange(nlat) / 24, "lon": -120 + np.arange(nlon) / 24}
    units = {"units": "mm" if n > 1 else "mm day-1"}  # a single day does not reveal the period of an amount
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="ppt", attrs=units | kwargs)


def elevation(like, seed=1):
    values = np.random.default_rng(seed).random((like.sizes["lat"], like.sizes["lon"])) * 2000
    return xr.Dataset({"elevation": (("lat", "lon"), values)}, {"lat": like.lat, "lon": like.lon})


def small(da, per_chunk):
    """``chunk_mb`` for ``per_chunk`` days in a chunk."""
    return per_chunk * da[0].size * 4 / 1e6 * 1.01


def assert_same_levels(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert set(one.data_vars) == set(other.data_vars)
        xr.testing.assert_allclose(one.compute(), other.compute(), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# make_levels


@pytest.mark.parametrize("factors", [(2, 2, 2), (2,), (4, 2), (2, 3)])
def test_levels_hold_what_the_conventions_say(factors):
    scale = int(np.prod(factors))
    da = fine(4, 2 * scale, 3 * scale)
    climatology = elevation(da, 2).elevation.rename("climatology").assign_attrs(units="mm day-1")
    levels = make_levels(da, elevation(da).assign(climatology=climatology), factors)
    assert len(levels) == len(factors) + 1
    for k, level in enumerate(levels):
        block = int(np.prod(factors[k:]))
        assert list(level.data_vars) == ["precipitation", "elevation", "climatology", "land_fraction", "mask"]
        assert level.precipitation.dims == ("time", "lat", "lon")
        assert level.elevation.dims == level.mask.dims == ("lat", "lon")
        assert {str(level[n].dtype) for n in level.data_vars if n != "mask"} == {"float32"}
        assert level.mask.dtype == bool
        assert level.precipitation.attrs["units"] == level.climatology.attrs["units"] == "mm day-1"
        assert level.elevation.attrs["units"] == "m"
        want = coarsen(da, block)
        np.testing.assert_allclose(level.precipitation, want, rtol=1e-6)
        np.testing.assert_allclose(level.lat, want.lat)
        observed = np.isfinite(da.values[0])
        np.testing.assert_allclose(level.land_fraction, block_mean(observed, block), rtol=1e-6)
        np.testing.assert_array_equal(level.mask, block_mean(observed, block) > 0)
        np.testing.assert_allclose(level.elevation, block_mean(elevation(da).elevation.values, block), rtol=1e-6)
    assert levels[-1].precipitation.shape == da.shape


def test_each_level_conserves_mass():
    da = fine(3).fillna(0.0)
    for level in make_levels(da):
        area = np.cos(np.deg2rad(level.lat))  # cells of equal height: the mean is exact to second order
        mean = level.precipitation.weighted(area).mean(("lat", "lon"))
        np.testing.assert_allclose(mean, da.weighted(np.cos(np.deg2rad(da.lat))).mean(("lat", "lon")), rtol=2e-6)


def test_names_units_and_longitudes_of_the_user():
    da = fine(2)
    theirs = (da / 86400).assign_attrs(units="kg m-2 s-1").rename(time="day", lat="latitude", lon="longitude")
    theirs = theirs.assign_coords(longitude=theirs.longitude % 360).transpose("latitude", "longitude", "day")
    static = elevation(da).isel(lat=slice(None, None, -1))
    assert_values = zip(make_levels(theirs, static), make_levels(da, elevation(da)), strict=True)
    for theirs_level, ours in assert_values:
        np.testing.assert_allclose(theirs_level.precipitation, ours.precipitation, rtol=1e-5)
        np.testing.assert_array_equal(theirs_level.elevation, ours.elevation)
        np.testing.assert_allclose(theirs_level.lon, ours.lon + 360)


def test_static_fields_may_cover_more():
    da = fine(2)
    wide = elevation(fine(1, 30, 40))
    levels = make_levels(da, wide)
    np.testing.assert_allclose(levels[-1].elevation, wide.elevation[:16, :24], rtol=1e-6)


def test_elevation_is_found():
    da = fine(1)
    want = make_levels(da, elevation(da))[0].elevation
    height = elevation(da).rename(elevation="z")
    xr.testing.assert_identical(make_levels(da, height)[0].elevation, want)
    xr.testing.assert_identical(make_levels(da, height.z)[0].elevation, want)
    height["z"].attrs["standard_name"] = "surface_altitude"
    more = make_levels(da, height.assign(slope=height.z * 0.1))[0]
    xr.testing.assert_identical(more.elevation, want)
    assert "slope" in more


def test_climatology_of_training_years():
    da = fine(800)
    by_slice = make_levels(da, climatology=slice("2000", "2000"))
    mean = da.sel(time="2000").mean("time")
    np.testing.assert_allclose(by_slice[-1].climatology, mean, rtol=1e-5)
    np.testing.assert_allclose(by_slice[0].climatology, block_mean(mean.values, 8), rtol=1e-5)
    given_map = make_levels(da, climatology=mean.assign_attrs(units="inch day-1"))
    np.testing.assert_allclose(given_map[-1].climatology, mean * 25.4, rtol=1e-5)
    assert "climatology" not in make_levels(da)[0]
    with pytest.raises(ValueError, match=r"No day between 1981 and 1990; the data reach from 2000-01-01 to 2002-03-10"):
        make_levels(da, climatology=slice("1981", "1990"))


def test_the_mask():
    da = fine(40)
    da[0] = np.nan  # a day without any observation says nothing about the ocean
    np.testing.assert_array_equal(make_levels(da)[-1].mask, np.isfinite(da[1]))
    given_mask = xr.ones_like(da[0], bool)
    assert make_levels(da, mask=given_mask)[-1].mask.all()
    given_mask[-1, -1] = False
    static = elevation(da).assign(mask=given_mask.drop_vars("time"))
    levels = make_levels(da, static)
    assert not levels[-1].mask[-1, -1]
    assert levels[0].mask.all()
    assert levels[0].land_fraction[-1, -1] == pytest.approx(1 - 1 / 64)


def test_the_mask_is_of_the_first_thirty_days():
    da = fine(40).fillna(1.0)
    da[:29, 3, 5] = np.nan  # first observed on the 30th day
    da[:30, 8, 9] = np.nan  # and on the 31st
    mask = make_levels(da)[-1].mask
    assert mask[3, 5]
    assert not mask[8, 9]
    assert int(mask.sum()) == mask.size - 1


def test_building_computes_nothing(no_compute):
    da = fine(9).chunk(time=2)
    with no_compute():
        lazy = make_levels(da, elevation(da).chunk(lat=5), climatology=slice("2000", "2000"))
    assert_same_levels(lazy, make_levels(fine(9), elevation(da), climatology=slice("2000", "2000")))
    assert all(level.precipitation.chunks[0] == (2, 2, 2, 2, 1) for level in lazy)


@given(nlat=st.integers(8, 30), nlon=st.integers(8, 30), factor=st.sampled_from([2, 4]))
@settings(max_examples=25)
def test_crop_and_pad(nlat, nlon, factor):
    da = fine(2, nlat, nlon).fillna(1.0)
    ds = xr.Dataset({"precipitation": da, "mask": da[0] > -1, "land_fraction": da[0] * 0 + 1})
    cropped, padded = fit_edges(ds, factor, "crop"), fit_edges(ds, factor, "pad")
    for dim, size in (("lat", nlat), ("lon", nlon)):
        assert cropped.sizes[dim] == size // factor * factor
        assert padded.sizes[dim] == -(-size // factor) * factor
        np.testing.assert_allclose(np.diff(padded[dim]), np.diff(da[dim])[0], rtol=1e-6)
    inside = padded.isel(lat=slice(nlat), lon=slice(nlon))
    xr.testing.assert_allclose(inside.drop_vars("time"), ds.drop_vars("time"))
    assert int(padded.mask.sum()) == float(padded.land_fraction.sum()) == nlat * nlon
    assert int(padded.precipitation.notnull().sum()) == 2 * nlat * nlon
    xr.testing.assert_identical(fit_edges(da.chunk(time=1), factor, "pad").compute(), fit_edges(da, factor, "pad"))


def test_edges_are_said_and_refused(caplog):
    da = fine(2, 17, 25)
    with caplog.at_level(logging.INFO, "xdeepsd"):
        assert make_levels(da, edges="pad")[-1].precipitation.shape == (2, 24, 32)
        assert make_levels(da, edges="crop")[-1].precipitation.shape == (2, 16, 24)
    assert "17 x 25 cells is not divisible by 8" in caplog.text
    assert "Padded to 24 x 32" in caplog.text
    assert "Cropped to 16 x 24" in caplog.text
    assert make_levels(da, edges="pad")[0].attrs["edges"] == "pad"
    with pytest.raises(ValueError, match=r"17 x 25 cells is not divisible by 8.*Type edges='crop'"):
        make_levels(da, edges="error")
    with pytest.raises(ValueError, match="edges is 'wrap'"):
        make_levels(da, edges="wrap")
    with pytest.raises(ValueError, match="Cropping would leave nothing"):
        make_levels(fine(1, 5, 25), edges="crop")
    polar = da.assign_coords(lat=89.9 - np.arange(17)[::-1] / 24).isel(lat=slice(None, None, -1))
    with pytest.raises(ValueError, match="beyond the pole"):
        make_levels(polar.isel(lat=slice(None, None, -1)))


def test_bad_input_is_named():
    da = fine(2)
    with pytest.raises(ValueError, match=r"units 'K' are not units of precipitation.*Accepted: mm day-1"):
        make_levels(da.assign_attrs(units="K"))
    with pytest.raises(ValueError, match="has no units"):
        make_levels(da.assign_attrs(units=""))
    with pytest.raises(ValueError, match=r"The factors are \[2, 1\]"):
        make_levels(da, factors=(2, 1))
    with pytest.raises(ValueError, match=r"elevation is on another grid: no cell at lat .*Type xdeepsd\.regrid"):
        make_levels(da, elevation(da).assign_coords(lat=da.lat + 1 / 48))
    with pytest.raises(ValueError, match="elevation has 2 time steps"):
        make_levels(da, elevation(da).elevation.expand_dims(time=da.time))
    with pytest.raises(ValueError, match=r"The precipitation has the dims \('lat', 'lon'\)"):
        make_levels(da[0])
    with pytest.raises(ValueError, match=r"Several candidates for precipitation: \['a', 'b'\].*variable=NAME"):
        make_levels(xr.Dataset({"a": da, "b": da}))
    with pytest.raises(ValueError, match=r"There is no variable='c'. The Dataset has \['a', 'b'\]"):
        make_levels(xr.Dataset({"a": da, "b": da}), variable="c")
    assert len(make_levels(xr.Dataset({"a": da, "b": da}), variable="b")) == 4
    with pytest.raises(ValueError, match="lat is not monotonic"):
        make_levels(da.isel(lat=[0, 2, 1, *range(3, 16)]))
    with pytest.raises(ValueError, match="lat has repeated values"):
        make_levels(da.isel(lat=[0, 0, *range(2, 16)]))
    with pytest.raises(ValueError, match=r"chunked over \['lat'\]"):
        make_levels(da.chunk(lat=4))


# ---------------------------------------------------------------------------------------------------------------------
# build_levels


def test_the_store_is_the_levels(tmp_path):
    da = fine(20, 17, 25)
    seen = []
    out = build_levels(
        da.chunk(time=3), elevation(da), (2, 2, 2), tmp_path / "l.zarr", climatology=slice("2000", "2000"),
        chunk_mb=7 * 24 * 32 * 4e-6, progress=lambda *done: seen.append(done),
    )  # fmt: skip
    want = make_levels(da, elevation(da), climatology=slice("2000", "2000"))
    assert_same_levels(out, want)
    assert [len(level.chunksizes["time"]) for level in out] == [3, 3, 3, 3]
    assert out[-1].chunksizes["lat"] == (24,)
    assert seen[-1] == (20, 20)
    root = zarr.open_group(tmp_path / "l.zarr", mode="r")
    assert root.metadata.consolidated_metadata is not None
    assert root.metadata.zarr_format == 3
    assert root.attrs["factors"] == [2, 2, 2]
    assert root.attrs["edges"] == "pad"
    assert root.attrs["fine_size"] == [17, 25]
    assert root.attrs["size"] == [24, 32]
    assert root.attrs["days_per_chunk"] == 7
    plain = xr.open_zarr(tmp_path / "l.zarr", group="level_3")  # any reader of Zarr
    xr.testing.assert_allclose(plain.compute(), want[-1], rtol=1e-6)


def test_chunks_are_about_64_mb(tmp_path):
    da = fine(40, 200, 400)
    out = build_levels(da, path=tmp_path / "l.zarr", factors=(2,))
    assert zarr.open_group(tmp_path / "l.zarr", mode="r").attrs["days_per_chunk"] == 200
    assert out[-1].chunks["time"] == (40,)


def test_a_second_run_writes_nothing(tmp_path, monkeypatch):
    da = fine(6)
    build_levels(da, elevation(da), path=tmp_path / "l.zarr")

    def forbidden(*args):
        raise AssertionError("written again")

    monkeypatch.setattr(levels_module, "write_days", forbidden)
    assert_same_levels(build_levels(da, elevation(da), path=tmp_path / "l.zarr"), make_levels(da, elevation(da)))


@given(first=st.integers(1, 25), overlap=st.integers(0, 5), per_chunk=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_days_are_appended(tmp_path_factory, first, overlap, per_chunk, seed):
    da = fine(30, 8, 8, seed=seed, units="mm day-1")
    path = tmp_path_factory.mktemp("levels") / "l.zarr"
    arguments = {"factors": (2,), "path": path, "chunk_mb": small(da, per_chunk)}
    years = slice("2000-01-01", "2000-01-20")
    build_levels(da[:first], elevation(da), climatology=years, **arguments)
    out = build_levels(da[max(0, first - overlap) :], **arguments)
    assert_same_levels(out, make_levels(da, elevation(da), (2,), climatology=years))


def test_calendars_are_kept(tmp_path):
    time = xr.date_range("2001-02-27", periods=4, freq="D", calendar="noleap", use_cftime=True)
    da = fine(4).assign_coords(time=time)
    build_levels(da[:2], path=tmp_path / "l.zarr")
    out = build_levels(da[2:], path=tmp_path / "l.zarr")
    assert out[0].indexes["time"].calendar == "noleap"
    assert list(out[0].indexes["time"]) == list(time)


def test_interrupted_while_writing(tmp_path, monkeypatch):
    """After an error in the middle, open_levels shows only the finished days, and the next run does the rest."""
    da = fine(20)
    path = tmp_path / "l.zarr"
    write = levels_module.write_days

    def fails(store, days, *arrays):
        if days[0] >= 8:
            raise OSError("disk full")
        return write(store, days, *arrays)

    monkeypatch.setattr(levels_module, "write_days", fails)
    with pytest.raises(OSError, match="disk full"):
        build_levels(da, elevation(da), path=path, chunk_mb=small(da, 4))
    finished = open_levels(path)
    assert 0 < finished[0].sizes["time"] <= 8
    assert np.isfinite(finished[-1].precipitation[:, -1, -1]).all()
    written = []
    monkeypatch.setattr(levels_module, "write_days", lambda *a: written.append(a[1][0]) or write(*a))
    out = build_levels(da, elevation(da), path=path, chunk_mb=small(da, 4))
    assert_same_levels(out, make_levels(da, elevation(da)))
    assert min(written) == finished[0].sizes["time"]


def test_interrupted_while_created(tmp_path):
    da = fine(3)
    path = tmp_path / "l.zarr"
    build_levels(da, path=path)
    zarr.open_group(path, mode="r+").attrs["ready"] = False
    shutil.rmtree(path / "level_2")
    with pytest.raises(ValueError, match="No store of levels"):
        open_levels(path)
    assert_same_levels(build_levels(da, path=path), make_levels(da))


@pytest.mark.parametrize("name", ["level_0/thesis.txt", "level_0/precipitation/notes", "level_notes", "mine.partial"])
def test_files_of_the_user_among_levels_half_made_stay(tmp_path, name, caplog):
    path = tmp_path / "l.zarr"
    build_levels(fine(3), path=path)
    zarr.open_group(path, mode="r+").attrs["ready"] = False
    (path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds .*{name}.*, which build_levels did not write"):
        build_levels(fine(3), path=path)
    assert (path / name).read_text() == "mine"
    (path / name).unlink()
    (path / name).mkdir()  # an empty folder has a meaning, too
    with pytest.raises(ValueError, match=f"holds .*{name}.*, which build_levels did not write"):
        build_levels(fine(3), path=path)
    (path / name).rmdir()
    with caplog.at_level(logging.INFO):
        build_levels(fine(3), path=path)
    assert f"Creating {path} was interrupted: it is created again." in caplog.text


@pytest.mark.parametrize("name", ["thesis", "level_0/thesis", "level_0/precipitation/mine", "done/c/mine"])
@pytest.mark.parametrize("kind", ["array", "group"])
def test_zarr_of_the_user_among_levels_half_made_stays(tmp_path, name, kind):
    path = tmp_path / "l.zarr"
    build_levels(fine(3), path=path)
    zarr.open_group(path, mode="r+").attrs["ready"] = False
    if kind == "array":
        zarr.save_array(path / name, np.arange(3))
    else:
        xr.Dataset({"mine": ("n", [1.0, 2.0])}).to_zarr(path / name)
    before = contents(path)
    with pytest.raises(ValueError, match=f"holds .*{name}.*, which build_levels did not write"):
        build_levels(fine(3), path=path)
    assert contents(path) == before


@pytest.mark.parametrize("renewed", [[], [1]])
@pytest.mark.parametrize("step", ["resize", "write", "consolidate"])
def test_interrupted_while_grown(tmp_path, monkeypatch, step, renewed):
    """Stopped before any of its changes: readers see the earlier days, and repeating the call completes the ladder."""
    old, owner, name = fine(9, 8, 8), *{
        "resize": (zarr.Array, "resize"), "write": (zarr.Array, "__setitem__"),
        "consolidate": (levels_store, "consolidate"),
    }[step]  # fmt: skip
    new, original = changed(old, renewed), getattr(owner, name)
    arguments = {"factors": (2,), "chunk_mb": small(old, 4), "climatology": slice("2000-01-01", "2000-01-04")}
    for number in itertools.count(1):
        calls, path = itertools.count(1), tmp_path / f"{number}.zarr"
        build_levels(released(old[:5], days=[]), path=path, **arguments)
        if number > 1 and renewed:  # as left by a call that was stopped after it changed the attributes
            zarr.open_group(path, mode="r+").attrs["climatology_days"] = 4
        before = [level.compute() for level in open_levels(path)]

        def stop(*args, counted=calls, number=number, **kwargs):
            if next(counted) == number:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        grown = {"fine": released(new, days=renewed), "path": path, **arguments}
        stopped = False
        with monkeypatch.context() as patch, dask.config.set(scheduler="synchronous"):
            patch.setattr(owner, name, stop)
            try:
                build_levels(**grown)
            except KeyboardInterrupt:
                stopped = True
        for level, earlier, later in zip(open_levels(path), before, make_levels(new, factors=(2,)), strict=True):
            same = [
                np.isclose(level.precipitation, version.precipitation.sel(time=level.time), equal_nan=True).all((1, 2))
                for version in ([earlier, later] if level.sizes["time"] == 5 else [later])
            ]
            assert np.any(same, axis=0).all()
        wanted = make_levels(new, factors=(2,), climatology=arguments["climatology"], mask=np.isfinite(old[0]))
        assert_same_levels(build_levels(**grown), wanted)
        if not stopped:
            break
    assert number > 1


KILLED = """
    import sys, time
    import numpy as np, xarray as xr
    sys.path.insert(0, {here!r})
    from test_levels import fine, elevation, small
    from xdeepsd.levels import disk as levels
    write = levels.write_days
    def slowly(*arguments):
        time.sleep(0.05)
        return write(*arguments)
    levels.write_days = slowly
    da = fine(200, 8, 8)
    print("begin", flush=True)
    levels.build_levels(da, elevation(da), (2,), {path!r}, chunk_mb=small(da, 4))
"""


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path):
    da = fine(200, 8, 8)
    path = tmp_path / "l.zarr"
    code = textwrap.dedent(KILLED).format(here=str(Path(__file__).parent), path=str(path))
    held = 0
    for wait in (0.2, 0.4, 0.8):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if (path / "zarr.json").exists() and zarr.open_group(path, mode="r").attrs.get("ready"):
            levels = open_levels(path)
            assert levels[0].sizes["time"] >= held  # nothing that was done is lost
            held = levels[0].sizes["time"]
            if held:
                xr.testing.assert_allclose(levels[1].precipitation.compute(), da[:held].rename("precipitation"))
    out = build_levels(da, elevation(da), (2,), path, chunk_mb=small(da, 4))
    assert_same_levels(out, make_levels(da, elevation(da), (2,)))


REWRITTEN = """
    import sys, time
    sys.path.insert(0, {here!r})
    from test_levels import changed, fine, released, small
    from xdeepsd.levels import disk as levels
    da = changed(fine(200, 8, 8), range(1, 199), by={by})
    ds = released(da, {number}, days=range(1, 199))
    print("begin", flush=True)
    levels.build_levels(ds, None, (2, 2, 2), {path!r}, chunk_mb=small(da, 4))
"""


@pytest.mark.slow
def test_kill_9_while_days_are_written_again(tmp_path):
    """After each kill every day is of a single release; the next run knows which, and which days are not done."""
    da = fine(200, 8, 8)
    path = tmp_path / "l.zarr"
    build_levels(released(da, days=[]), path=path, chunk_mb=small(da, 4))
    chance = np.random.default_rng()
    versions = [da]
    for number in (2, 3, 4):
        versions.append(changed(da, range(1, 199), by=number))
        code = textwrap.dedent(REWRITTEN).format(
            here=str(Path(__file__).parent), path=str(path), by=number, number=number
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.2, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        levels = open_levels(path)
        assert levels[0].sizes["time"] >= 200 - 4 * 8  # at most the chunks in flight
        assert_days_are_whole(levels, *versions)
    out = build_levels(released(versions[-1], 4, days=range(1, 199)), path=path)
    assert_same_levels(out, make_levels(versions[-1]))


def test_another_store_is_refused(tmp_path):
    da = fine(6)
    path = tmp_path / "l.zarr"
    build_levels(da, elevation(da), path=path, climatology=slice("2000", "2000"))
    cases = [
        (
            {"factors": (2, 2)},
            r"was begun with something else: factors was \[2, 2, 2\], is \[2, 2\]\. Needed: the same",
        ),
        ({"edges": "crop"}, "with something else: edges was 'pad', is 'crop'"),
        ({"fine": da.rename("pr")}, "with something else: variable was 'ppt', is 'pr'"),
        ({"fine": da.isel(lat=slice(8, None))}, "holds another grid: lat of 16 cells"),
        ({"fine": da.assign_coords(lon=da.lon + 1 / 48)}, r"holds another grid: lon of 24 cells from -120\.0"),
        ({"static": elevation(da, 5)}, "holds other values of elevation"),
        ({"static": elevation(da).assign(slope=elevation(da).elevation)}, "holds no slope"),
        ({"climatology": slice("2000", "2001")}, "climatology_years was '2000/2000', is '2000/2001'"),
        (
            {"fine": da * 2},
            r"6 days are already in .* with different data \(up to .* apart\): 2000-01-01\.\.2000-01-06\.",
        ),
        ({"fine": fine(6, start="1999-12-30")}, "2 days are earlier than the last day in .*1999-12-30"),
    ]
    for changed, text in cases:
        arguments = {"fine": da, "static": None, "factors": (2, 2, 2), "path": path} | changed
        arguments["fine"].attrs["units"] = "mm"
        with pytest.raises(ValueError, match=text):
            build_levels(**arguments)
    assert_same_levels(open_levels(path), make_levels(da, elevation(da), climatology=slice("2000", "2000")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists, but is not a store of levels"):
        build_levels(da, path=tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "mine"
    with pytest.raises(ValueError, match=r"No store of levels at .*Type xdeepsd.build_levels"):
        open_levels(tmp_path / "nowhere")


def test_days_twice_missing_or_unordered(tmp_path, caplog):
    da = fine(10)
    path = tmp_path / "l.zarr"
    twice = xr.concat([da[:3], da[2:]], "time")
    assert build_levels(twice, path=tmp_path / "same.zarr")[0].sizes["time"] == 10
    assert "1 days occur twice with the same data: 2000-01-03" in caplog.text
    different = xr.concat([da[:3], da[2:3] + 1, da[3:]], "time")
    with pytest.raises(ValueError, match=r"2000-01-03 occurs twice with different data .*differ by up to 1"):
        build_levels(different, path=path)
    hourly = da.assign_coords(time=days(10)[0] + np.arange(10) * np.timedelta64(6, "h"))
    with pytest.raises(ValueError, match=r"2000-01-01 occurs twice.*resample\(time='1D'\)"):
        build_levels(hourly, path=path)
    with pytest.raises(ValueError, match=r"not in order: 2000-01-10 is followed by 2000-01-01.*sortby\('time'\)"):
        build_levels(da.isel(time=[9, *range(9)]), path=path)
    gaps = da.isel(time=[0, 1, 3, 4, 8, 9])
    with pytest.raises(
        ValueError, match=r"4 days are missing .*: 2000-01-03, 2000-01-06\.\.2000-01-08.*allow_missing=True"
    ):
        build_levels(gaps, path=path)
    assert not path.exists()
    out = build_levels(gaps, path=path, allow_missing=True)
    assert_same_levels(out, make_levels(gaps))
    build_levels(da[:4], path=tmp_path / "m.zarr")
    with pytest.raises(ValueError, match="1 days are missing"):  # a gap between the store and the new days
        build_levels(da[5:], path=tmp_path / "m.zarr")


def test_days_that_are_not_fetched_yet(tmp_path):
    """The store of `xdeepsd fetch` has a gapless time axis: release 0 and NaN for days not fetched yet."""
    da = fine(10)
    path = tmp_path / "l.zarr"
    ds = xr.Dataset({"ppt": da.copy(), "ppt_release": ("time", [8] * 4 + [0, 0] + [8] * 4)})
    ds["ppt"][4] = np.nan  # release 0 alone says nothing: the fifth day is missing, the sixth is uncertain
    with pytest.raises(ValueError, match=r"1 days are missing .*: 2000-01-05\. .*allow_missing=True"):
        build_levels(ds, path=path)
    out = build_levels(ds, path=path, allow_missing=True)
    assert_same_levels(out, make_levels(da.isel(time=[0, 1, 2, 3, 5, 6, 7, 8, 9])))
    assert_same_levels(build_levels(ds.assign(ppt=da), path=path), make_levels(da))  # the day has arrived


def test_days_without_a_value(tmp_path):
    da = fine(6)
    da[3] = np.nan
    path = tmp_path / "l.zarr"
    with pytest.raises(ValueError, match=r"1 days have no values at all: 2000-01-04\. All other days are in"):
        build_levels(da, path=path)
    assert open_levels(path)[0].sizes["time"] == 5
    assert_same_levels(build_levels(da, path=path, allow_missing=True), make_levels(da.isel(time=[0, 1, 2, 4, 5])))
    assert_same_levels(build_levels(fine(6), path=path), make_levels(fine(6)))


def test_files_without_dask_are_read_in_pieces(tmp_path):
    """A lazily opened file (no Dask) is never held as a whole."""
    da = fine(30)
    da.to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "fine.nc", engine="h5netcdf") as lazy:
        out = build_levels(lazy, path=tmp_path / "l.zarr", chunk_mb=small(da, 5))
        assert not lazy._in_memory
    assert_same_levels(out, make_levels(da))


def test_a_distributed_cluster_writes_the_same(tmp_path):
    from distributed import Client

    da = fine(12)
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"):
        out = build_levels(da.chunk(time=2), path=tmp_path / "l.zarr", chunk_mb=small(da, 4))
        assert_same_levels(out, make_levels(da))


# ---------------------------------------------------------------------------------------------------------------------
# Days that were released again


def released(da, number=8, date="2001-01-01", days=slice(None)):
    """As `xdeepsd fetch` leaves it: with release numbers and dates, which are other ones for ``days``."""
    numbers, dates = np.full(da.sizes["time"], 1, np.int8), np.full(da.sizes["time"], "2000-06-01", "datetime64[ns]")
    numbers[days], dates[days] = number, np.datetime64(date)
    return xr.Dataset({"ppt": da, "ppt_release": ("time", numbers), "ppt_release_date": ("time", dates)})


def changed(da, which, by=39.8):
    da = da.copy()
    da[which] += by
    return da


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@given(
    first=st.integers(1, 20), per_chunk=st.integers(1, 20), seed=st.integers(0, 99),
    renewed=st.sets(st.integers(0, 19), max_size=12), missing=st.sets(st.integers(0, 19), max_size=6),
)  # fmt: skip
@settings(max_examples=12)
def test_days_that_were_released_anew_are_written_again(tmp_path_factory, first, per_chunk, seed, renewed, missing):
    """Whatever days are renewed, come late or are appended, the levels are those of the newest data."""
    da = fine(20, 8, 8, seed=seed, units="mm day-1")
    arguments = {
        "path": tmp_path_factory.mktemp("levels") / "l.zarr", "factors": (2,), "chunk_mb": small(da, per_chunk),
        "allow_missing": True,
    }  # fmt: skip
    before = da[:first].copy()
    before[sorted(day for day in missing if day < first - 1)] = np.nan  # they arrive with the second call
    build_levels(released(before, days=[]).chunk(time=3), **arguments)
    new = changed(da, sorted(renewed))
    out = build_levels(released(new, days=sorted(renewed)).chunk(time=7), **arguments)
    assert_same_levels(out, make_levels(new, factors=(2,), mask=np.isfinite(da[0])))


def test_renewed_days_are_named_and_only_they_are_read(tmp_path, caplog):
    da = fine(20)
    path = tmp_path / "l.zarr"
    build_levels(released(da, days=[]), path=path, chunk_mb=small(da, 6))
    renewed = [3, 4, 5, 8, *range(12, 18)]
    read = []

    def count(block, block_info):
        read.append(block_info[0]["array-location"][0][0])
        return block

    new = changed(da, renewed)
    counted = new.copy(data=new.chunk(time=1).data.map_blocks(count, dtype=np.float32, meta=np.empty(0, np.float32)))
    with caplog.at_level(logging.INFO, "xdeepsd"):
        out = build_levels(released(counted, days=renewed), path=path, mask=np.isfinite(da[0]))
    assert (
        "10 days have a newer release and are rewritten: 2000-01-04..2000-01-06, 2000-01-09, 2000-01-13" in caplog.text
    )
    assert_same_levels(out, make_levels(new))
    assert sorted(read) == sorted([0, *renewed, 19])  # also the first and last of the others, as a check
    before = contents(path)
    build_levels(released(new, days=renewed), path=path)
    assert contents(path) == before


@pytest.mark.parametrize(
    "of_new",
    [
        lambda da: da,
        lambda da: da.to_dataset(),
        lambda da: released(da).drop_vars("ppt_release_date"),  # the same release number: nothing shows which is newer
        lambda da: released(da, 7, "2000-12-31"),  # older
        lambda da: released(da, 0),
    ],
    ids=["array", "dataset", "number", "older", "unknown"],
)
def test_other_days_must_be_the_same(tmp_path, of_new):
    """A changed day is never overlooked, wherever it is; an unchanged one is always accepted."""
    da = fine(20)
    path = tmp_path / "l.zarr"
    build_levels(released(da), path=path, chunk_mb=small(da, 6))
    assert_same_levels(build_levels(of_new(da * np.float32(1 + 1e-7)), path=path), make_levels(da))
    before = contents(path)
    with pytest.raises(
        ValueError,
        match=r"3 days are already in .*l\.zarr with different data \(up to 39\.8 mm day-1 apart\): 2000-01-08, "
        r"2000-01-11\.\.2000-01-12\. .*newer releases .*another path",
    ):
        build_levels(of_new(changed(da, [7, 10, 11])), path=path)
    gap = da.copy()
    gap[7, -1, -1] = np.nan
    with pytest.raises(ValueError, match=r"1 days .* \(values are missing in one of them\): 2000-01-08"):
        build_levels(of_new(gap), path=path)
    assert contents(path) == before


def test_releases_are_learned(tmp_path, caplog):
    """A ladder made by an older xdeepsd, or from files without dates, has no releases until days are compared."""
    da = fine(8)
    path = tmp_path / "l.zarr"
    build_levels(da, path=path)
    root = zarr.open_group(path, mode="r+")
    del root["releases"]
    with caplog.at_level(logging.INFO, "xdeepsd"):
        build_levels(released(da, days=[]), path=path)
    assert "Reading 8 days that are already in" in caplog.text
    caplog.clear()
    new = changed(da, [2, 5])
    with caplog.at_level(logging.INFO, "xdeepsd"):
        out = build_levels(released(new, days=[2, 5]), path=path, mask=np.isfinite(da[0]))
    assert "Reading" not in caplog.text
    assert_same_levels(out, make_levels(new))


def assert_days_are_whole(levels, *versions):
    """Each day comes from one of the versions, the same one in all levels."""
    whole = []
    for version in versions:
        pairs = zip(levels, make_levels(version.sel(time=levels[0].time)), strict=True)
        same = [np.isclose(a.precipitation, b.precipitation, equal_nan=True).all(axis=(1, 2)) for a, b in pairs]
        whole.append(np.all(same, axis=0))
    assert np.any(whole, axis=0).all()


@pytest.mark.parametrize("at", ["done", "level_0/precipitation", "level_3/precipitation", "releases"])
def test_interrupted_while_days_are_written_again(tmp_path, monkeypatch, caplog, at):
    """Killed at any moment: each day is the old or the new one in all levels, or is left out."""
    da = fine(20)
    path = tmp_path / "l.zarr"
    arguments = {"path": path, "chunk_mb": small(da, 6), "climatology": slice("2000-01-01", "2000-01-10")}
    build_levels(released(da, days=[]), **arguments)
    renewed = [2, 3, 4, 8, 15]
    new = changed(da, renewed)
    write, get = levels_store.write_days, levels_store.get_array

    def fails(path, days, *arrays):
        with monkeypatch.context() as patch:
            patch.setattr(levels_store, "get_array", lambda root, name: get(root, name if name != at else 1 / 0))
            write(path, days, *arrays)

    with monkeypatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(levels_module, "write_days", lambda *a: fails(*a) if a[1][0] == 8 else write(*a))
        with pytest.raises(ZeroDivisionError):
            build_levels(released(new, days=renewed), **arguments)
    levels = open_levels(path)
    assert "climatology" not in levels[0]
    assert "the climatology of 2000-01-01/2000-01-10 was not computed from the days that are now there" in caplog.text
    assert set(da.time.values) - set(levels[0].time.values) <= {da.time.values[8]}
    assert_days_are_whole(levels, da, new)
    out = build_levels(released(new, days=renewed), **arguments)
    assert_same_levels(out, make_levels(new, climatology=slice("2000-01-01", "2000-01-10"), mask=np.isfinite(da[0])))


def test_the_climatology_follows_renewed_days(tmp_path, caplog):
    da = fine(12)
    path, years = tmp_path / "l.zarr", slice("2000-01-01", "2000-01-08")
    build_levels(released(da, days=[]), path=path, climatology=years)
    later = changed(da, [10])
    caplog.clear()
    out = build_levels(released(later, days=[10]), path=path)  # no training day
    assert "retrain the models" not in caplog.text
    np.testing.assert_allclose(out[-1].climatology, da[:8].mean("time"), rtol=1e-5)
    new = changed(later, [4])
    out = build_levels(released(new, days=[4, 10]), path=path)
    assert "It has changed: retrain the models that were trained with the old one" in caplog.text
    np.testing.assert_allclose(out[-1].climatology, new[:8].mean("time"), rtol=1e-5)
    assert out[0].climatology.attrs["years"] == out[-1].climatology.attrs["years"] == "2000-01-01/2000-01-08"


def test_days_of_one_chunk_that_come_late(tmp_path):
    """Several gaps in a chunk are filled at once without undoing each other."""
    da = fine(40, 8, 8)
    for attempt in range(5):
        path = tmp_path / f"{attempt}.zarr"
        gaps = da.copy()
        gaps[1::2] = np.nan
        build_levels(gaps, path=path, factors=(2,), allow_missing=True)
        assert_same_levels(build_levels(da, path=path, factors=(2,)), make_levels(da, factors=(2,)))


# ---------------------------------------------------------------------------------------------------------------------
# What must not be touched


@pytest.mark.parametrize(
    ("taken", "chunks"),
    [
        (lambda ds: ds, {}),
        (lambda ds: ds, None),
        (lambda ds: ds["precipitation"], {}),
        (lambda ds: ds["precipitation"].assign_coords(time=ds.time + np.timedelta64(6, "D")), None),
        (lambda ds: ds.map(lambda da: da * 2), {}),
        (lambda ds: xr.concat([ds, ds.assign_coords(time=ds.time + np.timedelta64(6, "D"))], "time"), {}),
    ],
)
def test_a_store_is_not_its_own_input(tmp_path, taken, chunks):
    da = fine(6).rename("precipitation")
    path = tmp_path / "l.zarr"
    build_levels(da, path=path)
    before = contents(path)
    level = xr.open_zarr(path, group="level_3", chunks=chunks)
    with pytest.raises(ValueError, match=r"read from .*l\.zarr, which the levels at .*l\.zarr would overwrite"):
        build_levels(taken(level[["precipitation"]]), path=path)
    assert contents(path) == before


def test_an_interrupted_store_with_something_of_the_user_is_left(tmp_path):
    da = fine(3)
    path = tmp_path / "l.zarr"
    build_levels(da, path=path)
    zarr.open_group(path, mode="r+").attrs["ready"] = False
    (path / "thesis").mkdir()
    (path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"it holds \['thesis'\], which build_levels did not write.*another path"):
        build_levels(da, path=path)
    assert (path / "thesis" / "chapter.tex").read_text() == "mine"


def test_training_years_have_two_ends(tmp_path):
    with pytest.raises(ValueError, match=r"slice\(None, '2005', None\).*Needed: the first and the last"):
        build_levels(fine(3), path=tmp_path / "l.zarr", climatology=slice(None, "2005"))
    assert not (tmp_path / "l.zarr").exists()
    assert (
        make_levels(fine(3), climatology=slice(None, "2000"))[0].climatology.attrs["years"] == "2000-01-01/2000-01-03"
    )


def test_public_names():
    assert xdeepsd.build_levels is build_levels
    assert xdeepsd.make_levels is make_levels
    assert xdeepsd.open_levels is open_levels


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def prepare(*arguments):
    from typer.testing import CliRunner

    from xdeepsd.cli import app

    return CliRunner().invoke(app, ["prepare", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["zarr", "netcdf", "two netcdf"])
def test_prepare(tmp_path, kind):
    da = fine(12)
    elevation(da).to_netcdf(tmp_path / "dem.nc", engine="h5netcdf")
    ds = da.to_dataset()
    if kind == "zarr":
        ds.chunk(time=1).to_zarr(tmp_path / "fine.zarr")
        paths = [tmp_path / "fine.zarr"]
    else:
        parts = [ds] if kind == "netcdf" else [ds.isel(time=slice(5)), ds.isel(time=slice(5, None))]
        paths = [tmp_path / f"fine{i}.nc" for i in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            part.to_netcdf(path, engine="h5netcdf")
    out = tmp_path / "levels.zarr"
    arguments = (*paths, "--elevation", tmp_path / "dem.nc", "--factors", "2,2", "--climatology-years", 2000, 2000)
    result = prepare(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert "12 days" in result.output
    assert_same_levels(open_levels(out), make_levels(da, elevation(da), (2, 2), climatology=slice("2000", "2000")))
    assert prepare(*arguments, "--out", out).exit_code == 0


def test_prepare_says_what_is_wrong(tmp_path):
    da = fine(12, 17, 24)
    da.isel(time=[0, 1, 3]).to_dataset().to_zarr(tmp_path / "fine.zarr")
    result = prepare(tmp_path / "fine.zarr", "--out", tmp_path / "l.zarr")
    assert result.exit_code == 1
    assert "1 days are missing" in result.output
    assert "or type --allow-missing to go on without" in result.output
    assert "Traceback" not in result.output
    result = prepare(tmp_path / "fine.zarr", "--out", tmp_path / "l.zarr", "--allow-missing", "--edges", "crop")
    assert result.exit_code == 0, result.output
    assert "Cropped to 16 x 24" in result.output
    for arguments, text in (
        (("nowhere.zarr",), "nowhere.zarr"),
        ((tmp_path / "fine.zarr", "--factors", "two"), "--factors"),
        ((tmp_path / "fine.zarr", "--variable", "tmax"), "There is no variable='tmax'"),
    ):
        result = prepare(*arguments, "--out", tmp_path / "x.zarr")
        assert result.exit_code != 0
        assert text in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("damage", ["done/zarr.json", "level_0/time/c/0", "zarr.json"])
def test_a_damaged_ladder_is_named(tmp_path, damage):
    path = tmp_path / "l.zarr"
    build_levels(fine(3), path=path)
    file = path / damage
    file.write_bytes(file.read_bytes()[:-9] + b"\xf9" * 9)
    with pytest.raises(ValueError, match=str(path)):
        open_levels(path)[0].load()


def test_an_array_of_the_users_in_a_level(tmp_path):
    """One that xarray cannot open because its dims have no names: the message names it, and it stays."""
    path = tmp_path / "levels.zarr"
    build_levels(fine(4), elevation(fine(4)), (2,), path)
    mine = zarr.open_group(path)["level_0"].create_array("mine", shape=(3,), dtype="i4")
    mine[:] = 7
    assert open_levels(path)[0].sizes["time"] == 4
    with pytest.raises(ValueError, match=r"holds the arrays \['mine'\] in level_0, .* Move them to another store"):
        build_levels(fine(6), elevation(fine(6)), (2,), path)
    assert zarr.open_group(path, use_consolidated=False)["level_0/mine"][:].tolist() == [7, 7, 7]
    (path / "level_0" / "mine").rename(tmp_path / "mine")
    build_levels(fine(6), elevation(fine(6)), (2,), path)
    assert open_levels(path)[0].sizes["time"] == 6


def test_a_run_with_nothing_to_do_touches_nothing(tmp_path):
    """What is computed from the levels knows its input by the times of its files, and would refuse to go on."""
    da, path = fine(6), tmp_path / "l.zarr"
    build_levels(da, elevation(da), path=path, climatology=slice("2000", "2000"))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    build_levels(da, elevation(da), path=path, climatology=slice("2000", "2000"))
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


@pytest.mark.parametrize(
    "file", ["level_0/time/zarr.json", "level_0/elevation/zarr.json", "done/zarr.json", "done/c/0"]
)
def test_a_cut_file_is_told_when_days_are_added(tmp_path, file):
    da, path = fine(6), tmp_path / "l.zarr"
    build_levels(da[:4], elevation(da), path=path)
    (path / file).write_bytes((path / file).read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
        build_levels(da, elevation(da), path=path)


def test_a_full_disk_names_the_store(tmp_path, monkeypatch):
    """The system's own error of a write names no file."""
    da, path = fine(4), tmp_path / "l.zarr"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(levels_module, "write_days", full)
        with pytest.raises(
            OSError, match=rf"{path} could not be written .*No space left.*the same call goes on"
        ) as told:
            build_levels(da, elevation(da), path=path)
    assert told.value.errno == errno.ENOSPC
    assert_same_levels(build_levels(da, elevation(da), path=path), make_levels(da, elevation(da)))


def test_a_second_writer_is_refused(tmp_path):
    """Two that create one store would each clear away what the other writes."""
    da, path = fine(4), tmp_path / "l.zarr"
    with (
        alone(path, "build_levels", "path"),
        pytest.raises(
            ValueError, match=rf"Another build_levels is writing to {path}\. Wait for it, or use another path"
        ),
    ):
        build_levels(da, elevation(da), path=path)
    assert not path.exists()
    build_levels(da, elevation(da), path=path)


@pytest.mark.parametrize("name", ["precipitation/c/1/0/0", "climatology/c/0/0"])
@pytest.mark.parametrize("level", [0, 2])
def test_a_chunk_that_a_power_failure_emptied_is_written_again(tmp_path, caplog, level, name):
    da, path = fine(6), tmp_path / "l.zarr"
    options = {"climatology": slice("2000", "2000"), "chunk_mb": small(da, 2)}
    whole = [one.load() for one in build_levels(da, elevation(da), path=path, **options)]
    chunk = path / f"level_{level}" / name
    chunk.write_bytes(b"")
    again = build_levels(da, elevation(da), path=path, **options)
    assert f"{chunk} is empty" in caplog.text
    assert ("retrain the models" in caplog.text) == name.startswith("precipitation")
    for one, other in zip(again, whole, strict=True):
        xr.testing.assert_identical(one.load(), other)


@pytest.mark.parametrize("name", ["time/c/0", "lat/c/0", "elevation/c/0/0", "mask/c/0/0", "climatology/c/0/0"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_written_only_once_is_not_made_up(tmp_path, level, name):
    """The climatology here is a map that the user gave."""
    da, path = fine(6), tmp_path / "l.zarr"
    build_levels(da, elevation(da), path=path, climatology=da.mean("time"))
    whole = (path / f"level_{level}" / name).read_bytes()
    (path / f"level_{level}" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        build_levels(da, elevation(da), path=path, climatology=da.mean("time"))
    (path / f"level_{level}" / name).write_bytes(whole)
    assert_same_levels(
        build_levels(da, elevation(da), path=path, climatology=da.mean("time")),
        make_levels(da, elevation(da), climatology=da.mean("time")),
    )


@pytest.mark.parametrize("kept", [0, 0.5])
def test_any_file_of_a_store_cut_off(tmp_path, kept):
    """The same call makes the levels whole again, or says that the store is damaged and touches no file."""
    da, path = fine(4, 8, 8), tmp_path / "l.zarr"
    options = {"factors": (2,), "path": path, "climatology": slice("2000", "2000"), "chunk_mb": small(da, 2)}
    whole = [level.load() for level in build_levels(da, elevation(da), **options)]
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for file, content in files.items():
        if kept and file.name.isdigit():  # a chunk has no checksum
            continue
        file.write_bytes(content[: int(kept * len(content))])
        cut = {file: file.read_bytes() for file in files}
        heals = file.name.isdigit() and file.relative_to(path).parts[1] in ("precipitation", "climatology")
        if heals:
            again = build_levels(da, elevation(da), **options)
            assert all(a.load().identical(b) for a, b in zip(again, whole, strict=True)), file
        else:
            with pytest.raises(ValueError, match=re.escape(str(path))):
                build_levels(da, elevation(da), **options)
            assert {file: file.read_bytes() for file in files} == cut, file
            file.write_bytes(content)
