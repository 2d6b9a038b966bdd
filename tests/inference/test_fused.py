"""The fast forward equals the plain one: the same numbers up to rounding, the same bits whatever else is computed."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeepsd.inference.fast import compiled, fused, layout
from xdeepsd.models.conserve import KINDS
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stage import Stage


def make_stage(config: SRCNNConfig, seed: int = 0, transform: str | None = None) -> Stage:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    static = {name: Normalizer(float(rng.normal(0, 300)), float(rng.uniform(1, 700))) for name in config.static}
    if transform:
        return Stage(SRCNN(config).eval(), Normalizer(1.0, 1.5), static, Normalizer(0.5, 0.7), transform)
    return Stage(SRCNN(config).eval(), Normalizer(2.0, 5.0), static, Normalizer(3.0, 4.0))


def make_input(stage: Stage, days: int, lat: int, lon: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rain with many dry cells, and rough static fields in their units."""
    rng = np.random.default_rng(seed)
    factor = stage.config.factor
    rain = rng.gamma(0.3, 8.0, (days, lat, lon)).astype(np.float32)
    rain[rng.random(rain.shape) < 0.3] = 0.0
    static = [n.mean + n.std * rng.normal(0, 1, (factor * lat, factor * lon)) for n in stage.static.values()]
    shape = (len(static), factor * lat, factor * lon)
    return rain, np.array(static, np.float32).reshape(shape)


def plain(
    stage: Stage, coarse: np.ndarray, static: np.ndarray, dtype: torch.dtype = torch.float64, weights=None
) -> np.ndarray:
    """The definition, in float64 unless asked otherwise."""
    net = copy.deepcopy(stage.net).to(dtype)
    exact = Stage(net, stage.precipitation, stage.static, stage.target, stage.transform)
    with torch.inference_mode():
        counts = None if weights is None else torch.from_numpy(weights).to(dtype)
        return exact(torch.from_numpy(coarse).to(dtype), torch.from_numpy(static).to(dtype), counts).numpy()


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


@st.composite
def cases(draw):
    layers = draw(st.integers(2, 4))
    kernel = st.sampled_from([1, 3, 5, 7, 9])
    kind = draw(st.sampled_from([None, None, "multiplicative", "softmax"]))
    config = SRCNNConfig(
        channels=tuple(draw(st.lists(st.integers(1, 20), min_size=layers - 1, max_size=layers - 1))),
        kernels=tuple(draw(st.lists(kernel, min_size=layers, max_size=layers))),
        factor=draw(st.integers(1, 4)),
        static=("elevation", "climatology", "land_fraction")[: draw(st.integers(0, 3))],
        residual=kind != "softmax" and draw(st.booleans()),
        conserve=kind,
    )
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 60))
    return config, shape, draw(st.integers(0, 10_000))


@settings(max_examples=60)
@given(cases(), st.sampled_from([None, None, "sqrt", "log1p"]), st.data())
def test_any_network_and_map(case, transform, data):
    """Against float64: any kernels, channels, factor, static fields, transform, shape from 1 x 1, and mask."""
    config, (days, lat, lon), seed = case
    stage = make_stage(config, seed, transform)
    coarse, static = make_input(stage, days, lat, lon, seed)
    expected = plain(stage, coarse, static)
    fast = fused.prepare(stage, static)
    got = fast(coarse)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-5)

    wanted = np.random.default_rng(seed).random(static.shape[1:]) < data.draw(st.sampled_from([0.0, 0.01, 0.2, 0.9]))
    masked = fused.prepare(stage, static, wanted)(coarse)
    if config.conserve is None:
        np.testing.assert_array_equal(masked, np.where(wanted, got, 0.0))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernels_", [(9, 1, 5), (9, 3, 5)])
def test_relative_error_of_the_usual_networks(factor, residual, kernels_):
    """Relative L2 difference to float64 under 1e-6, with the paper's network and deepsd's."""
    stage = make_stage(SRCNNConfig(kernels=kernels_, factor=factor, residual=residual))
    coarse, static = make_input(stage, 3, 14, 40)
    expected = plain(stage, coarse, static)
    got = fused.prepare(stage, static)(coarse)
    assert relative(got, expected) < 1e-6
    # about as close to the truth as the plain forward in float32
    assert relative(got, expected) < 3 * relative(plain(stage, coarse, static, torch.float32), expected) + 5e-8


def test_wide_maps_are_cut_into_strips_with_the_same_numbers():
    stage = make_stage(SRCNNConfig(channels=(64, 8)))
    coarse, static = make_input(stage, 2, 3, 600)
    assert relative(fused.prepare(stage, static)(coarse), plain(stage, coarse, static)) < 1e-6


def test_a_day_depends_on_that_day_only(monkeypatch):
    stage = make_stage(SRCNNConfig(kernels=(9, 3, 5), channels=(16, 8)))
    coarse, static = make_input(stage, 7, 9, 21)
    fast = fused.prepare(stage, static)
    together = fast(coarse)
    for day in range(7):
        np.testing.assert_array_equal(fast(coarse[day : day + 1])[0], together[day])
    np.testing.assert_array_equal(fast(coarse[::-1])[::-1], together)
    monkeypatch.setattr(fused, "_DAYS", 3)
    np.testing.assert_array_equal(fast(coarse), together)


def test_the_same_bits_from_any_tile(monkeypatch):
    """Strips, bands of rows and threads change nothing; nor does a window of the map, away from its edges."""
    stage = make_stage(SRCNNConfig(residual=True))
    coarse, static = make_input(stage, 2, 30, 150)
    whole = fused.prepare(stage, static)(coarse)
    np.testing.assert_array_equal(fused.prepare(stage, static)(coarse, threads=2), whole)
    np.testing.assert_array_equal(fused.prepare(stage, static)(coarse, threads=7), whole)
    monkeypatch.setattr(fused, "_STATIC_ROW", 1)
    np.testing.assert_array_equal(fused.prepare(stage, static)(coarse, threads=3), whole)
    halo = stage.config.halo
    window = fused.prepare(stage, static[:, 10:54, 22:200])(coarse[:, 5:27, 11:100])
    inner = window[:, 2 * halo : -2 * halo, 2 * halo : -2 * halo]
    rows, columns = slice(10 + 2 * halo, 54 - 2 * halo), slice(22 + 2 * halo, 200 - 2 * halo)
    np.testing.assert_array_equal(inner, whole[:, rows, columns])


def test_pickle_and_read_only_arrays():
    """What Dask passes to a worker: a pickled stage and read-only arrays."""
    stage = make_stage(SRCNNConfig())
    coarse, static = make_input(stage, 2, 5, 9)
    wanted = np.ones(static.shape[1:], bool)
    fast = fused.prepare(stage, static, wanted)
    expected = fast(coarse)
    sent = pickle.loads(pickle.dumps(fast))
    for array in (sent.static, sent.wanted, coarse):
        array.flags.writeable = False
    np.testing.assert_array_equal(sent(coarse), expected)
    assert len(pickle.dumps(fast)) < 3 * (static.nbytes + 4 * 13_313 * 4) + 100_000


def test_does_not_change_its_input():
    stage = make_stage(SRCNNConfig())
    coarse, static = make_input(stage, 2, 5, 9)
    before = coarse.copy(), static.copy()
    fused.prepare(stage, static)(coarse)
    np.testing.assert_array_equal(coarse, before[0])
    np.testing.assert_array_equal(static, before[1])


def test_a_network_without_hidden_layers_is_left_to_the_plain_forward():
    stage = make_stage(SRCNNConfig(channels=(), kernels=(9,)))
    assert fused.prepare(stage, np.zeros((1, 8, 8), np.float32)) is None


def test_another_map_is_refused():
    stage = make_stage(SRCNNConfig())
    fast = fused.prepare(stage, np.zeros((1, 8, 12), np.float32))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 5\); needed: \(days, 4, 6\)"):
        fast(np.zeros((1, 4, 5), np.float32))


def test_no_days_and_no_wanted_cell():
    stage = make_stage(SRCNNConfig())
    coarse, static = make_input(stage, 2, 4, 6)
    assert fused.prepare(stage, static)(coarse[:0]).shape == (0, 8, 12)
    nothing = fused.prepare(stage, static, np.zeros((8, 12), bool))
    np.testing.assert_array_equal(nothing(coarse), 0.0)


def test_memory_stays_under_its_formula():
    """docs/fast-inference.md: the buffers of a thread, whatever the size of the map and the number of days."""
    stage = make_stage(SRCNNConfig())
    for lon, days in ((232, 30), (702, 64), (5000, 64)):
        fast = fused.prepare(stage, np.zeros((1, 8, 2 * lon), np.float32))
        columns = fused._split(lon, -(-lon // 256))[0][1]
        work = layout.make_work(fast, layout.make_plan(fast, columns, days), days)
        width = columns + 2 + 48 + 32
        assert sum(array.nbytes for array in work) < 4 * width * (4 * 64 + 2 * 32 + 12 * days) + 2**17


needs_bfloat16 = pytest.mark.skipif(not compiled.HAS_BFLOAT16, reason="the processor has no avx512_bf16")


@needs_bfloat16
@settings(max_examples=40)
@given(cases())
def test_bfloat16_any_network_and_map(case):
    config, (days, lat, lon), seed = case
    config = dataclasses.replace(config, conserve=None)
    stage = make_stage(config, seed)
    coarse, static = make_input(stage, days, lat, lon, seed)
    expected = plain(stage, coarse, static)
    got = fused.prepare(stage, static, precision="bfloat16")(coarse)
    # The largest inputs and hidden values, eight bits each, times weights that add up to about 1 in every layer.
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.03 * (5 + np.abs(expected).max()))
    wanted = np.random.default_rng(seed).random(static.shape[1:]) < 0.2
    masked = fused.prepare(stage, static, wanted, precision="bfloat16")(coarse, threads=2)
    np.testing.assert_array_equal(masked, np.where(wanted, got, 0.0))


@needs_bfloat16
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernels_", [(9, 1, 5), (9, 3, 5)])
def test_relative_error_of_bfloat16(factor, residual, kernels_):
    stage = make_stage(SRCNNConfig(kernels=kernels_, factor=factor, residual=residual))
    coarse, static = make_input(stage, 3, 14, 40)
    got = fused.prepare(stage, static, precision="bfloat16")(coarse)
    assert 1e-5 < relative(got, plain(stage, coarse, static)) < 6e-3


def test_precision_is_checked(monkeypatch):
    stage = make_stage(SRCNNConfig())
    static = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(ValueError, match="precision is 'float16'; needed: 'float32' or 'bfloat16'"):
        fused.prepare(stage, static, precision="float16")
    monkeypatch.setattr(compiled, "HAS_BFLOAT16", False)
    with pytest.raises(ValueError, match=r"needs a processor with avx512_bf16.*Type precision='float32'"):
        fused.prepare(stage, static, precision="bfloat16")


def test_without_a_folder_for_compiled_code(monkeypatch):
    """In a container without a home folder and with a read-only package, each process compiles its own."""

    def nowhere(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(compiled.numba, "njit", nowhere)
    function, options = compiled.jit(len)
    assert function is len
    assert options["nogil"]


@pytest.mark.parametrize("transform", ["sqrt", "log1p"])
@pytest.mark.parametrize("residual", [False, True])
def test_relative_error_on_transformed_precipitation(transform, residual):
    stage = make_stage(SRCNNConfig(residual=residual), transform=transform)
    coarse, static = make_input(stage, 3, 14, 40)
    coarse[:, 3, :20] = -0.1  # climate models produce rain below zero; it counts as none
    assert relative(fused.prepare(stage, static)(coarse), plain(stage, coarse, static)) < 1e-6


@needs_bfloat16
@pytest.mark.parametrize("transform", ["sqrt", "log1p"])
@pytest.mark.parametrize("residual", [False, True])
def test_relative_error_on_transformed_precipitation_in_bfloat16(transform, residual):
    stage = make_stage(SRCNNConfig(residual=residual), transform=transform)
    coarse, static = make_input(stage, 3, 14, 40)
    got = fused.prepare(stage, static, precision="bfloat16")(coarse)
    assert 1e-5 < relative(got, plain(stage, coarse, static)) < 6e-3


@pytest.mark.parametrize("transform", [None, "sqrt", "log1p"])
@pytest.mark.parametrize("kernels_", [(3, 3), (5, 1, 3), (3, 3, 3)])
@pytest.mark.parametrize("residual", [False, True])
def test_nan_stays_nan(transform, kernels_, residual):
    """`downscale` lets no NaN in, but where sums overflow inside, they must not become rain (NaN compares as dry)."""
    config = SRCNNConfig(channels=(8, 5)[: len(kernels_) - 1], kernels=kernels_, residual=residual)
    stage = make_stage(config, transform=transform)
    coarse, static = make_input(stage, 3, 9, 11)
    coarse[1, 4, 5] = np.nan
    expected = plain(stage, coarse, static, torch.float32)
    values = fused.prepare(stage, static)(coarse)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    assert np.isnan(expected).sum() >= 4 * config.radius**2
    assert relative(np.nan_to_num(values), np.nan_to_num(expected)) < 1e-5


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("transform", [None, "sqrt"])
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_coarse_means_kept(kind, transform, precision):
    """As in the plain forward, where cells count in part or not at all, and where no cell of a block counts."""
    stage = make_stage(SRCNNConfig(residual=kind != "softmax", conserve=kind), transform=transform)
    coarse, static = make_input(stage, 70, 7, 12)  # more days than one pass holds
    cells = np.random.default_rng(0).random(static.shape[1:])
    cells[cells < 0.3] = 0
    cells[:4, :6] = 0
    expected = plain(stage, coarse, static, weights=cells)
    got = fused.prepare(stage, static, cells > 0, precision, cells)(coarse)
    scale = abs(expected[:, cells > 0]).max()
    tolerance = 2e-6 if precision == "float32" else 3e-2
    np.testing.assert_allclose(got[:, cells > 0] / scale, expected[:, cells > 0] / scale, rtol=0, atol=tolerance)
