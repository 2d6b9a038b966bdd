"""BCSD: its quantile mapping against that of xsdba, and what it is where there is no bias; lazy, chunk by chunk."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xsdba import EmpiricalQuantileMapping

import xdeepsd
from xdeepsd.evaluation.baselines import map_quantiles


def rain(seed=0, days=400, nlat=3, nlon=4, start="2001-01-01", scale=6.0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.6, scale, (days, nlat, nlon)) * (rng.random((days, nlat, nlon)) < 0.6)
    coords = {"time": pd.date_range(start, periods=days), "lat": 50.0 - np.arange(nlat), "lon": np.arange(nlon) * 1.0}
    da = xr.DataArray(values.astype(np.float32), coords, ("time", "lat", "lon"), name="pr")
    return da.assign_attrs(units="mm day-1")


def by_xsdba(coarse, past, observed):
    trained = EmpiricalQuantileMapping.train(
        *(da.assign_attrs(units="mm d-1") for da in (observed, past)), nquantiles=50, kind="*", group="time"
    )
    return trained.adjust(coarse.assign_attrs(units="mm d-1"), interp="linear", extrapolation="constant")


def test_the_mapping_is_that_of_xsdba():
    past, observed, coarse = rain(1), rain(2, scale=9), rain(3, days=100, start="2003-01-01")
    mapped = map_quantiles(coarse, past, observed, max_factor=None)
    expected = by_xsdba(coarse, past, observed).transpose("time", "lat", "lon")
    # Below the lowest quantile that is wet in the past, factors are infinite, and xsdba has no value.
    known = np.isfinite(expected)
    assert known.where(coarse > 0).mean() > 0.95
    np.testing.assert_allclose(mapped.where(known), expected.where(known), rtol=1e-5)
    assert mapped.notnull().all()
    assert (mapped.where(coarse == 0, 0) == 0).all()
    assert mapped.attrs["units"] == "mm day-1"


def test_the_training_days_get_the_quantiles_of_the_truth():
    past, observed = rain(1), rain(2, scale=9)
    mapped = map_quantiles(past, past, observed)
    # Lower down the factors change between quantiles, and a dry day cannot be made wet.
    at = (np.arange(30, 50) + 0.5) / 50
    np.testing.assert_allclose(mapped.quantile(at, "time"), observed.quantile(at, "time"), rtol=0.03)


def test_factors_are_limited():
    """A past of 0.001 mm on most days, where 5 mm were observed: a day of 2 mm has a factor of 14 between quantiles."""
    past, observed = rain(1) * 0 + 0.001, rain(1) * 0 + 5
    past[:20] = 4.0
    coarse = past[:3] * 0 + 2
    assert float(map_quantiles(coarse, past, observed).max()) <= 20
    assert float(map_quantiles(coarse, past, observed, max_factor=None).max()) > 25
    assert float(map_quantiles(coarse, past, observed, max_factor=3).max()) <= 6


def test_groups_are_fitted_apart():
    past, observed, coarse = rain(1, days=730), rain(2, days=730, scale=9), rain(3, days=365, start="2005-01-01")
    mapped = map_quantiles(coarse.chunk(time=50), past, observed, group="time.season")
    for season in ("DJF", "JJA"):
        one = [da.sel(time=da["time"].dt.season == season) for da in (coarse, past, observed)]
        np.testing.assert_allclose(mapped.sel(time=one[0]["time"]), map_quantiles(*one), rtol=1e-6)


def test_missing_and_dry_cells_stay_as_they_are():
    past, observed, coarse = rain(1), rain(2), rain(3, days=20)
    past[:, 0, 0], observed[:, 0, 1], coarse[3, 1, 1] = 0, np.nan, np.nan
    past[5, 1, 2] = np.nan
    mapped = map_quantiles(coarse, past, observed)
    np.testing.assert_array_equal(mapped[:, 0, :2], coarse[:, 0, :2])
    np.testing.assert_array_equal(mapped.isnull(), coarse.isnull())
    assert float(mapped.min()) == 0


def levels(days=120, start="2001-01-01", seed=0):
    fine = rain(seed, days, 8, 12, start)
    return fine, xdeepsd.coarsen(fine, 2)


def test_without_a_bias_it_is_the_climatology_ratio():
    (fine, low), (like, coarse) = levels(), levels(20, "2002-01-01", 1)
    found = xdeepsd.baselines(coarse, like, past=(fine, low))
    plain = ["bilinear", "bicubic", "climatology ratio", "BCSD"]
    assert list(found) == [*plain, *(f"{name}, means kept" for name in plain)]
    for end in ("", ", means kept"):
        np.testing.assert_allclose(found[f"BCSD{end}"], found[f"climatology ratio{end}"], rtol=1e-5)
    given = xdeepsd.baselines(coarse, like, fine.mean("time"), low.mean("time"))
    for name, da in given.items():
        np.testing.assert_allclose(found[name], da, rtol=1e-5)


def test_a_constant_bias_goes():
    """A coarse field that is half as wet as the truth: mapped, it is that of the truth, and so is all that follows."""
    (fine, low), (like, coarse) = levels(), levels(20, "2002-01-01", 1)
    biased = xdeepsd.baselines(coarse / 2, like, past=(fine, low / 2))
    perfect = xdeepsd.baselines(coarse, like, past=(fine, low))
    for name in ("BCSD", "BCSD, means kept"):
        np.testing.assert_allclose(biased[name], perfect[name], rtol=1e-5)
    np.testing.assert_allclose(xdeepsd.bcsd(coarse / 2, like, (fine, low / 2)), perfect["BCSD"], rtol=1e-5)


def test_the_days_to_be_judged_are_not_read(no_compute):
    (fine, low), (like, coarse) = levels(), levels(20, "2002-01-01", 1)
    lazily = xr.DataArray(dask.array.from_delayed(dask.delayed(pytest.fail)("read"), coarse.shape, coarse.dtype),
                          coarse.coords, coarse.dims)  # fmt: skip
    found = xdeepsd.baselines(lazily, like, mask=like[0] >= 0, past=(fine.chunk(time=30, lat=4), low.chunk(time=30)))
    assert all(da.chunks for da in found.values())
    eager = xdeepsd.baselines(coarse, like, past=(fine, low))
    chunked = xdeepsd.baselines(coarse.chunk(time=7), like, past=(fine.chunk(time=30, lat=4), low.chunk(time=30)))
    for name, da in eager.items():
        np.testing.assert_allclose(chunked[name], da, rtol=1e-6)


def test_what_does_not_fit_is_told():
    (fine, low), (like, coarse) = levels(), levels(20, "2002-07-01", 1)
    with pytest.raises(ValueError, match=r"120 from 2001-01-01 .* Needed: the same days and cells"):
        xdeepsd.bcsd(coarse, like, (fine, low.isel(time=slice(5, None))))
    with pytest.raises(ValueError, match=r"days of the month 7, but none among the training days.*group='time'"):
        xdeepsd.bcsd(coarse, like, (fine, low), group="time.month")
    with pytest.raises(ValueError, match=r"group is 'time\.week'; needed"):
        xdeepsd.bcsd(coarse, like, (fine, low), group="time.week")
