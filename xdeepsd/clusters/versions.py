"""What is installed on both sides of a cluster, and whether they understand each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Those that must be the same everywhere: tasks travel as bytecode and pickles. The others are shown.
SAME = ("python", "dask", "distributed", "cloudpickle", "xdeepsd")
SHOWN = ("numpy", "torch", "xarray", "zarr")


def check_versions(client: Any, image: str | None = None) -> None:
    """Raise ImportError, with a table, if a package is missing or another one at the scheduler or a worker."""
    _compare(client.get_versions(check=False, packages=["xdeepsd", *SHOWN]), image)


def check_scheduler(cluster: Any, image: str | None = None) -> None:
    """The same for the scheduler of a KubeCluster alone, to which a client of another version might not connect."""
    from distributed.versions import get_versions

    packages = ["xdeepsd", *SHOWN]
    there = cluster.sync(cluster.scheduler_comm.versions, packages=packages)
    _compare({"client": get_versions(packages=packages), "scheduler": there, "workers": {}}, image)


def _compare(found: Mapping[str, Any], image: str | None) -> None:
    sides = {"client": found["client"], "scheduler": found["scheduler"], **_different(found["workers"])}
    packages = {side: _short(about["packages"]) for side, about in sides.items() if about}
    mine = packages["client"]
    wrong = [name for name in SAME if any(there.get(name) != mine.get(name) for there in packages.values())]
    if not wrong:
        return
    absent = [name for name in wrong if any(there.get(name) is None for there in packages.values())]
    where = f"the image {image}" if image else "the environment of the cluster"
    what = f"{', '.join(absent)} is missing in" if absent else f"Other versions of {', '.join(wrong)} are in"
    raise ImportError(
        f"{what} {where}. Needed: the same environment for client, scheduler and workers. Run this in the image of the "
        f"cluster, or give one that holds what is installed here.\n{table(packages)}"
    )


def table(packages: Mapping[str, Mapping[str, str | None]]) -> str:
    """The versions as text: a line for each package, a column for each side."""
    rows = [["", *packages]]
    rows += [[name, *(str(there.get(name) or "missing") for there in packages.values())] for name in (*SAME, *SHOWN)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(packages: Mapping[str, Any]) -> dict[str, Any]:
    python = ".".join(str(packages["python"]).split(".")[:2])  # 3.11.2 and 3.11.9 understand each other
    return {**packages, "python": python}


def _different(workers: Mapping[str, Any]) -> dict[str, Any]:
    """One worker of each kind: a thousand equal ones are one column."""
    kinds: dict[str, Any] = {}
    for about in workers.values():
        kinds.setdefault(str(sorted((k, str(v)) for k, v in about["packages"].items())), about)
    names = ["workers"] if len(kinds) == 1 else [f"workers {i}" for i in range(1, len(kinds) + 1)]
    return dict(zip(names, kinds.values(), strict=True))
