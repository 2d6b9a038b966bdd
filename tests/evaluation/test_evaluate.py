"""Errors, errors by bins, baselines and significance tests."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

import xdeepsd
from xdeepsd.evaluation import errors as evaluate
from xdeepsd.evaluation.baselines import keep_means
from xdeepsd.grids.interpolate import interpolate, upsample_cubic


def field(seed=0, days=6, nlat=8, nlon=12, chunks=None):
    rng = np.random.default_rng(seed)
    rain = rng.gamma(0.4, 5.0, (days, nlat, nlon)).astype(np.float32)
    rain[:, :2, :3] = np.nan
    coords = {"time": np.arange(days), "lat": 40.0 - np.arange(nlat), "lon": -120.0 + np.arange(nlon)}
    da = xr.DataArray(rain, coords, ("time", "lat", "lon"), name="precipitation", attrs={"units": "mm day-1"})
    return da.chunk(chunks) if chunks else da


def by_hand(predicted, observed, bins=5):
    """The rows as defined, computed in loops."""
    ok = np.isfinite(predicted) & np.isfinite(observed)
    p, y = predicted[ok].astype(float), observed[ok].astype(float)
    width = (y.max() - y.min()) / bins
    which = np.minimum(((y - y.min()) / width).astype(int), bins - 1)
    found = []
    for i in range(bins):
        inside = which == i
        if inside.any():
            apart = p[inside] - y[inside]
            found.append((inside.sum(), -i, np.sqrt((apart**2).mean()), np.abs(apart).mean()))
    return [(count, *errors) for count, _, *errors in sorted(found)]


@pytest.mark.parametrize("chunks", [None, {"time": 2}, {"time": 3, "lat": 4}])
def test_errors_by_bin(chunks):
    observed, predicted = field(1, chunks=chunks), field(2, chunks=chunks)
    predicted = predicted.where(predicted > 0.01)  # more missing values, elsewhere
    table = evaluate.bin_errors({"model": predicted}, observed)
    ranked = table[table["rank"] > 0]
    assert list(ranked["rank"]) == [1, 2, 3, 4, 5][: len(ranked)]
    assert ranked["count"].is_monotonic_increasing
    expected = by_hand(predicted.values, observed.values)
    np.testing.assert_allclose(ranked[["count", "rmse", "mae"]].to_numpy(), expected, rtol=1e-9)
    whole = table[table["rank"] == 0].iloc[0]
    reference = evaluate.compare({"model": predicted}, observed).loc["model"]
    assert whole["rmse"] == pytest.approx(reference["rmse"])
    assert whole["mae"] == pytest.approx(reference["mae"])
    assert whole["count"] == ranked["count"].sum()


@pytest.mark.parametrize("chunks", [None, {"time": 2, "lon": 4}])
def test_errors_over_all_cells(chunks):
    observed, predicted = field(1, chunks=chunks), field(2, chunks=chunks)
    table = evaluate.compare({"model": predicted}, observed).loc["model"]
    ok = observed.notnull().values
    y, p = observed.values[ok].astype(float), predicted.values[ok].astype(float)
    assert table["rmse"] == pytest.approx(np.sqrt(((p - y) ** 2).mean()))
    assert table["mae"] == pytest.approx(np.abs(p - y).mean())
    assert table["bias"] == pytest.approx((p - y).mean())
    assert table["correlation"] == pytest.approx(np.corrcoef(p, y)[0, 1])


def test_all_predictions_are_judged_over_the_same_cells():
    observed = field(1)
    table = evaluate.bin_errors({"a": field(2), "b": field(3).where(field(3) > 0.5)}, observed)
    counts = table.pivot(index="rank", columns="name", values="count")
    assert (counts["a"] == counts["b"]).all()


def test_bins_ranked_by_density():
    """Of 6 values, 3 lie in 0 to 1, 2 in 1 to 1.5 and 1 in 1.5 to 30: 3, 4 and 1/28.5 a millimetre."""
    observed = xr.DataArray([0.0, 0.5, 0.9, 1.1, 1.2, 20.0], dims="time")
    options = {"edges": [0, 1, 1.5, 30]}
    by_count, by_density = (evaluate.bin_errors({"m": observed + 1}, observed, **options, rank_by=by)
                            for by in ("count", "density"))  # fmt: skip
    assert by_count["count"].tolist() == [1, 2, 3, 6]
    assert by_density["count"].tolist() == [1, 3, 2, 6]
    assert by_density["rank"].tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(by_density["rmse"], 1)
    with pytest.raises(ValueError, match="rank_by is 'width'; needed"):
        evaluate.bin_errors({"m": observed}, observed, rank_by="width")


def test_transposed_predictions_are_brought_into_order():
    observed, predicted = field(1), field(2)
    one = evaluate.bin_errors({"m": predicted}, observed)
    other = evaluate.bin_errors({"m": predicted.transpose("lon", "lat", "time")}, observed)
    np.testing.assert_allclose(one["rmse"], other["rmse"])


def test_other_coordinates_are_refused():
    """Rather than comparing only the few cells that coincide."""
    observed, predicted = field(1), field(2)
    moved = predicted.assign_coords(lat=predicted["lat"] + 1e-6)
    for compared in (evaluate.compare, evaluate.bin_errors):
        with pytest.raises(ValueError, match=r"The coordinates of 'm' differ from .* type predicted\.assign_coords"):
            compared({"m": moved}, observed)


def test_bins_need_values_that_differ():
    dry = field().where(False, 0.0)
    with pytest.raises(ValueError, match=r"range from 0\.0 to 0\.0: bins of equal width"):
        evaluate.bin_errors({"m": dry}, dry)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 4), st.integers(0, 99))
def test_bicubic_is_the_one_of_torch(nlat, nlon, factor, seed):
    x = np.random.default_rng(seed).normal(size=(2, nlat, nlon))
    expected = F.interpolate(torch.from_numpy(x)[:, None], scale_factor=factor, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(upsample_cubic(x, factor), expected[:, 0].numpy(), rtol=0, atol=1e-12)


def grids(factor=2, chunks=None):
    like = field(nlat=8, nlon=12).fillna(1.0)
    coarse = like.coarsen(lat=factor, lon=factor).mean()
    return (coarse.chunk(chunks) if chunks else coarse), like


def test_bicubic_is_never_negative_and_keeps_missing_cells():
    coarse, like = grids()
    coarse = coarse.copy(data=coarse.values)
    coarse[0, 1, 2] = np.nan
    result = interpolate(coarse, like, method="cubic")
    assert float(result.min()) >= 0
    assert np.isnan(result[0, 2:4, 4:6]).all()
    assert int(np.isnan(result).sum()) == 4
    with pytest.raises(ValueError, match="method is 'quintic'"):
        interpolate(coarse, like, method="quintic")


def test_climatology_ratio_recovers_a_fixed_pattern():
    """If every day is a uniform field times one fixed pattern, the baseline is exact."""
    rng = np.random.default_rng(0)
    amount, pattern = rng.gamma(1, 5, 6), rng.gamma(4, 0.25, (8, 12))
    like = field(nlat=8, nlon=12).copy(data=(amount[:, None, None] * pattern).astype(np.float32))
    coarse = like.coarsen(lat=2, lon=2).mean()
    train = slice(0, 3)
    means = like.isel(time=train).mean("time"), coarse.isel(time=train).mean("time")
    result = xdeepsd.climatology_ratio(coarse, like, *means)
    np.testing.assert_allclose(result, like, rtol=1e-5)
    assert result.attrs["units"] == "mm day-1"
    assert result.dims == like.dims


def test_baselines_are_lazy_and_the_same_in_chunks(no_compute):
    coarse, like = grids()
    means = like.mean("time"), coarse.mean("time")
    with no_compute():
        lazy = xdeepsd.baselines(coarse.chunk(time=2), like, *means)
    eager = xdeepsd.baselines(coarse, like, *means)
    plain = ["bilinear", "bicubic", "climatology ratio"]
    assert list(eager) == [*plain, *(f"{name}, means kept" for name in plain)]
    for name in eager:
        np.testing.assert_array_equal(lazy[name], eager[name])
    assert list(xdeepsd.baselines(coarse, like)) == [
        "bilinear", "bicubic", "bilinear, means kept", "bicubic, means kept",
    ]  # fmt: skip
    with no_compute():
        lazy = xdeepsd.baselines(coarse.chunk(time=2), like.chunk(time=3, lat=4))
    for name in lazy:
        assert lazy[name].chunks is not None
        assert lazy[name].dims == ("time", "lat", "lon")
        assert lazy[name].attrs["units"] == "mm day-1"
        np.testing.assert_array_equal(lazy[name], eager[name])


@pytest.mark.parametrize("factor", [2, 4])
def test_baselines_with_means_kept_have_them(factor):
    """Weighted by area on the sphere, over the wanted cells, as in the coarse level."""
    truth = field(nlat=8, nlon=12).assign_coords(lat=70.0 - 2 * np.arange(8), lon=2.0 * np.arange(12))
    truth = truth.where((truth["lat"] != 68) | (truth["lon"] != 4))
    levels = xdeepsd.make_levels(truth, factors=(factor,))
    coarse, like = (level["precipitation"] for level in levels)
    means = like.mean("time"), coarse.mean("time")
    fields = xdeepsd.baselines(coarse, like, *means)
    for name, da in fields.items():
        wanted = da.where(like.notnull())
        apart = abs(xdeepsd.coarsen(wanted, factor) - coarse) / coarse
        assert (float(apart.max()) < 2e-6) == name.endswith("means kept"), name
        assert float(da.min()) >= 0
        np.testing.assert_array_equal(da.isnull(), fields["bilinear"].isnull())
    given = xdeepsd.baselines(coarse, like.fillna(0), *means, mask=levels[-1]["mask"])
    everywhere = xdeepsd.baselines(coarse, like.fillna(0), *means)
    for name, da in fields.items():
        np.testing.assert_array_equal(given[name], da)
        assert everywhere[name].equals(da) != name.endswith("means kept")


def test_means_are_kept_where_rain_is_missing_or_dry():
    coarse, like = grids()
    coarse = coarse.copy(data=coarse.values)
    coarse[0, 1, 2], coarse[1, 2, 2] = np.nan, 0
    for name, da in xdeepsd.baselines(coarse, like).items():
        assert np.isnan(da[0, 2:4, 4:6]).all()
        assert int(np.isnan(da).sum()) == 4
        if name.endswith("means kept"):
            assert (da[1, 4:6, 4:6] == 0).all(), "a dry coarse cell is dry"
            kept = da.coarsen(lat=2, lon=2).mean()
            np.testing.assert_allclose(kept, coarse, rtol=0.01)  # without areas: two rows differ by 1.5 %
    without = like.where((like["lat"] != like["lat"][0]) | (like["lon"] != like["lon"][0]))
    kept = keep_means(without, coarse, like)  # a cell that is missing, though wanted
    np.testing.assert_array_equal(kept.isnull(), without.isnull() | interpolate(coarse, like).isnull())
    np.testing.assert_allclose(kept.coarsen(lat=2, lon=2).mean(), coarse, rtol=0.01)
    nowhere = like.isel(time=0, drop=True) > np.inf
    for name, da in xdeepsd.baselines(coarse, like, mask=nowhere).items():
        np.testing.assert_array_equal(da, xdeepsd.baselines(coarse, like)[name.removesuffix(", means kept")])


def test_a_dry_climatology_changes_nothing():
    coarse, like = grids()
    dry = like.mean("time") * 0, coarse.mean("time") * 0
    np.testing.assert_array_equal(xdeepsd.climatology_ratio(coarse, like, *dry), interpolate(coarse, like))


def test_significance_is_scipys():
    rng = np.random.default_rng(0)
    reference = rng.normal(1, 0.1, 10)
    errors = reference - 0.05 + rng.normal(0, 0.01, 10)
    found = xdeepsd.significance(errors, reference)
    assert found["relative"] == pytest.approx(errors.mean() / reference.mean())
    assert found["p_wilcoxon"] == stats.wilcoxon(errors, reference).pvalue < 0.01
    assert found["p_mannwhitney"] == stats.mannwhitneyu(errors, reference).pvalue
    assert xdeepsd.significance(reference, reference)["p_wilcoxon"] == 1.0
    assert np.isnan(xdeepsd.significance([1.0], [2.0])["p_wilcoxon"])
    with pytest.raises(ValueError, match="one of each for every seed"):
        xdeepsd.significance([1.0, 2.0], [1.0])
