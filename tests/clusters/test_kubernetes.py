"""`xdeepsd.cluster("kubernetes")` on a real Kubernetes with the real operator and real Dask processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from distributed import get_task_stream
from typer.testing import CliRunner
from waiting import left_over, until_true

import xdeepsd
from xdeepsd.cli import app

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
DAYS, CHUNK = 24, 2


@pytest.fixture
def cluster(image):
    """A function like `xdeepsd.cluster`, with little memory and room for a busy machine."""

    def start(**options):
        return xdeepsd.cluster(
            "kubernetes",
            **{"image": image("test"), "memory": "2Gi", "scheduler_memory": "2Gi", "timeout": 300} | options,
        )

    return start


def noting(folder):
    """A function that gives back a block, slowly, with a note in the folder that it was computed."""

    def seen(block, block_id=None):  # inside a function, so that it is sent to the pods, which have no tests
        import pathlib
        import time
        import uuid

        time.sleep(0.5)
        pathlib.Path(folder, f"{block_id[0]}-{uuid.uuid4().hex}").touch()
        return block

    return seen


def noted(folder):
    """Numbers of the blocks that were computed, one for each time."""
    return sorted(int(path.name.partition("-")[0]) for path in folder.iterdir())


def work(folder=None):
    """A lazy downscaled Dataset; with ``folder``, slow, and noted there."""
    coarse, stack = make_coarse(days=DAYS), make_stack(seed=3)
    lazy = coarse.chunk(time=CHUNK)
    if folder is not None:
        lazy.data = dask.array.map_blocks(noting(str(folder)), lazy.data, dtype="f4", name="seen")
    return xdeepsd.downscale(lazy.to_dataset(), stack, make_static(coarse, stack.scale))


def chunks_of(store):
    """The bytes of all chunks."""
    return {
        str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob("*/c/**/*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The chunks that a computation on this machine writes."""
    store = tmp_path_factory.mktemp("local") / "out.zarr"
    xdeepsd.to_zarr(work(), store)
    assert len(chunks_of(store)) > DAYS // CHUNK
    return chunks_of(store)


def workers_of(kubectl, name):
    selector = f"dask.org/cluster-name={name},dask.org/component=worker"
    items = json.loads(kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    return [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]


def run_python(code, config):
    """Another process, of another user where ``config`` is the kubeconfig of one."""
    env = os.environ | {"KUBECONFIG": config}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it would be ignored
    )  # fmt: skip


def test_bit_for_bit_the_local_result_and_scaling(cluster, kubectl, local, tmp_path):
    with cluster(workers=2, lifetime="6 hours") as client:
        xdeepsd.to_zarr(work(), tmp_path / "out.zarr")
        assert chunks_of(tmp_path / "out.zarr") == local
        assert client.dashboard_link.startswith("http://")
        name = client.cluster.name
        client.cluster.scale(3)
        until_true(lambda: len(client.scheduler_info(-1)["workers"]) == 3)
        kept = client.map(lambda i: (i, uuid.uuid4().hex), range(12), pure=False)
        before = client.gather(kept)
        client.cluster.scale(1)
        until_true(lambda: len(workers_of(kubectl, name)) == 1)
        until_true(lambda: len(client.scheduler_info(-1)["workers"]) == 1)
        assert client.gather(kept) == before
        assert client.run(lambda: os.environ["OMP_NUM_THREADS"]).popitem()[1] == "1"


def test_as_many_workers_as_there_is_work_for(cluster, kubectl):
    with cluster(workers=(0, 2)) as client:
        name = client.cluster.name
        assert workers_of(kubectl, name) == []
        futures = client.map(lambda i: time.sleep(3) or i, range(20), pure=False)
        until_true(lambda: len(workers_of(kubectl, name)) == 2)
        assert client.gather(futures) == list(range(20))
        del futures
        until_true(lambda: len(workers_of(kubectl, name)) < 2)


def test_a_worker_is_lost_in_the_middle(cluster, kubectl, local, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    with cluster(workers=2) as client:
        first = workers_of(kubectl, client.cluster.name)[0]
        lost = []

        def progress(done, total):
            if done >= 3 and not lost:
                lost.append(kubectl("delete", "pod", first, "--grace-period=0", "--force"))

        xdeepsd.to_zarr(work(notes), tmp_path / "out.zarr", progress=progress)
    assert lost
    assert chunks_of(tmp_path / "out.zarr") == local


def test_the_scheduler_is_lost_in_the_middle(cluster, kubectl, local, tmp_path):
    notes = tmp_path / "notes"
    store = tmp_path / "out.zarr"
    notes.mkdir()
    with cluster(workers=2) as client:
        selector = f"dask.org/cluster-name={client.cluster.name},dask.org/component=scheduler"
        lost = []

        def progress(done, total):
            if done >= 4 and not lost:
                lost.append(kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force"))

        with pytest.raises((CancelledError, OSError)):
            xdeepsd.to_zarr(work(notes), store, progress=progress)
    whole = {path.name for path in (store / "pr" / "c").iterdir()}
    assert 4 <= len(whole) < DAYS // CHUNK
    notes.rename(tmp_path / "first")
    notes.mkdir()
    with cluster(workers=2):
        xdeepsd.to_zarr(work(notes), store, resume=True)
    assert chunks_of(store) == local
    assert noted(notes) == sorted(set(range(DAYS // CHUNK)) - set(map(int, whole)))


def test_stages_and_a_sweep_are_trained_as_tasks_on_workers_with_a_gpu(cluster, tmp_path):
    days = {"validation": ("2001-03-01/2001-03-10",), "test": ("2001-03-11/2001-03-20",)}
    config = xdeepsd.TrainConfig(
        channels=(6, 4), kernels=(3, 1, 3), patch=16, stride=8, batch=8, steps=6, workers=1, threads=1, **days
    )
    climate = xdeepsd.make_climate(years=1, shape=(24, 32)).isel(time=slice(0, 79))
    xdeepsd.build_levels(climate[["precipitation"]], climate[["elevation"]], (2, 2), tmp_path / "levels.zarr")
    here = xdeepsd.train_stack(str(tmp_path / "levels.zarr"), config, progress=False)
    with cluster(workers=1, gpu=True) as client:
        resources = {w["name"]: w["resources"] for w in client.scheduler_info(-1)["workers"].values()}
        gpu = [name for name, has in resources.items() if has.get("GPU") == 1]
        assert [f"{client.cluster.name}-gpu-worker" in name for name in gpu] == [True]
        with get_task_stream(client) as tasks:
            there = xdeepsd.train_stack(str(tmp_path / "levels.zarr"), config, client=client)
            table = xdeepsd.run_sweep(
                str(tmp_path / "levels.zarr"), config, [0, 1], 1, tmp_path / "sweep", client=client
            )
        addresses = {worker["name"]: address for address, worker in client.scheduler_info(-1)["workers"].items()}
        where = {task["worker"] for task in tasks.data if "train-stage" in str(task["key"])}
        assert where == {addresses[gpu[0]]}
    for one, other in zip(here.stages, there.stages, strict=True):
        for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
            assert bool((a == b).all())
    assert set(table.loc[table["name"] == "model", "alpha"]) == {0.0, 1.0}


WRONG = [
    ({"tag": "nowhere"}, ConnectionError, r"scheduler does not start: the image \S+:nowhere cannot be pulled"),
    ({"tag": "broken"}, ConnectionError, r"(?s)crashes again and again.*last lines of its log:\nlibtorch.so: cannot"),
    ({"tag": "bare"}, ImportError, r"(?s)^xdeepsd is missing in the image.*client +scheduler.*\nxdeepsd +\S+ +missing"),
    ({"tag": "other"}, ImportError, r"(?s)^Other versions of distributed are in.*\ndistributed +\S+ +2025.1.0"),
    ({"scheduler_memory": "900Ti", "timeout": 10}, TimeoutError, r"scheduler did not start in time: no node fits \(0/"),
    ({"workers": 1, "cpus": 900, "timeout": 20}, TimeoutError, "first worker of the group default did not start in"),
    ({"gpu": 1, "node_selector": {"no": "such"}, "timeout": 20}, TimeoutError, "group gpu did not start in time: no"),
]  # fmt: skip


@pytest.fixture(scope="module")
def ends(image):
    """How each of the starts ends, and after how many seconds; some at a time, as most of it is waiting."""

    def end(options):
        options = {"image": image(options.get("tag", "test")), "workers": (0, 1), "timeout": 55} | options
        options.pop("tag", None)
        begin = time.monotonic()
        try:
            with xdeepsd.cluster("kubernetes", **{"memory": "2Gi", "scheduler_memory": "2Gi"} | options):
                return None, 0
        except Exception as error:
            return error, time.monotonic() - begin

    # Clients that are closed in another order than they came leave Dask's default scheduler behind.
    with dask.config.set(scheduler=None), ThreadPoolExecutor(4) as pool:
        return list(pool.map(end, [options for options, _, _ in WRONG]))


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[str(options) for options, _, _ in WRONG])
def test_a_start_that_cannot_succeed_ends_with_the_reason(ends, number):
    (error, seconds), (_, kind, message) = ends[number], WRONG[number]
    assert type(error) is kind
    assert re.search(message, str(error)), error
    assert seconds < 60


def test_workers_that_cannot_run_later_end_it_too(cluster):
    with (
        pytest.raises(ConnectionError, match=r"No worker of \S+ starts: no node fits"),
        cluster(workers=(0, 1), node_selector={"no": "such"}, timeout=40) as client,
    ):
        client.submit(sum, [1, 2]).result()


def test_no_operator(cluster, kubectl):
    where = ("-n", "dask-operator", "scale", "deployment", "dask-kubernetes-operator")
    kubectl(*where, "--replicas=0")
    until_true(lambda: where[-1] not in kubectl("-n", where[1], "get", "pods", "-o", "name"))
    try:
        with (
            pytest.raises(TimeoutError, match=r"Dask operator did nothing with the cluster \S+: it is not"),
            cluster(),
        ):
            raise AssertionError("there is no operator")
    finally:
        kubectl(*where, "--replicas=1")
        until_true(lambda: "1" in kubectl(*where[:2], "get", *where[3:], "-o", "jsonpath={.status.readyReplicas}"))


START = """
import sys, time, xdeepsd
small = dict(memory="2Gi", scheduler_memory="2Gi", timeout=300)
with xdeepsd.cluster("kubernetes", image={image!r}, **small, **{options}) as client:
    print(client.submit(sum, [1, 2]).result(), flush=True)
    {then}
"""


def test_the_least_rights_are_enough(image):
    options = {"workers": (1, 2), "gpu": 1}
    code = START.format(image=image("test"), options=options, then="client.cluster.scale(2); client.cluster.scale(1)")
    out, errors = run_python(code, os.environ["KUBECONFIG"] + "-least").communicate(timeout=300)
    assert out.startswith("3"), errors


def test_what_is_forbidden_is_named(image):
    config = os.environ["KUBECONFIG"] + "-viewer"
    if not Path(config).exists():
        pytest.skip(f"no second user: there is no {config}")
    _, errors = run_python(START.format(image=image("test"), options={}, then="pass"), config).communicate(timeout=60)
    assert 'cannot create resource "daskclusters"' in errors.splitlines()[-1]
    assert errors.splitlines()[-1].startswith("PermissionError: Kubernetes does not permit it")


def test_the_user_stops_it(image, kubectl):
    code = START.format(image=image("test"), options={"workers": 1}, then="time.sleep(600)")
    running = run_python(code, os.environ["KUBECONFIG"])
    assert running.stdout.readline() == "3\n"
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors
    assert not kubectl("get", "daskclusters", "-o", "name")


def test_the_user_stops_it_while_it_starts(image, kubectl):
    code = START.format(image=image("nowhere"), options={"workers": 1}, then="")
    running = run_python(code, os.environ["KUBECONFIG"])
    until_true(lambda: kubectl("get", "daskclusters", "-o", "name"))
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=120)
    assert not kubectl("get", "daskclusters", "-o", "name")


def test_the_client_dies(image, kubectl):
    """Nobody is there to clean up: the operator does, once the cluster has been idle."""
    options = {"workers": 1, "idle_timeout": 5}
    running = run_python(
        START.format(image=image("test"), options=options, then="time.sleep(600)"), os.environ["KUBECONFIG"]
    )
    assert running.stdout.readline() == "3\n"
    running.kill()
    running.communicate()
    assert kubectl("get", "daskclusters", "-o", "name")
    until_true(lambda: not left_over(kubectl))


def test_an_error_inside(cluster, kubectl):
    with pytest.raises(ZeroDivisionError), cluster(workers=1) as client:
        client.submit(lambda: 1 / 0).result()
    assert not kubectl("get", "daskclusters", "-o", "name")


def test_plain_manifests_run_a_job(kubectl, image, local, tmp_path):
    """What `xdeepsd kubernetes manifest` prints, by kubectl alone: the downscaling of a store, and then all is gone."""
    coarse, stack = make_coarse(days=DAYS), make_stack(seed=3)
    coarse.chunk(time=CHUNK).to_dataset().to_zarr(tmp_path / "in.zarr", consolidated=False)
    xdeepsd.save_model(xdeepsd.StackedSRCNN(stack.stages, static=make_static(coarse, stack.scale)), tmp_path / "model")
    (tmp_path / "cluster.toml").write_text("memory = '2Gi'\nscheduler_memory = '2Gi'\n")
    files = ["in.zarr", "model", "out.zarr"]
    made = manifest(
        "job", image("test"), "--workers", "1:2", "--name", "nightly",
        "--cluster-options", tmp_path / "cluster.toml", "--",
        "xdeepsd", "downscale", *(tmp_path / name for name in files), "--chunk-days", CHUNK,
    )  # fmt: skip
    kubectl("create", "--validate=false", "-f", "-", text=made)
    try:
        status = ("get", "daskjobs", "nightly", "-o", "jsonpath={.status.jobStatus}")
        ended = until_true(lambda: (found := kubectl(*status)) in ("Successful", "Failed") and found, 300)
        assert ended == "Successful", kubectl("logs", "nightly-runner", check=False)
        found = chunks_of(tmp_path / "out.zarr")
        assert {key: found[key] for key in local if key.startswith("pr/")} == {
            key: chunk for key, chunk in local.items() if key.startswith("pr/")
        }
        until_true(lambda: not kubectl("get", "daskclusters", "-o", "name"))
    finally:
        kubectl("delete", "daskjob", "nightly")


def test_plain_manifests_of_a_cluster(kubectl, image):
    made = manifest("cluster", image("test"), "--workers", "1:2", "--gpus", 1, "--name", "standing")
    kubectl("create", "--validate=false", "-f", "-", text=made)
    try:
        until_true(lambda: len(workers_of(kubectl, "standing")) == 2)
        [taken] = [name for name in workers_of(kubectl, "standing") if "-gpu-worker" in name]
        node = ("get", "pod", taken, "-o", "jsonpath={.spec.nodeName}")
        assert until_true(lambda: kubectl(*node))
        assert "nvidia.com/gpu" in kubectl("get", "node", kubectl(*node), "-o", "jsonpath={.status.allocatable}")
    finally:
        kubectl("delete", "daskcluster", "standing")


def manifest(kind, image, *words):
    words = ["kubernetes", "manifest", "--kind", kind, "--image", image, *map(str, words)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_notebook_runs(image, kubectl, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDEEPSD_IMAGE", image("test"))
    monkeypatch.setenv("XDEEPSD_FOLDER", str(tmp_path))
    names = {}
    page = (Path(__file__).resolve().parents[2] / "examples" / "kubernetes.md").read_text()
    try:
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(code, "kubernetes.md", "exec"), names)
    finally:
        names["stack"].close()
    assert "http://" in capsys.readouterr().out
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "fine.zarr", consolidated=False), names["fine"].compute())
