"""The context that computes on a cluster, wherever that is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from xdeepsd.clusters.manifests import Pods, bounds, check_image

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

KINDS = ("local", "gateway", "kubernetes")


@contextlib.contextmanager
def cluster(
    kind: Literal["local", "gateway", "kubernetes"] = "local",
    *,
    image: str | None = None,
    workers: int | tuple[int, int] = (0, 20),
    gpu: bool | int = False,
    cpus: int = 1,
    memory: str | None = None,
    scheduler_memory: str = "4Gi",
    env: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    service_account: str | None = None,
    volumes: Mapping[str, Mapping[str, Any]] | None = None,
    tolerations: Sequence[Mapping[str, Any]] = (),
    node_selector: Mapping[str, str] | None = None,
    death_timeout: int = 120,
    lifetime: str | None = None,
    idle_timeout: int = 3600,
    timeout: float = 600,
    name: str | None = None,
    namespace: str | None = None,
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Client]:
    """Start a Dask cluster, yield its client, and leave nothing behind.

    What is computed inside the context runs there: `to_zarr`, `build_levels`, and with ``client=`` also `train_stack`
    and `run_sweep`. ``client.cluster`` is the cluster of the engine, with ``scale``, ``adapt`` and ``dashboard_link``.

    Parameters
    ----------
    kind
        "local": processes on this machine (`distributed.LocalCluster`). "gateway": a cluster from a Dask Gateway, the
        usual way on a Pangeo hub. "kubernetes": pods, by the Dask operator (`dask_kubernetes.operator.KubeCluster`),
        where the current kubeconfig points to, or around this pod.
    image
        Image of scheduler and workers, with its tag; it must hold what is installed here. None: that of
        JUPYTER_IMAGE_SPEC, the notebook's own on a hub. On a Gateway: where it offers the option. Local: not used.
    workers
        Number of workers, or (lowest, highest): as many as there is work for. On this machine at most one for each
        ``cpus`` cores.
    gpu
        Number of further workers with a GPU each, for the tasks that ask for the resource ``GPU`` (training does
        wherever such workers exist); True is 1. On this machine these are all the workers there are.
    cpus
        Cores of each worker, which is one process with one Dask thread; torch and numba use this many threads in it.
        Inference uses one: more are for training.
    memory
        Memory of each worker, such as "8Gi"; reserved, and not exceeded. None: 4Gi; on this machine an equal share.
    scheduler_memory
        Memory of the scheduler on Kubernetes.
    env
        Environment variables of all pods (of the workers, locally). Not for passwords, which anybody could read there.
    secrets
        Kubernetes only, as are those up to ``idle_timeout``: names of secrets whose keys become environment variables,
        such as the credentials of an object store.
    service_account
        Service account of the pods, to which a cloud may give rights of its own.
    volumes
        ``{path: source}``: ``{"/data": {"persistentVolumeClaim": {"claimName": "climate"}}}``.
    tolerations, node_selector
        Of the workers, as in Kubernetes. Taints of Pangeo's worker pools and of spot nodes are tolerated anyway. The
        scheduler keeps off nodes that may be taken away.
    death_timeout
        Seconds after which a worker without a scheduler gives up.
    lifetime
        Restart each worker after this time, such as "12 hours", not all at once and without losing results; for nodes
        that are taken away after a day.
    idle_timeout
        Seconds without work after which the operator deletes the cluster. It also ends one whose client was killed.
    timeout
        Seconds that a start may take, with the time in which nodes are added.
    name, namespace
        Of the cluster on Kubernetes. None: a new name, and the namespace of the kubeconfig.
    address, options
        Of the Gateway, and cluster options that it offers, such as ``{"worker_cores": 2}``. None: what the hub has set.

    Yields
    ------
    `distributed.Client`

    Raises
    ------
    ValueError
        An image without a tag, bounds that are none, or a name or option that the other side refuses.
    ImportError
        An extra is missing here; or the package, or other versions, in the image: the error has a table of them.
    PermissionError
        Kubernetes forbids it: the error says which verb on what.
    ConnectionError
        A start that cannot succeed: no such image, a scheduler or worker that crashes (with the last lines of its log),
        no operator, no Kubernetes or Gateway. Also, later, if no worker can be started for the time of ``timeout``.
    TimeoutError
        No node fits, or whatever else it was waiting for at the end of ``timeout``.

    Examples
    --------
    >>> import dask.array
    >>> with cluster("local", workers=1) as client:
    ...     dask.array.ones(10, chunks=5).sum().compute().item()
    10.0
    """
    gpus = int(gpu)
    low, high = bounds(workers, gpus)
    if kind == "kubernetes":
        from xdeepsd.clusters.kubernetes import on_kubernetes

        pods = Pods(
            check_image(image), cpus, memory or "4Gi", scheduler_memory, env or {}, secrets, service_account,
            volumes or {}, tolerations, node_selector or {}, death_timeout, lifetime,
        )  # fmt: skip
        started = on_kubernetes(pods, low, high, gpus, name, namespace, idle_timeout, timeout)
    elif kind == "gateway":
        from xdeepsd.clusters.gateway import on_gateway

        if gpus:
            raise ValueError("A Gateway has one kind of worker. Type options={...} with what it offers for a GPU.")
        started = on_gateway(address, image and check_image(image), low, high, options or {}, timeout)
    elif kind == "local":
        if find_spec("distributed") is None:
            raise ImportError("A cluster on this machine needs distributed. Type pip install distributed.")
        from xdeepsd.clusters.local import on_this_machine

        started = on_this_machine(low, high, gpus, cpus, memory, env or {})
    else:
        raise ValueError(f"kind is {kind!r}. Needed: one of {', '.join(map(repr, KINDS))}.")
    with started as client:
        logger.info("A Dask cluster runs. Its dashboard: %s", client.dashboard_link)
        yield client
