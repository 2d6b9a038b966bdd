"""A Dask cluster of processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from xdeepsd.clusters.manifests import threads


@contextlib.contextmanager
def on_this_machine(
    low: int, high: int, gpus: int, cpus: int, memory: str | None, env: Mapping[str, str]
) -> Iterator[Any]:
    """Yield the client of ``low`` to ``high`` processes, or of ``gpus`` with a GPU each: see `cluster`."""
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    most = gpus or max(1, CPU_COUNT // cpus)
    least = gpus or min(low, most)
    local = LocalCluster(
        n_workers=least, threads_per_worker=1, memory_limit=memory or "auto", dashboard_address=":0",
        silence_logs=logging.ERROR, env={**threads(cpus), **env}, resources={"GPU": 1} if gpus else None,
    )  # fmt: skip
    with local as cluster, Client(cluster) as client:
        if gpus:
            client.run(_take_gpu, {address: i for i, address in enumerate(client.scheduler_info(-1)["workers"])})
        elif high > low:
            cluster.adapt(minimum=least, maximum=min(high, most))
        yield client


def _take_gpu(numbers: Mapping[str, int], dask_worker: Any) -> None:
    """Let a worker see the GPU with its number, and no other."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(numbers[dask_worker.address])
