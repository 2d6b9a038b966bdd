"""Climate indices: each against a hand-made case or an independent computation; lazy whatever the chunks."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import xdeepsd
from xdeepsd.evaluation import indices
from xdeepsd.evaluation.indices import UNITS, _join, _runs


def cell(values, start="2001-01-01"):
    coords = {"time": pd.date_range(start, periods=len(values)), "lat": [50.0], "lon": [5.0]}
    values = np.asarray(values, np.float64)[:, None, None]
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


def of(values, name, start="2001-01-01"):
    return float(xdeepsd.climate_indices(cell(values, start))[name].squeeze())


def maps(seed=0, years=3, nlat=4, nlon=5):
    rng = np.random.default_rng(seed)
    time = pd.date_range("2001-01-01", f"{2000 + years}-12-31")
    values = rng.gamma(0.5, 12.0, (len(time), nlat, nlon)) * (rng.random((len(time), nlat, nlon)) < 0.5)
    values[:, 0, 0] = np.nan
    values[100:110, 1, 1] = np.nan
    coords = {"time": time, "lat": 50.0 - np.arange(nlat), "lon": np.arange(nlon) * 1.0}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


# Ten days, seven of them wet in spells of 3, 2 and 2
TEN = [1.0, 10, 25, 0, 4, 6, 0.9, 0, 2, 20]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("R01", 0.7),
        ("SDII", 68 / 7),
        ("R10", 3 / 10 * 365.25),
        ("R20", 2 / 10 * 365.25),
        ("RX1day", 25),
        ("RX5day", 45),  # 10, 25, 0, 4 and 6
        ("P98Wet", 20 + 0.88 * 5),  # of the 7 wet days, place 0.98 * 6 = 5.88
        ("P98WetAmount", 25 / 10 * 365.25),
        ("CDD", 2),
        ("CWD", 3),
        ("WW", 4 / 6),  # the last day has no successor
        ("DW", 2 / 3),
        ("WetSpell", 7 / 3),
        ("DrySpell", 3 / 2),
        ("AC1", np.corrcoef(TEN[1:], TEN[:-1])[0, 1]),
    ],
)
def test_ten_days_by_hand(name, expected):
    assert of(TEN, name) == pytest.approx(expected)


def test_seasonal_cycle_and_interannual_variability():
    time = pd.date_range("2001-01-01", "2003-12-31")
    assert of(time.month.values * 1.0, "AnnualCycleAmp") == pytest.approx(11)
    assert of(np.array([2.0, 3, 7])[time.year.values - 2001], "VarY") == pytest.approx(np.std([2, 3, 7], ddof=1))
    assert np.isnan(of(TEN, "AnnualCycleAmp"))
    assert np.isnan(of(TEN, "VarY"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cells", [1, 5, 11, 2**15])
def test_strips_of_any_size_give_the_same_bits(monkeypatch, cells, dtype):
    rain = maps(nlat=7).astype(dtype, keep_attrs=True)
    whole = xdeepsd.climate_indices(rain)
    monkeypatch.setattr(indices, "_STRIP", cells)
    xr.testing.assert_identical(xdeepsd.climate_indices(rain), whole)
    monkeypatch.setattr(indices, "_STRIP", 2**15)
    lazy = rain.chunk(time=100, lat=3)
    expected = xdeepsd.climate_indices(lazy).compute()
    monkeypatch.setattr(indices, "_STRIP", cells)
    xr.testing.assert_identical(xdeepsd.climate_indices(lazy).compute(), expected)
    # The numbers are those of float64, whatever comes in
    xr.testing.assert_allclose(whole, xdeepsd.climate_indices(rain.astype(np.float64, keep_attrs=True)), rtol=1e-12)


def test_return_value():
    """Annual maxima that are the quantiles of a Gumbel distribution; few years are too few."""
    time = pd.date_range("1901-01-01", "2000-12-31")
    known = stats.gumbel_r(40, 10)
    maxima = known.ppf((np.arange(100) + 0.5) / 100)
    values = np.zeros(len(time))
    values[time.day_of_year == 180] = np.random.default_rng(0).permutation(maxima)
    assert of(values, "RV20", "1901-01-01") == pytest.approx(known.ppf(1 - 1 / 20), rel=0.01)
    assert np.isnan(of(values[: 9 * 365], "RV20", "1901-01-01"))


def test_return_value_by_l_moments_of_the_definition():
    """Hosking (1990): b0 and b1 as sums over the ordered sample."""
    rng = np.random.default_rng(1)
    maxima = np.sort(rng.gamma(3, 20, 12))
    time = pd.date_range("2001-01-01", "2012-12-31")
    values = np.zeros(len(time))
    values[time.day_of_year == 10] = maxima
    b1 = sum(i / 11 * x for i, x in enumerate(maxima)) / 12
    scale = (2 * b1 - maxima.mean()) / np.log(2)
    expected = stats.gumbel_r(maxima.mean() - np.euler_gamma * scale, scale).ppf(0.95)
    assert of(values, "RV20") == pytest.approx(expected)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_longest_run(holds, data):
    values = np.array(holds)[:, None, None]
    longest = max(len(run) for run in "".join("x" if h else " " for h in holds).split(" "))
    assert _runs(values)[3, 0, 0] == longest
    size = data.draw(st.integers(1, len(holds)))
    parts = [_runs(values[first : first + size]) for first in range(0, len(holds), size)]
    np.testing.assert_array_equal(_join(np.concatenate(parts)), _runs(values))


def test_missing_days_count_in_nothing():
    with_gap = [*TEN[:2], np.nan, *TEN[2:]]
    for name in ("R01", "SDII", "R10", "P98Wet"):
        assert of(with_gap, name) == pytest.approx(of(TEN, name))
    assert of(with_gap, "CWD") == 2
    nothing = xdeepsd.climate_indices(cell([np.nan] * 30))
    assert all(nothing[name].isnull().all() for name in UNITS)


@pytest.mark.parametrize("chunks", [None, {"time": 3}])
def test_days_left_out_end_a_spell(chunks):
    days = cell([5.0] * 10 + [0.0] * 10)
    found = xdeepsd.climate_indices((days.chunk(chunks) if chunks else days).isel(time=[0, 1, 2, 7, 8, 15, 18]))
    assert float(found["CWD"].squeeze()) == 3
    assert float(found["CDD"].squeeze()) == 1
    assert float(found["WW"].squeeze()) == 1
    assert float(found["R01"].squeeze()) == pytest.approx(5 / 7)


@pytest.mark.parametrize("chunks", [None, {"time": 1}])
@pytest.mark.parametrize("days", [1, 2])
def test_a_day_or_two(days, chunks):
    few = cell([12.0, 3.0][:days])
    found = xdeepsd.climate_indices(few.chunk(chunks) if chunks else few).compute()
    assert float(found["RX1day"].squeeze()) == 12
    assert float(found["CWD"].squeeze()) == days
    assert found["RX5day"].isnull().all()
    assert found["AC1"].isnull().all()


def test_a_dry_year_has_no_amount_of_wet_days():
    found = xdeepsd.climate_indices(cell([0.0] * 365))
    assert float(found["CDD"].squeeze()) == 365
    assert float(found["CWD"].squeeze()) == 0
    assert float(found["P98WetAmount"].squeeze()) == 0
    for name in ("SDII", "P98Wet", "WW", "AC1"):
        assert found[name].isnull().all()


@pytest.mark.parametrize("chunks", [{"time": 50}, {"time": 10}, {"time": 400, "lat": 3, "lon": 2}])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_chunks_change_nothing(chunks):
    eager = xdeepsd.climate_indices(maps())
    with dask.config.set(scheduler=lambda *a, **k: pytest.fail("computed")):
        lazy = xdeepsd.climate_indices(maps().chunk(chunks))
    assert all(lazy[name].chunks is not None for name in UNITS)
    xr.testing.assert_allclose(lazy.compute(), eager, rtol=1e-9)


def test_maps_are_those_of_numpy():
    da = maps()
    found, values = xdeepsd.climate_indices(da), da.values[:, 2, 3]
    here = found.isel(lat=2, lon=3)
    wet = values[values >= 1]
    assert float(here["P98Wet"]) == pytest.approx(np.quantile(wet, 0.98))
    assert float(here["P98WetAmount"]) == pytest.approx(wet[wet > np.quantile(wet, 0.98)].sum() / len(values) * 365.25)
    assert float(here["RX1day"]) == pytest.approx(
        np.mean([values[da["time"].dt.year == y].max() for y in (2001, 2002, 2003)])
    )
    assert found["R01"].isel(lat=0, lon=0).isnull()


def test_bias_of_the_indices():
    truth = maps(1)
    found = xdeepsd.compare_indices(truth * 2, truth, beside={"same": truth})
    same = found.sel(name="same")
    assert all(float(abs(same[name]).max()) < 1e-9 for name in UNITS if name != "RV20")
    known = xdeepsd.climate_indices(truth)
    np.testing.assert_allclose(found["RX1day"].sel(name="prediction"), known["RX1day"])
    assert float(found["relative_error"].sel(name="prediction", index="RX1day")) == pytest.approx(1)
    assert found["relative_error"].sel(index="RV20").isnull().all()
    assert found["CDD"].attrs["units"] == "days"


def test_members_are_judged_one_by_one():
    one, other, truth = maps(1), maps(2), maps(3)
    both = xdeepsd.compare_indices(xr.concat([one, other], pd.Index([0, 1], name="member")), truth)
    apart = [xdeepsd.compare_indices(da, truth)["RX1day"] for da in (one, other)]
    np.testing.assert_allclose(both["RX1day"], (apart[0] + apart[1]) / 2)


def test_change_of_the_indices():
    before, after = maps(1), maps(2)
    later = after.assign_coords(time=pd.date_range("2051-01-01", periods=after.sizes["time"]))
    found = xdeepsd.compare_changes((before, later * 1.5), (before, later))
    change = [xdeepsd.climate_indices(da)["RX1day"] for da in (later * 1.5, later)]
    np.testing.assert_allclose(found["RX1day"].squeeze("name", drop=True), change[0] - change[1])
    none = xdeepsd.compare_changes((before, later), (before, later))
    assert float(none["relative_error"].sel(index="SDII").squeeze()) == 0


def test_without_dates():
    da = maps().isel(time=slice(5)).assign_coords(time=np.arange(5))
    with pytest.raises(ValueError, match="Needed: dates"):
        xdeepsd.climate_indices(da)
