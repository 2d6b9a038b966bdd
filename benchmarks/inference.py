"""Inference on a CPU against plain torch, ONNX Runtime and OpenVINO; the path through Dask and Zarr; the graph.

All contenders have the same two cores and take turns in every round; a figure is the median over the rounds of the
ratio within a round, so that other load on the machine affects all alike. ONNX Runtime and OpenVINO run the bare
network on inputs that were interpolated, normalised and padded before the clock starts; torch and xdeepsd do all of it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import torch
import xarray as xr
import zarr
from _report import figure, parser, report
from distributed import Client, LocalCluster
from scipy import ndimage

import xdeepsd
import xdeepsd.stores.write
from xdeepsd.inference.fast import compiled, fused
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig, pad_edges, upsample_tensor
from xdeepsd.models.stage import Stage

CORES = 2
OPERATIONS = 36 * 64 + 64 * 32 + 32 * 25  # multiply-adds left per fine cell, 9-1-5 and 64-32-1 at factor 2
STAGES = 3


# --- a network and fields ---------------------------------------------------------------------------------------------


def rain(days: int, lat: int, lon: int, seed: int = 0) -> np.ndarray:
    """Daily precipitation, mm: smooth wet areas on a mostly dry map."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(days, lat, lon)), (0, lat / 12, lat / 12))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    detail = ndimage.gaussian_filter(rng.normal(size=(days, lat, lon)), (0, 1, 1))
    amount = np.maximum(0, noise + 0.3 * detail / detail.std() - 0.6)
    return (12 * amount**1.5).astype(np.float32)


def mountains(lat: int, lon: int) -> np.ndarray:
    """Elevation, m."""
    noise = np.random.default_rng(1).normal(size=(lat, lon))
    field = sum(s**1.5 * ndimage.gaussian_filter(noise, s) for s in (1, 4, 16))
    return (1000 + 800 * field / field.std()).astype(np.float32)[None]


def block_mean(field: np.ndarray, factor: int) -> np.ndarray:
    lat, lon = field.shape[-2:]
    return field.reshape(*field.shape[:-2], lat // factor, factor, lon // factor, factor).mean(axis=(-3, -1))


def trained_stage(seed: int = 0, residual: bool = False, steps: int = 150, transform: str | None = None) -> Stage:
    """The paper's network after a few training steps, so that its weights resemble those of a model."""
    torch.manual_seed(seed)
    mean, std = (0.8, 1.2) if transform else (2.5, 6.0)
    stage = Stage(
        SRCNN(SRCNNConfig(residual=residual)),
        Normalizer(mean, std),
        {"elevation": Normalizer(1000.0, 800.0)},
        Normalizer(0.0, std / 3) if residual else Normalizer(mean, std),
        transform,
    )
    truth = rain(24, 96, 192, seed=7)
    coarse = torch.from_numpy(block_mean(truth, 2))
    elevation = torch.from_numpy(mountains(96, 192))
    target = torch.from_numpy(truth * np.exp(0.1 * (mountains(96, 192) - 1000) / 800).astype(np.float32))
    optimizer = torch.optim.Adam(stage.net.parameters(), 1e-3)
    for step in range(steps):
        day, row, column = step % 24, 4 * (step % 7), 4 * (step % 13)
        cells = slice(row, row + 20), slice(column, column + 40)
        fine = slice(2 * row, 2 * row + 40), slice(2 * column, 2 * column + 80)
        loss = (stage(coarse[day : day + 1][:, *cells], elevation[:, *fine]) - target[day : day + 1][:, *fine]).square()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    stage.net.eval().requires_grad_(False)
    return stage


class Case:
    """The three stages, the static fields of their levels and some days, sized as the PRISM domain from 1 degree."""

    def __init__(self, stage: Stage, coarse: np.ndarray, elevation: np.ndarray, mask: np.ndarray | None = None) -> None:
        self.stage, self.coarse = stage, coarse
        self.static = [block_mean(elevation, 2 ** (STAGES - 1 - k)) for k in range(STAGES)]
        wanted = [None] * STAGES
        if mask is not None:
            wanted[-1] = mask
            for k in reversed(range(STAGES - 1)):
                cells = block_mean(wanted[k + 1].astype(np.float32), 2) > 0
                wanted[k] = ndimage.maximum_filter(cells, 2 * stage.config.halo + 1, mode="constant")
        self.wanted = wanted
        self.cells = len(coarse) * sum(field[0].size for field in self.static)

    def torch(self, dtype: torch.dtype = torch.float32, days: int | None = None) -> np.ndarray:
        """The plain forward, a day at a time."""
        stage = self.stage
        if dtype != torch.float32:
            stage = dataclasses.replace(stage, net=copy.deepcopy(stage.net).to(dtype))
        static = [torch.from_numpy(field).to(dtype) for field in self.static]
        out = []
        with torch.inference_mode():
            for day in self.coarse[:days]:
                field = torch.from_numpy(day[None]).to(dtype)
                for channel in static:
                    field = stage(field, channel)
                out.append(field[0].numpy())
        return np.stack(out)

    def xdeepsd(self, precision: str = "float32", skip: bool = True) -> Callable[[], np.ndarray]:
        stages = [
            fused.prepare(self.stage, static, wanted if skip else None, precision)
            for static, wanted in zip(self.static, self.wanted, strict=True)
        ]

        def run() -> np.ndarray:
            field = self.coarse
            for stage in stages:
                field = stage(field, threads=CORES)
            return field

        return run

    def network_inputs(self, days: int) -> list[list[np.ndarray]]:
        """Input of the bare network by stage and day: ``(1, 2, lat + 2 radius, lon + 2 radius)``, normalised."""
        config, inputs = self.stage.config, []
        field = torch.from_numpy(self.coarse[:days])
        for static in self.static:
            static = torch.from_numpy(static)
            margin = config.halo * config.factor - config.radius
            fine = upsample_tensor(pad_edges(field[:, None], config.halo), config.factor)[
                ..., margin:-margin, margin:-margin
            ]
            elevation = pad_edges(self.stage.static["elevation"].apply(static)[None], config.radius)
            both = torch.cat([self.stage.precipitation.apply(fine), elevation.expand(len(field), -1, -1, -1)], dim=1)
            inputs.append([both[day : day + 1].contiguous().numpy() for day in range(len(field))])
            with torch.inference_mode():
                field = self.stage(field, static)
        return inputs


# --- the other engines, on the plain network --------------------------------------------------------------------------


def onnx_model(stage: Stage) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "x"
    for i, layer in enumerate(stage.net.layers):
        weights += [
            numpy_helper.from_array(layer.weight.detach().numpy(), f"w{i}"),
            numpy_helper.from_array(layer.bias.detach().numpy(), f"b{i}"),
        ]
        last = i == len(stage.net.layers) - 1
        nodes.append(helper.make_node("Conv", [name, f"w{i}", f"b{i}"], ["y" if last else f"c{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
            name = f"r{i}"
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", channels, f"{n}h", f"{n}w"])
        for n, channels in (("x", 2), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "srcnn", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiles(field: np.ndarray, size: int, radius: int) -> list[np.ndarray]:
    """Equal tiles of at most ``size`` output cells with their margins, one array each."""
    lat, lon = (n - 2 * radius for n in field.shape[-2:])
    rows, columns = (np.linspace(0, n, -(-n // size) + 1).astype(int) for n in (lat, lon))
    return [
        np.ascontiguousarray(field[..., r : r2 + 2 * radius, c : c2 + 2 * radius])
        for r, r2 in itertools.pairwise(rows)
        for c, c2 in itertools.pairwise(columns)
    ]


def onnxruntime_runs(model: bytes, inputs: list[list[np.ndarray]], radius: int) -> dict[str, Callable[[], None]]:
    import onnxruntime

    def session(threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    whole, singles = session(CORES), [session(1) for _ in range(CORES)]
    runs = {"whole field": lambda: [whole.run(None, {"x": day}) for stage in inputs for day in stage]}
    for size in (48, 96):
        cut = [tile for stage in inputs for day in stage for tile in tiles(day, size, radius)]

        def tiled(cut: list[np.ndarray] = cut) -> None:
            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(lambda k: [singles[k].run(None, {"x": t}) for t in cut[k::CORES]], range(CORES)))

        runs[f"tiles of {size}, a thread each"] = tiled
    return runs


def openvino_runs(model: bytes, inputs: list[list[np.ndarray]], precision: str) -> dict[str, Callable[[], None]]:
    import openvino

    core, runs = openvino.Core(), {}
    for hint in ("LATENCY", "THROUGHPUT"):
        queues = []
        for stage in inputs:
            network = core.read_model(model)
            network.reshape(list(stage[0].shape))
            compiled = core.compile_model(
                network,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": precision,
                    "INFERENCE_NUM_THREADS": CORES,
                    "PERFORMANCE_HINT": hint,
                    **({"NUM_STREAMS": CORES} if hint == "THROUGHPUT" else {}),
                },
            )
            queues.append(openvino.AsyncInferQueue(compiled, CORES if hint == "THROUGHPUT" else 1))

        def run(queues: list[openvino.AsyncInferQueue] = queues) -> None:
            for queue, stage in zip(queues, inputs, strict=True):
                for day in stage:
                    queue.start_async([day])
                queue.wait_all()

        runs[hint.lower()] = run
    return runs


def matrix_rate(size: int) -> tuple[Callable[[], None], float]:
    """A float32 matrix product on all cores, and the number of its operations."""
    a, b, c = (torch.rand(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=c), 2.0 * size**3


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest(ways: dict[str, Callable[[], object]]) -> Callable[[], object]:
    """The fastest way to use an engine on this machine: best of two after a warm-up."""
    best = {}
    for name, run in ways.items():
        run()
        best[name] = min(timed(run), timed(run))
    return ways[min(best, key=best.__getitem__)]


def rounds(runs: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of every run in every round; the order rotates from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for name in names:
        runs[name]()
    for i in range(count):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(runs[name]))
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of how many times faster ``fast`` is."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def kernel_figures(quick: bool) -> tuple[list[dict], dict]:
    lat, lon, days = (6, 10, 4) if quick else (26, 58, 30)
    stage = trained_stage(steps=20 if quick else 150)
    case = Case(stage, rain(days, lat, lon), mountains(8 * lat, 8 * lon))
    model, inputs = onnx_model(stage), case.network_inputs(days)
    multiply, operations = matrix_rate(256 if quick else 1536)
    runs: dict[str, Callable[[], object]] = {
        "torch": case.torch,
        "xdeepsd float32": case.xdeepsd(),
        "onnxruntime": fastest(onnxruntime_runs(model, inputs, stage.config.radius)),
        "openvino float32": fastest(openvino_runs(model, inputs, "f32")),
        "torch.mm": lambda: [multiply() for _ in range(4)],
    }
    if compiled.HAS_BFLOAT16:
        runs["xdeepsd bfloat16"] = case.xdeepsd("bfloat16")
        runs["openvino bfloat16"] = fastest(openvino_runs(model, inputs, "bf16"))
    seconds = rounds(runs, 2 if quick else 7)

    few = case.torch(torch.float64, days=3)
    error = relative(case.xdeepsd()()[:3], few)
    rate = operations * 4 / np.array(seconds["torch.mm"])
    ours = 2 * OPERATIONS * case.cells / np.array(seconds["xdeepsd float32"])
    figures = [
        figure("vs_torch", ratio(seconds, "torch", "xdeepsd float32"), "times", 5.0, "higher"),
        figure("vs_onnxruntime", ratio(seconds, "onnxruntime", "xdeepsd float32"), "times", 1.7, "higher"),
        figure("vs_openvino", ratio(seconds, "openvino float32", "xdeepsd float32"), "times", 1.9, "higher"),
        figure("relative_error_float32", error, "relative L2", 1e-6, "lower"),
        figure("relative_error_torch_float32", relative(case.torch(days=3), few), "relative L2", None, "lower"),
        figure("share_of_matrix_rate", float(np.median(ours / rate)), "of torch.mm", 0.5, "higher"),
        figure("matrix_rate", float(np.median(rate)) / 1e9, "GFLOP/s", None, "higher"),
    ]
    if compiled.HAS_BFLOAT16:
        figures += [
            figure(
                "bf16_vs_openvino_bf16", ratio(seconds, "openvino bfloat16", "xdeepsd bfloat16"), "times", 1.0, "higher"
            ),
            figure("bf16_vs_float32", ratio(seconds, "xdeepsd float32", "xdeepsd bfloat16"), "times", 1.15, "higher"),
            figure("relative_error_bf16", relative(case.xdeepsd("bfloat16")()[:3], few), "relative L2", 6e-3, "lower"),
        ]
    # What TrainConfig() makes: residual, the square root of precipitation.
    root = Case(trained_stage(0, True, 20 if quick else 150, "sqrt"), case.coarse, mountains(8 * lat, 8 * lon))
    runs = {"torch": root.torch, "float32": root.xdeepsd()}
    if compiled.HAS_BFLOAT16:
        runs["bfloat16"] = root.xdeepsd("bfloat16")
    roots, few = rounds(runs, 2 if quick else 5), root.torch(torch.float64, days=3)
    figures += [
        figure("sqrt_vs_torch", ratio(roots, "torch", "float32"), "times", 5.0, "higher"),
        figure("relative_error_sqrt", relative(root.xdeepsd()()[:3], few), "relative L2", 1e-6, "lower"),
    ]
    if compiled.HAS_BFLOAT16:
        error = relative(root.xdeepsd("bfloat16")()[:3], few)
        figures += [
            figure("sqrt_bf16_vs_float32", ratio(roots, "float32", "bfloat16"), "times", 1.15, "higher"),
            figure("relative_error_sqrt_bf16", error, "relative L2", 6e-3, "lower"),
        ]
    million = {name: case.cells / statistics.median(s) / 1e6 for name, s in seconds.items() if name != "torch.mm"}
    for name, value in sorted(million.items(), key=lambda item: item[1]):
        figures.append(figure(f"rate of {name}", value, "million cells/s", None, "higher"))
    return figures, {"domain": f"{lat} x {lon} coarse cells, {STAGES} stages, {days} days"}


def real_days_figures(folder: Path) -> list[dict]:
    """All real days of PRISM, coarsened by 8, with the mask."""
    scale = 2**STAGES
    files = [p for p in sorted(folder.glob("prism/*.zip")) if "normal" not in p.name and "small" not in p.name]
    ds = xdeepsd.open_prism(files, allow_missing=True)
    fine = ds["ppt"].values[:, :616, :1400]
    mask = np.isfinite(fine).all(axis=0)
    blocks = fine.reshape(len(fine), 616 // scale, scale, 1400 // scale, scale)
    with np.errstate(invalid="ignore"):
        coarse = np.nansum(blocks, axis=(2, 4)) / np.isfinite(blocks).sum(axis=(2, 4))
    nearest = ndimage.distance_transform_edt(~np.isfinite(coarse[0]), return_distances=False, return_indices=True)
    coarse = np.ascontiguousarray(coarse[:, nearest[0], nearest[1]], np.float32)
    case = Case(trained_stage(), coarse, mountains(616, 1400), mask)
    skipping, everything = case.xdeepsd(), case.xdeepsd(skip=False)
    if not np.array_equal(skipping()[:, mask], everything()[:, mask]):
        raise AssertionError("skipping the ocean changed the bits on land")
    seconds = rounds({"torch": case.torch, "skipping": skipping, "everything": everything}, 5)
    return [
        figure("real_days_vs_torch", ratio(seconds, "torch", "skipping"), "times", 6.5, "higher"),
        figure("real_days_without_skipping", ratio(seconds, "torch", "everything"), "times", None, "higher"),
        figure("real_days", len(coarse), "days", None, "higher"),
    ]


# --- Dask and Zarr ----------------------------------------------------------------------------------------------------


def dataset(days: int, lat: int, lon: int) -> xr.DataArray:
    """Coarse days at 1 degree."""
    coords = {
        "time": np.datetime64("1971-01-01", "D").astype("M8[ns]") + np.arange(days) * np.timedelta64(1, "D"),
        "lat": 25.5 + np.arange(lat),
        "lon": -124.5 + np.arange(lon),
    }
    values = np.resize(rain(min(days, 120), lat, lon), (days, lat, lon))
    return xr.DataArray(values, coords, ("time", "lat", "lon"), "pr", {"units": "mm day-1"})


def stack(stage: Stage, lat: int, lon: int, mask: bool = True) -> xdeepsd.StackedSRCNN:
    """Three stages with elevation and a mask of about two thirds land."""
    scale = 2**STAGES
    coords = {
        "lat": 25 + (np.arange(scale * lat) + 0.5) / scale,
        "lon": -125 + (np.arange(scale * lon) + 0.5) / scale,
    }
    elevation = xr.DataArray(mountains(scale * lat, scale * lon)[0], coords, ("lat", "lon"), attrs={"units": "m"})
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=elevation.shape), lat)
    land = xr.DataArray(smooth > np.quantile(smooth, 0.35), coords, ("lat", "lon")) if mask else None
    return xdeepsd.StackedSRCNN([stage] * STAGES, static=elevation.to_dataset(name="elevation"), mask=land)


# Zarr 2 wrote Blosc's LZ4 with shuffled bytes by default, so most climate stores use it; Zarr 3 writes Zstandard, which
# is a tenth smaller and takes three times as long.
COMPRESSORS = {"lz4": zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), "zstd": zarr.codecs.ZstdCodec()}


def zarr_figures(quick: bool, folder: Path) -> list[dict]:
    """Zarr to Zarr on both schedulers against the kernel alone on the same days, two threads each."""
    lat, lon, days, chunk = (6, 10, 60, 30) if quick else (26, 58, 1440, 30)
    stage = trained_stage(steps=20 if quick else 150)
    model = stack(stage, lat, lon)
    dataset(days, lat, lon).chunk(time=chunk).to_dataset().to_zarr(folder / "coarse.zarr")
    case = Case(stage, dataset(days, lat, lon).values, model.static["elevation"].values[None], model.mask.values)
    stages = [fused.prepare(stage, s, w) for s, w in zip(case.static, case.wanted, strict=True)]

    def kernel() -> None:
        def forward(field: np.ndarray) -> None:
            for one in stages:
                field = one(field)

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(forward, [case.coarse[start : start + chunk] for start in range(0, days, chunk)]))

    def write(codec: str) -> None:
        ds = xr.open_zarr(folder / "coarse.zarr", chunks={"time": chunk})
        encoding = {"pr": {"compressors": COMPRESSORS[codec]}}
        fine = xdeepsd.downscale(ds, model)
        xdeepsd.to_zarr(fine, folder / f"fine_{codec}.zarr", overwrite=True, encoding=encoding)

    def threads(codec: str) -> None:
        with dask.config.set(scheduler="threads", num_workers=CORES):
            write(codec)

    def distributed(client: Client, codec: str) -> None:
        with client.as_current():
            write(codec)

    # The kernel releases the GIL, so one process is enough; more would spend a share of the two cores on event loops.
    options = {"dashboard_address": None, "silence_logs": logging.ERROR}
    with (
        LocalCluster(processes=False, n_workers=1, threads_per_worker=CORES, **options) as inside,
        LocalCluster(n_workers=CORES, threads_per_worker=1, **options) as outside,
        Client(inside, set_as_default=False) as one,
        Client(outside, set_as_default=False) as many,
    ):
        calls = {
            "threads": partial(threads, "lz4"),
            "distributed": partial(distributed, one, "lz4"),
            "worker_processes": partial(distributed, many, "lz4"),
            "threads_zstd": partial(threads, "zstd"),
        }
        seconds = rounds({"kernel": kernel, **calls}, 2 if quick else 4)
    shares = {name: ratio(seconds, "kernel", name) for name in calls}
    unit = "of the kernel's rate"
    figures = [
        figure("zarr_to_zarr_share", min(shares["threads"], shares["distributed"]), unit, 0.8, "higher"),
        figure("zarr_to_zarr_share_worker_processes", shares["worker_processes"], unit, 0.8, "higher"),
    ]
    figures += [
        figure(f"zarr_to_zarr_share_{name}", shares[name], unit, None, "higher")
        for name in ("threads", "distributed", "threads_zstd")
    ]
    for codec in COMPRESSORS:
        fine = zarr.open_array(folder / f"fine_{codec}.zarr", path="pr", mode="r")
        smaller = fine.nbytes / fine.nbytes_stored()
        figures.append(figure(f"zarr_to_zarr_compression_{codec}", smaller, "times smaller on disk", None, "higher"))
    return figures


def graph_figures(folder: Path) -> list[dict]:
    """50 years of daily fields in chunks of 30 days: how long building the graph takes, and how large it is."""
    lat, lon, days, chunk = 26, 58, 18_263, 30
    model = stack(trained_stage(steps=1), lat, lon)
    coarse = dataset(days, lat, lon).chunk(time=chunk).to_dataset()
    coarse.to_zarr(folder / "years.zarr")
    ds = xr.open_zarr(folder / "years.zarr", chunks={"time": chunk})
    start = time.perf_counter()
    fine = xdeepsd.downscale(ds, model)
    graph = dict(fine["pr"].__dask_graph__())
    seconds = time.perf_counter() - start

    handed: list[dict] = []

    def catch(graph: dict, keys: list, client: object, advance: object) -> None:
        handed.append(dict(graph))
        raise KeyboardInterrupt

    compute, xdeepsd.stores.write.compute = xdeepsd.stores.write.compute, catch
    try:
        with contextlib.suppress(KeyboardInterrupt):
            xdeepsd.to_zarr(fine, folder / "years_fine.zarr")
    finally:
        xdeepsd.stores.write.compute = compute
    chunks = -(-days // chunk)
    return [
        figure("graph_seconds_50_years", seconds, "s", 1.0, "lower"),
        figure("tasks_per_chunk", len(handed[0]) / chunks, "tasks, read to write", 3.0, "lower"),
        figure("tasks_per_chunk_downscale", len(graph) / chunks, "tasks, not optimized", None, "lower"),
        figure("graph_megabytes", len(cloudpickle.dumps(handed[0])) / 1e6, "MB", 5.0, "lower"),
    ]


# Nothing but xdeepsd in this process: whatever else a benchmark imports would mask its memory.
MEMORY = """
import dask, xarray as xr, xdeepsd
from pathlib import Path
dask.config.set(scheduler="threads", num_workers=2)
model = xdeepsd.load_model({model!r})
ds = xr.open_zarr({path!r}, chunks={{"time": 30}}).isel(time=slice({days}))
xdeepsd.to_zarr(xdeepsd.downscale(ds, model), {out!r})
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def memory_figures(quick: bool, folder: Path) -> list[dict]:
    """Peak memory of a process that downscales 1 year and 50 years of a small domain."""
    years = (60, 365) if quick else (365, 18_263)
    dataset(years[-1], 10, 16).chunk(time=30).to_dataset().to_zarr(folder / "small.zarr")
    xdeepsd.save_model(stack(trained_stage(steps=1), 10, 16), folder / "small_model")
    peaks = []
    for days in years:
        paths = {"path": "small.zarr", "out": f"small_{days}.zarr", "model": "small_model"}
        code = MEMORY.format(days=days, **{name: str(folder / path) for name, path in paths.items()})
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.split()[-1]))
    return [
        figure("peak_memory_1_year", peaks[0], "MiB", None, "lower"),
        figure("peak_memory_50_years", peaks[1], "MiB", None, "lower"),
        figure("peak_memory_50_years_vs_1_year", peaks[1] / peaks[0], "times", 1.1, "lower"),
    ]


def cost_figures(quick: bool) -> list[dict]:
    """Seconds against fine cells and against days: a line through the origin, and the exponent of a power law."""
    stage = trained_stage(steps=1)
    sizes = [(26, 58), (82, 184), (260, 580)] if quick else [(26, 58), (82, 184), (260, 580), (540, 1080), (820, 1900)]

    def cost(lat: int, lon: int, days: int) -> tuple[float, float]:
        run = Case(stage, np.ones((days, lat, lon), np.float32), np.ones((1, 8 * lat, 8 * lon), np.float32)).xdeepsd()
        return 64.0 * lat * lon * days, min(timed(run) for _ in range(3 if lat < 300 else 1))

    area = np.array([cost(lat, lon, 1) for lat, lon in sizes])
    days = np.array([cost(26, 58, count) for count in (30, 60, 120, 240)])
    figures = []
    for name, (cells, seconds) in (("area", area.T), ("days", days.T)):
        exponent = np.polyfit(np.log(cells), np.log(seconds), 1)[0]
        rate = cells / seconds / 1e6
        print(f"{name}: {', '.join(f'{c:.3g} cells {s:.3g} s' for c, s in zip(cells, seconds, strict=True))}")
        figures.append(figure(f"cost_exponent_{name}", float(exponent), "1 = linear", 1.1, "lower"))
        figures.append(
            figure(f"cost_spread_{name}", float(rate.max() / rate.min()), "fastest / slowest rate", None, "lower")
        )
    return figures


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(CORES)
    figures, notes = kernel_figures(arguments.quick)
    data = Path(os.environ.get("XDEEPSD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if data.exists() and not arguments.quick:
        figures += real_days_figures(data)
    with tempfile.TemporaryDirectory() as folder:
        figures += graph_figures(Path(folder))
        figures += zarr_figures(arguments.quick, Path(folder))
        figures += memory_figures(arguments.quick, Path(folder))
    figures += cost_figures(arguments.quick)
    report(figures, arguments.json, ["torch", "onnxruntime", "openvino", "numba", "numpy", "dask", "zarr"], notes)


if __name__ == "__main__":
    sys.exit(main())
