"""The loader against xbatcher, waiting and step time, memory over years, two workers against one.

Everything runs on generated levels in a Zarr store; ratios are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from _report import figure, parser, report

from xdeepsd.grids.blocks import block_mean
from xdeepsd.levels.normalizers import fit_normalizers
from xdeepsd.levels.pairs import make_pair, slabs
from xdeepsd.levels.patches import MIB, PatchLoader, patch_origins
from xdeepsd.models.srcnn import SRCNN
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.stack import train_stack
from xdeepsd.training.stage import initialize, train_stage

SHAPE, PATCH, STRIDE, BATCH = (160, 200), 38, 20, 32
CHUNK = 73  # days: a fifth of a year


def write_levels(path: Path, years: int, shape: tuple[int, int] = SHAPE, factors: int = 1) -> list[xr.Dataset]:
    """A ladder of smooth noise, a year at a time, with an ocean; opened lazily."""
    rng = np.random.default_rng(0)
    elevation = np.kron(rng.uniform(0, 2000, (shape[0] // 8, shape[1] // 8)), np.ones((8, 8))).astype(np.float32)
    mask = np.ones(shape, bool)
    mask[: shape[0] // 4, : shape[1] // 3] = False
    for year in range(years):
        small = rng.gamma(0.5, 4.0, (365, shape[0] // 4, shape[1] // 4)).astype(np.float32)
        rain = small.repeat(4, axis=1).repeat(4, axis=2) * (1 + elevation / 2000)
        rain = np.where(mask, rain, np.float32(np.nan))
        for level in range(factors + 1):
            scale = 2 ** (factors - level)
            lat, lon = (np.arange(n // scale) * scale / 24 + scale / 48 for n in shape)
            values = block_mean(rain, scale) if scale > 1 else rain
            ds = xr.Dataset(
                {"precipitation": (("time", "lat", "lon"), values.astype(np.float32), {"units": "mm day-1"})},
                {"time": np.arange(365 * year, 365 * (year + 1)), "lat": lat, "lon": lon},
            )
            ds["time"].attrs = {"units": "days since 1961-01-01", "calendar": "noleap"}
            ds = ds.chunk(time=CHUNK)
            if year:
                ds.to_zarr(path / f"level_{level}", append_dim="time", consolidated=False)
                continue
            fields = {"elevation": elevation, "mask": mask}
            for name, field in fields.items():
                mean = block_mean(field, scale)
                ds[name] = (("lat", "lon"), mean.astype(np.float32) if name == "elevation" else mean > 0)
            ds.to_zarr(path / f"level_{level}", consolidated=False)
    return open_levels(path)


def open_levels(path: Path) -> list[xr.Dataset]:
    return [xr.open_zarr(p, chunks={}, consolidated=False) for p in sorted(path.glob("level_*"))]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(static=("elevation",), validation=None, batch=BATCH, **changes)


def loader_of(levels: list[xr.Dataset], **changes: Any) -> PatchLoader:
    settings = config(**changes)
    pair = make_pair(levels[0], levels[1], settings.network(2))
    days = slabs(pair, np.arange(pair.fine.sizes["time"]), 10**6)
    output = (PATCH - 2 * pair.config.radius,) * 2
    origins = patch_origins(pair.mask, output, STRIDE, settings.min_land)
    normalizers = fit_normalizers(pair, days[:1])
    # Less than a year: chunks are read again in every epoch.
    return PatchLoader(pair, normalizers, days, origins, output, BATCH, (0, 0), buffer=48 * MIB)


def xbatcher_batches(levels: list[xr.Dataset], days: int) -> Iterator[torch.Tensor]:
    """Batches of windows of the fine level, of the same size and stride as ours.

    This is what xbatcher offers: it cuts a single array (no coarse one beside it, no interpolation, normalisation or
    shuffling), drops the remainder at the edges, and rereads a chunk for each of its items. An item is a window on
    ``days`` days: one (a patch, so that training can shuffle them), or a whole batch at one place (which suits xbatcher
    best, though no training would want it).
    """
    import xbatcher

    sizes = {"time": days, "lat": PATCH, "lon": PATCH}
    overlap = {"lat": PATCH - STRIDE, "lon": PATCH - STRIDE}
    given = levels[1][["precipitation"]]
    epochs = (xbatcher.BatchGenerator(given, input_dims=sizes, input_overlap=overlap) for _ in itertools.count())
    items = itertools.chain.from_iterable(epochs)  # a fast machine reads the days more than once
    while True:
        batch = [torch.from_numpy(next(items)["precipitation"].values) for _ in range(BATCH // days)]
        yield torch.cat(batch)


def patches_per_second(batches: Iterator[Any], seconds: float) -> float:
    next(batches)  # one-time work
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - began)


def loader_vs_xbatcher(levels: list[xr.Dataset], seconds: float, rounds: int) -> tuple[float, dict[str, float]]:
    speeds: dict[str, list[float]] = {"loader": [], "xbatcher": [], "xbatcher_blocks": []}
    for _ in range(rounds):
        batches = loader_of(levels).batches()
        speeds["loader"].append(patches_per_second(batches, seconds))
        batches.close()
        speeds["xbatcher"].append(patches_per_second(xbatcher_batches(levels, 1), seconds))
        speeds["xbatcher_blocks"].append(patches_per_second(xbatcher_batches(levels, BATCH), seconds))
    ratios = {
        name: statistics.median(a / b for a, b in zip(speeds["loader"], speeds[name], strict=True))
        for name in ("xbatcher", "xbatcher_blocks")
    }
    notes = {f"patches_per_second_{name}": statistics.median(found) for name, found in speeds.items()}
    # The target refers to what suits xbatcher best.
    return ratios["xbatcher_blocks"], notes | {"loader_vs_xbatcher_single_patches": ratios["xbatcher"]}


def waiting_share(levels: list[xr.Dataset], steps: int) -> float:
    history = train_stage(levels[0], levels[1], config(steps=steps, validate_every=steps, buffer=48)).history
    return float(history["waiting_share"].iloc[-1])


def step_vs_bare_torch(levels: list[xr.Dataset], steps: int, rounds: int) -> tuple[float, dict[str, float]]:
    """`train_stage`'s own loop, fed with prepared batches, against the plainest loop that does the same arithmetic.

    No means are kept there; what keeping them adds to a step is in the notes (``kept_vs_not``).
    """
    from unittest import mock

    kinds = (None, "multiplicative")
    made = {}
    for kind in kinds:
        batches = loader_of(levels, conserve=kind).batches()
        made[kind] = [next(batches) for _ in range(16)]
        batches.close()
    settings, premade = config(conserve=None), made[None]

    def bare() -> float:
        net = SRCNN(settings.network(2))
        initialize(net, (0, 0))
        net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)
        began = time.perf_counter()
        for step in range(steps):
            batch = premade[step % len(premade)]
            prediction = net(batch.inputs.contiguous(memory_format=torch.channels_last))[:, 0]
            loss = ((prediction - batch.target).square() * batch.mask).sum() / batch.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        return (time.perf_counter() - began) / steps

    def ours(kind: str | None = None) -> float:
        def repeat(self: PatchLoader, step: int = 0) -> Iterator[Any]:
            while True:
                yield made[kind][step % len(made[kind])]
                step += 1

        few = [level.isel(time=slice(4)) for level in levels[:2]]
        with mock.patch.object(PatchLoader, "batches", repeat):
            history = train_stage(*few, config(steps=steps, validate_every=steps, conserve=kind)).history
        return float(history["seconds"].iloc[-1]) / steps

    for function in (ours, bare):
        function()
    turns = [(ours(), bare(), ours("multiplicative")) for _ in range(rounds)]
    times = {
        f"{name}_ms": 1e3 * statistics.median(t[i] for t in turns) for i, name in enumerate(("step", "bare", "kept"))
    }
    times["kept_vs_not"] = statistics.median(kept / step for step, _, kept in turns)
    return statistics.median(step / plain for step, plain, _ in turns), times


def peak_memory(path: Path, steps: int) -> None:
    """In a separate process: train on a store and print the peak memory in MiB, after the imports and at the end.

    Read from /proc, since the peak that `resource` reports is at least that of the parent process.
    """
    logging.disable()

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024

    before = peak()
    levels = open_levels(path)
    train_stage(levels[0], levels[1], config(steps=steps, validate_every=steps, buffer=24, threads=1))
    print(json.dumps({"peak": peak(), "before": before}))


def memory_40_years_vs_1(folder: Path, years: tuple[int, ...], steps: int) -> tuple[float, dict[str, float]]:
    peaks = {}
    for count in years:
        path = folder / f"{count}.zarr"
        write_levels(path, count, shape=(96, 120))
        command = [sys.executable, __file__, "--peak-memory", str(path), "--steps", str(steps)]
        found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2)]
        peaks[count] = min(f["peak"] for f in found)
        peaks[-count] = min(f["peak"] - f["before"] for f in found)
    notes = {f"peak_MiB_{c}_years": peaks[c] for c in years} | {f"over_imports_MiB_{c}_years": peaks[-c] for c in years}
    return max(peaks[c] for c in years[1:]) / peaks[years[0]], notes


def two_workers_vs_one(folder: Path, steps: int) -> tuple[float, dict[str, float]]:
    """Two stages with the same amount of work: one after the other in one thread, and at once on two workers."""
    from distributed import Client, LocalCluster

    levels = write_levels(folder / "stack.zarr", 1, factors=2)
    settings = config(steps=steps, validate_every=steps, threads=1)
    warnings.filterwarnings("ignore", message="Port .* is already in use")
    times: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(2):
        for name, workers in (("one", 1), ("two", 2)):
            with (
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
                ) as cluster,
                Client(cluster) as client,
            ):
                train_stack(levels, config(steps=2, threads=1), client=client)  # imports
                began = time.perf_counter()
                train_stack(levels, settings, client=client)
                times[name].append(time.perf_counter() - began)
    one, two = (min(times[name]) for name in ("one", "two"))
    return two / one, {"seconds_one_worker": one, "seconds_two_workers": two}


def main() -> None:
    arguments: argparse.ArgumentParser = parser(__doc__)
    arguments.add_argument("--peak-memory", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--steps", type=int, default=60, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.peak_memory:
        return peak_memory(options.peak_memory, options.steps)
    logging.disable()
    quick = options.quick
    notes: dict[str, Any] = {"fine_cells": SHAPE, "patch": PATCH, "stride": STRIDE, "batch": BATCH, "chunk_days": CHUNK}
    figures = []

    def measure(name: str, unit: str, target: float, better: str, function: Callable[[], Any]) -> None:
        found = function()
        value, more = found if isinstance(found, tuple) else (found, {})
        notes.update({key: round(number, 3) for key, number in more.items()})
        figures.append(figure(name, value, unit, target, better))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        levels = write_levels(folder / "one.zarr", 1)
        seconds, rounds = (1.0, 1) if quick else (6.0, 3)
        measure("loader_vs_xbatcher", "times", 20, "higher", lambda: loader_vs_xbatcher(levels, seconds, rounds))
        measure("waiting_share", "share", 0.1, "lower", lambda: waiting_share(levels, 30 if quick else 200))
        measure("step_vs_bare_torch", "times", 1.15, "lower",
                lambda: step_vs_bare_torch(levels, 10 if quick else 20, 1 if quick else 15))  # fmt: skip
        measure("memory_40_years_vs_1", "times", 1.1, "lower",
                lambda: memory_40_years_vs_1(folder, (1, 3) if quick else (1, 10, 40), 60))  # fmt: skip
        measure("two_workers_vs_one", "times", 0.65, "lower", lambda: two_workers_vs_one(folder, 20 if quick else 200))
    report(figures, options.json, ("torch", "xarray", "zarr", "dask", "distributed", "xbatcher"), notes)


if __name__ == "__main__":
    main()
