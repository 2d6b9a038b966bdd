"""The regression at each cell, beside a plain least squares of every cell."""

import dataclasses
import logging

import numpy as np
import pytest
import xarray as xr
from builders import pair_of_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import xdeepsd
from xdeepsd.levels.pairs import make_pair
from xdeepsd.levels.regression import RIDGE, fit_regression
from xdeepsd.models.srcnn import SRCNNConfig
from xdeepsd.models.static import REGRESSION_TERMS
from xdeepsd.training import stage as stages
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.stage import train_stage


def pair(transform="sqrt", **options):
    config = SRCNNConfig((4,), (3, 3), options.get("factor", 2), ("elevation",), residual=True)
    return make_pair(*pair_of_levels(**options), config, transform)


def plain(pair, days):
    """Ridge regression of each cell by least squares with further rows for the penalty, in float64."""
    _, interpolated, fine = pair.read(days)
    radius = pair.config.radius
    wide = interpolated.astype(np.float64)
    terms = [
        wide,
        ndimage.correlate1d(wide, [-0.5, 0, 0.5], axis=1, mode="nearest"),
        ndimage.correlate1d(wide, [-0.5, 0, 0.5], axis=2, mode="nearest"),
        sum(ndimage.correlate1d(wide, [1, -2, 1], axis=axis, mode="nearest") for axis in (1, 2)),
        np.ones_like(wide),
    ]
    terms = np.stack(terms)[..., radius:-radius, radius:-radius]
    target = {None: fine, "sqrt": np.sqrt(fine)}[pair.transform] - terms[0]
    found = np.full((len(REGRESSION_TERMS), *pair.shape), np.nan)
    for i, j in np.ndindex(pair.shape):
        valid = ~np.isnan(fine[:, i, j])
        rows, wanted = terms[:, valid, i, j].T, target[valid, i, j]
        if len(wanted):
            penalty = np.sqrt(RIDGE * (rows**2).sum() / len(REGRESSION_TERMS)) * np.eye(len(REGRESSION_TERMS))
            found[:, i, j] = np.linalg.lstsq(
                np.vstack([rows, penalty]), np.append(wanted, np.zeros(len(REGRESSION_TERMS))), rcond=None
            )[0]
    return found


@given(
    transform=st.sampled_from([None, "sqrt"]), factor=st.integers(1, 3), seed=st.integers(0, 99),
    cut=st.integers(1, 11),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_as_least_squares_in_any_slabs(transform, factor, seed, cut):
    given = pair(transform, days=12, shape=(5, 6), factor=factor, seed=seed)
    days = np.array([0, 1, 3, 4, 5, 6, 7, 9, 10, 11])
    found = fit_regression(given, np.split(days, [cut]) if cut < len(days) else [days])
    assert found.dtype == np.float32
    expected = plain(given, days)
    seen = np.isfinite(expected).all(0)
    assert 0 < seen.sum() < seen.size  # the ocean
    np.testing.assert_allclose(found[:, seen], expected[:, seen], rtol=2e-4, atol=2e-5)
    assert np.isfinite(found).all()


def test_few_days_are_said(caplog):
    given = pair(days=4)
    with caplog.at_level(logging.WARNING):
        fit_regression(given, [np.arange(4)])
    assert "to only 4 training days" in caplog.text


def test_without_any_observation():
    given = pair(days=4)
    found = fit_regression(dataclasses.replace(given, fine=given.fine * np.nan), [np.arange(4)])
    assert (found == 0).all()


# --- in training and at inference -------------------------------------------------------------------------------------


def config(**changes):
    small = {
        "channels": (4,), "kernels": (3, 3), "patch": 12, "stride": 4, "batch": 4, "steps": 6, "threads": 1,
        "validate_every": 2, "checkpoint_every": 2, "min_land": 0.1, "validation": 0.25,
        "static": ("elevation", "regression"),
    }  # fmt: skip
    return TrainConfig(**small | changes)


@pytest.fixture(scope="module")
def stack():
    """Levels of three grids, and a stack of two stages with a regression each."""
    rng = np.random.default_rng(4)
    lat, lon = 45 - np.arange(24) / 12, np.arange(32) / 12 - 120
    coords = {"time": xr.date_range("2001-01-01", periods=12), "lat": lat, "lon": lon}
    rain = rng.gamma(0.6, 4.0, (12, 24, 32)).astype("float32")
    rain[:, :3, :5] = np.nan
    fine = xr.DataArray(rain, coords, ("time", "lat", "lon"), "precipitation", {"units": "mm day-1"})
    elevation = xr.DataArray(rng.uniform(0, 2000, (24, 32)), {"lat": lat, "lon": lon}, ("lat", "lon"), "elevation")
    elevation.attrs["units"] = "m"
    levels = xdeepsd.make_levels(fine, elevation, (2, 2))
    return levels, elevation, xdeepsd.train_stack(levels, config(), progress=False)


def test_each_stage_learns_its_own_fields(stack):
    levels, _, model = stack
    assert model.static_names == ("elevation",)
    assert [stage.config.static[0] for stage in model.stages] == ["elevation"] * 2
    assert [stage.config.static[1:] for stage in model.stages] == [
        tuple(f"regression_{k}_{term}" for term in REGRESSION_TERMS) for k in (0, 1)
    ]
    assert "elevation, regression;" in repr(model)
    for k, level in enumerate(levels[1:]):
        trained = train_stage(levels[k], level, config(), index=k)
        assert list(trained.fields) == list(model.stages[k].config.static[1:])
        for name, field in trained.fields.items():
            times = 2 ** (1 - k)
            np.testing.assert_array_equal(model.static[name].values[::times, ::times], field)
            np.testing.assert_array_equal(trained.fields["lat"], level["lat"])
    assert len(train_stage(*levels[:2], config(static=("elevation",))).fields) == 0


def test_saved_and_cut(stack, tmp_path):
    levels, _, model = stack
    elevation = model.static["elevation"]  # float32
    xdeepsd.save_model(model, tmp_path / "model")
    again = xdeepsd.load_model(tmp_path / "model")
    coarse = levels[0][["precipitation"]].load()
    whole = coarse.deepsd.downscale(again)["precipitation"]
    timeless = {"history": ""}  # it says when, to the second
    straight = coarse.deepsd.downscale(model)["precipitation"]
    xr.testing.assert_identical(whole.assign_attrs(timeless), straight.assign_attrs(timeless))
    assert whole.notnull().any()
    # In another order and in chunks of space and time; with the fields of the user, which do not hold the regression's
    turned = coarse.isel(lat=slice(None, None, -1)).chunk(time=5, lat=3, lon=4)
    own = turned.deepsd.downscale(model, elevation.sortby("lat"))["precipitation"]
    np.testing.assert_array_equal(own.sortby("lat", ascending=False).values, whole.values)
    part = {"lat": slice(2, 5), "lon": slice(1, 7)}
    fine = {"lat": slice(8, 20), "lon": slice(4, 28)}
    cut = coarse.isel(part).deepsd.downscale(model, elevation.isel(fine))["precipitation"]
    smaller = dataclasses.replace(model, static=model.static.isel(fine), mask=model.mask.isel(fine))
    xr.testing.assert_equal(cut, coarse.isel(part).deepsd.downscale(smaller)["precipitation"])
    assert not cut.equals(whole.isel(fine))  # its edges are others


def test_another_grid_is_refused(stack):
    levels, elevation, model = stack
    coarse = levels[0][["precipitation"]].load()
    east = {"lon": coarse.lon + 1.0}
    with pytest.raises(ValueError, match="the target grid is not part of it"):
        coarse.assign_coords(east).deepsd.downscale(model, elevation.assign_coords(lon=elevation.lon + 1.0))


def test_resumed_without_fitting_again(stack, tmp_path, monkeypatch):
    levels, _, _ = stack
    straight = train_stage(*levels[1:], config())
    saved = stages.learn

    def stop(run, state, watch):
        def validated(row, net, maps):
            if state.step == 4:
                raise KeyboardInterrupt

        watch.validated = validated
        saved(run, state, watch)

    monkeypatch.setattr(stages, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage(*levels[1:], config(), checkpoint_dir=tmp_path)
    monkeypatch.setattr(stages, "learn", saved)
    monkeypatch.setattr(stages, "fit_regression", None)
    resumed = train_stage(*levels[1:], config(), checkpoint_dir=tmp_path, resume=True)
    for a, b in zip(straight.stage.net.parameters(), resumed.stage.net.parameters(), strict=True):
        assert (a == b).all()
    xr.testing.assert_identical(straight.fields, resumed.fields)


def test_days_without_observations_are_reported_as_ever(stack, caplog):
    levels, _, _ = stack
    coarse, fine = (level.load() for level in levels[:2])
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="training days have no observed cell"):
        train_stage(coarse, fine.assign(precipitation=fine.precipitation.where(fine.time > fine.time[8])), config())
