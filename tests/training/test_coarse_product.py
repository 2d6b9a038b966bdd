"""Stages that learn from an independent coarse product, and the stacks that they begin."""

import dataclasses
import logging

import numpy as np
import pytest
import xarray as xr

import xdeepsd
from xdeepsd import TrainConfig
from xdeepsd.models.stack import describe

# A biased product: two thirds of the rain in the west, twice the rain in the east, and noise.
BIAS = np.where(np.arange(8) < 4, 1.5, 0.5)
CONFIG = TrainConfig(
    channels=(6,), kernels=(3, 3), static=("climatology",), patch=12, stride=6, batch=4, steps=6, threads=1, workers=1,
    validation=("2000-02",), validate_every=3,
)  # fmt: skip


def pair(days=50):
    """Observed days at half a degree with a sea in one corner, and a product on another grid."""
    rng = np.random.default_rng(0)
    coarse = rng.gamma(0.5, 8.0, (days, 6, 8)) * (rng.random((days, 1, 1)) > 0.2)
    fine = coarse.repeat(4, 1).repeat(4, 2) * rng.gamma(2.0, 0.5, (days, 24, 32))
    fine[:, :4, :8] = np.nan
    time = xr.date_range("2000-01-01", periods=days)
    coords = {"time": time, "lat": 44.75 - 0.5 * np.arange(24), "lon": -9.75 + 0.5 * np.arange(32)}
    attrs = {"units": "mm day-1"}
    observed = xr.DataArray(fine.astype("float32"), coords, ("time", "lat", "lon"), name="rr", attrs=attrs)
    coords = {"time": time, "lat": 44.0 - 2 * np.arange(6), "lon": -9.0 + 2 * np.arange(8)}
    product = xr.DataArray((coarse / BIAS).astype("float32"), coords, ("time", "lat", "lon"), name="pr", attrs=attrs)
    return observed, product


@pytest.fixture(scope="module")
def levels():
    observed, product = pair()
    return [level.load() for level in xdeepsd.make_levels(observed, factors=(1, 2, 2), coarse=product)]


@pytest.fixture(scope="module")
def model(levels):
    return xdeepsd.train_stack(levels, CONFIG, progress=False)


def test_what_the_first_stage_learns(levels, model, caplog):
    first, *others = (stage.config for stage in model.stages)
    assert model.factors == (1, 2, 2)
    assert first.conserve is None
    assert first.static == ("coarse_bias",)
    assert {(config.conserve, config.static) for config in others} == {("multiplicative", ("climatology",))}
    assert model.static_names == ("coarse_bias", "climatology")
    caplog.set_level(logging.INFO, "xdeepsd")
    xdeepsd.train_stage(levels[0], levels[1], dataclasses.replace(CONFIG, steps=1, validate_every=1))
    assert "Stage 0 learns from an independent product (pr): its coarse means are not kept" in caplog.text


def test_the_bias_is_that_of_the_training_days(levels, model):
    """By hand, in float64: where it rains 1.5 times as much as the product says, the field is about log(1.5)."""
    train = CONFIG.split(levels[0]["time"]).train
    observed, product = (level["precipitation"].values.astype(np.float64)[train] for level in (levels[1], levels[0]))
    found = model.static["coarse_bias"].values
    seen = np.isfinite(observed).all(axis=0)
    means = np.where(seen, np.nan_to_num(observed).mean(axis=0), np.nan)
    by_hand = np.log(np.clip(means / product.mean(axis=0), 0.2, 5)).repeat(4, 0).repeat(4, 1)
    wanted = np.isfinite(by_hand)
    assert wanted.sum() == 24 * 32 - 4 * 8
    np.testing.assert_allclose(found[wanted], by_hand[wanted], rtol=1e-5)
    assert np.isfinite(found).all()
    west, east = found[8:, :16].mean(), found[8:, 16:].mean()
    np.testing.assert_allclose([west, east], np.log([1.5, 0.5]), atol=0.15)
    # The climatology of the later stages has nothing to do with the product.
    climatology = levels[-1]["precipitation"].isel(time=train).mean("time")
    np.testing.assert_allclose(model.static["climatology"].values, climatology.values, rtol=1e-5)


def test_a_stage_alone_is_that_of_the_stack(levels, model):
    alone = xdeepsd.train_stage(levels[0], levels[1], CONFIG).stage
    for one, other in zip(alone.net.parameters(), model.stages[0].net.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())
    assert alone.static == model.stages[0].static


def test_the_model_says_what_it_takes(model, levels, tmp_path):
    assert model.training["coarse_product"] == "pr"
    assert describe(model)["coarse_product"] == "pr"
    assert "input: an independent product, pr" in repr(model)
    xdeepsd.save_model(model, tmp_path / "m")
    again = xdeepsd.load_model(tmp_path / "m")
    assert again.fingerprint() == model.fingerprint()
    fine = xdeepsd.downscale(levels[0][["precipitation"]], again)["precipitation"]
    assert fine.attrs["xdeepsd_model"] == model.fingerprint()
    alone = dataclasses.replace(model, training={})
    assert "coarse_product" not in describe(alone)
    assert alone.fingerprint() != model.fingerprint()


def test_the_product_on_its_own_grid_is_regridded_first(model, levels):
    """The same function as in training, onto the grid of the model."""
    _, product = pair()
    target = xdeepsd.coarsen(model.mask.astype(float), model.scale)
    one = xdeepsd.downscale(xdeepsd.regrid(product, target), model)
    other = xdeepsd.downscale(levels[0], model)["precipitation"]
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-4)


def test_a_factor_of_one_everywhere_in_inference(model, levels):
    coarse = levels[0][["precipitation"]]
    fast = xdeepsd.downscale(coarse, model)["precipitation"]
    assert fast.shape == (50, 24, 32)
    assert bool(fast[:, :4, :8].isnull().all())
    for options in ({"batch_size": 3}, {"precision": "float64"}):
        plain = xdeepsd.downscale(coarse, model, **options)["precipitation"]
        np.testing.assert_allclose(fast.values, plain.values, rtol=1e-4, atol=1e-4)
    tiles = xdeepsd.downscale(coarse.chunk(time=20, lat=4, lon=3), model)["precipitation"]
    np.testing.assert_array_equal(tiles.compute().values, fast.values)


def test_no_means_are_kept_in_the_first_stage(model, levels):
    coarse = levels[0][["precipitation"]]
    free = dataclasses.replace(model, stages=model.stages[:1], static=xdeepsd.coarsen(model.static, 4), mask=None)
    as_trained, kept = (
        xdeepsd.downscale(coarse, free, conserve=kind)["precipitation"].values for kind in (None, "multiplicative")
    )
    np.testing.assert_array_equal(as_trained, kept)
    assert np.abs(kept - coarse["precipitation"].values).max() > 0.1
    forgetful = dataclasses.replace(free, training={})
    out = xdeepsd.downscale(coarse, forgetful, conserve="multiplicative")["precipitation"].values
    np.testing.assert_allclose(out, coarse["precipitation"].values, rtol=1e-5, atol=1e-6)


def test_the_stage_lowers_the_error_of_the_product(levels):
    """A bias that depends on the place is learned."""
    config = dataclasses.replace(CONFIG, steps=300, validate_every=100, target_transform=None, learning_rate=1e-2)
    summary = xdeepsd.train_stage(levels[0], levels[1], config).summary
    assert summary["rmse"] < 0.6 * summary["rmse_interpolation"]


def test_resumed_as_without_the_interruption(levels, tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=3)
    whole = xdeepsd.train_stack(levels, config, progress=False)
    xdeepsd.train_stack(levels, config, progress=False, checkpoint_dir=tmp_path)
    for stage in tmp_path.iterdir():
        for last in sorted(stage.glob("*6*")):
            last.unlink() if last.is_file() else None
    again = xdeepsd.train_stack(levels, config, progress=False, checkpoint_dir=tmp_path, resume=True)
    assert again.fingerprint() == whole.fingerprint()
