"""Ten years at PRISM's size (3652 days of 621 x 1405, float32, ten days in a chunk), judged from two Zarr stores.

``evaluate_vs_read`` is the time of everything but the spatial measures (errors, events and distributions overall and by
month, the climate indices, the lengths of spells) over that of reading both stores once plus that of the same measures
on arrays in memory: by `scores` where it has them, and our indices and spells, on some days, scaled up. All take turns
in one process on two threads; the fastest round counts. Memory is sampled in a process of its own, above what it held
before.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
from _report import figure, parser, peak, report

import xdeepsd

SHAPE, CHUNK, THREADS = (621, 1405), 10, 2
FIELDS = ("prediction", "truth")
OF_DAYS = (xdeepsd.compare_indices, xdeepsd.compare_spells)  # the measures of series of days


def write(path: Path, days: int, shape: tuple[int, int], seed: int) -> None:
    """Patchy rain that moves, a quarter of the land wet, 45 % ocean."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    ocean = np.sin(x / 130) + np.cos(y / 90) < -0.1
    maps = []
    for a, b, c in rng.uniform(0, 2 * np.pi, (8, 3)):
        wet = np.sin(x / 83 + a) * np.cos(y / 61 + b) + 0.3 * np.sin((x + y) / 17 + c) > 0.45
        maps.append(np.where(wet, rng.gamma(0.8, 6.0, shape).round(3), 0.0).astype(np.float32))

    def block(numbers: np.ndarray) -> np.ndarray:
        return np.stack([np.where(ocean, np.float32(np.nan), np.roll(maps[n % 8], 37 * n, 1)) for n in numbers.ravel()])

    numbers = dask.array.arange(days, chunks=CHUNK)[:, None, None]
    values = numbers.map_blocks(block, dtype=np.float32, chunks=(numbers.chunks[0], *shape))
    coords = {
        "time": xr.date_range("2001-01-01", periods=days),
        "lat": 49.9166667 - np.arange(shape[0]) / 24,
        "lon": -125 + np.arange(shape[1]) / 24,
    }
    da = xr.DataArray(values, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"})
    da.to_zarr(path, zarr_format=3, consolidated=False)


def fields(folder: Path, days: int | None = None) -> list[xr.DataArray]:
    stores = (xr.open_zarr(folder / name, consolidated=False)["pr"] for name in FIELDS)
    return [da.isel(time=slice(days)) for da in stores]


def measures(prediction: xr.DataArray, truth: xr.DataArray, indices: bool = True) -> list[xr.Dataset]:
    found = [xdeepsd.evaluate(prediction, truth), xdeepsd.evaluate(prediction, truth, by="month")]
    return found + ([of(prediction, truth) for of in OF_DAYS] if indices else [])


def by_the_libraries(prediction: xr.DataArray, truth: xr.DataArray) -> None:
    """The measures of `evaluate` that `scores` has, once; the indices and spells, of which it has none, by ours."""
    from scores import categorical, continuous

    area = np.cos(np.deg2rad(truth["lat"])) * xr.ones_like(truth["lon"], np.float64)
    for score in (continuous.rmse, continuous.mae, continuous.additive_bias):
        for where in (truth >= 0, truth >= 1, truth < 1):
            score(prediction.where(where), truth.where(where), weights=area)
    continuous.correlation.pearsonr(prediction, truth)
    for threshold in (0.1, 10.0, 50.0, float(truth.quantile(0.99))):
        events = categorical.ThresholdEventOperator()
        table = events.make_contingency_manager(prediction, truth, event_threshold=threshold).transform()
        for name in ("probability_of_detection", "false_alarm_ratio", "critical_success_index", "frequency_bias"):
            getattr(table, name)()
    continuous.qq(prediction, truth, quantiles=[0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999])
    for of in OF_DAYS:
        of(prediction, truth)


def read(folder: Path) -> None:
    dask.compute(*(da.data.map_blocks(_nothing, dtype=np.float32).sum() for da in fields(folder)))


def _nothing(block: np.ndarray) -> np.ndarray:
    return block[:, :1, :1]


def peak_gib(folder: Path, days: int, indices: bool) -> float:
    """Peak memory of a process above what it held before, GiB, sampled."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (folder, days, indices))


def _peak(folder: Path, days: int, indices: bool) -> float:
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        dask.compute(*measures(*fields(folder, 2), indices))  # imports
        return peak(lambda: dask.compute(*measures(*fields(folder, days), indices)))


def fastest(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest round of each function; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def main() -> None:
    arguments = parser(__doc__).parse_args()
    shape, days, year, some, rounds = (SHAPE, 3652, 365, 20, 2)
    if arguments.quick:
        shape, days, year, some, rounds = ((120, 160), 800, 80, 80, 2)
    with tempfile.TemporaryDirectory() as name, dask.config.set(scheduler="threads", num_workers=THREADS):
        folder = Path(name)
        for seed, field in enumerate(FIELDS):
            write(folder / field, days, shape, seed)
        few = [da.load() for da in fields(folder, some)]
        seconds = fastest(
            {
                "read": lambda: read(folder),
                "evaluate": lambda: dask.compute(*measures(*fields(folder), indices=False)),
                "evaluate and indices": lambda: dask.compute(*measures(*fields(folder))),
                "libraries, some days": lambda: by_the_libraries(*few),
            },
            rounds,
        )
        peaks = {
            f"{'with indices, ' * indices}{count} days": peak_gib(folder, count, indices)
            for indices in (False, True)
            for count in (year, days)
        }
    needed = seconds["read"] + seconds["libraries, some days"] * days / some
    (short, long, short_indices, long_indices) = peaks.values()
    figures = [
        figure("evaluate_vs_read", seconds["evaluate and indices"] / needed, "ratio of times", 1.5, "lower"),
        figure("peak_gib_10_years_vs_1", long / short, "ratio of memory", 1.2, "lower"),
        figure("evaluate_without_indices_vs_read_alone", seconds["evaluate"] / seconds["read"], "ratio of times", None,
               "lower"),
        figure("evaluate_peak_gib", long, "GiB", None, "lower"),
        figure("indices_peak_gib_10_years_vs_1", long_indices / short_indices, "ratio of memory", None, "lower"),
        figure("indices_peak_gib", long_indices, "GiB", None, "lower"),
    ]  # fmt: skip
    notes = {"days": days, "shape": shape, "days_of_the_libraries": some, "seconds": seconds, "peak_gib": peaks}
    report(figures, arguments.json, ("xdeepsd", "numpy", "xarray", "dask", "zarr", "scores"), notes)


if __name__ == "__main__":
    main()
