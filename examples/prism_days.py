"""Seven PRISM days: train on six and test on the seventh, in turn; x2, x2-x2 and x2-x2-x2 beside the baselines.

    python examples/prism_days.py --data FOLDER

FOLDER holds daily PRISM ppt as downloaded (BIL or GeoTIFF zips) and PRISM's elevation (prism_elevation_4km.nc).

Six days do not make a climatology, so elevation is the only static field, and no day can be spared for validation: the
number of steps is fixed beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import pandas as pd
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import xdeepsd
from xdeepsd.evaluation.baselines import baselines
from xdeepsd.evaluation.errors import compare
from xdeepsd.prism.files import open_prism
from xdeepsd.training.stack import train_stacks

STACKS = {"x2": 1, "x2-x2": 2, "x2-x2-x2": 3}


def load(data: Path) -> list[xr.Dataset]:
    """Four levels of these days, from 1/3 to 1/24 degree, in memory."""
    files = sorted(data.glob("PRISM_ppt_stable_4kmD2_*_bil.zip")) + sorted(data.glob("prism_ppt_us_25m_*.zip"))
    rain = open_prism(files, allow_missing=True)["ppt"]
    elevation = xr.open_dataset(data / "prism_elevation_4km.nc")["elevation"]
    return [level.load() for level in xdeepsd.make_levels(rain, elevation, (2, 2, 2))]


def run(data: Path, steps: int, folds: int | None, seed: int, console: Console) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Errors over all held-out days together, and the RMSE of each day; the rows are stack and method."""
    levels = load(data)
    dates = [str(day)[:10] for day in levels[-1]["time"].values][:folds]
    configs = [
        xdeepsd.TrainConfig(
            static=("elevation",),
            steps=steps,
            validation=None,
            validate_every=steps,
            test=(date,),
            seed=seed,
            threads=1,
        )
        for date in dates
    ]
    fields: dict[str, dict[str, list[xr.DataArray]]] = {name: {} for name in STACKS}
    with xdeepsd.cluster("local", workers=2) as client:
        for i, model in train_stacks(levels, configs, client=client, progress=False):
            console.print(f"trained without {dates[i]}")
            for name, count in STACKS.items():
                # The stages are trained independently: the last ones of the stack of three are the shorter stacks.
                short = dataclasses.replace(model, stages=model.stages[-count:])
                coarse = levels[-1 - count][["precipitation"]].sel(time=[dates[i]])
                truth = levels[-1]["precipitation"].sel(time=[dates[i]])
                maps = baselines(coarse["precipitation"], truth)
                maps["xdeepsd"] = xdeepsd.downscale(coarse, short)["precipitation"].assign_coords(truth.coords)
                for method, da in {**maps, "truth": truth}.items():
                    fields[name].setdefault(method, []).append(da)
    tables, days = {}, {}
    for name, by_method in fields.items():
        joined = {method: xr.concat(parts, "time").sortby("time") for method, parts in by_method.items()}
        truth = joined.pop("truth")
        tables[name] = compare(joined, truth)
        each = {
            date: compare({m: da.sel(time=[date]) for m, da in joined.items()}, truth.sel(time=[date]))["rmse"]
            for date in dates
        }
        days[name] = pd.DataFrame(each)
    return pd.concat(tables, names=["stack", "method"]), pd.concat(days, names=["stack", "method"])


def show(table: pd.DataFrame, days: pd.DataFrame, console: Console) -> bool:
    """Print both tables; True if the model beats every baseline in every stack, over all days together."""
    shown = Table(title="Held-out days, land cells of CONUS, mm day-1", title_justify="left", box=SIMPLE_HEAD)
    for head in ("stack", "method", "RMSE", "MAE", "bias", "correlation"):
        shown.add_column(head, justify="left" if head in ("stack", "method") else "right")
    for (stack, method), row in table.iterrows():
        numbers = (f"{row[c]:.3f}" for c in ("rmse", "mae", "bias", "correlation"))
        shown.add_row(stack, method, *numbers, end_section=method == "xdeepsd")
    console.print(shown)
    by_day = Table(title="RMSE of each day", title_justify="left", box=SIMPLE_HEAD)
    columns = [(stack, method) for stack in STACKS for method in ("bicubic, means kept", "xdeepsd")]
    for head in ("day", *(f"{stack}\n{method}" for stack, method in columns)):
        by_day.add_column(head, justify="left" if head == "day" else "right")
    for date in days:
        by_day.add_row(date, *(f"{days.loc[column, date]:.3f}" for column in columns))
    console.print(by_day)
    won = True
    for stack in STACKS:
        rmse = table.loc[stack, "rmse"]
        best = rmse.drop("xdeepsd").min()
        better = int((days.loc[(stack, "xdeepsd")] < days.loc[stack].drop("xdeepsd").min()).sum())
        won &= bool(rmse["xdeepsd"] < best)
        says = "beats" if rmse["xdeepsd"] < best else "[bold red]does not beat[/]"
        console.print(
            f"{stack}: the model {says} the best baseline ({rmse['xdeepsd'] / best - 1:+.1%}), on {better} of "
            f"{days.shape[1]} days"
        )
    return won


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "data")) / "prism"
    arguments.add_argument("--data", type=Path, default=default, help="folder with PRISM's zips and the elevation")
    arguments.add_argument("--out", type=Path, default=Path("prism_days"), help="folder for the tables")
    arguments.add_argument("--steps", type=int, default=500, help="training steps of each stage")
    arguments.add_argument("--folds", type=int, help="hold out the first few days only")
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    console = Console()
    started = time.perf_counter()
    chosen.out.mkdir(parents=True, exist_ok=True)
    table, days = run(chosen.data, chosen.steps, chosen.folds, chosen.seed, console)
    table.to_csv(chosen.out / "errors.csv")
    days.to_csv(chosen.out / "rmse_by_day.csv")
    won = show(table, days, console)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0 if won else 1


if __name__ == "__main__":
    raise SystemExit(main())
