"""Spectra, fractions skill score, reliability: against their definitions and cases that are known."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scores.spatial import fss_2d

import xdeepsd


def field(values):
    values = np.asarray(values, np.float64)
    coords = {"time": pd.date_range("2001-01-01", periods=len(values)), "lat": 50.0 - np.arange(values.shape[1]),
              "lon": np.arange(values.shape[2]) * 1.0}  # fmt: skip
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


def rain(seed=0, days=6, nlat=20, nlon=24):
    rng = np.random.default_rng(seed)
    return field(rng.gamma(0.5, 8, (days, nlat, nlon)) * (rng.random((days, nlat, nlon)) < 0.5))


def test_the_spectrum_sums_up_to_the_variance():
    truth = rain(1)
    found = xdeepsd.compare_spectra(truth, truth)
    expected = float(truth.var(("lat", "lon")).mean())
    assert found["spectrum"].sum("wavenumber").values == pytest.approx([expected, expected])
    assert float(found["log_distance"].sel(name="prediction")) == 0
    assert found["wavelength"].values[[0, -1]].tolist() == pytest.approx([40, 40 / 19])


@pytest.mark.parametrize("wave", [2, 5, 11])
def test_a_cosine_is_one_line(wave):
    """A wave of a whole number of half-waves across the map: all of its variance in one band."""
    x = (np.arange(20) + 0.5) / 20
    maps = 5 + 3 * np.cos(np.pi * wave * x)[None, :, None] * np.ones((2, 1, 20))
    spectrum = xdeepsd.compare_spectra(field(maps), rain(0, 2, 20, 20))["spectrum"].sel(name="prediction")
    assert float(spectrum.sel(wavenumber=wave)) == pytest.approx(4.5)
    assert float(spectrum.sum()) == pytest.approx(4.5)
    assert float(spectrum["wavelength"].sel(wavenumber=wave)) == pytest.approx(40 / wave)


def test_twice_the_rain_is_six_decibel_away():
    truth = rain(1)
    smooth = truth.rolling(lat=3, lon=3, center=True, min_periods=1).mean()
    found = xdeepsd.compare_spectra(2 * truth, truth, beside={"smooth": smooth})
    assert float(found["log_distance"].sel(name="prediction")) == pytest.approx(20 * np.log10(2))
    smooth = found["spectrum"].sel(name="smooth") / found["spectrum"].sel(name="truth")
    assert float(smooth[0]) > 5 * float(smooth[-3:].mean())


def fss(p, y, threshold, side):
    """Roberts and Lean (2008), in loops, over windows inside the map."""
    above, below = 0.0, 0.0
    for one, other in zip(p >= threshold, y >= threshold, strict=True):
        for i in range(one.shape[0] - side + 1):
            for j in range(one.shape[1] - side + 1):
                a, b = (m[i : i + side, j : j + side].mean() for m in (one, other))
                above, below = above + (a - b) ** 2, below + a**2 + b**2
    return 1 - above / below


def test_fractions_skill_is_its_definition():
    truth, prediction = rain(1), rain(2)
    found = xdeepsd.fractions_skill(prediction, truth, thresholds=(10.0,), windows=(1, 3, 9, 99))
    assert found["window"].values.tolist() == [1, 3, 9]
    for side in (1, 3, 9):
        expected = fss(prediction.values, truth.values, 10, side)
        assert float(found.sel(window=side).squeeze()) == pytest.approx(expected)
        known = fss_2d(prediction, truth, event_threshold=10, window_size=(side, side), spatial_dims=("lat", "lon"),
                       threshold_operator=np.greater_equal)  # fmt: skip
        assert float(found.sel(window=side).squeeze()) == pytest.approx(float(known))
    assert (found.diff("window") > 0).all()
    assert (xdeepsd.fractions_skill(truth, truth, thresholds=(10.0,)) == 1).all()
    assert xdeepsd.fractions_skill(truth, truth, thresholds=(1e6,)).isnull().all()


def test_lazy_is_eager():
    truth, prediction = rain(1).where(rain(1)["lon"] > 3), rain(2)
    with dask.config.set(scheduler=lambda *a, **k: pytest.fail("computed")):
        lazy = [function(prediction.chunk(time=2), truth.chunk(time=2))
                for function in (xdeepsd.compare_spectra, xdeepsd.fractions_skill)]  # fmt: skip
    for found, function in zip(lazy, (xdeepsd.compare_spectra, xdeepsd.fractions_skill), strict=True):
        assert found.chunks
        xr.testing.assert_allclose(found.compute(), function(prediction, truth))


def test_members_count_as_so_many_predictions():
    truth, one, other = rain(1), rain(2), rain(3)
    members = xr.concat([one, other], pd.Index([0, 1], name="member"))
    found = xdeepsd.compare_spectra(members, truth)["spectrum"].sel(name="prediction")
    apart = [xdeepsd.compare_spectra(da, truth)["spectrum"].sel(name="prediction") for da in (one, other)]
    np.testing.assert_allclose(found, (apart[0] + apart[1]) / 2)
    assert xdeepsd.fractions_skill(members, truth).notnull().any()


def test_nothing_is_undefined():
    nothing = rain(1) * np.nan
    assert xdeepsd.compare_spectra(nothing, rain(2))["log_distance"].isnull().all()
    assert xdeepsd.fractions_skill(nothing, rain(2)).isnull().all()


@pytest.mark.parametrize("chunks", [None, {"time": 50}])
def test_reliability(chunks):
    """By hand, and of members that are drawn as the truth is."""
    observed = field([[[5.0, 0, 5, 5]]])
    by_hand = xr.concat([field([[[5.0, 5, 0, 9]]]), field([[[0.0, 0, 0, 7]]])], "member")
    found = xdeepsd.reliability(by_hand, observed, 5)
    assert found["probability"].values.tolist() == [0, 0.5, 1]
    assert found["count"].values.tolist() == [1, 2, 1]
    assert found["observed_frequency"].values.tolist() == [1, 0.5, 1]
    rng = np.random.default_rng(0)
    chance = rng.random((200, 10, 10))
    truth, *members = (field((rng.random(chance.shape) < chance) * 9.0) for _ in range(5))
    members = xr.concat(members, "member")
    if chunks:
        truth, members = truth.chunk(chunks), members.chunk(chunks)
    found = xdeepsd.reliability(members, truth.where(truth["lon"] > 0), 5).compute()
    assert int(found["count"].sum()) == 200 * 10 * 9
    # Of k hits of 4 under a chance that is anywhere: (k + 1) / 6
    np.testing.assert_allclose(found["observed_frequency"], (np.arange(5) + 1) / 6, atol=0.03)
