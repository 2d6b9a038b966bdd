"""Coarse means kept by `downscale`: against slow code, across chunks, with masks, and with models trained without."""

import dataclasses

import numpy as np
import oracle
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd.models.conserve import KINDS

KEPT = KINDS[1:]
kinds = pytest.mark.parametrize("kind", KEPT)


def stack_of(kind, stages=2, transform="sqrt", **config):
    model = make_stack(stages, channels=(8, 4), conserve=kind, residual=kind != "softmax", **config)
    made = [dataclasses.replace(stage, transform=transform) for stage in model.stages]
    return dataclasses.replace(model, stages=made)


def land(static):
    """A coast: whole blocks, parts of blocks and single cells are ocean."""
    wanted = xr.DataArray(np.random.default_rng(5).random(static["elevation"].shape) > 0.2, static.coords)
    wanted[:8, :8] = False
    return wanted


def block_means(fine, mask, scale):
    """Area-weighted block means, float64, NaN where nothing is wanted."""
    weights = oracle.areas(fine["lat"].values, fine.sizes["lon"], mask)
    values = np.nan_to_num(fine.values.astype(float))
    days, nlat, nlon = values.shape
    blocks = (nlat // scale, scale, nlon // scale, scale)
    above = (values * weights).reshape(days, *blocks).sum((2, 4))
    below = np.broadcast_to(weights, (nlat, nlon)).reshape(blocks).sum((1, 3))
    return above / np.where(below > 0, below, np.nan)


@kinds
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_slow_statement_agrees(kind, precision, masked):
    model = stack_of(kind)
    coarse = make_coarse(days=3)
    static = make_static(coarse, model.scale)
    mask = land(static) if masked else None
    fine = coarse.deepsd.downscale(model, static, mask=mask, precision=precision)
    fields = {"elevation": static["elevation"].values}
    wanted = None if mask is None else mask.values
    expected = oracle.downscale(model, coarse.values.astype(float), fields, wanted, static["lat"].values)
    scale = np.nanmax(expected)
    tolerance = {"float32": 1e-5, "float64": 1e-6}[precision]  # static fields are float32
    np.testing.assert_allclose(fine.values / scale, expected / scale, rtol=0, atol=tolerance)


@kinds
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])  # the fast and the plain forward
def test_means_are_kept_over_all_stages(kind, masked, batch_size):
    model = stack_of(kind, stages=3)
    coarse = make_coarse(days=4)
    static = make_static(coarse, model.scale)
    mask = land(static) if masked else None
    fine = coarse.deepsd.downscale(model, static, mask=mask, batch_size=batch_size)
    means = block_means(fine, None if mask is None else mask.values, model.scale)
    known = np.isfinite(means)
    np.testing.assert_allclose(means[known], coarse.values[known], rtol=3e-6, atol=0)
    if kind == "multiplicative":
        assert (fine.values[(coarse.values == 0).repeat(8, 1).repeat(8, 2) & np.isfinite(fine.values)] == 0).all()


@kinds
def test_time_chunks_give_the_same_bits_and_space_chunks_the_same_numbers(kind):
    model = stack_of(kind)
    coarse = make_coarse(days=6, nlat=12, nlon=14)
    coarse[1, 3:5, 4] = np.nan
    static = make_static(coarse, model.scale)
    mask = land(static)
    whole = coarse.deepsd.downscale(model, static, mask=mask)
    by_day = coarse.chunk(time=2).deepsd.downscale(model, static, mask=mask).compute()
    np.testing.assert_array_equal(by_day, whole)
    pieces = coarse.chunk(time=4, lat=5, lon=4).deepsd.downscale(model, static, mask=mask).compute()
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    means = block_means(pieces, mask.values, model.scale)
    known = np.isfinite(means) & np.isfinite(coarse.values)
    np.testing.assert_allclose(means[known], coarse.values[known], rtol=3e-6)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_a_model_trained_without(kind, tmp_path):
    plain = stack_of(None)
    coarse = make_coarse()
    static = make_static(coarse, plain.scale)
    kept = coarse.deepsd.downscale(plain, static, conserve=kind)
    with_it = dataclasses.replace(plain, stages=stack_of(kind).stages)  # the same weights: the same seed
    np.testing.assert_array_equal(kept, coarse.deepsd.downscale(with_it, static))
    before = coarse.deepsd.downscale(plain, static)
    assert not np.allclose(before, kept)
    assert before.attrs["xdeepsd_model"] != kept.attrs["xdeepsd_model"], "to_zarr must not go on with the other one"
    xdeepsd.save_model(with_it, tmp_path / "model")
    read = xdeepsd.load_model(tmp_path / "model")
    assert [stage.config.conserve for stage in read.stages] == [kind] * 2
    np.testing.assert_array_equal(coarse.deepsd.downscale(read, static), kept)


def test_what_cannot_be():
    coarse = make_coarse()
    static = make_static(coarse, 4)
    with pytest.raises(ValueError, match="conserve is 'mass'; needed: one of None, 'multiplicative'"):
        coarse.deepsd.downscale(stack_of(None), static, conserve="mass")
    with pytest.raises(ValueError, match=r"conserve='softmax', but the model was trained with \['None'\]"):
        coarse.deepsd.downscale(stack_of(None), static, conserve="softmax")
    with pytest.raises(ValueError, match=r"conserve='additive', but the model was trained with \['softmax'\]"):
        coarse.deepsd.downscale(stack_of("softmax"), static, conserve="additive")
    nothing = xr.zeros_like(static["elevation"], bool)
    with pytest.raises(ValueError, match=r", 0 of them wanted, .* no mean can be kept"):
        coarse.deepsd.downscale(stack_of("multiplicative"), static, mask=nothing)
    with pytest.raises(ValueError, match="conserve='softmax' and residual=True"):
        xdeepsd.SRCNNConfig(conserve="softmax", residual=True)
