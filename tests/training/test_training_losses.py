"""Training with each loss: it learns, the stage chosen is the best one by the right score, resume, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from builders import pair_of_levels
from scipy import stats

from xdeepsd import (
    TrainConfig,
    distribution,
    downscale,
    expectation,
    load_model,
    save_model,
    train_stack,
    train_stage,
)
from xdeepsd.levels.patches import Batch
from xdeepsd.losses.bernoulli_gamma import bernoulli_gamma
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stage import Stage
from xdeepsd.training import loop
from xdeepsd.training import stage as stage_module
from xdeepsd.training.checkpoints import checkpoints
from xdeepsd.training.config import LATER
from xdeepsd.training.losses import loss_function
from xdeepsd.training.stage import stage_pair
from xdeepsd.training.validation import Validation

BESIDE = {
    "mae": {}, "huber": {}, "pinball": {"quantile": 0.6}, "tweedie": {"tweedie_power": 1.4}, "bernoulli_gamma": {},
}  # fmt: skip


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
    maps = {
        "precipitation": (("time", "lat", "lon"), rain, {"units": "mm day-1"}),
        "elevation": (("lat", "lon"), (1000 * pattern).astype(np.float32)),
    }
    return coarse.assign(precipitation=low.assign_attrs(units="mm day-1")), fine.assign(maps)


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


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "pinball", "tweedie"])
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
    own = stage.predicted_for_loss(output, interpolated)
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
    losses = np.array([value.item() for value in found])
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


# --- the Bernoulli-gamma head -----------------------------------------------------------------------------------------


def test_its_likelihood_on_whole_maps():
    """Against scipy, from the parameters of the stage, means kept."""
    coarse, fine = pair_of_levels(days=12)
    config = small(loss="bernoulli_gamma", steps=5)
    trained = train_stage(coarse, fine, config)
    pair, split = stage_pair(coarse, fine, config)
    validation = Validation(pair, split.validation, 60, torch.device("cpu"))
    found = validation.loss(trained.stage, loss_function(config, None, torch.device("cpu")), in_mm=True)
    low, truth = (torch.from_numpy(part) for part in pair.observed(split.validation))
    with torch.inference_mode():
        given = trained.stage.distribution(low, torch.from_numpy(pair.static), torch.from_numpy(pair.weights))
    valid = np.isfinite(truth.numpy())
    chance, shape, scale = (part.double().numpy()[valid] for part in given.unbind(1))
    y = truth.double().numpy()[valid]
    wet, scale = y >= 0.1, np.maximum(shape * scale, 0.1) / shape
    cost = -np.log1p(-chance)
    cost[wet] = -np.log(chance[wet]) - stats.gamma.logpdf(y[wet], shape[wet], scale=scale[wet])
    assert found == pytest.approx(cost.mean(), rel=1e-4)
    assert found == pytest.approx(trained.history["validation_loss"].iloc[-1], rel=1e-5)


@pytest.mark.parametrize("conserve", [None, "multiplicative", "additive"])
def test_the_likelihood_is_that_of_the_output_and_of_what_is_kept(conserve):
    net = SRCNN(SRCNNConfig((2,), (3, 3), head="bernoulli_gamma", conserve=conserve))
    stage = Stage(net, Normalizer(1.0, 2.0), {"elevation": Normalizer()}, Normalizer(0.0, 2.0), "sqrt")
    rng = torch.Generator().manual_seed(0)
    inputs, output = (torch.rand(3, count, side, side, generator=rng) for count, side in ((2, 8), (3, 4)))
    target, mask = torch.rand(3, 4, 4, generator=rng), torch.rand(3, 4, 4, generator=rng) > 0.2
    low = torch.rand(3, 2, 2, generator=rng) if conserve else None
    batch = Batch(inputs, target, mask, 3 * target, low, mask.float() if conserve else None)
    config = small(loss="bernoulli_gamma", conserve=conserve)
    run = loop.Run(0, config, stage, None, loss_function(config, None, torch.device("cpu")), None, None, {})
    inner = stage.precipitation.invert(inputs[:, 0, 2:-2, 2:-2])
    parameters = stage.predicted(output, inner)
    expected = [bernoulli_gamma(parameters, 3 * target, mask)]
    if conserve:
        kept = stage.conserved(output, inner, low, mask.float())
        assert not torch.allclose(kept[:, 2], parameters[:, 2])
        assert torch.equal(kept[:, :2], parameters[:, :2])
        expected.append(bernoulli_gamma(kept, 3 * target, mask))
    assert float(loop._loss(run, output, batch)) == pytest.approx(float(sum(expected)) / len(expected), rel=1e-6)


def test_it_finds_the_chance_and_the_gamma_distribution():
    """Rain that depends on nothing: the parameters of every cell approach those that it was drawn from."""
    coarse, fine = pair_of_levels(days=40, ocean=False)
    rng = np.random.default_rng(0)
    size = fine["precipitation"].shape
    rain = np.where(rng.random(size) < 0.4, 0.1 + rng.gamma(2.0, 4.0, size), 0.0).astype(np.float32)
    fine = fine.assign(precipitation=(fine["precipitation"].dims, rain))
    coarse = coarse.assign(precipitation=coarse["precipitation"] * 0 + np.float32(3.0))
    config = small(
        loss="bernoulli_gamma", conserve=None, residual=False, channels=(), kernels=(1,), static=(), steps=600,
        learning_rate=0.03, validate_every=200, batch=32,
    )  # fmt: skip
    stage = train_stage(coarse, fine, config).stage
    with torch.inference_mode():
        chance, shape, scale = stage.distribution(torch.full((1, 2, 2), 3.0), torch.zeros(0, 4, 4))[0, :, 0, 0].tolist()
    a, _, b = stats.gamma.fit(rain[rain > 0], floc=0)
    assert chance == pytest.approx(0.4, abs=0.02)
    assert shape == pytest.approx(a, rel=0.08)
    assert shape * scale == pytest.approx(a * b, rel=0.03)


def test_a_stack_of_it(tmp_path):
    """Trained, saved, loaded: its expectation has the error that training reported."""
    coarse, fine = rain_on_a_pattern()
    config = small(loss="bernoulli_gamma")
    model = train_stack([coarse, fine], config)
    save_model(model, tmp_path / "model")
    model = load_model(tmp_path / "model")
    days = config.split(fine["time"]).validation
    held_out, truth = (level["precipitation"].isel(time=days) for level in (coarse, fine))
    errors = expectation(distribution(held_out, model)).values - truth.values
    assert float(np.sqrt(np.nanmean(errors**2))) == pytest.approx(model.training["stages"][0]["rmse"], rel=1e-5)
    np.testing.assert_allclose(downscale(held_out, model), errors + truth.values, rtol=1e-4, atol=1e-5)


def test_a_head_and_a_loss_that_do_not_fit():
    for changes in ({"head": "bernoulli_gamma"}, {"head": "value", "loss": "bernoulli_gamma"}):
        with pytest.raises(ValueError, match="do not fit each other"):
            TrainConfig(**changes)
    with pytest.raises(ValueError, match="conserve='softmax' and head='bernoulli_gamma'"):
        TrainConfig(loss="bernoulli_gamma", conserve="softmax", residual=False)
    with pytest.raises(ValueError, match="head is 'gamma'; needed: one of"):
        TrainConfig(head="gamma")
    assert TrainConfig(loss="bernoulli_gamma").network(2).head == "bernoulli_gamma"
    assert TrainConfig(loss="mae", head="value").network(2) == TrainConfig().network(2)
