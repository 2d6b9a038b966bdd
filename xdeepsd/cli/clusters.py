"""Where a command computes: the flags for it, and the client they lead to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

Kind = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="KIND", help="Start a Dask cluster for this command: local, gateway or kubernetes."
    ),
]
Image = Annotated[
    str | None, typer.Option(help="With --cluster: image of its pods, with a tag. Default: JUPYTER_IMAGE_SPEC.")
]
Gpus = Annotated[int, typer.Option(min=0, help="With --cluster: number of further workers with a GPU each.")]
Options = Annotated[
    Path | None,
    typer.Option(
        "--cluster-options", metavar="FILE",
        help="With --cluster: TOML file of further arguments of xdeepsd.cluster, such as cpus, memory or volumes.",
    ),
]  # fmt: skip
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler to compute on instead.")]
_BOUNDS = "With --cluster: their number, or LOW:HIGH, such as 0:20."
Workers = Annotated[str | None, typer.Option(metavar="N", help=f"Worker processes on this machine. {_BOUNDS}")]


@contextlib.contextmanager
def connected(
    kind: str | None, workers: str | None, scheduler: str | None, image: str | None, gpus: int, options: Path | None,
    *, threads: int = 1, default: int = 0,
) -> Iterator[Any]:  # fmt: skip
    """Yield a Dask client of a cluster to start, a running scheduler or local processes; None if none is asked for.

    ``threads``, of each process, and ``default``, their number, count for local processes without ``kind``.
    """
    if kind is not None:
        import xdeepsd

        if scheduler is not None:
            raise ValueError("--scheduler and --cluster cannot be combined: --scheduler connects to a running cluster.")
        number = {} if workers is None else {"workers": parse_workers(workers)}
        with xdeepsd.cluster(kind, image=image, gpu=gpus, **number, **read_options(options)) as client:  # type: ignore[arg-type]
            yield client
        return
    if image is not None or gpus or options is not None:
        raise ValueError(
            "--image, --gpus and --cluster-options belong to a cluster that the command starts. Needed: --cluster too, "
            "with local, gateway or kubernetes."
        )
    processes = local_processes(workers, default)
    if scheduler is None and not processes:
        yield None
        return
    from distributed import Client

    from xdeepsd.clusters.local import local_client

    with Client(scheduler, timeout=30) if scheduler is not None else local_client(processes, threads) as client:
        yield client


def parse_workers(text: str) -> int | tuple[int, int]:
    """A number of workers, or the lowest and the highest.

    >>> parse_workers("4"), parse_workers("0:20")
    (4, (0, 20))
    """
    try:
        numbers = [int(part) for part in text.split(":", 1)]
    except ValueError:
        raise ValueError(f"--workers is {text!r}. Needed: a number, or LOW:HIGH, such as 0:20.") from None
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def local_processes(workers: str | None, default: int) -> int:
    """The number of local processes; ValueError for bounds, which only a cluster has."""
    number = default if workers is None else parse_workers(workers)
    if isinstance(number, tuple) or number < 0:
        raise ValueError(f"--workers is {workers!r}. Needed: 0 or more; LOW:HIGH needs --cluster too.")
    return number


def read_options(path: Path | None) -> dict[str, Any]:
    """Further arguments of `xdeepsd.cluster` from a TOML file."""
    if path is None:
        return {}
    import inspect
    import tomllib

    from xdeepsd.clusters.cluster import cluster

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    known = set(inspect.signature(cluster).parameters) - {"kind", "image", "workers", "gpu"}
    if unknown := sorted(set(found) - known):
        raise ValueError(f"{path} has {', '.join(unknown)}. Needed: some of {', '.join(sorted(known))}.")
    return found
