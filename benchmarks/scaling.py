"""How downscaling scales out: two workers against one, the scheduler's cost and the graph of a thousand years.

* Throughput: PRISM's domain at 1/24 degree in three stages of 9-1-5 (64-32-1), Zarr to Zarr, by one and by two worker
  processes of one thread, in turn; the fastest round of each counts. Beside them, one and two plain processes without
  Dask's scheduler that share the same days: more than these gain, two workers cannot.
* Scheduler: the real graph of 1, 50 and 1000 years of 621 x 1405 cells (624 x 1408 in whole coarse cells) on a real
  scheduler in a process of its own, with two workers, whose kernel does nothing. Its CPU time counts, so that what the
  workers and the client do beside it does not.
* A year of daily maps by the command that a user types, with two threads and coarse means kept: its time from start to
  end, and its peak memory with all that it imports.
* Memory: the peak of one worker thread above what it held before, against the formula of docs/howto/scaling.md.

From these, on paper: 50 climate models x 250 years over CONUS at 4 km.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array
import gcm
import numpy as np
import psutil
import xarray as xr
from _report import figure, parser, peak, report
from distributed import Client
from distributed.protocol.serialize import serialize, to_serialize
from distributed.utils import nbytes

import xdeepsd
from xdeepsd.grids.axes import days_in_chunk
from xdeepsd.inference import windows
from xdeepsd.stores import regions, write

COARSE, SCALE = (78, 176), 8
PIXELS = COARSE[0] * COARSE[1] * SCALE**2
CELLS = 621 * 1405  # that are there, of these
STATIC_MB = PIXELS * 5 / 1e6  # elevation, float32, and the mask
DOLLARS = {"on demand": 0.04, "spot": 0.012}  # of a core and its 4 GB for an hour, as clouds ask about


class _Stopped(BaseException):
    """Ends `to_zarr` where it would compute."""


def no_run(block: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """In place of the networks."""
    return block


def no_write(block: np.ndarray, *args: Any, **kwargs: Any) -> None:
    """In place of encoding and writing."""


def make_model() -> xdeepsd.StackedSRCNN:
    """The model of benchmarks/gcm.py on PRISM's domain at 1/24 degree."""
    gcm.COARSE = COARSE
    return gcm.make_model()


def make_input(path: Path, model: xdeepsd.StackedSRCNN, days: int, filled: bool) -> xr.Dataset:
    """Coarse days on the model's grid in a Zarr store, a year to a chunk; not ``filled``: their layout alone."""
    assert model.static is not None
    lat, lon = (model.static[dim].values.reshape(-1, SCALE).mean(1) for dim in ("lat", "lon"))
    shape, chunks = (days, *COARSE), (min(365, days), *COARSE)
    data = dask.array.zeros(shape, chunks=chunks, dtype="f4")
    if filled:
        random = dask.array.random.default_rng(0)
        data = random.gamma(0.7, 8.0, shape, chunks=chunks) * (random.random(shape, chunks=chunks) < 0.35)
    coords = {
        "time": np.datetime64("1950-01-01", "us") + np.arange(days) * np.timedelta64(1, "D"),
        "lat": ("lat", lat, {"units": "degrees_north"}),
        "lon": ("lon", lon, {"units": "degrees_east"}),
    }
    attrs = {"standard_name": "lwe_precipitation_rate", "units": "mm day-1"}
    ds = xr.Dataset({"pr": (("time", "lat", "lon"), data.astype("f4"), attrs)}, coords)
    ds.to_zarr(path, compute=filled, consolidated=False)
    return xr.open_zarr(path, chunks=None, consolidated=False)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[Client, psutil.Process]]:
    """A scheduler and workers of one thread, each a process; a client, and the scheduler's process."""
    contact = folder / f"scheduler-{time.monotonic_ns()}.json"
    here = str(Path(__file__).resolve().parent)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    common = [sys.executable, "-W", "ignore", "-m", "dask"]
    quiet: dict[str, Any] = {"env": variables, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(contact)]
    processes = [subprocess.Popen([*common, "scheduler", *options], **quiet)]
    try:
        while not contact.exists() or not contact.read_text():
            time.sleep(0.05)
        address = json.loads(contact.read_text())["address"]
        options = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--memory-limit", "0"]
        processes += [subprocess.Popen([*common, "worker", address, *options], **quiet) for _ in range(workers)]
        with Client(address, timeout=120) as client:
            client.wait_for_workers(workers, timeout=120)
            yield client, psutil.Process(processes[0].pid)
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait()


def throughput(folder: Path, days: int, chunk: int, rounds: int) -> dict[str, float]:
    """Fine pixels per second, in millions, by one and two workers, and by one and two processes without a scheduler."""
    model = make_model()
    coarse = make_input(folder / "coarse.zarr", model, days, filled=True).chunk(time=chunk)
    fine = coarse.deepsd.downscale(model)
    few = coarse.isel(time=slice(2 * chunk)).deepsd.downscale(model)
    seconds: dict[str, list[float]] = {}
    with cluster(folder, 1) as (one, _), cluster(folder, 2) as (two, _):
        for number, client in ((1, one), (2, two)):  # imports and compilation
            with client.as_current():
                xdeepsd.to_zarr(few, folder / f"first{number}.zarr")
        for i in range(rounds):
            for number, client in ((1, one), (2, two)):
                path = folder / f"fine{number}-{i}.zarr"
                start = time.perf_counter()
                with client.as_current():
                    xdeepsd.to_zarr(fine, path)
                seconds.setdefault(f"{number} workers", []).append(time.perf_counter() - start)
                shutil.rmtree(path)
                seconds.setdefault(f"{number} processes", []).append(alone(folder, days, chunk, number))
    return {name: days * PIXELS / 1e6 / min(found) for name, found in seconds.items()}


def alone(folder: Path, days: int, chunk: int, processes: int) -> float:
    """Seconds in which processes that know nothing of each other write the days of ``throughput`` between them."""
    context = multiprocessing.get_context("spawn")
    begin, share = context.Barrier(processes + 1), days // processes
    running = [
        context.Process(target=_alone, args=(folder, slice(i * share, (i + 1) * share), chunk, begin))
        for i in range(processes)
    ]
    for process in running:
        process.start()
    begin.wait(600)
    start = time.perf_counter()
    for process in running:
        process.join()
        if process.exitcode:
            raise RuntimeError("A process without a scheduler has failed.")
    return time.perf_counter() - start


def _alone(folder: Path, days: slice, chunk: int, begin: Any) -> None:
    model, path = make_model(), folder / f"alone-{days.start}.zarr"
    coarse = xr.open_zarr(folder / "coarse.zarr", chunks=None, consolidated=False).chunk(time=chunk)
    with dask.config.set(scheduler="synchronous"):
        few = coarse.isel(time=slice(chunk)).deepsd.downscale(model)
        xdeepsd.to_zarr(few, path, overwrite=True)  # imports and compilation
        shutil.rmtree(path)
        fine = coarse.isel(time=days).deepsd.downscale(model)
        begin.wait(600)
        xdeepsd.to_zarr(fine, path)
    os._exit(0)  # what an interpreter does at its end is no part of it


def conus_year(folder: Path, days: int) -> tuple[float, float]:
    """Seconds and peak GiB of `xdeepsd downscale` of so many days."""
    model = make_model()
    make_input(folder / "year.zarr", model, days, filled=True)
    xdeepsd.save_model(model, folder / "model")
    command = [sys.executable, "-W", "ignore", "-m", "xdeepsd", "downscale", "--threads", "2"]
    command += ["--conserve", "multiplicative", *(str(folder / name) for name in ("year.zarr", "model", "fine.zarr"))]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} has failed.")
    return time.perf_counter() - start, used.ru_maxrss / 2**20


def graph_of(fine: xr.Dataset, folder: Path) -> tuple[Any, list[Any]]:
    """The graph that `to_zarr` would give to the scheduler, and its keys."""
    found: list[Any] = []

    def stop(graph: Any, keys: list[Any], client: Any, advance: Any) -> None:
        found.extend((graph, keys))
        raise _Stopped

    kept, write.compute = write.compute, stop  # type: ignore[assignment]
    try:
        xdeepsd.to_zarr(fine, folder / "graph.zarr", overwrite=True)
    except _Stopped:
        pass
    finally:
        write.compute = kept
    return found[0], found[1]


def sent_mb(graph: Any) -> float:
    """What the client sends to the scheduler for a graph, MB."""
    header, frames = serialize(to_serialize(graph))
    return sum(map(nbytes, [header, *frames])) / 1e6


def simulated(fine_of: Callable[[], xr.Dataset], folder: Path) -> tuple[Any, list[Any]]:
    """`graph_of`, with tasks that read the input and do nothing with it."""
    import scaling  # this file, under the name by which the workers import it

    kernel, writer = windows._run_one, regions._write
    windows._run_one, regions._write = scaling.no_run, scaling.no_write  # type: ignore[assignment]
    try:
        return graph_of(fine_of(), folder)
    finally:
        windows._run_one, regions._write = kernel, writer


def scheduler_cost(folder: Path, years: tuple[int, ...], computed: tuple[int, ...]) -> list[dict[str, float]]:
    """For each number of years: regions, MB of the graph, seconds to make it; if ``computed``, the scheduler's ms."""
    model, rows = make_model(), []
    with cluster(folder, 2) as (client, scheduler):
        few = make_input(folder / "few.zarr", model, 90, filled=False)
        graph, keys = simulated(lambda: few.deepsd.downscale(model), folder)
        regions.compute(graph, keys, client, lambda result: None)  # imports
        for number in years:
            coarse = make_input(folder / f"{number}.zarr", model, round(365.25 * number), filled=False)
            start = time.perf_counter()
            real, keys = graph_of(coarse.deepsd.downscale(model), folder)
            made = time.perf_counter() - start
            row = {"years": number, "regions": len(keys), "graph_mb": sent_mb(real), "seconds_to_make": made}
            rows.append(row)
            if number not in computed:
                continue
            graph, keys = simulated(lambda coarse=coarse: coarse.deepsd.downscale(model), folder)
            before, start = scheduler.cpu_times(), time.perf_counter()
            regions.compute(graph, keys, client, lambda result: None)
            row["seconds_no_op"] = time.perf_counter() - start
            after = scheduler.cpu_times()
            cpu = after.user + after.system - before.user - before.system
            row["scheduler_ms_per_region"] = 1e3 * cpu / len(keys)
    return rows


def memory(folder: Path, chunk: int) -> tuple[float, float]:
    """GiB at the peak of one thread that writes regions of ``chunk`` days, and by the formula."""
    model = make_model()
    coarse = make_input(folder / "memory.zarr", model, 2 * chunk, filled=True).chunk(time=chunk)
    fine = coarse.deepsd.downscale(model)
    with dask.config.set(scheduler="synchronous"):
        xdeepsd.to_zarr(coarse.isel(time=slice(1)).deepsd.downscale(model), folder / "first.zarr")
        highest = peak(lambda: xdeepsd.to_zarr(fine, folder / "peak.zarr"))
    return highest, memory_formula(chunk)


def memory_formula(days: int, pixels: int = PIXELS, threads: int = 1, static: int = 1) -> float:
    """GiB that a worker needs above its imports (docs/howto/scaling.md).

    For each thread two and a half times its region of the output, in float32: what the last stage gives, what it was
    given (a quarter) with its padding, and the copy that is encoded. Once: ten times the static fields and the mask.
    """
    region = 4 * days * pixels
    return (threads * 2.5 * region + 10 * (4 * static + 1) * pixels) / 2**30


def on_paper(mpixels_per_second: float, ms_per_region: float, days: int) -> dict[str, float]:
    """50 climate models x 250 years over CONUS at 4 km, from the speed of a core and the scheduler's cost."""
    regions_all = 50 * 250 * 365.25 / days
    mpixels = 50 * 250 * 365.25 * CELLS / 1e6
    hours = mpixels / mpixels_per_second / 3600
    stored = mpixels * 4 / 6 / 1e6  # TB; shuffled zstd packs rain sixfold (benchmarks/levels.py)
    fed = feeds(mpixels_per_second, ms_per_region, days)
    return {
        "core_hours": hours, "regions": regions_all, "stored_tb": stored,
        "hours_on_1000_cores": hours / min(1000, fed), "scheduler_hours": regions_all * ms_per_region / 3.6e6,
        "gb_per_second_on_1000_cores": 1000 * mpixels_per_second * 4 / 6 / 1e3, "fed": fed,
        **{f"dollars, {name}": hours * price for name, price in DOLLARS.items()},
        "dollars of requests": regions_all * 0.005 / 1000, "dollars a month to keep": stored * 23,
    }  # fmt: skip


def feeds(mpixels_per_second: float, ms_per_region: float, days: int) -> float:
    """Workers of one thread that one scheduler keeps busy: as many as regions it hands out while one is computed."""
    return 1e3 * days * PIXELS / 1e6 / mpixels_per_second / ms_per_region


def main() -> None:
    arguments = parser(__doc__).parse_args()
    quick = arguments.quick
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-scaling-"))
    days = days_in_chunk(PIXELS)
    try:
        highest, formula = memory(folder, 4 if quick else days)
        year_seconds, year_gib = conus_year(folder, 8 if quick else 365)
        speeds = throughput(folder, *((8, 1, 1) if quick else (600, 6, 4)))
        rows = scheduler_cost(folder, (1, 50, 1000), (1, 50) if quick else (1, 50, 1000))
    finally:
        shutil.rmtree(folder)
    one = speeds["1 workers"]
    cost = [row["scheduler_ms_per_region"] for row in rows if "scheduler_ms_per_region" in row][-1]
    graph_mb = rows[-1]["graph_mb"]
    figures = [
        figure("two_workers_speedup", speeds["2 workers"] / one, "times one worker", 1.85, "higher"),
        figure(
            "two_processes_speedup", speeds["2 processes"] / speeds["1 processes"], "times one process", None, "higher"
        ),
        figure("scheduler_ms_per_mpixel", cost / (days * CELLS / 1e6), "ms", 1.0, "lower"),
        # Dask warns from 10 MB on; the maps of the model, which do not depend on the years, are half of that
        figure("graph_mb_1000_years", graph_mb, "MB", 10.0, "lower"),
        figure("graph_mb_without_maps", graph_mb - STATIC_MB, "MB", 1.0, "lower"),
        figure("memory_vs_formula", highest / formula, "ratio", 1.0, "lower"),
        figure("mpixel_per_second_and_core", one, "million fine pixels a second", None, "higher"),
        figure("conus_year_seconds", year_seconds, "s", None, "lower"),
        figure("conus_year_peak_gib", year_gib, "GiB", None, "lower"),
        figure("workers_per_scheduler", feeds(one, cost, days), "workers of one thread", None, "higher"),
    ]
    notes = {
        "mpixel per second": speeds, "cells": [621, 1405], "days in a region": days, "by years": rows,
        "peak_gib": highest, "formula_gib": formula, "50 models x 250 years": on_paper(one, cost, days),
        "dollars of a core and hour": DOLLARS,
    }  # fmt: skip
    report(figures, arguments.json, ("xdeepsd", "numpy", "numba", "xarray", "dask", "distributed", "zarr"), notes)
    print(json.dumps(notes, indent=2))


if __name__ == "__main__":
    main()
