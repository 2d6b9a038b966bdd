"""Lengths of spells: against a loop over the days of each cell; the same in any chunks."""

from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import xdeepsd
from xdeepsd.models.conserve import cell_weights


def field(values, start="2001-01-01"):
    values = np.asarray(values, np.float64)
    coords = {"time": pd.date_range(start, periods=len(values)), "lat": 60.0 - 10 * np.arange(values.shape[1]),
              "lon": np.arange(values.shape[2]) * 1.0}  # fmt: skip
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


def rain(seed=0, days=90):
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.5, 12, (days, 3, 4)) * (rng.random((days, 3, 4)) < 0.6)
    values[20:23, 1, 1], values[:, 0, 0] = np.nan, np.nan
    return field(values)


def by_hand(da, kind, longest):
    """The area of the spells of each length, cell by cell."""
    area, counts = cell_weights(da["lat"].values, da.sizes["lon"]), np.zeros(longest)
    for i in range(da.sizes["lat"]):
        for j in range(da.sizes["lon"]):
            labels = ["none" if np.isnan(v) else "wet" if v >= 1 else "dry" for v in da.values[:, i, j]]
            for label, run in groupby(labels):
                if label == kind:
                    counts[min(len(list(run)), longest) - 1] += area[i, j]
    return counts / counts.sum()


@pytest.mark.parametrize("chunks", [None, {"time": 7, "lat": 2}])
def test_all_lengths(chunks):
    prediction, truth = rain(1), rain(2)
    lazy = [da.chunk(chunks) if chunks else da for da in (prediction, truth)]
    found = xdeepsd.compare_spells(*lazy, longest=6)
    assert (found["wet_spells"].chunks is not None) == bool(chunks)
    assert found["name"].values.tolist() == ["prediction", "truth"]
    for kind in ("wet", "dry"):
        expected = [by_hand(da, kind, 6) for da in (prediction, truth)]
        np.testing.assert_allclose(found[f"{kind}_spells"], expected)
        lengths = np.arange(1, 7)
        distance = stats.wasserstein_distance(lengths, lengths, *expected)
        assert found[f"{kind}_distance"].values.tolist() == pytest.approx([distance, 0])


def test_ten_days_by_hand():
    ten = np.reshape([1.0, 10, 25, 0, 4, 6, 0.9, 0, 2, 20], (10, 1, 1))
    found = xdeepsd.compare_spells(field(ten), field(ten), longest=4).sel(name="truth")
    assert found["wet_spells"].values.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert found["dry_spells"].values.tolist() == pytest.approx([1 / 2, 1 / 2, 0, 0])
    higher = xdeepsd.compare_spells(field(ten), field(ten), longest=4, wet=5).sel(name="truth")
    assert higher["wet_spells"].values.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])  # 10 and 25; 6; 20


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 5.0, np.nan]), min_size=1, max_size=40), st.integers(1, 9))
def test_chunks_do_not_matter(values, size):
    da = field(np.reshape(values, (-1, 1, 1)))
    eager, lazy = (xdeepsd.compare_spells(one, one, longest=5) for one in (da, da.chunk(time=size)))
    xr.testing.assert_allclose(lazy.compute(), eager)
    total = eager["wet_spells"].sum("length")
    assert total.values[0] == pytest.approx(1) if 5.0 in values else eager["wet_spells"].isnull().all()


def test_days_that_are_left_out_end_a_spell():
    da = field(np.full((20, 1, 1), 5.0))
    da = da.isel(time=[*range(8), *range(10, 20)])
    found = xdeepsd.compare_spells(da.chunk(time=4), da.chunk(time=4), longest=12)["wet_spells"].sel(name="truth")
    assert np.flatnonzero(found.values).tolist() == [7, 9]


def test_spells_of_members_all_count():
    one, other, truth = rain(1), rain(2), rain(3)
    members = xr.concat([one, other], "member")
    found = xdeepsd.compare_spells(members, truth, beside={"other": other}, longest=5)
    assert found["name"].values.tolist() == ["prediction", "other", "truth"]
    assert found["wet_spells"].sel(name="prediction").sum() == pytest.approx(1)


def test_what_is_undefined_or_wrong(no_compute):
    nothing = rain(1) * np.nan
    found = xdeepsd.compare_spells(nothing, rain(2))
    assert found.isnull().all().to_array().all()
    dry = xdeepsd.compare_spells(rain(1) * 0, rain(2) * 0).sel(name="prediction")
    assert dry["wet_distance"].isnull()
    assert float(dry["dry_distance"]) == 0
    with no_compute():
        xdeepsd.compare_spells(rain(1).chunk(time=9), rain(2).chunk(time=9))
    with pytest.raises(ValueError, match="longest is 1; needed"):
        xdeepsd.compare_spells(rain(1), rain(2), longest=1)
    with pytest.raises(ValueError, match=r"Needed: dates"):
        xdeepsd.compare_spells(*[rain(i).assign_coords(time=np.arange(90)) for i in (1, 2)])
