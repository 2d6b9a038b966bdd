"""Real coarse input: what becomes of a model that was trained on coarsened observations, and what helps.

    python examples/real_coarse.py --data FOLDER           # a few steps: a minute or two
    python examples/real_coarse.py --data FOLDER --full    # the figures of the documentation

FOLDER holds iberia/ (E-OBS at half a degree, and the NCEP reanalysis at 1.9 degrees: twelve winters to train and
validate on, three to test), minnesota_jan2000/ (gridMET, and nClimGrid coarsened to a sixth of a degree: the south of
Minnesota, two weeks, whose halves are trained and tested on in turn) and gridmet_oregon/ (the elevation). Both are
x2-x2. On the test days: every method that sees the real coarse input, and the perfect case, in which the input is the
mean of what was observed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import reanalysis
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd
from xdeepsd.evaluation.baselines import map_quantiles

FACTORS = (2, 2)
PERFECT = "perfect input: "
PAIRS = "stack, trained on real pairs"


def iberia(data: Path) -> list[reanalysis.Iberia]:
    return [reanalysis.load(data)]


def minnesota(data: Path) -> list[reanalysis.Iberia]:
    """Two folds: a week trains, the other one is tested. nClimGrid dates the same rain a day later than gridMET."""
    files = [data / "minnesota_jan2000" / name for name in
             ("gridmet_pr_2000_mn__14-day.nc", "nclimgrid-prcp-200001-grd-scaled_mn__14-day.nc")]  # fmt: skip
    observed = xr.open_dataset(files[0])["precipitation_amount"].drop_vars("crs", errors="ignore").rename(day="time")
    product = xr.open_dataset(files[1])["prcp"].astype("float64").assign_attrs(units="mm day-1")
    product = product.assign_coords(time=product["time"] - np.timedelta64(1, "D"))
    days = np.intersect1d(observed["time"], product["time"])
    observed = observed.sel(time=days).isel(lat=slice(-104, -8), lon=slice(36, 144)).load()  # all of it is land
    elevation = xr.open_dataset(data / "gridmet_oregon" / "metdata_elevationdata.nc")["elevation"].squeeze(drop=True)
    observed = observed.astype("float32").assign_attrs(units="mm day-1")
    observed = observed.assign_coords(elevation=elevation.reindex_like(observed[0], method="nearest", tolerance=0.02))
    grid = xdeepsd.make_levels(observed.drop_vars("elevation"), factors=FACTORS)[0]
    product = xdeepsd.regrid(product.sel(time=days).load(), grid[["lat", "lon"]]) / 86400
    product = product.assign_attrs(units="kg m-2 s-1").rename("prcp")
    cases = []
    for test in (days[:6], days[-6:]):
        rest = np.setdiff1d(days, test)
        dates = [tuple(str(day)[:10] for day in some) for some in (rest[::4], test)]
        config = xdeepsd.TrainConfig(static=("elevation",), validation=dates[0], test=dates[1], threads=1)
        cases.append(reanalysis.Iberia(observed, product, config))
    return cases


CASES: dict[str, Callable[[Path], list[reanalysis.Iberia]]] = {"iberia": iberia, "minnesota": minnesota}


def predictions(case: reanalysis.Iberia, steps: int | None, channels: tuple[int, ...] | None) -> xr.Dataset:
    """The test days as each method predicts them, and the truth, on the cells that were observed."""
    changes = {} if steps is None else {"steps": steps, "validate_every": steps}
    if channels is not None:
        changes["channels"] = channels
    config = dataclasses.replace(case.config, **changes)
    case = case._replace(config=config)
    split, wanted = case.split, case.observed.notnull().any("time")
    real = case.levels(FACTORS)
    perfect = perfect_levels(case)
    test, train = split.test, np.union1d(split.train, split.validation)
    truth, fine = perfect[-1]["precipitation"].isel(time=test), perfect[-1]["precipitation"].isel(time=train)
    (low, low_past), (given, past) = ([level[0]["precipitation"].isel(time=days) for days in (test, train)]
                                      for level in (perfect, real))  # fmt: skip

    quantiles = min(50, train.size)
    options = {"mask": perfect[-1]["mask"]}
    fields = {}
    for name, da in xdeepsd.baselines(low, truth, past=(fine, low_past), **options).items():
        if name.endswith("means kept") and not name.startswith(("bilinear", "BCSD")):
            fields[PERFECT + name] = da
    simple = reanalysis.baselines(case)
    fields |= {name: da.isel(time=test) for name, da in simple.items()}
    interpolated = simple["interpolated"]
    fields["interpolated, quantiles of each cell mapped"] = map_quantiles(
        interpolated.isel(time=test), interpolated.isel(time=train), case.observed.isel(time=train),
        nquantiles=quantiles,
    )  # fmt: skip
    fields["climatology ratio"] = xdeepsd.climatology_ratio(given, truth, fine.mean("time"), past.mean("time"))
    fields["BCSD"] = xdeepsd.bcsd(given, truth, (fine, past), nquantiles=quantiles)
    model = xdeepsd.train_stack(perfect, config, progress=False)
    mapped = map_quantiles(given, past, low_past, nquantiles=quantiles)
    correction = xdeepsd.fit_correction(
        past.to_dataset(), low_past.to_dataset(), nquantiles=quantiles // 2, group="time"
    )
    bare = [da.drop_attrs(deep=False).assign_attrs(units="mm day-1").rename("precipitation") for da in (given, mapped)]
    made = {
        PERFECT + "stack": xdeepsd.downscale(perfect[0][["precipitation"]].isel(time=test), model),
        "stack, trained on coarsened observations": xdeepsd.downscale(bare[0].to_dataset(), model),
        "the same after quantile delta mapping": xdeepsd.downscale(
            bare[0].to_dataset(), model, bias_correct=correction
        ),
        "the same after quantile mapping": xdeepsd.downscale(bare[1].to_dataset(), model),
    }
    first = reanalysis.TRIES[reanalysis.RECOMMENDED]
    pairs = case._replace(observed=case.observed.drop_vars("elevation", errors="ignore"))
    if "climatology" not in config.static:
        first = first._replace(first={**first.first, "static": ("land_fraction",)})
        pairs = pairs._replace(config=dataclasses.replace(config, static=("land_fraction",)))
    coarse, (trained,) = reanalysis.stacks(pairs, first, 1, steps)
    made[PAIRS] = xdeepsd.downscale(coarse[["precipitation"]].isel(time=test), trained)
    fields |= {name: ds["precipitation"] for name, ds in made.items()}
    cut = {dim: slice(case.observed.sizes[dim]) for dim in ("lat", "lon")}  # without what was padded
    ours = case.observed.isel(time=test).drop_vars("elevation", errors="ignore")
    maps = {}
    for name, da in fields.items():
        da = da.transpose("time", "lat", "lon").isel(cut).assign_coords(ours.coords).reset_coords(drop=True)
        maps[name] = da.where(wanted.drop_vars("elevation", errors="ignore")).astype("float64").compute()
    return xr.Dataset({**maps, "truth": ours.astype("float64")})


def perfect_levels(case: reanalysis.Iberia) -> list[xr.Dataset]:
    """The ladder of what was observed alone, on the same days."""
    static = None
    if "elevation" in case.observed.coords:
        static = case.observed["elevation"].drop_vars("elevation", errors="ignore").to_dataset(name="elevation")
    observed = case.observed.drop_vars("elevation", errors="ignore")
    levels = xdeepsd.make_levels(observed, static, FACTORS, mask=observed.notnull().any("time"), edges="pad")
    return [level.load() for level in levels]


def judge(found: xr.Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The errors of every method, and by how much the RMSE of the stack that learned from real pairs is below each."""
    fields = {str(name): da.assign_attrs(units="mm day-1") for name, da in found.data_vars.items()}
    truth = fields.pop("truth")
    ours = fields.pop(PAIRS)
    whole = xdeepsd.evaluate(ours, truth, beside=fields).compute()
    table = whole[["rmse", "mae", "bias", "correlation", "skill"]].to_dataframe()
    heavy = whole.sel(event="10 mm")
    table["pod_10mm"], table["far_10mm"] = heavy["pod"].values, heavy["far"].values
    return table.rename({"prediction": PAIRS}), xdeepsd.differences(whole).set_index("name")


def show(region: str, table: pd.DataFrame, apart: pd.DataFrame, console: Console) -> None:
    shown = Table(title=f"{region}, test days, mm day-1", title_justify="left")
    for head in ("", "RMSE", "MAE", "bias", "corr.", "skill", "POD / FAR, 10 mm", "RMSE of real pairs less this one"):
        shown.add_column(head, justify="right" if head else "left", overflow="fold")
    squared = apart[apart["error"] == "rmse"]
    for name, row in table.iterrows():
        less = "" if name == PAIRS else "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**squared.loc[name])
        shown.add_row(
            str(name), *(f"{row[key]:.3f}" for key in ("rmse", "mae", "bias", "correlation", "skill")),
            f"{row['pod_10mm']:.2f} / {row['far_10mm']:.2f}", less,
        )  # fmt: skip
    console.print(shown)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data"))
    arguments.add_argument("--data", type=Path, default=default, help="folder of iberia/ and minnesota_jan2000/")
    arguments.add_argument("--out", type=Path, default=Path("real_coarse"), help="folder for the tables")
    arguments.add_argument("--regions", nargs="+", choices=CASES, default=[*CASES])
    arguments.add_argument("--full", action="store_true", help="as many steps as are recommended, not 20")
    arguments.add_argument("--steps", type=int, help="other training steps")
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    steps = chosen.steps or (None if chosen.full else 20)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for region in chosen.regions:
        started = time.perf_counter()
        # Two weeks are learned in a few steps.
        limit, channels = (steps, None) if region == "iberia" else (steps or 300, (32, 16))
        folds = [predictions(case, limit, channels) for case in CASES[region](chosen.data)]
        table, apart = judge(xr.concat(folds, "time"))
        table.rename_axis("method").to_csv(chosen.out / f"{region}.csv")
        show(region, table, apart, console)
        console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
