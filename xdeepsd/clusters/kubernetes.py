"""A Dask cluster on Kubernetes, with KubeCluster of dask-kubernetes, which waits for ever where a pod cannot run.

Therefore the objects are made here, the pods are looked at until the scheduler runs or cannot, and KubeCluster connects
to what runs. Whatever was made is deleted at the end, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from xdeepsd._extras import require
from xdeepsd.clusters import manifests, pods
from xdeepsd.clusters.manifests import CLUSTER_LABEL, COMPONENT_LABEL, GROUP, Pods
from xdeepsd.clusters.versions import check_scheduler, check_versions

logger = logging.getLogger(__name__)

OPERATOR_SECONDS = 30  # it acts within a second or two; one that is busy takes longer
TROUBLE_SECONDS = 15  # a registry may fail once, and a container may crash before what it needs is there
_LOG_LINES = 15


class _Place(NamedTuple):
    """Where the objects of a cluster are: those with its name, in its namespace."""

    name: str
    namespace: str


@contextlib.contextmanager
def on_kubernetes(
    wanted: Pods, low: int, high: int, gpus: int, name: str | None, namespace: str | None, idle_timeout: int,
    timeout: float,
) -> Iterator[Any]:  # fmt: skip
    """Yield the client of a new cluster of ``low`` to ``high`` workers, and ``gpus`` with a GPU: see `cluster`."""
    require("kubernetes", "A cluster on Kubernetes")
    from distributed import Client

    name = manifests.check_name(name or f"xdeepsd-{uuid.uuid4().hex[:8]}")
    place = _Place(name, namespace or _run(_namespace()))
    deadline = time.monotonic() + timeout
    with _deleted_after(place):
        owner = _create(place, manifests.dask_cluster(place.name, wanted, low, idle_timeout))
        _wait_for_operator(place, min(deadline, time.monotonic() + OPERATOR_SECONDS))
        _check_port_forward(place, _wait_for_scheduler(place, deadline))
        with _connected(place, deadline, wanted.image) as cluster, Client(cluster, timeout=_left(deadline)) as client:
            if gpus:
                _create(place, manifests.gpu_workers(place.name, wanted, gpus), owner)
            if high > low:
                _create(place, manifests.autoscaler(place.name, low, high), owner)
            groups = [group for group, number in (("default", low), ("gpu", gpus)) if number]
            for group in groups:
                _wait_for_worker(place, client, group, deadline)
            if groups:
                check_versions(client, wanted.image)
            with _watched(place, client, timeout):
                yield client


@contextlib.contextmanager
def _deleted_after(place: _Place) -> Iterator[None]:
    """Delete the DaskCluster, and with it all that it owns, on every way out."""
    try:
        yield
    finally:
        try:
            # The operator must have seen it: its worker group has no owner at first, and would be left behind.
            with contextlib.suppress(OSError):
                _wait_for_operator(place, time.monotonic() + 10)
            _request("DELETE", place, "daskclusters", place.name)
            until = time.monotonic() + 60
            while _request("GET", place, "daskclusters", place.name) is not None:
                if time.monotonic() > until:
                    raise TimeoutError("It is marked for deletion, but the operator does not let it go.")
                time.sleep(0.5)
            _request("DELETE", place, "daskworkergroups", f"{place.name}-default")
        except OSError as error:
            logger.error(
                "The cluster may be left behind until it has been idle for some time. Type kubectl delete daskcluster "
                "%s -n %s. %s", place.name, place.namespace, error,
            )  # fmt: skip


def _create(place: _Place, made: dict[str, Any], owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """Create an object; with ``owner``, it is deleted with that, even where the operator has not yet seen it."""
    if owner is not None:
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata = {"labels": {CLUSTER_LABEL: place.name}, "ownerReferences": [reference]}
        made = {**made, "metadata": {**made["metadata"], **metadata}}
    found = _request("POST", place, f"{made['kind'].lower()}s", body=made)
    if found is None:
        raise ConnectionError(
            f"This Kubernetes does not know a {made['kind']}: the resource definitions of the Dask operator are "
            "missing. Needed: the operator, which an administrator installs once (docs/howto/cluster.md)."
        )
    return found


def _wait_for_operator(place: _Place, deadline: float) -> None:
    while True:
        found = _request("GET", place, "daskclusters", place.name)
        if found is None:
            raise ConnectionError(f"The cluster {place.name} was deleted while it started.")
        if found.get("status", {}).get("phase") not in (None, "Created"):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"The Dask operator did nothing with the cluster {place.name}: it is not installed, or does not run. "
                "Needed: its deployment, which watches this namespace (docs/howto/cluster.md)."
            )
        time.sleep(0.5)


def _wait_for_scheduler(place: _Place, deadline: float) -> str:
    """The name of the scheduler's pod, once it is ready."""
    check = _Patience(place, "scheduler", deadline)
    while True:
        found = _pods(place, "scheduler")
        running = [pod["metadata"]["name"] for pod in found if pods.ready(pod)]
        if running:
            return running[0]
        check(found)
        time.sleep(0.5)


def _wait_for_worker(place: _Place, client: Any, group: str, deadline: float) -> None:
    """Until the first worker of a group is there."""
    check = _Patience(place, f"first worker of the group {group}", deadline)
    while True:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if any(str(worker["name"]).startswith(f"{place.name}-{group}-worker") for worker in workers):
            return
        check(_pods(place, "worker", f"dask.org/workergroup-name={place.name}-{group}"))
        time.sleep(0.5)


class _Patience:
    """Called with the pods time and again: raises once waiting will not help, or the deadline has come."""

    def __init__(self, place: _Place, what: str, deadline: float) -> None:
        self.place, self.what, self.deadline = place, what, deadline
        self.since: float | None = None

    def __call__(self, found: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        bad = [(pod, reason) for pod in found if (reason := pods.trouble(pod))]
        self.since = (self.since or now) if bad and len(bad) == len(found) else None
        if self.since and (now - self.since > TROUBLE_SECONDS or now > self.deadline):
            pod, reason = bad[0]
            raise ConnectionError(f"The {self.what} does not start: {reason}.{_last_lines(self.place, pod)}")
        if now > self.deadline:
            reason = pods.waiting(found[0]) if found else "it has no pod yet"
            raise TimeoutError(
                f"The {self.what} did not start in time: {reason}. Needed: a node with enough free room, whose taints "
                "and labels fit; or, where nodes have to be added first, more time. Type a larger timeout=."
            )


@contextlib.contextmanager
def _connected(place: _Place, deadline: float, image: str) -> Iterator[Any]:
    """The KubeCluster of what runs, with the packages that are installed here."""
    from dask_kubernetes.operator import KubeCluster

    connecting: Future[Any] = Future()

    def connect() -> None:
        try:
            options: dict[str, Any] = {"quiet": True, "shutdown_on_close": False}
            if "KUBERNETES_SERVICE_HOST" not in os.environ:
                options["port_forward_cluster_ip"] = True  # or each look-up waits 10 s for a name server
            connecting.set_result(KubeCluster.from_name(place.name, namespace=place.namespace, **options))
        except BaseException as error:
            connecting.set_exception(error)

    # In a thread of its own, because it tries for ever.
    threading.Thread(target=connect, daemon=True).start()
    try:
        cluster = connecting.result(_left(deadline))
    except TimeoutError:
        raise TimeoutError(
            f"The scheduler of {place.name} runs, but cannot be reached from here. Needed: a network that lets this "
            "process connect to it."
        ) from None
    with cluster:
        check_scheduler(cluster, image)
        yield cluster


@contextlib.contextmanager
def _watched(place: _Place, client: Any, timeout: float) -> Iterator[None]:
    """Stop the client, with the reason, where for ``timeout`` seconds there are pods of workers but none can run.

    A cluster without work has no workers. Whether they can run shows later, and Dask would wait for them for ever.
    """
    stop, stuck = threading.Event(), []

    def watch() -> None:
        since, said = None, ""
        while not stop.wait(5):
            try:
                found = _pods(place, "worker")
            except OSError:
                continue
            if not found or any(map(pods.ready, found)):
                since = None
                continue
            reason = pods.trouble(found[0]) or pods.waiting(found[0])
            since = since or time.monotonic()
            if reason != said:
                logger.info("No worker of %s runs yet: %s.", place.name, reason)
                said = reason
            if time.monotonic() - since > timeout:
                stuck.append(f"No worker of {place.name} starts: {reason}.{_last_lines(place, found[0])}")
                client.close()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except CancelledError as error:
        if not stuck:
            raise
        raise ConnectionError(stuck[0]) from error
    finally:
        stop.set()


def _check_port_forward(place: _Place, pod: str) -> None:
    """PermissionError where forwarding the scheduler's port is forbidden: KubeCluster would try again for ever."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        _request("GET", place, "pods", f"{pod}/portforward?ports=8786")


def _pods(place: _Place, component: str, *labels: str) -> list[dict[str, Any]]:
    selector = ",".join((f"{CLUSTER_LABEL}={place.name}", f"{COMPONENT_LABEL}={component}", *labels))
    found = _request("GET", place, "pods", params={"labelSelector": selector}) or {"items": []}
    return list(found["items"])


def _last_lines(place: _Place, pod: dict[str, Any]) -> str:
    """The last lines that a container wrote, as a paragraph; nothing where it never ran."""
    try:
        path = f"{pod['metadata']['name']}/log"
        text = _request("GET", place, "pods", path, params={"tailLines": str(_LOG_LINES)}, text=True)
    except OSError as error:
        return f" Its log cannot be read: {error}"
    return f" The last lines of its log:\n{text.strip()}" if text else ""


def _request(
    method: str,
    place: _Place,
    plural: str,
    path: str = "",
    *,
    params: dict[str, str] | None = None,
    body: dict[str, Any] | None = None,
    text: bool = False,
) -> Any:
    """The answer of the API server; None where there is no such thing.

    Raises PermissionError (which verb on what, in the server's words), ValueError (what it refuses), ConnectionError.
    """
    import kr8s.asyncio

    async def answer() -> Any:
        api = await _api()
        version = "v1" if plural == "pods" else f"{GROUP}/v1"
        url = f"{plural}/{path}".rstrip("/")
        content = None if body is None else json.dumps(body)
        async with api.call_api(
            method, version=version, namespace=place.namespace, url=url, params=params, content=content
        ) as response:
            return response.text if text else response.json()

    try:
        return _run(answer())
    except kr8s.ServerError as error:
        status = 500 if error.response is None else error.response.status_code
        if status == 404 or (status == 400 and method == "GET"):  # 400: a log of what has not yet run
            return None
        if status == 403:
            raise PermissionError(
                f"Kubernetes does not permit it: {error}. Needed: a Role with the rules of "
                "xdeepsd.clusters.manifests.role(), bound to you."
            ) from error
        kind = ValueError if status < 500 else ConnectionError
        raise kind(f"Kubernetes refuses it ({method} {plural} in {place.namespace}): {error}") from error


async def _api() -> Any:
    import kr8s.asyncio

    try:
        return await kr8s.asyncio.api()
    except ValueError as error:
        raise ConnectionError(str(error)) from error


async def _namespace() -> str:
    return str((await _api()).namespace)


def _run(answer: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a loop of its own, as this may be a notebook, whose loop runs already."""
    import httpx
    import kr8s

    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, answer).result()
    except (httpx.HTTPError, kr8s.APITimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"Kubernetes cannot be reached ({type(error).__name__}: {error}). Needed: a kubeconfig that works, as "
            "kubectl get pods shows. Type export KUBECONFIG=FILE for one that is not at ~/.kube/config."
        ) from error


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())
