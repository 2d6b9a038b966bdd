"""DenseWeight's fit: against KDEpy and denseweight in memory, and from a Zarr store of 10**9 values on a LocalCluster.

All on generated precipitation (float32): an ocean of NaN, and zeros in three land cells of four. The contenders of a
comparison are timed in turn and medians are reported, so that other load on the machine affects both alike.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import denseweight
import numpy as np
import torch
import xarray as xr
import zarr
from _report import figure, parser, report
from distributed import Client, LocalCluster
from KDEpy import FFTKDE
from scipy.ndimage import zoom

from xdeepsd import DenseLoss, DenseWeight, masked_mse

LAT, LON, DAYS = 500, 800, 10  # of a chunk: 4e6 values, 16 MB


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """``(lat, lon)``: smooth noise with a correlation length of so many cells."""
    coarse = rng.standard_normal((LAT // cells + 2, LON // cells + 2), dtype=np.float32)
    return zoom(coarse, cells, order=1)[:LAT, :LON]


def _days(seed: int) -> np.ndarray:
    """``(day, lat, lon)`` mm day-1: NaN in 44 % of the cells, 0 in 3 of 4 of the rest; compresses like PRISM."""
    rng = np.random.default_rng(seed)
    ocean = _noise(np.random.default_rng(1), 50) > 0.1
    days = []
    for _ in range(DAYS):
        wet = _noise(rng, 25) + 0.3 * _noise(rng, 5) - 0.42
        rain = 12.0 * np.maximum(wet, 0.0) ** 1.5 * rng.gamma(1.0)
        days.append(np.where(ocean, np.nan, rain).astype(np.float32))
    return np.stack(days)


def _in_turn(
    functions: dict[str, Callable[[], object]], repeats: int, cpu: Callable[[], float] = time.process_time
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each function, called in turn without counting the first round: wall clock, and processor."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    busy: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), cpu()
            function()
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(cpu() - cpu_start)
    medians = [{name: statistics.median(v) for name, v in by_name.items()} for by_name in (seconds, busy)]
    return medians[0], medians[1]


# --- A Zarr store ---------------------------------------------------------------------------------------------------


def _write(folder: Path, chunks: int) -> float:
    """A store of so many chunks, written one at a time with Zarr's default compressor; its size on disk in GB."""
    root = zarr.create_group(folder)
    precipitation = root.create_array(
        "precipitation",
        shape=(chunks * DAYS, LAT, LON),
        chunks=(DAYS, LAT, LON),
        dtype="float32",
        dimension_names=("time", "lat", "lon"),
    )
    fields = [_days(seed) for seed in range(4)]
    for i in range(chunks):
        factor = np.float32(0.5 + (i * 0.618) % 1.0)  # no two chunks alike
        precipitation[i * DAYS : (i + 1) * DAYS] = fields[i % len(fields)] * factor
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9


def _peak_gib() -> float:
    """Peak resident memory of this process since it started."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _busy(client: Client) -> float:
    """Processor seconds of all workers since they started."""
    return sum(client.run(time.process_time).values())


def _nothing(block: np.ndarray) -> np.ndarray:
    return np.zeros((1,) * block.ndim)


def _read(array: da.Array) -> float:
    """Read every chunk once and do nothing with it."""
    ones = tuple((1,) * n for n in array.numblocks)
    return float(da.map_blocks(_nothing, array, chunks=ones, dtype=float, meta=np.empty((0, 0, 0))).sum().compute())


def _zarr(quick: bool) -> tuple[list[dict], dict]:
    chunks, repeats = (10, 1) if quick else (250, 2)
    values = chunks * DAYS * LAT * LON
    seconds, busy, peaks = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        size = _write(Path(folder) / "store", chunks)
        print(f"{values:.1e} values, {size:.2f} GB on disk")
        # One thread per worker, so that it is workers that are compared.
        for workers in (1, 2):
            with (
                dask.config.set({"distributed.scheduler.worker-ttl": None}),
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                store = xr.open_zarr(Path(folder) / "store", consolidated=False, chunks={}).precipitation
                functions = {"read": partial(_read, store.data), "fit": partial(DenseWeight().fit, store)}
                cpu = partial(_busy, client)
                seconds[workers], busy[workers] = _in_turn(functions, repeats, cpu)
                peaks[workers] = [*client.run(_peak_gib).values(), _peak_gib()]
                print(workers, "workers:", seconds[workers], "processor:", busy[workers], "peak GiB:", peaks[workers])
    one, two = seconds[1], seconds[2]
    ratios = [s["fit"] / (2 * s["read"]) for s in (one, two)]
    figures = [
        figure("zarr_fit_peak_gib", max(peaks[1] + peaks[2]), "GiB", 1.0, "lower"),
        figure("zarr_fit_vs_read", max(ratios), "times reading it twice, as the fit does", 1.5, "lower"),
        figure(
            "zarr_fit_vs_one_read", max(s["fit"] / s["read"] for s in (one, two)), "times reading once", None, "lower"
        ),
        figure(
            "zarr_fit_vs_read_cpu", busy[1]["fit"] / (2 * busy[1]["read"]), "the same in processor time", None, "lower"
        ),
        figure("zarr_fit_two_workers", one["fit"] / two["fit"], "times faster than one", None, "higher"),
        figure("zarr_read_two_workers", one["read"] / two["read"], "times faster than one", None, "higher"),
        figure("zarr_fit", values / two["fit"] / 1e6, "million values/s, two workers", None, "higher"),
    ]
    notes = {"zarr_values": values, "zarr_gb": size, "zarr_seconds": seconds, "zarr_processor_seconds": busy}
    return figures, notes | {"zarr_peak_gib": peaks}


# --- In memory ------------------------------------------------------------------------------------------------------


def _rain(size: int) -> np.ndarray:
    """Flat values without NaN, which neither of the other packages accepts."""
    land = _days(0)
    land = land[np.isfinite(land)]
    return np.resize(land, size) * np.random.default_rng(0).uniform(0.5, 1.5, size).astype(np.float32)


def _fftkde(values: np.ndarray, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
    return FFTKDE(bw=bandwidth).fit(values).evaluate(4096)


def _memory(quick: bool) -> tuple[list[dict], dict]:
    figures, notes, kdepy, kdepy_cpu = [], {}, {}, {}
    sizes = {"1e6": 7} if quick else {"1e7": 11, "1e8": 5}
    for name, repeats in sizes.items():
        y = _rain(int(float(name)))
        bandwidth = DenseWeight().fit(y).histogram.bandwidth
        functions = {
            "xdeepsd": partial(DenseWeight().fit, y),
            "kdepy": partial(_fftkde, y, bandwidth),  # is given the bandwidth, which ours computes
        }
        seconds, busy = _in_turn(functions, repeats)
        kdepy[name], kdepy_cpu[name] = (s["kdepy"] / s["xdeepsd"] for s in (seconds, busy))
        notes[f"seconds_{name}"], notes[f"processor_seconds_{name}"] = seconds, busy
        print(name, "values:", seconds, "processor:", busy)
    figures.append(figure("fit_vs_kdepy", min(kdepy.values()), "times faster", 5.0, "higher"))
    figures += [figure(f"fit_vs_kdepy_{n}", r, "times faster", None, "higher") for n, r in kdepy.items()]
    unit = "times less processor time (KDEpy has one thread)"
    figures.append(figure("fit_vs_kdepy_cpu", min(kdepy_cpu.values()), unit, None, "higher"))
    # denseweight takes microseconds per value: timed on a sample and extrapolated in proportion to n.
    sample, size = (_rain(20_000 if quick else 200_000)), float(next(iter(sizes)))
    start = time.perf_counter()
    denseweight.DenseWeight().fit(sample)
    extrapolated = (time.perf_counter() - start) * size / sample.size
    ours = notes[f"seconds_{next(iter(sizes))}"]["xdeepsd"]
    figures.append(figure("fit_vs_denseweight", extrapolated / ours, "times faster (extrapolated)", 100.0, "higher"))
    notes["denseweight"] = (
        f"denseweight.fit was timed on {sample.size} values and extrapolated in proportion to n: {extrapolated:.1f} s "
        f"for {size:.0e}"
    )
    print(notes["denseweight"])
    return figures, notes


def _step(quick: bool) -> list[dict]:
    """What DenseLoss adds to a training step, forward and backward, on one core."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    loss = DenseLoss(DenseWeight(transform="log1p", wet_threshold=0.1).fit(_rain(100_000)))
    target = torch.from_numpy(np.maximum(rng.normal(-5, 10, (200, 1, 38, 38)), 0).astype(np.float32))
    pred = (target + torch.randn_like(target)).requires_grad_()
    mask = torch.rand_like(target) < 0.6
    functions = {
        "dense": lambda: loss(pred, target, mask, values=target).backward(),
        "mse": lambda: masked_mse(pred, target, mask).backward(),
    }
    _, busy = _in_turn(functions, 3 if quick else 30)
    unit = "ms of one core more than MSE, batch of 200 x 38 x 38"
    return [figure("loss_step", 1e3 * (busy["dense"] - busy["mse"]), unit, None, "lower")]


def main() -> None:
    arguments = parser(__doc__).parse_args()
    warnings.simplefilter("ignore", UserWarning)  # the grid is coarse for 1e9 values; that is not the point here
    figures, notes = _zarr(arguments.quick)  # first: the peak is that of the process since it started
    more, more_notes = _memory(arguments.quick)
    figures += more + _step(arguments.quick)
    packages = ["xdeepsd", "numpy", "numba", "dask", "distributed", "zarr", "KDEpy", "denseweight", "torch"]
    report(figures, arguments.json, packages, notes | more_notes)


if __name__ == "__main__":
    main()
