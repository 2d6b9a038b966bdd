"""DenseWeight against KDEpy, denseweight and numpy; invariance; errors; laziness."""

import dataclasses
import json
import pickle
import re
import runpy
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import dask.array as da
import denseweight
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from KDEpy import FFTKDE
from KDEpy.binning import linear_binning as kdepy_binning

import xdeepsd.losses.density
from xdeepsd import DenseWeight
from xdeepsd.losses import histogram as binning
from xdeepsd.losses.histogram import linear_binning, look_up, moments

pytestmark = pytest.mark.filterwarnings("ignore:The grid of the density", "ignore:.* of the training values get")


def _data(name: str, n: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    gamma = rng.gamma(0.8, 8.0, n)
    return {
        "normal": rng.normal(10.0, 3.0, n),
        "gamma": gamma,
        "zero-inflated": np.where(rng.random(n) < 0.74, 0.0, gamma),
        "two-peaked": np.where(rng.random(n) < 0.3, rng.normal(-5.0, 1.0, n), rng.normal(8.0, 2.0, n)),
    }[name]


DATA = ["normal", "gamma", "zero-inflated", "two-peaked"]


# --- Oracles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bandwidth", [None, 0.03, 0.5, 5.0, 40.0])
def test_density_equals_fftkde(name, bandwidth):
    y = _data(name)
    fit = DenseWeight(bandwidth=bandwidth).fit(y)
    h, grid = fit.histogram.bandwidth, fit.histogram.grid
    if bandwidth is None:
        assert h == pytest.approx(1.06 * y.std() * y.size ** (-1 / 5), rel=1e-12)
    expected = FFTKDE(bw=h).fit(y).evaluate(grid)
    assert np.abs(fit.density(grid) - expected).max() < 1e-6 * expected.max()
    # ... and the grid is the one that FFTKDE chooses by itself
    own_grid, own = FFTKDE(bw=h).fit(y).evaluate(4096)
    np.testing.assert_allclose(grid, own_grid, rtol=1e-12, atol=1e-12)
    assert np.abs(fit.histogram.density - own).max() < 1e-6 * own.max()


@pytest.mark.parametrize("grid_points", [16, 100, 1024, 5000])
def test_density_equals_fftkde_on_other_grids(grid_points):
    y = _data("gamma")
    fit = DenseWeight(grid_points=grid_points).fit(y)
    expected = FFTKDE(bw=fit.histogram.bandwidth).fit(y).evaluate(fit.histogram.grid)
    assert fit.histogram.grid.size == grid_points
    assert np.abs(fit.density(fit.histogram.grid) - expected).max() < 1e-6 * expected.max()


def test_density_equals_the_sum_of_kernels():
    # By definition, without binning or FFT: the mean of a Gaussian at every value.
    y = _data("two-peaked", 500)
    fit = DenseWeight().fit(y)
    h, at = fit.histogram.bandwidth, np.linspace(-8.0, 14.0, 50)
    kernels = np.exp(-0.5 * ((at[:, None] - y) / h) ** 2) / (h * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(fit.density(at), kernels.mean(1), atol=1e-4 * fit.histogram.density.max())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", DATA)
def test_weights_equal_denseweight(name, alpha):
    y = _data(name, 5000)
    reference = denseweight.DenseWeight(alpha=alpha)
    of_training = reference.fit(y)
    fit = DenseWeight(alpha=alpha).fit(y)
    # At grid points there is no look-up to the left, so w* is the same. (The grid is the same too.)
    np.testing.assert_allclose(fit.histogram.grid, reference.x, rtol=1e-12, atol=1e-12)
    unscaled = np.maximum(1 - alpha * reference.y_dens_grid, reference.eps)
    np.testing.assert_allclose(fit.weights(reference.x) * fit.mean, unscaled, rtol=1e-9, atol=1e-9)
    # Our table, read as the reference reads it (the value of the grid point to the left), gives its weights.
    grid, on_grid = fit.histogram.grid, fit.weights(fit.histogram.grid) * fit.mean
    left = np.searchsorted(grid, y, side="right") - 1
    np.testing.assert_allclose(on_grid[left] / on_grid[left].mean(), of_training, rtol=1e-8, atol=1e-8)
    # Read with interpolation, it differs by no more than that look-up: by 1e-3 where w* changes by less per step.
    ours, theirs = fit.weights(y) * fit.mean, of_training * reference.mean_w_star
    step = np.abs(on_grid[left + 1] - on_grid[left])
    assert (np.abs(ours - theirs) <= step + 1e-9).all()
    smooth = step < 1e-3 * theirs
    assert smooth.mean() > (0.04 if name != "zero-inflated" or alpha == 0 else 0.01)
    np.testing.assert_allclose(ours[smooth], theirs[smooth], rtol=1e-3)
    # The look-up for every value affects the mean.
    assert fit.mean == pytest.approx(reference.mean_w_star, rel=1e-3 if alpha < 1 else 4e-3)


@pytest.mark.realdata
def test_the_table_of_the_method_page(real_data):
    # docs/method.md, three PRISM days: alpha, share at eps, w(0), w(1), w(5), w(20), w(100), effective sample. Its
    # bandwidth of 0.54 mm is that of a sample of 200,000 of these values.
    days = []
    for day in ("19810101", "19910101", "20110101"):
        with zipfile.ZipFile(real_data / "prism" / f"PRISM_ppt_stable_4kmD2_{day}_bil.zip") as archive:
            name = next(n for n in archive.namelist() if n.endswith(".bil"))
            days.append(np.frombuffer(archive.read(name), "<f4"))
    rain = np.concatenate(days)
    rain = np.where(rain == -9999, np.nan, rain)
    fit = DenseWeight(bandwidth=0.5425).fit(rain)
    assert fit.summary()["n"] == 3 * 481_631
    assert DenseWeight().fit(rain).histogram.bandwidth * (3 * 481_631 / 2e5) ** 0.2 == pytest.approx(0.5425, rel=1e-3)
    assert fit.summary()["zeros_share"] == pytest.approx(0.74, abs=0.005)
    table = [
        (0.5, 0.0, [0.843, 1.45, 1.67, 1.68, 1.68], 0.91),
        (1.0, 0.003, [0.0097, 3.85, 5.20, 5.30, 5.31], 0.21),
        (2.0, 0.81, [6e-6, 2.78, 5.94, 6.19, 6.21], 0.18),
    ]
    for alpha, eps_share, weights, effective in table:
        summary = fit.with_alpha(alpha).summary()
        found = fit.with_alpha(alpha).weights(np.array([0.0, 1.0, 5.0, 20.0, 100.0]))
        np.testing.assert_allclose(found, weights, rtol=0.05, atol=2e-3)
        assert summary["eps_share"] == pytest.approx(eps_share, abs=0.004)
        assert summary["effective_sample"] == pytest.approx(effective, abs=0.005)


# --- The passes -----------------------------------------------------------------------------------------------------

floats = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, np.nan, np.inf, -np.inf])
arrays = hnp.arrays(np.float32, st.integers(0, 3000), elements=floats, fill=floats)


def test_threshold_is_exact_for_float32():
    # float32 holds 0.7 as 0.69999999, which is below 0.7, and 0.1 as 0.10000000149.
    values = np.array([0.1, 0.7, 0.8], np.float32)
    assert [moments(values, threshold).n for threshold in (0.1, 0.7, 0.8)] == [3, 1, 1]
    assert [moments(values.astype(float), threshold).n for threshold in (0.1, 0.7, 0.8)] == [3, 1, 1]
    for threshold in (0.1, 0.7, 0.8):
        assert linear_binning(values, np.linspace(0, 1, 16), threshold).sum() == pytest.approx(
            moments(values, threshold).n
        )


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(binning, "_PIECE", 2)

    def fail(values):
        raise IndexError("no such place")

    with pytest.raises(IndexError, match="no such place"):
        binning._total(np.zeros(100), fail)


@given(values=arrays, threshold=st.just(-np.inf) | st.floats(-10, 10))
@settings(max_examples=50)
def test_moments_equal_numpy(values, threshold):
    found = moments(values, threshold)
    exact = values[np.isfinite(values)].astype(np.float64)
    wet = exact[exact >= threshold]
    assert (found.finite, found.n) == (exact.size, wet.size)
    assert (found.infinite, found.zeros) == (np.isinf(values).sum(), (exact == 0).sum())
    assert found.negative == (wet < 0).sum()
    if wet.size:
        assert (found.minimum, found.maximum) == (wet.min(), wet.max())
        scale = np.abs(wet).max()
        assert found.mean == pytest.approx(wet.mean(), rel=1e-11, abs=1e-12 * scale)
        assert found.squares == pytest.approx(((wet - wet.mean()) ** 2).sum(), rel=1e-9, abs=1e-10 * scale**2)


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 4097, 3_000_001])
def test_linear_binning_equals_kdepy(size):
    y = np.random.default_rng(size).gamma(0.8, 8.0, size)
    grid = np.linspace(-3.0, y.max() + 3.0, 257)
    # a value's place is kept to 2**-28 of a step
    np.testing.assert_allclose(linear_binning(y, grid), size * kdepy_binning(y, grid), rtol=1e-8, atol=4e-9 * size)


def test_passes_skip_what_is_missing_or_beyond_the_grid():
    grid = np.arange(4.0)
    values = np.array([np.nan, np.inf, -np.inf, -0.5, 3.5, 1e300, 0.25, 3.0])
    np.testing.assert_array_equal(linear_binning(values, grid), [0.75, 0.25, 0, 1])
    np.testing.assert_array_equal(linear_binning(values[:0], grid), 0)


def test_look_up_equals_numpy():
    grid, table = np.linspace(-1.0, 5.0, 77), np.random.default_rng(0).random(77)
    values = np.random.default_rng(1).uniform(-3.0, 7.0, (40, 50))
    np.testing.assert_allclose(look_up(values, grid, table), np.interp(values, grid, table), rtol=1e-12, atol=1e-14)


def test_a_shift_of_a_billion_keeps_the_spread():
    # Without a shift, sums of squares would lose all their digits.
    y = 1e9 + np.arange(10_000.0)
    found = moments(y)
    assert np.sqrt(found.squares / found.n) == pytest.approx(y.std(), rel=1e-12)


def test_many_values_of_one_chunk_are_counted_exactly():
    # float32 sums stop at 2**24
    y = np.zeros(2**24 + 3, np.float32)
    y[-1] = 1.0
    found = moments(y)
    assert found.n == y.size
    assert found.mean * y.size == pytest.approx(1.0, rel=1e-9)
    counts = linear_binning(y, np.array([0.0, 1.0, 2.0]))
    assert counts.tolist() == [y.size - 1, 1, 0]


# --- Invariance -----------------------------------------------------------------------------------------------------


def _same_fit(a: DenseWeight, b: DenseWeight, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(a.histogram.counts, b.histogram.counts, rtol=rtol, atol=1e-7 * a.histogram.n)
    assert a.histogram.bandwidth == pytest.approx(b.histogram.bandwidth, rel=1e-12)
    np.testing.assert_allclose(a.weights(a.histogram.grid), b.weights(a.histogram.grid), rtol=1e-7, atol=1e-9)


@given(
    chunks=st.tuples(st.integers(1, 30), st.integers(7, 25), st.integers(5, 20)),
    transform=st.sampled_from([None, "log1p", "sqrt"]),
    wet_threshold=st.sampled_from([None, 0.1, 2.0]),
    seed=st.integers(0, 5),
)
@settings(max_examples=25)
def test_invariant_to_chunks_order_and_dtype(chunks, transform, wet_threshold, seed):
    rng = np.random.default_rng(seed)
    rain = np.where(rng.random((30, 25, 20)) < 0.6, 0.0, rng.gamma(0.8, 8.0, (30, 25, 20))).astype(np.float32)
    rain[:, :3] = np.nan
    dw = DenseWeight(alpha=0.7, transform=transform, wet_threshold=wet_threshold)
    reference = dw.fit(rain)
    lazy = xr.DataArray(da.from_array(rain, chunks=chunks), dims=("time", "lat", "lon"))
    _same_fit(reference, dw.fit(lazy))
    _same_fit(reference, dw.fit(rng.permutation(rain.ravel())))
    _same_fit(reference, dw.fit(rain.astype(np.float64)))
    _same_fit(reference, dw.fit(rain.T))
    _same_fit(reference, dw.fit(np.asfortranarray(rain).astype(">f4")))
    _same_fit(reference, dw.fit(np.ma.masked_invalid(rain)))


def test_integers_and_half_precision():
    y = np.random.default_rng(0).poisson(3.0, (50, 40))
    reference = DenseWeight().fit(y.astype(np.float64))
    for dtype in (np.int16, np.uint8, np.int64, np.float16):
        _same_fit(reference, DenseWeight().fit(y.astype(dtype)))


def test_threads_on_a_large_array_equal_chunks():
    y = np.random.default_rng(0).gamma(0.8, 8.0, 3_000_000).astype(np.float32)
    y[::7] = np.nan
    whole = DenseWeight().fit(y)
    _same_fit(whole, DenseWeight().fit(da.from_array(y, chunks=250_000)))
    assert whole.histogram.n == np.isfinite(y).sum()
    assert whole.histogram.counts.sum() == pytest.approx(whole.histogram.n, rel=1e-12)


@pytest.mark.parametrize("factor", [1 / 86400, 1 / 25.4, 1e-8, 1e6])
def test_units_do_not_matter(factor):
    # FFTKDE cuts its kernel at a density of 1e-4 per unit: it fails far from a bandwidth of 1. Ours is kept in bounds.
    y = _data("gamma", 3000)
    dw = DenseWeight(alpha=0.9)
    np.testing.assert_allclose(dw.fit(y * factor).weights(y * factor), dw.fit(y).weights(y), rtol=0.02)


# --- Properties of the weights --------------------------------------------------------------------------------------

samples = hnp.arrays(
    np.float64,
    st.integers(2, 200),
    elements=st.floats(0, 300, width=32) | st.sampled_from([0.0, 0.0, 0.254, np.nan]),
)


def _varied(y: np.ndarray) -> bool:
    finite = y[np.isfinite(y)]
    return finite.size > 1 and np.ptp(finite) > 1e-3


@given(y=samples, alpha=st.floats(0, 1), transform=st.sampled_from([None, "log1p", "sqrt"]))
@settings(max_examples=150)
def test_training_mean_is_one(y, alpha, transform):
    assume(_varied(y))
    fit = DenseWeight(alpha=alpha, transform=transform, eps=1e-9).fit(y)
    w = fit.weights(y)
    assert w[np.isfinite(y)].mean() == pytest.approx(1.0, abs=1e-6)
    assert (w[np.isnan(y)] == 0).all()
    assert (w[np.isfinite(y)] > 0).all()


@given(y=samples, alpha=st.floats(1, 4))
@settings(max_examples=150)
def test_training_mean_is_one_above_alpha_one_within_the_grid(y, alpha):
    assume(_varied(y))
    fit = DenseWeight(alpha=alpha).fit(y)
    # It is not linear only between grid points where w* meets eps: there it is off by at most a quarter of its step.
    unscaled = fit.weights(fit.histogram.grid)
    lowest, next_ = np.minimum(unscaled[1:], unscaled[:-1]), np.maximum(unscaled[1:], unscaled[:-1])
    corner = (lowest <= fit.eps / fit.mean * 1.001) & (next_ > lowest)
    bound = np.max(next_ - lowest, where=corner, initial=0.0)
    assert abs(fit.weights(y)[np.isfinite(y)].mean() - 1.0) <= bound + 1e-6


@given(y=samples, wet_threshold=st.floats(0.1, 50))
@settings(max_examples=100)
def test_dry_values_have_unscaled_weight_one(y, wet_threshold):
    finite = y[np.isfinite(y)]
    wet = finite[finite >= wet_threshold]
    assume(wet.size > 1 and np.ptp(wet) > 1e-3)
    fit = DenseWeight(alpha=0.8, wet_threshold=wet_threshold).fit(y)
    w = fit.weights(finite)
    assert w.mean() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(w[finite < wet_threshold], 1 / fit.mean, rtol=1e-12)
    assert fit.histogram.bandwidth == pytest.approx(1.06 * wet.std() * wet.size**-0.2, rel=1e-6)
    _, expected = FFTKDE(bw=fit.histogram.bandwidth).fit(wet).evaluate(4096)
    if 1e-3 < fit.histogram.bandwidth < 40:
        assert np.abs(fit.histogram.density - expected).max() < 1e-6 * expected.max()


@given(y=samples, alpha=st.floats(0, 4), queries=hnp.arrays(np.float64, 300, elements=st.floats(-50, 400)))
@settings(max_examples=100)
def test_weights_do_not_increase_with_density(y, alpha, queries):
    assume(_varied(y))
    fit = DenseWeight(alpha=alpha).fit(y)
    density, w = fit.density(queries), fit.weights(queries)
    order = np.argsort(density)
    assert (np.diff(w[order]) <= 1e-9 * w.max()).all()
    assert (w >= fit.eps / fit.mean * (1 - 1e-12)).all()


@given(y=samples, wet_threshold=st.none() | st.floats(0, 5), transform=st.sampled_from([None, "log1p", "sqrt"]))
@settings(max_examples=100)
def test_alpha_zero_gives_exactly_one(y, wet_threshold, transform):
    wet = y[np.isfinite(y) & (y >= (-np.inf if wet_threshold is None else wet_threshold))]
    assume(_varied(wet))
    fit = DenseWeight(alpha=0.0, wet_threshold=wet_threshold, transform=transform).fit(y)
    assert (fit.weights(y[np.isfinite(y)]) == 1.0).all()
    assert (fit.weights(np.array([-3.0, 0.0, 1e9])) == 1.0).all()


def test_the_mode_gets_eps_at_alpha_one():
    y = _data("normal")
    fit = DenseWeight(alpha=1.0).fit(y)
    w = fit.weights(fit.histogram.grid)
    assert w.min() == pytest.approx(1e-6 / fit.mean)
    assert fit.histogram.grid[w.argmin()] == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize("transform", ["log1p", "sqrt"])
def test_transform_is_the_density_of_transformed_values(transform):
    y = _data("zero-inflated")
    plain = DenseWeight(alpha=0.9).fit(getattr(np, transform)(y))
    fit = DenseWeight(alpha=0.9, transform=transform).fit(y)
    at = np.array([0.0, 0.3, 5.0, 100.0])
    np.testing.assert_allclose(fit.weights(at), plain.weights(getattr(np, transform)(at)), rtol=1e-9)
    np.testing.assert_allclose(fit.density(at), plain.density(getattr(np, transform)(at)), rtol=1e-9, atol=1e-15)
    # its purpose: 5 mm and 100 mm differ
    raw = DenseWeight(alpha=0.9).fit(y).weights(at)
    w = fit.weights(at)
    assert w[3] / w[2] > raw[3] / raw[2]
    # a small negative rate (interpolation) counts as 0
    assert fit.weights(np.array([-1e-7]))[0] == fit.weights(np.array([0.0]))[0]


# --- What a user gets -----------------------------------------------------------------------------------------------


def _map(lazy: bool = False) -> xr.DataArray:
    rain = np.random.default_rng(0).gamma(0.8, 8.0, (6, 4, 5)).astype(np.float32)
    rain[:, 0] = np.nan
    return xr.DataArray(
        da.from_array(rain, chunks=(2, 4, 5)) if lazy else rain,
        dims=("time", "lat", "lon"),
        coords={"lat": np.arange(4.0), "lon": np.arange(5.0)},
        name="ppt",
        attrs={"units": "mm day-1", "standard_name": "precipitation"},
    )


def test_weights_are_lazy_and_keep_coordinates(no_compute):
    lazy = _map(lazy=True)
    fit = DenseWeight().fit(lazy)
    with no_compute():
        w, p = fit.weights(lazy), fit.density(lazy)
    assert isinstance(w.data, da.Array)
    assert w.chunks == p.chunks == lazy.chunks
    assert w.dtype == np.float32
    assert w.attrs == {"long_name": "DenseWeight", "units": "1"}
    xr.testing.assert_equal(w.lat, lazy.lat)
    eager = fit.weights(_map())
    assert isinstance(eager.data, np.ndarray)
    xr.testing.assert_identical(w.compute(), eager)
    assert (eager.isel(lat=0) == 0).all()
    assert (eager.isel(lat=slice(1, None)) > 0).all()
    xr.testing.assert_identical(p.compute(), fit.density(_map()))
    assert p.isel(lat=0).isnull().all()


def test_packed_encoding_is_not_passed_on():
    packed = _map()
    packed.encoding = {"dtype": "uint16", "scale_factor": 0.1}
    assert DenseWeight().fit(packed).weights(packed).encoding == {}


def test_kinds_of_input():
    fit = DenseWeight().fit([0.0, 0.0, 1.0, 2.0])
    assert fit.weights(1.0).shape == ()
    assert fit.weights([0.0, 2.0]).shape == (2,)
    assert fit.weights(np.array([[1, 2], [3, 4]])).dtype == np.float64
    assert fit.weights(np.array([1, 2], np.float16)).dtype == np.float32
    assert fit.weights(np.ma.masked_equal([0.0, 9.0], 9.0)).tolist()[1] == 0.0
    np.testing.assert_array_equal(fit.weights(np.array([np.inf, -np.inf])), fit.weights(np.array([1e9, -1e9])))


def test_dask_array_of_any_shape_is_reduced_over_chunks():
    y = np.random.default_rng(0).gamma(0.8, 8.0, 4096)
    reference = DenseWeight().fit(y)
    for shape, chunks in [((4096,), 100), ((64, 64), (64, 1)), ((2, 4, 8, 64), (1, 2, 3, 64))]:
        _same_fit(reference, DenseWeight().fit(da.from_array(y.reshape(shape), chunks=chunks)))
    unknown = da.from_array(y, chunks=1000)
    _same_fit(reference, DenseWeight().fit(unknown[unknown >= 0]))


def test_fit_reads_each_chunk_twice():
    read = []

    def block(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.random.default_rng(len(block_info)).random((10, 10)).astype(np.float32)

    lazy = da.map_blocks(block, chunks=((10,) * 8, (10,) * 4), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    DenseWeight().fit(lazy)
    assert len(read) == 2 * 32
    assert set(read) == {(i, j) for i in range(8) for j in range(4)}


def test_fit_leaves_the_old_object_as_it_was():
    dw = DenseWeight(alpha=0.5)
    first = dw.fit(_data("normal"))
    second = first.fit(_data("gamma"))
    assert dw.histogram is None
    assert first.histogram is not second.histogram
    _same_fit(second, DenseWeight(alpha=0.5).fit(_data("gamma")))
    with pytest.raises(AttributeError):
        first.alpha = 2.0
    with pytest.raises(ValueError, match="read-only"):
        first.histogram.counts[0] = 1.0


def test_with_alpha_needs_no_second_pass(monkeypatch):
    fit = DenseWeight(alpha=1.0).fit(_data("gamma"))
    monkeypatch.setattr(xdeepsd.losses.density, "moments", None)
    monkeypatch.setattr(xdeepsd.losses.density, "linear_binning", None)
    other = fit.with_alpha(2.0)
    assert other.histogram is fit.histogram
    monkeypatch.undo()
    at = np.linspace(0, 50, 20)
    np.testing.assert_array_equal(other.weights(at), DenseWeight(alpha=2.0).fit(_data("gamma")).weights(at))
    assert DenseWeight().with_alpha(0.5).alpha == 0.5


@pytest.mark.parametrize("dw", [DenseWeight(), DenseWeight(0.7, 0.4, 512, 1e-5, 0.1, "log1p")])
def test_round_trip_through_json_and_pickle(dw):
    y = _data("zero-inflated")
    for fit in (dw, dw.fit(y)):
        for again in (
            DenseWeight.from_dict(json.loads(json.dumps(fit.to_dict()))),
            pickle.loads(pickle.dumps(fit)),
        ):
            assert again.to_dict() == fit.to_dict()
            if fit.histogram is not None:
                np.testing.assert_array_equal(again.weights(y), fit.weights(y))
                assert again.summary() == fit.summary()


def test_from_dict_names_missing_keys():
    with pytest.raises(ValueError, match=r"from the keys \['alpha'\]; needed: \['alpha', 'bandwidth'"):
        DenseWeight.from_dict({"alpha": 1.0})


@pytest.mark.parametrize("wet_threshold", [None, 0.5])
def test_summary_equals_the_weights_of_the_training_values(wet_threshold):
    y = _data("zero-inflated")
    y[::50] = np.nan
    fit = DenseWeight(alpha=0.8, wet_threshold=wet_threshold).fit(y)
    summary = fit.summary()
    json.dumps(summary)
    finite = y[np.isfinite(y)]
    w = fit.weights(finite)
    assert summary["n"] == finite.size
    assert summary["zeros_share"] == (finite == 0).mean()
    assert summary["effective_sample"] == pytest.approx(w.sum() ** 2 / (w.size * (w**2).sum()), rel=1e-4)
    assert summary["eps_share"] == (w <= fit.eps / fit.mean).mean() == 0
    wet = finite if wet_threshold is None else finite[finite >= wet_threshold]
    assert summary["dry_share"] == pytest.approx(1 - wet.size / finite.size)
    for tenth in range(1, 10):
        at = summary["weights"][f"{tenth}0%"]
        assert at["value"] == pytest.approx(np.quantile(wet, tenth / 10), abs=2 * summary["grid_step"])
        assert at["weight"] == fit.weights(at["value"])
    assert summary["weights"]["maximum"]["value"] == wet.max()
    if wet_threshold is None:
        assert summary["weights"]["10%"]["value"] == 0.0
        assert "dry_weight" not in summary
    else:
        assert summary["dry_weight"] == pytest.approx(fit.weights(0.0))


def test_warns_where_most_values_get_eps():
    y = _data("zero-inflated")
    with pytest.warns(
        UserWarning, match=r"of the training values get the least weight, eps=1e-06, with alpha=2"
    ) as seen:
        fit = DenseWeight(alpha=2.0).fit(y)
    assert fit.summary()["eps_share"] > 0.7
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="alpha=3: they hardly count in the loss. Type a lower alpha") as seen:
        fit.with_alpha(3.0)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DenseWeight(alpha=2.0, wet_threshold=0.1, transform="log1p").fit(y)


def test_warns_where_the_grid_is_coarser_than_the_bandwidth():
    with pytest.warns(UserWarning, match=r"step of .*, wider than the bandwidth .* DenseWeight\(grid_points=") as seen:
        DenseWeight(grid_points=64).fit(_data("zero-inflated"))
    enough = int(str(seen[0].message).partition("grid_points=")[2].partition(")")[0])
    assert DenseWeight(grid_points=enough).fit(_data("zero-inflated")).histogram.counts.size == enough < 256


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -0.1}, "alpha is -0.1; needed: a number of at least 0, such as alpha=1.0"),
        ({"alpha": np.nan}, "alpha is nan; needed"),
        ({"alpha": np.inf}, "alpha is inf; needed"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0; needed: a number above 0 .* or bandwidth=None"),
        ({"bandwidth": -1}, "bandwidth is -1; needed"),
        ({"bandwidth": np.nan}, "bandwidth is nan; needed"),
        ({"grid_points": 15}, "grid_points is 15; needed: a whole number of at least 16"),
        ({"grid_points": 100.5}, "grid_points is 100.5; needed: a whole number"),
        ({"eps": 0.0}, "eps is 0.0; needed: a number between 0 and 1"),
        ({"eps": 1.0}, "eps is 1.0; needed"),
        ({"eps": np.nan}, "eps is nan; needed"),
        ({"wet_threshold": np.nan}, "wet_threshold is nan; needed: a finite number in the units of the values"),
        ({"transform": "log"}, "transform is 'log'; needed: one of None, 'sqrt', 'log1p'"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DenseWeight(**parameters)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("values", "parameters", "message"),
    [
        ([np.nan, np.nan], {}, r"No value is finite: nothing to fit. .*Check the mask in values.where\(mask\)"),
        ([], {}, "No value is finite"),
        ([3.5, 3.5, np.nan], {}, "All 2 finite values are 3.5: one value has no density"),
        (
            [1.0, np.inf, -np.inf, np.nan],
            {},
            r"2 values are infinite, 1 finite. .*values.where\(np.isfinite\(values\)\)",
        ),
        (
            [0.0, 0.01, np.nan],
            {"wet_threshold": 0.1},
            "All 2 finite values are below wet_threshold=0.1. .*lower wet_thr",
        ),
        ([0.0, 5.0, 5.0], {"wet_threshold": 0.1, "transform": "log1p"}, "All 2 wet values are 5: one value has no"),
        ([-1.0, 2.0, 3.0], {"transform": "log1p"}, r"1 of 3 values are negative. .*'log1p'.*values.clip\(min=0\)"),
        ([-1.0, 2.0, 3.0], {"transform": "sqrt"}, "1 of 3 values are negative"),
        ([1e-320, 2e-320], {}, "float64 cannot resolve their density"),
        ([1e300, -1e300], {}, "float64 cannot resolve their density"),
        ([1e16, 1e16 + 2], {}, "float64 cannot resolve their density"),
        (np.array(["a", "b"]), {}, r"values of dtype <U1. Needed: real numbers. Type values.astype\('float32'\)"),
        (np.array([1j, 2j]), {}, "values of dtype complex128"),
    ],
)
def test_bad_values(values, parameters, message, lazy):
    values = np.array(values)
    with pytest.raises(ValueError, match=message):
        DenseWeight(**parameters).fit(da.from_array(values, chunks=2) if lazy else values)


def test_a_dataset_is_refused_by_name():
    with pytest.raises(ValueError, match=r"got a Dataset with the variables \['ppt'\]. .*Type ds\['NAME'\]"):
        DenseWeight().fit(_map().to_dataset())


def test_values_that_change_between_the_passes():
    calls = []

    def block(block):
        calls.append(1)
        return block * 1e3 ** len(calls)

    changing = da.from_array(_data("gamma"), chunks=-1).map_blocks(block, dtype=float, meta=np.empty(0))
    with pytest.raises(ValueError, match=r"they changed in between\. Needed: values that do not change"):
        DenseWeight().fit(changing)


@pytest.mark.parametrize("ask", [lambda d: d.weights([1.0]), lambda d: d.density([1.0]), lambda d: d.summary()])
def test_before_fit(ask):
    with pytest.raises(
        ValueError, match=r"has seen no data. Needed: training values. Type dw = dw.fit\(values\) first"
    ):
        ask(DenseWeight())


# --- Where it runs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_cluster_of_processes():
    from distributed import Client, LocalCluster

    y = np.random.default_rng(0).gamma(0.8, 8.0, (40, 100)).astype(np.float32)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        lazy = da.from_array(y, chunks=(5, 100))
        fit = DenseWeight().fit(lazy)
        w = fit.weights(lazy).compute()
    _same_fit(fit, DenseWeight().fit(y))
    np.testing.assert_array_equal(w, fit.weights(y))


@pytest.mark.slow
def test_runs_where_no_folder_can_be_written():
    # A read-only image without a home folder: numba has nowhere to store compiled code, but the import must not fail.
    code = (
        "from numba.core import caching\n"
        "class Nowhere:\n"
        "    @classmethod\n"
        "    def from_function(cls, *a): return None\n"
        "caching.Nowhere = Nowhere\n"
        "from numba.core import config; config.CACHE_LOCATOR_CLASSES = 'Nowhere'\n"
        "import runpy, sys, numpy as np\n"
        "moments = runpy.run_path(sys.argv[1])['moments']\n"  # on its own: importing all of xdeepsd takes longer
        "assert moments(np.array([1.0, 3.0])).mean == 2.0\n"
    )
    module = Path(__file__).resolve().parents[2] / "xdeepsd" / "losses" / "histogram.py"
    subprocess.run([sys.executable, "-c", code, str(module)], check=True, timeout=300)


@pytest.mark.slow
def test_the_howto_runs(tmp_path):
    folder = Path(__file__).resolve().parents[2] / "docs" / "howto"
    page = (folder / "denseloss.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    runpy.run_path(str(folder / "denseloss.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"img/(\w+\.png)", page))
    assert drawn == {path.name for path in (folder / "img").glob("denseloss*")}


# --- the cap ----------------------------------------------------------------------------------------------------------


@given(
    y=samples.map(lambda y: y[np.isfinite(y)]), alpha=st.floats(0, 1), cap=st.floats(1.05, 20),
    wet_threshold=st.sampled_from([None, 0.1]), transform=st.sampled_from([None, "log1p", "sqrt"]),
)  # fmt: skip
@settings(max_examples=40)
def test_the_cap_is_the_largest_weight_over_the_mean_weight(y, alpha, cap, wet_threshold, transform):
    free = DenseWeight(alpha=alpha, wet_threshold=wet_threshold, transform=transform, eps=1e-9)
    assume(_varied(y[y >= (wet_threshold or 0.0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = free.fit(y)
    capped = dataclasses.replace(free, weight_cap=cap)
    at = np.concatenate([y, np.linspace(0, 2 * y.max(), 500)])
    weights = capped.weights(at)
    assert weights.max() <= cap * (1 + 1e-9)
    assert capped.weights(y).mean() == pytest.approx(1, rel=2e-3)
    # What is not cut keeps its proportions, and nothing is cut where nothing is too large.
    below = free.weights(at) * free.mean < capped.top * (1 - 1e-9)
    np.testing.assert_allclose(weights[below] * capped.mean, free.weights(at)[below] * free.mean, rtol=1e-9)
    if 1 / free.mean <= cap:
        np.testing.assert_array_equal(weights, free.weights(at))
    elif not below.all():
        assert weights.max() == pytest.approx(cap, rel=1e-6)


def test_a_cap_below_the_mean_is_refused_and_older_fits_have_none():
    for cap in (1.0, 0.5, np.nan):
        with pytest.raises(ValueError, match=r"weight_cap is .*; needed: a number above 1"):
            DenseWeight(weight_cap=cap)
    content = DenseWeight(alpha=0.5).fit(_data("gamma")).to_dict()
    del content["weight_cap"]
    assert DenseWeight.from_dict(content).weight_cap is None
