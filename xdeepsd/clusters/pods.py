"""Why a pod does not run, read from its status as the API gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_NO_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_RESTARTS = 2  # of a container that ends by itself, before it is said to crash again and again


def ready(pod: Mapping[str, Any]) -> bool:
    """True if all containers of the pod run and pass their probes."""
    return _condition(pod, "Ready").get("status") == "True"


def trouble(pod: Mapping[str, Any]) -> str | None:
    """Why waiting longer will not help; None while the pod runs or may still come to run."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason"), waiting.get("message", "")
        if reason in _NO_IMAGE:
            image = container.get("image") or spec["containers"][0]["image"]
            return f"the image {image} cannot be pulled ({_text(reason, message)})"
        if reason in _NO_START:
            return f"its container cannot be made ({_text(reason, message)})"
        if container.get("restartCount", 0) >= _RESTARTS and "running" not in container.get("state", {}):
            return f"it crashes again and again ({_text(reason, message)})"
    if status.get("phase") == "Failed":
        return f"it failed ({status.get('reason') or status.get('message') or 'no reason given'})"
    return None


def waiting(pod: Mapping[str, Any]) -> str:
    """What the pod waits for, which more time or another node may still bring."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node fits ({scheduled.get('message') or scheduled.get('reason')})"
    for container in pod.get("status", {}).get("containerStatuses") or ():
        if reason := (container.get("state", {}).get("waiting") or {}).get("reason"):
            return f"its container is waiting ({reason})"
    return "it runs, but is not ready" if pod.get("status", {}).get("phase") == "Running" else "it is pending"


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = pod.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _text(reason: str | None, message: str) -> str:
    return f"{reason}: {message}" if message else str(reason)
