"""Coarse means kept: the compiled form against a plain version in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeepsd.inference.fast.conserve import conserve
from xdeepsd.models.conserve import KINDS as ALL

KINDS = ALL[1:]


def plainly(fine, coarse, weights, factor, kind):
    """The definition, block by block, in float64."""
    out = fine.astype(np.float64)
    for day, i, j in np.ndindex(coarse.shape):
        block = (slice(factor * i, factor * (i + 1)), slice(factor * j, factor * (j + 1)))
        y, w, x = out[day][block], weights[block].astype(np.float64), max(float(coarse[day, i, j]), 0.0)
        counts = w > 0
        if kind == "softmax":
            y[~counts] = x
        if not counts.any():
            continue
        if kind == "softmax":
            y[counts] = np.exp(y[counts] - y[counts].max())
        if kind == "additive":
            y[counts] = np.maximum(y[counts] + (x - np.average(y, weights=w)), 0.0)
        mean = np.average(y[counts], weights=w[counts])
        y[counts] = x if mean <= 1e-9 * x else y[counts] / mean * x
    return out


def block_means(fine, weights, factor):
    """Weighted means of the blocks; NaN where nothing counts."""
    days, lat, lon = fine.shape
    w = weights.astype(np.float64).reshape(lat // factor, factor, lon // factor, factor)
    values = fine.astype(np.float64).reshape(days, *w.shape)
    with np.errstate(invalid="ignore"):
        return (values * w).sum(axis=(2, 4)) / w.sum(axis=(1, 3))


def make_case(seed, factor, days, lat, lon, kind, dtype, none, dry, scale):
    """Rain, or raw network output; some cells do not count and some count for little."""
    rng = np.random.default_rng(seed)
    fine = rng.gamma(0.4, 8.0 * scale, (days, factor * lat, factor * lon))
    fine[rng.random(fine.shape) < dry] = 0.0
    if kind == "softmax":
        fine = rng.normal(0, 10 ** rng.uniform(-2, 2), fine.shape)
    coarse = rng.gamma(0.4, 8.0, (days, lat, lon))
    coarse[rng.random(coarse.shape) < 0.2] = 0.0
    coarse[rng.random(coarse.shape) < 0.05] *= -1
    weights = np.cos(np.deg2rad(rng.uniform(-89, 89, (factor * lat, 1)))) * rng.random((factor * lat, factor * lon))
    weights[rng.random(weights.shape) < none] = 0.0
    return fine.astype(np.float32), coarse.astype(np.float32), weights.astype(dtype)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    factor=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 12)),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["f4", "f8"]),
    none=st.sampled_from([0.0, 0.3, 0.9]),
    dry=st.sampled_from([0.0, 0.5, 0.97]),
    scale=st.sampled_from([1.0, 1e-6, 1e-30]),
)
def test_against_the_plain_statement(seed, factor, shape, kind, dtype, none, dry, scale):
    fine, coarse, weights = make_case(seed, factor, *shape, kind, dtype, none, dry, scale)
    expected = plainly(fine, coarse, weights, factor, kind)
    got = fine.copy()
    assert conserve(got, coarse, weights, factor, kind) is None
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-12)

    kept = np.isfinite(block_means(got, weights, factor))
    x = np.maximum(coarse, 0)
    np.testing.assert_allclose(block_means(got, weights, factor)[kept], x[kept], rtol=1e-6)
    counts = np.broadcast_to(weights > 0, got.shape)
    wet = np.broadcast_to(x.repeat(factor, 1).repeat(factor, 2) > 0, got.shape)
    assert (got[counts & ~wet] == 0).all(), "a dry coarse cell has dry fine ones"
    if kind == "multiplicative":
        assert (got[counts & wet & (fine > 0)] > 0).all(), "positive stays positive"
    if kind == "softmax":
        np.testing.assert_array_equal(got[~counts], x.repeat(factor, 1).repeat(factor, 2)[~counts])
        assert (got >= 0).all()
    else:
        np.testing.assert_array_equal(got[~counts], fine[~counts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [2, 3])
def test_the_same_bits_however_it_is_cut(kind, factor):
    """A single day, any part of the map, and read-only arrays such as Dask passes."""
    fine, coarse, weights = make_case(3, factor, 4, 7, 37, kind, "f8", 0.2, 0.4, 1.0)
    whole = fine.copy()
    conserve(whole, coarse, weights, factor, kind)
    for days, rows, columns in [
        (slice(2, 3), slice(0, 7), slice(0, 37)), (slice(0, 4), slice(2, 5), slice(0, 37)),
        (slice(1, 4), slice(6, 7), slice(3, 20)), (slice(0, 4), slice(0, 7), slice(36, 37)),
    ]:  # fmt: skip
        cells = (slice(rows.start * factor, rows.stop * factor), slice(columns.start * factor, columns.stop * factor))
        part, given, weight = fine[days][:, *cells].copy(), coarse[days, rows, columns].copy(), weights[cells].copy()
        given.flags.writeable = weight.flags.writeable = False
        conserve(part, given, weight, factor, kind)
        np.testing.assert_array_equal(part, whole[days][:, *cells])
        in_place = fine.copy()
        conserve(in_place[days][:, *cells], given, weight, factor, kind)
        np.testing.assert_array_equal(in_place[days][:, *cells], part)


def test_numbers_by_hand():
    weights = np.array([[1.0, 1.0], [1.0, 1.0]])

    def kept(values, x, kind, weights=weights):
        fine = np.array([values], np.float32)
        conserve(fine, np.array([[[x]]], np.float32), weights, 2, kind)
        return fine[0].tolist()

    assert kept([[1, 2], [3, 2]], 4, "multiplicative") == [[2, 4], [6, 4]]
    assert kept([[0, 0], [0, 0]], 4, "multiplicative") == [[4, 4], [4, 4]]
    assert kept([[0, 0], [0, 0]], 4, "additive") == [[4, 4], [4, 4]]
    assert kept([[1, 2], [3, 2]], 0, "additive") == [[0, 0], [0, 0]]
    assert kept([[1, 2], [3, 2]], 3, "additive") == [[2, 3], [4, 3]]
    # Shifted by -2: 0, 0, 0 and 6 after clipping, mean 1.5, which has to be 1.
    assert kept([[1, 1], [2, 8]], 1, "additive") == [[0, 0], [0, 4]]
    assert kept([[7, 7], [7, 7]], 3, "softmax") == [[3, 3], [3, 3]]
    ocean = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert kept([[1, 3], [9, 9]], 4, "multiplicative", ocean) == [[2, 6], [9, 9]]
    assert kept([[1, 3], [9, 9]], 4, "multiplicative", 0 * ocean) == [[1, 3], [9, 9]]
    assert kept([[0, 0], [9, 9]], 4, "softmax", ocean) == [[4, 4], [4, 4]]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_block(kind):
    fine, coarse, weights = make_case(5, 2, 2, 3, 4, kind, "f8", 0.0, 0.0, 1.0)
    clean, gone = fine.copy(), fine.copy()
    gone[0, 2, 3] = np.nan
    missing = coarse.copy()
    missing[1, 0, 0] = np.nan
    conserve(clean, coarse, weights, 2, kind)
    conserve(gone, missing, weights, 2, kind)
    expected = np.zeros(fine.shape, bool)
    expected[0, 2:4, 2:4] = expected[1, :2, :2] = True
    np.testing.assert_array_equal(np.isnan(gone), expected)
    np.testing.assert_array_equal(gone[~expected], clean[~expected])


def test_what_does_not_fit_is_refused():
    fine, coarse, weights = np.zeros((1, 4, 6), np.float32), np.zeros((1, 2, 3), np.float32), np.ones((4, 6))
    with pytest.raises(ValueError, match=r"needed with factor 3: \(1, 6, 9\) fine and \(6, 9\) weights"):
        conserve(fine, coarse, weights, 3, "additive")
    with pytest.raises(
        ValueError, match="conserve is 'exact'; needed: one of None, 'multiplicative', 'additive', 'softmax'"
    ):
        conserve(fine, coarse, weights, 2, "exact")
