"""One year at PRISM's size (365 days of 621 x 1405, float32, one chunk per day) to four levels on disk.

Compared with reading and writing alone: the same days are read and the same bytes written to arrays of the same chunks,
without the coarsening. Both take turns in one process, on two threads; the fastest round counts, since other load on
the machine can only add time. Peak memory is sampled while the levels are built, above what the process held before.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import xarray as xr
import zarr
from _report import figure, parser, peak, report

from xdeepsd.levels.disk import build_levels
from xdeepsd.levels.store import COMPRESSOR

SHAPE = (621, 1405)
THREADS = 2


def write_fine(path: Path, days: int) -> None:
    """A store with one chunk per day: patchy rain, a quarter of the land wet, 45 % ocean."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ocean = np.sin(x / 130) + np.cos(y / 90) < -0.1
    coords = {
        "time": np.datetime64("2014-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D"),
        "lat": 49.9166667 - np.arange(SHAPE[0]) / 24,
        "lon": -125 + np.arange(SHAPE[1]) / 24,
    }
    empty = xr.Dataset(
        {"ppt": (("time", "lat", "lon"), dask.array.zeros((days, *SHAPE), dtype=np.float32, chunks=(1, *SHAPE)))},
        coords,
    )
    empty["ppt"].attrs["units"] = "mm"
    empty.to_zarr(path, compute=False, zarr_format=3, consolidated=False)
    ppt = zarr.open_array(path, path="ppt", mode="r+")
    maps = []
    for a, b, c in rng.uniform(0, 2 * np.pi, (8, 3)):
        wet = np.sin(x / 83 + a) * np.cos(y / 61 + b) + 0.3 * np.sin((x + y) / 17 + c) > 0.45
        maps.append(np.where(wet, rng.gamma(0.8, 6.0, SHAPE).round(3), 0.0).astype(np.float32))
    for day in range(days):  # weather that moves
        ppt[day] = np.where(ocean, np.float32(np.nan), np.roll(maps[day % 8], 37 * day, axis=1))


def read_and_write(fine: xr.DataArray, built: Path, out: Path) -> None:
    """Read the days and write the bytes of all levels, in the chunks of ``built``, two regions at a time."""
    root = zarr.open_group(out, mode="w", zarr_format=3)
    arrays = []
    for k in range(4):
        like = zarr.open_array(built, path=f"level_{k}/precipitation", mode="r")
        arrays.append(
            root.create_array(
                f"level_{k}",
                shape=like.shape,
                chunks=like.chunks,
                dtype=like.dtype,
                fill_value=np.nan,
                compressors=(COMPRESSOR,),
            )
        )
    days = arrays[0].chunks[0]

    def write(start: int, values: np.ndarray) -> None:
        padded = np.full((len(values), *arrays[-1].shape[1:]), np.nan, np.float32)
        padded[:, : SHAPE[0], : SHAPE[1]] = values
        for k, array in enumerate(arrays):
            step = 2 ** (3 - k)
            array[start : start + len(values)] = np.ascontiguousarray(padded[:, ::step, ::step])

    task = dask.delayed(write, pure=False)
    starts = range(0, fine.sizes["time"], days)
    for i in range(0, len(starts), THREADS):
        dask.compute(*[task(s, fine.isel(time=slice(s, s + days)).data) for s in starts[i : i + THREADS]])


def main() -> None:
    arguments = parser(__doc__).parse_args()
    days, rounds = (40, 1) if arguments.quick else (365, 2)
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-levels-"))
    seconds: dict[str, list[tuple[float, float]]] = {"levels": [], "io": []}
    highest = 0.0
    try:
        write_fine(folder / "fine.zarr", days)
        da = xr.open_zarr(folder / "fine.zarr", consolidated=False)["ppt"]
        elevation = xr.Dataset({"elevation": da[0].drop_vars("time").fillna(0) * 10}).compute()
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            build_levels(da[:2], elevation, path=folder / "first.zarr")  # imports and compilation
            for i in range(rounds):
                path = folder / f"levels{i}.zarr"
                start = time.perf_counter(), time.process_time()
                highest = max(highest, peak(lambda path=path: build_levels(da, elevation, path=path), every=0.01))
                seconds["levels"].append((time.perf_counter() - start[0], time.process_time() - start[1]))
                start = time.perf_counter(), time.process_time()
                read_and_write(da, path, folder / "copy.zarr")
                seconds["io"].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        stored = sum(f.stat().st_size for f in (folder / "fine.zarr").rglob("*") if f.is_file())
    finally:
        shutil.rmtree(folder)
    least = {name: np.min(values, axis=0) for name, values in seconds.items()}
    figures = [
        figure("levels_seconds", least["levels"][0], "s", 90.0, "lower"),
        figure("levels_vs_io", least["levels"][0] / least["io"][0], "ratio of times", 1.5, "lower"),
        figure("levels_vs_io_cpu", least["levels"][1] / least["io"][1], "ratio of CPU times", None, "lower"),
        figure("levels_peak_gib", highest, "GiB", 2.0, "lower"),
    ]
    notes = {
        "days": days,
        "threads": THREADS,
        "seconds (clock, CPU)": seconds,
        "fine_mb": stored / 1e6,
        "fine_packed": days * SHAPE[0] * SHAPE[1] * 4 / stored,
        "peak": "two regions of 64 MB at a time; its target is ours, the issue names none",
    }
    report(figures, arguments.json, ("xdeepsd", "numpy", "numba", "xarray", "dask", "zarr"), notes)


if __name__ == "__main__":
    main()
