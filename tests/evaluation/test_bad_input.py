"""Bad input to every measure: other grids, days or units, one day, nothing at all, members on one side only."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xdeepsd


def rain(seed=0, days=40, members=None):
    rng = np.random.default_rng(seed)
    shape = ((members,) if members else ()) + (days, 6, 7)
    values = rng.gamma(0.6, 9.0, shape) * (rng.random(shape) < 0.6)
    coords = {"time": pd.date_range("2001-01-15", periods=days), "lat": 50.0 - np.arange(6), "lon": np.arange(7.0)}
    dims = (("member",) if members else ()) + ("time", "lat", "lon")
    return xr.DataArray(values, coords, dims, name="pr", attrs={"units": "mm day-1"})


def changes(prediction, truth):
    ten_years = np.timedelta64(3653, "D")
    later = [da.assign_coords(time=da["time"] + ten_years) if "time" in da.dims else da for da in (prediction, truth)]
    return xdeepsd.compare_changes((prediction, later[0]), (truth, later[1]))


MASK = rain().isel(time=0, drop=True).assign_attrs(units="") > 1
MEASURES = {
    "evaluate": xdeepsd.evaluate,
    **{f"evaluate by {by}": partial(xdeepsd.evaluate, by=by) for by in ("season", "month", "cell")},
    "evaluate by region": partial(xdeepsd.evaluate, by="region", regions=MASK),
    "evaluate by level": partial(xdeepsd.evaluate, by="level", factors=(1,)),
    "compare_indices": xdeepsd.compare_indices,
    "compare_changes": changes,
    "compare_spells": xdeepsd.compare_spells,
    "compare_spectra": xdeepsd.compare_spectra,
    "fractions_skill": xdeepsd.fractions_skill,
    "sal": xdeepsd.sal,
    "decorrelation_length": xdeepsd.decorrelation_length,
}
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p.isel(lon=slice(1, None)),
            r"prediction has 6 lon .* Needed: the same cells\. Type xdeepsd\.regrid",
        ),
        (lambda p: p.assign_coords(lat=p["lat"] + 0.5), "Needed: the same cells"),
        (lambda p: p.isel(time=slice(5, None)), r"35 days are in both.* Type truth\.sel"),
        (lambda p: p.isel(time=[*range(20), *range(39, 19, -1)]), "Needed: the same days in the same order"),
        (lambda p: p.assign_attrs(units="K"), "not units of precipitation"),
        (lambda p: p.drop_attrs(), "has no units"),
        (lambda p: p.isel(time=0, drop=True), "without time"),
    ],
)
def test_what_cannot_be_compared_is_told(measure, change, message):
    with pytest.raises(ValueError, match=message):
        measure(change(rain(1)), rain(2))


@pytest.mark.parametrize("measure", [m for m in MEASURES.values() if m is not changes])
def test_what_stands_beside_is_checked_as_well(measure):
    with pytest.raises(ValueError, match="other has 39 from"):
        measure(rain(1), rain(2), beside={"other": rain(3).isel(time=slice(1, None))})


@every
def test_members_of_the_truth_are_refused_and_of_the_prediction_judged(measure):
    with pytest.raises(ValueError, match="The truth has members"):
        measure(rain(1), rain(2, members=3))
    found = measure(rain(1, members=3), rain(2))
    found = found if isinstance(found, xr.Dataset) else found.to_dataset(name="score")
    assert all("member" not in da.dims for da in found.values())


@every
def test_other_units_of_precipitation_are_the_same_rain(measure):
    flux = (rain(1) / 86400).assign_attrs(units="kg m-2 s-1")
    xr.testing.assert_allclose(measure(flux, rain(2)), measure(rain(1), rain(2)), rtol=1e-9, atol=1e-9)


@every
def test_one_day_is_judged_or_undefined(measure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(rain(1, days=1), rain(2, days=1))
    numbers = found.to_array() if isinstance(found, xr.Dataset) else found
    assert not np.isinf(numbers.values.astype(float)).any()


def test_what_one_day_cannot_say():
    found = xdeepsd.compare_indices(rain(1, days=1), rain(2, days=1))["relative_error"].sel(name="prediction")
    for index in ("AnnualCycleAmp", "VarY", "RV20", "AC1", "WW", "DW"):
        assert np.isnan(found.sel(index=index)), index
    table = xdeepsd.differences(xdeepsd.evaluate(rain(1, days=1), rain(2, days=1), beside={"other": rain(3, days=1)}))
    assert table[["low", "high", "p"]].isna().all().all()
    assert table["difference"].notna().all()


@every
@pytest.mark.parametrize("which", ["prediction", "truth"])
def test_nothing_at_all_is_undefined(measure, which):
    fields = [rain(1) * (np.nan if which == "prediction" else 1), rain(2) * (np.nan if which == "truth" else 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(*(da.assign_attrs(units="mm day-1") for da in fields))
    found = found if isinstance(found, xr.Dataset) else found.to_dataset(name="score")
    for name, da in found.items():
        if name == "count" or str(name).endswith("weight"):
            assert (da == 0).all(), name
        elif name != "amount":  # of an event, which is given
            assert da.isnull().all(), name


def test_differences_of_nothing_are_undefined():
    nothing = (rain(1) * np.nan).assign_attrs(units="mm day-1")
    table = xdeepsd.differences(xdeepsd.evaluate(nothing, rain(2), beside={"other": rain(3)}))
    assert table.drop(columns=["name", "error"]).isna().all().all()


@pytest.mark.parametrize("function", [xdeepsd.crps, xdeepsd.rank_histogram, xdeepsd.spread_skill,
                                      partial(xdeepsd.reliability, threshold=1)])  # fmt: skip
def test_scores_of_members_need_members_and_one_truth(function):
    with pytest.raises(ValueError, match="two or more along 'member'"):
        function(rain(1), rain(2))
    with pytest.raises(ValueError, match="none in the latter"):
        function(rain(1, members=3), rain(2, members=3))
    with pytest.raises(ValueError, match="the same cells and days"):
        function(rain(1, members=3).isel(time=slice(1, None)), rain(2))
