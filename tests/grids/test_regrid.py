import itertools
import logging
import pickle
import re
import sys
import types
from pathlib import Path

import dask.array
import numpy as np
import pytest
import spherely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import fsolve
from scipy.spatial.transform import Rotation

import xdeepsd
from xdeepsd.grids import great_circles
from xdeepsd.grids import regrid_weights as weights_module
from xdeepsd.grids.cells import Grid, read_grid, unit_vectors
from xdeepsd.grids.regrid import coarsen, regrid, regrid_weights

# ---------------------------------------------------------------------------------------------------------------------
# Helpers


def grid(lat, lon, **bounds):
    """A Dataset of coordinates; bounds as edges, ``lat_b`` and ``lon_b``."""
    coords = {"lat": np.asarray(lat, float), "lon": np.asarray(lon, float)}
    return xr.Dataset(coords=coords | {name: (name, np.asarray(edges, float)) for name, edges in bounds.items()})


def from_edges(lat_edges, lon_edges):
    lat_edges, lon_edges = np.asarray(lat_edges, float), np.asarray(lon_edges, float)
    middle = [(e[1:] + e[:-1]) / 2 for e in (lat_edges, lon_edges)]
    return grid(*middle, lat_b=lat_edges, lon_b=lon_edges)


def field(target, *lead, seed=0, dtype=float):
    shape = (*lead, target.sizes["lat"], target.sizes["lon"])
    dims = [f"d{i}" for i in range(len(lead))] + ["lat", "lon"]
    return target.assign(v=(dims, np.random.default_rng(seed).random(shape).astype(dtype)))


def areas(ds):
    g = read_grid(ds)
    lat, lon = g.bounds()
    # sin(a) - sin(b) as a product: the difference cancels for thin cells near the poles
    lat = np.deg2rad(lat)
    height = 2 * np.cos((lat[1:] + lat[:-1]) / 2) * np.sin(np.diff(lat) / 2)
    return np.abs(np.outer(height, np.diff(np.deg2rad(lon))))


REGULAR = grid(np.arange(49.5, 24, -1.0), np.arange(-124.5, -66, 1.0))
COARSE = grid(np.arange(48, 25, -2.5), np.arange(-124, -68, 2.0))


# ---------------------------------------------------------------------------------------------------------------------
# Properties

# Cells of at least 0.01 degrees on a domain of at least 1 degree: an edge at 180 degrees is rounded by 3e-14, and
# totals have to hold to 1e-12.
edges_of = lambda low, high, n: st.lists(  # noqa: E731
    st.integers(low * 100, high * 100), min_size=2, max_size=n, unique=True
).map(lambda e: np.sort(np.array(e)) / 100).filter(lambda e: e[-1] - e[0] >= 1)  # fmt: skip


def some_orders(edges, descending):
    return edges[::-1] if descending else edges


@given(
    source_lat=edges_of(-90, 90, 8),
    source_lon=edges_of(-180, 180, 8),
    inner_lat=edges_of(-90, 90, 8),
    inner_lon=edges_of(-180, 180, 8),
    flips=st.tuples(*[st.booleans()] * 4),
    turns=st.integers(-1, 1),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, report_multiple_bugs=False)
def test_mass_is_conserved(source_lat, source_lon, inner_lat, inner_lon, flips, turns, seed):
    """Area-weighted totals are the same on any target that covers the source."""
    source = from_edges(some_orders(source_lat, flips[0]), some_orders(source_lon, flips[1]))
    target_lat = np.union1d(inner_lat[(inner_lat > source_lat[0]) & (inner_lat < source_lat[-1])], [-90.0, 90.0])
    target_lon = np.union1d(inner_lon[(inner_lon > -180) & (inner_lon < 180)], [-180.0, 180.0]) + 360.0 * turns
    target = from_edges(some_orders(target_lat, flips[2]), some_orders(target_lon, flips[3]))
    ds = field(source, seed=seed)
    out = regrid(ds, target, skipna=False)
    before, after = float((ds.v * areas(source)).sum()), float((out.v * areas(target)).sum())
    assert after == pytest.approx(before, rel=1e-12)


@given(value=st.floats(-1e6, 1e6, width=32), seed=st.integers(0, 1000))
@settings(max_examples=50)
@pytest.mark.parametrize("method", ["conservative", "conservative_normed", "bilinear", "nearest"])
def test_a_constant_stays_constant(method, value, seed):
    rng = np.random.default_rng(seed)
    source = from_edges(np.linspace(20, 60, 9), np.cumsum(rng.uniform(0.5, 3, 12)) - 20)
    target = grid(np.sort(rng.uniform(25, 55, 7)), np.sort(rng.uniform(-18, -8, 5)))
    ds = field(source)
    ds["v"] = ds.v * 0 + value
    ds["v"] = ds.v.where(np.random.default_rng(seed).random(ds.v.shape) < 0.8)
    out = regrid(ds, target, method).v
    np.testing.assert_allclose(out.values[np.isfinite(out)], value, rtol=1e-13)
    assert np.isfinite(out).any()


def test_mass_on_a_curvilinear_pair():
    """The same from a rotated grid to a regular one that covers it."""
    source = rotated(24, 30)
    target = from_edges(np.linspace(20, 75, 40), np.linspace(220, 320, 50))
    shape = source.lat.shape
    ds = source.assign(v=(("y", "x"), np.random.default_rng(0).random(shape)))
    out = regrid(ds, target, skipna=False, engine="spherely", unmapped_to_nan=False)
    before, after = (
        spherely.area(great_circles._polygons(*read_grid(g).corners()), radius=1.0).reshape(v.shape) * v
        for g, v in ((ds, ds.v.values), (target, out.v.values))
    )
    assert after.sum() == pytest.approx(before.sum(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Independent oracles


def rotated(ny, nx, pole_lon=83.0, pole_lat=42.5):
    """A rotated-pole grid over North America with 2-D coordinates, without bounds."""
    rlat, rlon = np.meshgrid(np.linspace(-12, 12, ny), np.linspace(-16, 14, nx), indexing="ij")
    rlat, rlon, pole = np.deg2rad(rlat), np.deg2rad(rlon), np.deg2rad(pole_lat)
    lat = np.arcsin(np.sin(pole) * np.sin(rlat) + np.cos(pole) * np.cos(rlat) * np.cos(rlon))
    lon = np.deg2rad(pole_lon) + np.arctan2(
        np.cos(rlat) * np.sin(rlon), np.sin(pole) * np.cos(rlat) * np.cos(rlon) - np.cos(pole) * np.sin(rlat)
    )
    attrs = {"lat": {"standard_name": "latitude"}, "lon": {"standard_name": "longitude"}}
    values = {"lat": np.rad2deg(lat), "lon": np.rad2deg(lon) + 180.0}
    return xr.Dataset(coords={n: (("y", "x"), v, attrs[n]) for n, v in values.items()})


def by_hand(ds, target):
    """Conservative means, one pair of cells at a time."""
    s_lat, s_lon = read_grid(ds).bounds()
    t_lat, t_lon = read_grid(target).bounds()
    out = np.full((len(t_lat) - 1, len(t_lon) - 1), np.nan)
    for j, i in np.ndindex(out.shape):
        above = below = 0.0
        for b, a in np.ndindex(ds.v.shape):
            low = max(min(s_lat[b : b + 2]), min(t_lat[j : j + 2]))
            high = min(max(s_lat[b : b + 2]), max(t_lat[j : j + 2]))
            west = max(min(s_lon[a : a + 2]), min(t_lon[i : i + 2]))
            east = min(max(s_lon[a : a + 2]), max(t_lon[i : i + 2]))
            if high > low and east > west and np.isfinite(ds.v.values[b, a]):
                area = (np.sin(np.deg2rad(high)) - np.sin(np.deg2rad(low))) * (east - west)
                above, below = above + area * ds.v.values[b, a], below + area
        out[j, i] = above / below if below else np.nan
    return out


def degrees(points):
    """Latitude and longitude of points of the unit sphere ``(..., 3)``."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))


def bilinear_by_hand(centres, goals):
    """Dense weights ``(goals, centres)``, trying each goal in every quadrilateral of centres ``(ny, nx, 3)``."""
    ny, nx = centres.shape[:2]
    number = np.arange(ny * nx).reshape(ny, nx)
    out = np.zeros((len(goals), ny * nx))
    for k, goal in enumerate(goals):
        aside = np.linalg.svd(goal[None])[2][1:]  # two directions across the line through the goal
        for j, i in np.ndindex(ny - 1, nx - 1):
            at = [(j, i), (j, i + 1), (j + 1, i + 1), (j + 1, i)]
            quad = np.array([centres[p] for p in at])
            sides = [np.dot(goal, np.cross(a, b)) for a, b in zip(quad, np.roll(quad, -1, axis=0), strict=True)]
            if goal @ quad.mean(axis=0) < 0 or (min(sides) < -1e-13 and max(sides) > 1e-13):
                continue  # not on one side of all four edges

            def share(u, v):
                return np.array([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v])

            def miss(uv, quad=quad, aside=aside):
                return aside @ (share(*uv) @ quad) / np.linalg.norm(quad[0] - quad[2])

            uv = fsolve(miss, [0.5, 0.5], full_output=True)[0]
            np.add.at(out[k], [number[p] for p in at], share(*uv))
            break
    return out


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    size=st.floats(1e-3, 0.1),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_bilinear_from_any_small_curvilinear_grid(shape, size, seed):
    """2 x 2 to 9 x 9 uneven centres, anywhere and in any orientation: all weights, and which targets have none."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape) + rng.uniform(-0.2, 0.2, (2, *shape))
    turn = Rotation.random(random_state=rng).as_matrix()
    # The tangent plane, projected onto the sphere and rotated.
    onto = lambda y, x: (lambda p: p / np.linalg.norm(p, axis=-1, keepdims=True))(  # noqa: E731
        np.stack([(x - shape[1] / 2) * size, (y - shape[0] / 2) * size, np.ones_like(x)], axis=-1) @ turn
    )
    centres = onto(y, x)
    goals = np.concatenate([onto(*rng.uniform(-1, np.array([*shape])[:, None], (2, 12))), centres.reshape(-1, 3)[:3]])
    (lat, lon), (goal_lat, goal_lon) = degrees(centres), degrees(goals)
    source = Grid(lat, lon, None, None, "lat", "lon", ("y", "x"))
    target = Grid(goal_lat[None], goal_lon[None], None, None, "lat", "lon", ("y", "x"))
    np.testing.assert_allclose(
        great_circles.bilinear(source, target).toarray(), bilinear_by_hand(centres, goals), atol=1e-7
    )


@given(
    inner=st.lists(st.integers(-88, 88), max_size=6),
    ends=st.sampled_from([(-90.0,), (90.0,), (-90.0, 90.0)]),
    around=st.booleans(),
    curvilinear=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_bilinear_with_rows_at_the_poles(inner, ends, around, curvilinear, seed):
    """Rows of centres at exactly -90 or 90: a target at the pole takes the value there, others as elsewhere."""
    rng = np.random.default_rng(seed)
    lat = np.unique([*ends, -45.0, 0.0, 45.0, *inner])
    lon = np.arange(0, 360, 40.0) + rng.uniform(0, 360) if around else np.sort(rng.choice(150, 5, False)) - 70.0
    source = grid(lat, lon)
    values = np.where(np.abs(lat)[:, None] == 90, np.sign(lat)[:, None], rng.random((lat.size, lon.size)))
    source["v"] = (("lat", "lon"), values)
    goal_lat = np.sort([*ends, *rng.uniform(lat[0], lat[-1], 3)])
    target = grid(goal_lat, lon[0] + (lon[-1] - lon[0]) * np.sort(rng.uniform(0, 0.45, 4)))
    if curvilinear:
        lats, lons = read_grid(source).centres()
        source = xr.Dataset({"v": (("y", "x"), values)}, {"lat": (("y", "x"), lats), "lon": (("y", "x"), lons)})
    out = regrid(source, target, "bilinear", engine="spherely").v
    at_pole = np.abs(goal_lat) == 90
    np.testing.assert_allclose(out[at_pole], np.repeat(np.sign(goal_lat[at_pole])[:, None], 4, axis=1), atol=1e-8)
    lat, lon, number = read_grid(source).closed_centres()
    goals = unit_vectors(*read_grid(target).centres())[~at_pole].reshape(-1, 3)
    by_hand = bilinear_by_hand(unit_vectors(lat, lon), goals)
    want = np.where(by_hand.any(axis=1), by_hand @ values.ravel()[number.ravel()], np.nan)
    np.testing.assert_allclose(out.values[~at_pole].ravel(), want, atol=1e-7)


def test_bilinear_finds_thin_quadrilaterals():
    """Near a pole, the right quadrilateral need not have the nearest middle; beyond the last row there is none."""
    source = field(grid([89.0, 89.5, 89.9], np.arange(0.125, 360, 0.25)))
    target = grid([89.01, 89.3, 89.899, 89.95], np.arange(0, 350, 11.0))
    out = regrid(source, target, "bilinear", engine="spherely").v
    assert np.isfinite(out[:3]).all()
    assert np.isnan(out[3]).all()


def test_cells_that_reach_half_round_the_earth_are_refused():
    with pytest.raises(ValueError, match=r"reach halfway round the earth.*Leave engine out.*method='nearest'"):
        regrid(field(grid([-30.0, 0.0, 30.0], [0.0, 180.0])), COARSE, "bilinear", engine="spherely")
    with pytest.raises(ValueError, match=r"reach halfway round the earth"):
        regrid(field(REGULAR), from_edges([-90, 90], [0, 360]), engine="spherely")


@pytest.mark.realdata
def test_bilinear_from_a_cut_of_a_real_model(real_data):
    """3 x 4 cells, every hundredth of a rotated CORDEX grid."""
    with xr.open_dataset(sorted((real_data / "gcm").glob("pr_NAM-22*.nc"))[0], decode_times=False) as ds:
        ds = ds[["pr"]].isel(time=slice(3)).load()
    lat, lon = read_grid(ds).centres()
    assert lat.shape == (3, 4)
    target = grid(np.linspace(lat.min(), lat.max(), 7), np.linspace(-150, -10, 9))
    out = regrid(ds, target, "bilinear").pr.values.reshape(3, -1)
    by_hand = bilinear_by_hand(unit_vectors(lat, lon), unit_vectors(*read_grid(target).centres()).reshape(-1, 3))
    want = np.where(by_hand.any(axis=1), ds.pr.values.reshape(3, -1) @ by_hand.T, np.nan)
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert 15 < np.isfinite(out[0]).sum() < out[0].size


def test_conservative_by_hand():
    source = grid([50.0, 47.0, 43.5, 41.0], [10.0, 12.0, 15.0, 16.5, 18.0])
    ds = field(source)
    ds["v"][1, 2] = np.nan
    target = grid([41.7, 44.2, 48.9], [9.0, 13.3, 16.0])
    np.testing.assert_allclose(regrid(ds, target).v, by_hand(ds, target), rtol=1e-13)


def test_bilinear_against_scipy():
    from scipy.interpolate import RegularGridInterpolator

    ds = field(REGULAR.isel(lat=slice(None, None, -1)))
    target = grid(np.linspace(20, 52, 30), np.linspace(-130, -60, 33))
    points = np.stack(np.meshgrid(target.lat, target.lon, indexing="ij"), -1)
    want = RegularGridInterpolator((ds.lat, ds.lon), ds.v.values, bounds_error=False)(points)
    np.testing.assert_allclose(regrid(ds, target, "bilinear").v, want, rtol=1e-12)


def test_coarsen_is_regrid_onto_the_blocks():
    ds = field(grid(np.linspace(60, 30, 24), np.linspace(0, 45, 36, endpoint=False)), 3)
    ds["v"] = ds.v.where(ds.v > 0.3)
    for factor in (1, 2, 3, 4):
        blocks = coarsen(ds, factor)
        assert blocks.v.shape == (3, 24 // factor, 36 // factor)
        xr.testing.assert_allclose(regrid(ds, blocks), blocks, rtol=1e-12)


def test_coarsen_by_hand():
    ds = field(grid([3.0, 1.0, -1.0, -3.0], [0.0, 1.0, 2.0, 3.0]))
    ds["v"][0, 0] = np.nan
    ds["v"][2:, 2:] = np.nan
    weight = areas(ds)
    blocks = lambda a: a.reshape(2, 2, 2, 2)  # noqa: E731
    seen = np.isfinite(ds.v.values)
    with np.errstate(invalid="ignore"):
        want = blocks(np.where(seen, ds.v.values, 0) * weight).sum((1, 3)) / blocks(seen * weight).sum((1, 3))
    out = coarsen(ds, 2)
    np.testing.assert_allclose(out.v, want, rtol=1e-14)
    assert np.isnan(out.v[1, 1])
    np.testing.assert_allclose(out.lat, [2, -2])
    np.testing.assert_allclose(out.lon, [0.5, 2.5])


def test_coarsen_keeps_uneven_cells():
    """Blocks of uneven cells cannot be inferred from their centres: the output has their bounds, and they are used."""
    source = field(grid([60.0, 50.0, 47.0, 40.0], [0.0, 1.0, 5.0, 6.0]))
    blocks = coarsen(source, 2)
    assert blocks.lat.attrs["bounds"] == "lat_bnds"
    np.testing.assert_allclose(regrid(source, blocks).v, blocks.v, rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# What is kept: names, order, dtype, laziness


def test_names_dims_attributes_and_dtype_are_kept():
    day = np.arange("2000-01-01", "2000-01-04", dtype="datetime64[D]").astype("datetime64[ns]")
    values = np.random.default_rng(0).random((26, 3, 59), np.float32)
    da = xr.DataArray(
        values,
        dims=("latitude", "day", "longitude"),
        coords={"latitude": REGULAR.lat.values, "longitude": REGULAR.lon.values, "day": day, "height": 2.0},
        attrs={"units": "mm"},
        name="pr",
    )
    da["latitude"].attrs = {"units": "degrees_north", "long_name": "Breite"}
    out = regrid(da, COARSE)
    assert out.dims == da.dims
    assert out.attrs == da.attrs
    assert out.name == "pr"
    assert out.dtype == np.float32
    assert out.latitude.attrs == da.latitude.attrs
    np.testing.assert_array_equal(out.latitude, COARSE.lat)
    np.testing.assert_array_equal(out.day, da.day)
    assert float(out.height) == 2.0
    assert regrid(da.astype("int16"), COARSE).dtype == np.float64
    assert coarsen(da.isel(longitude=slice(58)), 2).dims == da.dims


def test_a_dataset_keeps_what_is_not_on_the_grid():
    ds = field(REGULAR, 2).assign(other=("d0", [1, 2]), row=("lat", np.arange(26.0)), scalar=7)
    ds.attrs = {"title": "t"}
    out = regrid(ds, COARSE)
    assert set(out.data_vars) == {"v", "other", "scalar"}
    assert out.attrs == ds.attrs


def test_curvilinear_names_are_those_of_the_target():
    source = rotated(20, 24)
    ds = source.assign(v=(("time", "y", "x"), np.ones((2, 20, 24))), rotated_pole=0)
    ds.v.attrs = {"grid_mapping": "rotated_pole", "units": "mm"}
    out = regrid(ds, COARSE)
    assert out.v.dims == ("time", "lat", "lon")
    assert out.v.attrs == {"units": "mm"}
    assert "rotated_pole" not in out
    back = regrid(field(REGULAR), rotated(10, 12))
    assert back.v.dims == ("y", "x")
    assert back.lat.shape == (10, 12)
    assert back.lat.attrs["standard_name"] == "latitude"


@pytest.mark.parametrize("method", ["conservative", "bilinear", "nearest"])
def test_lazy_equals_eager(no_compute, method):
    ds = field(REGULAR, 7, 3, dtype=np.float32)
    ds["v"] = ds.v.where(ds.v > 0.2)
    chunked = ds.chunk(d0=2, d1=1)
    with no_compute():
        lazy = regrid(chunked, COARSE, method)
        coarse = coarsen(chunked.isel(lon=slice(58)), 2)
    assert lazy.v.chunks[:2] == chunked.v.chunks[:2]
    xr.testing.assert_identical(lazy.compute(), regrid(ds, COARSE, method))
    xr.testing.assert_identical(coarse.compute(), coarsen(ds.isel(lon=slice(58)), 2))


def test_fifty_years_build_at_once(no_compute):
    days = 18262
    data = dask.array.zeros((days, 621, 1405), chunks=(1, 621, 1405), dtype="float32")
    lat, lon = 49.91667 - np.arange(621) / 24, -125 + np.arange(1405) / 24
    da = xr.DataArray(data, dims=("time", "lat", "lon"), coords={"lat": lat, "lon": lon})
    with no_compute():
        out = regrid(da, COARSE)
    assert len(out.__dask_graph__()) <= 2 * days + 5  # one task makes a day, one regrids it
    assert out.shape == (days, *COARSE.sizes.values())


def test_weights_are_in_the_graph_once():
    source, target = rotated(40, 50), COARSE
    ds = source.assign(v=(("time", "y", "x"), np.ones((200, 40, 50)))).chunk(time=1)
    size = len(pickle.dumps(regrid_weights(source, target).matrix))
    out = regrid(ds, target).v
    without = regrid(ds.isel(time=slice(1)), target).v
    assert len(pickle.dumps(out.__dask_graph__())) - len(pickle.dumps(without.__dask_graph__())) < 200 * 4 * 2000 * 8
    assert size > 10_000
    import cloudpickle

    tasks = out.__dask_graph__()
    heavy = [k for k in tasks if len(cloudpickle.dumps(tasks[k])) > size]
    assert len(heavy) <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Orientation, date line, poles, partial coverage


@pytest.mark.parametrize("method", ["conservative", "bilinear", "nearest"])
def test_orientation_and_longitudes_do_not_matter(method):
    world = grid(np.arange(-88, 90, 4.0), np.arange(-177.5, 180, 5.0))
    ds = field(world)
    target = grid(np.arange(41, 80, 2.0), np.arange(-199.3, -160, 2.0))  # across the date line
    want = regrid(ds, target, method)
    other = ds.assign_coords(lon=ds.lon % 360).sortby("lon")
    xr.testing.assert_allclose(regrid(other, target, method), want)
    xr.testing.assert_allclose(regrid(ds.isel(lat=slice(None, None, -1)), target, method), want)
    flipped = regrid(ds, target.isel(lat=slice(None, None, -1), lon=slice(None, None, -1)), method)
    xr.testing.assert_allclose(flipped.sortby(["lat", "lon"]), want)
    jump = target.assign_coords(lon=(target.lon + 180) % 360 - 180)  # ... 179, -179 ...
    out = regrid(ds, jump, method)
    np.testing.assert_allclose(out.v, want.v)
    np.testing.assert_array_equal(out.lon, jump.lon)
    assert np.isfinite(want.v).all()


def test_coarsen_over_the_date_line_keeps_the_convention():
    ds = field(grid([1.0, 2.0], [178.5, 179.5, -179.5, -178.5]))
    np.testing.assert_allclose(coarsen(ds, 2).lon, [179, -179])
    ds = field(grid([1.0, 2.0], [177.5, 178.5, 179.5, -179.5]))
    np.testing.assert_allclose(coarsen(ds, 2).lon, [178, -180])


def test_cells_at_the_poles():
    """A grid with centres on the poles has half cells there, so that global means are right for the sphere."""
    lat = np.linspace(-90, 90, 19)
    ds = grid(lat, np.arange(0, 360, 10.0)).assign(v=(("lat", "lon"), np.tile(np.sin(np.deg2rad(lat)) ** 2, (36, 1)).T))
    np.testing.assert_allclose(areas(ds).sum(), 4 * np.pi, rtol=1e-14)
    whole = from_edges([-90, 90], [0, 360])
    out = regrid(ds, whole, skipna=False).v.item()
    assert out == pytest.approx((ds.v.values * areas(ds)).sum() / (4 * np.pi), rel=1e-13)
    polygons = regrid(ds, from_edges([80, 85, 90], np.arange(0, 361, 30)), engine="spherely")
    assert np.isfinite(polygons.v).all()


def test_partial_coverage():
    ds = field(from_edges([0, 1, 2], [0, 1, 2])) * 0 + 1.0
    target = from_edges([0, 4], [0, 1, 4, 6])
    share = np.sin(np.deg2rad(2)) / np.sin(np.deg2rad(4))
    out = regrid(ds, target, skipna=False)
    np.testing.assert_allclose(out.v, [[share, share / 3, np.nan]])
    assert regrid(ds, target, skipna=False, unmapped_to_nan=False).v[0, 2] == 0
    np.testing.assert_allclose(regrid(ds, target, "conservative_normed", skipna=False).v, [[1, 1, np.nan]])
    np.testing.assert_allclose(regrid(ds, target).v, [[1, 1, np.nan]])
    np.testing.assert_allclose(regrid(ds, target, na_thres=0.6).v, [[1, np.nan, np.nan]])
    assert np.isnan(regrid(ds, target, na_thres=0.0).v).all()


def test_bounds_are_obeyed():
    """Both kinds of CF bounds and xESMF's edges give the same result, other than inferred bounds would."""
    lat_edges, lon_edges = [40.0, 41.0, 44.0, 45.0], [350.0, 355.0, 356.0, 362.0]
    source = field(from_edges(lat_edges, lon_edges))
    target = grid([41.0, 43.0], [-8.0, -4.0])
    want = regrid(source, target)
    cf = source.drop_vars(["lat_b", "lon_b"])
    pairs = lambda e: np.sort(np.stack([e[:-1], e[1:]], 1), 1)  # noqa: E731
    cf["lat_bnds"], cf["lon_bnds"] = (("lat", "bnds"), pairs(lat_edges)), (("lon", "bnds"), pairs(lon_edges) % 360)
    inferred = regrid(cf, target)
    cf.lat.attrs["bounds"], cf.lon.attrs["bounds"] = "lat_bnds", "lon_bnds"
    out = regrid(cf, target)
    np.testing.assert_allclose(out.v, want.v, rtol=1e-13)
    assert np.abs(inferred.v - want.v).max() > 1e-3
    assert "lat_bnds" not in out
    assert "bounds" not in out.lat.attrs


def test_curvilinear_bounds_of_both_kinds():
    corners = rotated(21, 25)
    lat_b, lon_b = corners.lat.values, corners.lon.values
    source = rotated(20, 24)
    v = (("y", "x"), np.random.default_rng(0).random((20, 24)))
    # the centres of rotated(20, 24) lie inside the cells of rotated(21, 25)
    shared = source.assign(v=v, lat_b=(("yb", "xb"), lat_b), lon_b=(("yb", "xb"), lon_b))
    cf = source.assign(v=v)
    around = lambda c: np.stack([c[:-1, :-1], c[:-1, 1:], c[1:, 1:], c[1:, :-1]], -1)  # noqa: E731
    cf["lat_vertices"], cf["lon_vertices"] = (("y", "x", "four"), around(lat_b)), (("y", "x", "four"), around(lon_b))
    cf.lat.attrs["bounds"], cf.lon.attrs["bounds"] = "lat_vertices", "lon_vertices"
    a, b = regrid(shared, COARSE, na_thres=0.5), regrid(cf, COARSE, na_thres=0.5)
    np.testing.assert_allclose(a.v, b.v, rtol=1e-13)
    assert np.isfinite(a.v).sum() > 20


def with_vertices(ds, lat_b, lon_b, order=(0, 1, 2, 3)):
    """``ds`` with CF vertices ``(y, x, 4)`` from shared corners, in the given order."""
    around = lambda c: np.stack([c[:-1, :-1], c[:-1, 1:], c[1:, 1:], c[1:, :-1]], -1)[..., list(order)]  # noqa: E731
    ds = ds.assign(
        lat_vertices=(("y", "x", "vertices"), around(lat_b)), lon_vertices=(("y", "x", "vertices"), around(lon_b))
    )
    ds.lat.attrs["bounds"], ds.lon.attrs["bounds"] = "lat_vertices", "lon_vertices"
    return ds


# CF vertices start at any corner and run either way round; the other orders cross over, as neighbours reveal.
CF_ORDERS = [np.roll(o, n).tolist() for o in ([0, 1, 2, 3], [3, 2, 1, 0]) for n in range(4)]
FLIPS = list(itertools.product([1, -1], [1, -1]))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_corners_come_in_any_order(order):
    """Vertices that start anywhere, run either way round or cross over mean the same cells, in source and target."""
    shared = rotated(8, 9)
    source = rotated(7, 8).assign(v=(("y", "x"), np.random.default_rng(0).random((7, 8))))
    edges = {f"{n}_b": (("yb", "xb"), shared[n].values) for n in ("lat", "lon")}
    vertices = with_vertices(source, shared.lat.values, shared.lon.values, order)
    xr.testing.assert_allclose(regrid(vertices, COARSE).v, regrid(source.assign(edges), COARSE).v, rtol=1e-12)
    there, want = (regrid(field(COARSE), target).v for target in (vertices, source.assign(edges)))
    xr.testing.assert_allclose(there, want, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Weights: reused, saved, refused


@pytest.mark.parametrize(("source", "method"), [("flat", "conservative"), ("flat", "nearest"), ("rotated", "bilinear")])
def test_weights_are_saved_and_reused(tmp_path, source, method):
    if source == "flat":
        ds = field(REGULAR, 2)
    else:
        ds = rotated(20, 24).assign(v=(("y", "x"), np.random.default_rng(0).random((20, 24))))
    made = regrid_weights(ds, COARSE, method)
    made.save(tmp_path / "weights.npz")
    want = regrid(ds, COARSE, method)
    xr.testing.assert_identical(regrid(ds, COARSE, method, weights=made), want)
    xr.testing.assert_identical(regrid(ds, COARSE, method, weights=tmp_path / "weights.npz"), want)
    xr.testing.assert_allclose(regrid(ds, weights=tmp_path / "weights.npz"), want)


def test_weights_take_the_names_of_the_data():
    made = regrid_weights(REGULAR, COARSE)
    other = field(REGULAR).rename(lat="latitude", lon="longitude")
    assert regrid(other, COARSE, weights=made).v.dims == ("latitude", "longitude")


def test_weights_of_other_grids_are_refused(tmp_path):
    made = regrid_weights(REGULAR, COARSE)
    with pytest.raises(ValueError, match=r"another source grid.*Type weights=xdeepsd\.regrid_weights"):
        regrid(field(REGULAR.isel(lat=slice(5))), COARSE, weights=made)
    with pytest.raises(ValueError, match="another target grid"):
        regrid(field(REGULAR), REGULAR, weights=made)
    with pytest.raises(ValueError, match="The weights are conservative, but the method is 'nearest'"):
        regrid(field(REGULAR), COARSE, "nearest", weights=made)
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match=r"is not a file of weights.*regrid_weights\(source, target\)\.save"):
        regrid(field(REGULAR), COARSE, weights=tmp_path / "other.npz")


def test_xesmf_is_named_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "xesmf", None)
    with pytest.raises(ImportError, match="conda install -c conda-forge xesmf"):
        regrid(field(REGULAR), COARSE, engine="xesmf")


class Regridder:
    """A stand-in for xESMF's: computes weights in another way than ours, and leaves a log like ESMF's."""

    calls: tuple = ()
    failure = None

    def __init__(self, ds_in, ds_out, method, periodic):
        Regridder.calls += ((ds_in, ds_out, method, periodic),)
        with Path("PET0.ESMF_LogFile").open("a") as log:
            log.write("20250101 ERROR PET0 a cell is twisted\n")
        if Regridder.failure is not None:
            raise Regridder.failure
        grids = [self.grid(ds) for ds in (ds_in, ds_out)]
        source, goal = (unit_vectors(g.lat, g.lon) for g in grids)
        goal = goal.reshape(-1, 3)
        if method.startswith("conservative"):
            matrix = weights_module.build(*grids, method, great_circles=True).matrix
        elif method == "nearest_s2d":
            matrix = np.eye(source.size // 3)[np.argmax(goal @ source.reshape(-1, 3).T, axis=1)]
        else:
            matrix = bilinear_by_hand(source, goal)
            if periodic:  # ESMF puts a pole above and below such a grid: the mean of the row
                beyond = np.flatnonzero(matrix.sum(axis=1) == 0)
                matrix[beyond, : source.shape[1]] = 1 / source.shape[1]
        self.weights = types.SimpleNamespace(
            data=types.SimpleNamespace(to_scipy_sparse=lambda: sparse.coo_matrix(matrix))
        )

    @staticmethod
    def grid(ds):
        """A grid from 1-D or 2-D coordinates, with shared corners."""

        def both(lat, lon):
            lat, lon = ds[lat].values, ds[lon].values
            return (lat, lon) if lat.ndim == 2 else np.meshgrid(lat, lon, indexing="ij")

        around = lambda c: np.stack([c[:-1, :-1], c[:-1, 1:], c[1:, 1:], c[1:, :-1]], -1)  # noqa: E731
        bounds = [around(c) for c in both("lat_b", "lon_b")] if "lat_b" in ds else [None, None]
        return Grid(*both("lat", "lon"), *bounds, "lat", "lon", ("y", "x"))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """`Regridder` in place of xESMF's, in an empty working directory."""
    monkeypatch.setitem(sys.modules, "xesmf", types.SimpleNamespace(Regridder=Regridder))
    monkeypatch.setattr(Regridder, "calls", ())
    monkeypatch.setattr(Regridder, "failure", None)
    monkeypatch.chdir(tmp_path)
    return Regridder


SMALL = grid(np.arange(34.3, 45, 2.0), np.arange(-109.7, -89, 3.0))


@pytest.mark.parametrize("method", ["conservative", "conservative_normed", "bilinear", "nearest"])
@pytest.mark.parametrize("curvilinear", [False, True])
def test_xesmf_gives_the_weights(stand_in, method, curvilinear):
    """xESMF is given the right grids and method, and its weights are applied."""
    if curvilinear:
        ds = rotated(9, 10).assign(v=(("y", "x"), np.random.default_rng(0).random((9, 10))))
    else:
        ds = field(grid(np.arange(30, 50, 3.0), np.arange(-120, -80, 4.0)))
    out = regrid(ds, SMALL, method, engine="xesmf")
    xr.testing.assert_allclose(out, regrid(ds, SMALL, method, engine="spherely"), rtol=1e-7)
    ds_in, _, name, periodic = stand_in.calls[0]
    assert name == {"nearest": "nearest_s2d"}.get(method, method)
    assert periodic is False
    assert ("lat_b" in ds_in) == method.startswith("conservative")


@pytest.mark.parametrize("order", CF_ORDERS, ids=str)
@pytest.mark.parametrize("flip", FLIPS, ids=str)
def test_xesmf_gets_the_corners_that_neighbours_share(stand_in, order, flip):
    """Eight orders of CF vertices times four flips of the map, of the source and of the target."""
    shared = rotated(8, 9)
    corners = [shared[n].values.astype("f4").astype("f8") for n in ("lat", "lon")]
    ds = rotated(7, 8).assign(v=(("y", "x"), np.random.default_rng(0).random((7, 8))))
    turned = {"y": slice(None, None, flip[0]), "x": slice(None, None, flip[1])}
    there = with_vertices(ds, *corners, order).isel(turned)
    regrid(there, SMALL, engine="xesmf")
    regrid(field(SMALL), there, engine="xesmf")
    for arrived in (stand_in.calls[0][0], stand_in.calls[1][1]):
        for name, known in zip(("lat_b", "lon_b"), corners, strict=True):
            np.testing.assert_array_equal(arrived[name], known[:: flip[0], :: flip[1]])
    out = regrid(there, SMALL, engine="xesmf").v
    xr.testing.assert_allclose(out, regrid(with_vertices(ds, *corners), SMALL, engine="spherely").v, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_xesmf_gets_the_corners_of_a_single_row(stand_in, shape):
    """Without neighbours on either side, a mirror image is as good: the cells are the same."""
    shared = rotated(shape[0] + 1, shape[1] + 1)
    ds = rotated(*(n + 1 for n in shape)).isel(y=slice(shape[0]), x=slice(shape[1]))
    corners = [shared[n].values for n in ("lat", "lon")]
    middle = degrees(
        sum(unit_vectors(*corners)[a, b] for a in (slice(1, None), slice(-1)) for b in (slice(1, None), slice(-1)))
    )
    ds = ds.assign_coords({n: ds[n].copy(data=m) for n, m in zip(("lat", "lon"), middle, strict=True)})
    for order in CF_ORDERS:
        regrid(field(SMALL), with_vertices(ds, *corners, order), engine="xesmf")
        given = Regridder.grid(stand_in.calls[-1][1])
        for cell, known in zip(
            unit_vectors(*given.corners()), unit_vectors(*read_grid(with_vertices(ds, *corners)).corners()), strict=True
        ):
            assert {tuple(c) for c in cell.round(12)} == {tuple(c) for c in known.round(12)}


def test_corners_that_neighbours_do_not_share(stand_in):
    """Cells with gaps between them are fine for polygons, but ESMF has no such grid."""
    shared = rotated(8, 9)
    ds = rotated(7, 8).assign(v=(("y", "x"), np.random.default_rng(0).random((7, 8))))
    ds = with_vertices(ds, shared.lat.values, shared.lon.values)
    for name in ("lat", "lon"):
        ds[f"{name}_vertices"] = ds[name] + 0.9 * (ds[f"{name}_vertices"] - ds[name])
    assert np.isfinite(regrid(ds, SMALL).v).any()
    with pytest.raises(
        ValueError, match=r"lat and lon are corners that neighbouring cells do not share.*Leave engine out"
    ):
        regrid(ds, SMALL, engine="xesmf")
    assert stand_in.calls == ()


@pytest.mark.parametrize("curvilinear", [False, True])
def test_xesmf_fills_nothing_beyond_the_outermost_rows(stand_in, curvilinear):
    """A source from 50S to 50N, round the earth: NaN beyond, no gap at the seam, and the numbers of the polygons."""
    source = field(grid(np.arange(-50, 51, 20.0), np.arange(15, 360, 30.0)))
    if curvilinear:
        lat, lon = read_grid(source).centres()
        source = xr.Dataset({"v": (("y", "x"), source.v.values)}, {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)})
    target = grid(np.linspace(-80, 80, 9), [-14.0, 0.0, 14.0, 120.0])
    out = regrid(source, target, "bilinear", engine="xesmf").v
    assert np.isnan(out[np.abs(target.lat) > 50]).all()
    assert np.isfinite(out[np.abs(target.lat) <= 50]).all()
    xr.testing.assert_allclose(out, regrid(source, target, "bilinear", engine="spherely").v, rtol=1e-7)


@pytest.mark.parametrize("method", ["conservative", "conservative_normed", "bilinear", "nearest"])
def test_xesmf_grids_must_overlap(stand_in, method):
    with pytest.raises(ValueError, match="do not overlap"):
        regrid(field(SMALL), grid(np.arange(-45, -30, 2.0), np.arange(70, 90, 3.0)), method, engine="xesmf")


@pytest.mark.parametrize("method", ["patch", "nearest_s2d", "nearest_d2s"])
@pytest.mark.parametrize("engine", [None, "spherely", "xesmf"])
def test_methods_that_are_not_documented_are_refused(stand_in, method, engine):
    with pytest.raises(ValueError, match=f"The method is '{method}'. Needed: one of conservative"):
        regrid(field(SMALL), COARSE, method, engine=engine)
    assert stand_in.calls == ()


def test_nearest_between_cells_of_any_shape():
    """A target amid long cells is farther from every centre than the centres are from each other."""
    source = field(grid(np.linspace(0, 5, 51), np.arange(0, 50, 5.0)))
    assert np.isfinite(regrid(source, from_edges([2, 3], [22, 23]), "nearest").v).all()


def test_the_log_of_esmf_is_removed(stand_in, tmp_path):
    """Only if it is new; everything else in the folder is left alone."""
    (tmp_path / "notes.txt").write_text("mine")
    regrid(field(SMALL), COARSE, "nearest", engine="xesmf")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    log = tmp_path / "PET0.ESMF_LogFile"
    log.write_text("of the model that ran here\n")
    regrid(field(SMALL), COARSE, "nearest", engine="xesmf")
    assert log.read_text().startswith("of the model that ran here\n")


def test_an_error_of_esmf_tells_what_its_log_says(stand_in, tmp_path):
    stand_in.failure = ValueError("ESMC_FieldRegridStore() failed with rc = 506.")
    with pytest.raises(ValueError, match="rc = 506") as info:
        regrid(field(SMALL), COARSE, engine="xesmf")
    assert "PET0.ESMF_LogFile (removed) ends with" in info.value.__notes__[0]
    assert "a cell is twisted" in info.value.__notes__[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.xesmf
def test_against_xesmf_itself(monkeypatch, tmp_path):
    pytest.importorskip("xesmf", reason="xESMF comes with conda only", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    ds = field(REGULAR)
    for method in ("conservative", "bilinear"):
        ours = regrid(ds, COARSE, method, engine="spherely")
        xr.testing.assert_allclose(regrid(ds, COARSE, method, engine="xesmf"), ours, rtol=1e-8)
    shared = rotated(21, 25)
    ds = rotated(20, 24).assign(v=(("y", "x"), np.random.default_rng(0).random((20, 24))))
    for order, flip in itertools.product(CF_ORDERS, FLIPS):
        there = with_vertices(ds, shared.lat.values, shared.lon.values, order)
        there = there.isel(y=slice(None, None, flip[0]), x=slice(None, None, flip[1]))
        xr.testing.assert_allclose(regrid(there, COARSE, engine="xesmf").v, regrid(there, COARSE).v, rtol=1e-8)
    belt = field(grid(np.arange(-50, 51, 5.0), np.arange(2.5, 360, 5.0)))
    world = grid(np.arange(-88, 90, 4.0), np.arange(0, 360, 4.0))
    ours = regrid(belt, world, "bilinear", engine="spherely")
    xr.testing.assert_allclose(regrid(belt, world, "bilinear", engine="xesmf"), ours, rtol=1e-8)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_bad_grids_are_named():
    ds = field(REGULAR)
    with pytest.raises(ValueError, match=r"do not overlap: the source spans lat 24\.5\.\.49\.5.*lat -30\.\.-20"):
        regrid(ds, grid([-30.0, -20.0], [0.0, 10.0]))
    for method in ("bilinear", "nearest"):
        with pytest.raises(ValueError, match="do not overlap"):
            regrid(ds, grid([-30.0, -20.0], [0.0, 10.0]), method)
    with pytest.raises(ValueError, match=r"lon is not monotonic: .* Type ds\.sortby\('lon'\)"):
        regrid(ds, grid([30.0, 31.0], [-100.0, -98.0, -99.0]))
    with pytest.raises(
        ValueError, match=r"lat has repeated values: \[31\.0\].*isel\(lat=np\.delete\(range\(3\), \[2\]\)\)"
    ):
        regrid(ds, grid([30.0, 31.0, 31.0], [-100.0, -98.0]))
    with pytest.raises(ValueError, match="lat has 1 NaN among its 2 values"):
        regrid(ds, grid([30.0, np.nan], [-100.0, -98.0]))
    with pytest.raises(ValueError, match=r"lat reaches from 30 to 300.*swapped"):
        regrid(ds, grid([30.0, 300.0], [-100.0, -98.0]))
    with pytest.raises(ValueError, match=r"lon spans 370 degrees.*isel\(lon=slice\(None, -1\)\)"):
        regrid(field(grid([0.0, 10.0], np.arange(0, 361, 10.0))), COARSE)
    with pytest.raises(ValueError, match="lat has 1 value and no bounds"):
        regrid(ds, grid([30.0], [-100.0, -98.0]))
    with pytest.raises(ValueError, match="on a source of 1 x 2 cells"):
        regrid(field(grid([30.0], [-100.0, -98.0])), COARSE, "bilinear")
    with pytest.raises(ValueError, match="No target was given"):
        regrid(ds)
    with pytest.raises(ValueError, match=r"The method is 'cubic'.*one of conservative"):
        regrid(ds, COARSE, "cubic")
    with pytest.raises(ValueError, match="The engine is 'cdo'"):
        regrid(ds, COARSE, engine="cdo")
    with pytest.raises(ValueError, match="No latitude found"):
        regrid(ds.drop_vars("lat"), COARSE)


def test_bounds_that_disagree_are_named():
    ds = field(grid([40.0, 41.0, 42.0], [0.0, 1.0]))
    ds.lat.attrs["bounds"] = "lat_bnds"
    target = grid([40.0, 41.0], [0.0, 1.0])
    for bounds, text in (
        ([[39.5, 40.5], [41.5, 42.5], [41.5, 42.5]], "disagree with its centres: 41 at position 1 lies outside"),
        ([[39.5, 40.5], [40.7, 41.5], [41.5, 42.5]], r"have gaps or overlaps: cell 0 ends at 40\.5 .* begins at 40\.7"),
        ([[39.5, 40.5, 1.0]] * 3, r"have the shape \(3, 3\).*\(3, 2\) for 3 cells"),
    ):
        with pytest.raises(ValueError, match=text):
            regrid(ds.assign(lat_bnds=(("lat", "n"), bounds)), target)
    source = rotated(6, 6).assign(v=(("y", "x"), np.ones((6, 6))))
    wrong = rotated(7, 7) + 0
    bad = source.assign(lat_b=(("yb", "xb"), wrong.lat.values - 20), lon_b=(("yb", "xb"), wrong.lon.values))
    with pytest.raises(ValueError, match=r"bounds of lat and lon disagree with the centres: cell \(0, 0\)"):
        regrid(bad, COARSE)


def map_of(lat, lon, lat_dim="lat", lon_dim="lon", **bounds):
    """A map of ones on 1-D coordinates, whose dims may have other names; bounds by name."""
    coords = {"lat": (lat_dim, np.asarray(lat, float)), "lon": (lon_dim, np.asarray(lon, float))}
    ds = xr.Dataset({"v": ((lat_dim, lon_dim), np.ones((len(lat), len(lon))))}, coords)
    for name, values in bounds.items():
        ds[name] = ((lat_dim if name.startswith("lat") else lon_dim, "n"), np.asarray(values, float))
        ds[name[:3]].attrs["bounds"] = name
    return ds


def rotated_with(shift=0.0, wanted=4):
    """A rotated map with vertices that are `shift` off, or too few."""
    ds, shared = rotated(7, 8), rotated(8, 9)
    ds = ds.assign(v=(("y", "x"), np.ones((7, 8))))
    return with_vertices(ds, shared.lat.values + shift, shared.lon.values).isel(vertices=slice(wanted))


LAT, LON = np.arange(34.0, 45, 2), np.arange(250.0, 270, 3)
ONE_ROW = rotated(7, 8).isel(y=[1]).assign(v=(("y", "x"), np.ones((1, 8))))
FOUR = {f"{n.upper()}_OF_FOUR_CORNERS": ONE_ROW[n].values[..., None] + s for n, s in
        (("lat", np.array([-1, -1, 1, 1])), ("lon", np.array([-2, 2, 2, -2])))}  # fmt: skip
ADVICE = {
    "NaN": (map_of([34, np.nan, 38, 40], LON), {}, {}),
    "NaN of a coordinate that is no dim": (map_of([34, np.nan, 38, 40], LON, "y", "x"), {}, {}),
    "NaN among longitudes": (map_of(LAT, [250, np.nan, 256]), {}, {}),
    "twice": (map_of([34, 36, 36, 36, 38], LON), {}, {}),
    "twice, no dim": (map_of([34, 36, 36, 38], LON, "y", "x"), {}, {}),
    "twice, a turn apart": (map_of(LAT, [250, -110, 253], "y", "x"), {}, {}),
    "unordered": (map_of([34, 38, 36], LON, "y", "x"), {}, {}),
    "unordered longitudes": (map_of(LAT, [250, 256, 253]), {}, {}),
    "unordered over the date line": (map_of(LAT, [179, -100, 130, -175], "y", "x"), {}, {}),
    "unordered over Greenwich": (map_of(LAT, [260, 10, 350, 0, 300], "y", "x"), {}, {}),
    "more than a turn": (map_of(LAT, np.arange(0, 361, 10), "y", "x"), {}, {}),
    "one value": (map_of([37], LON, "y", "x"), {}, {"LOW": 36, "HIGH": 38}),
    "one value of longitude": (map_of(LAT, [253], "y", "x"), {}, {"LOW": 252, "HIGH": 254}),
    "one row of two dimensions": (ONE_ROW, {}, FOUR),
    "bounds elsewhere": (map_of([34, 36], LON, lat_edges=[[30, 31], [31, 32]]), {}, {}),
    "bounds that are NaN": (map_of([34, 36], LON, lat_edges=[[33, 35], [35, np.nan]]), {}, {}),
    "bounds with gaps": (map_of([34, 36], LON, lat_edges=[[33, 35], [35.5, 37]]), {}, {}),
    "bounds of another shape": (map_of(LAT, [250, 253], lon_edges=np.ones((2, 3))), {}, {}),
    "vertices elsewhere": (rotated_with(shift=20.0), {}, {}),
    "vertices that are NaN": (rotated_with(shift=np.nan), {}, {}),
    "vertices of another shape": (rotated_with(wanted=3), {}, {}),
    "chunks": (map_of(LAT, LON).chunk(lat=2), {}, {}),
    "no such method": (map_of(LAT, LON), {"method": "patch"}, {}),
    "nothing to interpolate between": (map_of([37], LON), {"method": "bilinear"}, {}),
    "one row to interpolate": (ONE_ROW, {"method": "bilinear"}, {}),
    "half the earth": (map_of([-45, 0, 45], [70, 250]), {"method": "bilinear", "engine": "spherely"}, {}),
    "other weights": (map_of(LAT, LON), {"weights": regrid_weights(REGULAR, SMALL)}, {}),
    "weights of another method": (
        map_of(LAT, LON),
        {"weights": regrid_weights(map_of(LAT, LON), SMALL), "method": "nearest"},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVICE)
def test_advice_leads_on(name):
    """Typing what the message says, with its CAPITALS filled in, regrids the map."""
    ds, arguments, capitals = ADVICE[name]
    with pytest.raises(ValueError, match=r"[Tt]ype ") as info:
        regrid(ds, SMALL, **arguments)
    typed = re.split(" if | to have |, or (?!type)", re.split("[Tt]ype ", str(info.value))[-1])[0].rstrip(".")
    scope = {"ds": ds.copy(), "np": np, "xdeepsd": xdeepsd, "target": SMALL, **capitals}
    if typed.startswith(("method=", "weights=")):
        arguments = arguments | eval(f"dict({typed})", scope)
    elif " = " in typed:
        exec(typed, scope)
        ds = scope["ds"]
    else:
        ds = eval(typed, scope)
    assert np.isfinite(regrid(ds, SMALL, **arguments).v).any()


@pytest.mark.parametrize(
    ("factor", "text"), [(2, "does not divide"), (8, "The factor is 8, for 5 x 7 cells"), (2.5, r"The factor is 2\.5")]
)
def test_advice_of_coarsen_leads_on(factor, text):
    scope = {"ds": map_of(np.arange(5.0), np.arange(7.0)), "xdeepsd": xdeepsd}
    with pytest.raises(ValueError, match=text) as info:
        coarsen(scope["ds"], factor)
    typed = str(info.value).split("Type ")[1].rstrip(".")
    if "coarsen" in typed:  # another factor, for which this map must be cropped
        with pytest.raises(ValueError, match="does not divide into blocks of 2") as info:
            eval(typed, scope)
        typed = str(info.value).split("Type ")[1].rstrip(".")
    assert coarsen(eval(typed, scope), 2).v.shape == (2, 3)


def test_weights_that_are_replaced_are_said(tmp_path, caplog):
    made = regrid_weights(grid([40.0, 41.0], [0.0, 1.0]), grid([40.5, 41.0], [0.5, 1.0]))
    with caplog.at_level(logging.INFO):
        made.save(tmp_path / "weights.npz")
        assert not caplog.text
        made.save(tmp_path / "weights.npz")
    assert f"The weights at {tmp_path / 'weights.npz'} are replaced." in caplog.text


def test_damaged_weights_are_named(tmp_path):
    """Damaging each byte of the file in turn gives the same weights, or a ValueError that names the file."""
    path = tmp_path / "weights.npz"
    made = regrid_weights(grid([40.0, 41.0], [0.0, 1.0]), grid([40.5, 41.0], [0.5, 1.0]))
    made.save(path)
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read = weights_module.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert (read.lat != made.lat).nnz == 0
    assert refused > 100
    for content in (b"", whole[:100], b"CDF\x01", np.zeros(3).tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.npz is not a file of weights, or is damaged"):
            regrid(field(REGULAR), weights=path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npy is not a file of weights"):
        regrid(field(REGULAR), weights=tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        regrid(field(REGULAR), weights=tmp_path / "none.npz")


def test_chunked_maps_and_odd_sizes_are_refused():
    ds = field(REGULAR, 2)
    with pytest.raises(ValueError, match=r"chunked over \['lat'\].*ds\.chunk\(\{'lat': -1, 'lon': -1\}\)"):
        regrid(ds.chunk(lat=5), COARSE)
    with pytest.raises(ValueError, match=r"26 x 59 cells does not divide into blocks of 2.*lon=slice\(58\)"):
        coarsen(ds, 2)
    with pytest.raises(ValueError, match="are 2-D: the blocks"):
        coarsen(rotated(4, 4).assign(v=(("y", "x"), np.ones((4, 4)))), 2)
    for factor in (0, -2, 1.5, 27):
        with pytest.raises(ValueError, match=f"The factor is {factor}, for 26 x 59 cells"):
            coarsen(ds, factor)
    with pytest.raises(ValueError, match="lat has no values: the selection is empty"):
        regrid(ds.isel(lat=slice(0)), COARSE)
    with pytest.raises(ValueError, match="'v' has dtype"):
        regrid(ds.astype("datetime64[ns]"), COARSE)


def test_public_names():
    assert xdeepsd.regrid is regrid
    assert xdeepsd.coarsen is coarsen
    assert xdeepsd.regrid_weights is regrid_weights


# ---------------------------------------------------------------------------------------------------------------------
# xESMF 0.9.2 / ESMF 8.9.0

METHODS = {"conservative": "conservative", "conservative_normed": "conservative_normed", "bilinear": "bilinear",
           "nearest_s2d": "nearest"}  # fmt: skip


def reference(path, name):
    """One result of xESMF: (source Dataset with ``v``, target, arguments of `regrid`, the result)."""
    ds = xr.open_dataset(path).load()
    sides = []
    for side in ("in", "out"):
        coords = {n: ds[f"{n}_{side}"] for n in ("lat", "lon", "lat_b", "lon_b")}
        flat = coords["lat"].ndim == 1
        dims = {n: n if flat else ("y_b", "x_b") if n.endswith("_b") else ("y", "x") for n in coords}
        attrs = {"lat": {"standard_name": "latitude"}, "lon": {"standard_name": "longitude"}}
        sides.append(xr.Dataset(coords={n: (dims[n], c.values, attrs.get(n)) for n, c in coords.items()}))
    result = ds[name]
    call = result.attrs["xesmf_call"]
    gaps = "src_nan" in call
    v = ds["src_nan"] if gaps and "src_nan" in ds else ds["src"].where(ds["missing"] == 0) if gaps else ds["src"]
    if "result_f4" in name and v.ndim == 3:
        v = v[1]
    source, target = sides
    horizontal = ("lat", "lon") if source.lat.ndim == 1 else ("y", "x")
    source["v"] = ((*v.dims[:-2], *horizontal), v.values.astype("f4" if "'f4'" in call else "f8"))
    arguments = {
        "method": METHODS[result.attrs["method"]],
        "skipna": result.attrs["skipna"] == "True",
        "na_thres": float(result.attrs["na_thres"]),
        "unmapped_to_nan": "unmapped_to_nan=True" in call,
    }
    return source, target, arguments, result.values


def names_of(path):
    """Names of results of calls that `regrid` supports (no patch, extrapolation or source mask)."""
    with xr.open_dataset(path) as ds:
        found = {n: ds[n].attrs["xesmf_call"] for n in ds.data_vars if str(n).startswith("result")}
    return [n for n, call in found.items() if not any(word in call for word in ("'patch'", "extrap", "assign(mask"))]


def relative(out, want):
    """Relative differences where xESMF has a number other than 0 (its unmapped cells); NaN elsewhere."""
    with np.errstate(all="ignore"):
        return np.where(want != 0, np.abs(out / want - 1), np.nan)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["c_rotpole_to_rect05.nc", "c_rect1x125_to_rotpole.nc"])
def test_xesmf_curvilinear(real_data, name):
    """All methods, with and without NaN: the same cells and the same numbers."""
    path = real_data / "regrid" / name
    for result in names_of(path):
        source, target, arguments, want = reference(path, result)
        out = regrid(source, target, **arguments).v.values
        np.testing.assert_array_equal(np.isnan(out), np.isnan(want), err_msg=result)
        np.testing.assert_array_equal(out == 0, want == 0, err_msg=result)
        assert np.nanmax(relative(out, want)) < 1e-8, result


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["b_prism_to_4x_conservative_normed.nc", "b_prism_to_mis025_conservative.nc", "b2_timevarying_nan_8x.nc"],
)
def test_xesmf_prism_with_great_circles(real_data, name):
    """With ESMF's edges, the conservative numbers and every NaN agree with xESMF, slivers included."""
    path = real_data / "regrid" / name
    weights = {}
    for result in names_of(path):
        source, target, arguments, want = reference(path, result)
        method = arguments["method"]
        if not method.startswith("conservative"):
            continue
        if method not in weights:
            weights[method] = regrid_weights(source, target, method, engine="spherely")
        out = regrid(source, target, weights=weights[method], **arguments).v.values
        np.testing.assert_array_equal(np.isnan(out), np.isnan(want), err_msg=result)
        assert np.nanmax(relative(out, want)) < (1e-8 if want.dtype == np.float64 else 1e-6), result


# Cells of xESMF decided by a sliver between its great-circle edges and latitude circles (README of the data):
#  - "conservative" is too low along the northern edge of the source, by the sliver there;
#  - at na_thres 0 and without skipna, cells on the coast are NaN because of a sliver of the ocean cell beside them;
#  - at na_thres 1 (and at others where few cells are observed), cells consist of slivers, or of weights near them;
#  - at na_thres 0.25 to 0.75, cells are on the threshold.
# result: (share of cells whose NaN may differ, bound of the relative difference elsewhere)
SLIVERS = {
    "result_nan_noskipna": (0.03, 5e-6),
    "result_nan_skipna_0p0": (0.04, 5e-6),
    "result_nan_skipna_0p25": (1e-3, 6e-6),
    "result_nan_skipna_0p5": (1e-3, 6e-6),
    "result_nan_skipna_0p75": (1e-3, 6e-6),
    "result_nan_skipna_1p0": (0.01, 5e-5),
}


@pytest.mark.realdata
@pytest.mark.parametrize("target_name", ["4x", "16x", "mis025"])
@pytest.mark.parametrize("method", ["conservative", "conservative_normed"])
def test_xesmf_prism(real_data, target_name, method):
    """Exact product weights against great-circle cells: 5e-6, except for slivers."""
    path = real_data / "regrid" / f"b_prism_to_{target_name}_{method}.nc"
    for result in names_of(path):
        source, target, arguments, want = reference(path, result)
        out = regrid(source, target, **arguments).v.values
        nan_share, bound = SLIVERS.get(result, (0.0, 5e-6))
        assert (np.isnan(out) != np.isnan(want)).mean() <= nan_share, result
        difference = relative(out, want)
        if not arguments["skipna"] and method == "conservative":  # rows at the northern and southern edge of the source
            mapped = np.flatnonzero((np.nan_to_num(want) != 0).any(axis=-1))
            difference = np.delete(difference, [mapped[0], mapped[-1]], axis=-2)
        if target_name == "mis025":  # the row only partly covered by the source: 5.03e-6 in one cell of 44 x 56
            bound = max(bound, 5.1e-6) if bound < 1e-5 else bound
        assert np.nanmax(difference) < bound, result


@pytest.mark.realdata
def test_xesmf_na_thres(real_data):
    """NaN that move from day to day, eight thresholds: the same cells, except on a threshold or with a sliver."""
    path = real_data / "regrid" / "b2_timevarying_nan_8x.nc"
    for result in names_of(path):
        source, target, arguments, want = reference(path, result)
        if arguments["method"] == "nearest":  # every cell is a tie between four
            continue
        out = regrid(source, target, **arguments).v.values
        # Bilinear weights of aligned grids are quarters: at 0.25, 0.5 and 0.75 rounding decides.
        on_threshold = arguments["method"] == "bilinear" and arguments["na_thres"] in (0.25, 0.5, 0.75)
        differ = np.isnan(out) != np.isnan(want)
        assert differ.mean() <= (0.13 if on_threshold else 0.035 if arguments["na_thres"] == 0 else 0.01), result
        scale = np.nanstd(source.v)
        edge = slice(1, None) if not arguments["skipna"] else slice(None)  # the northern row, as above
        assert np.nanmax(np.abs(out - want)[..., edge, :]) < 2e-5 * scale, result


@pytest.mark.realdata
def test_xesmf_global(real_data):
    """1.9 x 2.5 degrees to 0.5, and 5 x 4 to 1 and 2, in every orientation: only the known gap between edges."""
    paths = sorted((real_data / "regrid").glob("a_f19*.nc")) + sorted((real_data / "regrid").glob("d_*.nc"))
    for path in paths:
        made = {}
        for result in names_of(path):
            source, target, arguments, want = reference(path, result)
            method, label = arguments["method"], (path.name, result)
            for engine in (None, "spherely"):
                if (method, engine) not in made:
                    made[method, engine] = regrid_weights(source, target, method, engine)
            scale = np.nanstd(source.v)
            out = regrid(source, target, weights=made[method, None], **arguments).v.values
            gap = np.abs(out - want)
            if method == "nearest":
                assert np.nanmean(gap > 1e-9) < 0.02, label  # ties: centres half-way between centres
                continue
            assert (np.isnan(out) != np.isnan(want)).sum() <= (9 if "0p5" in result else 0), label  # on the threshold
            # "result_bilinear" is not periodic there: unmapped (0) between the last and the first column
            assert np.nanmax(gap[want != 0]) < (0.02 if method.startswith("conservative") else 4e-3) * scale, label
            great = regrid(source, target, weights=made[method, "spherely"], **arguments).v.values
            assert np.nanmax(np.abs(great - want)[want != 0]) < 1e-5 * scale, label


@pytest.mark.parametrize("skipna", [True, False])
@pytest.mark.parametrize("engine", [None, "spherely"])
def test_without_numba_scipy_gives_the_same(skipna, engine):
    rng = np.random.default_rng(3)
    coords = {"lat": np.arange(40, 48, 0.5), "lon": np.arange(-5, 7, 0.5)}
    values = np.where(rng.random((5, 16, 24)) < 0.2, np.nan, rng.gamma(1, 4, (5, 16, 24)))
    da = xr.DataArray(values, coords | {"time": np.arange(5)}, ("time", "lat", "lon"))
    target = xr.Dataset(coords={"lat": np.arange(39, 50, 1.3), "lon": np.arange(-6, 8, 1.7)})
    weights = regrid_weights(da, target, engine=engine)
    out = [np.empty((5, *weights.target.shape)) for _ in range(2)]
    for sums, result in zip((weights_module._sum_compiled, weights_module._sum_plain), out, strict=True):
        sums(values, weights, skipna, 0.3, result)
    np.testing.assert_allclose(*out, rtol=1e-12)


def test_graphs_have_the_same_names_in_every_process():
    """A store is resumed only with the same tasks, so the weights in a graph are named by what they are."""
    da = xr.DataArray(np.ones((2, 4, 4)), {"lat": [1.0, 2, 3, 4], "lon": [1.0, 2, 3, 4]}, ("time", "lat", "lon"))
    da = da.chunk(time=1)
    target = xr.Dataset(coords={"lat": [1.5, 2.5], "lon": [1.5, 2.5]})
    names = [xdeepsd.regrid(da, target, method).data.name for method in ("conservative", "conservative", "bilinear")]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("engine", [None, "spherely"])
def test_the_share_of_a_cell_that_is_covered(engine):
    source = xr.Dataset(coords={"lat": [-0.5, 0.5], "lon": [0.5, 1.5]})
    target = xr.Dataset(coords={"lat": [0.0, 2.0], "lon": [1.0, 3.0]})
    target = target.assign(lon_bnds=(("lon", "b"), [[0.5, 2.5], [2.5, 3.5]]))
    target["lon"].attrs["bounds"] = "lon_bnds"
    covered = xdeepsd.regrid_weights(source, target, engine=engine).covered()
    np.testing.assert_allclose(covered, [[0.75, 0], [0, 0]], atol=1e-3)
