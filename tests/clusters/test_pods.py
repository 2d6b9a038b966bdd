"""Why a pod does not run: statuses as kubelets write them."""

import pytest

from xdeepsd.clusters import pods
from xdeepsd.clusters.versions import check_versions


def pod(state=None, restarts=0, phase="Pending", **conditions):
    containers = [] if state is None else [{"name": "worker", "image": "a:1", "restartCount": restarts, "state": state}]
    listed = [{"type": kind, **condition} for kind, condition in conditions.items()]
    spec = {"containers": [{"name": "worker", "image": "a:1"}]}
    return {"spec": spec, "status": {"phase": phase, "containerStatuses": containers, "conditions": listed}}


def waits(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


HOPELESS = [
    (pod(waits("ErrImagePull", "not found")), "the image a:1 cannot be pulled (ErrImagePull: not found)"),
    (pod(waits("ImagePullBackOff")), "the image a:1 cannot be pulled (ImagePullBackOff)"),
    (pod(waits("RunContainerError", "no such file")), "its container cannot be made (RunContainerError: no such file)"),
    (pod(waits("CrashLoopBackOff", "back-off"), restarts=2), "it crashes again and again (CrashLoopBackOff: back-off)"),
    ({"status": {"phase": "Failed", "reason": "Evicted"}}, "it failed (Evicted)"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "reason"), HOPELESS)
def test_trouble(found, reason):
    assert pods.trouble(found) == reason
    assert not pods.ready(found)


HOPEFUL = [
    (pod(waits("ContainerCreating")), "its container is waiting (ContainerCreating)"),
    (pod(PodScheduled={"status": "False", "message": "0/3 nodes: no cpu"}), "no node fits (0/3 nodes: no cpu)"),
    (pod(waits("CrashLoopBackOff"), restarts=1), "its container is waiting (CrashLoopBackOff)"),
    (pod({"running": {}}, restarts=5, phase="Running"), "it runs, but is not ready"),
    ({"status": {}}, "it is pending"),
    ({}, "it is pending"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "reason"), HOPEFUL)
def test_waiting(found, reason):
    assert pods.trouble(found) is None
    assert pods.waiting(found) == reason


def test_ready():
    assert pods.ready(pod({"running": {}}, phase="Running", Ready={"status": "True"}))


class Client:
    """Stands for a client of a cluster where these versions are installed."""

    def __init__(self, scheduler, *workers):
        self.scheduler, self.workers = scheduler, workers

    def get_versions(self, check, packages):
        def about(**other):
            same = {
                "python": "3.11.2.final.0",
                **dict.fromkeys(["dask", "distributed", "cloudpickle"], "1"),
                "xdeepsd": "2",
            }
            return {"packages": same | dict.fromkeys(set(packages) - {"xdeepsd"}, "3") | other}

        workers = {f"tcp://{i}": about(**worker) for i, worker in enumerate(self.workers)}
        return {"client": about(), "scheduler": about(**self.scheduler), "workers": workers}


def test_versions():
    check_versions(Client({}))
    check_versions(Client({"numpy": "0"}, {}, {"python": "3.11.9.final.0"}))
    with pytest.raises(ImportError, match=r"^xdeepsd is missing in the image a:1(?s:.*)\nxdeepsd +2 +missing +missing"):
        check_versions(Client({"xdeepsd": None}, *[{"xdeepsd": None}] * 9), "a:1")
    with pytest.raises(ImportError, match=r"Other versions of python, dask are in the environment of the cluster"):
        check_versions(Client({"dask": "0", "python": "3.12.1.final.0"}))
    with pytest.raises(ImportError, match=r"client +scheduler +workers 1 +workers 2\n(?s:.*)\ndask +1 +1 +1 +5"):
        check_versions(Client({}, {}, {"dask": "5"}, {}))
