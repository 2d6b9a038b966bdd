"""`downscale`: exactness against a slow oracle, chunks, laziness, names, missing values, masks."""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array
import numpy as np
import oracle
import pytest
import torch
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given, settings
from hypothesis import strategies as st

import xdeepsd
from xdeepsd.inference.fast.compiled import HAS_BFLOAT16
from xdeepsd.models.threads import torch_threads


@pytest.fixture(scope="module")
def case():
    """A stack of two stages, coarse days, and elevation."""
    model = make_stack(2, channels=(8, 4))
    coarse = make_coarse()
    return model, coarse, make_static(coarse, model.scale)["elevation"]


def relative(a, b):
    return float(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()))


@pytest.mark.parametrize(
    "config",
    [
        {"channels": (8, 4)},
        {"channels": (8, 4), "residual": True},
        {"channels": (6, 5), "kernels": (5, 3, 3), "factor": 3},
        {"channels": (4,), "kernels": (3, 5), "factor": 2, "static": ("elevation", "climatology"), "residual": True},
        {"channels": (), "kernels": (3,), "factor": 2, "static": ()},
        {"channels": (4,), "kernels": (1, 1), "factor": 4, "residual": True},
        {"channels": (8, 4), "kernels": (3, 3, 3), "static": ()},
    ],
    ids=["paper", "residual", "factor3", "climatology", "linear", "factor4", "no static"],
)
def test_equals_the_oracle_in_float64(config):
    model = make_stack(2, **config)
    coarse = make_coarse(days=2, nlat=4, nlon=5)
    static = make_static(coarse, model.scale, names=config.get("static", ("elevation",)))
    fields = {k: v.values for k, v in static.items()}
    expected = np.stack([oracle.stack(model, day, fields) for day in coarse.values.astype(float)])
    double = coarse.astype("float64").deepsd.downscale(model, static, precision="float64")
    # The static channels are float32 (half a unit in the last place of a kilometre is 3e-5 m).
    np.testing.assert_allclose(double, expected, rtol=1e-5, atol=1e-5)
    single = coarse.deepsd.downscale(model, static)
    assert single.dtype == np.float32
    assert relative(single.values, expected) < 2e-6
    assert (single >= 0).all()
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_accessor_is_the_function(case):
    model, coarse, elevation = case
    xr.testing.assert_equal(coarse.deepsd.downscale(model, elevation), xdeepsd.downscale(coarse, model, elevation))
    both = coarse.to_dataset().deepsd.downscale(model, static=elevation)
    assert isinstance(both, xr.Dataset)
    xr.testing.assert_equal(both["pr"], coarse.deepsd.downscale(model, elevation))


@pytest.mark.parametrize("days", [1, 2, 3])
def test_time_chunks_give_equal_bits(case, days):
    model, coarse, elevation = case
    eager = coarse.deepsd.downscale(model, elevation)
    lazy = coarse.chunk(time=days).deepsd.downscale(model, elevation)
    assert lazy.chunks[0] == coarse.chunk(time=days).chunks[0]
    np.testing.assert_array_equal(lazy.values, eager.values)


@pytest.mark.parametrize(
    "chunks", [{"lat": 3, "lon": 4}, {"lat": 1, "lon": 1}, {"lat": (1, 4, 1), "lon": 8, "time": 2}]
)
def test_space_chunks_give_the_same_numbers(case, chunks):
    model, coarse, elevation = case
    coarse = coarse.where((coarse.lat > 44) | (coarse.lon < -120))  # missing cells, filled from across chunks
    eager = coarse.deepsd.downscale(model, elevation)
    lazy = coarse.chunk(chunks).deepsd.downscale(model, elevation)
    assert lazy.chunks[1] == tuple(model.scale * n for n in coarse.chunk(chunks).chunks[1])
    np.testing.assert_allclose(lazy.values, eager.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(lazy.values), np.isnan(eager.values))


@settings(max_examples=25)
@given(
    nlat=st.integers(1, 7),
    nlon=st.integers(1, 7),
    lat_chunk=st.integers(1, 7),
    lon_chunk=st.integers(1, 7),
    missing=st.floats(0, 0.6),
    kernels=st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
    factor=st.sampled_from([2, 3]),
    seed=st.integers(0, 99),
)
def test_any_tiling_gives_the_same_numbers(nlat, nlon, lat_chunk, lon_chunk, missing, kernels, factor, seed):
    model = make_stack(2, channels=(3,), kernels=kernels, factor=factor, seed=seed)
    coarse = make_coarse(days=2, nlat=max(nlat, 2), nlon=max(nlon, 2), seed=seed)
    gone = np.random.default_rng(seed).random(coarse.shape) < missing
    gone[:, 0, 0] = False
    static = make_static(coarse, model.scale)  # a single cell has no spacing, so the grid comes from a pair of cells
    window = {"lat": slice(nlat * model.scale), "lon": slice(nlon * model.scale)}
    coarse, static = coarse.where(~gone).isel(lat=slice(nlat), lon=slice(nlon)), static.isel(window)
    eager = coarse.deepsd.downscale(model, static)
    lazy = coarse.chunk(lat=lat_chunk, lon=lon_chunk).deepsd.downscale(model, static).compute()
    np.testing.assert_allclose(lazy.values, eager.values, rtol=1e-5, atol=1e-5)


def test_building_computes_nothing(case, no_compute):
    model, coarse, elevation = case

    def never(block):
        raise AssertionError("a block was computed")

    lazy = coarse.copy(
        data=dask.array.map_blocks(never, coarse.chunk(time=1).data, dtype="f4", meta=np.empty((0,) * 3))
    )
    with no_compute():
        for chunks in ({}, {"lat": 2, "lon": 3}):
            fine = lazy.chunk(chunks).deepsd.downscale(model, elevation.chunk(lat=5), mask=(elevation > 0).chunk())
            assert dask.is_dask_collection(fine.data)
            assert dask.is_dask_collection(
                lazy.chunk(chunks).to_dataset().deepsd.downscale(model, elevation)["pr"].data
            )


def test_numpy_in_numpy_out(case):
    model, coarse, elevation = case
    assert isinstance(coarse.deepsd.downscale(model, elevation.chunk(lat=5)).data, np.ndarray)


def test_lazy_static_and_mask_give_the_same(case):
    model, coarse, elevation = case
    land = elevation > 300
    eager = coarse.deepsd.downscale(model, elevation, mask=land)
    lazy = coarse.chunk(time=2).deepsd.downscale(model, elevation.chunk(lat=7), mask=land.chunk(lon=3))
    np.testing.assert_array_equal(lazy.values, eager.values)


def test_the_graph_is_small():
    model = make_stack(3)
    days = 18_263  # fifty years
    coarse = make_coarse(days=2, nlat=20, nlon=44)
    rain = dask.array.zeros((days, 20, 44), chunks=(30, -1, -1), dtype="f4")
    time = xr.date_range("1970-01-01", periods=days)
    lazy = xr.DataArray(rain, {**coarse.drop_vars("time").coords, "time": time}, coarse.dims, "pr", coarse.attrs)
    fine = lazy.deepsd.downscale(model, make_static(coarse, model.scale).astype("f4"))
    graph = fine.__dask_graph__()
    assert len(graph) <= 2 * 609 + 10  # with the chunks of the input: read, downscale
    assert len(pickle.dumps(dict(graph))) < 5e6


def test_descending_and_ascending_are_one(case):
    model, coarse, elevation = case
    expected = coarse.deepsd.downscale(model, elevation)
    turned = coarse.isel(lat=slice(None, None, -1), lon=slice(None, None, -1))
    result = turned.deepsd.downscale(model, elevation)
    assert result.lat[-1] > result.lat[0]
    assert result.lon[-1] < result.lon[0]
    np.testing.assert_array_equal(
        result.isel(lat=slice(None, None, -1), lon=slice(None, None, -1)).values, expected.values
    )


def test_a_model_keeps_its_orientation(case):
    bare, coarse, elevation = case
    model = xdeepsd.StackedSRCNN(bare.stages, static=elevation.to_dataset())
    expected = coarse.deepsd.downscale(model)
    np.testing.assert_array_equal(expected.values, coarse.deepsd.downscale(bare, elevation).values)
    upside_down = elevation.isel(lat=slice(None, None, -1))
    result = coarse.deepsd.downscale(model, upside_down)
    np.testing.assert_array_equal(result.values, expected.values)


def test_names_order_and_longitudes_come_back(case):
    model, coarse, elevation = case
    expected = coarse.deepsd.downscale(model, elevation)
    users = coarse.assign_coords(lon=(coarse.lon % 360).assign_attrs(coarse.lon.attrs)).rename(
        lat="latitude", lon="x", time="day"
    )
    users = users.transpose("x", "day", "latitude").assign_coords(member=3)
    users["latitude"].attrs["bounds"] = "lat_bnds"
    result = users.deepsd.downscale(model, elevation)
    assert result.dims == ("x", "day", "latitude")
    assert float(result["x"].min()) > 180
    assert result["x"].attrs["standard_name"] == "longitude"
    assert "bounds" not in result["latitude"].attrs  # the bounds were those of the coarse cells
    assert result["member"] == 3
    xr.testing.assert_identical(result["day"], users["day"])
    np.testing.assert_array_equal(result.transpose("day", "latitude", "x").values, expected.values)


def test_plain_y_and_x_without_attributes(case):
    model, coarse, elevation = case
    users = coarse.rename(lat="y", lon="x")
    users["y"].attrs, users["x"].attrs = {}, {}
    assert users.deepsd.downscale(model, elevation).dims == ("time", "y", "x")


def test_coordinates_along_other_dims(case):
    model, coarse, elevation = case
    users = coarse.rename(lat="j", lon="i").drop_vars(["j", "i"])
    attrs = {"lat": coarse.lat.attrs, "lon": coarse.lon.attrs}
    users = users.assign_coords(lat=("j", coarse.lat.values, attrs["lat"]), lon=("i", coarse.lon.values, attrs["lon"]))
    result = users.deepsd.downscale(model, elevation)
    assert result.dims == ("time", "j", "i")
    assert result["lat"].dims == ("j",)
    np.testing.assert_array_equal(result.values, coarse.deepsd.downscale(model, elevation).values)


def test_other_dims_and_single_maps(case):
    model, coarse, elevation = case
    expected = coarse.deepsd.downscale(model, elevation)
    one = coarse.isel(time=2).deepsd.downscale(model, elevation)
    np.testing.assert_array_equal(one.values, expected.isel(time=2).values)
    ensemble = xr.concat([coarse, coarse * 0.5], xr.Variable("member", [1, 2]), coords="minimal", compat="override")
    ensemble.attrs = coarse.attrs
    result = ensemble.chunk(member=1, time=2).deepsd.downscale(model, elevation)
    assert result.dims == ("member", "time", "lat", "lon")
    np.testing.assert_array_equal(result.isel(member=0).values, expected.values)


def test_attributes_units_and_history(case):
    model, coarse, elevation = case
    coarse = coarse.assign_attrs(history="made by hand")
    fine = coarse.deepsd.downscale(model, elevation)
    assert fine.name == "pr"
    for key in ("units", "standard_name", "long_name", "cell_methods"):
        assert fine.attrs[key] == coarse.attrs[key]
    first, last = fine.attrs["history"].splitlines()
    assert first == "made by hand"
    assert f"xdeepsd {xdeepsd.__version__} downscale" in last
    assert fine.attrs["xdeepsd_model"] == model.fingerprint()
    flux = (coarse / 86400).assign_attrs(units="kg m-2 s-1")
    result = flux.deepsd.downscale(model, elevation)
    assert result.attrs["units"] == "kg m-2 s-1"
    np.testing.assert_allclose(result * 86400, fine, rtol=1e-4, atol=1e-5)


def test_a_dataset_keeps_what_does_not_lie_on_the_map(case):
    model, coarse, elevation = case
    bounds = xr.DataArray(np.zeros((coarse.time.size, 2)), dims=("time", "nv"))
    ds = coarse.to_dataset().assign(time_bnds=bounds, other=coarse * 2, crs=0).assign_attrs(title="x")
    ds["other"].attrs = {"standard_name": "air_temperature", "units": "K"}
    fine = ds.deepsd.downscale(model, elevation)
    assert set(fine.data_vars) == {"pr", "time_bnds", "crs"}
    assert fine.attrs["title"] == "x"
    assert fine.attrs["xdeepsd_version"] == xdeepsd.__version__


def test_missing_is_not_dry(case):
    model, coarse, elevation = case
    gone = coarse.copy()
    gone[1, 2, 3] = np.nan
    fine = gone.deepsd.downscale(model, elevation)
    full = coarse.deepsd.downscale(model, elevation)
    scale = model.scale
    inside = np.zeros(fine.shape, bool)
    inside[1, 2 * scale : 3 * scale, 3 * scale : 4 * scale] = True
    np.testing.assert_array_equal(np.isnan(fine.values), inside)
    np.testing.assert_array_equal(np.delete(fine.values, 1, 0), np.delete(full.values, 1, 0))
    # There the network saw the nearest observed cell: of four at distance 1 the first in row order, the northern one.
    filled = coarse.copy()
    filled[1, 2, 3] = coarse[1, 1, 3]
    np.testing.assert_array_equal(fine.values[~inside], filled.deepsd.downscale(model, elevation).values[~inside])


def test_far_missing_cells_do_not_matter():
    model = make_stack(1, channels=(3,), kernels=(3, 3))
    coarse = make_coarse(days=1, nlat=30, nlon=30)
    coarse[0, 10:] = np.nan
    static = make_static(coarse, model.scale)
    fine = coarse.deepsd.downscale(model, static)
    assert np.isfinite(fine.values[0, :20]).all()
    assert np.isnan(fine.values[0, 20:]).all()


@pytest.mark.parametrize("transform", ["sqrt", "log1p"])
def test_transformed_stages(case, transform):
    _, coarse, _ = case
    model = make_stack(1, channels=(4, 3), residual=True)
    stage = dataclasses.replace(model.stages[0], transform=transform)
    there, back = {"sqrt": (np.sqrt, np.square), "log1p": (np.log1p, np.expm1)}[transform]
    static = make_static(coarse, 2)
    fine = coarse.deepsd.downscale(xdeepsd.StackedSRCNN([stage]), static)
    # By hand: transform, a residual network on the transformed values interpolated, transform back.
    channels = static["elevation"].values[None]
    expected = [back(oracle.stage(stage, there(day), channels)) for day in coarse.values.astype(float)]
    np.testing.assert_allclose(fine, expected, rtol=2e-4, atol=1e-4)


def test_the_mask_hides_and_changes_nothing_else(case):
    model, coarse, elevation = case
    land = elevation > 800
    full = coarse.deepsd.downscale(model, elevation)
    fine = coarse.deepsd.downscale(model, elevation, mask=land)
    np.testing.assert_array_equal(fine.values, full.where(land).values)
    saved = xdeepsd.StackedSRCNN(model.stages, static=elevation.to_dataset(), mask=land)
    np.testing.assert_array_equal(coarse.deepsd.downscale(saved).values, fine.values)
    turned = land.isel(lat=slice(None, None, -1)).rename(lat="latitude")
    np.testing.assert_array_equal(coarse.deepsd.downscale(model, elevation, mask=turned).values, fine.values)


@pytest.mark.parametrize("kernels", [(9, 1, 5), (3, 3, 3), (1, 1, 3)])
def test_one_wanted_cell_has_the_value_that_it_has_without_a_mask(kernels):
    """The earlier stages compute every cell that it depends on."""
    model = make_stack(2, channels=(4, 3), kernels=kernels, seed=3)
    coarse = make_coarse(days=1, nlat=9, nlon=9).fillna(1.0)
    elevation = make_static(coarse, model.scale)["elevation"]
    full = coarse.deepsd.downscale(model, elevation).values
    for row, column in [(16, 16), (17, 18), (19, 19), (0, 35), (35, 2)]:
        mask = xr.zeros_like(elevation, bool)
        mask[row, column] = True
        fine = coarse.deepsd.downscale(model, elevation, mask=mask).values
        assert np.isfinite(fine).sum() == 1
        assert fine[0, row, column] == full[0, row, column]


def test_static_nan_is_filled_not_spread(case):
    model, coarse, elevation = case
    fine = coarse.deepsd.downscale(model, elevation.where(elevation > 500))
    assert np.isfinite(fine.values).all()


def test_batch_size_is_not_the_chunk(case):
    model, coarse, elevation = case
    one = coarse.deepsd.downscale(model, elevation)
    assert relative(coarse.deepsd.downscale(model, elevation, batch_size=4).values, one.values) < 2e-6


def test_bfloat16(case):
    model, coarse, elevation = case
    if not HAS_BFLOAT16:
        with pytest.raises(ValueError, match=r"needs a processor with avx512_bf16.*precision='float32'"):
            coarse.deepsd.downscale(model, elevation, precision="bfloat16")
        pytest.skip("no bfloat16 on this processor")
    one = coarse.deepsd.downscale(model, elevation, precision="bfloat16")
    assert one.dtype == np.float32
    assert 0 < relative(one.values, coarse.deepsd.downscale(model, elevation).values) < 3e-2  # weights are extreme here


def test_elevation_by_another_name_and_with_scalars(case):
    model, coarse, elevation = case
    users = elevation.rename("topo").rename(lat="latitude", lon="longitude").expand_dims("band").assign_coords(crs=0)
    result = coarse.deepsd.downscale(model, users)
    np.testing.assert_array_equal(result.values, coarse.deepsd.downscale(model, elevation).values)


@pytest.mark.gpu
def test_cuda_gives_the_same_numbers(case):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, coarse, elevation = case
    expected = coarse.deepsd.downscale(model, elevation)
    # With rounding to TF32, the default of cuDNN, they differ by 2e-2 (seen on an H100).
    np.testing.assert_allclose(coarse.deepsd.downscale(model, elevation, device="cuda"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [None, {"time": 1}])
def test_no_cuda_is_said(case, chunks, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model, coarse, elevation = case
    coarse = coarse if chunks is None else coarse.chunk(chunks)
    with pytest.raises(ValueError, match="torch finds no CUDA on this machine"):
        coarse.deepsd.downscale(model, elevation, device="cuda").compute()


# --- values that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("config", [{}, {"residual": True}])
def test_infinite_is_missing(value, config, caplog):
    model = make_stack(2, channels=(8, 4), **config)
    coarse = make_coarse().astype("float64")
    elevation = make_static(coarse, model.scale)["elevation"]
    users, missing = coarse.copy(deep=True), coarse.copy(deep=True)
    users[2, 3, 4], missing[2, 3, 4] = value, np.nan
    expected = missing.deepsd.downscale(model, elevation)
    assert int(expected.isnull().sum()) == model.scale**2
    with caplog.at_level("WARNING", logger="xdeepsd"):
        fine = users.deepsd.downscale(model, elevation)
    np.testing.assert_array_equal(fine.values, expected.values)
    assert "values of 'pr' are infinite and count as missing" in caplog.text
    plain = users.deepsd.downscale(model, elevation, batch_size=2)
    np.testing.assert_array_equal(plain.isnull(), fine.isnull())


# --- what the graph holds ---------------------------------------------------------------------------------------------


def test_later_changes_do_not_reach_a_lazy_result(case):
    model, coarse, elevation = make_stack(2, channels=(8, 4)), case[1], case[2].copy(deep=True)
    mask = elevation > 500
    expected = coarse.deepsd.downscale(model, elevation, mask=mask)
    lazy = [
        coarse.chunk(chunks).deepsd.downscale(model, elevation, mask=mask, batch_size=batch)
        for chunks in ({"time": 2}, {"lat": 3})
        for batch in (None, 1)
    ]
    with torch.no_grad():
        for stage in model.stages:
            for parameter in stage.net.parameters():
                parameter.add_(1.0)
    elevation[:] = 0.0
    mask[:] = True
    for one in lazy:
        np.testing.assert_allclose(one.values, expected.values, rtol=2e-5, atol=1e-5)
    assert coarse.deepsd.downscale(model, elevation).attrs["xdeepsd_model"] != expected.attrs["xdeepsd_model"]


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16")
def test_bfloat16_is_done_or_refused(case):
    model, coarse, elevation = case
    with pytest.raises(ValueError, match=r"precision='bfloat16' with batch_size=2.*Leave batch_size out"):
        coarse.deepsd.downscale(model, elevation, precision="bfloat16", batch_size=2)
    linear = make_stack(1, channels=(), kernels=(3,))
    with pytest.raises(ValueError, match=r"a stage that has no hidden layer.*precision='float32'"):
        coarse.deepsd.downscale(linear, make_static(coarse, 2), precision="bfloat16")


def test_devices_that_hold_no_numbers(case):
    model, coarse, elevation = case
    with pytest.raises(ValueError, match="device 'meta'; needed: a device that can compute"):
        coarse.deepsd.downscale(model, elevation, device="meta")


def test_runs_side_by_side_leave_the_threads_of_torch_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        barrier = threading.Barrier(2)

        def slow(days):
            with torch_threads(1):
                barrier.wait()  # both runs are inside
                if days == 2:
                    time.sleep(0.05)
                inside = torch.get_num_threads()
            return inside, torch.get_num_threads()

        for _ in range(3):
            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(slow, (1, 2))) == [(1, 3), (1, 3)]
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 3
        with torch_threads(2), torch_threads(1):
            pass
        with torch_threads(2):
            with torch_threads(1):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_run_that_fails_puts_the_threads_back(three_threads):
    with pytest.raises(KeyError), torch_threads(1):
        raise KeyError
    assert torch.get_num_threads() == 3
    with torch_threads(2):
        with pytest.raises(KeyError), torch_threads(1):
            raise KeyError
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2, "new threads begin as the run that goes on"
    assert torch.get_num_threads() == 3
    with torch_threads(2):  # the process has its outside number again, not one from the failed runs
        pass
    assert torch.get_num_threads() == 3
    with torch_threads(None):
        assert torch.get_num_threads() == 3


def test_a_new_thread_keeps_its_number_while_the_process_gets_another(three_threads):
    entered, changed = threading.Event(), threading.Event()

    def run():
        with torch_threads(1):
            entered.set()
            assert changed.wait(60)
            return torch.get_num_threads()

    with torch_threads(1), ThreadPoolExecutor(1) as pool:
        inside = pool.submit(run)  # begins during another run
        assert entered.wait(60)
        torch.set_num_threads(3)  # as that run briefly does when it ends
        changed.set()
        assert inside.result() == 1


def test_the_plain_forward_takes_one_thread_and_gives_it_back(case, three_threads, monkeypatch):
    model, coarse, elevation = case
    seen, forward = [], xdeepsd.models.stage.Stage.__call__

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return forward(*arguments)

    monkeypatch.setattr(xdeepsd.models.stage.Stage, "__call__", watched)
    for days in (coarse, coarse.chunk(time=1)) * 5:  # runs that overlap, and end while others begin
        days.deepsd.downscale(model, elevation, batch_size=1).compute()
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


# --- input that xarray opened without chunks --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["zarr", "h5netcdf"])
def test_input_opened_without_chunks_is_not_read_whole(case, tmp_path, engine, no_compute):
    model, _, _ = case
    coarse = make_coarse(days=70)
    elevation = make_static(coarse, model.scale)["elevation"]
    path = tmp_path / "in"
    if engine == "zarr":
        coarse.to_dataset().to_zarr(path)
    else:
        coarse.to_netcdf(path, engine="h5netcdf")
    opened = xr.open_dataset(path, engine=engine)
    with no_compute():
        fine = opened.deepsd.downscale(model, elevation)
    assert fine["pr"].chunks[0] == (30, 30, 10)
    assert not opened["pr"].variable._in_memory
    np.testing.assert_array_equal(fine["pr"].values, coarse.deepsd.downscale(model, elevation).values)
    again = xr.open_dataset(path, engine=engine).deepsd.downscale(model, elevation)
    assert again["pr"].data.name == fine["pr"].data.name, "a store that was begun knows it again"
    os.utime(path, (1, 1)) if engine != "zarr" else os.utime(path / "pr", (1, 1))
    touched = xr.open_dataset(path, engine=engine).deepsd.downscale(model, elevation)
    assert touched["pr"].data.name != fine["pr"].data.name
    eager = opened.load().deepsd.downscale(model, elevation)
    assert eager["pr"].chunks is None, "numpy in, numpy out"


# --- without the fast forward -----------------------------------------------------------------------------------------

WITHOUT = """
import sys, warnings
sys.path.insert(0, {here!r})
if {how!r} == "no numba":
    sys.modules["numba"] = None
else:
    import numba
    def broken(*arguments, **options):
        return lambda function: (_ for _ in ()).throw(numba.NumbaError("LLVM says no"))
    numba.njit = broken
import numpy as np
from builders import make_coarse, make_stack, make_static
model, coarse = make_stack(2, channels=(8, 4)), make_coarse()
elevation = make_static(coarse, model.scale)["elevation"]
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    fine = [days.deepsd.downscale(model, elevation).compute() for days in (coarse, coarse.chunk(time=1))]
texts = [str(w.message) for w in seen if "fast forward" in str(w.message)]
assert len(texts) == 1 and "pip install xdeepsd[fast]" in texts[0], texts
np.testing.assert_array_equal(*(f.values for f in fine))
np.save(sys.argv[1], fine[0].values)
try:
    coarse.deepsd.downscale(model, elevation, precision="bfloat16")
except ValueError as error:
    assert "precision='bfloat16' needs" in str(error)
else:
    raise SystemExit("bfloat16 was neither done nor refused")
"""


@pytest.mark.parametrize("how", ["no numba", "numba cannot compile"])
def test_without_numba_the_plain_forward_answers(case, tmp_path, how):
    model, coarse, elevation = case
    code = WITHOUT.format(here=str(Path(__file__).parents[1]), how=how)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fine.npy")], check=True, timeout=300)
    expected = coarse.deepsd.downscale(model, elevation).values
    assert relative(np.load(tmp_path / "fine.npy"), expected) < 2e-6
