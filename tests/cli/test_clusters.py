"""Where commands compute: --cluster, --workers and the rest; and the manifests they print."""

import pytest
import xarray as xr
import yaml
from builders import make_coarse, make_stack, make_static
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.cli.clusters import parse_workers, read_options


def run(*words):
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "1000", "JUPYTER_IMAGE_SPEC": ""})
    return result.exit_code, result.output


@pytest.fixture
def job(tmp_path):
    """A coarse store and a model."""
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3))
    coarse = make_coarse(days=4)
    xdeepsd.save_model(xdeepsd.StackedSRCNN(stack.stages, static=make_static(coarse, 2)), tmp_path / "model")
    coarse.to_dataset().chunk(time=2).to_zarr(tmp_path / "in.zarr")
    return ["downscale", tmp_path / "in.zarr", tmp_path / "model"]


def test_a_cluster_on_this_machine(job, tmp_path):
    options = tmp_path / "cluster.toml"
    options.write_text("memory = '2Gi'\n[env]\nNAME = 'value'\n")
    assert run(*job, tmp_path / "here.zarr", "--chunk-days", 2)[0] == 0
    there = [tmp_path / "there.zarr", "--cluster", "local", "--workers", "1:2", "--cluster-options", options]
    code, said = run(*job, *there, "--chunk-days", 2)
    assert code == 0, said
    here, there = (xr.open_zarr(tmp_path / name, consolidated=False) for name in ("here.zarr", "there.zarr"))
    xr.testing.assert_equal(here, there)


def test_levels_and_training_on_a_cluster(tmp_path):
    climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(0, 60))
    climate[["precipitation", "elevation"]].to_netcdf(tmp_path / "fine.nc")
    (tmp_path / "config.toml").write_text(
        "[paths]\nlevels = 'levels.zarr'\nmodel = 'model'\ncheckpoints = 'checkpoints'\n[data]\nfactors = [2]\n"
        "[training]\nsteps = 2\npatch = 8\nstride = 4\nbatch = 4\nkernels = [3, 1, 3]\nchannels = [4, 3]\nworkers = 1\n"
    )
    local = ["--cluster", "local", "--workers", 1]
    code, said = run("prepare", tmp_path / "fine.nc", "--out", tmp_path / "levels.zarr", "--factors", 2, *local)
    assert code == 0, said
    code, said = run("train", tmp_path / "config.toml", *local)
    assert code in (0, 2), said  # 2: after two steps it need not beat interpolation
    assert (tmp_path / "model" / "model.json").exists()


def test_what_is_refused(job, tmp_path):
    def refused(text, *words):
        code, said = run(*job, tmp_path / "out.zarr", *words)
        assert code == 1
        assert text in said
        assert not (tmp_path / "out.zarr").exists()

    refused("Needed: --cluster too", "--image", "a:1")
    refused("Needed: --cluster too", "--gpus", 1)
    refused("LOW:HIGH needs --cluster too", "--workers", "0:4")
    refused("Needed: 0 or more", "--workers", "-2")
    refused("--workers is 'many'", "--workers", "many")
    refused("cannot be combined", "--cluster", "local", "--scheduler", "tcp://127.0.0.1:1")
    refused("cannot be combined", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    refused("kind is 'slurm'", "--cluster", "slurm")
    refused("Type --image REGISTRY/xdeepsd:TAG", "--cluster", "kubernetes")
    refused("Type --image xdeepsd:TAG", "--cluster", "kubernetes", "--image", "xdeepsd")
    options = tmp_path / "cluster.toml"
    options.write_text("cpu = 2\n")
    refused("cluster.toml has cpu. Needed: some of address, cpus", "--cluster", "local", "--cluster-options", options)
    options.write_text("cpus = ")
    refused("cluster.toml is no TOML", "--cluster", "local", "--cluster-options", options)


def test_numbers():
    assert parse_workers("7") == 7
    assert parse_workers("1:7") == (1, 7)
    for wrong in ("", "1:2:3", "a", "1:"):
        with pytest.raises(ValueError, match="Needed: a number, or LOW:HIGH"):
            parse_workers(wrong)
    assert read_options(None) == {}


def manifest(*words):
    code, said = run("kubernetes", "manifest", *words)
    assert code == 0, said
    return list(yaml.safe_load_all(said))


def test_manifests(tmp_path):
    options = tmp_path / "cluster.toml"
    options.write_text("cpus = 4\nidle_timeout = 60\nservice_account = 'science'\nnamespace = 'lab'\ntimeout = 900\n")
    made = manifest("--kind", "cluster", "--image", "a:1", "--name", "mine", "--gpus", 2, "--cluster-options", options)
    assert [one["kind"] for one in made] == ["DaskCluster", "DaskAutoscaler", "DaskWorkerGroup"]
    assert made[0]["spec"]["idleTimeout"] == 60
    assert made[0]["spec"]["worker"]["spec"]["serviceAccountName"] == "science"
    assert made[1]["spec"] == {"cluster": "mine", "minimum": 0, "maximum": 20}
    assert made[2]["spec"]["worker"]["replicas"] == 2
    assert [one["metadata"]["namespace"] for one in made] == ["lab"] * 3
    options.write_text("address = 'https://hub'\n")
    code, said = run("kubernetes", "manifest", "--kind", "cluster", "--image", "a:1", "--cluster-options", options)
    assert code == 1
    assert "cluster.toml has address, of which a manifest knows nothing" in said
    [made] = manifest(
        "--kind", "job", "--image", "a:1", "--workers", 3, "--", "xdeepsd", "downscale", "in", "model", "out"
    )
    [container] = made["spec"]["job"]["spec"]["containers"]
    assert container["args"] == [
        "xdeepsd", "downscale", "in", "model", "out", "--scheduler", "$(DASK_SCHEDULER_ADDRESS)"
    ]  # fmt: skip
    assert made["spec"]["cluster"]["spec"]["worker"]["replicas"] == 3
    assert [one["kind"] for one in manifest("--kind", "rbac", "--user", "me")] == ["Role", "RoleBinding"]
    for words in (["--kind", "job", "--image", "a:1"], ["--kind", "rbac", "ls"]):
        code, said = run("kubernetes", "manifest", *words)
        assert code == 1
        assert "Needed with --kind job" in said
