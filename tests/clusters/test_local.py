"""`xdeepsd.cluster("local")`, and what is refused before anything starts."""

import logging
import os
import socket

import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from waiting import until_true

import xdeepsd


def test_on_this_machine(tmp_path):
    coarse, stack = make_coarse(days=6), make_stack(seed=3)
    fine = xdeepsd.downscale(coarse.chunk(time=2).to_dataset(), stack, make_static(coarse, stack.scale))
    with xdeepsd.cluster("local", workers=1, env={"SEEN": "yes"}) as client:
        xdeepsd.to_zarr(fine, tmp_path / "there.zarr")
        [(threads, seen)] = client.run(lambda: (os.environ["OMP_NUM_THREADS"], os.environ["SEEN"])).values()
        assert (threads, seen) == ("1", "yes")
        assert list(client.nthreads().values()) == [1]
    xdeepsd.to_zarr(fine, tmp_path / "here.zarr")
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "there.zarr"), xr.open_zarr(tmp_path / "here.zarr"))


def test_as_many_as_there_is_work_for():
    with xdeepsd.cluster() as client:
        assert client.submit(sum, [1, 2]).result() == 3
        until_true(lambda: not client.scheduler_info(-1)["workers"])


def test_a_heartbeat_that_fails_at_the_end_is_no_error(capfd):
    """Dask's own ones are seen at random, so that here one fails at once."""

    async def fail(dask_worker):
        async def closed(**message):
            raise OSError("Stream is closed")

        dask_worker.scheduler.heartbeat_worker = closed
        await dask_worker.heartbeat()
        logging.getLogger("distributed.worker").error("any other error")

    with xdeepsd.cluster("local", workers=1) as client:
        client.run(fail)
    shown = capfd.readouterr().err
    assert "any other error" in shown
    assert "heartbeat" not in shown


def test_a_gpu_for_each_worker():
    """There need not be any: what a worker sees is in its environment."""
    with xdeepsd.cluster("local", gpu=2) as client:
        seen = [
            client.submit(os.getenv, "CUDA_VISIBLE_DEVICES", resources={"GPU": 1}, workers=[address], pure=False)
            for address in client.scheduler_info(-1)["workers"]
        ]
        assert sorted(client.gather(seen)) == ["0", "1"]


def refused(message, *given, kind=ValueError, **options):
    with pytest.raises(kind, match=message), xdeepsd.cluster(*given, **options):
        raise AssertionError("nothing may start")


def test_what_is_refused(monkeypatch):
    monkeypatch.delenv("JUPYTER_IMAGE_SPEC", raising=False)
    refused("kind is 'slurm'. Needed: one of 'local', 'gateway', 'kubernetes'", "slurm")
    refused("Needed: 1 or more, or", workers=0)
    refused("No image is given", "kubernetes")
    refused("has no tag", "kubernetes", image="xdeepsd")
    refused(r"name is 'Not a name'\. Needed: up to 53", "kubernetes", image="a:1", name="Not a name")
    refused("A Gateway has one kind of worker", "gateway", gpu=True)


def test_nothing_answers(monkeypatch, tmp_path):
    pytest.importorskip("dask_kubernetes")
    with socket.socket() as listening:  # a port that nobody else takes, and that does not listen
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = tmp_path / "config"
        config.write_text(
            "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], "
            "clusters: [{name: a, cluster: {server: 'ADDRESS'}}], users: [{name: a, user: {token: a}}]}"
        )
        config.write_text(config.read_text().replace("ADDRESS", address))
        monkeypatch.setenv("KUBECONFIG", str(config))
        refused("Kubernetes cannot be reached", "kubernetes", image="a:1", kind=ConnectionError)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        monkeypatch.setenv("HOME", str(tmp_path))
        refused("Kubernetes cannot be reached", "kubernetes", image="a:1", kind=ConnectionError)
