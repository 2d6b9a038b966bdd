"""`xdeepsd.cluster("gateway")` on the real server and proxy of Dask Gateway, whose backend starts local processes."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from waiting import until_true

import xdeepsd

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
CONFIG = """
from dask_gateway_server.options import Bool, Integer, Options

def handler(options):
    made = {{"worker_cores": options.worker_cores, "worker_threads": 1}}
    return made | ({{"scheduler_cmd": ["dask-scheduler"]}} if options.old else {{}})

c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.Proxy.address = "127.0.0.1:{port}"
c.Backend.cluster_options = Options(Integer("worker_cores", 1, min=1), Bool("old", False), handler=handler)
c.UnsafeLocalBackend.clusters_directory = "{folder}"
c.ClusterConfig.scheduler_cmd = ["dask", "scheduler"]
c.ClusterConfig.worker_cmd = ["dask", "worker"]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The address of a Gateway; ``clusters`` beside it holds a folder for each cluster that there is."""
    pytest.importorskip(
        "dask_gateway_server", reason="needs Dask Gateway: pip install dask-gateway dask-gateway-server"
    )
    pytest.importorskip("dask_gateway")
    if not (BIN / "dask").exists() or not shutil.which("dask-gateway-server", path=BIN):
        pytest.skip(f"no dask or dask-gateway-server command in {BIN}")
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "clusters").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config.py").write_text(CONFIG.format(port=port, folder=folder / "clusters"))
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [BIN / "dask-gateway-server", "-f", folder / "config.py"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        until_true(lambda: answers(port) or server.poll())
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}", folder / "clusters"
    finally:
        server.terminate()
        server.wait(60)


def answers(port):
    """Whether the server answers behind its proxy, which listens first and says "not found" until then."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_downscaling_on_a_gateway(gateway, tmp_path, monkeypatch):
    address, clusters = gateway
    coarse, stack = make_coarse(days=8), make_stack(seed=3)
    fine = xdeepsd.downscale(coarse.chunk(time=2).to_dataset(), stack, make_static(coarse, stack.scale))
    xdeepsd.to_zarr(fine, tmp_path / "here.zarr")
    monkeypatch.setenv("JUPYTER_IMAGE_SPEC", "hub/image:1")  # as on a hub; this Gateway has no option for it
    with xdeepsd.cluster("gateway", address=address, workers=1, options={"worker_cores": 1}, timeout=300) as client:
        assert len(list(clusters.iterdir())) == 1
        xdeepsd.to_zarr(fine, tmp_path / "there.zarr")
        client.cluster.scale(2)
        until_true(lambda: len(client.scheduler_info(-1)["workers"]) == 2)
        assert list(client.nthreads().values()) == [1, 1]
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "here.zarr"), xr.open_zarr(tmp_path / "there.zarr"))
    until_true(lambda: not list(clusters.iterdir()))


def test_as_many_workers_as_there_is_work_for(gateway):
    address, clusters = gateway
    with pytest.raises(ZeroDivisionError), xdeepsd.cluster("gateway", address=address, timeout=300) as client:
        client.submit(lambda: 1 / 0).result()
    until_true(lambda: not list(clusters.iterdir()))


def test_what_ends_with_the_reason(gateway):
    address, clusters = gateway

    def ends(kind, message, **options):
        with pytest.raises(kind, match=message), xdeepsd.cluster("gateway", **{"address": address} | options):
            raise AssertionError("there is no such cluster")

    ends(ConnectionError, "No Dask Gateway answers at http", address="http://127.0.0.1:1")
    ends(ValueError, "has no option worker_memory. Needed: .*worker_cores, old", options={"worker_memory": 4})
    ends(ConnectionError, r"did not start \(failed\).*\['dask', 'scheduler'\]", options={"old": True}, timeout=100)
    until_true(lambda: not list(clusters.iterdir()))
