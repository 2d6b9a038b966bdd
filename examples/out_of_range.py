"""Out of its range: what a model makes of rain that is heavier than any it was trained on. gridMET over Oregon, x4.

    python examples/out_of_range.py --data FOLDER          # two losses, a few steps: a minute or two
    python examples/out_of_range.py --data FOLDER --full   # every loss and transform: an hour on one core

FOLDER holds gridMET's days over Oregon, as for oregon.py. Held out are, one after the other, the tenth of the days with
the most rain over the region, and the wettest season; every tenth of the other days validates. Judged are the values
beyond the training maximum of their cell: how much of them is predicted (the sum over that of the truth), how many are
predicted to be beyond that maximum as well, and the RMSE. Each network is trained without keeping the coarse means,
which hides what a loss does, and is shown without and with them kept afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import oregon
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd

FACTOR = 4
MSE: dict[str, Any] = {}
MAE: dict[str, Any] = {"loss": "mae"}
DENSE: dict[str, Any] = {"loss": "denseloss", "alpha": 1.0}
PLAIN: dict[str, Any] = {"target_transform": None}
QUICK = {"MSE, square root": MSE, "DenseLoss 1, none": DENSE | PLAIN}
# By loss and transform. Tweedie's and the Bernoulli-gamma loss are of mm whatever the transform.
FULL = {
    "MSE, square root": MSE,
    "MSE, log1p": {"target_transform": "log1p"},
    "MSE, none": PLAIN,
    "MSE, none, not residual": PLAIN | {"residual": False},  # the network as DeepSD was published
    "MAE, square root": MAE,
    "MAE, none": MAE | PLAIN,
    "DenseLoss 1, square root": DENSE,
    "DenseLoss 1, none": DENSE | PLAIN,
    "pinball 0.7, square root": {"loss": "pinball", "quantile": 0.7},
    "Tweedie 1.5": {"loss": "tweedie", "tweedie_power": 1.5},
    "Bernoulli-gamma": {"loss": "bernoulli_gamma"},
}


def held_out(rain: xr.DataArray) -> dict[str, np.ndarray]:
    """The numbers of the days that are held out, by what they are."""
    wet = rain.mean(("lat", "lon"))
    seasons = wet.groupby(wet["day"].dt.season).mean()
    season = str(seasons["season"].values[int(seasons.argmax())])
    return {
        "the wettest tenth of the days": np.sort(wet.argsort().values[-(wet.size // 10) :]),
        f"the wettest season ({season})": np.flatnonzero(wet["day"].dt.season == season),
    }


def judge(fields: Mapping[str, xr.DataArray], truth: xr.DataArray, most: xr.DataArray) -> pd.DataFrame:
    """A row for each field: the RMSE over all values, and what becomes of those beyond ``most`` ``(lat, lon)``."""
    known = truth.notnull()
    for da in fields.values():
        known = known & da.notnull()
    rows = {}
    for name, da in fields.items():
        row = {"rmse": float(((da - truth) ** 2).where(known).mean() ** 0.5)}
        for far in (1.0, 1.5):
            beyond = known & (truth > far * most)
            row[f"part_{far:g}"] = float(da.where(beyond).sum() / truth.where(beyond).sum())
            row[f"rmse_{far:g}"] = float(((da - truth) ** 2).where(beyond).mean() ** 0.5)
            row[f"count_{far:g}"] = int(beyond.sum())
        beyond = known & (truth > most)
        row["said"] = float((beyond & (da > most)).sum() / beyond.sum())
        row["false"] = float((known & (da > most) & ~beyond).sum() / beyond.sum())
        row["wettest"] = float(da.where(known).max() / truth.where(known).max())
        rows[name] = row
    return pd.DataFrame(rows).T


def measure(
    data: Path, tries: Mapping[str, Mapping[str, Any]], steps: int, seeds: int, console: Console
) -> pd.DataFrame:
    """`judge` for each set of held-out days: the baselines first, then the mean over the seeds of each loss."""
    rain, elevation, _ = oregon.read(data, None)
    levels = oregon.load(rain, elevation, (FACTOR,))
    tables = {}
    for what, days in held_out(rain).items():
        dates = pd.DatetimeIndex(rain["day"].values)
        others = np.setdiff1d(np.arange(dates.size), days)
        validation = others[::10]
        config = xdeepsd.TrainConfig(
            validation=tuple(map(str, dates[validation].date)), test=tuple(map(str, dates[days].date)), steps=steps,
            validate_every=max(steps // 4, 1), channels=(32, 16), conserve=None, threads=1,
        )  # fmt: skip
        train = np.setdiff1d(others, validation)
        coarse, fine = (level["precipitation"].isel(time=train) for level in levels)
        given, truth = levels[0][["precipitation"]].isel(time=days), levels[1]["precipitation"].isel(time=days)
        beside = xdeepsd.baselines(given["precipitation"], truth, mask=levels[1]["mask"], past=(fine, coarse))
        fields = {name: da.load() for name, da in beside.items()}
        found = [judge(fields, truth, fine.max("time"))]
        for name, change in tries.items():
            runs = []
            for seed in range(seeds):
                model = xdeepsd.train_stack(levels, dataclasses.replace(config, seed=seed, **change), progress=False)
                maps = {
                    name + end: xdeepsd.downscale(given, model, conserve=kind)["precipitation"]
                    for end, kind in (("", None), (", means kept", "multiplicative"))
                }
                maps = {key: da.assign_coords(truth.coords).load() for key, da in maps.items()}
                runs.append(judge(maps, truth, fine.max("time")))
            found.append(sum(runs[1:], runs[0]) / seeds)
            console.print(f"{what}: {name}", highlight=False)
        tables[what] = pd.concat(found)
    return pd.concat(tables, names=["held_out", "method"])


def show(table: pd.DataFrame, console: Console) -> None:
    for what, rows in table.groupby("held_out", sort=False):
        counts = rows.iloc[0]
        title = (
            f"Held out: {what}. {counts['count_1']:.0f} values beyond the training maximum of their cell, "
            f"{counts['count_1.5']:.0f} half as much again; mm day-1"
        )
        shown = Table(title=title, title_justify="left")
        heads = {
            "rmse": "RMSE, all", "part_1": "predicted part, beyond", "part_1.5": "half as much again",
            "rmse_1": "RMSE, beyond", "said": "beyond as well", "false": "false ones", "wettest": "wettest value",
        }  # fmt: skip
        for head in ("", *heads.values()):
            shown.add_column(head, justify="right" if head else "left", overflow="fold")
        for (_, method), row in rows.iterrows():
            shown.add_row(method, *(f"{row[key]:.3f}" for key in heads))
        console.print(shown)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data")) / "gridmet_oregon"
    arguments.add_argument("--data", type=Path, default=default, help="folder of the two files")
    arguments.add_argument("--out", type=Path, default=Path("out_of_range"), help="folder for the table")
    arguments.add_argument("--full", action="store_true", help="every loss and transform, 300 steps")
    arguments.add_argument("--steps", type=int, help="other training steps: 60, or 300 with --full")
    arguments.add_argument("--seeds", type=int, default=1)
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    started = time.perf_counter()
    steps = chosen.steps or (300 if chosen.full else 60)
    table = measure(chosen.data, FULL if chosen.full else QUICK, steps, chosen.seeds, console)
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "out_of_range.csv")
    show(table, console)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
