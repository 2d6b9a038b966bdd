"""`evaluate`: against `scores`, scipy and hand-made cases; lazy, in one pass, whatever the chunks."""

import warnings

import dask
import numpy as np
import pandas as pd
import pytest
import scores.categorical
import scores.continuous
import xarray as xr
from builders import make_stack
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import xdeepsd
from xdeepsd.evaluation import sums
from xdeepsd.evaluation.members import rank_histogram, spread_skill
from xdeepsd.models.conserve import cell_weights


def rain(seed=0, days=60, nlat=8, nlon=10, start="2001-01-15", members=None):
    """Patchy rain with heavy tails, an ocean, and some gaps."""
    rng = np.random.default_rng(seed)
    shape = (days, nlat, nlon) if members is None else (members, days, nlat, nlon)
    values = (rng.gamma(0.5, 20.0, shape) * (rng.random(shape) < 0.4)).astype(np.float32)
    values[..., :2, :3] = np.nan
    values[..., seed % days, -1, -1] = np.nan
    coords = {
        "time": pd.date_range(start, periods=days),
        "lat": 60.0 - 2 * np.arange(nlat),
        "lon": np.arange(nlon) * 2.0,
    }
    dims = ("time", "lat", "lon") if members is None else ("member", "time", "lat", "lon")
    return xr.DataArray(values, coords, dims, name="precipitation", attrs={"units": "mm day-1"})


def area_of(da):
    return xr.DataArray(
        cell_weights(da["lat"].values, da.sizes["lon"]), {d: da[d] for d in ("lat", "lon")}, ("lat", "lon")
    )


@pytest.mark.parametrize("chunks", [None, {"time": 7}, {"time": 25, "lat": 3, "lon": 4}])
def test_errors_are_those_of_scores(chunks):
    predicted, observed = rain(1), rain(2)
    lazy = (predicted.chunk(chunks), observed.chunk(chunks)) if chunks else (predicted, observed)
    found = xdeepsd.evaluate(*lazy).compute().sel(name="prediction")
    weights = {"weights": area_of(observed)}
    assert float(found["rmse"]) == pytest.approx(
        float(scores.continuous.rmse(predicted, observed, **weights)), rel=1e-6
    )
    assert float(found["mae"]) == pytest.approx(float(scores.continuous.mae(predicted, observed, **weights)), rel=1e-6)
    bias = scores.continuous.additive_bias(predicted, observed, **weights)
    assert float(found["bias"]) == pytest.approx(float(bias), rel=1e-5)
    both = predicted.notnull() & observed.notnull()
    assert float(found["count"]) == int(both.sum())
    p, y = (da.where(both).values.ravel() for da in (predicted, observed))
    w = area_of(observed).broadcast_like(observed).transpose(*observed.dims).values.ravel()
    ok = np.isfinite(p)
    expected = np.cov(p[ok].astype(float), y[ok].astype(float), aweights=w[ok])
    expected = expected[0, 1] / np.sqrt(expected[0, 0] * expected[1, 1])
    assert float(found["correlation"]) == pytest.approx(expected, abs=1e-9)
    for part, where in (("wet", observed >= 1), ("dry", observed < 1)):
        one, other = predicted.where(where), observed.where(where)
        for name, function in (("rmse", scores.continuous.rmse), ("mae", scores.continuous.mae)):
            assert float(found[f"{part}_{name}"]) == pytest.approx(float(function(one, other, **weights)), rel=1e-6)


def contingency(predicted, observed, threshold):
    operator = scores.categorical.ThresholdEventOperator()
    return operator.make_contingency_manager(predicted, observed, event_threshold=threshold).transform()


def test_events_are_those_of_scores():
    """Areas are alike where there is one latitude."""
    predicted, observed = (rain(seed).isel(lat=[5]) for seed in (1, 2))
    found = xdeepsd.evaluate(predicted, observed).sel(name="prediction")
    assert list(found["event"].values) == ["0.1 mm", "10 mm", "50 mm", "p99"]
    assert found["amount"].values[:3].tolist() == pytest.approx([0.1, 10, 50])
    for event in found["event"].values:
        table = contingency(predicted, observed, float(found["amount"].sel(event=event)))
        here = found.sel(event=event)
        assert float(here["pod"]) == pytest.approx(float(table.probability_of_detection()))
        assert float(here["far"]) == pytest.approx(float(table.false_alarm_ratio()))
        assert float(here["csi"]) == pytest.approx(float(table.critical_success_index()))
        assert float(here["frequency_bias"]) == pytest.approx(float(table.frequency_bias()))
    exact = np.nanquantile(observed.where(predicted.notnull()), 0.99)
    assert float(found["amount"].sel(event="p99")) == pytest.approx(exact, rel=0.03)


def test_distributions():
    predicted, observed = (rain(seed).isel(lat=[5]) for seed in (1, 2))
    found = xdeepsd.evaluate(predicted * 1.5, observed).sel(name="prediction")
    both = (predicted.notnull() & observed.notnull()).values
    p, y = 1.5 * predicted.values[both].astype(float), observed.values[both].astype(float)
    edges = np.append(np.arange(500), np.inf)
    shares = [np.histogram(v, edges)[0] / v.size for v in (p, y)]
    assert float(found["skill"]) == pytest.approx(np.minimum(*shares).sum())
    assert float(found["wasserstein"]) == pytest.approx(stats.wasserstein_distance(p, y), rel=0.02)
    for name, values in (("predicted", p), ("observed", y)):
        quantiles = found[f"{name}_quantile"]
        expected = np.quantile(values, quantiles["quantile"], method="inverted_cdf")
        np.testing.assert_allclose(quantiles, expected, rtol=0.01, atol=0.05)


def test_a_case_by_hand():
    """Four cells of one latitude: 0, 2, 10 and 60 mm observed; 1, 2, 20 and 40 predicted."""
    coords = {"time": pd.date_range("2001-07-01", periods=1), "lat": [50.0], "lon": [0.0, 1, 2, 3]}
    observed = xr.DataArray([[[0.0, 2, 10, 60]]], coords, ("time", "lat", "lon"), attrs={"units": "mm day-1"})
    found = xdeepsd.evaluate(observed.copy(data=[[[1.0, 2, 20, 40]]]), observed).sel(name="prediction")
    assert float(found["bias"]) == pytest.approx(-9 / 4)
    assert float(found["mae"]) == pytest.approx(31 / 4)
    assert float(found["rmse"]) == pytest.approx(np.sqrt(501 / 4))
    assert float(found["wet_bias"]) == pytest.approx(-10 / 3)
    assert float(found["dry_mae"]) == pytest.approx(1)
    assert found["pod"].values.tolist() == [1, 1, 0, 0]
    assert found["far"].values[:2].tolist() == pytest.approx([1 / 4, 0])
    assert np.isnan(found["far"].values[2:]).all()  # nothing predicted, so no alarm can be false
    assert float(found["skill"]) == pytest.approx(1 / 4)  # 2 mm is in one bin of both


def test_edges_are_exact():
    edges = sums.lower_edges()
    for amount in (0.1, 1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 50, 100):
        assert edges[sums.bin_of(np.float32(amount))] == pytest.approx(amount, rel=1e-6)
        assert edges[sums.bin_of(np.nextafter(np.float32(amount), np.float32(0)))] < amount * (1 - 1e-3)
    assert (np.diff(edges)[1:] / edges[1:-1]).max() < 0.016


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 2000, width=32), min_size=1, max_size=30))
def test_bins_hold_their_amounts(amounts):
    values, edges = np.array(amounts, np.float32), np.append(sums.lower_edges(), np.inf)
    bins = sums.bin_of(values)
    assert (edges[bins] <= values * (1 + 1e-6)).all()
    assert (values * (1 - 1e-6) < edges[bins + 1]).all()


@pytest.mark.parametrize("by", ["season", "month"])
def test_groups_are_their_days(by):
    predicted, observed = rain(1, days=200), rain(2, days=200)
    found = xdeepsd.evaluate(predicted.chunk(time=30), observed.chunk(time=30), by=by).compute()
    label = getattr(observed["time"].dt, by)
    for group in found[by].values:
        days = np.flatnonzero(label == group)
        if not len(days):
            assert found["rmse"].sel({by: group}).isnull().all()
            continue
        alone = xdeepsd.evaluate(predicted.isel(time=days), observed.isel(time=days))
        here = found.sel({by: group}, drop=True)
        xr.testing.assert_allclose(here, alone.drop_vars([v for v in alone if "time" in alone[v].dims] + ["time"]))


def test_few_days_and_many_groups():
    predicted, observed = rain(1, days=2).chunk(time=1), rain(2, days=2).chunk(time=1)
    found = xdeepsd.evaluate(predicted, observed, by="month").sel(month=1, name="prediction")
    known = xdeepsd.evaluate(predicted, observed).sel(name="prediction")
    assert float(found["skill"]) == pytest.approx(float(known["skill"]))


@pytest.mark.parametrize("chunks", [None, {"time": 9, "lat": 3}])
def test_cells_are_their_series(chunks):
    predicted, observed = rain(1), rain(2)
    lazy = (predicted.chunk(chunks), observed.chunk(chunks)) if chunks else (predicted, observed)
    found = xdeepsd.evaluate(*lazy, by="cell").compute().sel(name="prediction")
    rmse = scores.continuous.rmse(predicted, observed, reduce_dims="time")
    np.testing.assert_allclose(found["rmse"].transpose("lat", "lon"), rmse, rtol=1e-6)
    assert found["rmse"].isel(lat=0, lon=0).isnull()
    np.testing.assert_allclose(
        found["correlation"].transpose("lat", "lon"),
        xr.corr(*(da.astype(float) for da in (predicted, observed)), dim="time"),
        atol=1e-6,
    )
    one = found.isel(lat=5, lon=5)
    table = contingency(predicted.isel(lat=5, lon=5), observed.isel(lat=5, lon=5), 10)
    assert float(one["pod"].sel(event="10 mm")) == pytest.approx(float(table.probability_of_detection()))


def test_nothing_is_computed_and_each_chunk_is_read_once():
    read = []

    def block(da, name):
        def look(values):
            read.append(name)
            return values

        return da.chunk(time=20).copy(
            data=da.chunk(time=20).data.map_blocks(look, dtype=da.dtype, meta=np.empty((0, 0, 0), da.dtype))
        )

    fields = {name: block(rain(i), name) for i, name in enumerate(("prediction", "truth", "other"))}
    asked = (None, "season", "month", "cell")
    results = [
        xdeepsd.evaluate(fields["prediction"], fields["truth"], beside={"other": fields["other"]}, by=by)
        for by in asked
    ]
    assert read == []
    dask.compute(*results, scheduler="synchronous")
    assert {name: read.count(name) for name in fields} == dict.fromkeys(fields, 3)


def test_all_methods_are_judged_over_the_same_cells():
    predicted, observed, other = rain(1), rain(2), rain(3)
    other = other.where(other["lon"] < 10)
    found = xdeepsd.evaluate(predicted, observed, beside={"other": other})
    assert list(found["name"].values) == ["prediction", "other"]
    alone = xdeepsd.evaluate(predicted.where(other.notnull()), observed)
    np.testing.assert_allclose(found["rmse"].sel(name="prediction"), alone["rmse"].sel(name="prediction"))
    assert found["count"].dims == ()


@pytest.mark.parametrize("chunks", [None, {"time": 11, "member": 2}])
def test_members(chunks):
    members, observed = rain(1, members=5), rain(2)
    lazy = (members.chunk(chunks), observed.chunk(time=11)) if chunks else (members, observed)
    # With areas that are all alike, for the functions beside it do not weight.
    lazy = [da.isel(lat=[4]) for da in lazy]
    found = xdeepsd.evaluate(*lazy, beside={"other": rain(3).isel(lat=[4])}).compute()
    other = rain(3).isel(lat=[4])
    observed = observed.isel(lat=[4]).where(other.notnull())
    known = spread_skill(members.isel(lat=[4]), observed)
    main = found.sel(name="prediction")
    for name, key in (("rmse", "rmse"), ("crps", "crps"), ("spread", "spread"), ("spread_skill_ratio", "ratio")):
        assert float(main[name]) == pytest.approx(known[key], rel=1e-6)
    assert float(found["crps"].sel(name="other")) == float(found["mae"].sel(name="other"))
    np.testing.assert_allclose(found["rank_histogram"], rank_histogram(members.isel(lat=[4]), observed))


def test_a_single_member_is_a_field():
    members, observed = rain(1, members=1), rain(2)
    xr.testing.assert_identical(xdeepsd.evaluate(members, observed), xdeepsd.evaluate(members[0], observed))


def test_members_by_cell_and_season():
    members, observed = rain(1, members=4), rain(2)
    by_cell, by_season = (xdeepsd.evaluate(members, observed, by=by) for by in ("cell", "season"))
    cell = {"lat": 4, "lon": 4}
    known = spread_skill(members.isel(cell), observed.isel(cell))
    assert float(by_cell["crps"].isel(cell).squeeze()) == pytest.approx(known["crps"], rel=1e-6)
    assert float(by_cell["spread"].isel(cell).squeeze()) == pytest.approx(known["spread"], rel=1e-6)
    assert float(by_season["rank_histogram"].sum()) == pytest.approx(float(by_cell["rank_histogram"].sum()))


def test_units_names_and_order_are_the_users():
    predicted, observed = rain(1), rain(2)
    moved = (predicted / 86400).rename(lat="latitude", lon="longitude").isel(latitude=slice(None, None, -1))
    moved = moved.transpose("longitude", "time", "latitude").assign_attrs(units="kg m-2 s-1")
    moved["time"] = moved["time"] + np.timedelta64(12, "h")
    found = xdeepsd.evaluate(moved.to_dataset(name="pr"), observed)
    known = xdeepsd.evaluate(predicted, observed)
    np.testing.assert_allclose(found["rmse"], known["rmse"], rtol=1e-5)
    assert found["rmse"].attrs["units"] == "mm day-1"


def test_what_is_undefined_is_nan():
    predicted, observed = rain(1), rain(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = xdeepsd.evaluate(predicted * np.nan, observed)
        dry = xdeepsd.evaluate(predicted * 0, observed * 0)
        one_day = xdeepsd.evaluate(predicted.isel(time=[0]), observed.isel(time=[0]), by="cell")
    assert all(nothing[name].isnull().all() for name in ("rmse", "bias", "correlation", "skill", "pod", "wasserstein"))
    assert int(nothing["count"]) == 0
    assert float(dry["rmse"].squeeze()) == 0
    assert float(dry["skill"].squeeze()) == 1
    assert dry["correlation"].isnull().all()
    assert dry["wet_rmse"].isnull().all()
    assert dry["pod"].sel(event="10 mm").isnull().all()
    assert one_day["correlation"].isnull().all()
    assert one_day["rmse"].notnull().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.isel(lon=slice(1, None)), "prediction has 9 lon from 2 to 18, the truth 10 from 0 to 18"),
        (lambda p: p.assign_coords(lat=p["lat"] + 1), "Needed: the same cells"),
        (lambda p: p.isel(time=slice(10, None)), "50 days are in both"),
        (lambda p: p.assign_coords(time=p["time"] + np.timedelta64(400, "D")), "0 days are in both"),
        (lambda p: p.assign_attrs(units="K"), "not units of precipitation"),
        (lambda p: p.assign_attrs(units=""), "has no units"),
        (lambda p: p.isel(time=0, drop=True), "without time"),
        (lambda p: p.expand_dims(model=["a", "b"]), r"Select one of the others, such as \.isel\(model=0\)"),
    ],
)
def test_bad_input_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        xdeepsd.evaluate(change(rain(1)), rain(2))


def test_members_of_the_truth_and_an_unknown_by():
    with pytest.raises(ValueError, match="The truth has members"):
        xdeepsd.evaluate(rain(1), rain(2, members=3))
    with pytest.raises(ValueError, match="by is 'year'; needed"):
        xdeepsd.evaluate(rain(1), rain(2), by="year")


DAYS = pd.date_range("2001-02-01", "2001-02-28")


@pytest.mark.parametrize(
    "given", [[2001], ["2001-02"], ["2001-02-01/2001-02-28"], DAYS, xr.DataArray(DAYS, dims="time")]
)
def test_training_days_are_told(given):
    with pytest.warns(UserWarning, match=r"of 60 days are days of the training: 2001-0\d-\d\d\.\."):
        xdeepsd.evaluate(rain(1), rain(2), training_days=given)


def test_days_of_a_models_training_are_told():
    stack = make_stack(1)
    trained = {"stages": [{"first_day": "1990-01-01", "last_day": "2001-01-20"}]}
    model = xdeepsd.StackedSRCNN(stack.stages, training=trained)
    with pytest.warns(UserWarning, match=r"6 of 60 days lie between .*: 2001-01-15\.\.2001-01-20"):
        xdeepsd.evaluate(rain(1), rain(2), model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xdeepsd.evaluate(rain(1, start="2002-01-01"), rain(2, start="2002-01-01"), model=model)
        xdeepsd.evaluate(rain(1), rain(2), training_days=[1999])
