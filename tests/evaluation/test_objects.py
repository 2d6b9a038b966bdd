"""SAL and the decorrelation length: by hand, against loops, and of fields whose values are known."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdeepsd
from xdeepsd.evaluation.space import KM_PER_DEGREE


def field(values, lat=0.0, step=1.0):
    values = np.asarray(values, np.float64)
    coords = {"time": pd.date_range("2001-01-01", periods=len(values)),
              "lat": lat + step * (np.arange(values.shape[1]) - (values.shape[1] - 1) / 2)[::-1],
              "lon": step * np.arange(values.shape[2])}  # fmt: skip
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


def box(rows, columns, amount=10.0, shape=(20, 30)):
    day = np.zeros(shape)
    day[rows, columns] = amount
    return day


def rain(seed=0, days=6, shape=(12, 15)):
    rng = np.random.default_rng(seed)
    return field(rng.gamma(0.5, 8, (days, *shape)) * (rng.random((days, *shape)) < 0.5), step=0.5)


def of(prediction, truth):
    found = xdeepsd.sal(field([prediction]), field([truth])).sel(name="prediction").isel(time=0)
    return [float(found[name]) for name in ("structure", "amplitude", "location")]


TRUTH = box(slice(8, 12), slice(4, 8))


def test_perfect_is_zero():
    assert of(TRUTH, TRUTH) == [0, 0, 0]


def test_twice_the_rain_is_too_much_in_the_same_places():
    structure, amplitude, location = of(2 * TRUTH, TRUTH)
    assert amplitude == pytest.approx(2 / 3)
    assert structure == pytest.approx(0)
    assert location == pytest.approx(0)


def test_a_shift_is_its_distance_over_the_diagonal():
    structure, amplitude, location = of(np.roll(TRUTH, 10, 1), TRUTH)
    assert location == pytest.approx(10 / np.hypot(19, 29), rel=1e-3)  # the plane is true at the equator
    assert abs(structure) < 1e-9
    assert abs(amplitude) < 1e-9


def test_an_object_of_four_times_the_area_is_too_large():
    """Scaled volumes are areas here: 64 cells against 16, (64 - 16) / 40; cells differ by 1 % in area."""
    wide = box(slice(6, 14), slice(2, 10), 2.5)
    structure, amplitude, location = of(wide, TRUTH)
    assert structure == pytest.approx(1.2, rel=0.01)
    assert amplitude == pytest.approx(0, abs=0.01)
    assert location == pytest.approx(0, abs=1e-3)


def test_two_objects_scatter():
    """Twice the same object at 10 columns from the middle: r is 10 cells, that of the one in the middle 0."""
    two, one = box(slice(8, 12), slice(0, 4)) + box(slice(8, 12), slice(20, 24)), box(slice(8, 12), slice(10, 14))
    structure, _, location = of(two, one)
    assert location == pytest.approx(2 * 10 / np.hypot(19, 29), rel=0.01)
    assert structure == pytest.approx(0, abs=1e-6)


def test_days_without_rain():
    dry = np.zeros_like(TRUTH)
    for name in ("structure", "amplitude", "location"):
        both = xdeepsd.sal(field([dry]), field([dry]))[name]
        assert both.isnull().all(), name
    structure, amplitude, location = of(dry, TRUTH)
    assert (structure, amplitude) == (-2, -2)
    assert np.isnan(location)
    nothing = field([TRUTH * np.nan])
    assert xdeepsd.sal(nothing, field([TRUTH])).isnull().all().to_array().all()


def test_missing_cells_count_in_neither():
    truth, prediction = field([TRUTH]), field([TRUTH + box(slice(0, 2), slice(25, 30), 50)])
    known = truth.where((truth["lon"] < 25) | (truth["lat"] < truth["lat"][1]))
    found = xdeepsd.sal(prediction, known).isel(name=0, time=0)
    assert float(found["amplitude"]) == float(found["structure"]) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_bounds_and_swap(one, other):
    a, b = rain(one, 2), rain(other, 2)
    found, swapped = xdeepsd.sal(a, b), xdeepsd.sal(b, a)
    for name, low in (("structure", -2), ("amplitude", -2), ("location", 0)):
        values = found[name].values
        assert ((values >= low) & (values <= 2)).all()
        np.testing.assert_allclose(values, swapped[name] * (1 if low == 0 else -1), atol=1e-12)


def by_pairs(da, edges):
    """The autocorrelation in rings, pair by pair, in loops over the lags."""
    products, pairs = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    rows, columns = da.sizes["lat"], da.sizes["lon"]
    steps = np.array([1.0, np.cos(np.deg2rad(float(da["lat"].mean())))])
    steps *= abs(float(da["lat"][0] - da["lat"][1])) * KM_PER_DEGREE
    variance = []
    for day in da.values:
        apart = day - np.nanmean(day)
        variance.append(apart[np.isfinite(apart)] ** 2)
        for i in range(rows):
            for j in range(columns):
                far = np.hypot((np.arange(rows)[:, None] - i) * steps[0], (np.arange(columns) - j) * steps[1])
                here = np.isfinite(apart) & np.isfinite(apart[i, j])
                ring = np.digitize(far[here], edges) - 1
                inside = ring < len(pairs)
                np.add.at(products, ring[inside], (apart[here] * apart[i, j])[inside])
                np.add.at(pairs, ring[inside], 1)
    return products / pairs / np.concatenate(variance).mean()


def test_the_autocorrelation_is_that_of_all_pairs():
    truth = rain(1, 2, (8, 9)).where(lambda da: (da["lat"] < 1) | (da["lon"] > 1))
    truth[1, 3, 3] = np.nan
    found = xdeepsd.decorrelation_length(truth, truth)["autocorrelation"].sel(name="truth")
    width = 0.5 * KM_PER_DEGREE
    edges = (np.arange(found.sizes["distance"] + 1) - 0.5) * width
    np.testing.assert_allclose(found, by_pairs(truth, edges), atol=1e-9)
    assert float(found[0]) == pytest.approx(1)


def test_the_length_of_a_field_that_is_known():
    """Smoothed noise: a Gaussian of 3 cells has the correlation exp(-d2 / 36), which is 1/e at 6 cells."""
    from scipy import ndimage

    noise = np.random.default_rng(0).normal(size=(60, 80, 80))
    smooth = np.stack([ndimage.gaussian_filter(day, 3, mode="wrap") for day in noise])
    rough = np.stack([ndimage.gaussian_filter(day, 1.5, mode="wrap") for day in noise])
    smooth, rough = field(smooth + 10, step=0.1), field(rough + 10, step=0.1)
    found = xdeepsd.decorrelation_length(rough, smooth)["length"]
    assert found.attrs["units"] == "km"
    assert float(found.sel(name="truth")) == pytest.approx(0.6 * KM_PER_DEGREE, rel=0.05)
    assert float(found.sel(name="prediction")) == pytest.approx(0.3 * KM_PER_DEGREE, rel=0.05)


def test_what_has_no_length():
    truth = rain(1)
    for none in (truth * np.nan, truth * 0 + 3):
        assert xdeepsd.decorrelation_length(none, truth)["length"].sel(name="prediction").isnull()
    slope = truth.copy(data=np.broadcast_to(np.arange(15.0), truth.shape))
    found = xdeepsd.decorrelation_length(slope, slope)
    assert found["autocorrelation"].notnull().all()
    with pytest.raises(ValueError, match="The maps have 3 x 15 cells; needed: 4 or more"):
        xdeepsd.decorrelation_length(*[truth.isel(lat=slice(3))] * 2)


@pytest.mark.parametrize("function", [xdeepsd.sal, xdeepsd.decorrelation_length])
def test_lazy_is_eager_and_members_have_a_score(function):
    truth, one, other = rain(1), rain(2), rain(3)
    members = xr.concat([one, other], "member")
    with dask.config.set(scheduler=lambda *a, **k: pytest.fail("computed")):
        lazy = function(members.chunk(time=2), truth.chunk(time=2), beside={"other": other.chunk(time=2)})
    eager = function(members, truth, beside={"other": other})
    xr.testing.assert_allclose(lazy.compute(), eager)
    assert eager.notnull().any().to_array().all()
    if function is xdeepsd.sal:
        parts = [function(da, truth)["structure"].sel(name="prediction") for da in (one, other)]
        np.testing.assert_allclose(eager["structure"].sel(name="prediction"), (parts[0] + parts[1]) / 2)
