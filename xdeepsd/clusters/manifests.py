"""The objects of Kubernetes as plain dicts: cluster, GPU workers, autoscaler, job, and what a user must be allowed.

They carry what Pangeo deployments expect and what is easily forgotten. ``dask scheduler`` and ``dask worker`` are
commands of every distributed since 2022, whereas ``dask-scheduler``, which dask-kubernetes still writes, is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xdeepsd._extras import require

GROUP = "kubernetes.dask.org"
VERSION = f"{GROUP}/v1"
CLUSTER_LABEL, COMPONENT_LABEL = "dask.org/cluster-name", "dask.org/component"
GPU = "nvidia.com/gpu"

# Taints of pools for workers: of Pangeo's hubs (both spellings), of spot nodes of Google and Azure.
TOLERATIONS = [
    {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    for key, value in (
        ("k8s.dask.org/dedicated", "worker"),
        ("k8s.dask.org_dedicated", "worker"),
        ("cloud.google.com/gke-spot", "true"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    )
]
GPU_TOLERATION = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
_PURPOSE = "k8s.dask.org/node-purpose"
# Nodes that may vanish; the scheduler, whose loss ends the run, keeps off them. The rule holds where a label is absent.
_PREEMPTIBLE = {
    _PURPOSE: "worker",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Pods:
    """What every pod of a cluster has, and what each worker gets; the fields are those of `xdeepsd.cluster`."""

    image: str
    cpus: int = 1
    memory: str = "4Gi"
    scheduler_memory: str = "4Gi"
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    service_account: str | None = None
    volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    death_timeout: int = 120
    lifetime: str | None = None

    def __post_init__(self) -> None:
        check_image(self.image)
        if self.cpus < 1 or int(self.cpus) != self.cpus:
            raise ValueError(f"cpus is {self.cpus}. Needed: a whole number of 1 or more.")


def check_image(image: str | None) -> str:
    """The image, or the one that a hub's notebook runs in; ValueError where there is none, or it has no tag."""
    image = image or os.environ.get("JUPYTER_IMAGE_SPEC")
    if not image:
        raise ValueError(
            "No image is given, and JUPYTER_IMAGE_SPEC, by which a hub names the notebook's own, is not set. Needed: "
            "the image that client, scheduler and workers run, with its tag. Type image='REGISTRY/xdeepsd:TAG'."
        )
    if "@" not in image and ":" not in image.rpartition("/")[2]:
        raise ValueError(
            f"The image {image!r} has no tag, so scheduler and workers may get different versions of it. Needed: a tag "
            f"or a digest. Type image='{image}:TAG'."
        )
    return image


def check_name(name: str) -> str:
    """The name, if the operator takes it for a cluster; otherwise ValueError."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?", name):
        raise ValueError(f"name is {name!r}. Needed: up to 53 of a-z, 0-9 and -, which does not begin or end with -.")
    return name


def bounds(workers: int | tuple[int, int], gpus: int = 0) -> tuple[int, int]:
    """The lowest and the highest number of workers without GPU; ValueError where there would be no worker at all."""
    low, high = (workers, workers) if isinstance(workers, int) else workers
    if not 0 <= low <= high or not high + gpus:
        raise ValueError(f"workers is {workers!r}. Needed: 1 or more, or (lowest, highest), such as (0, 20).")
    return low, high


def threads(cpus: int) -> dict[str, str]:
    """The environment by which torch, numba and the linear algebra use ``cpus`` threads in a worker."""
    return dict.fromkeys(_THREADS, str(cpus))


def _resources(cpus: float, memory: str, gpu: bool = False) -> dict[str, Any]:
    """Requests, and the same limits: what a pod may use is reserved for it."""
    # A little under whole cores: a node of 4 cores has somewhat less for pods, and then still holds four.
    amounts = {"cpu": f"{cpus * 950}m", "memory": memory} | ({GPU: "1"} if gpu else {})
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _container(pods: Pods, name: str, args: Sequence[str], resources: dict[str, Any], **more: Any) -> dict[str, Any]:
    env = {**more.pop("env", {}), **pods.env}
    container: dict[str, Any] = {"name": name, "image": pods.image, "args": list(args), "resources": resources, **more}
    # An empty list too: the operator adds its own variables to it.
    container["env"] = [{"name": key, "value": str(value)} for key, value in env.items()]
    if pods.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in pods.secrets]
    if pods.volumes:
        container["volumeMounts"] = [{"name": _volume(path), "mountPath": path} for path in pods.volumes]
    return container


def _volume(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-") or "root"


def _pod(pods: Pods, container: dict[str, Any], **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [container], **more}
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    if pods.volumes:
        spec["volumes"] = [{"name": _volume(path), **source} for path, source in pods.volumes.items()]
    return spec


def _worker(pods: Pods, gpu: bool = False) -> dict[str, Any]:
    args = [
        "dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1",
        # Not left to Dask, which gives a worker of one thread on four CPUs a quarter of the pod's memory.
        "--memory-limit", pods.memory,
        "--dashboard", "--dashboard-address", "8788", "--death-timeout", str(pods.death_timeout),
    ]  # fmt: skip
    if pods.lifetime:
        # Leave before the node is taken away, and not all at once.
        args += ["--lifetime", pods.lifetime, "--lifetime-stagger", "5 minutes", "--lifetime-restart"]
    if gpu:
        args += ["--resources", "GPU=1"]
    ports = [{"name": "http-dashboard", "containerPort": 8788, "protocol": "TCP"}]
    container = _container(
        pods, "worker", args, _resources(pods.cpus, pods.memory, gpu), ports=ports, env=threads(pods.cpus)
    )
    prefer = {"matchExpressions": [{"key": _PURPOSE, "operator": "In", "values": ["worker"]}]}
    spec = _pod(
        pods, container,
        tolerations=[*TOLERATIONS, *([GPU_TOLERATION] if gpu else []), *map(dict, pods.tolerations)],
        affinity={
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": prefer}]}
        },
    )  # fmt: skip
    if pods.node_selector:
        spec["nodeSelector"] = dict(pods.node_selector)
    return spec


def _off_preemptible() -> dict[str, Any]:
    rules = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in _PREEMPTIBLE.items()]
    terms = {"nodeSelectorTerms": [{"matchExpressions": rules}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _spec(name: str, pods: Pods, workers: int) -> dict[str, Any]:
    check_name(name)
    health: dict[str, Any] = {"httpGet": {"port": "http-dashboard", "path": "/health"}}
    ports = (("tcp-comm", 8786), ("http-dashboard", 8787))
    container = _container(
        pods, "scheduler", ["dask", "scheduler", "--host", "0.0.0.0"], _resources(1, pods.scheduler_memory),
        ports=[{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports],
        readinessProbe=health | {"periodSeconds": 1, "timeoutSeconds": 30},
        livenessProbe=health | {"initialDelaySeconds": 30, "periodSeconds": 20, "timeoutSeconds": 30},
    )  # fmt: skip
    return {
        "worker": {"replicas": workers, "spec": _worker(pods)},
        "scheduler": {
            "spec": _pod(pods, container, affinity=_off_preemptible()),
            "service": {
                "type": "ClusterIP",
                "selector": {CLUSTER_LABEL: name, COMPONENT_LABEL: "scheduler"},
                "ports": [
                    {"name": port, "protocol": "TCP", "port": number, "targetPort": port} for port, number in ports
                ],
            },
        },
    }


def dask_cluster(name: str, pods: Pods, workers: int = 0, idle_timeout: int = 3600) -> dict[str, Any]:
    """A DaskCluster of ``workers`` workers, which the operator deletes after ``idle_timeout`` seconds without work."""
    return _object("DaskCluster", name, {"idleTimeout": idle_timeout, **_spec(name, pods, workers)})


def gpu_workers(name: str, pods: Pods, gpus: int) -> dict[str, Any]:
    """A DaskWorkerGroup of workers of the cluster ``name`` with a GPU each, which tasks ask for by ``GPU=1``."""
    worker = {"replicas": gpus, "spec": _worker(pods, gpu=True)}
    return _object("DaskWorkerGroup", f"{name}-gpu", {"cluster": name, "worker": worker})


def autoscaler(name: str, low: int, high: int) -> dict[str, Any]:
    """A DaskAutoscaler: as many workers without GPU as the work of the cluster ``name`` needs, within bounds."""
    return _object("DaskAutoscaler", name, {"cluster": name, "minimum": low, "maximum": high})


def dask_job(name: str, pods: Pods, command: Sequence[str], workers: int = 0) -> dict[str, Any]:
    """A DaskJob: a cluster, and a pod that runs ``command`` with DASK_SCHEDULER_ADDRESS set; both end with it."""
    runner = _container(pods, "job", command, _resources(1, pods.memory), env=threads(1))
    pod = _pod(pods, runner, affinity=_off_preemptible(), restartPolicy="Never")
    return _object("DaskJob", name, {"job": {"spec": pod}, "cluster": {"spec": _spec(name, pods, workers)}})


def role(name: str = "xdeepsd", user: str | None = None, service_account: str | None = None) -> list[dict[str, Any]]:
    """The Role with what the user of `xdeepsd.cluster` must be allowed, bound to a user or service account if given."""
    dask = ["daskclusters", "daskworkergroups", "daskautoscalers"]
    rules = [
        {"apiGroups": [GROUP], "resources": dask, "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    found: list[dict[str, Any]] = [
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules}
    ]
    subjects: list[dict[str, Any]] = []
    if user:
        subjects.append({"apiGroup": rbac, "kind": "User", "name": user})
    if service_account:
        subjects.append({"kind": "ServiceAccount", "name": service_account})
    if subjects:
        reference = {"apiGroup": rbac, "kind": "Role", "name": name}
        found.append(
            {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": name}, "roleRef": reference,
             "subjects": subjects}
        )  # fmt: skip
    return found


def operator(image: str | None = None, namespace: str = "dask-operator") -> list[dict[str, Any]]:
    """The Dask operator for all namespaces, as the Helm chart would install it: definitions, rights and deployment.

    The resource definitions and the version of the image are those of the dask-kubernetes that is installed here.
    """
    require("kubernetes", "The operator's resource definitions")
    import yaml

    folder = Path(str(find_spec("dask_kubernetes").origin)).parent  # type: ignore[union-attr]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the definitions are long
    paths = sorted(folder.glob("operator/deployment/helm/dask-kubernetes-operator/crds/*.yaml"))
    name = "dask-kubernetes-operator"
    image = image or f"ghcr.io/dask/{name}:{version('dask-kubernetes')}"
    dask = ["daskclusters", "daskworkergroups", "daskworkergroups/scale", "daskjobs", "daskjobs/status"]
    rules = [
        (["kopf.dev"], ["clusterkopfpeerings"], ["list", "watch", "patch", "get"]),
        (["apiextensions.k8s.io"], ["customresourcedefinitions"], ["list", "watch"]),
        ([""], ["namespaces"], ["list", "watch"]),
        ([GROUP], [*dask, "daskautoscalers"], ["get", "list", "watch", "patch", "create", "delete"]),
        ([""], ["pods", "pods/status", "services", "services/status"], ["*"]),
        (["apps"], ["deployments", "deployments/status"], ["*"]),
        (["", "events.k8s.io"], ["events"], ["*"]),
    ]
    rbac, labels = "rbac.authorization.k8s.io", {"app.kubernetes.io/name": name}
    container = {
        "name": name, "image": image, "args": ["--liveness=http://0.0.0.0:8080/healthz", "--all-namespaces"],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "timeoutSeconds": 5},
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    inside = {"name": name, "namespace": namespace}
    return [
        *(yaml.load(path.read_text(encoding="utf-8"), loader) for path in paths),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": inside},
        {
            "apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [dict(zip(("apiGroups", "resources", "verbs"), rule, strict=True)) for rule in rules],
        },
        {
            "apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", **inside}],
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**inside, "labels": labels},
            "spec": {
                "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels}, "spec": {"serviceAccountName": name, "containers": [container]}
                },
            },
        },
    ]  # fmt: skip


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
