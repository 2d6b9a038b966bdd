"""Intervals and tests of differences: against `scores`, and for methods known to be alike or not."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scores.processing import block_bootstrap

import xdeepsd


def fields(days=300, seed=0, better=0.5):
    """Truth, a prediction with half the error of another, and one as bad as it."""
    rng = np.random.default_rng(seed)
    coords = {"time": pd.date_range("2001-01-01", periods=days), "lat": [50.0, 49.0], "lon": [1.0, 2, 3]}
    shape = (days, 2, 3)

    def field(scale, around=20.0):
        return xr.DataArray(
            around + scale * rng.normal(size=shape), coords, ("time", "lat", "lon"), attrs={"units": "mm day-1"}
        )

    truth = field(5)
    noise = [truth + field(scale, 0.0) for scale in (better * 2, 2.0, 2.0)]
    return truth, *(da.assign_attrs(units="mm day-1").rename("pr") for da in noise)


def test_what_is_better_and_what_is_alike():
    truth, better, other, alike = fields()
    found = xdeepsd.evaluate(better, truth, beside={"other": other})
    table = xdeepsd.differences(found).set_index("error")
    assert list(table.index) == ["rmse", "mae"]
    rmse = found["rmse"].values
    assert table.loc["rmse", "difference"] == pytest.approx(rmse[0] - rmse[1])
    assert (table["high"] < 0).all()
    assert (table["p"] < 1e-4).all()
    same = xdeepsd.differences(xdeepsd.evaluate(other, truth, beside={"alike": alike})).set_index("error")
    assert same.loc["rmse", "low"] < 0 < same.loc["rmse", "high"]
    assert same.loc["rmse", "p"] > 0.01


def test_the_interval_is_that_of_scores():
    truth, better, other, _ = fields(days=200)
    found = xdeepsd.evaluate(better, truth, beside={"other": other})
    table = xdeepsd.differences(found, block=7, samples=4000).set_index("error")
    np.random.seed(0)  # noqa: NPY002  (scores draws from it)
    daily = found[["daily_weight", "daily_squared"]]
    drawn = block_bootstrap(daily.assign(s=daily["daily_squared"] * daily["daily_weight"])[["s", "daily_weight"]],
                            blocks={"time": 7}, n_iteration=4000)  # fmt: skip
    rmse = (drawn["s"].sum("time") / drawn["daily_weight"].sum("time")) ** 0.5
    apart = (rmse.sel(name="prediction") - rmse.sel(name="other")).values
    width = table.loc["rmse", "high"] - table.loc["rmse", "low"]
    assert width == pytest.approx(np.diff(np.quantile(apart, [0.025, 0.975]))[0], rel=0.08)
    assert table.loc["rmse", "low"] == pytest.approx(np.quantile(apart, 0.025), abs=0.05 * width)


def test_the_interval_covers_what_it_should():
    """Of many samples of two methods that are alike, some 95 % hold no difference."""
    inside = 0
    for seed in range(60):
        truth, one, other, _ = fields(days=120, seed=seed, better=1.0)
        row = xdeepsd.differences(xdeepsd.evaluate(one, truth, beside={"other": other}), samples=300).iloc[0]
        inside += row["low"] <= 0 <= row["high"]
    assert 50 <= inside <= 60


def test_few_days_and_no_difference_are_undefined():
    truth, better, other, _ = fields(days=2)
    table = xdeepsd.differences(xdeepsd.evaluate(better, truth, beside={"other": other}))
    assert table[["low", "high", "p"]].isna().all(axis=None)
    assert table["difference"].notna().all()
    truth, better, *_ = fields(days=40)
    table = xdeepsd.differences(xdeepsd.evaluate(better, truth, beside={"same": better}))
    assert (table["difference"] == 0).all()
    assert table["p"].isna().all()
    nothing = xdeepsd.differences(xdeepsd.evaluate(better, truth * np.nan, beside={"same": better}))
    assert nothing["difference"].isna().all()


def test_without_daily_errors():
    truth, better, other, _ = fields(days=40)
    with pytest.raises(ValueError, match="There are no daily errors"):
        xdeepsd.differences(xdeepsd.evaluate(better, truth, beside={"other": other}, by="season"))


@pytest.mark.parametrize("given", [{"block": 0}, {"samples": 0}])
def test_no_days_drawn(given):
    truth, better, other, _ = fields(days=40)
    with pytest.raises(ValueError, match="is 0; needed: a whole number of at least 1"):
        xdeepsd.differences(xdeepsd.evaluate(better, truth, beside={"other": other}), **given)
