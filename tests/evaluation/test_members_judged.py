"""CRPS, rank histogram and spread of members: against their definitions, for ensembles known to be reliable."""

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from xdeepsd.evaluation.members import crps, rank_histogram, spread_skill


def ensemble(members=10, shape=(20, 12, 15), spread=1.0, seed=0):
    """Truth and members from one distribution around a signal; ``spread`` makes the members too narrow or wide."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=shape)
    dims = ("time", "lat", "lon")
    coords = {dim: np.arange(n) for dim, n in zip(dims, shape, strict=True)}
    truth = xr.DataArray(signal + rng.normal(size=shape), coords, dims, attrs={"units": "mm day-1"})
    drawn = signal + spread * rng.normal(size=(members, *shape))
    return xr.DataArray(drawn, {"member": np.arange(members)} | coords, ("member", *dims)), truth


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 100, width=32)), st.data())
def test_crps_is_its_definition(x, data):
    y = data.draw(hnp.arrays(np.float32, 4, elements=st.floats(0, 100, width=32)))
    found = crps(xr.DataArray(x, dims=("member", "lon")), xr.DataArray(y, dims="lon"))
    x, y = x.astype(float), y.astype(float)
    pairs = sum(abs(x[i] - x[j]) for i in range(5) for j in range(5)) / (2 * 5 * 4)
    np.testing.assert_allclose(found.values, abs(x - y).mean(0) - pairs, atol=1e-9)


def test_crps_of_a_normal_distribution():
    """Gneiting and Raftery (2007), equation 21, whatever the number of members."""
    rng = np.random.default_rng(0)
    for count in (2, 5, 30):
        x = xr.DataArray(rng.normal(0, 2, (count, 100_000)), dims=("member", "time"))
        z = 0.7 / 2
        expected = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
        assert float(crps(x, xr.full_like(x[0], 0.7)).mean()) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("spread", "ratio"), [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0)])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_spread_skill_of_known_ensembles(spread, ratio, count):
    members, truth = ensemble(count, spread=spread)
    found = spread_skill(members, truth)
    # The error of the mean of few members: their own noise comes to that of the truth.
    expected = spread * np.sqrt(1 + 1 / count) / np.sqrt(1 + spread**2 / count)
    assert found["ratio"] == pytest.approx(expected, rel=0.05)
    assert found["rmse"] == pytest.approx(float(((members.mean("member") - truth) ** 2).mean() ** 0.5))
    assert found["mae"] == pytest.approx(float(abs(members.mean("member") - truth).mean()))
    assert found["crps"] == pytest.approx(float(crps(members, truth).mean()))
    if spread == 1:
        assert found["ratio"] == pytest.approx(ratio, rel=0.05)


def test_rank_histogram():
    members, truth = ensemble(9, shape=(50, 20, 20))
    flat = rank_histogram(members, truth)
    assert flat.sizes == {"rank": 10}
    assert float(flat.sum()) == truth.size
    assert stats.chisquare(flat.values).pvalue > 1e-3
    narrow = rank_histogram(*ensemble(9, spread=0.3))
    assert narrow[0] + narrow[-1] > 3 * narrow[1:-1].mean()
    wide = rank_histogram(*ensemble(9, spread=3.0))
    assert wide[0] + wide[-1] < wide[4]


def test_ranks_of_dry_days_are_shared_out():
    members = xr.DataArray([[0.0, 0.0, 3.0], [0.0, 1.0, 4.0]], dims=("member", "time"))
    found = rank_histogram(members, xr.DataArray([0.0, 0.0, 5.0], dims="time"))
    np.testing.assert_allclose(found, [1 / 3 + 1 / 2, 1 / 3 + 1 / 2, 1 / 3 + 1])


def test_missing_values_are_left_out():
    members, truth = ensemble()
    gone = truth.where(truth["lon"] > 3)
    kept = members.where(members["lat"] < 8)
    both = gone.where(gone["lat"] < 8)
    inner = {"lon": slice(4, None), "lat": slice(0, 8)}
    expected = spread_skill(members.isel(inner), truth.isel(inner))
    assert spread_skill(kept, gone) == pytest.approx(expected)
    assert crps(kept, gone).isnull().equals(both.isnull())
    whole = rank_histogram(members.isel(inner), truth.isel(inner))
    xr.testing.assert_allclose(rank_histogram(kept, gone), whole)


@pytest.mark.parametrize("chunks", [{"time": 7}, {"time": 7, "lat": 5, "member": 1}])
def test_lazy_is_eager(chunks, no_compute):
    members, truth = ensemble()
    lazy = members.chunk(chunks), truth.chunk({k: v for k, v in chunks.items() if k != "member"})
    with no_compute():
        score = crps(*lazy)
    assert dask.is_dask_collection(score.data)
    assert score.attrs == {"units": "mm day-1"}
    np.testing.assert_allclose(score.values, crps(members, truth).values)
    xr.testing.assert_allclose(rank_histogram(*lazy), rank_histogram(members, truth))
    xr.testing.assert_allclose(rank_histogram(lazy[0], truth), rank_histogram(members, truth))
    assert spread_skill(*lazy) == pytest.approx(spread_skill(members, truth))


def test_other_names_and_orders():
    members, truth = ensemble()
    turned = members.rename(member="realization").transpose("lat", "realization", "lon", "time")
    np.testing.assert_allclose(crps(turned, truth, "realization"), crps(members, truth))
    xr.testing.assert_allclose(rank_histogram(turned, truth, "realization"), rank_histogram(members, truth))


def test_bad_input():
    members, truth = ensemble()
    for wrong in ((members[:1], truth), (truth, truth), (members, members)):
        with pytest.raises(ValueError, match=r"Needed: two or more along 'member'.*Type ds.deepsd.downscale"):
            crps(*wrong)
    with pytest.raises(ValueError, match=r"coordinates of the members are not those.*assign_coords"):
        spread_skill(members.assign_coords(lat=members["lat"] + 1e-9), truth)
