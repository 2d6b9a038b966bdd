"""Patches: index arithmetic, the same numbers as the whole map, every cell covered, every chunk read once."""

import threading
from collections import Counter

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from builders import pair_of_levels
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeepsd.grids.interpolate import upsample
from xdeepsd.grids.missing import fill_nearest
from xdeepsd.levels.normalizers import MeanAndStd, Normalizers, fit_normalizers
from xdeepsd.levels.pairs import make_pair, slabs
from xdeepsd.levels.patches import PatchLoader, bytes_per_day, origins_along, patch_origins
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stage import Stage

SMALL = SRCNNConfig(channels=(4, 3), kernels=(5, 1, 3), factor=2, static=("elevation",))


def whole(pair):
    return Normalizers(
        Normalizer(1.0, 2.0), {n: Normalizer(900.0, 500.0) for n in pair.config.static}, Normalizer(3, 5)
    )


def loader_of(pair, batch=5, stride=6, seed=(0, 0), output=(10, 10), limit=4, min_land=0.5, **kwargs):
    origins = patch_origins(pair.mask, output, stride, min_land)
    parts = slabs(pair, np.arange(pair.fine.sizes["time"]), limit)
    return PatchLoader(pair, whole(pair), parts, origins, output, batch, seed, **kwargs)


def take(loader, count, step=0):
    batches = loader.batches(step)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


# --- where the patches lie --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 40))
def test_windows_reach_both_edges(size, output, stride):
    origins = origins_along(size, output, stride)
    output = min(size, output)
    assert origins[0] == 0
    assert origins[-1] + output == size
    assert (np.diff(origins) <= stride).all()
    if stride <= output:
        covered = np.unique(origins[:, None] + np.arange(output))
        assert covered.size == size


def test_the_original_misses_columns_that_ours_covers():
    # deepsd: range(0, 86 - 38 + 1, 20) is 0, 20, 40: columns 78 to 85 are in no patch.
    assert max(range(0, 86 - 38 + 1, 20)) + 38 == 78
    assert origins_along(86, 26, 20)[-1] + 26 == 86


def test_min_land_is_the_share_in_the_output_window():
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    assert patch_origins(mask, (10, 10), 5, 0.5).tolist() == [[r, c] for r in (0, 5, 10) for c in (5, 10)]
    assert patch_origins(mask, (10, 10), 5, 0.51).tolist() == [[r, 10] for r in (0, 5, 10)]
    assert len(patch_origins(mask, (10, 10), 5, 0.0)) == 6  # a window of ocean is never taken


def test_no_patch_with_enough_land():
    mask = np.zeros((20, 20), bool)
    mask[0, :5] = True
    with pytest.raises(ValueError, match=r"No patch with enough land: of 9 windows .*best has 5%.*min_land=0.05"):
        patch_origins(mask, (10, 10), 5, 0.5)


# --- the numbers in them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("transform", [None, "sqrt", "log1p"])
def test_patches_are_windows_of_the_whole_map(factor, residual, transform):
    """The network gives the same on a patch as the stage on the whole map, edges included."""
    config = SRCNNConfig((4, 3), (5, 1, 3), factor, ("elevation",), residual)
    coarse, fine = pair_of_levels(days=3, factor=factor)
    pair = make_pair(coarse, fine, config, transform)
    torch.manual_seed(0)
    net, normalizers = SRCNN(config), whole(pair)
    stage = Stage(net, normalizers.precipitation, normalizers.static, normalizers.target, transform)
    filled = fill_nearest(coarse["precipitation"].values, config.halo)
    with torch.inference_mode():
        maps = stage(torch.from_numpy(filled), torch.from_numpy(pair.static)).numpy()
    loader = loader_of(pair, batch=7, with_values=True)
    back = {None: lambda y: y, "sqrt": np.square, "log1p": np.expm1}[transform]
    to = {None: lambda y: y, "sqrt": np.sqrt, "log1p": np.log1p}[transform]
    seen = 0
    for pieces, batch in zip(loader._plan(0), take(loader, 4), strict=False):
        with torch.inference_mode():
            output = net(batch.inputs)[:, 0]
        days, numbers = np.divmod(np.concatenate([p.patches for p in pieces]), len(loader.origins))
        days = np.concatenate([loader.slabs[i] for i in pieces[0].slabs])[days]
        for i, (day, number) in enumerate(zip(days, numbers, strict=True)):
            row, col = loader.origins[number]
            window = (day, slice(row, row + 10), slice(col, col + 10))
            between = upsample(to(filled), factor)[window] if residual else 0.0
            predicted = back(np.clip(normalizers.target.invert(output[i].numpy()) + between, 0, None))
            np.testing.assert_allclose(predicted, maps[window], rtol=2e-4, atol=2e-4)
            truth = fine["precipitation"].values[window]
            mask = batch.mask[i].numpy()
            assert (mask == (np.isfinite(truth) & pair.mask[window[1:]])).all()
            np.testing.assert_allclose(batch.values[i].numpy()[mask], truth[mask])
            target = back(np.clip(normalizers.target.invert(batch.target[i].numpy()) + between, 0, None))
            np.testing.assert_allclose(target[mask], truth[mask], rtol=1e-4, atol=1e-4)
            seen += 1
    assert seen == 28


def test_nothing_missing_reaches_the_network():
    coarse, fine = pair_of_levels()
    loader = loader_of(make_pair(coarse, fine, SMALL), min_land=0.0, with_values=True)
    masked = 0
    for batch in take(loader, 20):
        assert all(torch.isfinite(part).all() for part in (batch.inputs, batch.target, batch.values))
        assert (batch.target[~batch.mask] == 0).all()
        masked += int((~batch.mask).sum())
    assert masked > 0


def test_a_missing_coarse_cell_hides_its_fine_cells():
    coarse, fine = pair_of_levels(ocean=False)
    coarse["precipitation"][3, 4, 5] = np.nan
    _, target = make_pair(coarse, fine, SMALL).observed(np.array([2, 3]))
    assert np.isnan(target[1, 8:10, 10:12]).all()
    assert np.isnan(target).sum() == 4


# --- order ------------------------------------------------------------------------------------------------------------


def keys(loader, count, step=0):
    """(day, row, col) of the patches of some batches, from the plan alone."""
    found = []
    for pieces, _ in zip(loader._plan(step), range(count), strict=False):
        for piece in pieces:
            days = np.concatenate([loader.slabs[i] for i in piece.slabs])
            day, number = np.divmod(piece.patches, len(loader.origins))
            found += [(int(d), *map(int, loader.origins[n])) for d, n in zip(days[day], number, strict=True)]
    return found


@settings(max_examples=25)
@given(batch=st.integers(1, 23), buffered=st.integers(1, 12), limit=st.integers(1, 11), step=st.integers(0, 40))
def test_an_epoch_has_every_patch_once_and_resumes_anywhere(batch, buffered, limit, step):
    pair = make_pair(*pair_of_levels(), SMALL)
    loader = loader_of(pair, batch=batch, limit=limit, buffer=buffered * bytes_per_day(pair))
    size = len(loader)
    found = keys(loader, -(-2 * size // batch))
    for epoch in (found[:size], found[size : 2 * size]):
        assert len(set(epoch)) == size
    assert found[:size] != found[size : 2 * size]
    assert keys(loader, step + 3)[step * batch :] == keys(loader, 3, step=step)


@pytest.mark.parametrize("buffer_days", [3, 7, 1000])
def test_batches_go_on_from_any_step(buffer_days):
    pair = make_pair(*pair_of_levels(chunks=3), SMALL)
    make = lambda **k: loader_of(pair, batch=9, buffer=buffer_days * bytes_per_day(pair), limit=3, **k)  # noqa: E731
    straight = take(make(), 30)
    for step in (0, 1, 13, 27):
        for a, b in zip(straight[step : step + 3], take(make(workers=3), 3, step=step), strict=True):
            for one, other in zip(a, b, strict=True):
                assert (one is None and other is None) or torch.equal(one, other)


def test_another_seed_another_order():
    pair = make_pair(*pair_of_levels(), SMALL)
    assert keys(loader_of(pair, seed=(0, 0)), 5) == keys(loader_of(pair, seed=(0, 0)), 5)
    assert keys(loader_of(pair, seed=(0, 0)), 5) != keys(loader_of(pair, seed=(0, 1)), 5)


def test_days_of_a_step():
    pair = make_pair(*pair_of_levels(), SMALL)
    loader = loader_of(pair, batch=3)
    assert loader.days_of(7).tolist() == sorted({day for day, _, _ in keys(loader, 1, step=7)})


# --- reading ----------------------------------------------------------------------------------------------------------


def counted(ds, counts, name):
    """``ds`` with chunks that count how often they are read."""
    values, chunk = ds["precipitation"].values, 2
    lock = threading.Lock()

    def read(block_info=None):
        first = block_info[None]["array-location"][0][0]
        with lock:
            counts[name, first] += 1
        return values[first : first + chunk]

    shape = values.shape[1:]
    chunks = ((chunk,) * (len(values) // chunk), shape[:1], shape[1:])
    lazy = dask.array.map_blocks(read, dtype=values.dtype, chunks=chunks, meta=np.empty((0, 0, 0), values.dtype))
    return ds.assign(precipitation=(("time", "lat", "lon"), lazy, ds["precipitation"].attrs))


def test_every_chunk_is_read_once_per_epoch():
    counts = Counter()
    coarse, fine = pair_of_levels(days=12)
    pair = make_pair(counted(coarse, counts, "coarse"), counted(fine, counts, "fine"), SMALL)
    assert not counts  # making the pair reads no precipitation
    # A bufferful of two chunks; the loader may have begun to read one more.
    loader = loader_of(pair, batch=len(patch_origins(pair.mask, (10, 10), 6, 0.5)), buffer=8 * bytes_per_day(pair))
    take(loader, 12 + 1)
    assert set(counts) == {(name, first) for name in ("coarse", "fine") for first in range(0, 12, 2)}
    assert sum(counts.values()) <= 2 * (6 + 2 * 2)

    counts.clear()
    take(loader_of(pair, batch=12, buffer=100 * bytes_per_day(pair)), 60)  # everything fits: read once for all epochs
    assert set(counts.values()) == {1}


def test_slabs_hold_whole_chunks_of_both_levels():
    coarse, fine = pair_of_levels(days=12)
    pair = make_pair(coarse.chunk(time=6), fine.chunk(time=3), SMALL)
    everything = np.arange(12)
    assert [s.tolist() for s in slabs(pair, everything, 100)] == [list(range(6)), list(range(6, 12))]
    assert [len(s) for s in slabs(pair, everything, 4)] == [3, 3, 3, 3]
    assert [s.tolist() for s in slabs(pair, np.array([1, 2, 7, 11]), 100)] == [[1, 2], [7, 11]]
    in_memory = make_pair(*pair_of_levels(days=12), SMALL)
    assert [len(s) for s in slabs(in_memory, everything, 5)] == [5, 5, 2]


def test_zarr_without_dask(tmp_path):
    """Levels opened without Dask are read by their stored chunks and stay lazy."""
    for name, level in zip(("coarse", "fine"), pair_of_levels(days=12, chunks=4), strict=True):
        level.to_zarr(tmp_path / f"{name}.zarr")
    opened = [xr.open_zarr(tmp_path / f"{name}.zarr", chunks=None) for name in ("coarse", "fine")]
    pair = make_pair(*opened, SMALL)
    assert [len(s) for s in slabs(pair, np.arange(12), 100)] == [4, 4, 4]
    memory = make_pair(*pair_of_levels(days=12), SMALL)
    for one, other in zip(pair.read(np.array([3, 5])), memory.read(np.array([3, 5])), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not opened[1]["precipitation"].variable._in_memory


def test_an_error_while_reading_reaches_the_caller():
    coarse, fine = pair_of_levels(days=4)

    def broken(block):
        raise OSError("the disk is gone")

    lazy = fine["precipitation"].chunk(time=2).data.map_blocks(broken, meta=np.empty((0, 0, 0), np.float32))
    pair = make_pair(coarse, fine.assign(precipitation=(("time", "lat", "lon"), lazy)), SMALL)
    with pytest.raises(OSError, match="the disk is gone"):
        take(loader_of(pair), 1)
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "cut")) and t.is_alive()]


def test_a_chunk_larger_than_the_buffer_is_named(caplog):
    pair = make_pair(*pair_of_levels(days=12, chunks=12), SMALL)
    loader_of(pair, buffer=2 * bytes_per_day(pair))
    assert "A chunk of 12 days takes" in caplog.text


# --- normalisers ------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-1e4, 1e4), max_size=20), min_size=1, max_size=8))
def test_moments_merge_exactly(parts):
    moments = MeanAndStd()
    for part in parts:
        moments = moments.merge(np.array(part))
    values = np.concatenate([np.array(part, float) for part in parts])
    assert moments.size == values.size
    if values.size:
        assert moments.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
        assert moments.deviations == pytest.approx(np.square(values - values.mean()).sum(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_normalizers_are_those_of_all_cells_that_count(residual):
    config = SRCNNConfig((4, 3), (5, 1, 3), 2, ("elevation",), residual)
    coarse, fine = pair_of_levels()
    days = np.array([0, 1, 2, 5, 6, 9])
    pair = make_pair(coarse, fine, config)
    found = fit_normalizers(pair, slabs(pair, days, 2))
    inputs = upsample(fill_nearest(coarse["precipitation"].values.astype(np.float64), config.halo), 2)[days]
    truth = fine["precipitation"].values.astype(np.float64)[days]
    valid = np.isfinite(truth)
    target = (truth - inputs if residual else truth)[valid]
    elevation = fine["elevation"].values[pair.mask]
    for normalizer, values in (
        (found.precipitation, inputs[valid]),
        (found.target, target),
        (found.static["elevation"], elevation),
    ):
        assert normalizer.mean == pytest.approx(values.mean(dtype=float), rel=1e-5, abs=1e-6)
        assert normalizer.std == pytest.approx(values.std(dtype=float), rel=1e-5)


def test_normalizers_do_not_depend_on_the_threads():
    pair = make_pair(*pair_of_levels(chunks=2), SMALL)
    parts = slabs(pair, np.arange(10), 2)
    assert fit_normalizers(pair, parts, 1) == fit_normalizers(pair, parts, 4)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_levels_of_different_days():
    coarse, fine = pair_of_levels()
    with pytest.raises(ValueError, match=r"different days: the coarse one has 9 from 2001-01-02 .* fine one 10 from"):
        make_pair(coarse.isel(time=slice(1, None)), fine, SMALL)
    with pytest.raises(ValueError, match="different days"):
        make_pair(coarse.assign_coords(time=coarse["time"] + np.timedelta64(1, "D")), fine, SMALL)


def test_shapes_that_do_not_divide():
    coarse, fine = pair_of_levels()
    with pytest.raises(ValueError, match=r"23 x 28 cells, the coarse one 12 x 14. Needed: 2 times as many"):
        make_pair(coarse, fine.isel(lat=slice(23)), SMALL)


def test_levels_that_do_not_lie_on_each_other():
    coarse, fine = pair_of_levels()
    with pytest.raises(ValueError, match=r"do not lie on each other: lat of .*sortby\('lat'\)"):
        make_pair(coarse, fine.isel(lat=slice(None, None, -1)), SMALL)
    with pytest.raises(ValueError, match="do not lie on each other: lon"):
        make_pair(coarse, fine.assign_coords(lon=fine["lon"] + 1 / 48), SMALL)


def test_a_level_without_elevation_mask_or_precipitation():
    coarse, fine = pair_of_levels()
    with pytest.raises(ValueError, match=r"no 'elevation' .* as a static field.*TrainConfig\(static=\(\)\)"):
        make_pair(coarse, fine.drop_vars("elevation"), SMALL)
    with pytest.raises(ValueError, match="no 'mask'"):
        make_pair(coarse, fine.drop_vars("mask"), SMALL)
    with pytest.raises(ValueError, match="Needed: 'precipitation'"):
        make_pair(coarse.rename(precipitation="ppt"), fine, SMALL)


def test_days_without_an_observed_cell():
    coarse, fine = pair_of_levels()
    pair = make_pair(coarse, fine.assign(precipitation=fine["precipitation"] * np.nan), SMALL)
    with pytest.raises(ValueError, match="The 10 training days have no observed cell"):
        fit_normalizers(pair, slabs(pair, np.arange(10), 5))


def test_infinite_precipitation():
    coarse, fine = pair_of_levels()
    fine["precipitation"][2, 20, 20] = np.inf
    pair = make_pair(coarse, fine, SMALL)
    with pytest.raises(ValueError, match="infinite values"):
        fit_normalizers(pair, slabs(pair, np.arange(10), 5))
