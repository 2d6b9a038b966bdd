"""A Dask cluster from a Dask Gateway, the usual way on a hub: its administrator says which options there are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from xdeepsd._extras import require
from xdeepsd.clusters.versions import check_versions


@contextlib.contextmanager
def on_gateway(
    address: str | None, image: str | None, low: int, high: int, wanted: Mapping[str, Any], timeout: float
) -> Iterator[Any]:
    """Yield the client of a new cluster of the Gateway at ``address``, or of the hub's: see `cluster`."""
    require("gateway", "A cluster from Dask Gateway")
    from dask_gateway import Gateway

    deadline = time.monotonic() + timeout
    try:
        gateway = Gateway(address)
        options = gateway.cluster_options()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No Dask Gateway answers at {address or 'the address that this environment names, if any'} ({error}). "
            "Needed: the address of a running one. Type address='https://HUB/services/dask-gateway'."
        ) from error
    with gateway:
        image = image if "image" in dict(options) else None
        wanted = {**wanted, **({"image": image} if image else {})}
        unknown = sorted(set(wanted) - set(dict(options)))
        if unknown:
            raise ValueError(
                f"This Gateway has no option {', '.join(unknown)}. Needed: those that its administrator offers: "
                f"{', '.join(dict(options)) or 'none'}."
            )
        options.update(wanted)
        name = gateway.submit(options)
        try:
            _wait_until_running(gateway, name, deadline)
            with gateway.connect(name) as cluster:
                cluster.adapt(low, high) if high > low else cluster.scale(low)
                with cluster.get_client() as client:
                    check_versions(client, image)
                    if low:
                        _wait_for_worker(client, name, deadline)
                        check_versions(client, image)
                    yield client
        finally:
            gateway.stop_cluster(name)


def _wait_until_running(gateway: Any, name: str, deadline: float) -> None:
    every = ["PENDING", "RUNNING", "STOPPING", "STOPPED", "FAILED"]
    while True:
        found = [report.status.name for report in gateway.list_clusters(status=every) if report.name == name]
        if found == ["RUNNING"]:
            return
        if found and found != ["PENDING"]:
            raise ConnectionError(
                f"The scheduler of the cluster {name} did not start ({found[0].lower()}): the Gateway's log says why. "
                "With distributed 2026.6 or newer its configuration needs c.ClusterConfig.scheduler_cmd = ['dask', "
                "'scheduler'], and worker_cmd likewise."
            )
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"The scheduler of the cluster {name} did not start in time. Needed: more time, where nodes have to be "
                "added first. Type a larger timeout=."
            )
        time.sleep(0.5)


def _wait_for_worker(client: Any, name: str, deadline: float) -> None:
    try:
        client.wait_for_workers(1, timeout=max(1.0, deadline - time.monotonic()))
    except TimeoutError:
        raise TimeoutError(
            f"No worker of the cluster {name} started in time: the Gateway's log says why. Needed: more time, where "
            "nodes have to be added first. Type a larger timeout=."
        ) from None
