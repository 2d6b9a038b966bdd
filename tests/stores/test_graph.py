"""What the client sends to a cluster: a graph whose size does not depend on the years, and the weights once."""

import dask.array
import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, LocalCluster
from distributed.protocol.serialize import serialize, to_serialize
from distributed.utils import nbytes
from test_store import Killed, chunks_of, opened

import xdeepsd
from xdeepsd.stores import write


def decades(folder, years):
    """Lazy days on a Zarr store without chunks, and a model whose weights are most of its size."""
    coarse, days = make_coarse(days=2), round(365.25 * years)
    rain = dask.array.zeros((days, 6, 8), chunks=(365, -1, -1), dtype="f4")
    time = np.datetime64("1950-01-01", "us") + np.arange(days) * np.timedelta64(1, "D")
    coords = {**coarse.drop_vars("time").coords, "time": time}
    ds = xr.DataArray(rain, coords, coarse.dims, "pr", coarse.attrs).to_dataset()
    ds.to_zarr(folder / f"{years}.zarr", compute=False, consolidated=False)
    model = make_stack(1, channels=(64, 32), kernels=(9, 1, 5))
    return opened(folder / f"{years}.zarr", chunks={"time": 30}).deepsd.downscale(model, make_static(coarse, 2))


def sent(fine, folder, monkeypatch):
    """The graph that `to_zarr` gives to the scheduler, its keys, and its size in bytes as it travels."""
    found = []

    def look(graph, keys, client, advance):
        found.extend((graph, keys))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, "compute", look)
        with pytest.raises(Killed):
            xdeepsd.to_zarr(fine, folder / "out.zarr", overwrite=True)
    header, frames = serialize(to_serialize(found[0]))
    return *found, sum(map(nbytes, [header, *frames]))


def test_a_thousand_years_are_sent_as_one_layer(tmp_path, monkeypatch):
    graph, keys, few = sent(decades(tmp_path, 10), tmp_path, monkeypatch)
    assert isinstance(graph, HighLevelGraph)
    assert set(dict(graph)) >= set(keys)
    graph, keys, many = sent(decades(tmp_path, 1000), tmp_path, monkeypatch)
    assert len(keys) == 12175
    assert not any(layer.is_materialized() for layer in graph.layers.values() if len(layer) > 1)
    assert many - few < 10 * len(keys)  # bytes: the sizes of the chunks


def test_the_weights_travel_to_a_worker_once(tmp_path):
    fine = decades(tmp_path, 10)
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        xdeepsd.to_zarr(fine, tmp_path / "a.zarr")
        logs = client.run(lambda dask_worker: [list(map(str, x["keys"])) for x in dask_worker.transfer_incoming_log])
    arrived = [[key for keys in log for key in keys if key.startswith("prepare-")] for log in logs.values()]
    assert sorted(map(len, arrived)) == [0, 1, 1]  # the worker that prepared them, and the two others
    xdeepsd.to_zarr(fine, tmp_path / "b.zarr")
    assert chunks_of(tmp_path / "a.zarr") == chunks_of(tmp_path / "b.zarr")
