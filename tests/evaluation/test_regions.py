"""Errors and indices by region, and the tail-weighted CRPS: against each region alone, and against `scores`."""

from contextlib import nullcontext

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scores.probability import tail_tw_crps_for_ensemble

import xdeepsd


def rain(seed=0, days=60, members=None):
    rng = np.random.default_rng(seed)
    shape = ((members,) if members else ()) + (days, 6, 8)
    values = rng.gamma(0.6, 9.0, shape) * (rng.random(shape) < 0.6)
    values[..., 0, 0] = np.nan
    coords = {"time": pd.date_range("2001-01-15", periods=days), "lat": 60.0 - 5 * np.arange(6), "lon": np.arange(8.0)}
    dims = (("member",) if members else ()) + ("time", "lat", "lon")
    return xr.DataArray(values.astype(np.float32), coords, dims, name="pr", attrs={"units": "mm day-1"})


GRID = rain().isel(time=0, drop=True)
NUMBERS = xr.where(GRID["lat"] > 50, 1.0, xr.where(GRID["lon"] > 3, 7.0, np.nan)).transpose("lat", "lon")
NAMES = xr.where(GRID["lat"] > 50, "north", xr.where(GRID["lon"] > 3, "east", "")).transpose("lat", "lon")


@pytest.mark.parametrize("chunks", [None, {"time": 13, "lat": 4}])
@pytest.mark.parametrize("members", [None, 4])
def test_a_region_is_its_cells(chunks, members):
    predicted, observed, other = rain(1, members=members), rain(2), rain(3)
    lazy = [da.chunk(chunks) if chunks else da for da in (predicted, observed, other)]
    found = xdeepsd.evaluate(*lazy[:2], beside={"other": lazy[2]}, by="region", regions=NUMBERS).compute()
    assert found["region"].values.tolist() == [1, 7]
    for label in (1, 7):
        alone = xdeepsd.evaluate(predicted, observed.where(label == NUMBERS), beside={"other": other})
        alone = alone.drop_vars([v for v in alone if "time" in alone[v].dims] + ["time"])
        xr.testing.assert_allclose(found.sel(region=label, drop=True).transpose(...), alone.transpose(...), rtol=1e-6)


def test_labels_may_be_text_or_a_mask_in_the_users_order():
    predicted, observed = rain(1), rain(2)
    known = xdeepsd.evaluate(predicted, observed, by="region", regions=NUMBERS)["rmse"]
    turned = NAMES.isel(lat=slice(None, None, -1)).rename(lat="latitude", lon="longitude").T
    found = xdeepsd.evaluate(predicted, observed, by="region", regions=turned.astype(object))["rmse"]
    assert found["region"].values.tolist() == ["east", "north"]
    np.testing.assert_allclose(found.sel(region=["north", "east"]), known)
    mask = xdeepsd.evaluate(predicted, observed, by="region", regions=NUMBERS == 1)["rmse"]
    assert mask["region"].values.tolist() == ["inside", "outside"]
    np.testing.assert_allclose(mask.sel(region="inside"), known.sel(region=1))


def test_a_region_without_values_is_undefined():
    observed = rain(2).where(NUMBERS != 7)
    found = xdeepsd.evaluate(rain(1), observed, by="region", regions=NUMBERS).sel(region=7)
    assert int(found["count"]) == 0
    assert all(found[name].isnull().all() for name in ("rmse", "correlation", "pod", "wasserstein", "skill"))


def test_regions_share_the_pass_and_nothing_is_computed():
    read = []

    def look(values):
        read.append(len(values))
        return values

    observed = rain(2).chunk(time=20)
    observed = observed.copy(data=observed.data.map_blocks(look, dtype=observed.dtype, meta=np.empty((0, 0, 0), "f4")))
    asked = [xdeepsd.evaluate(rain(1).chunk(time=20), observed, by=by, regions=NUMBERS if by else None)
             for by in (None, "region")]  # fmt: skip
    assert read == []
    dask.compute(*asked, scheduler="synchronous")
    assert len(read) == 3


def test_indices_by_region():
    predicted, observed = rain(1), rain(2)
    found = xdeepsd.compare_indices(predicted.chunk(time=20), observed.chunk(time=20), regions=NAMES)
    for label in ("north", "east"):
        alone = xdeepsd.compare_indices(predicted, observed.where(label == NAMES))
        xr.testing.assert_allclose(found["relative_error"].sel(region=label, drop=True), alone["relative_error"])
    xr.testing.assert_allclose(
        found.drop_vars(["relative_error", "region"]),
        xdeepsd.compare_indices(predicted, observed).drop_vars("relative_error"),
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": "region"}, ValueError, "regions is not given"),
        ({"regions": NUMBERS}, ValueError, "by is None, and regions are given"),
        ({"by": "region", "regions": NUMBERS.values}, TypeError, "regions is a ndarray; needed: a map of labels"),
        ({"by": "region", "regions": NUMBERS * np.nan}, ValueError, "regions has no label in any cell"),
        ({"by": "region", "regions": NUMBERS.isel(lon=slice(4))}, ValueError, "regions has 4 lon .* the same cells"),
        ({"by": "region", "regions": rain(1) > 1}, ValueError, r"Select one of the others, such as \.isel\(time=0\)"),
    ],
)
def test_bad_regions_are_told(options, error, message):
    with pytest.raises(error, match=message):
        xdeepsd.evaluate(rain(1), rain(2), **options)


@pytest.mark.parametrize("threshold", [1.0, 10.0])
def test_the_tail_weighted_crps_is_that_of_scores(threshold):
    members, observed = rain(1, members=5), rain(2)
    known = tail_tw_crps_for_ensemble(members, observed, "member", threshold, tail="upper", method="fair",
                                      preserve_dims="all")  # fmt: skip
    found = xdeepsd.crps(members, observed, above=threshold)
    np.testing.assert_allclose(found, known.transpose(*found.dims), atol=1e-5)
    assert found.attrs["units"] == "mm day-1"
    np.testing.assert_allclose(xdeepsd.crps(members, observed, above=-1), xdeepsd.crps(members, observed))


def test_the_tail_of_what_has_no_members_is_its_error_there():
    """By hand: 12 and 30 mm predicted where 8 and 50 fell; above 10 mm the errors are 2 and 20."""
    coords = {"time": pd.date_range("2001-01-01", periods=1), "lat": [50.0], "lon": [0.0, 1]}
    truth, one = (xr.DataArray([[v]], coords, ("time", "lat", "lon"), attrs={"units": "mm day-1"})
                  for v in ([8.0, 50], [12.0, 30]))  # fmt: skip
    members = xr.concat([truth, truth], "member")
    found = xdeepsd.evaluate(members, truth, beside={"one": one}, thresholds=(10.0,))["tail_crps"]
    assert found.sel(event="10 mm").values.tolist() == [0, 11]
    by_cell = xdeepsd.evaluate(members, truth, beside={"one": one}, thresholds=(10.0,), by="cell")["tail_crps"]
    assert by_cell.sel(name="one").values.ravel().tolist() == [2, 20]


@pytest.mark.parametrize("chunks", [None, {"time": 13, "lat": 4}])
@pytest.mark.parametrize("members", [None, 3])
def test_a_level_is_the_coarsened_fields(chunks, members, no_compute):
    predicted, observed, other = rain(1, members=members), rain(2), rain(3)
    other[4, 3, 5] = np.nan  # a cell that does not count for any of them
    lazy = [da.chunk(chunks) if chunks else da for da in (predicted, observed, other)]
    with no_compute() if chunks else nullcontext():
        found = xdeepsd.evaluate(*lazy[:2], beside={"other": lazy[2]}, by="level", factors=(1, 2))
    found = found.compute()
    assert found["level"].values.tolist() == [0, 1, 2]
    assert found["rmse"].attrs["units"] == "mm day-1"
    alone = xdeepsd.evaluate(predicted, observed, beside={"other": other})
    xr.testing.assert_allclose(found.isel(level=2, drop=True), alone)
    known = other.notnull()
    means = [xdeepsd.coarsen(da.where(known), 2) for da in (predicted, observed, other)]
    half = xdeepsd.evaluate(*means[:2], beside={"other": means[2]})
    for level in (0, 1):
        xr.testing.assert_allclose(found.isel(level=level, drop=True), half)
    assert float(found["rmse"][0, 0]) < float(found["rmse"][2, 0])


def test_what_levels_need():
    with pytest.raises(ValueError, match=r"by is 'level', and factors are None.*by='level', factors=\(2, 2\)"):
        xdeepsd.evaluate(rain(1), rain(2), by="level")
    with pytest.raises(ValueError, match="factors are"):
        xdeepsd.evaluate(rain(1), rain(2), factors=(2,))
    with pytest.raises(ValueError, match="multiple"):
        xdeepsd.evaluate(rain(1), rain(2), by="level", factors=(4,))
