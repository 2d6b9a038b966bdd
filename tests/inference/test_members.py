"""Ensembles: members from several models and from noise, lazily, the same however chunked; their mean and spread."""

import dataclasses

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd.inference import windows
from xdeepsd.inference.members import Spread, days_of, origin_of
from xdeepsd.models.noise import day_keys, white_noise


def seeds(count=3, stages=2, grid=True, **config):
    """Stacks that differ in their weights alone, coarse days and static fields; the models know their grid."""
    config = {"channels": (8, 4), "residual": True} | config
    coarse = make_coarse()
    static = make_static(coarse, config.get("factor", 2) ** stages)
    mask = static["elevation"] > -200
    made = [make_stack(stages, seed=seed, **config) for seed in range(count)]
    if grid:
        made = [dataclasses.replace(model, static=static, mask=mask) for model in made]
    return made, coarse, static


@pytest.fixture(scope="module")
def several():
    return seeds()


@pytest.fixture(scope="module")
def noisy():
    """A stack of two stages with noise, and coarse days."""
    [model], coarse, _ = seeds(1, noise=2, kernels=(5, 1, 3))
    return model, coarse


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- several models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {"time": 2}, {"time": 3, "lat": 2, "lon": 5}])
def test_each_member_is_what_its_model_gives(several, chunks):
    models, coarse, _ = several
    coarse = coarse.where((coarse.lat > 44) | (coarse.lon < -120))
    ds = coarse if chunks is None else coarse.chunk(chunks)
    fine = ds.deepsd.downscale(models)
    assert fine.dims == ("member", "time", "lat", "lon")
    assert fine["member"].values.tolist() == [0, 1, 2]
    assert fine.attrs["units"] == coarse.attrs["units"]
    for number, model in enumerate(models):
        alone = ds.deepsd.downscale(model)
        np.testing.assert_array_equal(fine.sel(member=number).values, alone.values)
        np.testing.assert_array_equal(fine["lat"], alone["lat"])
    assert fine.std("member").max() > 0.1
    if chunks is not None:
        assert fine.chunks[0] == (1, 1, 1)
        assert fine.chunks[1:] == ds.deepsd.downscale(models[0]).chunks


def test_a_dataset_in_any_order_and_names(several):
    models, coarse, _ = several
    turned = coarse.rename(lat="latitude", lon="longitude").isel(latitude=slice(None, None, -1))
    turned = turned.transpose("latitude", "time", "longitude").to_dataset()
    turned["height"] = ((), 2.0)
    fine = turned.chunk(time=2).deepsd.downscale(models)
    assert fine["pr"].dims == ("member", "latitude", "time", "longitude")
    assert "height" in fine
    expected = coarse.deepsd.downscale(models).isel(lat=slice(None, None, -1)).transpose("member", "lat", "time", "lon")
    np.testing.assert_array_equal(fine["pr"].values, expected.values)


def test_a_list_of_one_is_an_ensemble_of_one(several):
    models, coarse, _ = several
    fine = coarse.deepsd.downscale(models[:1])
    assert dict(fine.sizes)["member"] == 1
    np.testing.assert_array_equal(fine.values[0], coarse.deepsd.downscale(models[0]).values)


def test_other_dims_of_the_input_come_after_the_members(several):
    models, coarse, _ = several
    two = xr.concat([coarse, coarse + 1], "scenario").assign_coords(scenario=["a", "b"])
    fine = two.chunk(time=2, scenario=1).deepsd.downscale(tuple(models))
    assert fine.dims == ("member", "scenario", "time", "lat", "lon")
    np.testing.assert_array_equal(fine.isel(scenario=0).values, coarse.deepsd.downscale(models).values)


def test_the_input_is_read_once_for_all(several, tmp_path, monkeypatch):
    models, coarse, _ = several
    read = []

    def noted(block, block_info=None):
        read.append(block_info[0]["array-location"])
        return block

    lazy = coarse.copy(data=coarse.chunk(time=2).data.map_blocks(noted, dtype="f4", meta=np.empty((0,) * 3, "f4")))
    xdeepsd.to_zarr(lazy.deepsd.downscale(models).to_dataset(name="pr"), tmp_path / "a.zarr")
    assert len(read) == 3  # chunks of days, not times members
    read.clear()
    xdeepsd.to_zarr(lazy.to_dataset().deepsd.downscale(models, statistics=True), tmp_path / "b.zarr")
    assert len(read) == 3
    prepared = []
    actual = xdeepsd.inference.downscale.prepare
    monkeypatch.setattr("xdeepsd.inference.downscale.prepare", lambda *a: prepared.append(1) or actual(*a))
    lazy.deepsd.downscale(models)
    assert prepared == [1]


@pytest.mark.parametrize("chunks", [{}, {"lat": 3}])
@pytest.mark.parametrize("statistics", [False, True])
def test_all_members_of_a_chunk_come_before_the_next_chunk(several, tmp_path, monkeypatch, chunks, statistics):
    """Or the input of all days would be in memory at once."""
    from dask.order import order

    from xdeepsd.stores import write

    models, coarse, _ = several
    days = xr.concat([coarse] * 12, "time").assign_coords(time=xr.date_range("2001-01-01", periods=60))
    days.to_dataset().to_zarr(tmp_path / "in.zarr")
    lazy = xr.open_zarr(tmp_path / "in.zarr", chunks={"time": 5} | chunks)
    graphs = []
    monkeypatch.setattr(write, "compute", lambda graph, keys, *rest: graphs.append((graph, keys)))
    with pytest.raises(RuntimeError, match="not in"):
        xdeepsd.to_zarr(lazy.deepsd.downscale(models, statistics=statistics), tmp_path / "out.zarr")
    graph, keys = graphs[0]
    place = order(graph)
    when = [key[1 if statistics else 2] for key in sorted(keys, key=place.get)]  # the chunk of days
    open_at = [len(set(when[: i + 1]) & set(when[i + 1 :])) for i in range(len(when))]
    assert max(open_at) <= 2


def test_building_computes_nothing(several, no_compute):
    models, coarse, static = several
    with no_compute():
        for chunks in ({"time": 2}, {"lat": 2, "lon": 4}):
            lazy = coarse.chunk(chunks).to_dataset()
            for how in ({}, {"statistics": True}):
                fine = lazy.deepsd.downscale(models, static.chunk(lat=4), mask=(static["elevation"] > 0).chunk(), **how)
                assert all(dask.is_dask_collection(v.data) for v in fine.data_vars.values())


def test_pickled_and_computed_elsewhere(several):
    from distributed import Client, LocalCluster

    models, coarse, _ = several
    lazy = coarse.chunk(time=2).deepsd.downscale(models)
    here = lazy.values
    with LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        np.testing.assert_array_equal(lazy.values, here)


DIFFER = {
    "factors": lambda m: dataclasses.replace(m, stages=m.stages[:1]),
    "units": lambda m: dataclasses.replace(m, units="inch day-1"),
    "variable": lambda m: dataclasses.replace(m, variable="tp"),
    "grid": lambda m: dataclasses.replace(m, static=m.static.isel(lat=slice(8, None)), mask=None),
    "static fields": lambda m: dataclasses.replace(make_stack(2, static=()), static=m.static, mask=m.mask),
    "values of the static fields": lambda m: dataclasses.replace(m, static=m.static + 1),
    "mask": lambda m: dataclasses.replace(m, mask=None),
    "noise": lambda m: dataclasses.replace(make_stack(2, noise=1), static=m.static, mask=m.mask),
}


@pytest.mark.parametrize("what", DIFFER)
def test_models_that_do_not_belong_together_are_named(several, what):
    models, coarse, _ = several
    with pytest.raises(ValueError, match=rf"Models 0 and 2 of the list differ \(.*{what}: .*Leave models\[2\] out"):
        coarse.deepsd.downscale([*models[:2], DIFFER[what](models[2])])


def test_static_fields_and_mask_that_are_given_hold_for_all(several):
    models, coarse, static = several
    other = [models[0], dataclasses.replace(models[1], static=static + 1, mask=None)]
    fine = coarse.deepsd.downscale(other, static, mask=models[0].mask)
    np.testing.assert_array_equal(fine.values, coarse.deepsd.downscale(models[:2]).values)


def test_bad_ensembles(several):
    models, coarse, _ = several
    with pytest.raises(TypeError, match="model is an empty list; needed"):
        coarse.deepsd.downscale([])
    with pytest.raises(TypeError, match="model is a str; needed: a StackedSRCNN, or a list"):
        coarse.deepsd.downscale([models[0], "seed_1"])
    with pytest.raises(ValueError, match=r"a dim 'member' already.*rename\(member='realization'\)"):
        coarse.expand_dims(member=[3]).deepsd.downscale(models)
    with pytest.raises(ValueError, match="members=2, and the model takes no noise"):
        coarse.deepsd.downscale(models, members=2)
    with pytest.raises(ValueError, match="statistics=True with a single member"):
        coarse.deepsd.downscale(models[0], statistics=True)


# --- mean and spread --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {"time": 2}, {"time": 3, "lat": 2, "lon": 5}])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_statistics_are_those_of_the_members(several, chunks, precision):
    models, coarse, _ = several
    coarse = coarse.where((coarse.lat > 44) | (coarse.lon < -120))
    ds = coarse if chunks is None else coarse.chunk(chunks)
    found = ds.deepsd.downscale(models, statistics=True, precision=precision)
    assert isinstance(found, xr.Dataset)
    assert list(found.data_vars) == ["pr", "pr_std"]
    members = ds.deepsd.downscale(models, precision=precision).astype("float64")
    tolerance = {"float32": 1e-6, "float64": 1e-12}[precision]
    for name, expected in (("pr", members.mean("member")), ("pr_std", members.std("member", ddof=1))):
        assert found[name].dtype == precision
        assert found[name].dims == ("time", "lat", "lon")
        np.testing.assert_allclose(found[name].values, expected.values, rtol=tolerance, atol=tolerance)
    assert found["pr"].attrs["cell_methods"] == "time: mean realization: mean"
    assert found["pr_std"].attrs["cell_methods"] == "time: mean realization: standard_deviation"
    assert found["pr_std"].attrs["units"] == "mm day-1"
    again = ds.to_dataset().deepsd.downscale(models, statistics=True, precision=precision)
    xr.testing.assert_equal(again, found)
    assert xdeepsd.models.variable.find_variable(again).name == "pr"


def test_spread_by_hand():
    spread = Spread()
    for number in (1.0, 2.0, 6.0):
        spread.add(np.array([number, np.nan], np.float32))
    np.testing.assert_allclose(spread.result("f4"), [[3.0, np.nan], [np.sqrt(7.0), np.nan]], rtol=1e-6)


# --- noise ------------------------------------------------------------------------------------------------------------


def by_hand(model, coarse, member, seed=0):
    """Member of a stack by the plain forward of each stage, in float32, on the whole domain."""
    import torch

    from xdeepsd.models.static import stage_channels

    keys, fine, scale = day_keys(coarse["time"].values), coarse.values, 1
    left = model.scale
    for number, stage in enumerate(model.stages):
        config = stage.config
        scale, left = scale * config.factor, left // config.factor
        block = model.static["elevation"].values.astype(float)
        block = block.reshape(block.shape[0] // left, left, -1, left).mean((1, 3))
        static = torch.from_numpy(stage_channels({"elevation": block}, {}, config.static, config.factor))
        rows, columns = (np.arange(-config.radius, n * scale + config.radius) for n in coarse.shape[1:])
        noise = white_noise(seed, member, keys, rows, columns, stage=number, channels=config.noise)
        with torch.inference_mode():
            fine = stage(torch.from_numpy(fine), static, None, torch.from_numpy(noise)).numpy()
    return np.where(model.mask, fine, np.nan)


def test_members_are_the_plain_forward_with_the_noise_of_their_cells(noisy):
    model, coarse = noisy
    fine = coarse.deepsd.downscale(model, members=3, seed=4)
    for member in range(3):
        close(fine.values[member], by_hand(model, coarse, member, 4))
    spread = fine.std("member").mean()
    assert spread > 0.05
    other = coarse.deepsd.downscale(model, members=3, seed=5)
    assert abs(other - fine).mean() > 0.05


@pytest.mark.parametrize(
    "chunks", [{"time": 1}, {"time": 2, "lat": 3, "lon": 4}, {"lat": 1, "lon": 1}, {"lat": (1, 4, 1), "lon": 8}]
)
def test_noise_is_the_same_however_it_is_chunked(noisy, chunks):
    model, coarse = noisy
    eager = coarse.deepsd.downscale(model, members=2)
    lazy = coarse.chunk(chunks).deepsd.downscale(model, members=2)
    close(lazy.values, eager.values)
    statistics = coarse.chunk(chunks).deepsd.downscale(model, members=2, statistics=True)
    close(statistics["pr"].values, eager.mean("member").values)
    close(statistics["pr_std"].values, eager.std("member", ddof=1).values)


def test_the_noise_itself_has_equal_bits(noisy, monkeypatch):
    """What the stages are given, cell by cell and day by day, whatever the chunks and the part of the domain."""
    model, coarse = noisy
    seen = {}
    actual = windows.white_noise

    def noted(seed, member, days, rows, columns, *, stage, channels):
        noise = actual(seed, member, days, rows, columns, stage=stage, channels=channels)
        for (d, c, i, j), value in np.ndenumerate(noise):
            place = (member, int(days[d]), stage, c, int(rows[i]), int(columns[j]))
            assert seen.setdefault(place, value) == value
        return noise

    monkeypatch.setattr(windows, "white_noise", noted)
    small = coarse.isel(time=slice(2))
    small.deepsd.downscale(model, members=2)
    whole = len(seen)
    small.chunk(time=1, lat=2, lon=3).deepsd.downscale(model, members=2).compute()
    assert len(seen) == whole  # nothing but the same cells


def test_days_and_parts_of_the_domain_have_the_noise_of_the_whole(noisy):
    model, coarse = noisy
    fine = coarse.deepsd.downscale(model, members=2)
    days = coarse.isel(time=[3, 1]).deepsd.downscale(model, members=2)
    np.testing.assert_array_equal(days.values, fine.isel(time=[3, 1]).values)
    more = coarse.deepsd.downscale(model, members=4)
    np.testing.assert_array_equal(more.values[:2], fine.values)
    # Cells that the edges of the part do not reach: two stages of radius 3
    part = coarse.isel(lat=slice(1, None), lon=slice(2, 8))
    static = model.static.isel(lat=slice(4, None), lon=slice(8, 32))
    cut = part.deepsd.downscale(model, static, members=2)
    inner = {"lat": slice(12, None), "lon": slice(12, None)}
    whole = fine.isel(lat=slice(4, None), lon=slice(8, 32)).isel(inner)
    close(cut.isel(inner).values, whole.values)
    assert inner["lat"].start < cut.sizes["lat"]
    # The same in the other order of latitude, with longitudes of another convention, and from another calendar
    turned = part.isel(lat=slice(None, None, -1)).assign_coords(lon=part["lon"] + 360)
    turned = turned.assign_coords(time=xr.date_range("2001-01-01", periods=5, calendar="noleap", use_cftime=True))
    again = turned.deepsd.downscale(model, static, members=2)
    np.testing.assert_array_equal(again.isel(lat=slice(None, None, -1)).values, cut.values)


def test_seeds_of_models_with_noise(noisy):
    model, coarse = noisy
    [_, other], _, _ = seeds(2, noise=2, kernels=(5, 1, 3))
    fine = coarse.deepsd.downscale([model, other], members=2)
    assert fine.sizes["member"] == 4
    np.testing.assert_array_equal(fine.values[:2], coarse.deepsd.downscale(model, members=2).values)
    np.testing.assert_array_equal(fine.values[2:], coarse.deepsd.downscale(other, members=4).values[2:])


def test_coarse_means_are_kept_by_each_member():
    [model], coarse, _ = seeds(1, noise=1, conserve="multiplicative")
    model = dataclasses.replace(model, mask=None)
    fine = coarse.deepsd.downscale(model, members=2)
    back = xdeepsd.coarsen(fine, 4)
    np.testing.assert_allclose(back.values, np.broadcast_to(coarse.values, back.shape), rtol=1e-4, atol=1e-4)
    assert fine.std("member").mean() > 0.01


def test_a_stage_without_noise_in_a_stack_with_it(noisy):
    model, coarse = noisy
    plain = make_stack(1, channels=(8, 4), residual=True).stages[0]
    mixed = dataclasses.replace(model, stages=[plain, model.stages[1]])
    assert mixed.noise
    first = coarse.chunk(time=2).deepsd.downscale(mixed, members=2)
    close(first.values, coarse.deepsd.downscale(mixed, members=2).values)
    assert first.std("member").mean() > 0.01


def test_bad_members(noisy):
    model, coarse = noisy
    with pytest.raises(ValueError, match=r"members is missing.*Type members=10; .*statistics=True"):
        coarse.deepsd.downscale(model)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"members is {bad}; needed: a whole number of at least 1"):
            coarse.deepsd.downscale(model, members=bad)
    with pytest.raises(ValueError, match="statistics=True with a single member"):
        coarse.deepsd.downscale(model, members=1, statistics=True)
    with pytest.raises(ValueError, match=r"no dates.*Type ds.rename\(DIM='time'\).assign_coords\(time"):
        coarse.drop_vars("time").rename(time="z").deepsd.downscale(model, members=2)
    with pytest.raises(TypeError, match="needed: dates"):
        coarse.assign_coords(time=("time", np.arange(5), {"axis": "T"})).deepsd.downscale(model, members=2)


def test_single_maps_and_lead_dims(noisy):
    model, coarse = noisy
    assert coarse.isel(time=0, drop=True).deepsd.downscale(model, members=2).dims == ("member", "lat", "lon")
    two = xr.concat([coarse, coarse], "scenario").chunk(scenario=1, time=2)
    assert days_of(two).shape == (2, 5)
    fine = two.deepsd.downscale(model, members=2)
    np.testing.assert_array_equal(fine.isel(scenario=1).values, fine.isel(scenario=0).values)
    close(fine.isel(scenario=1).values, coarse.deepsd.downscale(model, members=2).values)


@pytest.mark.parametrize("west", [-124.0, 236.0, 0.0, -0.5, 179.5])
@pytest.mark.parametrize("turn", [-360.0, 0.0, 360.0])
def test_where_a_part_begins_on_the_grid(west, turn):
    lat, lon = 60 - (np.arange(40) + 0.5) / 4, west + (np.arange(80) + 0.5) / 4
    model = dataclasses.replace(make_stack(2), static=xr.Dataset(coords={"lat": lat, "lon": lon}))
    coarse = xr.DataArray(np.zeros((10, 20)), {"lat": lat.reshape(-1, 4).mean(1), "lon": lon.reshape(-1, 4).mean(1)})
    rounded = coarse.assign_coords(lon=(coarse["lon"] + turn).astype("f4"), lat=coarse["lat"].astype("f4"))
    assert origin_of(rounded[3:, 7:], model) == (3, 7)
    assert origin_of(rounded, model) == (0, 0)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_resumed_members_have_the_same_bits_and_other_members_are_refused(noisy, tmp_path):
    model, coarse = noisy
    source = tmp_path / "coarse.nc"
    coarse.to_netcdf(source)

    def fine(model=model, **how):
        lazy = xr.open_dataset(source, chunks={"time": 2})
        return lazy.deepsd.downscale(model, **{"members": 2} | how)

    xdeepsd.to_zarr(fine(), tmp_path / "whole.zarr")
    calls = []

    def stop(done, total):
        calls.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), dask.config.set(scheduler="synchronous"):
        xdeepsd.to_zarr(fine(), tmp_path / "cut.zarr", progress=stop)
    [_, other], _, _ = seeds(2, noise=2, kernels=(5, 1, 3))
    for different in (fine(seed=1), fine(members=3), fine(other), fine(statistics=True)):
        with pytest.raises(ValueError, match=r"begun|differ"):
            xdeepsd.to_zarr(different, tmp_path / "cut.zarr")
    xdeepsd.to_zarr(fine(), tmp_path / "cut.zarr")
    whole, cut = (xr.open_zarr(tmp_path / name) for name in ("whole.zarr", "cut.zarr"))
    np.testing.assert_array_equal(cut["pr"].values, whole["pr"].values)
    assert cut["pr"].attrs["xdeepsd_noise"] == "members=2 seed=0"


def test_all_models_are_in_the_attributes(several):
    models, coarse, _ = several
    fine = coarse.to_dataset().deepsd.downscale(models)
    prints = [model.fingerprint() for model in models]
    assert fine.attrs["xdeepsd_model"].split() == prints
    assert all(one in fine.attrs["history"] for one in prints)
    assert "xdeepsd_noise" not in fine.attrs


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_models(several, tmp_path):
    models, coarse, _ = several
    names = ["seed_10", "seed_2", "seed_0"]
    for name, model in zip(names, models, strict=True):
        xdeepsd.save_model(model, tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "log.txt").write_text("")
    loaded = xdeepsd.load_models(tmp_path)
    assert [m.fingerprint() for m in loaded] == [m.fingerprint() for m in models[::-1]]
    np.testing.assert_array_equal(coarse.deepsd.downscale(loaded), coarse.deepsd.downscale(models[::-1]))
    with pytest.raises(FileNotFoundError, match=r"holds 3 models, an ensemble\. Type xdeepsd\.load_models\(path\)"):
        xdeepsd.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No models in .*notes\. Needed: a folder with a folder for each"):
        xdeepsd.load_models(tmp_path / "notes")
    (tmp_path / "seed_2" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"seed_2: model\.safetensors is missing"):
        xdeepsd.load_models(tmp_path)


def test_models_with_noise_in_files_and_models_from_before(noisy, tmp_path):
    import json

    model, coarse = noisy
    xdeepsd.save_model(model, tmp_path / "new")
    again = xdeepsd.load_model(tmp_path / "new")
    assert again.fingerprint() == model.fingerprint()
    fine = coarse.deepsd.downscale(again, members=2)
    np.testing.assert_array_equal(fine, coarse.deepsd.downscale(model, members=2))
    assert "2 channels of noise" in repr(again)
    plain = make_stack(1)
    xdeepsd.save_model(plain, tmp_path / "old")
    saved = json.loads((tmp_path / "old" / "model.json").read_text())
    assert "noise" not in saved["stages"][0]["config"]  # as written before there was any
    assert xdeepsd.load_model(tmp_path / "old").fingerprint() == plain.fingerprint()


def test_noise_that_makes_no_sense():
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match=f"noise {bad}. Needed: a whole number of at least 0"):
            xdeepsd.SRCNNConfig(noise=bad)
