"""The manifests: valid against the operator's and Kubernetes' own schemas, and with what people forget."""

import itertools

import pytest

from xdeepsd.clusters.manifests import (
    Pods,
    autoscaler,
    bounds,
    check_image,
    dask_cluster,
    dask_job,
    gpu_workers,
    operator,
    role,
)

FULL = Pods(
    "registry:5000/xdeepsd:1.0", cpus=4, memory="8Gi", env={"LOG": "1"}, secrets=["s3"], service_account="science",
    volumes={"/data": {"persistentVolumeClaim": {"claimName": "climate"}}}, node_selector={"pool": "big"},
    tolerations=[{"key": "spot", "operator": "Exists"}], lifetime="12 hours",
)  # fmt: skip
PODS = [Pods("xdeepsd:1.0"), FULL]


def manifests(pods):
    return [
        dask_cluster("name", pods, 2), gpu_workers("name", pods, 2), autoscaler("name", 0, 20),
        dask_job("name", pods, ["xdeepsd", "downscale", "in", "model", "out"]),
    ]  # fmt: skip


def pod_specs(manifest):
    """Every pod spec in a manifest."""
    found = []

    def look(node):
        if isinstance(node, dict):
            found.extend([node] if "containers" in node else [])
            for value in node.values():
                look(value)

    look(manifest)
    return found


def container(spec):
    [found] = spec["containers"]
    return found


def test_valid_against_the_definitions_of_the_operator():
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("dask_kubernetes", reason="brings the resource definitions")
    definitions = {}
    for definition in operator():
        if definition["kind"] == "CustomResourceDefinition":
            schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            definitions[definition["spec"]["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    for manifest in [*manifests(PODS[0]), *manifests(PODS[1])]:
        definitions[manifest["kind"]].validate(manifest)
    assert not definitions["DaskAutoscaler"].is_valid(autoscaler("name", "few", 20))


@pytest.mark.parametrize("pods", PODS)
def test_valid_against_kubernetes(pods):
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(pods):
        for spec in pod_specs(manifest):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "name"}, "spec": spec}
            validator.validate(pod, "1.31", strict=True)
    service = dask_cluster("name", pods)["spec"]["scheduler"]["service"]
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "name"}, "spec": service}
    plain = [one for one in operator() if one["kind"] != "CustomResourceDefinition"]
    for manifest in (made, *role(user="me", service_account="hub"), *plain):
        validator.validate(manifest, "1.31", strict=True)


def test_what_people_forget():
    worker, scheduler = pod_specs(dask_cluster("name", FULL, 2))
    for spec in (worker, scheduler):
        resources = container(spec)["resources"]
        assert resources["requests"] == resources["limits"]
        assert container(spec)["image"] == FULL.image
        assert spec["serviceAccountName"] == "science"
        assert container(spec)["envFrom"] == [{"secretRef": {"name": "s3"}}]
        assert {"name": "LOG", "value": "1"} in container(spec)["env"]
        [mount] = container(spec)["volumeMounts"]
        assert spec["volumes"] == [{"name": mount["name"], "persistentVolumeClaim": {"claimName": "climate"}}]
    args = container(worker)["args"]
    assert args[:2] == ["dask", "worker"]
    assert container(scheduler)["args"][:2] == ["dask", "scheduler"]
    given = dict(itertools.pairwise(args))
    assert given["--nthreads"] == "1"
    assert given["--memory-limit"] == container(worker)["resources"]["limits"]["memory"] == "8Gi"
    assert given["--death-timeout"] == "120"
    assert given["--lifetime"] == "12 hours"
    assert "--lifetime-stagger" in given
    env = {one["name"]: one["value"] for one in container(worker)["env"]}
    assert {env[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")} == {"4"}
    assert container(worker)["resources"]["limits"]["cpu"] == "3800m"
    # Workers may run on nodes that are taken away, the scheduler must not.
    assert {"k8s.dask.org/dedicated", "k8s.dask.org_dedicated", "spot"} <= {one["key"] for one in worker["tolerations"]}
    assert "tolerations" not in scheduler
    assert "requiredDuringSchedulingIgnoredDuringExecution" in scheduler["affinity"]["nodeAffinity"]
    assert worker["nodeSelector"] == {"pool": "big"}
    assert "nodeSelector" not in scheduler
    assert dask_cluster("name", FULL, 2)["spec"]["idleTimeout"] == 3600


def test_gpu_workers_are_a_group_of_their_own():
    [worker] = pod_specs(gpu_workers("name", FULL, 2))
    assert container(worker)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(worker)["args"][-2:] == ["--resources", "GPU=1"]
    assert "nvidia.com/gpu" in {one["key"] for one in worker["tolerations"]}
    [plain, _] = pod_specs(dask_cluster("name", FULL))
    assert "nvidia.com/gpu" not in str(plain)


def test_images_and_bounds(monkeypatch):
    monkeypatch.delenv("JUPYTER_IMAGE_SPEC", raising=False)
    for good in ("a:1", "reg:5000/a:1", "reg/a@sha256:0123"):
        assert check_image(good) == good
    for bad in ("a", "reg:5000/a"):
        with pytest.raises(ValueError, match="has no tag"):
            check_image(bad)
    with pytest.raises(ValueError, match="No image is given"):
        check_image(None)
    monkeypatch.setenv("JUPYTER_IMAGE_SPEC", "hub/image:2026")
    assert check_image(None) == "hub/image:2026"
    assert bounds(4) == (4, 4)
    assert bounds((0, 20)) == (0, 20)
    assert bounds(0, gpus=1) == (0, 0)
    for wrong in (0, -1, (3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="Needed: 1 or more, or"):
            bounds(wrong)
    with pytest.raises(ValueError, match=r"cpus is 0\.5"):
        Pods("a:1", cpus=0.5)
