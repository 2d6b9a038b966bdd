"""30 years of a climate model, daily: regridded, corrected, downscaled from 1 to 1/8 degree over PRISM's domain.

One lazy graph: a Zarr store of about 1.1 degrees on longitudes from 0 to 360, in kg m-2 s-1 on the noleap calendar, is
regridded conservatively to 26 x 59 cells of a degree, its bias is corrected by a saved quantile delta mapping, and
three stages of 9-1-5 (64-32-1) write 208 x 472 cells to Zarr, half of them wanted, packed as uint16, on two threads.
Then the input is regridded and corrected once more, and no more: what this takes is not the downscaling's. Peak memory
is sampled while the whole is computed, above what the process held before.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import dask
import dask.array
import numpy as np
import torch
import xarray as xr
from _report import figure, parser, peak, report

import xdeepsd
from xdeepsd.inference.inputs import prepare

THREADS = 2
COARSE, SCALE = (26, 59), 8


def make_model() -> xdeepsd.StackedSRCNN:
    """Three stages of random weights, with PRISM's domain at 1/8 degree and an ocean."""
    torch.manual_seed(0)
    config = xdeepsd.SRCNNConfig(static=("elevation",), residual=True)
    stages = [
        xdeepsd.Stage(
            xdeepsd.SRCNN(config).eval().requires_grad_(False), xdeepsd.Normalizer(2.5, 6.0),
            {"elevation": xdeepsd.Normalizer(1000.0, 800.0)}, xdeepsd.Normalizer(0.0, 2.0),
        )
        for _ in range(3)
    ]  # fmt: skip
    nlat, nlon = (size * SCALE for size in COARSE)
    y, x = np.mgrid[:nlat, :nlon]
    coords = {"lat": 50 - (np.arange(nlat) + 0.5) / SCALE, "lon": -125 + (np.arange(nlon) + 0.5) / SCALE}
    height = (1000 + 700 * np.sin(x / 23) * np.cos(y / 17)).astype(np.float32)
    static = xr.Dataset({"elevation": (("lat", "lon"), height, {"units": "m"})}, coords)
    mask = xr.DataArray(np.sin(x / 60) + np.cos(y / 40) > -0.1, coords, ("lat", "lon"))
    return xdeepsd.StackedSRCNN(stages, static=static, mask=mask)


def rain(lat: np.ndarray, lon: np.ndarray, years: int, start: int, scale: float, seed: int) -> xr.Dataset:
    """Daily rain of a climate model, generated a year at a time: a third of the days wet."""
    days = 365 * years
    random = dask.array.random.default_rng(seed)
    shape, chunks = (days, lat.size, lon.size), (365, lat.size, lon.size)
    amount = random.gamma(0.7, 8.0 * scale, shape, chunks=chunks) * (random.random(shape, chunks=chunks) < 0.35)
    time = xr.date_range(f"{start}-01-01", periods=days, calendar="noleap", use_cftime=True)
    coords = {
        "time": time,
        "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east"}),
    }
    attrs = {"standard_name": "precipitation_flux", "units": "kg m-2 s-1"}
    return xr.Dataset({"pr": (("time", "lat", "lon"), (amount / 86400).astype(np.float32), attrs)}, coords)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    years = 1 if arguments.quick else 30
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-gcm-"))
    model = make_model()
    lat, lon = np.arange(19.5, 56, 1.12), np.arange(230.0, 300, 1.17)
    degrees = 49.5 - np.arange(COARSE[0]), -124.5 + np.arange(COARSE[1])
    seconds = {}
    try:
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            history, scenario = (
                rain(lat, lon, years, start, scale, start) for start, scale in ((1981, 1.0), (2041, 1.2))
            )
            observed = rain(*degrees, years, 1981, 0.8, 0)
            for name, ds in (("history", history), ("scenario", scenario), ("observed", observed)):
                ds.to_zarr(folder / f"{name}.zarr", consolidated=False)
            history, scenario, observed = (
                xr.open_zarr(folder / f"{name}.zarr", consolidated=False)
                for name in ("history", "scenario", "observed")
            )
            few = slice(0, 60)  # imports and compilation
            first = xdeepsd.fit_correction(history.isel(time=few), observed.isel(time=few), nquantiles=5, group="time")
            xdeepsd.downscale(scenario.isel(time=few), model, bias_correct=first).compute()

            start = time.perf_counter()
            xdeepsd.fit_correction(history, observed, nquantiles=30).save(folder / "correction.nc")
            seconds["fit"] = time.perf_counter() - start

            packed = {"pr": {"dtype": "uint16", "scale_factor": 0.02 / 86400, "_FillValue": 65535}}
            correction = xdeepsd.load_correction(folder / "correction.nc")
            start = time.perf_counter()
            fine = scenario.deepsd.downscale(model, bias_correct=correction)
            seconds["graph"] = time.perf_counter() - start
            start = time.perf_counter()
            highest = peak(lambda: xdeepsd.to_zarr(fine, folder / "fine.zarr", encoding=packed))
            seconds["all"] = time.perf_counter() - start

            start = time.perf_counter()
            ready = prepare(scenario, model, None, None, None, correction=correction)
            ready.coarse.data.sum().compute()
            seconds["regridding and correction"] = time.perf_counter() - start
            uncorrected = prepare(scenario, model, None, None, None)
            start = time.perf_counter()
            uncorrected.coarse.data.sum().compute()
            seconds["regridding"] = time.perf_counter() - start
    finally:
        shutil.rmtree(folder)
    share = 1 - seconds["regridding and correction"] / seconds["all"]
    figures = [
        figure("downscale_share", share, "share of the time", 0.7, "higher"),
        figure("peak_gib", highest, "GiB", 4.0, "lower"),
        figure("gcm_seconds", seconds["all"], "s", None, "lower"),
        figure("gcm_fit_seconds", seconds["fit"], "s", None, "lower"),
    ]
    notes = {
        "years": years,
        "threads": THREADS,
        "seconds": seconds,
        "share": "one minus the time of regridding and correction alone, over the time of all in one graph",
        "peak": "its target is ours, the issue names none",
    }
    report(figures, arguments.json, ("xdeepsd", "numpy", "numba", "xarray", "xsdba", "dask", "zarr"), notes)


if __name__ == "__main__":
    main()
