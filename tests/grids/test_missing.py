"""Filling missing cells, interpolation and static fields, against slow independent code."""

import numpy as np
import oracle
import pytest
import torch
import xarray as xr
from builders import make_coarse, make_static
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xdeepsd.grids.blocks import block_mean
from xdeepsd.grids.interpolate import interpolate, upsample
from xdeepsd.grids.missing import fill_nearest, nearest_observed
from xdeepsd.models import srcnn
from xdeepsd.models.static import climatology_channel, fill, stage_channels


def brute_force(missing, reach):
    """Nearest observed cell by trying all of them, the first in row order at equal distance."""
    nlat, nlon = missing.shape
    source = np.arange(missing.size).reshape(missing.shape)
    for i, j in zip(*np.nonzero(missing), strict=True):
        best = None
        for a in range(max(0, i - reach), min(nlat, i + reach + 1)):
            for b in range(max(0, j - reach), min(nlon, j + reach + 1)):
                distance = (a - i) ** 2 + (b - j) ** 2
                if not missing[a, b] and (best is None or distance < best):
                    best, source[i, j] = distance, a * nlon + b
    return source


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))), st.integers(1, 5))
def test_nearest_observed(missing, reach):
    np.testing.assert_array_equal(nearest_observed(missing, reach), brute_force(missing, reach))


def test_fill_is_by_day_and_leaves_observed_cells():
    values = np.arange(24.0).reshape(2, 3, 4)
    values[1, 0] = np.nan
    filled = fill_nearest(values, 2)
    np.testing.assert_array_equal(filled[0], values[0])
    np.testing.assert_array_equal(filled[1, 0], values[1, 1])
    assert np.isnan(values[1, 0]).all(), "the input is not written to"
    full = values[:1]
    assert fill_nearest(full, 2) is full


def test_cells_out_of_reach_become_finite():
    values = np.full((1, 1, 9), np.nan)
    values[0, 0, 0] = 5
    np.testing.assert_array_equal(fill_nearest(values, 2)[0, 0], [5, 5, 5, 0, 0, 0, 0, 0, 0])


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3, 4]), st.integers(0, 99))
def test_upsample(nlat, nlon, factor, seed):
    field = np.random.default_rng(seed).normal(size=(nlat, nlon))
    expected = oracle.interpolate(field, factor)
    np.testing.assert_allclose(upsample(field, factor), expected, rtol=1e-12, atol=1e-12)
    tensor = srcnn.upsample_tensor(torch.from_numpy(field)[None], factor)
    np.testing.assert_allclose(tensor.numpy()[0], expected, rtol=1e-12, atol=1e-12)


def test_interpolate_on_datasets():
    coarse = make_coarse()
    coarse[1, 2, 3] = np.nan
    like = make_static(coarse, 4)["elevation"]
    fine = interpolate(coarse, like)
    lazy = interpolate(coarse.chunk(time=2), like)
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy.values, fine.values)
    np.testing.assert_allclose(fine[0], oracle.interpolate(coarse.values[0].astype(float), 4), rtol=1e-5, atol=1e-5)
    assert int(np.isnan(fine).sum()) == 16
    xr.testing.assert_equal(fine.lat, like.lat)
    with pytest.raises(ValueError, match="the same whole factor along both axes"):
        interpolate(coarse, like[:, 1:])


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_block_mean(nlat, nlon, factor, seed):
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(nlat * factor, nlon * factor))
    np.testing.assert_allclose(block_mean(field, factor), oracle.block_mean(field, factor))


def test_block_mean_refuses_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match=r"5 x 4 cells does not divide into blocks of 2.*slice\(4\)"):
        block_mean(np.zeros((5, 4)), 2)
    with pytest.raises(ValueError, match=r"5 x 2 cells is smaller than a block of 3\. Needed: a factor of at most 2"):
        block_mean(np.zeros((5, 2)), 3)


def test_static_fill_and_ratio():
    field = np.array([[np.nan, 1.0, 2.0], [np.nan, np.nan, 3.0]])
    np.testing.assert_array_equal(fill(field), [[1, 1, 2], [1, 1, 3]])
    with pytest.raises(ValueError, match="no finite value"):
        fill(np.full((2, 2), np.nan))
    coarse = np.array([[2.0, 0.0]])
    fine = np.array([[2.0, 100.0, 0.0, 0.0], [0.01, 1.5, 0.5, 1.0]])
    ratio = climatology_channel(fine, coarse, 2)
    expected = np.log([[1, 5, 0.2, 1], [0.2, 1, 1, 5]])  # between: 2, 1.5, 0.5, 0
    np.testing.assert_allclose(ratio, expected)


def test_stage_channels_are_in_order():
    rng = np.random.default_rng(0)
    fine = {"elevation": rng.normal(size=(4, 6)), "climatology": rng.gamma(3, 1, (4, 6))}
    coarse = {"climatology": block_mean(fine["climatology"], 2)}
    channels = stage_channels(fine, coarse, ("climatology", "elevation"), 2)
    assert channels.dtype == np.float32
    np.testing.assert_allclose(channels[1], fine["elevation"], rtol=1e-6)
    np.testing.assert_allclose(
        channels[0], climatology_channel(fine["climatology"], coarse["climatology"], 2), rtol=1e-6
    )
    assert stage_channels(fine, coarse, (), 2).shape == (0, 4, 6)
