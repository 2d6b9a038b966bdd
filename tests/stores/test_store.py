"""`to_zarr`: same result as xarray's, resumes after any interruption, refuses a store begun with something else."""

import contextlib
import dataclasses
import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import dask
import dask.array
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from builders import make_coarse, make_stack, make_static
from distributed import Client, LocalCluster
from fsspec.registry import _registry
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec

import xdeepsd
from xdeepsd.stores import layout, regions, write
from xdeepsd.stores.target import open_group

pytestmark = pytest.mark.filterwarnings("error:.*:UserWarning:xdeepsd")


class Killed(BaseException):
    """Stands for a kill: not an Exception, so that no code handles it."""


class Counted:
    """A function on blocks that counts what it computes, and can stop there."""

    def __init__(self, stop_after=None):
        self.days, self.stop_after = [], stop_after

    def __call__(self, block, day):
        if self.stop_after is not None and len(self.days) >= self.stop_after:
            raise Killed
        self.days += day[:, 0, 0].tolist()
        return block * 2 + day.astype(block.dtype)


def make_ds(days=7, chunk=2, nlat=3, nlon=4, seed=0, seen=None):
    """Random rain with NaN, computed lazily through ``seen``."""
    coarse = make_coarse(days=days, nlat=nlat, nlon=nlon, seed=seed)
    coarse[0] = np.nan
    lazy = coarse.chunk(time=chunk)
    day = dask.array.arange(days, chunks=chunk)[:, None, None]
    data = dask.array.map_blocks(
        seen or Counted(), lazy.data, day, dtype="f4", meta=np.empty((0, 0, 0), "f4"), name=f"counted-{seed}-{chunk}"
    )
    return lazy.copy(data=data).to_dataset().assign_attrs(title="test", history="made by hand")


def chunks_of(path, variable="pr"):
    """Contents of every chunk file of a variable."""
    files = [
        p for p in (Path(path) / variable).rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))
    ]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def opened(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_zarr(path, **options)


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_xarray_would_write(tmp_path, zarr_format):
    ds = make_ds()
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", zarr_format=zarr_format)
    ds.to_zarr(tmp_path / "b.zarr", zarr_format=zarr_format)
    a, b = opened(tmp_path / "a.zarr", consolidated=True), opened(tmp_path / "b.zarr")
    xr.testing.assert_equal(a.load(), b.load())
    assert a.attrs.pop(layout.STATUS) == layout.COMPLETE
    a.attrs.pop("xdeepsd_input")
    xr.testing.assert_identical(a, b)
    xr.testing.assert_equal(a, ds.compute())
    b = chunks_of(tmp_path / "b.zarr")
    assert {k: v for k, v in chunks_of(tmp_path / "a.zarr").items() if k in b} == b


def test_the_accessor_is_the_function(tmp_path):
    make_ds().deepsd.to_zarr(tmp_path / "a.zarr", encoding={"pr": {"chunks": (1, 3, 4)}})
    xdeepsd.to_zarr(make_ds(), tmp_path / "b.zarr", encoding={"pr": {"chunks": (1, 3, 4)}})
    assert chunks_of(tmp_path / "a.zarr") == chunks_of(tmp_path / "b.zarr")
    make_ds()["pr"].deepsd.to_zarr(tmp_path / "c.zarr")
    assert opened(tmp_path / "c.zarr")["pr"].attrs["units"] == "mm day-1"


def test_output_can_go_on_to_netcdf(tmp_path):
    xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr")
    opened(tmp_path / "a.zarr").to_netcdf(tmp_path / "a.nc")


@pytest.mark.parametrize("inputs", [2, 3])
@pytest.mark.parametrize("outputs", [2, 3])
def test_formats_do_not_mix(tmp_path, inputs, outputs):
    """The codecs that xarray keeps from the input do not apply to another format."""
    make_ds().to_zarr(tmp_path / "in.zarr", zarr_format=inputs)
    ds = opened(tmp_path / "in.zarr")
    xdeepsd.to_zarr(ds, tmp_path / "out.zarr", zarr_format=outputs)
    xr.testing.assert_equal(opened(tmp_path / "out.zarr").load(), ds.load())


def test_any_dataset(tmp_path):
    """In-memory and lazy variables; dates, text, bool, scalars; coordinates on two dims; an encoding from netCDF."""
    ds = make_ds()
    bounds = xr.DataArray(ds.time.data[:, None] + np.array([0, 86400], "m8[s]"), dims=("time", "nv"))
    ds = ds.assign(
        time_bnds=bounds.chunk(time=2), crs=0, lazy_crs=xr.DataArray(dask.array.asarray(5)), wet=ds["pr"] > 1,
        name=("lat", np.array(["a", "bb", "c"])), count=(ds["pr"] * 0).fillna(3).astype("i4"),
    ).assign_coords(height=(ds.pr[0] * 0 + 2).drop_vars("time").compute().chunk(lat=1))  # fmt: skip
    ds["pr"].encoding = {"zlib": True, "chunksizes": (1, 1, 1), "grid_mapping": "crs"}
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr")
    result = opened(tmp_path / "a.zarr", decode_coords="all")
    xr.testing.assert_equal(result.reset_coords("crs").load(), ds.compute())
    assert result["wet"].dtype == bool
    assert result["pr"].encoding["grid_mapping"] == "crs"


def test_numpy_goes_with_the_metadata(tmp_path):
    ds = make_ds().compute()
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr")
    xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), ds)
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="pr: values"):
        xdeepsd.to_zarr(ds + 1, tmp_path / "a.zarr", same_input=True)


def test_compressors_chunks_and_shards(tmp_path):
    ds = make_ds(days=8, chunk=4)
    options = {"chunks": (2, 3, 2), "compressors": [BloscCodec(cname="zstd", clevel=3)], "shards": (4, 3, 4)}
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": options})
    array = zarr.open_array(tmp_path / "a.zarr", path="pr")
    assert (array.chunks, array.shards) == ((2, 3, 2), (4, 3, 4))
    assert isinstance(array.compressors[0], BloscCodec)
    assert len(chunks_of(tmp_path / "a.zarr")) == 2  # shards
    xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), ds.compute())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_packing(tmp_path, zarr_format):
    ds = make_ds()
    packing = {"dtype": "uint16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": 65535}
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": packing}, zarr_format=zarr_format)
    assert zarr.open_array(tmp_path / "a.zarr", path="pr").dtype == "uint16"
    result = opened(tmp_path / "a.zarr").load()["pr"]
    np.testing.assert_allclose(result, ds["pr"].compute(), atol=0.00501)
    ds.to_zarr(tmp_path / "b.zarr", encoding={"pr": packing}, zarr_format=zarr_format)
    xr.testing.assert_equal(result, opened(tmp_path / "b.zarr").load()["pr"])


def test_packing_that_would_lose_is_refused(tmp_path):
    ds = make_ds()
    with pytest.raises(ValueError, match=r"NaN .* would be lost"):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"dtype": "int16", "scale_factor": 0.1}})
    with pytest.raises(ValueError, match="no dtype to pack into"):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"scale_factor": 0.1}})
    narrow = {"dtype": "uint8", "scale_factor": 0.01, "_FillValue": 255}
    with pytest.raises(ValueError, match=r"uint8 with scale_factor 0.01 and add_offset 0 holds 0 to 2.54"):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": narrow})
    with pytest.raises(ValueError, match="'compressor'"):
        xdeepsd.to_zarr(ds, tmp_path / "b.zarr", encoding={"pr": {"compressor": None}})
    with pytest.raises(ValueError, match="encoding names 'rain'"):
        xdeepsd.to_zarr(ds, tmp_path / "b.zarr", encoding={"rain": {}})


@pytest.mark.parametrize("fill", [None, -9999.0])
def test_what_is_not_written_yet_is_missing_and_not_dry(tmp_path, fill):
    for encoding in ({}, {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -1}, {"_FillValue": -9999.0}):
        path = tmp_path / f"{len(encoding)}.zarr"
        with pytest.raises(Killed):
            xdeepsd.to_zarr(make_ds(seen=Counted(stop_after=0)), path, encoding={"pr": encoding})
        assert opened(path)["pr"].isnull().all()


# --- never two writers on one chunk -------------------------------------------------------------------------------


def test_misaligned_chunks_are_refused(tmp_path, no_compute):
    ds = make_ds(days=12, chunk=4)
    with no_compute():
        with pytest.raises(
            ValueError, match=r"along 'time' are \(4, 4, 4\), but the Zarr chunks are 3.*ds.chunk\(time=6\)"
        ):
            xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"chunks": (3, 3, 4)}})
        with pytest.raises(ValueError, match="Zarr shards are 6"):
            xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"chunks": (2, 3, 4), "shards": (6, 3, 4)}})
        with pytest.raises(ValueError, match=r"\(4, 5, 3\); needed: equal ones.*ds.chunk\(time=5\)"):
            xdeepsd.to_zarr(ds.chunk(time=(4, 5, 3)), tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    uneven = ds.chunk(time=(4, 2, 6))
    xdeepsd.to_zarr(uneven, tmp_path / "a.zarr", encoding={"pr": {"chunks": (2, 3, 4)}})
    xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), ds.compute())


# --- resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_resume_computes_only_what_is_left(tmp_path, scheduler):
    whole = tmp_path / "whole.zarr"
    xdeepsd.to_zarr(make_ds(), whole)
    path = tmp_path / "a.zarr"
    first, second, third = Counted(stop_after=4), Counted(), Counted()
    with dask.config.set(scheduler=scheduler, num_workers=1):
        with pytest.raises(Killed):
            xdeepsd.to_zarr(make_ds(seen=first), path)
        half = opened(path)
        assert half.attrs[layout.STATUS] == layout.INCOMPLETE
        assert half.sizes == make_ds().sizes
        assert half["pr"].attrs["units"] == "mm day-1"
        written = half["pr"].notnull().any(("lat", "lon")).values
        history = half.attrs["history"]
        seen = []
        xdeepsd.to_zarr(
            make_ds(seen=second).assign_attrs(history="another"), path, progress=lambda *done: seen.append(done)
        )
        xdeepsd.to_zarr(make_ds(seen=third), path)
    done = 4 - len({day // 2 for day in second.days})
    assert done >= 2
    assert seen == [(n, 4) for n in range(done, 5)]
    assert written.sum() == sum(day > 0 for day in first.days)  # the first day is NaN
    assert sorted(first.days + second.days) == list(range(7))
    assert third.days == []
    assert chunks_of(path) == chunks_of(whole)
    result = opened(path, consolidated=True)
    assert result.attrs[layout.STATUS] == layout.COMPLETE
    assert result.attrs["history"] == history
    xr.testing.assert_equal(result.load(), make_ds().compute())


class Brittle(zarr.storage.MemoryStore):
    """A store that fails after a number of changes, and comes back as it was."""

    left = None

    def _use(self):
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1

    async def set(self, key, value, byte_range=None):
        self._use()
        await super().set(key, value)

    async def delete(self, key):
        self._use()
        await super().delete(key)

    async def delete_dir(self, prefix):
        self._use()
        await super().delete_dir(prefix)


def everything(store):
    """Contents of a store, except what comes from the first command."""
    return {k: v.to_bytes() for k, v in store._store_dict.items()}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_moment(zarr_format, overwrite):
    """Killed after each operation on the store: metadata, chunks, the end; on an empty place and over another store."""
    options = {"zarr_format": zarr_format, "overwrite": overwrite, "group": "a/b"}
    ds = make_ds(days=4)
    with dask.config.set(scheduler="synchronous"):
        whole = Brittle()
        xdeepsd.to_zarr(ds, whole, **options)
        killed = 0
        for n in range(1000):
            store = Brittle()
            if overwrite:
                xdeepsd.to_zarr(make_ds(days=3, seed=1), store, zarr_format=zarr_format, group="a/b")
            store.left = n
            try:
                xdeepsd.to_zarr(ds, store, **options)
            except Killed:
                killed += 1
            else:
                break
            store.left = None
            # Repeat the same command, but drop a request to start afresh once the store has been begun.
            status = open_group(store, "a/b/")
            again = overwrite and (status is None or status.attrs[layout.STATUS] == layout.COMPLETE)
            done = [k for k in store._store_dict if "/pr/" in k and not k.endswith((".zarray", ".zattrs", "zarr.json"))]
            seen = Counted()
            xdeepsd.to_zarr(make_ds(days=4, seen=seen), store, **{**options, "overwrite": again})
            assert everything(store) == everything(whole), n
            if not overwrite:
                assert len(seen.days) == 4 - 2 * len(done)
        assert killed > 10


@settings(max_examples=20)
@given(
    days=st.integers(1, 9),
    chunk=st.integers(1, 5),
    per_chunk=st.integers(1, 3),
    lat_chunk=st.integers(1, 3),
    zarr_format=st.sampled_from([2, 3]),
    stops=st.lists(st.integers(0, 25), max_size=3),
)
def test_any_stops_give_the_same_bits(days, chunk, per_chunk, lat_chunk, zarr_format, stops):
    encoding = {"pr": {"chunks": (chunk, lat_chunk, 4)}}
    ds = make_ds(days, chunk * per_chunk).chunk(lat=lat_chunk)
    whole, store = Brittle(), Brittle()
    with dask.config.set(scheduler="synchronous"):
        xdeepsd.to_zarr(ds, whole, encoding=encoding, zarr_format=zarr_format)
        for stop in [*stops, None]:
            store.left = stop
            try:
                xdeepsd.to_zarr(ds, store, encoding=encoding, zarr_format=zarr_format)
            except Killed:
                continue
    assert everything(store) == everything(whole)


def test_chunks_of_nothing_are_done_too(tmp_path):
    seen = Counted()
    for _ in range(2):
        xdeepsd.to_zarr(make_ds(seen=seen) * np.nan, tmp_path / "a.zarr")
        assert sorted(seen.days) == list(range(7))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("group", ["g", "g/h"])
def test_a_group_in_a_new_place_can_be_opened(tmp_path, zarr_format, group):
    xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr", group=group, zarr_format=zarr_format)
    assert xr.open_zarr(tmp_path / "a.zarr", group=group).sizes == make_ds().sizes


class Stopped(Exception):
    """A kill, for code that runs in Zarr's own thread."""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stopped_before_any_change_of_a_file(tmp_path, monkeypatch, zarr_format, overwrite):
    """Even while a folder is being deleted: the same call then ends with the same files."""
    options = {"group": "a/b", "zarr_format": zarr_format, "overwrite": overwrite}
    local = zarr.storage.LocalStore

    def prepare(path):
        if overwrite:
            xdeepsd.to_zarr(make_ds(days=3).rename(pr="old", lat="phi"), path, group="a/b", zarr_format=zarr_format)

    def contents(path):
        return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}

    prepare(tmp_path / "whole" / "a.zarr")
    xdeepsd.to_zarr(make_ds(), tmp_path / "whole" / "a.zarr", **options)
    for number in itertools.count(1):
        path, counted = tmp_path / str(number) / "a.zarr", itertools.count(1)
        prepare(path)

        def stops(original, counted=counted, number=number):
            async def change(store, key, *arguments):
                if next(counted) == number:
                    if original is local.delete_dir:  # in any order
                        shutil.rmtree(store.root / key, ignore_errors=True)
                        (store.root / key / "c").mkdir(parents=True)
                        (store.root / key / "c" / "0").write_bytes(b"half")
                    else:
                        left = store.root / f"{key}.{'0123' * 8}.partial"  # as Zarr names it
                        left.parent.mkdir(parents=True, exist_ok=True)
                        left.write_bytes(b"half")
                    raise Stopped
                return await original(store, key, *arguments)

            return change

        stopped = False
        with monkeypatch.context() as patch, dask.config.set(scheduler="synchronous"):
            for name in ("set", "delete", "delete_dir"):
                patch.setattr(local, name, stops(getattr(local, name)))
            try:
                xdeepsd.to_zarr(make_ds(), path, **options)
            except Stopped:
                stopped = True
        xdeepsd.to_zarr(make_ds(), path, **options)
        assert contents(path) == contents(tmp_path / "whole" / "a.zarr")
        if not stopped:
            break
    assert number > 10


def test_files_without_bytes_and_left_overs(tmp_path):
    """What is left behind by a power failure and by a kill in the middle of a file."""
    path = tmp_path / "a.zarr"
    xdeepsd.to_zarr(make_ds(), path)
    whole = chunks_of(path)
    (path / "pr/c/1/0/0").write_bytes(b"")
    left = path / f"pr/c/2/0/0.{'0123' * 8}.partial"  # as Zarr names it
    left.write_bytes(b"half")
    (path / "notes.partial").write_text("the user's")
    zarr.open_group(path, mode="r+").attrs[layout.STATUS] = layout.INCOMPLETE
    seen = Counted()
    xdeepsd.to_zarr(make_ds(seen=seen), path)
    assert sorted(seen.days) == [2, 3]
    assert chunks_of(path) == whole
    assert not left.exists()
    assert (path / "notes.partial").exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("group", [None, "a/b"])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_any_file_cut_off(tmp_path, zarr_format, group, kept):
    """The same call makes the file whole again, or says in a sentence that the store is damaged and touches nothing."""
    path, options = tmp_path / "a.zarr", {"group": group, "zarr_format": zarr_format}
    xdeepsd.to_zarr(make_ds(), path, **options)
    whole = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert len(whole) > 8

    def heals(file):
        return file.name == ".zmetadata" or ("pr" in file.parts and bool(re.fullmatch(r"[\d.]+", file.name)))

    for file, content in whole.items():
        if kept and re.fullmatch(r"[\d.]+", file.name):  # a chunk has no checksum
            continue
        file.write_bytes(content[: int(kept * len(content))])
        cut = {file: file.read_bytes() for file in whole}
        with contextlib.ExitStack() as refusal:
            if not heals(file):
                refusal.enter_context(pytest.raises((ValueError, OSError), match=re.escape(str(path))))
            xdeepsd.to_zarr(make_ds(), path, **options)
        if not heals(file):
            assert {file: file.read_bytes() for file in whole} == cut
            file.write_bytes(content)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == whole, file


def test_one_writer_at_a_time(tmp_path):
    """Two that begin one store would each clear away what the other writes; other groups of it are free."""
    path = tmp_path / "new" / "a.zarr"

    def compute(block):
        with pytest.raises(ValueError, match=rf"Another to_zarr is writing to {path}/a/b\. Wait for it, or type"):
            xdeepsd.to_zarr(make_ds(), path, group="a/b", overwrite=True)
        xdeepsd.to_zarr(make_ds(), path, group="a/c")
        return block

    ds = make_ds()
    rain = ds.pr.data.map_blocks(compute, meta=ds.pr.data._meta)
    with dask.config.set(scheduler="synchronous"):
        xdeepsd.to_zarr(ds.assign(pr=ds.pr.copy(data=rain)), path, group="a/b")
    for group in ("a/b", "a/c"):
        xr.testing.assert_equal(xr.open_zarr(path, group=group).load(), ds.compute())
    xdeepsd.to_zarr(ds, path, group="a/b", overwrite=True)
    assert sorted(file.name for file in path.parent.iterdir()) == [".a.zarr.a.b.lock", ".a.zarr.a.c.lock", "a.zarr"]


PACKAGE = str(Path(write.__file__).parents[1])
SCRIPT = """
import sys, time, types
from pathlib import Path
import numpy as np, dask, dask.array, xarray as xr
xdeepsd = sys.modules["xdeepsd"] = types.ModuleType("xdeepsd")  # without its __init__, which imports torch
xdeepsd.__path__ = [sys.argv[3]]
from xdeepsd.stores import write as store

def compute(block, day):
    with open(sys.argv[2], "a") as log:  # one line for each region that is computed
        log.write(f"{int(day[0, 0, 0])}\\n")
    time.sleep(0.02)
    rng = np.random.default_rng(int(day[0, 0, 0]))
    return rng.normal(size=(1, 200, 200)).astype("f4")

if __name__ == "__main__":
    days = 60
    day = dask.array.arange(days, chunks=1)[:, None, None]
    data = dask.array.map_blocks(compute, dask.array.zeros((days, 200, 200), chunks=(1, -1, -1), dtype="f4"), day,
                                 dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    coords = {"time": xr.date_range("2000-01-01", periods=days)}
    ds = xr.Dataset({"pr": (("time", "lat", "lon"), data)}, coords)
    Path(sys.argv[2]).touch()
    store.to_zarr(ds, sys.argv[1], encoding={"pr": {"chunks": (1, 100, 100)}})
"""


def launch(tmp_path, name):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    log = tmp_path / f"{name}.log"
    return subprocess.Popen([sys.executable, script, tmp_path / f"{name}.zarr", log, PACKAGE]), log


@pytest.mark.slow
def test_kill_9_of_the_process(tmp_path):
    process, _ = launch(tmp_path, "whole")
    assert process.wait() == 0
    whole = chunks_of(tmp_path / "whole.zarr")
    kills = 0
    for wanted in (5, 20, None):
        process, log = launch(tmp_path, "a")
        before = len(log.read_text().split()) if log.exists() else 0
        path = tmp_path / "a.zarr"
        written = [int(key.split("/")[2]) for key in chunks_of(path) if not key.endswith(".partial")]
        finished = {day for day in written if written.count(day) == 4}
        if wanted is not None:
            while not log.exists() or len(log.read_text().split()) <= before + wanted:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
            assert opened(path).attrs[layout.STATUS] == layout.INCOMPLETE
        else:
            assert process.wait() == 0
        computed = {int(day) for day in log.read_text().split()[before:]}
        assert not computed & finished  # finished regions are never recomputed
    assert kills == 2
    assert chunks_of(path) == whole
    assert opened(path, consolidated=True).attrs[layout.STATUS] == layout.COMPLETE


def make_random(days=24, slow=0.05, side=20):
    """Regions that take a while to compute, by a function that needs no imports on the workers."""

    def compute(block, block_info=None):
        time.sleep(slow)
        (first, _), *_ = block_info[0]["array-location"]
        return block + np.random.default_rng(first).normal(size=block.shape).astype("f4")

    data = dask.array.zeros((days, side, side), chunks=(1, -1, -1), dtype="f4").map_blocks(compute, dtype="f4")
    return xr.Dataset({"pr": (("time", "lat", "lon"), data)})


@pytest.fixture(scope="module")
def cluster():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 20}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.mark.slow
def test_kill_9_of_workers(tmp_path, cluster):
    ds = make_random()
    with dask.config.set(scheduler="threads"):
        xdeepsd.to_zarr(ds, tmp_path / "whole.zarr")
    kills = []

    def progress(done, total):
        if done in (3, 9):
            nannies = cluster.workers.values()
            kills.append(next(nanny.pid for nanny in nannies if nanny.pid not in (None, *kills)))
            os.kill(kills[-1], signal.SIGKILL)

    with Client(cluster):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", progress=progress)
    assert len(kills) == 2
    assert chunks_of(tmp_path / "a.zarr") == chunks_of(tmp_path / "whole.zarr")


def test_distributed_is_threaded(tmp_path, cluster):
    ds = make_ds()
    ds["pr"].data = dask.array.from_array(ds["pr"].compute().data, chunks=(2, 3, 4))
    with Client(cluster):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"chunks": (1, 3, 4)}})  # the first one: all NaN
        with pytest.raises(ValueError, match="cannot write to a MemoryStore"):
            xdeepsd.to_zarr(ds, zarr.storage.MemoryStore())
    with dask.config.set(scheduler="threads"):
        xdeepsd.to_zarr(ds, tmp_path / "b.zarr", encoding={"pr": {"chunks": (1, 3, 4)}})
    assert len(chunks_of(tmp_path / "a.zarr")) == 7
    assert chunks_of(tmp_path / "a.zarr") == chunks_of(tmp_path / "b.zarr")


def test_workers_that_write_elsewhere_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "_write", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match=r"4 of 4 regions were computed but are not in .*a.zarr"):
        xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr")
    assert opened(tmp_path / "a.zarr").attrs[layout.STATUS] == layout.INCOMPLETE


# --- refused by name ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    model = make_stack(1, channels=(3,), kernels=(3, 3))
    coarse = make_coarse()
    coarse.to_dataset().chunk(time=2).to_zarr(folder / "in.zarr")
    static = make_static(coarse, 2)
    return folder, model, static


def begin(folder, model, static, path, source="in.zarr", chunks=None, store_options=(), **options):
    ds = opened(folder / source, chunks=chunks or {"time": 2})
    xdeepsd.downscale(ds, model, static, **options).deepsd.to_zarr(path, **dict(store_options))


def test_something_else_is_refused_by_name(case, tmp_path):
    folder, model, static = case
    path = tmp_path / "out.zarr"
    mask = static["elevation"] > 500
    begin(folder, model, static, path, mask=mask)
    begin(folder, model, static, path, mask=mask)  # opened again: still recognised
    whole = chunks_of(path)

    def refused(match, model=model, static=static, **options):
        with pytest.raises(ValueError, match=match):
            begin(folder, model, static, path, **{"mask": mask, **options})

    refused("- model: ", model=make_stack(1, channels=(3,), kernels=(3, 3), seed=9))
    refused("- static fields: ", static=static + 1)
    refused("- mask: ", mask=~mask)
    refused("- mask: [0-9a-f]* in the store, none now", mask=None)
    refused("- options: .*float32.* in the store, .*float64.* now", precision="float64")
    refused(r"- pr: chunks: \(2, 12, 16\) in the store, \(3, 12, 16\) now", chunks={"time": 3})
    refused("- pr: dtype: float32 in the store, int16 now", store_options={
        "encoding": {"pr": {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -1}}})  # fmt: skip
    refused("- pr: compressors: ", store_options={"encoding": {"pr": {"compressors": [BloscCodec()]}}})
    other = make_coarse(seed=5)
    other.assign_coords(time=xr.date_range("2002-01-01", periods=5)).to_dataset().to_zarr(
        folder / "time.zarr", mode="w"
    )
    refused("- time: ", source="time.zarr")
    other.assign_attrs(units="kg m-2 day-1").to_dataset().to_zarr(folder / "units.zarr", mode="w")
    refused("- pr: attribute units: mm day-1 in the store, kg m-2 day-1 now", source="units.zarr")
    other.isel(lat=slice(4)).to_dataset().to_zarr(folder / "grid.zarr", mode="w")
    refused("- lat: shape", source="grid.zarr", static=static.isel(lat=slice(8)), mask=mask[:8])
    other.rename("rain").to_dataset().to_zarr(folder / "name.zarr", mode="w")
    refused("- variables: .*'pr'.* in the store, .*'rain'.* now", source="name.zarr")
    other.to_dataset().to_zarr(folder / "data.zarr", mode="w")
    refused("(?s)- input: .*in.zarr.* in the store, .*data.zarr.* now.*same_input=True", source="data.zarr")
    assert chunks_of(path) == whole


def test_a_changed_input_is_refused_unless_vouched_for(case, tmp_path):
    _, model, static = case
    source = tmp_path / "in.zarr"
    make_coarse().to_dataset().to_zarr(source)
    begin(tmp_path, model, static, tmp_path / "out.zarr")
    make_coarse(seed=8).to_dataset().to_zarr(source, mode="w")  # the same path, grid and times
    with pytest.raises(ValueError, match=r"begun with something else:\n- input: "):
        begin(tmp_path, model, static, tmp_path / "out.zarr")
    begin(tmp_path, model, static, tmp_path / "out.zarr", store_options={"same_input": True})
    with pytest.raises(ValueError, match="- static fields"):
        begin(tmp_path, model, static + 1, tmp_path / "out.zarr", store_options={"same_input": True})


def test_stores_that_exist(tmp_path):
    path = tmp_path / "a.zarr"
    xdeepsd.to_zarr(make_ds(), path)
    with pytest.raises(FileExistsError, match=r"a.zarr exists. Type resume=True to continue .* overwrite=True"):
        xdeepsd.to_zarr(make_ds(), path, resume=False)
    other = make_ds(seed=3, days=3)
    xdeepsd.to_zarr(other, path, overwrite=True)
    xr.testing.assert_equal(opened(path).load(), other.compute())
    assert len(chunks_of(path)) == 2
    make_ds().to_zarr(tmp_path / "b.zarr")
    with pytest.raises(FileExistsError, match=r"not written by xdeepsd.to_zarr"):
        xdeepsd.to_zarr(other, tmp_path / "b.zarr")
    xdeepsd.to_zarr(other, tmp_path / "b.zarr", overwrite=True)
    xr.testing.assert_equal(opened(path).load(), other.compute())


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_zarr_store_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"not a Zarr group. It is left alone"):
        xdeepsd.to_zarr(make_ds(), tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_input_is_never_overwritten(case):
    folder, model, static = case
    for path in (folder / "in.zarr", folder):
        with pytest.raises(ValueError, match="is or contains the input"):
            begin(folder, model, static, path, store_options={"overwrite": True})


@pytest.mark.parametrize("way", ["array", "map", "mfdataset", "delayed path", "relative path", "symlink", "unread"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_no_way_leads_to_overwriting_the_input(case, tmp_path, monkeypatch, way, zarr_format):
    _, model, static = case
    monkeypatch.chdir(tmp_path)
    path, target = tmp_path / "in.zarr", tmp_path / "in.zarr"
    coarse = make_coarse(days=4)
    coarse.to_dataset().chunk(time=2).to_zarr(path, zarr_format=zarr_format, consolidated=False)
    if way == "array":
        given = opened(path)["pr"]
    elif way == "map":
        given = opened(path).map(lambda da: da * 1, keep_attrs=True)
    elif way == "mfdataset":
        later = coarse.assign_coords(time=coarse.time + np.timedelta64(4, "D"))
        later.to_dataset().chunk(time=2).to_zarr(tmp_path / "first.zarr", consolidated=False)
        given = xr.open_mfdataset([path, tmp_path / "first.zarr"], engine="zarr", consolidated=False)
        target = tmp_path / "first.zarr"
    elif way == "delayed path":

        def read(where):
            return zarr.open_array(where + "/pr")[:]

        data = dask.array.from_delayed(dask.delayed(read)(str(path)), coarse.shape, "f4")
        given = coarse.copy(data=data)
    elif way == "relative path":
        given = opened("in.zarr")["pr"]
    elif way == "symlink":
        (tmp_path / "link.zarr").symlink_to(path)
        given = opened(tmp_path / "link.zarr")["pr"]
    else:
        given = opened(path, chunks=None)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fine = given.deepsd.downscale(model, static)
    with pytest.raises(ValueError, match=r"The output .* is or contains the input .*Type another path"):
        fine.deepsd.to_zarr(target, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    fine.deepsd.to_zarr(tmp_path / "out.zarr", overwrite=True)
    assert opened(tmp_path / "out.zarr")["pr"].notnull().all()


def test_the_input_in_another_kind_of_store(case):
    _, model, static = case
    store = zarr.storage.MemoryStore()
    make_coarse().to_dataset().chunk(time=2).to_zarr(store, group="a", consolidated=False)
    fine = xr.open_zarr(store, group="a", consolidated=False)["pr"].deepsd.downscale(model, static)
    for group in ("a", None):
        with pytest.raises(ValueError, match="is or contains the input"):
            fine.deepsd.to_zarr(store, group=group, overwrite=True)
    fine.deepsd.to_zarr(store, group="b")
    assert xr.open_zarr(store, group="b")["pr"].notnull().all()


def test_a_group_beside_the_input_in_one_store(case, tmp_path):
    """The ladder of `prepare`, say: its coarsest level as input, another group as output."""
    _, model, static = case
    path = tmp_path / "levels.zarr"
    make_coarse().to_dataset().chunk(time=2).to_zarr(path, group="level_0")
    before = chunks_of(path, "level_0")
    for overwrite in (False, True):
        fine = opened(path, group="level_0").deepsd.downscale(model, static)
        fine.deepsd.to_zarr(path, group="fine", overwrite=overwrite)
        assert opened(path, group="fine")["pr"].notnull().all()
    assert chunks_of(path, "level_0") == before


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_files_of_the_user_in_a_store_are_never_deleted(tmp_path, zarr_format):
    path = tmp_path / "a.zarr"
    xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format)
    for place in ("notes.txt", "plots/map.png", "pr/readme.md"):
        file = path / place
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        with pytest.raises(FileExistsError, match=r"a.zarr also holds something that is not Zarr: .*Move it away"):
            xdeepsd.to_zarr(make_ds(seed=2), path, overwrite=True, zarr_format=zarr_format)
        assert file.read_text() == "mine"
        file.unlink()
        if file.parent.name == "plots":
            file.parent.rmdir()
    (tmp_path / "data").mkdir()
    (path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(FileExistsError, match="also holds something that is not Zarr"):
        xdeepsd.to_zarr(make_ds(seed=2), path, overwrite=True, zarr_format=zarr_format)
    (path / "link").unlink()
    xdeepsd.to_zarr(make_ds(seed=2), path, overwrite=True, zarr_format=zarr_format)
    xr.testing.assert_equal(opened(path).load(), make_ds(seed=2).compute())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_an_interrupted_call_did_not_write_stays_without_overwrite(tmp_path, zarr_format):
    path = tmp_path / "a.zarr"
    xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format)
    half = {layout.STATUS: layout.BEGUN, "xdeepsd_half": [*make_ds().variables, "pr_bounds"]}
    zarr.open_group(path, mode="r+").attrs.update(half)
    mine = make_ds(seed=3).compute()
    mine.to_zarr(path, group="mine", zarr_format=zarr_format, consolidated=False)
    with pytest.raises(FileExistsError, match="holds mine, which that call did not write"):
        xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format)
    xr.testing.assert_equal(opened(path / "mine", consolidated=False).load(), mine)
    (path / "pr_bounds" / "drafts").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"also holds something that is not Zarr: .*pr_bounds|holds mine"):
        xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format)
    assert (path / "pr_bounds" / "drafts").is_dir()
    with pytest.raises(FileExistsError, match=r"also holds something that is not Zarr: .*pr_bounds"):
        xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format, overwrite=True)
    shutil.rmtree(path / "pr_bounds")
    zarr.save_array(path / "pr" / "weights", np.arange(3))
    with pytest.raises(FileExistsError, match=r"also holds something that is not Zarr: .*weights"):
        xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format, overwrite=True)
    shutil.rmtree(path / "pr" / "weights")
    xdeepsd.to_zarr(make_ds(), path, zarr_format=zarr_format, overwrite=True)
    xr.testing.assert_equal(opened(path).load(), make_ds().compute())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_of_a_consolidated_store_is_found(tmp_path, zarr_format):
    path = tmp_path / "a.zarr"
    root = make_ds()
    root.to_zarr(path, zarr_format=zarr_format, consolidated=True)
    xdeepsd.to_zarr(make_ds(seed=2), path, group="b/c", zarr_format=zarr_format)
    xr.testing.assert_equal(opened(path, group="b/c").load(), make_ds(seed=2).compute())
    xdeepsd.to_zarr(make_ds(seed=3, days=3), path, group="b/c", overwrite=True, zarr_format=zarr_format)
    xr.testing.assert_equal(opened(path, group="b/c").load(), make_ds(seed=3, days=3).compute())
    xr.testing.assert_equal(opened(path).load(), root.compute())


def test_variables_that_were_opened_without_chunks_are_written_by_regions(tmp_path):
    make_ds().to_zarr(tmp_path / "in.zarr")
    given = opened(tmp_path / "in.zarr", chunks=None)
    xdeepsd.to_zarr(given, tmp_path / "out.zarr")
    assert not given["pr"].variable._in_memory
    xr.testing.assert_equal(opened(tmp_path / "out.zarr").load(), make_ds().compute())


def test_a_url_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # where an earlier test has used it
    with pytest.raises(ImportError, match=r"s3://bucket/a.zarr needs a package.*pip install s3fs"):
        xdeepsd.to_zarr(make_ds(), "s3://bucket/a.zarr")


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match="needed: an xarray Dataset"):
        xdeepsd.to_zarr(np.zeros(3), tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="has no name"):
        xdeepsd.to_zarr(make_ds()["pr"].rename(None), tmp_path / "a.zarr")
    with pytest.raises(TypeError, match="needed: a path, a URL or a zarr store"):
        xdeepsd.to_zarr(make_ds(), 5)
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr", storage_options={"anon": True})
    with pytest.raises(ValueError, match="zarr_format is 4"):
        xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr", zarr_format=4)
    with pytest.raises(ValueError, match="cannot delete or list"):
        xdeepsd.to_zarr(make_ds(), zarr.storage.ZipStore(tmp_path / "a.zip", mode="w"))
    with pytest.raises(ValueError, match="writes local files in place"):
        xdeepsd.to_zarr(make_ds(), zarr.storage.FsspecStore.from_url(f"local://{tmp_path}/a.zarr"))
    with (
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}),
        pytest.raises(ValueError, match=r"zarrs.ZarrsCodecPipeline may write local files in place"),
    ):
        xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


# --- full disks ---------------------------------------------------------------------------------------------------


FULL_DISK = """
import resource, sys, types
import numpy as np, dask, xarray as xr
xdeepsd = sys.modules["xdeepsd"] = types.ModuleType("xdeepsd")  # without its __init__, which imports torch
xdeepsd.__path__ = [sys.argv[2]]
from xdeepsd.stores import write as store
blocks = [np.random.default_rng(i).normal(size=(1, 100, 100)) * (i == 2) for i in range(4)]
data = dask.array.concatenate([dask.array.from_array(block, chunks=-1) for block in blocks])
ds = xr.Dataset({"pr": (("time", "lat", "lon"), data)})
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
with dask.config.set(scheduler="synchronous"):
    store.to_zarr(ds, sys.argv[1], progress=print)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """Files over a size limit cannot be written: the system itself raises the error, as on a full disk."""
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "a.zarr", PACKAGE]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "No space left for" in failed.stderr
    assert "of 4 regions are written and kept: free some space and give the same command again" in failed.stderr
    assert opened(tmp_path / "a.zarr").attrs[layout.STATUS] == layout.INCOMPLETE
    done, seen = len(chunks_of(tmp_path / "a.zarr")), []
    blocks = [np.random.default_rng(i).normal(size=(1, 100, 100)) * (i == 2) for i in range(4)]
    data = dask.array.concatenate([dask.array.from_array(block, chunks=-1) for block in blocks])
    ds = xr.Dataset({"pr": (("time", "lat", "lon"), data)})  # in another process, identified by its names
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", progress=lambda *done: seen.append(done))
    assert seen[0] == (done, 4)
    assert opened(tmp_path / "a.zarr").attrs[layout.STATUS] == layout.COMPLETE


def test_a_full_file_system(tmp_path):
    """A real small one that fills up, if the tests may mount it."""
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True
        ).returncode
    ):
        pytest.skip("no right to mount a small file system")
    try:
        ds = make_random(days=30, slow=0, side=60)
        with pytest.raises(
            OSError, match=r"No space left for .*a.zarr .*(\d+) of 30 regions are written and kept"
        ) as e:
            xdeepsd.to_zarr(ds, tmp_path / "a.zarr")
        assert e.value.errno == errno.ENOSPC
        assert 0 < len(chunks_of(tmp_path / "a.zarr")) < 30
        subprocess.run(["mount", "-o", "remount,size=2m", tmp_path], check=True)
        seen = []
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", progress=lambda *done: seen.append(done))
        assert 0 < seen[0][0] < 30
        xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), ds.compute())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- other stores -------------------------------------------------------------------------------------------------


def test_a_url(tmp_path):
    ds = make_ds()
    xdeepsd.to_zarr(ds, "memory://test_store/a.zarr")
    xr.testing.assert_equal(opened("memory://test_store/a.zarr").load(), ds.compute())
    xdeepsd.to_zarr(ds, f"file://{tmp_path}/a.zarr")
    xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), ds.compute())


def test_relative_paths_and_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    xdeepsd.to_zarr(make_ds(), "a.zarr")
    xdeepsd.to_zarr(make_ds(), "~/b.zarr")
    assert chunks_of(tmp_path / "a.zarr") == chunks_of(tmp_path / "b.zarr")


def test_obstore(tmp_path):
    obstore = pytest.importorskip("obstore.store", reason="obstore is not installed")
    first, seen = Counted(stop_after=4), Counted()
    store = zarr.storage.ObjectStore(obstore.LocalStore(str(tmp_path)))
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(seen=first), store, group="a.zarr")
    xdeepsd.to_zarr(make_ds(seen=seen), store, group="a.zarr")
    assert len(first.days) >= 4
    assert sorted(first.days + seen.days) == list(range(7))
    xr.testing.assert_equal(opened(tmp_path / "a.zarr").load(), make_ds().compute())


def test_groups(tmp_path):
    a, b = make_ds(seed=1), make_ds(seed=2)
    xdeepsd.to_zarr(a, tmp_path / "a.zarr", group="gcm/one")
    xdeepsd.to_zarr(b, tmp_path / "a.zarr", group="gcm/two")
    xdeepsd.to_zarr(b, tmp_path / "a.zarr", group="gcm/one", overwrite=True)
    xdeepsd.to_zarr(a, tmp_path / "a.zarr", group="gcm/one", overwrite=True)
    xr.testing.assert_equal(opened(tmp_path / "a.zarr", group="gcm/one").load(), a.compute())
    xr.testing.assert_equal(opened(tmp_path / "a.zarr", group="gcm/two").load(), b.compute())
    assert set(zarr.open_group(tmp_path / "a.zarr", mode="r")["gcm"].group_keys()) == {"one", "two"}


@pytest.fixture
def repository(tmp_path):
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repository")))


def read(repository, **options):
    return opened(repository.readonly_session("main").store, consolidated=False, **options)


def test_icechunk_is_transactional(repository):
    ds = make_ds()
    session = repository.writable_session("main")
    xdeepsd.to_zarr(ds, session.store)
    with pytest.raises(FileNotFoundError):
        read(repository)
    session.commit("downscaled")
    result = read(repository)
    assert result.attrs[layout.STATUS] == layout.COMPLETE
    xr.testing.assert_equal(result.load(), ds.compute())
    again = repository.writable_session("main")
    seen = Counted()
    xdeepsd.to_zarr(make_ds(seen=seen), again.store)
    assert seen.days == []
    assert not again.has_uncommitted_changes
    with pytest.raises(ValueError, match="read-only"):
        xdeepsd.to_zarr(ds, repository.readonly_session("main").store)


def test_icechunk_killed_and_committed_half(repository):
    session = repository.writable_session("main")
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(seen=Counted(stop_after=4)), session.store)
    del session  # killed: none of it is visible
    with pytest.raises(FileNotFoundError):
        read(repository)
    session = repository.writable_session("main")
    first = Counted(stop_after=4)
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(seen=first), session.store)
    session.commit("half")
    assert read(repository).attrs[layout.STATUS] == layout.INCOMPLETE
    session = repository.writable_session("main")
    seen = Counted()
    xdeepsd.to_zarr(make_ds(seen=seen), session.store)
    session.commit("the other half")
    assert len(first.days) >= 4
    assert sorted(first.days + seen.days) == list(range(7))
    xr.testing.assert_equal(read(repository).load(), make_ds().compute())


def test_icechunk_distributed(repository, cluster):
    ds = make_random(days=6, slow=0)
    with Client(cluster):
        session = repository.writable_session("main")
        xdeepsd.to_zarr(ds, session.store, group="gcm/one")
        assert session.has_uncommitted_changes
        with pytest.raises(ValueError, match=r"uncommitted changes.*session.commit"):
            xdeepsd.to_zarr(ds, session.store, group="gcm/two")
        session.commit("one")

        def broken(block, block_info=None):
            if block_info[0]["chunk-location"][0] == 5:
                raise FloatingPointError("on purpose")
            return block

        session = repository.writable_session("main")
        bad = ds.copy(data={"pr": ds["pr"].data.map_blocks(broken, dtype="f4", name="broken")})
        with pytest.raises(FloatingPointError):
            xdeepsd.to_zarr(bad, session.store, group="gcm/two")
        session.commit("as far as it came")
        session = repository.writable_session("main")
        fork = session.fork()  # a user's own fork
        xdeepsd.to_zarr(ds, fork.store, group="gcm/two", same_input=True)
        session.merge(fork)
        session.commit("two")
    for group in ("gcm/one", "gcm/two"):
        result = read(repository, group=group)
        assert result.attrs[layout.STATUS] == layout.COMPLETE
        xr.testing.assert_equal(result.load(), ds.compute(scheduler="threads"))


# --- the graph ----------------------------------------------------------------------------------------------------


def test_one_task_for_a_chunk_of_fifty_years(tmp_path, monkeypatch):
    days, model, coarse = 18_263, make_stack(1, channels=(3,), kernels=(3, 3)), make_coarse(days=2)
    rain = dask.array.zeros((days, 6, 8), chunks=(30, -1, -1), dtype="f4")
    time_axis = xr.date_range("1970-01-01", periods=days)
    ds = xr.DataArray(rain, {**coarse.drop_vars("time").coords, "time": time_axis}, coarse.dims, "pr", coarse.attrs)
    ds.to_dataset().to_zarr(tmp_path / "in.zarr")
    graphs = []

    def look(graph, keys, client, advance):
        graphs.append((graph, keys))
        raise Killed

    monkeypatch.setattr(write, "compute", look)
    fine = opened(tmp_path / "in.zarr").deepsd.downscale(model, make_static(coarse, 2))
    with pytest.raises(Killed):
        fine.deepsd.to_zarr(tmp_path / "out.zarr")
    ((graph, keys),) = graphs
    assert len(keys) == 609
    assert len(graph) <= 609 + 5  # read, downscale and write are one task
    assert opened(tmp_path / "out.zarr").sizes["time"] == days
    monkeypatch.undo()
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(days=8, seen=Counted(stop_after=4)), tmp_path / "half.zarr")
    monkeypatch.setattr(write, "compute", look)
    with pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(days=8), tmp_path / "half.zarr")
    assert 1 <= len(graphs[-1][1]) <= 2  # what is finished is not in the graph


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with an input, a model with its grid and mask, and other static fields and masks."""
    folder = tmp_path_factory.mktemp("job")
    coarse = make_coarse(days=7)
    static = make_static(coarse, 2)
    stack = make_stack(1, channels=(3,), kernels=(3, 3))
    model = xdeepsd.StackedSRCNN(stack.stages, static=static, mask=static["elevation"] > 300)
    xdeepsd.save_model(model, folder / "model")
    coarse.to_dataset().chunk(time=4).to_zarr(folder / "in.zarr")
    coarse.to_netcdf(folder / "in.nc")
    static.rename(elevation="height").to_netcdf(folder / "height.nc")
    (static["elevation"] > 900).rename("land").to_netcdf(folder / "land.nc")
    return folder, coarse, model, static


def run(folder, *arguments):
    from typer.testing import CliRunner

    from xdeepsd.cli import app

    words = [str(folder / a) if a.split(".")[-1] in ("zarr", "nc") or (folder / a).is_dir() else a for a in arguments]
    return CliRunner().invoke(app, ["downscale", *words])


def test_command(job, tmp_path):
    folder, coarse, model, static = job
    result = run(folder, "in.zarr", "model", "out.zarr", "--chunk-days", "2", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "7 of 7 days" in result.output
    assert "out.zarr is complete: 7 days" in result.output
    expected = coarse.deepsd.downscale(model)
    xr.testing.assert_equal(opened(folder / "out.zarr")["pr"].load(), expected)
    assert opened(folder / "out.zarr").chunks["time"] == (2, 2, 2, 1)
    files = {p: p.stat().st_mtime_ns for p in (folder / "out.zarr").rglob("*")}
    assert run(folder, "in.zarr", "model", "out.zarr", "--chunk-days", "2").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "out.zarr").rglob("*")} == files  # nothing to do

    options = ["--static", "height.nc", "--mask", "land.nc", "--precision", "float64", "--variable", "pr"]
    result = run(folder, "in.nc", "model", "other.zarr", *options)
    assert result.exit_code == 0, result.output
    expected = coarse.deepsd.downscale(model, static, mask=static["elevation"] > 900, precision="float64")
    xr.testing.assert_allclose(opened(folder / "other.zarr")["pr"].load(), expected)


def test_command_with_an_ensemble(job):
    folder, coarse, model, _ = job
    other = dataclasses.replace(
        make_stack(1, seed=1, channels=(3,), kernels=(3, 3)), static=model.static, mask=model.mask
    )
    noisy = dataclasses.replace(
        make_stack(1, noise=1, channels=(3,), kernels=(3, 3)), static=model.static, mask=model.mask
    )
    models = {"seeds.zarr": [model, other], "noise.zarr": [noisy, noisy]}
    for name, made in models.items():
        for number, one in enumerate(made):
            xdeepsd.save_model(one, folder / name.split(".")[0] / f"seed_{number}")
    result = run(folder, "in.zarr", "seeds", "seeds.zarr", "--chunk-days", "2")
    assert result.exit_code == 0, result.output
    assert "seeds.zarr is complete: 7 days, 2 members." in result.output
    there = opened(folder / "seeds.zarr")["pr"]
    assert there.chunks == ((1, 1), (2, 2, 2, 1), *coarse.chunk(time=2).deepsd.downscale(model).chunks[1:])
    xr.testing.assert_equal(there.load(), coarse.deepsd.downscale([model, other]))
    result = run(folder, "in.zarr", "seeds", "mean.zarr", "--statistics", "--scale-factor", "0.02")
    assert result.exit_code == 0, result.output
    expected = coarse.to_dataset().deepsd.downscale([model, other], statistics=True)
    xr.testing.assert_allclose(opened(folder / "mean.zarr").load(), expected, atol=0.0101)
    options = ["--members", "2", "--seed", "3"]
    result = run(folder, "in.zarr", "noise", "noise.zarr", *options)
    assert result.exit_code == 0, result.output
    assert "7 days, 4 members." in result.output
    expected = coarse.deepsd.downscale([noisy, noisy], members=2, seed=3)
    np.testing.assert_allclose(opened(folder / "noise.zarr")["pr"].load(), expected, rtol=1e-5, atol=1e-5)
    for words in (("seeds", "seeds.zarr", "--members", "2"), ("noise", "noise.zarr"), ("model", "seeds.zarr")):
        refused = run(folder, "in.zarr", *words)
        assert refused.exit_code == 1, refused.output


def test_command_packs(job):
    folder, coarse, model, _ = job
    result = run(folder, "in.zarr", "model", "packed.zarr", "--scale-factor", "0.02")
    assert result.exit_code == 0, result.output
    assert zarr.open_array(folder / "packed.zarr/pr", mode="r").dtype == np.uint16
    expected = coarse.deepsd.downscale(model)
    there = opened(folder / "packed.zarr")["pr"].load()
    np.testing.assert_array_equal(there.isnull(), expected.isnull())
    np.testing.assert_allclose(there, expected, atol=0.0101)


def test_command_resumes(job):
    folder, *_ = job
    assert run(folder, "in.zarr", "model", "whole.zarr", "--chunk-days", "2").exit_code == 0
    assert run(folder, "in.zarr", "model", "half.zarr", "--chunk-days", "2").exit_code == 0
    whole = chunks_of(folder / "half.zarr")
    (folder / "half.zarr/pr/c/1/0/0").unlink()
    zarr.open_group(folder / "half.zarr", mode="r+").attrs[layout.STATUS] = layout.INCOMPLETE
    result = run(folder, "half.zarr", "model", "x.zarr")
    assert result.exit_code == 1
    assert "half.zarr is not complete: first finish the command that began it" in result.stderr
    assert run(folder, "in.zarr", "model", "half.zarr", "--chunk-days", "2").exit_code == 0
    assert chunks_of(folder / "half.zarr") == whole == chunks_of(folder / "whole.zarr")


def test_command_reads_and_writes_groups(job, tmp_path):
    folder, coarse, model, _ = job
    store = tmp_path / "levels.zarr"
    coarse.to_dataset().chunk(time=4).to_zarr(store, group="level_0", consolidated=False)
    result = run(folder, str(store), "model", str(store), "--group", "level_0", "--out-group", "fine")
    assert result.exit_code == 0, result.output
    assert opened(store, group="fine")["pr"].equals(coarse.deepsd.downscale(model).load())
    result = run(folder, str(store), "model", str(store), "--group", "level_0", "--out-group", "fine", "--overwrite")
    assert "levels.zarr/fineisreplaced." in "".join(result.output.split())  # wherever the line is wrapped
    result = run(folder, str(store), "model", str(store), "--group", "level_0", "--out-group", "level_0", "--overwrite")
    assert result.exit_code == 1
    assert "is or contains the input" in result.stderr
    result = run(folder, str(store), "model", str(store), "--group", "level_9", "--out-group", "fine")
    assert result.exit_code == 1
    assert "has no group 'level_9'" in result.stderr


@pytest.mark.slow
def test_command_with_workers_and_a_scheduler(job, cluster):
    folder, *_ = job
    assert run(folder, "in.zarr", "model", "a.zarr", "--chunk-days", "3").exit_code == 0
    result = run(folder, "in.zarr", "model", "b.zarr", "--chunk-days", "3", "--workers", "1", "--threads", "2")
    assert result.exit_code == 0, result.output
    result = run(folder, "in.zarr", "model", "c.zarr", "--chunk-days", "3", "--scheduler", cluster.scheduler_address)
    assert result.exit_code == 0, result.output
    assert chunks_of(folder / "a.zarr") == chunks_of(folder / "b.zarr") == chunks_of(folder / "c.zarr")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.zarr", "model", "e.zarr"], "none.zarr does not exist"),
        (["in.zarr", "in.zarr", "e.zarr"], "No model at"),
        (["in.zarr", "model", "e.zarr", "--variable", "rain"], "There is no variable='rain'"),
        (["in.zarr", "model", "e.zarr", "--precision", "int3"], "precision 'int3'; needed"),
        (["in.zarr", "model", "e.zarr", "--device", "gpu"], "device 'gpu'; needed: a device that can compute"),
        (["in.zarr", "model", "e.zarr", "--scale-factor", "0"], "--scale-factor is 0. Needed: a number above 0"),
        (["in.zarr", "model", "e.zarr", "--mask", "height.nc"], "needed: mask, or a single one of bool"),
        (["in.zarr", "model", "e.zarr", "--static", "land.nc"], "{'land': 'bool'}; needed: elevation"),
        (["in.zarr", "model", "in.zarr", "--overwrite"], "is or contains the input"),
        (["in.zarr", "model", "done.zarr", "--no-resume"], "Type --resume to continue it, or --overwrite"),
        (["in.zarr", "model", "done.zarr", "--mask", "land.nc"], "- mask: "),
        (["in.nc", "model", "done.zarr"], "type --same-input"),
        (["in.zarr", "model", "in.nc/e.zarr"], "in.nc is a file. Type another path"),
        (["in.zarr", "model", "e.zarr", "--workers", "2", "--scheduler", "tcp://x:1"], "cannot be combined"),
    ],
)
def test_command_errors(job, arguments, text):
    folder, *_ = job
    if "done.zarr" in arguments and not (folder / "done.zarr").exists():
        assert run(folder, "in.zarr", "model", "done.zarr").exit_code == 0
    result = run(folder, *arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "e.zarr").exists()


@pytest.mark.slow
def test_the_howto_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coarse = make_coarse(days=60)
    stack = make_stack(1, channels=(3,), kernels=(3, 3))
    xdeepsd.save_model(xdeepsd.StackedSRCNN(stack.stages, static=make_static(coarse, 2)), "model")
    coarse.to_dataset().to_zarr("coarse.zarr")
    text = (Path(__file__).parents[2] / "docs/howto/zarr.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 7
    exec("\n".join(blocks), {})
    fine = opened("fine.zarr").load()
    np.testing.assert_allclose(opened("packed.zarr")["pr"], fine["pr"], atol=0.011)
    for name in ("by_workers.zarr", "sharded.zarr"):
        xr.testing.assert_equal(opened(name).load(), fine)


def test_a_damaged_input_of_a_command_is_named(tmp_path):
    """Dates beyond any calendar, for which xarray does not raise a ValueError."""
    from xdeepsd.cli.inputs import open_file

    path = tmp_path / "in.zarr"
    make_coarse().to_dataset().to_zarr(path)
    zarr.open_array(path / "time", mode="r+")[:] = 2**62
    with pytest.raises(ValueError, match=f"{path} cannot be read: "):
        open_file(str(path))


@pytest.mark.parametrize("what", ["an empty folder", "a link"])
@pytest.mark.parametrize("group", [None, "g", "g/h"])
def test_empty_folders_and_links_of_the_users_stay(tmp_path, what, group):
    """A place that holds no file but a folder or a link is taken, too."""
    place = tmp_path / "a.zarr" / (group or "")
    place.mkdir(parents=True)
    if what == "a link":
        (tmp_path / "outside").mkdir()
        (place / "thesis").symlink_to(tmp_path / "outside")
    else:
        (place / "thesis").mkdir()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"exists and is not a Zarr group\. It is left alone"):
            xdeepsd.to_zarr(make_ds(), tmp_path / "a.zarr", group=group, overwrite=overwrite)
    assert [file.name for file in place.iterdir()] == ["thesis"]
