"""``xdeepsd kubernetes manifest``: plain YAML for ``kubectl apply``."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any

import typer

from xdeepsd.cli import clusters
from xdeepsd.cli.terminal import consoles, told

app = typer.Typer(no_args_is_help=True, help="Plain YAML for kubectl apply.")
_ADDRESS = "$(DASK_SCHEDULER_ADDRESS)"  # the operator sets it in the job's pod, and Kubernetes puts it in


class Made(enum.StrEnum):
    """What a manifest is of."""

    CLUSTER = "cluster"
    JOB = "job"
    RBAC = "rbac"
    OPERATOR = "operator"


@app.callback()
def _group() -> None:
    """Plain YAML for kubectl apply."""


@app.command()
def manifest(
    kind: Annotated[
        Made,
        typer.Option(
            help="cluster: a DaskCluster that stays until it is idle or deleted. job: a DaskJob that runs COMMAND on a "
            "cluster of its own. rbac: the Role of who uses clusters. operator: the Dask operator, for administrators."
        ),
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...", help="With --kind job, after --: such as xdeepsd downscale IN MODEL OUT."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of what is made.")] = "xdeepsd",
    image: clusters.Image = None,
    workers: clusters.Workers = "0:20",
    gpus: clusters.Gpus = 0,
    cluster_options: clusters.Options = None,
    user: Annotated[str | None, typer.Option(help="With --kind rbac: the user it is bound to.")] = None,
    service_account: Annotated[str | None, typer.Option(help="With --kind rbac: the service account.")] = None,
) -> None:
    """Print YAML: xdeepsd kubernetes manifest --kind cluster --image REGISTRY/xdeepsd:1.0 | kubectl apply -f -."""
    import yaml

    from xdeepsd.clusters import manifests

    _, errors = consoles()
    with told(errors, (ValueError, OSError, ImportError), ""):
        if (kind is Made.JOB) != bool(command):
            raise ValueError("Needed with --kind job, and with no other: the command to run, after --.")
        made: list[dict[str, Any]]
        if kind is Made.RBAC:
            made = manifests.role(name, user, service_account)
        elif kind is Made.OPERATOR:
            made = manifests.operator(image)
        else:
            low, high = manifests.bounds(clusters.parse_workers(workers or "0:20"), gpus)
            given = clusters.read_options(cluster_options)
            idle_timeout, namespace = given.pop("idle_timeout", 3600), given.pop("namespace", None)
            given.pop("timeout", None)  # nobody waits here
            known = {field.name for field in dataclasses.fields(manifests.Pods)}
            if others := sorted(set(given) - known):
                raise ValueError(f"{cluster_options} has {', '.join(others)}, of which a manifest knows nothing.")
            pods = manifests.Pods(manifests.check_image(image), **given)
            if kind is Made.JOB:
                made = [manifests.dask_job(name, pods, _on_its_cluster(command or []), low)]
            else:
                made = [manifests.dask_cluster(name, pods, low, idle_timeout)]
            if high > low:
                made.append(manifests.autoscaler(name, low, high))
            if gpus:
                made.append(manifests.gpu_workers(name, pods, gpus))
            if namespace is not None:
                made = [one | {"metadata": one["metadata"] | {"namespace": namespace}} for one in made]
        typer.echo(yaml.safe_dump_all(made, sort_keys=False), nl=False)


def _on_its_cluster(command: list[str]) -> list[str]:
    """The command, which computes on the job's cluster unless it says where."""
    computes = command[0] == "xdeepsd" and command[1:2] and command[1] in ("downscale", "train", "sweep", "prepare")
    return [*command, "--scheduler", _ADDRESS] if computes and "--scheduler" not in command else command
