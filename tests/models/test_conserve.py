"""Coarse means kept: exact, positive and dry cells stay so, and gradients are finite."""

import itertools

import numpy as np
import oracle
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xdeepsd
from xdeepsd.models.conserve import KINDS, cell_weights, check, conserve, transform_kept
from xdeepsd.models.transform import TRANSFORMS

KEPT = [kind for kind in KINDS if kind is not None]
kinds = pytest.mark.parametrize("kind", KEPT)
# Dry, hardly wet, and anything up to 300 mm a day.
AMOUNTS = st.one_of(st.just(0.0), st.floats(2.0**-40, 2.0**-10, width=32), st.floats(2.0**-10, 300, width=32))


def maps(shape, values=AMOUNTS):
    return hnp.arrays(np.float32, shape, elements=values)


@st.composite
def cases(draw):
    """``fine, coarse, weights, factor``: two days, tiny values, cells and whole blocks that do not count."""
    factor = draw(st.integers(1, 4))
    nlat, nlon = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    fine = draw(maps((2, nlat * factor, nlon * factor)))
    shares = st.one_of(st.just(0.0), st.floats(2.0**-10, 1, width=32))
    return fine, draw(maps((2, nlat, nlon))), draw(maps(fine.shape[1:], shares)), factor


def blocks(field, factor):
    """``(..., lat, lon, cells)``."""
    *lead, nlat, nlon = field.shape
    apart = field.reshape(*lead, nlat // factor, factor, nlon // factor, factor)
    return np.moveaxis(apart, -3, -2).reshape(*lead, nlat // factor, nlon // factor, factor**2)


def means(field, weights, factor):
    """Weighted means of blocks in float64, and which blocks count."""
    y, w = blocks(field.astype(np.float64), factor), blocks(weights.astype(np.float64), factor)
    total = w.sum(-1)
    return (w * y).sum(-1) / np.where(total > 0, total, 1), np.broadcast_to(total > 0, y.shape[:-1])


@kinds
@given(case=cases())
def test_means_are_kept_and_nothing_explodes(kind, case):
    fine, coarse, weights, factor = case
    kept = conserve(fine, coarse, weights, factor, kind)
    assert kept.dtype == np.float32
    assert kept.shape == fine.shape
    assert np.isfinite(kept).all()
    assert (kept >= 0).all()
    found, counts = means(kept, weights, factor)
    np.testing.assert_allclose(found[counts], coarse[counts], rtol=1e-6, atol=0)
    cells, x = blocks(kept, factor), coarse[..., None]
    cell_counts = np.broadcast_to(blocks(weights, factor) > 0, cells.shape)
    assert (cells[(x == 0) & cell_counts] == 0).all(), "dry stays dry"
    left = blocks(fine, factor) if kind != "softmax" else np.broadcast_to(x, cells.shape)
    np.testing.assert_array_equal(cells[~cell_counts], left[~cell_counts])
    if kind != "additive":
        positive = (x > 0) & ((blocks(fine, factor) > 0) | (kind == "softmax")) & cell_counts
        # Next to nothing of 1e-12 mm, in a block of 300 mm, is too small for float32.
        whole = (blocks(fine, factor).max(-1, keepdims=True) < 1) | (x > 1e-3)
        assert (cells[positive & whole] > 0).all(), "positive stays positive"


@kinds
@given(case=cases())
def test_the_slow_statement_agrees(kind, case):
    """Apart from blocks whose mean is a billionth of the coarse value, where the definition amplifies rounding."""
    fine, coarse, weights, factor = case
    kept = conserve(fine, coarse, weights, factor, kind)
    below = means(fine, weights, factor)[0] <= 1e-8 * coarse
    same = np.repeat(np.repeat(~below | (kind != "multiplicative"), factor, 1), factor, 2)
    # Rounding of y + x - mean(y), the driest exp(-60), times what a cell of little weight may hold of a block's sum.
    most = max(fine.max(), coarse.max()) * factor**2 * weights.max() / weights[weights > 0].min(initial=1)
    atol = {"multiplicative": 1e-30, "softmax": 2e-26 * most, "additive": 1e-6 * most}[kind]
    for day in range(2):
        expected = oracle.conserve(fine[day], coarse[day], weights, factor, kind)
        np.testing.assert_allclose(kept[day][same[day]], expected[same[day]], rtol=1e-5, atol=atol)


@kinds
@given(case=cases())
def test_tensors_and_arrays_give_the_same(kind, case):
    *arrays, factor = case
    kept = conserve(*map(torch.from_numpy, arrays), factor, kind)
    np.testing.assert_allclose(kept.numpy(), conserve(*arrays, factor, kind), rtol=1e-6, atol=1e-30)


@kinds
def test_dtype_dims_and_what_was_given_stay(kind):
    rng = np.random.default_rng(0)
    for dtype, lead in itertools.product((np.float32, np.float64), ((), (3,), (2, 3))):
        fine, coarse = rng.gamma(1, 3, (*lead, 6, 9)).astype(dtype), rng.gamma(1, 3, (*lead, 2, 3)).astype(dtype)
        weights = rng.uniform(0.5, 1, (6, 9)).astype(np.float32)
        before = fine.copy(), coarse.copy(), weights.copy()
        kept = conserve(fine, coarse, weights, 3, kind)
        assert kept.dtype == dtype
        assert kept.shape == fine.shape
        for now, then in zip((fine, coarse, weights), before, strict=True):
            np.testing.assert_array_equal(now, then)
        each = conserve(fine, coarse, np.broadcast_to(weights, fine.shape), 3, kind)
        np.testing.assert_array_equal(each, kept, err_msg="weights of each map")


@kinds
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_tiles_and_days_give_the_same_bits(kind, library, factor):
    rng = np.random.default_rng(0)
    fine = rng.gamma(0.3, 5, (7, 23 * factor, 29 * factor)).astype(np.float32)
    coarse, weights = rng.gamma(0.5, 5, (7, 23, 29)).astype(np.float32), rng.uniform(0, 1, fine.shape[1:])
    weights = np.where(weights < 0.2, 0, weights).astype(np.float32)
    fine, coarse, weights = map(library, (fine, coarse, weights))
    whole = conserve(fine, coarse, weights, factor, kind)
    for days, rows, columns in ((0, (0, 1), (0, 1)), (slice(2, 3), (3, 20), (5, 6)), (slice(1, 7), (22, 23), (1, 29))):
        low = (slice(*rows), slice(*columns))
        high = tuple(slice(factor * part.start, factor * part.stop) for part in low)
        part = conserve(fine[days][..., *high], coarse[days][..., *low], weights[high], factor, kind)
        np.testing.assert_array_equal(part, whole[days][..., *high])


def test_by_hand():
    fine, weights = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [2.0, 0.0]])
    x = np.array([[2.0]])
    np.testing.assert_allclose(conserve(fine, x, weights, 2, "multiplicative"), [[2, 6], [0, 0]])
    # The mean is 1: 2, 4, 1, and the last cell does not count. Nothing is below 0.
    np.testing.assert_allclose(conserve(fine, x, weights, 2, "additive"), [[2, 4], [1, 0]])
    # 0.5 lower: .5, 2.5 and the clipped 0 have a mean of .75, and .5 is wanted.
    np.testing.assert_allclose(conserve(fine, x / 4, weights, 2, "additive"), [[1 / 3, 5 / 3], [0, 0]])
    e = np.exp([[1.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(conserve(fine, x, weights, 2, "softmax"), np.where(weights, 8 * e / (e[0].sum() + 2), 2))
    np.testing.assert_array_equal(conserve(fine, x, weights, 2, None), fine)


def test_what_does_not_count_does_not_explode():
    """An ocean of 5 mm beside land that is hardly wet and is scaled by a billion."""
    fine, weights = np.array([[1e-9, 5.0], [2e-9, 0.0]], np.float32), np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    kept = conserve(fine, np.ones((1, 1), np.float32), weights, 2, "multiplicative")
    np.testing.assert_allclose(kept, [[2 / 3, 5], [4 / 3, 0]], rtol=1e-5)
    huge = np.array([[-200.0, 300.0], [-210.0, 90.0]], np.float32)
    kept = conserve(huge, np.ones((1, 1), np.float32), weights, 2, "softmax")
    np.testing.assert_allclose(kept, [[2 / (1 + np.exp(-10)), 1], [2 / (1 + np.exp(10)), 1]], rtol=1e-4)


def test_next_to_nothing_has_no_pattern():
    """A billionth of the coarse value is no more than rounding: what falls is spread evenly."""
    fine, weights = np.array([[1e-10, 3e-10], [0.0, 0.0]], np.float32), np.ones((2, 2), np.float32)
    kept = conserve(fine, np.full((1, 1), 4, np.float32), weights, 2, "multiplicative")
    np.testing.assert_array_equal(kept, 4)
    kept = conserve(1e3 * fine, np.full((1, 1), 4, np.float32), weights, 2, "multiplicative")
    np.testing.assert_allclose(kept, [[4, 12], [0, 0]], rtol=1e-5)


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_right(kind, seed):
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return (torch.rand(*shape, dtype=torch.float64, generator=rng) + 0.1).requires_grad_()

    weights = uniform(6, 8).detach()
    weights[:2, :2], weights[3, 3] = 0, 0  # a block and a cell that do not count
    assert torch.autograd.gradcheck(lambda y, x: conserve(y, x, weights, 2, kind), (uniform(2, 6, 8), uniform(2, 3, 4)))


@kinds
@given(case=cases(), name=st.sampled_from(TRANSFORMS))
def test_gradients_are_finite_everywhere(kind, case, name):
    """From the network's output in the transformed space to a loss there, as in training."""
    *arrays, factor = case
    y, x, w = map(torch.from_numpy, arrays)
    y.requires_grad_()
    x.requires_grad_()
    fine = y.clip(min=0) if name is None else y.clip(min=0) ** 2 if name == "sqrt" else torch.expm1(y.clip(max=6))
    kept = transform_kept(conserve(fine, x, w, factor, kind), name)
    assert torch.isfinite(kept).all()
    kept.sum().backward()
    for gradient in (y.grad, x.grad):
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(torch.linalg.vector_norm(gradient)), "what clipping takes"


def test_dry_days_teach_nothing_and_break_nothing():
    y = torch.zeros(1, 4, 4, requires_grad=True)
    for kind in KEPT:
        for rain in (0.0, 2.0):
            kept = conserve(y, torch.full((1, 2, 2), rain), torch.ones(4, 4), 2, kind)
            assert (kept == rain).all()
            (gradient,) = torch.autograd.grad((transform_kept(kept, "sqrt") ** 2).sum(), y)
            assert torch.isfinite(gradient).all()


def test_means_are_those_of_the_levels():
    """The same means as in the levels' coarse cells: area on the sphere, observed and wanted cells."""
    rng = np.random.default_rng(0)
    lat, lon = 71 - 2.0 * np.arange(12), 10 + 2.0 * np.arange(8)
    rain = rng.gamma(0.5, 5, (3, 12, 8)).astype(np.float32)
    mask = rng.uniform(size=(12, 8)) > 0.3
    mask[:4, :4] = False
    coords = {"time": xr.date_range("2001-01-01", periods=3), "lat": lat, "lon": lon}
    truth = xr.DataArray(rain, coords, ("time", "lat", "lon"), attrs={"units": "mm day-1"}).where(mask)
    levels = xdeepsd.make_levels(truth.rename("precipitation"), factors=(2, 2))
    for coarse, fine, factor in ((0, 1, 2), (1, 2, 2), (0, 2, 4)):
        low, high = levels[coarse]["precipitation"].values, levels[fine]
        weights = cell_weights(high["lat"].values, high.sizes["lon"], high["land_fraction"].values)
        there = ~np.isnan(low)
        found = conserve(high["precipitation"].fillna(0).values, np.nan_to_num(low), weights, factor, "multiplicative")
        same = there.repeat(factor, 1).repeat(factor, 2) & high["precipitation"].notnull().values
        # The truth already has these means, except that the land fraction of a level is a mean without area weights.
        rtol = 1e-5 if fine == 2 else 0.05
        np.testing.assert_allclose(found[same], high["precipitation"].values[same], rtol=rtol)


def test_areas():
    lat = np.arange(-89.5, 90)
    area = cell_weights(lat, 3)
    assert area.dtype == np.float64
    assert area.max() == 1
    expected = np.cos(np.deg2rad(lat)) / np.cos(np.deg2rad(0.5))
    np.testing.assert_allclose(area, np.broadcast_to(expected[:, None], (180, 3)), rtol=1e-6)
    np.testing.assert_array_equal(cell_weights(lat[::-1], 3), area[::-1])
    assert cell_weights(np.array([45.0]), 2).tolist() == [[1, 1]]
    share = np.full((180, 3), 0.25)
    np.testing.assert_allclose(cell_weights(lat, 3, share), area / 4)


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match="conserve is 'mass'; needed: one of None, 'multiplicative', 'additive', 'soft"
    ):
        check("mass")
    with pytest.raises(ValueError, match="conserve is 'mass'"):
        conserve(np.ones((2, 2)), np.ones((1, 1)), np.ones((2, 2)), 2, "mass")
    with pytest.raises(ValueError, match="The mask has 2 x 3 cells, 0 of them wanted, on a grid of 2 x 3"):
        cell_weights(np.array([1.0, 2.0]), 3, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="The mask has 3 x 2 cells, 6 of them wanted, on a grid of 2 x 3"):
        cell_weights(np.array([1.0, 2.0]), 3, np.ones((3, 2), bool))
