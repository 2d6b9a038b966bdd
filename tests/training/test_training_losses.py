"""Training with each loss: it learns, the stage chosen is the best one by the right score, resume, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from builders import pair_of_levels

from xdeepsd import TrainConfig, train_stage
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stage import Stage
from xdeepsd.training import loop
from xdeepsd.training import stage as stage_module
from xdeepsd.training.checkpoints import checkpoints
from xdeepsd.training.config import LATER
from xdeepsd.training.stage import loss_function, stage_pair
from xdeepsd.training.validation import Validation

BESIDE = {"mae": {}, "huber": {}, "pinball": {"quantile": 0.6}, "tweedie": {"tweedie_power": 1.4}}


def small(**changes):
    """A configuration that trains in about a second."""
    given = {
        "channels": (8, 4), "kernels": (5, 1, 3), "static": ("elevation",), "patch": 16, "stride": 8, "batch": 8,
        "steps": 30, "learning_rate": 1e-2, "validate_every": 10, "checkpoint_every": 10, "threads": 1,
        "validation": 0.2, **changes,
    }  # fmt: skip
    return TrainConfig(**given)


def rain_on_a_pattern(days=12):
    """Levels whose fine rain is the coarse one times a pattern that elevation shows; every other day is dry."""
    coarse, fine = pair_of_levels(days=days, ocean=False)
    pattern = np.random.default_rng(0).uniform(0.2, 1.8, (12, 2, 14, 2))
    pattern = (pattern / pattern.mean((1, 3), keepdims=True)).reshape(24, 28)
    low = (coarse["precipitation"] * (np.arange(days) % 2)[:, None, None]).astype(np.float32)
    rain = (low.values.repeat(2, 1).repeat(2, 2) * pattern).astype(np.float32)
    maps = {"elevation": (("lat", "lon"), (1000 * pattern).astype(np.float32))}
    return coarse.assign(precipitation=low), fine.assign(precipitation=(("time", "lat", "lon"), rain), **maps)


@pytest.mark.parametrize("conserve", [None, "multiplicative"])
@pytest.mark.parametrize("transform", [None, "sqrt", "log1p"])
@pytest.mark.parametrize("loss", BESIDE)
def test_it_learns(loss, transform, conserve):
    changes = BESIDE[loss] | {"target_transform": transform, "conserve": conserve}
    trained = train_stage(*rain_on_a_pattern(), small(loss=loss, steps=90, schedule="constant", **changes))
    history = trained.history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert trained.summary["rmse"] < trained.summary["rmse_interpolation"]
    score = "rmse" if loss == "tweedie" else "validation_loss"
    assert ("validation_loss" in history) == (loss != "tweedie")
    assert list(history["step"])[history[score].argmin()] == trained.summary["best_step"]


@pytest.mark.parametrize("loss", [*BESIDE, "mse"])
def test_the_loss_on_whole_maps(loss):
    """Against numpy: normalised, transformed values, or for Tweedie mm."""
    coarse, fine = pair_of_levels(days=12)
    config = small(loss=loss, steps=1, conserve=None, residual=False, **BESIDE.get(loss, {}))
    trained = train_stage(coarse, fine, config)
    pair, split = stage_pair(coarse, fine, config)
    validation = Validation(pair, split.validation, 60, torch.device("cpu"))
    found = validation.loss(trained.stage, loss_function(config, None, torch.device("cpu")), loss == "tweedie")
    low, truth = (torch.from_numpy(part) for part in pair.observed(split.validation))
    with torch.inference_mode():
        predicted = trained.stage(low, torch.from_numpy(pair.static)).double().numpy()
    valid = np.isfinite(truth.numpy())
    p, y = predicted[valid], truth.double().numpy()[valid]
    if loss == "tweedie":
        p, y = p + 0.1, y + 0.1
        costs = 2 * (y**0.6 / (-0.4 * 0.6) + y * p**-0.4 / 0.4 + p**0.6 / 0.6)
    else:
        error = (np.sqrt(p) - np.sqrt(y)) / trained.stage.target.std
        size = np.abs(error)
        costs = {
            "mse": error**2, "mae": size, "huber": np.where(size < 1, size**2 / 2, size - 0.5),
            "pinball": np.where(error > 0, 0.4 * error, -0.6 * error),
        }[loss]  # fmt: skip
    assert found == pytest.approx(costs.mean(), rel=1e-4)


@pytest.mark.parametrize("loss", BESIDE)
def test_resumed_is_uninterrupted_and_another_loss_is_refused(loss, tmp_path, monkeypatch):
    coarse, fine = pair_of_levels(days=12)
    config = small(loss=loss, **BESIDE[loss])
    expected = train_stage(coarse, fine, config, checkpoint_dir=tmp_path / "whole")
    update, calls = loop._update, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > 17:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(loop, "_update", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_stage(coarse, fine, config, checkpoint_dir=tmp_path / "stopped")
    monkeypatch.undo()
    for changes, match in [
        ({"loss": "mse"}, f"loss was '{loss}', is 'mse'"),
        ({"quantile": 0.9}, "quantile was 0.[56], is 0.9"),
        ({"tweedie_power": 1.2}, "tweedie_power was 1.[45], is 1.2"),
    ]:
        with pytest.raises(ValueError, match=match):
            train_stage(
                coarse, fine, dataclasses.replace(config, **changes), checkpoint_dir=tmp_path / "stopped", resume=True
            )
    resumed = train_stage(coarse, fine, config, checkpoint_dir=tmp_path / "stopped", resume=True)
    for one, other in zip(expected.stage.net.parameters(), resumed.stage.net.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.summary == expected.summary
    json.dumps(resumed.summary)


def test_checkpoints_of_older_versions_are_resumed(tmp_path, monkeypatch):
    """They do not know the parameters of the losses that came later."""
    coarse, fine = pair_of_levels(days=12)
    config = small()
    train_stage(coarse, fine, config, checkpoint_dir=tmp_path)
    assert checkpoints(tmp_path)
    read_checkpoint = stage_module.read_checkpoint

    def older(folder):
        saved = read_checkpoint(folder)
        for name in LATER:
            del saved["config"][name]
        return saved

    monkeypatch.setattr(stage_module, "read_checkpoint", older)
    train_stage(coarse, fine, config, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"quantile was 0.5, is 0.9"):
        train_stage(coarse, fine, small(quantile=0.9), checkpoint_dir=tmp_path, resume=True)


def test_a_loss_in_mm_is_of_the_output_below_zero_and_of_what_is_kept():
    """In mm, the network's own output goes on below 0, so that it has a gradient there; what is kept never is."""
    net = SRCNN(SRCNNConfig((2,), (3, 3), residual=True, conserve="multiplicative"))
    stage = Stage(net, Normalizer(1.0, 2.0), {"elevation": Normalizer()}, Normalizer(0.0, 2.0), "sqrt")
    output = torch.tensor([[[-2.0, 1.0], [0.5, -1.0]]], requires_grad=True)
    interpolated = torch.ones(1, 2, 2)
    own = stage.unclipped(output, interpolated)
    torch.testing.assert_close(own, torch.tensor([[[-3.0, 9.0], [4.0, -1.0]]]))
    (gradient,) = torch.autograd.grad(own.sum(), output)
    torch.testing.assert_close(gradient, torch.tensor([[[2.0, 12.0], [8.0, 2.0]]]))
    assert (stage.precipitation_of(output, interpolated) == own.clamp_min(0)).all()


def test_annealed_denseloss_is_plain_first_and_weighted_last(tmp_path, monkeypatch):
    """Each step minimises share * DenseLoss + (1 - share) * MSE; the score is DenseLoss all along."""
    coarse, fine = pair_of_levels(days=12, chunks=4)
    config = small(
        loss="denseloss", alpha=0.9, anneal=0.5, density_transform="log1p", wet_threshold=0.1, weight_cap=2.5
    )
    found = []
    plain = loop._loss

    def listen(run, output, batch):
        found.append(plain(run, output, batch))
        return found[-1]

    monkeypatch.setattr(loop, "_loss", listen)
    annealed = train_stage(coarse, fine, config)
    assert len(found) == 15 * 2 + 15  # steps 0 to 14: both losses
    losses = np.array([float(value) for value in found])
    share = np.arange(15) / 15
    expected = np.append(share * losses[0:30:2] + (1 - share) * losses[1:30:2], losses[30:])
    monkeypatch.undo()
    np.testing.assert_allclose(annealed.history["loss"], expected.reshape(3, 10).mean(1), rtol=1e-5)
    assert losses[0] != losses[1]
    assert annealed.summary["density"]["dry_weight"] <= 2.5
    at_once = train_stage(coarse, fine, dataclasses.replace(config, anneal=0.0))
    assert not torch.equal(*(next(t.stage.net.parameters()) for t in (annealed, at_once)))


def test_first_step_of_an_annealed_run_is_that_of_mse():
    coarse, fine = pair_of_levels(days=12, chunks=4)
    runs = [
        train_stage(coarse, fine, small(steps=1, validation=None, **changes))
        for changes in ({}, {"loss": "denseloss", "anneal": 1.0}, {"loss": "denseloss"})
    ]
    first, same, other = (torch.cat([p.detach().ravel() for p in run.stage.net.parameters()]) for run in runs)
    torch.testing.assert_close(first, same)
    assert not torch.allclose(first, other)
