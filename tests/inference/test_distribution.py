"""The distribution of a stack with a Bernoulli-gamma head: parameters, chunks, masks, and what follows from it."""

import dataclasses

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import xdeepsd
from xdeepsd import chance_above, distribution, downscale, expectation, quantile
from xdeepsd.inference.fast.compiled import HAS_BFLOAT16
from xdeepsd.models.conserve import cell_weights

HEAD = {"channels": (6, 4), "kernels": (5, 1, 3), "head": "bernoulli_gamma"}


@pytest.fixture(scope="module")
def case():
    """A stack of two stages that give distributions, coarse days, and elevation."""
    model = make_stack(2, gain=1.0, **HEAD)
    coarse = make_coarse()
    return model, coarse, make_static(coarse, model.scale)["elevation"]


def mixtures():
    """A Dataset of hand-made distributions ``(time, lat, lon)``, among them dry, certain, and missing ones."""
    rng = np.random.default_rng(0)
    shape = (3, 4, 5)
    chance, a, b = rng.uniform(0.05, 0.95, shape), rng.uniform(0.2, 9, shape), rng.uniform(0.3, 20, shape)
    chance[0, 0, 0] = b[0, 0, 0] = 0.0
    chance[0, 0, 1] = 1.0
    for part in (chance, a, b):
        part[1, 2, 3] = np.nan
    dims = ("time", "lat", "lon")
    fields = {"wet_chance": (dims, chance), "shape": (dims, a), "scale": (dims, b, {"units": "mm day-1"})}
    return xr.Dataset(fields, {"lat": np.arange(4.0), "lon": np.arange(5.0)}, {"variable": "pr"})


# --- what follows from a distribution, against scipy ------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {"time": 1, "lat": 2}])
def test_mean_chance_and_quantiles_are_those_of_scipy(chunks, no_compute):
    ds = mixtures() if chunks is None else mixtures().chunk(chunks)
    with no_compute():
        found = (
            expectation(ds),
            chance_above(ds, 0),
            chance_above(ds, 7.5),
            quantile(ds, 0.9),
            quantile(ds, [0, 0.5, 0.99]),
        )
    assert all((part.chunks is not None) == (chunks is not None) for part in found)
    mean, rain, heavy, high, several = (part.compute() for part in found)
    chance, a, b = (mixtures()[name].values for name in ("wet_chance", "shape", "scale"))
    frozen = stats.gamma(a, scale=np.where(b > 0, b, 1))
    np.testing.assert_allclose(mean, chance * frozen.mean(), rtol=1e-12)
    np.testing.assert_allclose(rain, chance, rtol=1e-12)
    np.testing.assert_allclose(heavy, chance * frozen.sf(7.5), rtol=1e-9)
    for q, field in [(0.9, high), *zip((0, 0.5, 0.99), several.transpose("quantile", ...), strict=True)]:
        with np.errstate(all="ignore"):
            wet = frozen.ppf(np.clip((q - 1 + chance) / np.where(chance > 0, chance, 1), 0, 1))
        np.testing.assert_allclose(field, np.where(q > 1 - chance, wet, 0 * chance), rtol=1e-9)
        assert float(field["quantile"]) == q
    assert several.dims == ("time", "lat", "lon", "quantile")
    assert (mean.name, mean.attrs["units"], heavy.attrs["units"]) == ("pr", "mm day-1", "1")
    assert high.attrs["units"] == "mm day-1"
    for part in (mean, rain, heavy, high):
        assert bool(np.isnan(part[1, 2, 3]))
        assert int(part.isnull().sum()) == 1


def test_a_map_of_thresholds():
    ds = mixtures()
    limits = xr.DataArray(np.linspace(1, 20, 20).reshape(4, 5), ds["scale"][0].coords, ("lat", "lon"))
    found = chance_above(ds, limits)
    for i in range(4):
        for j in range(5):
            np.testing.assert_array_equal(found[:, i, j], chance_above(ds, float(limits[i, j]))[:, i, j])


@settings(max_examples=30)
@given(chance=st.floats(1e-5, 1), shape=st.floats(0.05, 100), scale=st.floats(1e-3, 100), q=st.floats(0, 0.999))
def test_the_chance_above_a_quantile_is_what_is_left(chance, shape, scale, q):
    ds = xr.Dataset({"wet_chance": chance, "shape": shape, "scale": scale})
    amount = float(quantile(ds, q))
    above = float(chance_above(ds, amount))
    assert amount >= 0
    if amount > 1e-200:
        assert above == pytest.approx(1 - q, rel=1e-5, abs=1e-9)
    else:
        assert chance <= 1 - q + 1e-9 or shape < 1


def test_refused():
    with pytest.raises(ValueError, match="threshold is -1; needed: an amount of at least 0 in mm day-1"):
        chance_above(mixtures(), -1)
    for q in (1.0, -0.1, [0.5, 2], np.nan):
        with pytest.raises(ValueError, match="needed: probabilities from 0 to below 1"):
            quantile(mixtures(), q)
    with pytest.raises(ValueError, match=r"no 'shape': it has \['scale', 'wet_chance'\]"):
        expectation(mixtures().drop_vars("shape"))


# --- the distribution -------------------------------------------------------------------------------------------------


def test_its_expectation_is_what_downscale_gives(case):
    model, coarse, elevation = case
    given = distribution(coarse, model, elevation)
    assert list(given.data_vars) == ["wet_chance", "shape", "scale"]
    fine = downscale(coarse, model, elevation)
    np.testing.assert_allclose(expectation(given), fine, rtol=2e-6)
    assert expectation(given).name == fine.name == "pr"
    xr.testing.assert_identical(given.coords.to_dataset().drop_attrs(deep=False), fine.coords.to_dataset())
    assert {name: given[name].attrs["units"] for name in given} == {
        "wet_chance": "1",
        "shape": "1",
        "scale": "mm day-1",
    }
    assert "standard_name" not in given["scale"].attrs
    assert "distribution, scale 4, model" in given.attrs["history"]
    assert all(given[name].dtype == np.float32 for name in given)
    assert bool(((given["wet_chance"] > 0) & (given["wet_chance"] < 1)).all())
    xr.testing.assert_identical(coarse.deepsd.distribution(model, elevation).drop_attrs(), given.drop_attrs())


def test_against_the_stage_by_hand(case):
    """One stage in float64, without labels and windows."""
    model, coarse, _ = case
    one = dataclasses.replace(model, stages=model.stages[:1])
    static = make_static(coarse, 2)["elevation"]
    given = distribution(coarse, one, static, precision="float64")
    stage = dataclasses.replace(one.stages[0], net=xdeepsd.SRCNN(one.stages[0].config))
    stage.net.load_state_dict(one.stages[0].net.state_dict())
    stage.net.double()
    low, height = torch.tensor(coarse.values).double(), torch.tensor(static.values).float()[None].double()
    with torch.inference_mode():
        found, mean = stage.distribution(low, height), stage(low, height)
    np.testing.assert_allclose(given.to_array().transpose("time", "variable", ...), found, rtol=1e-10)
    np.testing.assert_allclose(mean, found.prod(1), rtol=1e-12)


@pytest.mark.parametrize("conserve", [None, "multiplicative"])
@pytest.mark.parametrize("chunks", [{"time": 2}, {"time": 3, "lat": 2, "lon": 5}, {"lat": 1, "lon": 3}, {"time": 1}])
def test_chunks_change_nothing(case, chunks, conserve, no_compute):
    model, coarse, elevation = case
    coarse = coarse.copy()
    coarse[1, 2, 3] = coarse[3, :, 0] = np.nan
    mask = elevation > elevation.mean()
    whole = distribution(coarse, model, elevation, mask=mask, conserve=conserve)
    with no_compute():
        lazy = distribution(coarse.chunk(chunks), model, elevation, mask=mask, conserve=conserve)
    assert all(lazy[name].chunks is not None for name in lazy)
    for part in (lazy.compute(scheduler="threads"), lazy.compute(scheduler="synchronous")):
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name])


def test_missing_and_masked_as_in_downscale(case):
    model, coarse, elevation = case
    coarse = coarse.copy()
    coarse[1, 2, 3] = np.nan
    mask = elevation > elevation.mean()
    given = distribution(coarse, model, elevation, mask=mask)
    missing = downscale(coarse, model, elevation, mask=mask).isnull()
    assert missing.any()
    for name in given:
        np.testing.assert_array_equal(given[name].isnull(), missing)


def test_other_units_and_order(case):
    """Chance and shape are the same in any units, the scale is in those of the input."""
    model, coarse, elevation = case
    expected = distribution(coarse, model, elevation)
    other = (coarse / 86400).assign_attrs(coarse.attrs | {"units": "kg m-2 s-1"}).astype("float32")
    other = other.rename(lat="latitude").transpose("latitude", "lon", "time")[::-1]
    found = distribution(other, model, elevation)
    assert found["scale"].attrs["units"] == "kg m-2 s-1"
    assert found["scale"].dims == ("latitude", "lon", "time")
    back = found.rename(latitude="lat").sortby("lat", ascending=False).transpose("time", "lat", "lon")
    np.testing.assert_allclose(back["scale"] * 86400, expected["scale"], rtol=1e-4)
    np.testing.assert_allclose(back["wet_chance"], expected["wet_chance"], rtol=1e-4)
    np.testing.assert_allclose(back["shape"], expected["shape"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_kept_means(case, kind):
    """The expectation keeps the coarse mean; multiplicative leaves chance and shape as they are."""
    model, coarse, _ = case
    one = dataclasses.replace(model, stages=model.stages[:1])
    static = make_static(coarse, 2)["elevation"]
    free, kept = distribution(coarse, one, static), distribution(coarse, one, static, conserve=kind)
    mean = expectation(kept).astype(float)
    weights = cell_weights(static["lat"].values, static.sizes["lon"])
    blocks = (weights * mean.values).reshape(5, 6, 2, 8, 2).sum((2, 4)) / weights.reshape(6, 2, 8, 2).sum((1, 3))
    np.testing.assert_allclose(blocks, coarse, rtol=1e-6)
    wet = kept["scale"].values > 0
    for name in ("wet_chance", "shape"):
        np.testing.assert_array_equal(kept[name].values[wet], free[name].values[wet])
    dry = coarse.values.repeat(2, 1).repeat(2, 2) == 0
    assert dry.any()
    for field in (kept["scale"], kept["wet_chance"], mean, chance_above(kept, 0), quantile(kept, 0.999)):
        assert (field.values[dry] == 0).all()


def test_later_stages_see_the_expectation(case):
    """A stage of values after one of distributions, and the other way round."""
    model, coarse, elevation = case
    last = make_stack(1, seed=3, channels=(6, 4), kernels=(5, 1, 3)).stages[0]
    mixed = dataclasses.replace(model, stages=[model.stages[0], last])
    fine = downscale(coarse, mixed, elevation)
    first = downscale(
        coarse, dataclasses.replace(model, stages=model.stages[:1]), elevation.coarsen(lat=2, lon=2).mean()
    )
    then = downscale(first, dataclasses.replace(model, stages=[last]), elevation)
    np.testing.assert_allclose(fine, then, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="The last stage of the model gives values, not a distribution"):
        distribution(coarse, mixed, elevation)
    assert "Bernoulli-gamma" in repr(model)
    assert "Bernoulli-gamma distribution" not in repr(mixed).splitlines()[-1]


def test_saved_and_loaded(case, tmp_path):
    model, coarse, elevation = case
    xdeepsd.save_model(model, tmp_path / "model")
    again = xdeepsd.load_model(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint()
    assert again.stages[0].config == model.stages[0].config
    xr.testing.assert_equal(distribution(coarse, again, elevation), distribution(coarse, model, elevation))


def test_models_of_values_keep_their_fingerprint():
    """Stores begun by an older version are resumed: the head is not part of what was hashed."""
    described = xdeepsd.models.stack.describe(make_stack(1, channels=(4,), kernels=(3, 3)))
    assert "head" not in described["stages"][0]["config"]
    assert xdeepsd.models.stack.describe(make_stack(1, **HEAD))["stages"][0]["config"]["head"] == "bernoulli_gamma"


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16")
def test_bfloat16_is_refused_on_a_cpu(case):
    model, coarse, elevation = case
    with pytest.raises(ValueError, match="precision='bfloat16' with a stage that gives a distribution"):
        distribution(coarse, model, elevation, precision="bfloat16")


def test_heads_that_cannot_be():
    with pytest.raises(ValueError, match="head is 'gamma'; needed: one of 'value', 'bernoulli_gamma'"):
        xdeepsd.SRCNNConfig(head="gamma")
    with pytest.raises(ValueError, match="conserve='softmax' and head='bernoulli_gamma'"):
        xdeepsd.SRCNNConfig(head="bernoulli_gamma", conserve="softmax")
    with pytest.raises(TypeError, match="downscale got a int"):
        distribution(3, make_stack(1, **HEAD))
    with dask.config.set(scheduler="synchronous"), pytest.raises(TypeError, match="model is a str"):
        distribution(make_coarse(), "model")


def test_members_of_a_stack_that_ends_in_a_distribution():
    """A first stage that takes noise, then one with a head: each member is the expectation of its own distribution."""
    coarse = make_coarse()
    noisy, chances = make_stack(1, noise=1, static=()), make_stack(1, gain=1.0, **HEAD)
    model = xdeepsd.StackedSRCNN([*noisy.stages, *chances.stages])
    static = make_static(coarse, 4)["elevation"]
    members = downscale(coarse, model, static, members=3, seed=5)
    first = downscale(coarse, noisy, make_static(coarse, 2), members=3, seed=5)
    for number in range(3):
        whole = distribution(first.sel(member=number, drop=True), chances, static)
        xr.testing.assert_allclose(members.sel(member=number, drop=True), expectation(whole), rtol=1e-5, atol=1e-5)
    chunked = downscale(coarse.chunk(time=2, lat=3), model, static, members=3, seed=5)
    xr.testing.assert_allclose(chunked.compute(), members, rtol=1e-5, atol=1e-5)
    both = downscale(coarse.chunk(time=2, lat=3), model, static, members=3, seed=5, statistics=True)
    xr.testing.assert_allclose(both["pr"].compute(), members.mean("member"), rtol=1e-4, atol=1e-4)


def test_a_list_of_stacks_that_end_in_distributions_is_an_ensemble(case):
    model, coarse, static = case
    other = make_stack(2, seed=3, gain=1.0, **HEAD)
    members = downscale(coarse, [model, other], static)
    for number, one in enumerate((model, other)):
        xr.testing.assert_allclose(
            members.sel(member=number, drop=True), expectation(distribution(coarse, one, static)), rtol=1e-5, atol=1e-5
        )


def test_where_members_and_a_distribution_do_not_go_together(case):
    model, coarse, static = case
    with pytest.raises(ValueError, match="model is a list of 2, and each model gives a distribution of its own"):
        distribution(coarse, [model, model], static)
    with pytest.raises(ValueError, match=r"noise=2 and head='bernoulli_gamma'.*Type noise=0"):
        make_stack(1, noise=2, **HEAD)
    for bad in ({"loss": "bernoulli_gamma", "noise": 2}, {"loss": "crps", "noise": 2, "head": "bernoulli_gamma"}):
        with pytest.raises(ValueError, match="the spread is either that of members"):
            xdeepsd.TrainConfig(**bad)
    noisy = make_stack(1, noise=1, static=(), factor=1)
    with pytest.raises(ValueError, match="A stage of the model takes noise, and each noise gives another distribution"):
        distribution(coarse, xdeepsd.StackedSRCNN([*noisy.stages, *model.stages]), static)
