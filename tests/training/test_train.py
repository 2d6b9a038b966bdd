"""Training: it learns what can be learned, gives the same bits each time, and says what it cannot do."""

import contextlib
import dataclasses
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time

import dask.array
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from builders import pair_of_levels
from distributed import Client, LocalCluster

from xdeepsd import TrainConfig, downscale, load_model, save_model, train_stack, train_stage
from xdeepsd.grids.interpolate import upsample
from xdeepsd.grids.missing import fill_nearest
from xdeepsd.levels.disk import build_levels, make_levels, open_levels
from xdeepsd.models.srcnn import SRCNN
from xdeepsd.training import loop
from xdeepsd.training.checkpoints import checkpoints, read_checkpoint
from xdeepsd.training.config import learning_rate
from xdeepsd.training.ladder import Ladder
from xdeepsd.training.stack import train_stacks

TIMES = ["seconds", "waiting_share", "patches_per_second"]


def small(**changes):
    """A configuration that trains in about a second."""
    return TrainConfig.paper(
        **{
            "channels": (8, 4), "kernels": (5, 1, 3), "patch": 16, "stride": 8, "batch": 8, "steps": 30,
            "learning_rate": 1e-2, "last_layer_rate": 1.0, "validate_every": 10, "checkpoint_every": 10, "threads": 1,
            "validation": 0.2, **changes,
        }
    )  # fmt: skip


def climate(days=20, seed=0):
    """Precipitation and elevation: an ocean, and terrain that the rain follows."""
    rng = np.random.default_rng(seed)
    nlat, nlon = 32, 40
    rows, cols = np.meshgrid(np.arange(nlat), np.arange(nlon), indexing="ij")
    elevation = 800 + 700 * np.sin(rows / 3) * np.cos(cols / 4)
    weather = upsample(rng.gamma(0.7, 5.0, (days, nlat // 8, nlon // 8)), 8)
    rain = (weather * (1 + elevation / 1500)).astype(np.float32)
    rain[:, :6, :9] = np.nan
    fine = xr.Dataset(
        {
            "precipitation": (("time", "lat", "lon"), rain, {"units": "mm day-1"}),
            "elevation": (("lat", "lon"), elevation.astype(np.float32), {"units": "m"}),
        },
        {
            "time": xr.date_range("2001-01-01", periods=days),
            "lat": ("lat", 45 - np.arange(nlat) / 24, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", np.arange(nlon) / 24 - 120, {"standard_name": "longitude", "units": "degrees_east"}),
        },
    )
    return fine["precipitation"], fine[["elevation"]]


def ladder(chunks=5, factors=(2, 2)):
    """Levels in memory."""
    fine, elevation = climate()
    return make_levels(fine.chunk(time=chunks), elevation, factors)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "levels.zarr"
    fine, elevation = climate()
    build_levels(fine.chunk(time=5), elevation, (2, 2), path)
    return path


def weights(stage):
    return torch.cat([p.detach().ravel() for p in stage.net.parameters()])


# --- it learns --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_overfits_eight_patches():
    """Eight patches, no validation: the loss goes to near zero (1 is the error of the mean)."""
    coarse, fine = pair_of_levels(days=8, shape=(19, 19), ocean=False)
    config = TrainConfig.paper(
        validation=None, batch=8, steps=300, learning_rate=3e-3, last_layer_rate=1.0, schedule="cosine",
        channels=(64, 32), kernels=(9, 1, 5), patch=38, stride=38, validate_every=50, residual=True,
    )  # fmt: skip
    smooth = fine["precipitation"].copy(data=upsample(fine["precipitation"].values[:, ::4, ::4], 4)[:, :38, :38])
    fine = fine.assign(precipitation=smooth)
    coarse = coarse.assign(precipitation=smooth.coarsen(lat=2, lon=2).mean().drop_vars(["lat", "lon"]))
    history = train_stage(coarse, fine, config).history
    assert history["loss"].iloc[-1] < 0.02


@pytest.mark.parametrize("residual", [False, True])
def test_recovers_what_is_exactly_linear(residual):
    """fine = 1.4 * interpolated + 0.002 * elevation + 3: a network of one layer finds exactly these numbers."""
    coarse, fine = pair_of_levels(days=20, ocean=False)
    between = upsample(coarse["precipitation"].values, 2)
    values = 1.4 * between + 0.002 * fine["elevation"].values + 3
    fine = fine.assign(precipitation=(("time", "lat", "lon"), values.astype(np.float32), {"units": "mm day-1"}))
    config = small(channels=(), kernels=(1,), residual=residual, steps=600, schedule="cosine", validate_every=100,
                   learning_rate=0.05)  # fmt: skip
    stage, _, summary, _ = train_stage(coarse, fine, config)
    assert summary["rmse"] < 1e-3 * values.std()
    weight, _ = (p.detach().numpy().ravel() for p in stage.net.parameters())
    slope = weight[0] * stage.target.std / stage.precipitation.std + residual
    height = weight[1] * stage.target.std / stage.static["elevation"].std
    assert slope == pytest.approx(1.4, rel=1e-3)
    assert height == pytest.approx(0.002, rel=1e-2)
    # and the full network comes close
    config = small(channels=(32, 16), residual=residual, steps=600, schedule="cosine", validate_every=100)
    assert train_stage(coarse, fine, config).summary["rmse"] < 0.05 * values.std()


@pytest.mark.parametrize("transform", [None, "sqrt", "log1p"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_error_reported_is_the_one_of_downscale(transform, residual):
    """Training, validation and inference agree, including ocean, edges, transform and static fields."""
    levels = ladder(factors=(2,))
    config = small(target_transform=transform, residual=residual, static=("elevation", "climatology"), steps=40)
    model = train_stack(levels, config, progress=False)
    summary = model.training["stages"][0]
    held = slice(16, None)
    assert summary["days"] == {"train": 16, "validation": 4, "test": 0}
    truth = levels[1]["precipitation"].isel(time=held).compute()
    found = downscale(levels[0]["precipitation"].isel(time=held).compute(), model)
    assert (found.isnull() == truth.isnull()).all()
    assert float(np.sqrt(((found - truth) ** 2).mean())) == pytest.approx(summary["rmse"], rel=1e-4)
    coarse = fill_nearest(levels[0]["precipitation"].values, 5)[held]
    error = np.sqrt(np.nanmean((upsample(coarse, 2) - truth.values) ** 2))
    assert summary["rmse_interpolation"] == pytest.approx(error, rel=1e-4)
    assert summary["beats_interpolation"] == (summary["rmse"] < summary["rmse_interpolation"])


def test_the_gradient_never_sees_nan():
    coarse, fine = pair_of_levels(days=12)
    with torch.autograd.detect_anomaly():
        trained = train_stage(coarse, fine, small(min_land=0.0))
    assert torch.isfinite(weights(trained.stage)).all()
    assert np.isfinite(trained.history["loss"]).all()


def test_the_best_on_validation_comes_out():
    coarse, fine = pair_of_levels(days=12)
    trained = train_stage(coarse, fine, small(steps=60, learning_rate=0.2))
    assert trained.summary["rmse"] == trained.history["rmse"].min()
    row = trained.history.set_index("step").loc[trained.summary["best_step"]]
    assert row["rmse"] == trained.summary["rmse"]


def test_denseloss():
    """Its weights are 1 for alpha 0; above that the best stage has the lowest DenseLoss."""
    coarse, fine = pair_of_levels(days=12, chunks=4)
    mse = train_stage(coarse, fine, small())
    same = train_stage(coarse, fine, small(loss="denseloss", alpha=0.0))
    np.testing.assert_allclose(weights(same.stage), weights(mse.stage), rtol=1e-3, atol=1e-4)
    dense = train_stage(coarse, fine, small(loss="denseloss", alpha=1.0, residual=True, density_transform="log1p"))
    assert dense.history["validation_loss"].idxmin() == list(dense.history["step"]).index(dense.summary["best_step"])
    assert not torch.equal(weights(dense.stage), weights(mse.stage))
    # The validation loss is computed on whole maps, in normalised space.
    assert same.history["validation_loss"].iloc[-1] == pytest.approx(
        (same.history["rmse"].iloc[-1] / same.stage.target.std) ** 2, rel=1e-4
    )


def test_no_cuda_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no CUDA"):
        train_stage(*pair_of_levels(days=12), small(device="cuda"))
    with pytest.raises(ValueError, match="device is 'gpu'; needed: a torch device"):
        train_stage(*pair_of_levels(days=12), small(device="gpu"))


def test_the_density_is_logged_and_saved_with_the_model(tmp_path, caplog):
    coarse, fine = pair_of_levels(days=12, chunks=4)
    config = small(loss="denseloss", alpha=1.0, density_transform="log1p")
    with caplog.at_level(logging.INFO):
        first = train_stage(coarse, fine, config, checkpoint_dir=tmp_path)
    assert "weights of DenseLoss: {'n': " in caplog.text
    density = first.summary["density"]
    assert {"n", "zeros_share", "bandwidth", "eps_share", "effective_sample", "weights"} <= set(density)
    again = train_stage(coarse, fine, config, checkpoint_dir=tmp_path, resume=True)  # finished: nothing is fitted again
    assert again.summary["density"] == density
    json.dumps(first.summary)  # it goes into the model's description


def test_patience_stops():
    coarse, fine = pair_of_levels(days=12)
    trained = train_stage(coarse, fine, small(steps=10_000, learning_rate=0.5, patience=3, validate_every=2))
    assert trained.summary["steps"] == trained.summary["best_step"] + 3 * 2 < 10_000


def test_says_if_it_does_not_beat_interpolation(caplog):
    coarse, fine = pair_of_levels(days=12)
    with caplog.at_level(logging.INFO):
        trained = train_stage(coarse, fine, small(learning_rate=1e-9))
    assert not trained.summary["beats_interpolation"]
    assert "THE MODEL DOES NOT BEAT INTERPOLATION" in caplog.text


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_whatever_the_loader():
    coarse, fine = pair_of_levels(days=12, chunks=3)
    first = train_stage(coarse, fine, small(seed=3))
    again = train_stage(coarse, fine, small(seed=3, workers=5))
    other = train_stage(coarse, fine, small(seed=4))
    assert torch.equal(weights(first.stage), weights(again.stage))
    assert not torch.equal(weights(first.stage), weights(other.stage))
    pd.testing.assert_frame_equal(first.history.drop(columns=TIMES), again.history.drop(columns=TIMES))
    index = train_stage(coarse, fine, small(seed=3), index=1)
    assert not torch.equal(weights(first.stage), weights(index.stage))


def run_to_the_end(store, folder):
    """What the killed process runs: one stage, continued from its last checkpoint."""
    train_stack(store, long(), checkpoint_dir=folder, resume=True, progress=False)


def newest(folder):
    """Steps of the newest checkpoints of both stages."""
    found = [checkpoints(folder / f"stage_{k}") for k in (0, 1)]
    return tuple(int(paths[-1].stem[5:]) if paths else 0 for paths in found)


def long():
    return small(steps=240, checkpoint_every=7, validate_every=20, schedule="cosine", clip_gradient=1.0, buffer=0.02)


def same_states(one, other):
    for name in ("net", "optimizer", "best"):
        a, b = (torch.utils._pytree.tree_flatten(state[name]) for state in (one, other))
        assert a[1] == b[1]
        for x, y in zip(a[0], b[0], strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    for name in ("step", "finished", "without_better", "losses", "sampler", "schedule"):
        assert one[name] == other[name]
    one, other = (pd.DataFrame(state["history"]).drop(columns=TIMES) for state in (one, other))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments(store, tmp_path):
    """A process that is killed repeatedly ends with the same bits as an undisturbed one."""
    # Processes are forked from a server that has imported everything, so that a run starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_train", "torch._dynamo"])
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = context.Process(target=run_to_the_end, args=(store, straight))
    process.start()
    process.join()
    assert process.exitcode == 0

    chance = random.Random(int(time.time()))  # other moments in each run
    kills, steps = 0, set()
    while True:
        process = context.Process(target=run_to_the_end, args=(store, killed))
        process.start()
        # Some checkpoints later plus a moment: within a step, a validation, a write
        wanted, before = chance.randint(0, 12), newest(killed)
        while process.is_alive() and sum(newest(killed)) < sum(before) + wanted * 7:
            time.sleep(0.002)
        process.join(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it had finished, perhaps just before it would have been killed
            break
        kills += 1
        steps.add(newest(killed))
    assert process.exitcode == 0
    assert kills >= 3
    assert len(steps) >= 3, f"killed {kills} times, but only at {steps}"
    for k in (0, 1):
        same_states(*(read_checkpoint(folder / f"stage_{k}") for folder in (straight, killed)))
        one, other = (pd.read_parquet(folder / f"stage_{k}" / "metrics.parquet") for folder in (straight, killed))
        pd.testing.assert_frame_equal(one.drop(columns=TIMES), other.drop(columns=TIMES))


def test_resume_of_a_finished_stage_trains_nothing(tmp_path):
    coarse, fine = pair_of_levels(days=12)
    first = train_stage(coarse, fine, small(), checkpoint_dir=tmp_path)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = train_stage(coarse, fine, small(), checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(weights(first.stage), weights(again.stage))
    assert again.summary == first.summary
    assert written == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


# --- stacks -----------------------------------------------------------------------------------------------------------


def test_a_stack_from_zarr(store, tmp_path):
    model = train_stack(store, small(static=("elevation", "climatology")), checkpoint_dir=tmp_path / "run")
    assert model.factors == (2, 2)
    assert (model.units, model.variable) == ("mm day-1", "precipitation")
    assert sorted(model.static) == ["climatology", "elevation"]
    fine = xr.open_zarr(store, group="level_2")
    xr.testing.assert_equal(model.static["elevation"].drop_attrs(), fine["elevation"].compute().drop_attrs())
    xr.testing.assert_equal(model.mask.drop_attrs(), fine["mask"].compute().drop_attrs())
    mean = fine["precipitation"].isel(time=slice(16)).mean("time").compute()
    np.testing.assert_allclose(model.static["climatology"], mean, rtol=1e-5)
    assert model.training["config"][0]["seed"] == 0
    save_model(model, tmp_path / "model")
    coarse = xr.open_zarr(store, group="level_0")["precipitation"]
    loaded = load_model(tmp_path / "model")
    xr.testing.assert_equal(downscale(coarse, model).compute(), downscale(coarse, loaded).compute())
    assert loaded.training["stages"][1]["rmse"] == model.training["stages"][1]["rmse"]


def test_levels_in_memory_and_in_zarr_give_the_same_model(store):
    config = small(threads=1)
    one = train_stack(store, config, progress=False)
    two = train_stack([level.chunk(time=5) for level in ladder(chunks=20)], config, progress=False)
    for a, b in zip(one.stages, two.stages, strict=True):
        assert torch.equal(weights(a), weights(b))


def test_training_takes_the_threads_it_is_given_and_gives_them_back(store, monkeypatch):
    before, seen, forward = torch.get_num_threads(), set(), SRCNN.forward

    def watched(net, x):
        seen.add(torch.get_num_threads())
        return forward(net, x)

    monkeypatch.setattr(SRCNN, "forward", watched)
    torch.set_num_threads(3)
    try:
        train_stack(store, small(threads=2, steps=2), progress=False)
        assert seen == {2}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_configuration_for_each_stage(store):
    model = train_stack(store, [small(), small(residual=True, static=())], progress=False)
    assert [s.config.residual for s in model.stages] == [False, True]
    assert [s.config.static for s in model.stages] == [("elevation",), ()]
    with pytest.raises(ValueError, match="3 configurations for 2 stages"):
        train_stack(store, [small()] * 3)


@pytest.fixture(scope="module")
def cluster():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, resources={"GPU": 1}) as cluster,
        Client(cluster) as client,
    ):
        yield client


def count_layers(levels, stack):
    # A compute on the cluster would have to wait for the stacks not trained yet.
    return float(levels[-1]["precipitation"].sum().compute(scheduler="synchronous")), len(stack.stages)


def test_a_stack_does_not_wait_for_all_the_others(store, cluster, tmp_path):
    levels = open_levels(store)
    folders = [tmp_path / str(seed) for seed in range(8)]
    stacks = train_stacks(
        levels, [small(seed=seed) for seed in range(8)], client=cluster, checkpoint_dirs=folders, then=count_layers
    )
    i, (total, stages) = next(stacks)
    assert stages == 2
    assert sum(bool(checkpoints(folder / "stage_1")) for folder in folders) < 8
    rest = dict(stacks)
    assert sorted([i, *rest]) == list(range(8))
    assert set(rest.values()) == {(total, 2)}
    # The same without a cluster.
    [(_, alone)] = train_stacks(levels, [small()], progress=False, then=count_layers)
    assert alone == (total, 2)


@pytest.mark.slow
def test_a_cluster_gives_the_same_model(store, cluster, tmp_path, caplog):
    config = small()
    here = train_stack(store, config, progress=False)
    with caplog.at_level(logging.INFO, "xdeepsd"):
        there = train_stack(store, config, client=cluster)
    assert {f"Stage {k} is trained." for k in (0, 1)} <= set(caplog.messages)
    for a, b in zip(here.stages, there.stages, strict=True):
        assert torch.equal(weights(a), weights(b))
    assert here.fingerprint() == there.fingerprint()
    in_memory = train_stack([level.compute().chunk(time=5) for level in ladder()], config, client=cluster)
    for a, b in zip(here.stages, in_memory.stages, strict=True):
        assert torch.equal(weights(a), weights(b))
    # Several stacks at once
    configs = [small(seed=1), small(seed=2)]
    stacks = dict(train_stacks(store, configs, client=cluster, checkpoint_dirs=[tmp_path / "1", tmp_path / "2"]))
    assert sorted(stacks) == [0, 1]
    assert stacks[0].fingerprint() != stacks[1].fingerprint()
    assert checkpoints(tmp_path / "2" / "stage_1")


def test_a_disk_that_fills_up(tmp_path):
    """A real small disk; training that filled it resumes when there is space again, with the same bits."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system of a small size can be mounted here")
    try:
        coarse, fine = pair_of_levels(days=12)
        config = small(checkpoint_every=5)
        straight = train_stage(coarse, fine, config)
        folder = tmp_path / "run"
        written = []
        original = loop.write_checkpoint

        def fill(*arguments):
            written.append(original(*arguments))
            with (tmp_path / "fill").open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(256))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "write_checkpoint", fill)
            with pytest.raises(OSError, match=r"could not be written \(No space left.*000000005.pt is intact"):
                train_stage(coarse, fine, config, checkpoint_dir=folder)
        assert checkpoints(folder) == written[:1]
        assert read_checkpoint(folder)["step"] == 5
        (tmp_path / "fill").unlink()
        resumed = train_stage(coarse, fine, config, checkpoint_dir=folder, resume=True)
        assert torch.equal(weights(resumed.stage), weights(straight.stage))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_lost_worker_goes_on_from_its_checkpoint(store, cluster, tmp_path):
    config = small(steps=400, checkpoint_every=20, validate_every=100)
    straight = train_stack(store, config, progress=False)
    killed = []

    def watch():
        while not (checkpoints(tmp_path / "stage_0") and checkpoints(tmp_path / "stage_1")):
            time.sleep(0.02)
        worker = next(w for w, keys in cluster.processing().items() if keys)
        killed.append(worker)
        pid = cluster.run(os.getpid, workers=[worker])[worker]
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    model = train_stack(store, config, client=cluster, checkpoint_dir=tmp_path)
    thread.join()
    assert killed
    assert model.fingerprint() == straight.fingerprint()


def test_a_failing_stage_is_reported_from_the_cluster(store, cluster):
    with pytest.raises(ValueError, match="No patch with enough land"):
        train_stack(store, small(min_land=1.0, patch=39, stride=40), client=cluster)


# --- watching ---------------------------------------------------------------------------------------------------------


def test_tensorboard_and_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    coarse, fine = pair_of_levels(days=12)
    trained = train_stage(coarse, fine, small(tensorboard=True), checkpoint_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "rmse", "rmse_interpolation", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("rmse")] == [10, 20, 30]
    assert events.Scalars("rmse")[-1].value == pytest.approx(trained.history["rmse"].iloc[-1])
    assert events.Tags()["images"] == ["interpolation, model, truth"]
    assert "layers.0.weight" in events.Tags()["histograms"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "metrics.parquet"), trained.history)


def test_progress_bar(capsys):
    coarse, fine = pair_of_levels(days=12)
    train_stage(coarse, fine, small(), progress=True, index=7)
    shown = capsys.readouterr().out
    assert "stage 7" in shown
    assert "interpolation" in shown
    assert "30/30" in shown


# --- configuration ----------------------------------------------------------------------------------------------------


def test_presets():
    paper = TrainConfig.paper()
    assert paper != TrainConfig()
    assert (paper.channels, paper.kernels, paper.patch, paper.stride, paper.batch) == ((64, 32), (9, 1, 5), 38, 20, 200)
    assert not paper.residual
    assert paper.static == ("elevation",)
    default = TrainConfig(seed=5)
    assert default.residual
    assert default.static == ("elevation", "climatology")
    assert (default.learning_rate, default.schedule, default.seed) == (3e-3, "cosine", 5)
    assert default.target_transform == "sqrt"
    assert paper.target_transform is None
    assert dataclasses.replace(default, seed=0) == TrainConfig()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential"])
def test_learning_rate(schedule):
    config = TrainConfig.paper(learning_rate=1e-3, steps=200_000, schedule=schedule)
    rates = [learning_rate(step, config) for step in (0, 100_000, 199_999)]
    expected = {"constant": (1, 1, 1), "cosine": (1, 0.5, 0), "exponential": (1, 0.96, 0.96**2)}[schedule]
    np.testing.assert_allclose(rates, 1e-3 * np.array(expected), atol=1e-9)


def test_the_last_layer_learns_slower(tmp_path):
    coarse, fine = pair_of_levels(days=12)
    train_stage(coarse, fine, small(last_layer_rate=0.1, steps=3), checkpoint_dir=tmp_path)
    groups = read_checkpoint(tmp_path)["optimizer"]["param_groups"]
    assert groups[1]["lr"] == pytest.approx(0.1 * groups[0]["lr"])
    assert [len(g["params"]) for g in groups] == [4, 2]


def test_mixed_precision_comes_close():
    """The same to about three digits in bfloat16 (on a GPU if there is one)."""
    coarse, fine = pair_of_levels(days=12)
    exact, mixed = (train_stage(coarse, fine, small(precision=p)).summary["rmse"] for p in ("float32", "bfloat16"))
    assert mixed == pytest.approx(exact, rel=0.05)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    coarse, fine = pair_of_levels(days=12)
    here, there = (train_stage(coarse, fine, small(device=d)).summary["rmse"] for d in ("cpu", "cuda"))
    assert there == pytest.approx(here, rel=0.02)
    config = small(device="cuda", precision="bfloat16")
    train_stage(coarse, fine, config, checkpoint_dir=tmp_path)
    train_stage(coarse, fine, config, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch": 12, "kernels": (9, 1, 5)}, "patch 12 leaves no output: .* take 6 cells off"),
        ({"batch": 0}, "batch is 0; needed: a whole number of at least 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"min_land": 1.5}, "min_land is 1.5; needed: a share"),
        ({"validation": 1.5}, "validation is 1.5; needed: a fraction"),
        ({"validation": 2004}, r"validation is 2004; needed: a list, such as validation=\(2004,\)"),
        ({"loss": "l1"}, "loss is 'l1'; needed: one of 'mse', 'denseloss', 'mae'"),
        ({"loss": "pinball", "quantile": 1.0}, "quantile is 1.0; needed: a number between 0 and 1, such as 0.9"),
        ({"quantile": math.nan}, "quantile is nan"),
        ({"loss": "tweedie", "tweedie_power": 2.0}, "tweedie_power is 2.0; needed: a number between 1 and 2"),
        ({"tweedie_power": 1}, "tweedie_power is 1; needed"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"target_transform": "log"}, "target_transform is 'log'; needed: one of None, 'sqrt', 'log1p'"),
        ({"static": "elevation"}, "static is 'elevation'; needed: a list"),
        ({"loss": "denseloss", "alpha": -1.0}, "alpha is -1.0; needed: a number of at least 0"),
        ({"loss": "denseloss", "density_transform": "log"}, "transform is 'log'"),
        ({"kernels": (9, 5)}, "Needed: one more kernel"),
    ],
)
def test_configuration_errors(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig.paper(**changes)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    coarse, fine = pair_of_levels(days=12)
    wild = small(learning_rate=1e30, steps=50, checkpoint_every=1, validation=None)
    with pytest.raises(
        FloatingPointError, match=r"stage 0 is (nan|inf) at step \d+ .*from 2001-01.*last good .*step-0"
    ):
        train_stage(coarse, fine, wild, checkpoint_dir=tmp_path)
    state = read_checkpoint(tmp_path)
    assert np.isfinite(state["losses"]).all()
    with pytest.raises(FloatingPointError, match="There is no checkpoint before it"):
        train_stage(coarse, fine, dataclasses.replace(wild, checkpoint_every=1000), checkpoint_dir=tmp_path / "none")


def test_nan_weights_of_a_finite_loss_are_no_checkpoint(tmp_path, monkeypatch):
    coarse, fine = pair_of_levels(days=12)
    update = loop._update

    def overflow(run, state, *arguments):
        loss = update(run, state, *arguments)
        if state.step == 9:
            with torch.no_grad():
                state.net.layers[1].weight[0, 0] = torch.nan
        return loss

    monkeypatch.setattr(loop, "_update", overflow)
    with pytest.raises(
        FloatingPointError, match=r"weights of stage 0 are no longer finite at step 10 .*step-000000005"
    ):
        train_stage(coarse, fine, small(checkpoint_every=5), checkpoint_dir=tmp_path)
    assert read_checkpoint(tmp_path)["step"] == 5


def test_resume_with_another_configuration(tmp_path):
    coarse, fine = pair_of_levels(days=12)
    train_stage(coarse, fine, small(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another configuration: batch was 8, is 4; seed was 0, is 9\. Type the same"):
        train_stage(coarse, fine, small(seed=9, batch=4), checkpoint_dir=tmp_path, resume=True)
    moved = [ds.assign_coords(time=ds["time"] + np.timedelta64(1, "D")) for ds in (coarse, fine)]
    with pytest.raises(ValueError, match="is of a stage trained on other levels"):
        train_stage(*moved, small(), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(FileExistsError, match="resume=True"):
        train_stage(coarse, fine, small(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="needs a folder of checkpoints"):
        train_stage(coarse, fine, small(), resume=True)
    # Settings that do not affect the result may change.
    train_stage(coarse, fine, small(workers=1, checkpoint_every=3), checkpoint_dir=tmp_path, resume=True)


def test_levels_that_do_not_fit(store):
    levels = ladder()
    with pytest.raises(ValueError, match=r"1 level\(s\) in the sequence. Needed: two or more"):
        train_stack(levels[:1])
    with pytest.raises(ValueError, match="does not divide"):
        train_stack([levels[0].isel(lat=slice(7)), *levels[1:]], small(), progress=False)
    with pytest.raises(ValueError, match=r"no 'slope' .* as a static field"):
        train_stack(levels, small(static=("slope",)))
    with pytest.raises(ValueError, match="different days"):
        train_stack([levels[0].isel(time=slice(19)), *levels[1:]], small(), progress=False)
    with pytest.raises(ValueError, match=r"train and validation days have .* days in common"):
        train_stack(levels, small(train=(2001,), validation=("2001-01-03",)))
    levels[-1]["precipitation"].attrs.clear()
    with pytest.raises(ValueError, match="no units"):
        train_stack(levels, small())


def test_climatology_is_of_the_training_days_only(store):
    config = small(static=("climatology",), validation=("2001-01-01/2001-01-10",))
    mean = Ladder.of(open_levels(store), [config]).fields(config)["climatology"]
    fine = xr.open_zarr(store, group="level_2")["precipitation"]
    np.testing.assert_allclose(mean, fine.isel(time=slice(10, None)).mean("time"), rtol=1e-5)


# --- other data on the same days --------------------------------------------------------------------------------------


def interrupted(coarse, fine, config, folder, monkeypatch, at=15):
    """A training run that is killed at step ``at``."""
    update = loop._update

    def stop(run, state, *arguments):
        if state.step == at:
            raise KeyboardInterrupt
        return update(run, state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", stop)
        with pytest.raises(KeyboardInterrupt):
            train_stage(coarse, fine, config, checkpoint_dir=folder)


def other(ds, days, by=50.0):
    rain = ds["precipitation"].copy(deep=True).load()
    rain[days] *= by
    return ds.assign(precipitation=rain if ds["precipitation"].chunks is None else rain.chunk(time=3))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("validation", [None, 0.2])
def test_resume_with_other_precipitation_on_the_same_days(tmp_path, monkeypatch, finished, validation):
    coarse, fine = pair_of_levels(days=15, chunks=3)
    config = small(validation=validation)
    if finished:
        train_stage(coarse, fine, config, checkpoint_dir=tmp_path)
    else:
        interrupted(coarse, fine, config, tmp_path, monkeypatch)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for levels in ([other(coarse, slice(None)), other(fine, slice(None))], [coarse, other(fine, slice(None), 1.001)],
                   [other(coarse, slice(None)), fine]):  # fmt: skip
        with pytest.raises(ValueError, match=r"precipitation of 1 days has changed .*: 2001-01-01\. .*new folder"):
            train_stage(*levels, config, checkpoint_dir=tmp_path, resume=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("day", [4, 11, 13])
def test_resume_with_a_single_renewed_day(tmp_path, monkeypatch, day):
    """It is noticed when read, before anything is learned from it; so the checkpoints still work with the old data."""
    coarse, fine = pair_of_levels(days=15, chunks=3)
    config = small(validation=("2001-01-13/2001-01-15",), steps=80, buffer=0.03, checkpoint_every=5)
    straight = train_stage(coarse, fine, config)
    interrupted(coarse, fine, config, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=rf"precipitation of 1 days has changed .*: 2001-01-{day + 1:02d}\."):
        train_stage(coarse, other(fine, [day], 1.001), config, checkpoint_dir=tmp_path, resume=True)
    resumed = train_stage(coarse, fine, config, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(weights(resumed.stage), weights(straight.stage))


def test_data_that_change_while_they_are_trained_on(tmp_path, monkeypatch):
    """Nothing may be learned from a ladder whose days are rewritten during training."""
    coarse, fine = pair_of_levels(days=15)
    values = fine["precipitation"].values.copy()

    def read(block_info):
        (first, last), *_ = block_info[None]["array-location"]
        return values[first:last]

    lazy = dask.array.map_blocks(read, chunks=((3,) * 5, *((n,) for n in values.shape[1:])), dtype=np.float32)
    changing = fine.assign(precipitation=fine["precipitation"].copy(data=lazy))
    update = loop._update

    def renew(run, state, *arguments):
        if state.step == 12:
            values[7] += 1
        return update(run, state, *arguments)

    monkeypatch.setattr(loop, "_update", renew)
    with pytest.raises(ValueError, match=r"of 1 days has changed since this training began: 2001-01-08\."):
        train_stage(coarse, changing, small(steps=500, buffer=0.03), checkpoint_dir=tmp_path)


def test_a_checkpoint_of_before_digests_goes_on(tmp_path, monkeypatch):
    coarse, fine = pair_of_levels(days=15, chunks=3)
    interrupted(coarse, fine, small(), tmp_path, monkeypatch)
    [path] = checkpoints(tmp_path)
    state = torch.load(path)
    del state["digests"]
    torch.save(state, path)
    straight = train_stage(coarse, fine, small())
    resumed = train_stage(coarse, fine, small(), checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(weights(resumed.stage), weights(straight.stage))


# --- days without observations ----------------------------------------------------------------------------------------


def without(levels, days):
    return [ds.assign(precipitation=ds["precipitation"].where(~ds["time"].isin(ds["time"][days]))) for ds in levels]


@pytest.mark.parametrize("chunks", [None, 5])
def test_validation_days_without_an_observation(tmp_path, caplog, chunks):
    levels = pair_of_levels(days=15, chunks=chunks)
    config = small(validation=("2001-01-05/2001-01-06", "2001-01-12"))
    with pytest.raises(
        ValueError, match=r"None of the 3 validation days .*: 2001-01-05\.\.2001-01-06, 2001-01-12\. .*validation=\["
    ):
        train_stage(*without(levels, [4, 5, 11]), config, checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    # Days observed only outside the mask, or not on the coarse grid
    coarse, fine = levels
    only_outside = fine["precipitation"].where(~fine["mask"] | ~fine["time"].isin(fine["time"][[4, 5, 11]]))
    with pytest.raises(ValueError, match="None of the 3 validation days"):
        train_stage(coarse, fine.assign(precipitation=only_outside), config)
    with pytest.raises(ValueError, match="None of the 3 validation days"):
        train_stage(without([coarse], [4, 5, 11])[0], fine, config)
    # Some days do not count, and the log says so.
    part = train_stage(*without(levels, [4, 11]), config)
    assert "2 of 3 validation days have no observed cell inside the mask and do not count: 2001-01-05, 2001-01-12." in (
        caplog.text
    )
    assert part.summary["rmse_interpolation"] > 0
    assert part.history["rmse"].min() > 0
    one = train_stage(*without(levels, [4, 11]), small(validation=("2001-01-06",)))
    assert one.summary["rmse_interpolation"] == pytest.approx(part.summary["rmse_interpolation"])


def test_training_days_without_an_observation(caplog):
    levels = pair_of_levels(days=15, chunks=5)
    train_stage(*without(levels, [2, 3, 7]), small())
    said = "3 of 12 training days have no observed cell inside the mask, so nothing is learned from them: 2001-01-03"
    assert said in caplog.text
    with pytest.raises(ValueError, match="The 12 training days have no observed cell inside the mask"):
        train_stage(*without(levels, range(12)), small())
    coarse, fine = levels
    with pytest.raises(ValueError, match="No patch with enough land"):
        train_stage(coarse, fine.assign(mask=fine["mask"] & False), small())


# --- the climatology --------------------------------------------------------------------------------------------------

SPLIT = {
    "static": ("elevation", "climatology"),
    "validation": ("2001-01-15/2001-01-17",),
    "test": ("2001-01-18/2001-01-20",),
}


def with_years(kind, first, last, folder):
    fine, elevation = climate()
    if kind == "memory":
        return make_levels(fine, elevation, (2, 2), climatology=slice(first, last))
    build_levels(fine, elevation, (2, 2), folder / "levels.zarr", climatology=slice(first, last))
    return folder / "levels.zarr"


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_climatology_of_validation_or_test_days_is_refused(kind, tmp_path, monkeypatch):
    levels = with_years(kind, "2001", "2001-01-16", tmp_path)
    config = small(**SPLIT)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", lambda *a: pytest.fail("trained"))
        with pytest.raises(
            ValueError, match=r"mean of 2001.*, which includes 2 validation days \(2001-01-15\.\.2001-01-16\)\. Needed"
        ):
            train_stack(levels, config, progress=False)
        ladder_ = levels if kind == "memory" else open_levels(levels)
        for pair in (ladder_[:2], ladder_[1:]):
            with pytest.raises(ValueError, match="which includes 2 validation days"):
                train_stage(*pair, config)
        both = dataclasses.replace(
            config, train=("2001-01-01",), validation=("2001-01-02",), test=("2001-01-03/2001-01-04",)
        )
        with pytest.raises(ValueError, match=r"1 validation days \(2001-01-02\) and 2 test days \(2001-01-03\.\.2001"):
            train_stack(levels, both, progress=False)
    train_stack(levels, small(validation=config.validation, test=config.test), progress=False)  # it uses none
    # Following the advice in the error works.
    model = train_stack([level.drop_vars("climatology") for level in ladder_], config, progress=False)
    assert model.training["climatology"] == "mean of the training days (14 from 2001-01-01 to 2001-01-14)"
    other_days = dataclasses.replace(config, validation=("2001-01-17",))
    assert train_stack(levels, other_days, progress=False).training["climatology"].startswith("mean of 2001")


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_climatology_of_training_days_is_recorded(kind, tmp_path, caplog):
    model = train_stack(with_years(kind, "2001-01-01", "2001-01-14", tmp_path), small(**SPLIT), progress=False)
    assert model.training["climatology"] == "mean of 2001-01-01/2001-01-14"
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").training["climatology"] == model.training["climatology"]
    assert "its years are not known" not in caplog.text


def test_a_given_climatology_is_said_once(caplog):
    fine, elevation = climate()
    normal = fine.mean("time").assign_attrs(units="mm day-1")
    for given in (normal, normal.assign_attrs(years="1991-2020")):
        caplog.clear()
        model = train_stack(make_levels(fine, elevation, (2, 2), climatology=given), small(**SPLIT), progress=False)
        assert model.training["climatology"] == "a given map, its years are not known"
        assert caplog.text.count("a map of unknown years") == 1


def test_stages_of_other_training_days_want_a_climatology(store):
    one, other_one = small(**SPLIT), small(**SPLIT | {"validation": ("2001-01-02",)})
    with pytest.raises(
        ValueError, match=r"The stages have 2 different sets of training days, .*climatology=slice\('YEAR', 'YEAR'\)"
    ):
        train_stack(store, [one, other_one], progress=False)
    fine, elevation = climate()
    levels = make_levels(fine, elevation, (2, 2), climatology=slice("2001-01-03", "2001-01-10"))
    assert (
        train_stack(levels, [one, other_one], progress=False).training["climatology"].startswith("mean of 2001-01-03")
    )


@pytest.mark.parametrize("level", ["coarse", "fine"])
@pytest.mark.parametrize("day", [0, 8])
def test_numbers_that_are_no_rain_are_not_learned(level, day):
    """On training or validation days, they are refused, or count as missing if the attributes name them."""
    low, high = pair_of_levels(days=10)
    given, clean = {"coarse": low, "fine": high}, {"coarse": low.copy(deep=True), "fine": high.copy(deep=True)}
    config = small(steps=3, validation=0.3)
    clean[level]["precipitation"][day, 10:12, 10:12] = np.nan
    for number, message in ((-9999.0, "has values down to -9999"), (np.inf, "holds infinite values")):
        bad = given | {level: given[level].copy(deep=True)}
        bad[level]["precipitation"][day, 10:12, 10:12] = number
        with pytest.raises(ValueError, match=message):
            train_stage(**bad, config=config)
    bad[level]["precipitation"][day, 10:12, 10:12] = -9999.0
    bad[level]["precipitation"].attrs["_FillValue"] = np.float32(-9999)
    one, other = (train_stage(**levels, config=config) for levels in (bad, clean))
    assert one.summary["rmse"] == other.summary["rmse"]
