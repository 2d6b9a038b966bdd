"""The store of fetch: always consistent for readers, and anything the user keeps in it stays untouched."""

import itertools
import uuid
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from prism_server import NORTH, SHAPE, WEST, map_of
from zarr.storage import _local

from xdeepsd.prism import files as prism
from xdeepsd.prism import store as prism_store
from xdeepsd.prism.names import ELEVATION, RELEASE_ATTRS, VARIABLES, PrismGrid, skeleton

GRID = PrismGrid(24, int(48 * NORTH), int(48 * WEST), SHAPE)
DAYS = pd.date_range("1981-01-01", "1981-01-06")
HEIGHT = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def write(out, variable, days):
    """Write the maps of these days as fetch does."""
    store = prism_store.open_store(out, "hi", "4km")
    prism_store.check_room(out, store, variable, list(days))
    group = prism_store.make_room(out, GRID, "hi", "4km", variable, days[-1])
    for day in days:
        prism_store.write_day(out, group, day, variable, map_of(day), (day + pd.Timedelta(days=200), 8))


def history(out):
    """A store that is created, grows, and gets another variable and the elevation."""
    write(out, "ppt", DAYS[[1]])
    write(out, "ppt", DAYS[[0, 3]])
    write(out, "tmax", DAYS[[4]])
    prism_store.open_store(out, "hi", "4km")
    prism_store.make_room(out, GRID, "hi", "4km", "elevation", elevation=HEIGHT)


ALL = {"ppt": {*DAYS[[0, 1, 3]]}, "tmax": {DAYS[4]}}


def check_reader(out):
    """Check that a reader finds complete maps on a gapless axis; return the days of each variable."""
    if not (out / "zarr.json").exists():
        return {}
    ds = xr.open_zarr(out, chunks=None).load()
    assert ds.attrs["prism_region"] == "hi"
    if "elevation" in ds:
        np.testing.assert_array_equal(ds["elevation"], HEIGHT)
    held = {}
    for name in set(VARIABLES) & set(ds):
        days = ds.indexes["time"]
        assert days.equals(pd.date_range("1981-01-01", periods=days.size))
        np.testing.assert_array_equal(ds["time_bnds"][:, 1], days + pd.Timedelta(hours=12))
        np.testing.assert_array_equal(ds["lat"], GRID.lat)
        marked = ds[f"{name}_release"].values > 0
        held[name] = set(days[marked])
        np.testing.assert_array_equal(ds[f"{name}_release_date"][marked], days[marked] + pd.Timedelta(days=200))
        for i in np.flatnonzero(marked | ds[name].notnull().any(("lat", "lon")).values):
            np.testing.assert_array_equal(ds[name].values[i], map_of(days[i]))
    return held


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_in_every_file_that_is_written(tmp_path, monkeypatch):
    """Killed in the first, second, ... file: readers find nothing wrong, and the next call goes on."""
    put = _local._put
    written = kill_at = 0

    def counted(path, value, exclusive=False):
        nonlocal written
        written += not exclusive  # what else Zarr tries is there already
        if exclusive or written != kill_at:
            return put(path, value, exclusive)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = bytes(value.as_buffer_like())[: len(value) // 2]
        path.with_suffix(f".{uuid.uuid4().hex}.partial").write_bytes(half)
        raise Killed

    monkeypatch.setattr(_local, "_put", counted)
    history(tmp_path / "whole.zarr")
    assert check_reader(tmp_path / "whole.zarr") == ALL
    files = written
    assert files > 50
    for kill_at in range(1, files + 1):
        out = tmp_path / f"{kill_at}.zarr"
        written = 0
        with pytest.raises(Killed):
            history(out)
        assert all(days <= ALL[name] for name, days in check_reader(out).items())
        history(out)
        assert check_reader(out) == ALL
        assert not list(out.rglob("*.partial"))
    xr.testing.assert_identical(xr.open_zarr(out, consolidated=False), xr.open_zarr(out))


def test_a_reader_at_every_write(tmp_path, monkeypatch):
    """Readers find ever more days, whatever file is being written; a store opened early stays readable."""
    out, put, seen, early = tmp_path / "prism.zarr", _local._put, [], []

    def watched(path, value, exclusive=False):
        result = put(path, value, exclusive)
        if out in path.parents:
            seen.append(check_reader(out))
            if not early and seen[-1].get("ppt"):
                early.append(xr.open_zarr(out))
        return result

    monkeypatch.setattr(_local, "_put", watched)
    history(out)
    for before, after in itertools.pairwise(seen):
        assert all(days <= after[name] for name, days in before.items())
    assert seen[-1] == ALL
    np.testing.assert_array_equal(early[0]["ppt"], np.stack([map_of(DAYS[0]), map_of(DAYS[1])]))  # also day 0, since


def test_a_new_variable_and_a_longer_axis_after_a_kill_between(tmp_path, monkeypatch):
    """A variable that was started and never finished does not hinder the others."""
    out = tmp_path / "prism.zarr"
    write(out, "ppt", DAYS[:2])
    monkeypatch.setattr(prism_store, "_publish", lambda path: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        write(out, "tmax", DAYS[:3])
    monkeypatch.undo()
    assert check_reader(out) == {"ppt": {*DAYS[:2]}}
    write(out, "ppt", DAYS[2:5])
    assert check_reader(out) == {"ppt": {*DAYS[:5]}, "tmax": set()}
    assert "tmax_release" in prism.open_prism(out)  # a variable without any day is no gap
    write(out, "tmax", DAYS[:3])
    assert check_reader(out) == {"ppt": {*DAYS[:5]}, "tmax": {*DAYS[:3]}}


def test_damage_is_named(tmp_path):
    out = tmp_path / "prism.zarr"
    history(out)
    for name, text in (
        ("ppt_release/c/0", "the releases of ppt cannot be read"),
        ("lat/c/0", "its grid cannot be read"),
        ("tmax/zarr.json", "its content cannot be read"),
    ):
        file = out / name
        whole = file.read_bytes()
        file.write_bytes(b"\0" * 9)
        with pytest.raises(ValueError, match=f"prism.zarr is damaged: {text}"):  # noqa: PT012 (any of them)
            store = prism_store.open_store(out, "hi", "4km")
            prism_store.marks(store, "ppt")
            prism_store.check_room(out, store, "ppt", list(DAYS))
        file.write_bytes(whole)
    (out / "ppt_release/c/0").write_bytes(b"\0" * 9)
    with pytest.raises(ValueError, match=r"prism\.zarr cannot be read as a store of xdeepsd fetch"):
        prism.open_prism(out)
    (out / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"prism\.zarr cannot be read as a store of xdeepsd fetch"):
        prism.open_prism(out)
    with pytest.raises(ValueError, match=r"prism\.zarr exists, but is not a store of xdeepsd fetch .*type another out"):
        prism_store.open_store(out, "hi", "4km")


# ------------------------------------------------------------------------------------------------------- early stores


def early_store(out, days):
    """As xdeepsd before 2026-12 wrote it: the axis begins at the first day, marks are in one chunk."""
    ds = skeleton(GRID, days)
    ds.attrs |= {"prism_region": "hi", "prism_resolution": "4km"}
    ds["ppt_release"] = ("time", np.full(len(days), 8, np.int8), RELEASE_ATTRS | {"long_name": "release of ppt"})
    dates = (days + pd.Timedelta(days=200)).to_numpy().astype("datetime64[ns]")
    ds["ppt_release_date"] = ("time", dates, {"long_name": "date of the release of ppt"})
    ds["ppt_release_date"].encoding = {"units": "days since 1970-01-01", "dtype": "int32", "_FillValue": -1}
    ds["elevation"] = (("lat", "lon"), HEIGHT, ELEVATION)
    ds.to_zarr(out, zarr_format=3, consolidated=False)
    maps = zarr.open_group(out, mode="r+").create_array(
        "ppt", shape=(len(days), *SHAPE), chunks=(1, *SHAPE), dtype="float32", fill_value=np.nan,
        dimension_names=("time", "lat", "lon"),
        attributes=VARIABLES["ppt"] | {"ancillary_variables": "ppt_release ppt_release_date"},
    )  # fmt: skip
    maps[...] = np.stack([map_of(day) for day in days])
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(out)


def test_an_early_store_grows_at_its_end(tmp_path):
    out, days = tmp_path / "early.zarr", pd.date_range("2011-01-03", "2011-01-10")
    early_store(out, days[:3])
    write(out, "ppt", days[3:6])
    write(out, "tmax", days[2:8])
    ds = prism.open_prism(out, allow_missing=True)
    assert pd.DatetimeIndex(ds["time"]).equals(days)
    assert ds["ppt_release"].values.tolist() == [8] * 6 + [0] * 2
    assert ds["tmax_release"].values.tolist() == [0] * 2 + [8] * 6
    assert ds["ppt_release_date"].isnull().values.tolist() == [False] * 6 + [True] * 2
    np.testing.assert_array_equal(ds["ppt"][:6], np.stack([map_of(day) for day in days[:6]]))
    np.testing.assert_array_equal(ds["tmax"][2:], np.stack([map_of(day) for day in days[2:]]))
    np.testing.assert_array_equal(ds["elevation"], HEIGHT)
    with pytest.raises(ValueError, match=r"starts on 2011-01-03, later than 2011-01-01.*type another out"):
        write(out, "ppt", pd.date_range("2011-01-01", "2011-01-04"))
    xr.testing.assert_identical(prism.open_prism(out, allow_missing=True), ds)


def test_prepare_takes_the_days_that_were_fetched(tmp_path):
    """The axis begins in 1981 and the days years later: the levels have only those days; a gap in them is reported."""
    from typer.testing import CliRunner

    from xdeepsd.cli import app
    from xdeepsd.levels.disk import open_levels

    out, levels = tmp_path / "prism.zarr", tmp_path / "levels.zarr"
    days = pd.date_range("2014-01-01", periods=4)
    write(out, "ppt", days)
    command = ["prepare", str(out), "--factors", "2", "--out", str(levels)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    fine = open_levels(levels)[-1]["precipitation"]
    assert fine.indexes["time"].equals(days)
    np.testing.assert_array_equal(fine[2, : SHAPE[0], : SHAPE[1]], map_of(days[2]))
    write(out, "ppt", days[[-1]] + pd.Timedelta(days=2))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "2014-01-05" in result.output


def test_an_axis_that_is_damaged_is_named(tmp_path):
    """A day beyond what pandas holds, as a flipped bit makes one."""
    out = tmp_path / "prism.zarr"
    write(out, "ppt", DAYS[[0, 1]])
    zarr.open_array(out / "time", mode="r+")[1] = 2**40
    with pytest.raises(ValueError, match=r"prism\.zarr cannot be read as a store of xdeepsd fetch"):
        prism.open_prism(out)
