"""How far below the best baseline with coarse means kept: gridMET over Oregon and E-OBS over Iberia, level by level.

    python examples/skill.py --data FOLDER               # both regions, TrainConfig(), one seed
    python examples/skill.py --data FOLDER --seeds 5 --tries "TrainConfig()" "4000 steps"
    python examples/skill.py --data FOLDER --baselines   # nothing is trained

FOLDER holds gridmet_oregon/ and iberia/. Oregon: trained on January to July 2000, of which the last week of every
second month validates, tested on August and September. Iberia: 15 winters of E-OBS at half a degree; the first 11
train, the 12th validates, the last three test. Its 19 x 29 cells do not divide by 4: they are padded with missing ones,
so that all land counts. There is no elevation for it. Errors are over all observed cells and test days, mm day-1.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oregon
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd
from xdeepsd.evaluation.baselines import baselines
from xdeepsd.evaluation.errors import compare
from xdeepsd.training.stack import train_stacks

KEPT = "means kept"
# What is tried, by name: changes to the configuration that is otherwise what the package recommends.
TRIES: dict[str, dict[str, Any]] = {
    "TrainConfig()": {},
    "4000 steps": {"steps": 4000},
    "9-3-5": {"kernels": (9, 3, 5)},
    "128-64 channels": {"channels": (128, 64)},
    "regression": {"static": ("regression",)},  # besides those of the region
    "log1p": {"target_transform": "log1p"},
    "log1p, regression": {"target_transform": "log1p", "static": ("regression",)},
}


@dataclasses.dataclass(frozen=True)
class Region:
    """A ladder in memory, coarsest first, and which of its days are for what."""

    levels: Sequence[xr.Dataset]
    config: xdeepsd.TrainConfig


def load_oregon(data: Path) -> Region:
    """Four levels, from 1/3 to 1/24 degree."""
    rain, elevation, test = oregon.read(data / "gridmet_oregon", None)
    config = xdeepsd.TrainConfig(validation=oregon.VALIDATION, test=test, threads=1)
    return Region(oregon.load(rain, elevation, (2, 2, 2)), config)


def load_iberia(data: Path) -> Region:
    """Three levels, from 2 to 1/2 degree; a cell counts where it was observed on any day."""
    rain = xr.open_dataset(data / "iberia" / "obs_eobs_05deg.nc")["rr"].load()
    levels = xdeepsd.make_levels(rain, factors=(2, 2), mask=rain.notnull().any("time"), edges="pad")
    config = xdeepsd.TrainConfig(
        static=("climatology",),
        validation=("1993-12-01/1994-02-28",),
        test=("1994-12-01/1997-02-28",),
        threads=1,
    )
    return Region([level.load() for level in levels], config)


REGIONS: dict[str, Callable[[Path], Region]] = {"oregon": load_oregon, "iberia": load_iberia}


def judge(region: Region, models: Mapping[str, xdeepsd.StackedSRCNN]) -> pd.DataFrame:
    """Errors on the test days: a row for each stack and method, the baselines first, then the models by their names.

    The stages of a model are trained apart: its last ones are the shorter stacks.
    """
    finest = region.levels[-1]
    split = region.config.split(finest["time"])
    truth = finest["precipitation"].isel(time=split.test)
    tables = {}
    for count in range(1, len(region.levels)):
        coarse = region.levels[-1 - count]
        past = finest["precipitation"].isel(time=split.train), coarse["precipitation"].isel(time=split.train)
        held_out = coarse[["precipitation"]].isel(time=split.test)
        fields = baselines(held_out["precipitation"], truth, mask=finest["mask"], past=past)
        for name, model in models.items():
            short = dataclasses.replace(model, stages=model.stages[-count:])
            fields[name] = xdeepsd.downscale(held_out, short)["precipitation"].assign_coords(truth.coords)
        table = compare(fields, truth).assign(validation=np.nan)
        for name, model in models.items():  # what to choose by: that of the stage that the stack begins with, alone
            table.loc[name, "validation"] = model.training["stages"][-count]["rmse"]
        tables["-".join(["x2"] * count)] = table
    return pd.concat(tables, names=["stack", "method"])


def train(
    regions: Mapping[str, Region], tries: Mapping[str, Mapping[str, Any]], seeds: int, console: Console
) -> dict[str, dict[str, xdeepsd.StackedSRCNN]]:
    """Stacks of each region by name and seed, "NAME, seed 0" and so on."""
    models: dict[str, dict[str, xdeepsd.StackedSRCNN]] = {name: {} for name in regions}
    if not tries:
        return models
    with xdeepsd.cluster("local", workers=2) as client:
        for name, region in regions.items():
            configs = {
                f"{tried}, seed {seed}": dataclasses.replace(
                    region.config,
                    seed=seed,
                    **changes | {"static": (*region.config.static, *changes.get("static", ()))},
                )
                for tried, changes in tries.items()
                for seed in range(seeds)
            }
            for number, model in train_stacks(
                list(region.levels), list(configs.values()), client=client, progress=False
            ):
                models[name][list(configs)[number]] = model
                console.print(f"trained: {name}, {list(configs)[number]}", highlight=False)
    return models


def measure(
    data: Path, tries: Mapping[str, Mapping[str, Any]], seeds: int, console: Console, names: Sequence[str] = (*REGIONS,)
) -> pd.DataFrame:
    """`judge` for every region, one row for each stack, method and seed (baselines have the seed 0)."""
    regions = {name: REGIONS[name](data) for name in names}
    models = train(regions, tries, seeds, console)
    tables = {name: judge(region, models[name]) for name, region in regions.items()}
    rows = pd.concat(tables, names=["region", "stack", "method"]).reset_index()
    parts = rows["method"].str.extract(r"^(?P<method>.*?)(?:, seed (?P<seed>\d+))?$")
    return rows.assign(method=parts["method"], seed=parts["seed"].fillna(0).astype(int))


def against_baseline(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean RMSE over the seeds, and what it is of the best baseline with means kept: a row for each stack and method.

    ``spread``: between the smallest and the largest of the seeds. ``baseline``: the best one's name.
    """
    errors = ["rmse", "validation", "mae", "bias", "correlation"]
    groups = rows.groupby(["region", "stack", "method"], sort=False)
    table = groups[errors].mean()
    table["spread"] = groups["rmse"].agg(np.ptp)
    kept = table[table.index.get_level_values("method").str.endswith(KEPT)]["rmse"]
    best = kept.groupby(["region", "stack"], sort=False).idxmin()
    for (region, stack), row in best.items():
        table.loc[(region, stack), "baseline"] = row[-1]
        table.loc[(region, stack), "vs_baseline"] = (table.loc[(region, stack), "rmse"] / kept[row]).to_numpy()
    return table


def show(table: pd.DataFrame, console: Console) -> None:
    """Print the table of `against_baseline`; in brackets the RMSE of the first stage on the validation days."""
    for (region, stack), part in table.groupby(["region", "stack"], sort=False):
        shown = Table(title=f"{region} {stack}, test days, mm day-1", title_justify="left")
        for head in ("", "RMSE", "of the best baseline with means kept", "MAE", "bias", "correlation", "seeds' spread"):
            shown.add_column(head, justify="right" if head else "left", overflow="fold")
        for (_, _, method), row in part.iterrows():
            shown.add_row(
                method,
                f"{row['rmse']:.4f}" + (f" ({row['validation']:.4f})" if row["validation"] > 0 else ""),
                f"{row['vs_baseline']:.3f}",
                *(f"{row[c]:.3f}" for c in ("mae", "bias", "correlation", "spread")),
            )  # fmt: skip
        console.print(shown)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data"))
    arguments.add_argument("--data", type=Path, default=default, help="folder of gridmet_oregon/ and iberia/")
    arguments.add_argument("--out", type=Path, default=Path("skill"), help="folder for the table")
    arguments.add_argument("--tries", nargs="+", choices=TRIES, default=["TrainConfig()"], help="what is trained")
    arguments.add_argument("--regions", nargs="+", choices=REGIONS, default=[*REGIONS])
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--steps", type=int, help="other training steps than those of what is tried")
    arguments.add_argument("--baselines", action="store_true", help="the baselines only")
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    started = time.perf_counter()
    steps = {} if chosen.steps is None else {"steps": chosen.steps}
    tries = {} if chosen.baselines else {name: TRIES[name] | steps for name in chosen.tries}
    rows = measure(chosen.data, tries, chosen.seeds, console, chosen.regions)
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(chosen.out / "skill.csv", index=False)
    show(against_baseline(rows), console)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
