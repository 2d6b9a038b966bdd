"""Training with coarse means kept: whole coarse cells in every patch, exact resume, the error after keeping means."""

import dataclasses

import numpy as np
import pytest
import torch
from builders import pair_of_levels
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeepsd import TrainConfig, downscale, load_model, masked_mse, save_model, train_stack, train_stage
from xdeepsd.levels.normalizers import Normalizers
from xdeepsd.levels.pairs import make_pair, slabs
from xdeepsd.levels.patches import Batch, PatchLoader, patch_origins
from xdeepsd.models.conserve import KINDS, cell_weights
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNNConfig
from xdeepsd.training import loop

KEPT = KINDS[1:]


def small(**changes):
    """A configuration that trains in about a second."""
    given = {
        "channels": (8, 4), "kernels": (5, 1, 3), "static": ("elevation",), "patch": 16, "stride": 8, "batch": 8,
        "steps": 30, "learning_rate": 1e-2, "validate_every": 10, "checkpoint_every": 10, "threads": 1,
        "validation": 0.2, "residual": changes.get("conserve") != "softmax", **changes,
    }  # fmt: skip
    return TrainConfig(**given)


@settings(max_examples=25)
@given(factor=st.integers(1, 4), output=st.integers(4, 40), stride=st.integers(1, 15), seed=st.integers(0, 99))
def test_patches_hold_whole_coarse_cells(factor, output, stride, seed):
    """The coarse values of a batch are the weighted means of its targets, whatever the stride."""
    config = SRCNNConfig((4, 3), (5, 1, 3), factor, conserve="multiplicative")
    coarse, fine = pair_of_levels(days=4, shape=(6, 7), factor=factor, seed=seed)
    pair = make_pair(coarse, fine, config)
    weights = pair.weights * pair.mask
    side = tuple(min(max(output // factor, 1) * factor, size) for size in pair.shape)
    origins = patch_origins(pair.mask, side, stride, 0.1, factor)
    assert not (origins % factor).any()
    normalizers = Normalizers(Normalizer(), {"elevation": Normalizer()}, Normalizer())
    loader = PatchLoader(pair, normalizers, slabs(pair, np.arange(4), 2), origins, side, 16, (seed,))
    batches = loader.batches()
    batch = next(batches)
    batches.close()
    low = tuple(n // factor for n in side)
    blocks = (len(batch.target), low[0], factor, low[1], factor)
    count = batch.weights.reshape(blocks).sum((2, 4)).numpy()
    mean = (batch.weights * batch.target).reshape(blocks).sum((2, 4)).numpy() / np.where(count > 0, count, 1)
    assert (count > 0).any()
    assert batch.weights.numpy()[~batch.mask.numpy()].sum() == 0
    # The levels of this test are plain block means, and the areas of neighbouring rows differ by 0.2 %.
    np.testing.assert_allclose(mean[count > 0], batch.coarse.numpy()[count > 0], rtol=5e-3, atol=1e-6)
    assert weights.max() == 1


@pytest.mark.parametrize("kind", KEPT)
def test_resumed_is_uninterrupted(kind, tmp_path, monkeypatch):
    coarse, fine = pair_of_levels(days=12)
    config = small(conserve=kind)
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
    resumed = train_stage(coarse, fine, config, checkpoint_dir=tmp_path / "stopped", resume=True)
    for one, other in zip(expected.stage.net.parameters(), resumed.stage.net.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.summary == expected.summary


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("transform", [None, "sqrt", "log1p"])
@pytest.mark.parametrize("loss", ["mse", "denseloss"])
def test_it_learns(kind, transform, loss):
    """Rain that follows elevation: the error falls and is never NaN, even with days that are dry everywhere."""
    coarse, fine = pair_of_levels(days=12, ocean=False)
    pattern = np.random.default_rng(0).uniform(0.2, 1.8, (12, 2, 14, 2))
    pattern /= pattern.mean((1, 3), keepdims=True)
    pattern = pattern.reshape(24, 28)
    low = (coarse["precipitation"] * (np.arange(12) % 2)[:, None, None]).astype(np.float32)
    rain = (low.values.repeat(2, 1).repeat(2, 2) * pattern).astype(np.float32)
    coarse = coarse.assign(precipitation=low)
    fine = fine.assign(
        precipitation=(("time", "lat", "lon"), rain), elevation=(("lat", "lon"), (1000 * pattern).astype(np.float32))
    )
    config = small(conserve=kind, target_transform=transform, loss=loss, alpha=0.5, steps=90, schedule="constant")
    trained = train_stage(coarse, fine, config)
    assert np.isfinite(trained.history["loss"]).all()
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert trained.summary["rmse"] < 0.8 * trained.summary["rmse_interpolation"]
    assert trained.stage.config.conserve == kind


@pytest.mark.parametrize("kind", KEPT)
def test_the_error_reported_is_the_one_of_downscale(kind, tmp_path):
    coarse, fine = pair_of_levels(days=12)
    config = small(conserve=kind)
    model = train_stack([coarse, fine], config)
    save_model(model, tmp_path / "model")
    days = config.split(fine["time"]).validation
    predicted = downscale(coarse["precipitation"].isel(time=days), load_model(tmp_path / "model"))
    truth = fine["precipitation"].isel(time=days)
    errors = predicted.values - truth.values
    assert float(np.sqrt(np.nanmean(errors**2))) == pytest.approx(model.training["stages"][0]["rmse"], rel=1e-5)
    weights = cell_weights(fine["lat"].values, fine.sizes["lon"], fine["mask"].values)
    blocks = (coarse.sizes["lat"], 2, coarse.sizes["lon"], 2)
    count = weights.reshape(blocks).sum((1, 3))
    sums = (np.nan_to_num(predicted.values) * weights).reshape(-1, *blocks).sum((2, 4))
    given = coarse["precipitation"].isel(time=days).values
    known = (count > 0) & np.isfinite(given)
    means = sums / np.where(count > 0, count, 1)
    np.testing.assert_allclose(means[known], given[known], rtol=2e-6)


def test_what_cannot_be():
    coarse, fine = pair_of_levels(days=6, factor=4)
    with pytest.raises(ValueError, match=r"patch 9 leaves 3 output cells along each side, and a coarse cell takes 4"):
        train_stage(coarse, fine, small(patch=9))
    with pytest.raises(ValueError, match="conserve is 'mass'; needed: one of None, 'multiplicative'"):
        TrainConfig(conserve="mass")
    with pytest.raises(ValueError, match="conserve='softmax' and residual=True"):
        TrainConfig(conserve="softmax")
    assert dataclasses.replace(small(), conserve=None).network(2).conserve is None
    assert TrainConfig().conserve == "multiplicative"
    assert TrainConfig.paper().conserve is None


@pytest.mark.parametrize("kind", KEPT)
def test_the_loss_is_that_of_the_output_and_of_what_is_kept(kind):
    """The mean of both; for exponents, only the loss of the output with means kept."""
    coarse, fine = pair_of_levels(days=12)
    stage = train_stage(coarse, fine, small(conserve=kind, steps=1)).stage
    rng = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 2, 16, 16, generator=rng)
    radius = stage.config.radius
    side = 16 - 2 * radius
    target = torch.rand(3, side, side, generator=rng)
    mask = torch.rand(3, side, side, generator=rng) > 0.2
    low = torch.rand(3, side // 2, side // 2, generator=rng)
    batch = Batch(inputs, target, mask, None, low, mask.float())

    def loss(prediction, target, mask, values):
        return masked_mse(prediction, target, mask)

    run = loop.Run(0, small(conserve=kind), stage, None, loss, None, None, {})
    output = torch.rand(3, side, side, generator=rng)
    inner = stage.precipitation.invert(inputs[:, 0, radius:-radius, radius:-radius])
    kept = stage.normalized_target(stage.conserved(output, inner, low, mask.float()), inner)
    expected = masked_mse(kept, target, mask)
    if kind != "softmax":
        expected = (expected + masked_mse(output, target, mask)) / 2
    assert float(loop._loss(run, output, batch)) == pytest.approx(float(expected), rel=1e-6)
