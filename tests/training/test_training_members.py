"""Training on the CRPS: the spread is learned, the bits are the same each time, and a stopped run goes on with them."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from xdeepsd import TrainConfig, downscale, load_model, save_model, train_stack, train_stage
from xdeepsd.losses.crps import masked_crps
from xdeepsd.models.stage import copied
from xdeepsd.training import loop
from xdeepsd.training.stage import stage_pair
from xdeepsd.training.validation import Validation

QUICK = TrainConfig(
    channels=(8, 4), kernels=(3, 1, 3), static=(), loss="crps", noise=2, batch=8, steps=40, patch=16, stride=8,
    validate_every=20, checkpoint_every=10, threads=1, learning_rate=1e-2,
)  # fmt: skip


def levels(days=40, spread=0.5, seed=0, shape=(16, 20)):
    """Rain whose fine pattern inside a coarse cell is random: nothing in the coarse field tells it."""
    rng = np.random.default_rng(seed)
    coarse = rng.gamma(2.0, 3.0, (days, *shape))
    pattern = np.exp(spread * rng.normal(size=(days, shape[0], 2, shape[1], 2)))
    pattern /= pattern.mean((2, 4), keepdims=True)
    fine = (coarse[:, :, None, :, None] * pattern).reshape(days, 2 * shape[0], 2 * shape[1])

    def level(values, step):
        lat, lon = (step / 2 + step * np.arange(n) for n in values.shape[1:])
        coords = {"time": xr.date_range("2001-01-01", periods=days), "lat": lat, "lon": lon}
        fields = {"precipitation": (("time", "lat", "lon"), values.astype("f4"), {"units": "mm day-1"})}
        return xr.Dataset(fields | {"mask": (("lat", "lon"), np.ones(values.shape[1:], bool))}, coords)

    return level(coarse, 0.5), level(fine, 0.25)


def weights(stage):
    return torch.cat([p.detach().ravel() for p in stage.net.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("conserve", [None, "multiplicative", "additive"])
def test_the_spread_is_that_of_what_cannot_be_known(conserve, tmp_path):
    coarse, fine = levels(days=80)
    config = dataclasses.replace(
        QUICK, conserve=conserve, steps=600, test=0.25, channels=(16, 16), kernels=(3, 1, 3), validate_every=200
    )
    model = train_stack([coarse, fine], config, progress=False)
    save_model(model, tmp_path / "model")
    test = config.split(fine["time"]).test
    truth = fine["precipitation"].isel(time=test)
    members = downscale(coarse.isel(time=test), load_model(tmp_path / "model"), members=10)["precipitation"]
    error = float(((members.mean("member") - truth) ** 2).mean() ** 0.5)
    spread = float((members.var("member", ddof=1).mean() * 1.1) ** 0.5)
    assert 0.8 < spread / error < 1.2
    if conserve:
        means = members.values.reshape(10, len(test), 16, 2, 20, 2).mean((3, 5))
        np.testing.assert_allclose(means, np.broadcast_to(coarse["precipitation"][test], means.shape), rtol=1e-3)


def test_the_noise_is_scaled_until_the_members_differ_as_their_mean_errs(caplog):
    coarse, fine = levels(days=60)
    config = dataclasses.replace(QUICK, steps=60, conserve=None, validation=0.3)
    with caplog.at_level("INFO", logger="xdeepsd"):
        trained = train_stage(coarse, fine, config)
    summary = trained.summary
    assert "The noise is scaled by" in caplog.text
    pair, split = stage_pair(coarse, fine, config)
    validation = Validation(pair, split.validation, config.validation_days, torch.device("cpu"))
    assert validation.spread_skill(trained.stage) == pytest.approx(summary["spread_skill"])
    assert validation.rmse(trained.stage) == pytest.approx(summary["rmse"])
    crps = validation.loss(trained.stage, lambda members, target, mask, values: masked_crps(members, target, mask))
    assert crps == pytest.approx(summary["crps"])
    # As it was before: the scale is in the weights, and is that of the noise
    before = copied(trained.stage)
    with torch.no_grad():
        before.net.layers[0].weight[:, -2:] /= summary["noise_scale"]
    ratio = validation.spread_skill(before)
    assert abs(np.log(summary["spread_skill"])) < abs(np.log(ratio))
    best = trained.history["validation_loss"].min()
    assert crps <= best * 1.02 * (1 + 1e-6)
    noise = torch.randn(2, 2, 32 + 4, 40 + 4)
    rain, nothing = torch.rand(2, 16, 20), torch.zeros(0, 32, 40)
    both = trained.stage(rain, nothing, None, noise), before(rain, nothing, None, noise * summary["noise_scale"])
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def test_same_seed_same_bits_and_another_seed_others():
    pair = levels()
    one, two = (train_stage(*pair, dataclasses.replace(QUICK, workers=n)) for n in (1, 3))
    assert torch.equal(weights(one.stage), weights(two.stage))
    assert one.history["validation_loss"].tolist() == two.history["validation_loss"].tolist()
    other = train_stage(*pair, dataclasses.replace(QUICK, seed=1))
    assert not torch.equal(weights(one.stage), weights(other.stage))


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    pair = levels()
    whole = train_stage(*pair, QUICK)
    save = loop.write_checkpoint

    def stop(folder, step, state):
        save(folder, step, state)
        if step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage(*pair, QUICK, checkpoint_dir=tmp_path)
    monkeypatch.setattr(loop, "write_checkpoint", save)
    resumed = train_stage(*pair, QUICK, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(weights(resumed.stage), weights(whole.stage))
    with pytest.raises(ValueError, match=r"another configuration: noise was 2, is 3"):
        train_stage(*pair, dataclasses.replace(QUICK, noise=3), checkpoint_dir=tmp_path, resume=True)


def test_the_loss_is_the_crps_of_the_members(monkeypatch):
    """Of two members with other noise, of the raw output and of the output with its means kept, averaged."""
    seen = []
    actual = loop._loss

    def noted(run, output, batch):
        value = actual(run, output, batch)
        seen.append((run, output.detach(), batch, value.item()))
        return value

    monkeypatch.setattr(loop, "_loss", noted)
    train_stage(*levels(), dataclasses.replace(QUICK, steps=1, members=3))
    run, output, batch, value = seen[0]
    assert output.shape == (3, *batch.target.shape)
    assert not torch.equal(output[0], output[1])

    def crps(x):
        x, y = x.double().numpy(), batch.target.double().numpy()
        pairs = sum(np.abs(x[i] - x[j]) for i in range(3) for j in range(3)) / (2 * 3 * 2)
        return (np.abs(x - y).mean(0) - pairs)[batch.mask.numpy()].mean()

    inner = run.stage.precipitation.invert(batch.inputs[:, 0, 2:-2, 2:-2])
    kept = [run.stage.normalized_target(run.stage.conserved(x, inner, batch.coarse, batch.weights), inner)
            for x in output]  # fmt: skip
    assert value == pytest.approx((crps(output) + crps(torch.stack(kept))) / 2, rel=1e-5)


def test_a_checkpoint_from_before_there_was_noise_goes_on(tmp_path, monkeypatch):
    pair = levels()
    config = dataclasses.replace(QUICK, loss="mse", noise=0)
    whole = train_stage(*pair, config)
    save = loop.write_checkpoint

    def old(folder, step, state):
        fields = {k: v for k, v in state["config"].items() if k not in ("noise", "members")}
        save(folder, step, state | {"config": fields})
        if step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", old)
    with pytest.raises(KeyboardInterrupt):
        train_stage(*pair, config, checkpoint_dir=tmp_path)
    monkeypatch.setattr(loop, "write_checkpoint", save)
    resumed = train_stage(*pair, config, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(weights(resumed.stage), weights(whole.stage))


def test_loss_and_noise_belong_together():
    for changes in ({"loss": "crps"}, {"noise": 2}, {"loss": "denseloss", "noise": 1}):
        with pytest.raises(ValueError, match=r"noise is \d: the CRPS.*Type TrainConfig\(loss='crps', noise=2\)"):
            TrainConfig(**changes)
    with pytest.raises(ValueError, match="members is 1; needed: a whole number of at least 2"):
        TrainConfig(loss="crps", noise=2, members=1)
