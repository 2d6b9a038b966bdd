"""One task writes whole shards: by processes, after kills, and whatever the chunks are."""

import itertools

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import Killed, chunks_of, opened

import xdeepsd
from xdeepsd.stores import layout, regions, write


@pytest.fixture(scope="module")
def processes():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def rain(shape, chunks, seed):
    """Random values with NaN in a third of the cells, and whole days and corners of it."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.7, 8.0, shape).astype("f4")
    values[rng.random(shape) < 0.3] = np.nan
    values[rng.random(shape[0]) < 0.3] = np.nan
    values[:, : shape[1] // 2, : shape[2] // 2] = np.nan
    data = dask.array.from_array(values, chunks=chunks, name=f"rain-{seed}-{chunks}")
    return xr.Dataset({"pr": (("time", "lat", "lon"), data)}), values


sizes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
small = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25)
@given(shape=sizes, chunks=small, chunks_in_shard=small, shards_in_task=small, automatic=st.booleans(),
       lost=st.randoms(use_true_random=False), seed=st.integers(0, 9))  # fmt: skip
def test_whole_shards(
    processes, tmp_path_factory, shape, chunks, chunks_in_shard, shards_in_task, automatic, lost, seed
):
    """Two processes write, some shards are lost, the same call writes these again: the values, and the same bytes."""
    path = tmp_path_factory.mktemp("shards") / "a.zarr"
    shards = tuple(a * b for a, b in zip(chunks, chunks_in_shard, strict=True))
    tasks = tuple(a * b for a, b in zip(shards, shards_in_task, strict=True))
    ds, values = rain(shape, tasks, seed)
    encoding = {"pr": {"chunks": chunks, "shards": True if automatic else shards}}
    with processes.as_current():
        xdeepsd.to_zarr(ds, path, encoding=encoding)
    array = zarr.open_array(path, path="pr", mode="r")
    assert array.chunks == chunks
    if not automatic:
        assert array.shards == shards
    np.testing.assert_array_equal(opened(path)["pr"], values)
    whole = chunks_of(path)
    assert len(whole) == int(np.prod([-(-n // size) for n, size in zip(shape, array.shards, strict=True)]))
    keys = [region[1] for region in regions.regions_of(array, ds["pr"].chunks)]
    assert sorted(itertools.chain(*keys)) == sorted(whole)  # each shard belongs to one task, and to one only
    gone = lost.sample(sorted(whole), lost.randint(1, len(whole)))
    for key in gone:
        (path / key).unlink()
    zarr.open_group(path, mode="r+").attrs[layout.STATUS] = layout.INCOMPLETE
    seen = []
    with processes.as_current():
        xdeepsd.to_zarr(ds, path, encoding=encoding, progress=lambda *count: seen.append(count))
    affected = sum(not set(of_region).isdisjoint(gone) for of_region in keys)
    assert seen[0] == (len(keys) - affected, len(keys))
    assert chunks_of(path) == whole


def test_a_shard_for_each_task(tmp_path, monkeypatch):
    ds, values = rain((10, 7, 8), (4, 7, 8), 0)
    encoding = {"pr": {"chunks": (2, 3, 4), "shards": True}}
    todo = []

    def killed(graph, keys, client, advance):
        todo.append(len(keys))
        with dask.config.set(scheduler="synchronous"):
            dask.get(graph, keys[:2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, "compute", killed)
        with pytest.raises(Killed):
            xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding=encoding)
    seen = []
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding=encoding, progress=lambda *count: seen.append(count))
    assert todo == [3]
    assert seen[0] == (2, 3)
    assert zarr.open_array(tmp_path / "a.zarr", path="pr").shards == (4, 9, 8)  # a multiple of the chunks
    np.testing.assert_array_equal(opened(tmp_path / "a.zarr")["pr"], values)
    with pytest.raises(ValueError, match=r"pr: shards: \(4, 9, 8\) in the store, None now"):
        xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding={"pr": {"chunks": (2, 3, 4)}})
    with pytest.raises(ValueError, match=r"Zarr shards are 6: two tasks would write.*ds.chunk\(time=6\)"):
        xdeepsd.to_zarr(ds, tmp_path / "b.zarr", encoding={"pr": {"chunks": (3, 3, 4), "shards": True}})


def test_command(tmp_path):
    from typer.testing import CliRunner

    from xdeepsd.cli import app

    coarse = xdeepsd.make_climate(years=1).isel(time=slice(7))
    levels = xdeepsd.make_levels(coarse["precipitation"], coarse[["elevation"]], (2, 2, 2))
    levels[0][["precipitation"]].to_zarr(tmp_path / "in.zarr")
    words = ["downscale", str(tmp_path / "in.zarr"), "demo", str(tmp_path / "out.zarr"), "--chunk-days", "4"]
    result = CliRunner().invoke(app, [*words, "--chunks", "2,10,10", "--scale-factor", "0.02"])
    assert result.exit_code == 0, result.output
    array = zarr.open_array(tmp_path / "out.zarr", path="precipitation")
    assert array.chunks == (2, 10, 10)
    assert array.shards[0] == 4
    assert len(chunks_of(tmp_path / "out.zarr", "precipitation")) == 2
    for wrong in ("2,10", "2,10,x", "0,10,10", "2,10,10,10"):
        result = CliRunner().invoke(app, [*words, "--chunks", wrong])
        assert result.exit_code == 1
        assert "Needed: days, rows and columns" in result.output
