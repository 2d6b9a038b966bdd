"""A Dask cluster of processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Worker
from distributed.diagnostics.plugin import WorkerPlugin

from xdeepsd.clusters.manifests import threads


@contextlib.contextmanager
def on_this_machine(
    low: int, high: int, gpus: int, cpus: int, memory: str | None, env: Mapping[str, str]
) -> Iterator[Client]:
    """Yield the client of ``low`` to ``high`` processes, or of ``gpus`` with a GPU each: see `cluster`."""
    most = gpus or max(1, CPU_COUNT // cpus)
    least = gpus or min(low, most)
    options: dict[str, Any] = {"memory_limit": memory or "auto", "env": {**threads(cpus), **env}}
    with local_client(least, 1, resources={"GPU": 1} if gpus else None, **options) as client:
        if gpus:
            client.run(_take_gpu, {address: i for i, address in enumerate(client.scheduler_info(-1)["workers"])})
        elif high > low:
            client.cluster.adapt(minimum=least, maximum=min(high, most))
        yield client


@contextlib.contextmanager
def local_client(workers: int | None, threads_per_worker: int, **options: Any) -> Iterator[Client]:
    """Yield the client of a new `distributed.LocalCluster` with these ``options``, which shows errors only."""
    options = {"dashboard_address": ":0", "silence_logs": logging.ERROR} | options
    local = LocalCluster(n_workers=workers, threads_per_worker=threads_per_worker, **options)
    with local as cluster, Client(cluster) as client:
        client.register_plugin(_NoHeartbeatErrors())
        yield client


class _NoHeartbeatErrors(WorkerPlugin):
    """Keeps a worker from reporting that a heartbeat failed.

    A heartbeat that is on its way when the cluster is closed fails, and Dask logs a traceback in the end of work that
    succeeded (dask/distributed#7105). Where the scheduler is truly lost, what waits for it raises an error of its own.
    """

    name = "xdeepsd-no-heartbeat-errors"

    def setup(self, worker: Worker) -> None:
        logging.getLogger("distributed.worker").addFilter(_is_no_heartbeat)


def _is_no_heartbeat(record: logging.LogRecord) -> bool:
    return record.msg != "Failed to communicate with scheduler during heartbeat."


def _take_gpu(numbers: Mapping[str, int], dask_worker: Any) -> None:
    """Let a worker see the GPU with its number, and no other."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(numbers[dask_worker.address])
