"""A climate model's file from start to end: audited, corrected, downscaled, mapped.

    python examples/climate_model.py --data FOLDER

FOLDER holds gcm/ with a year of CanESM2 (RCP 8.5, 1/12 degree, Vermont and its neighbours) and prism/ with seven days
of PRISM and its elevation. The model is trained on these days over the north-east of the United States, from 1/3 to
1/24 degree: enough to show the steps, not to trust the result. No daily observations of the year 2095 exist. In their
place the correction is fitted to the file itself, made wetter and without its drizzle, to see whether it finds that.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console

import xdeepsd

FILE = "pr_day_CanESM2_rcp85_r1i1p1_na10kgrid_qm-moving-50bins-detrend_2095.nc"
TRAIN = {"lat": slice(47.2, 40.0), "lon": slice(-78.0, -68.0)}
REGION = {"lat": slice(44.9, 42.1), "lon": slice(-74.9, -72.1)}


def train(data: Path, steps: int) -> xdeepsd.StackedSRCNN:
    """A stack of three stages from the PRISM days at hand, on the part of their domain around the file's region."""
    files = [*sorted(data.glob("PRISM_ppt_stable_4kmD2_*_bil.zip")), *sorted(data.glob("prism_ppt_us_25m_*.zip"))]
    rain = xdeepsd.open_prism(files, allow_missing=True)["ppt"].sel(TRAIN)
    elevation = xr.open_dataset(data / "prism_elevation_4km.nc")["elevation"].sel(TRAIN)
    rain, elevation = (da.isel({d: slice(da.sizes[d] // 8 * 8) for d in TRAIN}) for da in (rain, elevation))
    levels = [level.load() for level in xdeepsd.make_levels(rain, elevation, (2, 2, 2))]
    config = xdeepsd.TrainConfig(
        static=("elevation",), steps=steps, validation=None, validate_every=steps, patch=24, stride=12, threads=2
    )
    return xdeepsd.train_stack(levels, config, progress=False)


def region(static: xr.Dataset) -> xr.Dataset:
    """The part of the model's grid that the file covers, in whole coarse cells."""
    where = {}
    for dim, part in REGION.items():
        low, high = sorted((part.start, part.stop))
        inside = np.flatnonzero((static[dim] >= low) & (static[dim] <= high))
        first = -(-int(inside[0]) // 8) * 8
        where[dim] = slice(first, first + (int(inside[-1]) + 1 - first) // 8 * 8)
    return static.isel(where)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data"))
    arguments.add_argument("--data", type=Path, default=default, help="folder of gcm/ and prism/")
    arguments.add_argument("--out", type=Path, default=Path("climate_model"), help="folder for the results")
    arguments.add_argument("--steps", type=int, default=300, help="training steps of each stage")
    chosen = arguments.parse_args()
    console = Console(width=120, highlight=False)
    started = time.perf_counter()
    chosen.out.mkdir(parents=True, exist_ok=True)
    model = train(chosen.data / "prism", chosen.steps)
    static = region(model.static)

    # 1. Look at it first
    ds = xr.open_dataset(chosen.data / "gcm" / FILE, chunks={"time": 73})
    console.print(str(xdeepsd.audit(ds, model, static)), soft_wrap=True)

    # 2. Observations on the model's coarse grid, and the correction
    coarse = xr.Dataset(coords={d: static[d].coarsen({d: 8}).mean() for d in ("lat", "lon")})
    own = xdeepsd.regrid(ds[["pr"]], coarse)["pr"]
    observed = (own.where(own > 0.5 / 86400, 0) * 1.25).assign_attrs(own.attrs)
    xdeepsd.fit_correction(ds, observed, nquantiles=40).save(chosen.out / "correction.nc", overwrite=True)

    # 3. Regridded, corrected and downscaled in one lazy graph, and written
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("xdeepsd").setLevel(logging.INFO)
    fine = ds.deepsd.downscale(model, static, bias_correct=chosen.out / "correction.nc")
    fine.deepsd.to_zarr(chosen.out / "fine.zarr", overwrite=True)
    logging.getLogger("xdeepsd").setLevel(logging.WARNING)

    # 4. What came out: the correction found what was done to the observations
    plain = ds.deepsd.downscale(model, static)["pr"]
    written = xr.open_zarr(chosen.out / "fine.zarr")["pr"]
    rows = {"the file": own, "observed": observed, "downscaled": plain, "corrected, downscaled": written}
    for name, da in rows.items():
        days = da * 86400
        console.print(
            f"{name:22s} mean {float(days.mean()):.2f}, largest {float(days.max()):.0f} mm day-1, "
            f"{float((days > 1).mean()):.0%} of the values above 1 mm day-1"
        )
    wettest = int(own.mean(("lat", "lon")).argmax())
    corrected = xdeepsd.load_correction(chosen.out / "correction.nc").apply(own * 86400) / 86400
    shown = {"CanESM2, 1/12 degree": ds["pr"], "corrected, 1/3 degree": corrected, "downscaled, 1/24 degree": written}
    maps = {name: (da.isel(time=wettest) * 86400).assign_attrs(units="mm day-1") for name, da in shown.items()}
    figure = xdeepsd.plot.maps(maps, f"{str(ds['time'].values[wettest])[:10]}")
    figure.savefig(chosen.out / "wettest_day.png", dpi=110)
    console.print(
        f"wettest_day.png shows {str(ds['time'].values[wettest])[:10]}. {time.perf_counter() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
