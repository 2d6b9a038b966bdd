"""Waiting for what a cluster does in its own time."""

import json
import time


def left_over(kubectl):
    """Names of what is still there of any Dask cluster in the namespace."""
    kinds = "daskclusters,daskworkergroups,daskautoscalers,daskjobs,deployments,services,pods"
    found = json.loads(kubectl("get", kinds, "-o", "json"))["items"]
    labels = [(item, item["metadata"].get("labels", {})) for item in found]
    return [
        f"{item['kind']} {item['metadata']['name']}"
        for item, label in labels
        if item["kind"].startswith("Dask") or "dask.org/cluster-name" in label
    ]


def until_true(true, seconds=120):
    """Wait for something that takes an unknown time on a busy machine."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)
    return found
