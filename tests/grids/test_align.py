"""Whether one grid lies on another: just inside and just outside of each tolerance."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given
from hypothesis import strategies as st

import xdeepsd
from xdeepsd import SRCNNConfig
from xdeepsd.grids import align
from xdeepsd.levels.pairs import make_pair

INSIDE, OUTSIDE = 0.98, 1.02  # of the tolerance


@pytest.mark.parametrize("dim", ["lat", "lon"])
@pytest.mark.parametrize("step", [1 / 24, -0.5, 2.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tolerances_are_what_they_say(dim, step, sign):
    centres = 10 + step * np.arange(12)
    turn = 360.0 if dim == "lon" else 0.0
    for share, holds in ((INSIDE, True), (OUTSIDE, False)):
        moved = centres + sign * share * align.SAME * abs(step) + turn
        assert align.same(moved, centres, dim) == holds
        one = centres.copy()
        one[5] += sign * share * align.SAME * abs(step)  # a single cell decides
        assert align.same(one, centres, dim) == holds
        moved = centres + sign * share * align.LIES_ON * abs(step) - turn
        assert (align.cells_at(moved, centres[3:7], dim) == [3, 4, 5, 6]).all() == holds
        assert (align.cells_at(moved, centres[3:7], dim) == -1).all() == (not holds)
        coarse = centres.reshape(-1, 3).mean(axis=1) + turn
        off = align.off_blocks(moved, coarse, dim)
        assert off == pytest.approx(share * align.LIES_ON, rel=1e-6)
        assert align.same_step(1 + sign * share * align.SAME_STEP, 1.0) == holds
    assert not align.same(centres[:-1], centres, dim)
    assert not align.same(centres[::-1], centres, dim)


@given(st.permutations(list(range(9))), st.integers(-2, 2))
def test_cells_are_found_in_any_order(order, turns):
    have = np.array([170.5, 171.5, 172.5, 173.5, 174.5, 175.5, 176.5, 177.5, 178.5])
    index = align.cells_at(have[order] + 360.0 * turns, have[2:6], "lon")
    np.testing.assert_array_equal(have[order][index], have[2:6])


def test_the_date_line():
    have = np.array([-179.5, -178.5, 178.5, 179.5])
    np.testing.assert_array_equal(align.cells_at(have, [178.5, 179.5, 180.5, 181.5], "lon"), [2, 3, 0, 1])
    assert align.same([179.5, 180.5], [179.5, -179.5], "lon")


@pytest.fixture
def case():
    bare, coarse = make_stack(1, channels=(3,), kernels=(3, 3)), make_coarse(days=2)
    return bare, coarse, make_static(coarse, bare.scale)


@pytest.mark.parametrize("dim", ["lat", "lon"])
@pytest.mark.parametrize(("share", "holds"), [(INSIDE, True), (OUTSIDE, False)])
def test_where_they_are_asked(case, dim, share, holds, tmp_path):
    """The same just inside and just outside, through the functions that users call."""
    bare, coarse, static = case
    fine_step = 0.5

    def moved(obj, by):
        return obj.assign_coords({dim: obj[dim] + by})

    def outcome(call, match):
        if holds:
            return call()
        with pytest.raises(ValueError, match=match):
            call()
        return None

    off = share * align.LIES_ON * fine_step
    outcome(lambda: coarse.deepsd.downscale(bare, moved(static, off)), "does not lie on the input's grid")
    mask = static["elevation"] > 0
    outcome(lambda: coarse.deepsd.downscale(bare, static, mask=moved(mask, off)), "does not lie on the target grid")
    fine = make_coarse(days=2, nlat=12, nlon=16, spacing=fine_step)
    outcome(lambda: xdeepsd.make_levels(fine, moved(static, off), (2,)), "elevation is on another grid")
    for factor in (2, 3):
        levels = xdeepsd.make_levels(fine, static, (factor,))
        given = moved(levels[0], off), levels[1], SRCNNConfig(factor=factor)
        outcome(lambda given=given: make_pair(*given), "do not lie on each other")
    store = tmp_path / "levels.zarr"
    xdeepsd.build_levels(fine, static, (2,), store)
    again = share * align.SAME * fine_step
    outcome(lambda: xdeepsd.build_levels(moved(fine, again), moved(static, again), (2,), store), "holds another grid")
    model = xdeepsd.StackedSRCNN(bare.stages, static=static)
    stretched = 1 + share * align.SAME_STEP
    wide = {d: (d, coarse[d][0].item() + (coarse[d] - coarse[d][0]).values * stretched) for d in ("lat", "lon")}
    larger = coarse.assign_coords(wide)
    outcome(lambda: larger.deepsd.downscale(model, make_static(larger, 2)), "the model was trained on 1")
    part = xdeepsd.StackedSRCNN(bare.stages, static=static, mask=moved(mask, off))
    taken = coarse.deepsd.downscale(part, static)
    if holds:
        np.testing.assert_array_equal(taken.notnull().all("time"), mask)
    else:
        assert taken.notnull().all()


def test_a_mask_of_another_place_is_no_mask(case, caplog):
    bare, coarse, static = case
    mask = (static["elevation"] > 0).assign_coords(lat=static.lat + 30)
    model = xdeepsd.StackedSRCNN(bare.stages, static=static, mask=mask)
    with caplog.at_level("WARNING", logger="xdeepsd"):
        assert coarse.deepsd.downscale(model, static).notnull().all()
    assert "mask is not used" in caplog.text
    assert isinstance(mask, xr.DataArray)
