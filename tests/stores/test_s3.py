"""Object stores for real: an S3 server on this machine, reached by s3fs and by obstore, killed, refused and wrong."""

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import s3_server
import xarray as xr
import zarr
from builders import make_coarse, make_stack, make_static
from s3_server import BUCKET, SECRET
from test_store import PACKAGE, Counted, Killed, make_ds

import xdeepsd
from xdeepsd.stores import layout, remote, write


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with s3_server.running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(served, monkeypatch):
    s3_server.reach(served, monkeypatch)
    return served


def store_of(library, name, bucket=BUCKET):
    if library == "s3fs":
        return f"s3://{bucket}/{name}"
    obstore = pytest.importorskip("obstore.store", reason="obstore is not installed")
    return zarr.storage.ObjectStore(obstore.S3Store(bucket, prefix=name))


def opened(store, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_zarr(store, **options)


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_the_objects_are_the_files(server, tmp_path, library):
    ds = make_ds()
    encoding = {"pr": {"chunks": (1, 3, 2)}}
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr", encoding=encoding)
    xdeepsd.to_zarr(ds, store_of(library, f"files-{library}.zarr"), encoding=encoding)
    files = {
        str(f.relative_to(tmp_path / "a.zarr")): f.read_bytes() for f in (tmp_path / "a.zarr").rglob("*") if f.is_file()
    }
    prefix = f"files-{library}.zarr/"
    assert {key.removeprefix(prefix): value for key, value in server.contents(prefix).items()} == files
    xr.testing.assert_equal(opened(store_of(library, f"files-{library}.zarr")).load(), ds.compute())


SCRIPT = """
import sys, time, types
import numpy as np, dask, dask.array, xarray as xr
xdeepsd = sys.modules["xdeepsd"] = types.ModuleType("xdeepsd")  # without its __init__, which imports torch
xdeepsd.__path__ = [sys.argv[3]]
from xdeepsd.stores import write

def compute(block, day):
    with open(sys.argv[2], "a") as log:  # one line for each region that is computed
        log.write(f"{int(day[0, 0, 0])}\\n")
    return np.random.default_rng(int(day[0, 0, 0])).normal(size=(1, 20, 20)).astype("f4")

if __name__ == "__main__":
    day = dask.array.arange(40, chunks=1)[:, None, None]
    zeros = dask.array.zeros((40, 20, 20), chunks=(1, -1, -1), dtype="f4")
    data = dask.array.map_blocks(compute, zeros, day, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    ds = xr.Dataset({"pr": (("time", "lat", "lon"), data)}, {"time": xr.date_range("2000-01-01", periods=40)})
    store = sys.argv[1]
    if store.startswith("obstore:"):
        import obstore.store, zarr
        bucket, _, prefix = store.removeprefix("obstore:").partition("/")
        store = zarr.storage.ObjectStore(obstore.store.S3Store(bucket, prefix=prefix))
    write.to_zarr(ds, store, encoding={"pr": {"chunks": (1, 10, 20)}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_killed_in_the_middle(server, tmp_path, library):
    """kill -9, then the same command: the same objects, and no finished region is computed again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def launch(name):
        store = f"s3://{BUCKET}/{library}-{name}.zarr" if library == "s3fs" else f"obstore:{BUCKET}/obstore-{name}.zarr"
        command = [sys.executable, script, store, tmp_path / f"{name}.log", PACKAGE]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    whole = launch("whole")
    assert whole.wait() == 0, whole.stderr.read()
    log, prefix = tmp_path / "a.log", f"{library}-a.zarr/"
    for wanted in (12, None):
        before = len(log.read_text().split()) if log.exists() else 0
        written = [int(key.split("/")[3]) for key in server.contents(f"{prefix}pr/c/")]
        finished = {day for day in written if written.count(day) == 2}
        process = launch("a")
        if wanted is None:
            assert process.wait() == 0, process.stderr.read()
        else:
            while not log.exists() or len(log.read_text().split()) <= before + wanted:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            root = json.loads(server.contents(f"{prefix}zarr.json")[f"{prefix}zarr.json"])
            assert root["attributes"][layout.STATUS] == layout.INCOMPLETE
        assert not finished & {int(day) for day in log.read_text().split()[before:]}
    assert finished  # some were, when it was resumed last
    of = {name: {k.partition("/")[2]: v for k, v in server.contents(f"{library}-{name}.zarr/").items()}
          for name in ("a", "whole")}  # fmt: skip
    assert of["a"] == of["whole"]


@pytest.fixture(scope="module")
def job(served, tmp_path_factory):
    """A model in a folder, and its input in the bucket."""
    folder = tmp_path_factory.mktemp("job")
    coarse = make_coarse(days=7)
    stack = make_stack(1, channels=(3,), kernels=(3, 3))
    model = xdeepsd.StackedSRCNN(stack.stages, static=make_static(coarse, 2))
    xdeepsd.save_model(model, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        s3_server.reach(served, patch)
        coarse.to_dataset().chunk(time=4).to_zarr(f"s3://{BUCKET}/in.zarr")
    return folder, coarse, model


def run(*arguments):
    from typer.testing import CliRunner

    from xdeepsd.cli import app

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_from_bucket_to_bucket(server, job):
    _, coarse, model = job
    fine = opened(f"s3://{BUCKET}/in.zarr").deepsd.downscale(model)
    fine.deepsd.to_zarr(f"s3://{BUCKET}/fine.zarr", resume=True)
    whole = server.contents("fine.zarr/")
    fine.deepsd.to_zarr(f"s3://{BUCKET}/fine.zarr", resume=True)
    assert server.contents("fine.zarr/") == whole
    np.testing.assert_array_equal(opened(f"s3://{BUCKET}/fine.zarr")["pr"], coarse.deepsd.downscale(model))
    with pytest.raises(ValueError, match="is or contains the input"):
        fine.deepsd.to_zarr(f"s3://{BUCKET}/in.zarr", overwrite=True)


@pytest.mark.slow
def test_command_with_workers(server, job):
    """Two processes, which take the credentials from their own environment."""
    folder, coarse, model = job
    words = ["downscale", f"s3://{BUCKET}/in.zarr", folder / "model", f"s3://{BUCKET}/out.zarr", "--chunk-days", "1"]
    result = run(*words, "--workers", "2", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "out.zarr is complete: 7 days" in result.output
    np.testing.assert_array_equal(opened(f"s3://{BUCKET}/out.zarr")["pr"], coarse.deepsd.downscale(model))
    result = run(*words)  # by threads: nothing is left to do
    assert result.exit_code == 0, result.output


def test_the_howto_runs(server, job, tmp_path, monkeypatch):
    folder, coarse, model = job
    server.client().create_bucket(Bucket="bucket")
    coarse.to_dataset().to_zarr("s3://bucket/coarse.zarr")
    monkeypatch.chdir(folder)
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "buckets.md"
    names, seen = {}, []
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        with monkeypatch.context() as patch:
            compute = write.compute
            patch.setattr(
                write, "compute", lambda graph, *rest, to=compute: (seen.append(len(graph)), to(graph, *rest))
            )
            exec(code, names)
    assert seen[0] > 0
    assert seen[1:] == [0]
    np.testing.assert_array_equal(opened("s3://bucket/fine.zarr")["pr"], coarse.deepsd.downscale(model))
    fine = names["coarse"].deepsd.downscale(model)
    for store in ("s3://bucket/coarse.zarr", *(store_of("obstore", name, "bucket") for name in ("coarse.zarr", None))):
        with pytest.raises(ValueError, match="is or contains the input"):
            fine.deepsd.to_zarr(store, overwrite=True)


# --- levels -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ladder(tmp_path_factory, served):
    """Levels on a disk, and a copy of them in the bucket; the climate they were built from, in the bucket too."""
    folder = tmp_path_factory.mktemp("ladder")
    climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(90))
    xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2,), folder / "levels.zarr")
    s3 = served.client()
    for file in (folder / "levels.zarr").rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), BUCKET, str(file.relative_to(folder)))
    with pytest.MonkeyPatch.context() as patch:
        s3_server.reach(served, patch)
        climate[["precipitation", "elevation"]].chunk(time=30).to_zarr(f"s3://{BUCKET}/climate.zarr")
    return folder


def test_training_reads_levels_from_a_bucket(server, ladder, tmp_path):
    url = f"s3://{BUCKET}/levels.zarr"
    for here, there in zip(xdeepsd.open_levels(ladder / "levels.zarr"), xdeepsd.open_levels(url), strict=True):
        xr.testing.assert_identical(here.load(), there.load())
    (tmp_path / "config.toml").write_text(
        f'[paths]\nlevels = "{url}"\n[training]\nchannels = [4, 2]\nkernels = [3, 1, 3]\npatch = 10\nstride = 6\n'
        "batch = 8\nsteps = 4\nvalidate_every = 2\ncheckpoint_every = 2\nvalidation = 0.2\nworkers = 1\n"
        'static = ["elevation"]\n'
    )
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.toml").write_text(text.replace(url, str(ladder / "levels.zarr")))
    for folder in (tmp_path, tmp_path / "here"):
        result = run("train", folder / "config.toml")
        assert result.exit_code in (0, 2), result.output  # 2: four steps do not beat interpolation
    there, here = (xdeepsd.load_model(folder / "model").fingerprint() for folder in (tmp_path, tmp_path / "here"))
    assert there == here
    said = "".join(f.read_text(errors="replace") for f in tmp_path.rglob("*") if f.is_file())
    assert SECRET not in said
    with pytest.raises(ValueError, match=f"No store of levels at s3://{BUCKET}/nothing.zarr"):
        xdeepsd.open_levels(f"s3://{BUCKET}/nothing.zarr")


def test_prepare_reads_from_a_bucket(server, ladder, tmp_path):
    result = run("prepare", f"s3://{BUCKET}/climate.zarr", "--factors", "2", "--out", tmp_path / "levels.zarr")
    assert result.exit_code == 0, result.output
    ours, theirs = (xdeepsd.open_levels(path / "levels.zarr") for path in (tmp_path, ladder))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a["precipitation"], b["precipitation"])
    result = run("prepare", f"s3://{BUCKET}/climate.zarr", "--factors", "2", "--out", f"s3://{BUCKET}/l.zarr")
    assert result.exit_code == 1
    assert "Needed: a folder on a disk" in result.output
    result = run("prepare", f"s3://{BUCKET}/climate.zarr", "other.zarr", "--out", tmp_path / "b.zarr")
    assert "Needed: one Zarr store, or files on a disk" in result.output


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_what_is_not_ours_stays(server, library):
    s3, name = server.client(), f"theirs-{library}"
    s3.put_object(Bucket=BUCKET, Key=f"{name}/thesis.txt", Body=b"years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="exists and is not a Zarr group"):
            xdeepsd.to_zarr(make_ds(), store_of(library, name), **options)
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(store_of(library, f"{name}/by_xarray.zarr"), consolidated=False)
    with pytest.raises(FileExistsError, match="was not written by"):
        xdeepsd.to_zarr(make_ds(), store_of(library, f"{name}/by_xarray.zarr"))
    xdeepsd.to_zarr(make_ds(seed=1), store_of(library, f"{name}/ours.zarr"))
    for key in ("notes.txt", "pr/c/0/0/notes.txt", "figures/1.png", "5"):
        s3.put_object(Bucket=BUCKET, Key=f"{name}/ours.zarr/{key}", Body=b"mine")
        before = server.contents(f"{name}/")
        with pytest.raises(FileExistsError, match=f"also holds something that is not Zarr: {key}"):
            xdeepsd.to_zarr(make_ds(), store_of(library, f"{name}/ours.zarr"), overwrite=True)
        assert server.contents(f"{name}/") == before
        s3.delete_object(Bucket=BUCKET, Key=f"{name}/ours.zarr/{key}")
    xdeepsd.to_zarr(make_ds(), store_of(library, f"{name}/ours.zarr"), overwrite=True)
    xr.testing.assert_equal(opened(store_of(library, f"{name}/ours.zarr")).load(), make_ds().compute())


def test_what_another_process_wrote_is_seen(server):
    """fsspec keeps listings: a chunk written by someone else must not survive an overwrite as if it were done."""
    url = f"s3://{BUCKET}/listed.zarr"
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(make_ds(seed=1, seen=Counted(stop_after=2)), url)
    with pytest.raises(FileExistsError):  # lists the store
        xdeepsd.to_zarr(make_ds(), url, resume=False)
    value = next(iter(server.contents("listed.zarr/pr/c/").values()))
    for key in ("pr/c/2/0/0", "old/zarr.json", "old/c/0"):
        server.client().put_object(Bucket=BUCKET, Key=f"listed.zarr/{key}", Body=value)
    xdeepsd.to_zarr(make_ds(), url, overwrite=True)
    xr.testing.assert_equal(opened(url).load(), make_ds().compute())
    assert not server.contents("listed.zarr/old/")


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_no_such_bucket(server, library):
    message = r"s3://nowhere/a.zarr: there is no such bucket.*Needed: one that exists"
    with pytest.raises(FileNotFoundError, match=message):
        xdeepsd.to_zarr(make_ds(), store_of(library, "a.zarr", "nowhere"))
    server.client().create_bucket(Bucket="elsewhere")  # the advice followed
    xdeepsd.to_zarr(make_ds(), store_of(library, f"{library}.zarr", "elsewhere"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that checks signatures, with a bucket and a user who may do anything in it."""
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    folder = tmp_path_factory.mktemp("guarded")
    with s3_server.running(folder, INITIAL_NO_AUTH_ACTION_COUNT="4") as server:
        iam = server.client("iam")
        iam.create_user(UserName="user")
        iam.put_user_policy(UserName="user", PolicyName="s3", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="user")["AccessKey"]
        server.client().create_bucket(Bucket=BUCKET)
        server.environment |= {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        yield server


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(guarded, monkeypatch, library, wrong):
    s3_server.reach(guarded, monkeypatch)
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv(wrong, "another")
    with pytest.raises(PermissionError, match=r"access is refused.*Type export AWS_ACCESS_KEY_ID=") as caught:
        xdeepsd.to_zarr(make_ds(), store_of(library, "a.zarr"))
    assert right not in "".join(traceback.format_exception(caught.value))
    with monkeypatch.context() as patch:  # the advice followed
        s3_server.reach(guarded, patch)
        xdeepsd.to_zarr(make_ds(), store_of(library, f"{library}-{wrong}.zarr"))
    s3_server.forget()
    if library == "s3fs":
        with pytest.raises(PermissionError, match="access is refused"):
            xdeepsd.open_levels(f"s3://{BUCKET}/levels.zarr")
        result = run("downscale", f"s3://{BUCKET}/in.zarr", "demo", f"s3://{BUCKET}/out.zarr")
        assert result.exit_code == 1
        assert "access is refused" in result.output


def test_no_credentials(guarded, monkeypatch):
    s3_server.reach(guarded, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(PermissionError, match=r"no credentials were found.*Type export AWS_ACCESS_KEY_ID="):
        xdeepsd.to_zarr(make_ds(), store_of("s3fs", "a.zarr"))


def test_new_credentials_resume(guarded, monkeypatch):
    """Temporary ones expire: what they wrote is continued with others, since they are no part of the input."""
    s3_server.reach(guarded, monkeypatch)
    make_ds().compute().to_zarr(f"s3://{BUCKET}/in.zarr")
    first, second = Counted(stop_after=2), Counted()
    with dask.config.set(scheduler="synchronous"), pytest.raises(Killed):
        xdeepsd.to_zarr(_watched(first), f"s3://{BUCKET}/out.zarr")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
        s3_server.forget()
        with pytest.raises(PermissionError):
            _watched(second)
    key = guarded.client("iam").create_access_key(UserName="user")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    s3_server.forget()
    xdeepsd.to_zarr(_watched(second), f"s3://{BUCKET}/out.zarr")
    assert sorted(first.days + second.days) == list(range(7))


def _watched(seen):
    ds = opened(f"s3://{BUCKET}/in.zarr", chunks={"time": 2})
    day = dask.array.arange(7, chunks=2)[:, None, None]
    name = f"watched-{ds['pr'].data.name}"
    data = dask.array.map_blocks(seen, ds["pr"].data, day, dtype="f4", meta=np.empty((0, 0, 0), "f4"), name=name)
    return ds.assign(pr=ds["pr"].copy(data=data))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_the_server_goes_away(tmp_path, monkeypatch, library):
    """In the middle of the writing: said, with how much is written."""
    with s3_server.running(tmp_path) as server:
        s3_server.reach(server, monkeypatch)

        class Fatal(Counted):
            def __call__(self, block, day):
                if len(self.days) >= 4:
                    server.kill()
                return super().__call__(block, day)

        with (
            dask.config.set(scheduler="synchronous"),
            pytest.raises(
                ConnectionError, match=r"cannot be reached.*of 4 regions are written and kept: the same"
            ) as e,
        ):
            xdeepsd.to_zarr(make_ds(seen=Fatal()), store_of(library, "a.zarr"))
        assert " 2 of 4 " in str(e.value) or " 3 of 4 " in str(e.value)
        assert SECRET not in "".join(traceback.format_exception(e.value))


# --- credentials stay where they are ------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_credentials_are_nowhere(server, job, caplog, monkeypatch, library):
    """Not in what is written, in the log, in the graph that workers get, nor in names and fingerprints."""
    folder, _, model = job
    caplog.set_level(logging.DEBUG)
    graphs = []
    compute = write.compute
    monkeypatch.setattr(write, "compute", lambda graph, *others: (graphs.append(graph), compute(graph, *others)))
    fine = opened(f"s3://{BUCKET}/in.zarr").deepsd.downscale(model)
    xdeepsd.to_zarr(fine, store_of(library, f"secret-{library}.zarr"))
    result = run("downscale", f"s3://{BUCKET}/in.zarr", folder / "model", f"s3://{BUCKET}/secret-{library}-2.zarr")
    assert result.exit_code == 0, result.output
    written = b"".join([key.encode() + value for key, value in server.contents(f"secret-{library}").items()])
    ours = "".join(r.getMessage() for r in caplog.records if not r.name.startswith(("boto", "aiobotocore", "urllib3")))
    said = [written, result.output.encode(), ours.encode(), *(pickle.dumps(dict(graph)) for graph in graphs)]
    assert len(graphs) == 2
    for secret in (server.environment["AWS_ACCESS_KEY_ID"], SECRET):
        assert all(secret.encode() not in text for text in said)


def test_signed_urls_are_not_kept(tmp_path):
    ds = make_ds()
    ds.encoding["source"] = "https://me:password@host/in.zarr?X-Amz-Signature=abcdef&X-Amz-Credential=AKIA"
    xdeepsd.to_zarr(ds, tmp_path / "a.zarr")
    written = (tmp_path / "a.zarr/zarr.json").read_text()
    assert "https://host/in.zarr" in written
    assert not any(secret in written for secret in ("abcdef", "password", "AKIA"))
    error = ConnectionError("HTTP error: error sending request for https://host/?X-Amz-Signature=abcdef&more=1")
    assert "abcdef" not in str(remote.meaning(error, "https://host/in.zarr"))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/data/a"), ValueError("Forbidden"),
                                   OSError(5, "Input/output error"), KeyError("NoSuchBucket")])  # fmt: skip
def test_other_errors_stay_as_they_are(error):
    assert remote.meaning(error, "s3://maps/a.zarr") is None
    with pytest.raises(type(error)) as caught, remote.told("s3://maps/a.zarr"):
        raise error
    assert caught.value is error
