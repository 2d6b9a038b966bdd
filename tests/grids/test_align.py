"""Whether one grid lies on another: just inside and just outside each tolerance."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given
from hypothesis import strategies as st

import xdeepsd
from xdeepsd import SRCNNConfig
from xdeepsd.grids import align, cells
from xdeepsd.levels.pairs import make_pair

INSIDE, OUTSIDE = 0.98, 1.02  # of the tolerance
# As documented in grids/align.py, repeated here so that a change there is noticed.
SAME, LIES_ON, SAME_STEP = 0.01, 0.05, 0.01  # of a cell, of a fine cell, of a step
SAME_EDGE, INFERRED = 1e-3, 1e-6  # of a cell
ROUNDING, WHOLE_TURN = 1e-12, 1e-3  # degrees
NEXT_COLUMN, OVERLAPS = 1.5, 2.0  # of the largest step


@pytest.mark.parametrize("dim", ["lat", "lon"])
@pytest.mark.parametrize("step", [1 / 24, -0.5, 2.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tolerances_are_what_they_say(dim, step, sign):
    centres = 10 + step * np.arange(12)
    turn = 360.0 if dim == "lon" else 0.0
    for share, holds in ((INSIDE, True), (OUTSIDE, False)):
        moved = centres + sign * share * SAME * abs(step) + turn
        assert align.same(moved, centres, dim) == holds
        one = centres.copy()
        one[5] += sign * share * SAME * abs(step)  # a single cell decides
        assert align.same(one, centres, dim) == holds
        moved = centres + sign * share * LIES_ON * abs(step) - turn
        assert (align.cells_at(moved, centres[3:7], dim) == [3, 4, 5, 6]).all() == holds
        assert (align.cells_at(moved, centres[3:7], dim) == -1).all() == (not holds)
        coarse = centres.reshape(-1, 3).mean(axis=1) + turn
        off = align.off_blocks(moved, coarse, dim)
        assert off == pytest.approx(share * LIES_ON, rel=1e-6)
        assert align.same_step(1 + sign * share * SAME_STEP, 1.0) == holds
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
    """Just inside and just outside, through the functions that users call."""
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

    off = share * LIES_ON * fine_step
    outcome(lambda: coarse.deepsd.downscale(bare, moved(static, off)), "does not cover the model's domain")
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
    stretched = 1 + share * SAME_STEP
    wide = {d: (d, coarse[d][0].item() + (coarse[d] - coarse[d][0]).values * stretched) for d in ("lat", "lon")}
    larger = coarse.assign_coords(wide)
    outcome(lambda: larger.deepsd.downscale(model, make_static(larger, 2)), "the model was trained on 0.5")
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


# --- regridding: what is the same grid, edge or turn ------------------------------------------------------------------

SHARES = pytest.mark.parametrize(("share", "holds"), [(INSIDE, True), (OUTSIDE, False)])


def regular(lat, lon, lat_bounds=None):
    coords = {"lat": np.asarray(lat, float), "lon": np.asarray(lon, float)}
    ds = xr.Dataset({"rain": (("lat", "lon"), np.ones((len(lat), len(lon))))}, coords)
    if lat_bounds is not None:
        ds["lat_bnds"] = (("lat", "bnds"), lat_bounds)
        ds["lat"].attrs["bounds"] = "lat_bnds"
    return ds


def turned(nlat=4, nlon=6, step=1.0, angle=0.3):
    """2-D centres of a grid that is rotated slightly about a point on the equator."""
    y, x = np.meshgrid(step * np.arange(nlat), step * np.arange(nlon), indexing="ij")
    lat, lon = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    coords = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    return xr.Dataset({"rain": (("y", "x"), np.ones(lat.shape))}, coords)


@SHARES
@pytest.mark.parametrize("dim", ["lat", "lon"])
def test_weights_fit_their_grids(dim, share, holds):
    source, target = regular([0, 1, 3, 4], [0, 2, 3, 4]), regular([1, 2], [1, 2, 3])  # the smallest step is 1
    weights = xdeepsd.regrid_weights(source, target, "nearest")
    far = source[dim] + share * SAME + (360 if dim == "lon" else 0)
    moved = {"source": (source.assign_coords({dim: far}), target), "target": (source, target.copy())}
    moved["target"][1][dim] = target[dim] + share * SAME
    for side, (obj, onto) in moved.items():
        if holds:
            assert (xdeepsd.regrid(obj, onto, weights=weights)["rain"] == 1).all()
        else:
            with pytest.raises(ValueError, match=f"another {side} grid"):
                xdeepsd.regrid(obj, onto, weights=weights)


@SHARES
def test_weights_fit_their_curvilinear_grid(share, holds):
    source = turned()
    weights = xdeepsd.regrid_weights(source, regular([1, 2], [1, 2, 3]), "nearest")
    moved = source.assign_coords(lat=source["lat"] + share * SAME, lon=source["lon"] + 360)
    if holds:
        assert (xdeepsd.regrid(moved, weights=weights)["rain"] == 1).all()
    else:
        with pytest.raises(ValueError, match="another source grid"):
            xdeepsd.regrid(moved, weights=weights)
    with pytest.raises(ValueError, match="another source grid"):
        xdeepsd.regrid(source.isel(y=slice(3)), weights=weights)


@SHARES
@pytest.mark.parametrize("sign", [-1, 1])
def test_bounds_fit_their_cells(share, holds, sign):
    step = 0.5
    off = share * SAME_EDGE * step
    edges = np.stack([step * np.arange(3), step * np.arange(1, 4)], axis=1)
    gap = edges.copy()
    gap[1:, 0] += sign * off  # the cell that grows or shrinks by it is its own measure
    outside = np.array([step / 2, 1.5 * step, 3 * step + off if sign > 0 else 2 * step - off])
    for lat, bounds, match in ((step * (np.arange(3) + 0.5), gap, "have gaps or overlaps"),
                               (outside, edges, "disagree with its centres")):  # fmt: skip
        ds = regular(lat, [0, 1], bounds)
        if holds:
            cells.read_grid(ds)
        else:
            with pytest.raises(ValueError, match=match):
                cells.read_grid(ds)


@SHARES
def test_corners_of_neighbours_are_one(share, holds):
    grid = cells.read_grid(turned())
    lat, lon = grid.lat_bounds.copy(), grid.lon_bounds
    size = np.hypot(lat[1, 2] - lat[1, 2].mean(), lon[1, 2] - lon[1, 2].mean()).max()
    lat[1, 1, 1] += share * SAME_EDGE * size  # the corner that this cell shares with the next one
    moved = replace(grid, lat_bounds=lat)
    if holds:
        moved.shared_corners()
    else:
        with pytest.raises(ValueError, match="neighbouring cells do not share"):
            moved.shared_corners()


@SHARES
def test_bounds_are_written_where_they_cannot_be_inferred(share, holds):
    """Only as many as needed: bounds half-way between the centres are left out."""
    centres, edges = np.array([0.5, 1.5, 2.5]), np.arange(4.0)
    edges[1] += share * INFERRED / (1 + share * INFERRED)
    target = regular(centres, [0.5, 1.5], np.stack([edges[:-1], edges[1:]], axis=1))
    out = xdeepsd.regrid(regular(np.arange(5.0), np.arange(4.0)), target)
    assert ("lat_bnds" not in out) == holds


@SHARES
def test_roundings_are_no_slivers(share, holds):
    onto = np.array([1.0, 2.0])
    moved = align.snap(np.array([2.0 - share * ROUNDING, 1.5]), onto)
    assert (moved[0] == 2.0) == holds
    assert moved[1] == 1.5


@SHARES
@pytest.mark.parametrize("sign", [-1, 1])
def test_columns_go_round_the_earth(share, holds, sign):
    edges = np.array([0.0, 90, 180, 270, 360 + sign * share * WHOLE_TURN])
    assert align.goes_round(edges) == align.goes_round(edges[::-1]) == holds


@SHARES
def test_rows_of_a_curvilinear_grid_go_round_the_earth(share, holds):
    """The distance from the last to the first column, in steps between the others, along a row near the equator."""
    steps = np.full(40, 360 / (40 + share * NEXT_COLUMN))
    lon = np.concatenate([[0], np.cumsum(steps)])
    chord = 2 * np.sin(np.deg2rad([(360 - lon[-1]) / 2, steps[0] / 2]))
    assert chord[0] / chord[1] == pytest.approx(share * NEXT_COLUMN, rel=0.005)
    grid = cells.read_grid(xr.Dataset(coords={name: (("y", "x"), values) for name, values in
                                              zip(("lat", "lon"), np.meshgrid([0.0, 0.1], lon, indexing="ij"),
                                                  strict=True)}))  # fmt: skip
    assert grid.is_global == holds


@SHARES
def test_the_nearest_centre_may_be_a_few_cells_away(share, holds):
    source = regular([0, 1, 2], [0, 1, 2])
    target = regular([1, 1.5], [2 + share * OVERLAPS, 10])
    if holds:
        assert (xdeepsd.regrid(source, target, "nearest")["rain"] == 1).all()
    else:
        with pytest.raises(ValueError, match="do not overlap"):
            xdeepsd.regrid(source, target, "nearest")
