"""Where values are wanted, and the number of threads: from the levels through training to the result, cell by cell.

These tests must notice the changes made by `tests/mutation.py`, within seconds.
"""

import threading

import numpy as np
import pytest
import torch
import xarray as xr
from builders import make_coarse, make_stack, make_static, pair_of_levels

import xdeepsd
from xdeepsd.inference import windows
from xdeepsd.levels import patches
from xdeepsd.levels.pairs import make_pair
from xdeepsd.levels.patches import patch_origins
from xdeepsd.models.srcnn import SRCNNConfig
from xdeepsd.models.threads import torch_threads
from xdeepsd.training import stage as training
from xdeepsd.training.validation import Validation

TINY = xdeepsd.TrainConfig(
    channels=(3,), kernels=(3, 3), static=("elevation",), patch=8, stride=4, batch=4, steps=2, validate_every=1,
    validation=0.2, workers=1, min_land=0.1,
)  # fmt: skip


def fine_days(days, nlat=4, nlon=4):
    lat, lon = 40 - 0.5 * np.arange(nlat), 0.5 * np.arange(nlon)
    rain = np.ones((days, nlat, nlon), np.float32)
    coords = {"time": xr.date_range("2001-01-01", periods=days), "lat": lat, "lon": lon}
    return xr.DataArray(rain, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_mask_is_what_the_first_thirty_days_observed():
    rain = fine_days(35)
    rain[:, 0, :3] = np.nan
    rain[29, 0, 0] = rain[30, 0, 1] = 1.0  # on the thirtieth day, and on the day after
    rain[5, 2, 2] = np.nan  # a gap
    finest = xdeepsd.make_levels(rain, factors=(2,))[-1]["mask"]
    expected = np.ones((4, 4), bool)
    expected[0, 1:3] = False
    np.testing.assert_array_equal(finest, expected)


def test_a_coarse_cell_is_wanted_where_any_fine_one_is():
    land = fine_days(2)[0].drop_vars("time") > 0
    land[:2, :2] = land[2:, :2] = False
    land[0, 0] = True
    other = xr.ones_like(land).rename("mask")
    coarse, finest = xdeepsd.make_levels(fine_days(2), other.to_dataset(), (2,), mask=land)
    np.testing.assert_array_equal(finest["mask"], land)  # a mask given takes precedence over a map of that name
    np.testing.assert_array_equal(coarse["mask"], [[True, True], [False, True]])
    np.testing.assert_array_equal(xdeepsd.make_levels(fine_days(2), other.to_dataset(), (2,))[-1]["mask"], other)


def test_a_map_that_lacks_one_row_does_not_lie_there():
    elevation = fine_days(1)[0].drop_vars("time").rename("elevation")
    with pytest.raises(ValueError, match=r"elevation is on another grid.*\(1 of 4 are missing\)"):
        xdeepsd.make_levels(fine_days(2), elevation[1:], (2,))


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.fixture
def case():
    model, coarse = make_stack(2, channels=(4,), kernels=(3, 3)), make_coarse(days=2)
    return model, coarse, make_static(coarse, model.scale)


def random_mask(static, share=0.3):
    wanted = np.random.default_rng(0).random(static["elevation"].shape) < share
    return static["elevation"].copy(data=wanted)


def test_masked_cells_are_missing_and_the_others_as_without(case):
    model, coarse, static = case
    mask = random_mask(static)
    without = xdeepsd.downscale(coarse, model, static)
    for given, stack in (({"mask": mask}, model), ({}, xdeepsd.StackedSRCNN(model.stages, static=static, mask=mask))):
        fine = xdeepsd.downscale(coarse, stack, static, **given)
        np.testing.assert_array_equal(fine.isnull(), ~mask.broadcast_like(fine))
        np.testing.assert_allclose(fine, without.where(mask), rtol=2e-6, atol=1e-6)


def test_a_mask_that_is_turned_or_larger(case):
    model, coarse, static = case
    mask = random_mask(static)
    expected = xdeepsd.downscale(coarse, model, static, mask=mask)
    np.testing.assert_array_equal(xdeepsd.downscale(coarse, model, static, mask=mask[::-1, ::-1]), expected)
    part, cells = {"lat": slice(1, 5), "lon": slice(2, 8)}, {"lat": slice(4, 20), "lon": slice(8, 32)}
    within = xdeepsd.StackedSRCNN(model.stages, static=static, mask=mask)
    fine = xdeepsd.downscale(coarse.isel(part), within, static.isel(cells))
    np.testing.assert_array_equal(fine.isnull().all("time"), ~mask.isel(cells))
    with pytest.raises(ValueError, match=r"mask has .* does not lie on the target grid"):
        xdeepsd.downscale(coarse.isel(part), model, static.isel(cells), mask=mask)


def test_a_mask_that_lies_there_in_part_is_none(case, caplog):
    model, coarse, static = case
    mask = random_mask(static)
    with pytest.raises(ValueError, match="does not lie on the target grid"):
        xdeepsd.downscale(coarse, model, static, mask=mask[1:])
    short = xdeepsd.StackedSRCNN(model.stages, static=static, mask=mask[1:])
    with caplog.at_level("WARNING", logger="xdeepsd"):
        assert xdeepsd.downscale(coarse, short, static).notnull().all()
    assert "mask is not used" in caplog.text


@pytest.mark.parametrize("wrong", [lambda m: m.astype(float), lambda m: m.values])
def test_a_mask_of_numbers_is_refused(case, wrong):
    model, coarse, static = case
    with pytest.raises(ValueError, match="needed: a bool DataArray"):
        xdeepsd.downscale(coarse, model, static, mask=wrong(random_mask(static)))


def test_what_each_stage_computes_is_what_the_next_one_reaches():
    stages = make_stack(2, channels=(3,), kernels=(3, 3)).stages
    mask = np.zeros((24, 24), bool)
    mask[13, 13] = True
    first, last = windows._wanted(mask, stages)
    np.testing.assert_array_equal(last, mask)
    reach = stages[1].config.halo
    expected = np.zeros((12, 12), bool)
    expected[6 - reach : 7 + reach, 6 - reach : 7 + reach] = True
    np.testing.assert_array_equal(first, expected)


def test_missing_stays_missing_and_tiles_see_as_far_as_the_whole():
    model = make_stack(1, channels=(3,), kernels=(3, 3))
    coarse = make_coarse(days=2, nlat=10, nlon=12)
    holes = np.random.default_rng(1).random(coarse.shape) < 0.7
    coarse = coarse.where(~holes)
    static = make_static(coarse, model.scale)
    whole = xdeepsd.downscale(coarse, model, static)
    np.testing.assert_array_equal(whole.isnull(), holes.repeat(2, axis=1).repeat(2, axis=2))
    for size in (1, 3):
        tiles = xdeepsd.downscale(coarse.chunk(lat=size, lon=size), model, static)
        np.testing.assert_allclose(tiles, whole, rtol=2e-6, atol=1e-6)


def test_tiles_reach_for_what_fills_the_cells_that_they_reach():
    """Every fourth column is observed: the cell two columns away, half-way between, may be filled from four away."""
    model = make_stack(1, channels=(3,), kernels=(3, 3))
    halo = model.halo
    coarse = make_coarse(days=2, nlat=4, nlon=8 * halo)
    coarse = coarse.where(np.arange(8 * halo) % (2 * halo) == 0)
    static = make_static(coarse, model.scale)
    whole = xdeepsd.downscale(coarse, model, static)
    tiles = xdeepsd.downscale(coarse.chunk(lon=1), model, static)
    np.testing.assert_allclose(tiles, whole, rtol=2e-6, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


def network(config=TINY):
    return SRCNNConfig(channels=config.channels, kernels=config.kernels, factor=2, static=config.static)


def test_the_loss_looks_at_wanted_and_observed_cells_only():
    low, high = pair_of_levels(days=4)
    high["mask"][0, -1] = False  # observed, not wanted
    pair = make_pair(low, high, network())
    _, target = pair.observed(np.arange(4))
    seen = (high["precipitation"].notnull() & high["mask"]).values & low["precipitation"].notnull().values.repeat(
        2, axis=1
    ).repeat(2, axis=2)
    np.testing.assert_array_equal(~np.isnan(target), seen)


def test_patches_want_their_share_and_some_land():
    mask = np.zeros((4, 8), bool)
    mask[:, 4:6] = True
    np.testing.assert_array_equal(patch_origins(mask, (4, 4), 4, 0.5), [[0, 4]])  # exactly half is enough
    np.testing.assert_array_equal(patch_origins(mask, (4, 4), 4, 0.0), [[0, 4]])  # no land at all is not


def test_batches_hold_zeros_where_the_mask_is_false():
    pair = make_pair(*pair_of_levels(days=4), network())
    normal = patches.Normalizers(
        xdeepsd.Normalizer(1, 2), {"elevation": xdeepsd.Normalizer(900, 500)}, xdeepsd.Normalizer(1, 5)
    )
    origins = patch_origins(pair.mask, (12, 12), 4, 0.1)
    loader = patches.PatchLoader(pair, normal, [np.arange(4)], origins, (12, 12), 64, (0, 0), with_values=True)
    batches = loader.batches()
    batch = next(batches)
    batches.close()
    assert 0 < batch.mask.float().mean() < 1
    for field in (batch.target, batch.values):
        assert (field[~batch.mask] == 0).all()
        assert field[batch.mask].isfinite().all()
        assert (field[batch.mask] != 0).any()


def test_ocean_does_not_enter_normalisers_density_or_the_identity_of_a_run():
    low, high = pair_of_levels(days=10)
    high["elevation"] = high["elevation"].where(high["mask"], -9000.0)
    trained = xdeepsd.train_stage(low, high, TINY)
    land = high["elevation"].values[high["mask"].values]
    assert trained.stage.static["elevation"].mean == pytest.approx(land.mean(), rel=1e-5)
    pair, split = training.stage_pair(low, high, TINY)
    high["mask"] = high["mask"] & (high["lat"] > high["lat"][6])
    fewer, _ = training.stage_pair(low, high, TINY)
    dense = xdeepsd.TrainConfig(loss="denseloss")
    counts = [training.fit_density(dense, p, split.train).summary()["n"] for p in (pair, fewer)]
    assert counts[1] == int((high["precipitation"][split.train].notnull() & high["mask"]).sum()) < counts[0]
    assert training._identity(pair, split) != training._identity(fewer, split)


def test_a_stack_keeps_the_mask_of_its_levels():
    low, high = pair_of_levels(days=10)
    model = xdeepsd.train_stack([low, high], TINY)
    np.testing.assert_array_equal(model.mask, high["mask"])
    assert not model.mask.all()


def test_validation_counts_wanted_cells_and_needs_some():
    low, high = pair_of_levels(days=4)
    pair = make_pair(low, high, network())
    stage = xdeepsd.train_stage(low, high, TINY).stage
    masks = []
    Validation(pair, np.arange(4), 10, torch.device("cpu")).loss(
        stage, lambda prediction, target, mask, values: masks.append(mask) or torch.tensor(0.0)
    )
    _, target = pair.observed(np.arange(4))
    np.testing.assert_array_equal(torch.cat(masks).numpy().reshape(target.shape), ~np.isnan(target))
    high["mask"][:] = False
    with pytest.raises(ValueError, match="None of the 4 validation days"):
        Validation(make_pair(low, high, network()), np.arange(4), 10, torch.device("cpu"))


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(function=torch.get_num_threads):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(30)
    return found[0]


def test_runs_within_runs(three_threads):
    for _ in range(2):  # each starts from what the previous one left behind
        with torch_threads(2):
            assert torch.get_num_threads() == in_new_thread() == 2
            with torch_threads(1):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 2
            with torch_threads(None):
                assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == in_new_thread() == 3
    with torch_threads(None):
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 2  # None does not count as a run


def test_who_leaves_first_leaves_the_others_theirs(three_threads):
    """The first run ends while another continues: new threads still start with the number of the latter."""
    inside, leave = threading.Event(), threading.Event()

    def long():
        with torch_threads(1):
            inside.set()
            leave.wait(30)

    other = threading.Thread(target=long)
    other.start()
    inside.wait(30)
    with torch_threads(1):
        pass
    assert in_new_thread() == 1
    assert torch.get_num_threads() == 3
    leave.set()
    other.join(30)
    assert torch.get_num_threads() == in_new_thread() == 3


def test_a_last_run_starts_no_thread(three_threads, monkeypatch):
    """If no other run is inside, the process's number is restored, and no thread sets it to the run's number."""
    with torch_threads(1):
        monkeypatch.setattr("xdeepsd.models.threads.threading.Thread", None)
    monkeypatch.undo()
    assert in_new_thread() == 3


def test_the_plain_forward_and_training_take_the_threads_they_say(three_threads, case, monkeypatch):
    model, coarse, static = case
    seen = []

    def spy(forward):
        def watched(self, *arguments):
            seen.append(torch.get_num_threads())
            return forward(self, *arguments)

        return watched

    monkeypatch.setattr(xdeepsd.SRCNN, "forward", spy(xdeepsd.SRCNN.forward))
    xdeepsd.downscale(coarse, model, static, precision="float64")
    assert set(seen) == {1}
    seen.clear()
    low, high = pair_of_levels(days=10)
    xdeepsd.train_stage(low, high, xdeepsd.TrainConfig(**{**vars(TINY), "threads": 2}))
    assert set(seen) == {2}
    assert torch.get_num_threads() == 3
