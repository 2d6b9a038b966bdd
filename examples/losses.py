"""Which loss for what: a stage trained with each loss on the same days, gridMET over Oregon and E-OBS over Iberia.

    python examples/losses.py --data FOLDER                                       # both regions, ten seeds: hours
    python examples/losses.py --data FOLDER --regions iberia --seeds 3 --steps 600 --small
    python examples/losses.py --regions generated --factor 8

FOLDER holds gridmet_oregon/ and iberia/; days and levels are those of examples/skill.py. "generated" is 24 years of a
generated climate with storms of heavy tails, of which the last four are tested. Coarse means are not kept
(unless --conserve says so): keeping them undoes part of what a loss does. On the validation days, to choose on, and on
the test days, for each loss: RMSE and MAE, RMSE in bins of the observed value (rank 1 is the rarest), and what becomes
of heavy values, those above the 99th percentile of all observed ones: the share that is missed, the share of the
predicted ones that are false alarms, and how many there are for each observed one. Differences from MSE are tested over
the seeds (Wilcoxon, with Bonferroni's correction for the number of losses), for which three seeds are too few: ten can
show something.
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
import pandas as pd
import skill
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd

REFERENCE = "MSE"
HEAVY = 0.99
PARTS = ("validation", "test")
# What is compared, by name: changes to TrainConfig().
LOSSES: dict[str, dict[str, Any]] = {
    REFERENCE: {},  # of square roots, as everywhere in TrainConfig() unless it says otherwise
    "MSE in mm": {"target_transform": None},
    "MAE": {"loss": "mae"},
    "Huber": {"loss": "huber"},
    "pinball 0.7": {"loss": "pinball", "quantile": 0.7},
    "Tweedie 1.5": {"loss": "tweedie", "tweedie_power": 1.5},
    "DenseLoss 0.5": {"loss": "denseloss", "alpha": 0.5},
    "DenseLoss 1": {"loss": "denseloss", "alpha": 1.0},
    "DenseLoss 1 in mm": {"loss": "denseloss", "alpha": 1.0, "target_transform": None},
    "DenseLoss 1, sqrt": {"loss": "denseloss", "alpha": 1.0, "density_transform": "sqrt"},  # as the network sees them
    "DenseLoss 1, capped, annealed": {"loss": "denseloss", "alpha": 1.0, "weight_cap": 3.0, "anneal": 0.5},
    "DenseLoss 1, wet, log1p": {
        "loss": "denseloss", "alpha": 1.0, "wet_threshold": 0.1, "density_transform": "log1p", "weight_cap": 3.0,
        "anneal": 0.5,
    },
    "Bernoulli-gamma": {"loss": "bernoulli_gamma"},
}  # fmt: skip


def load_generated(data: Path) -> skill.Region:
    """Four levels of 24 years with 27,000 storms; 48 by 64 cells, so that the rare is not rare for want of days."""
    climate = xdeepsd.make_climate(years=24, shape=(48, 64), storms=10, seasons=1, shadow=1)
    config = xdeepsd.TrainConfig(validation=("2019-01-01/2020-12-31",), test=("2021-01-01/2024-12-31",), threads=1)
    levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2, 2, 2), mask=climate["mask"])
    return skill.Region([level.load() for level in levels], config)


REGIONS: dict[str, Callable[[Path], skill.Region]] = skill.REGIONS | {"generated": load_generated}


def judge(region: skill.Region, models: Mapping[str, xdeepsd.StackedSRCNN], part: str) -> pd.DataFrame:
    """Errors on the "validation" or the "test" days, a row for each model, named "LOSS, seed N"."""
    coarse, fine = region.levels
    days = getattr(region.config.split(fine["time"]), part)
    truth = fine["precipitation"].isel(time=days).where(fine["mask"])
    held_out = coarse[["precipitation"]].isel(time=days)
    fields = {
        name: xdeepsd.downscale(held_out, model)["precipitation"].assign_coords(truth.coords).compute()
        for name, model in models.items()
    }
    table = xdeepsd.compare(fields, truth)
    bins = xdeepsd.bin_errors(fields, truth)
    for rank, part in bins[bins["rank"] > 0].groupby("rank"):
        table[f"rank {rank}"] = part.set_index("name")["rmse"]
        table[f"count {rank}"] = part.set_index("name")["count"]
    limit = float(truth.quantile(HEAVY))
    for name, field in fields.items():
        table.loc[name, ["misses", "false_alarms", "heavy"]] = heavy_days(field, truth, limit)
        if models[name].stages[-1].config.head != "value":
            chance = xdeepsd.chance_above(xdeepsd.distribution(held_out, models[name]), limit)
            table.loc[name, "heavy_by_chance"] = float(chance.where(truth.notnull().values).mean()) / (1 - HEAVY)
    return table


def heavy_days(field: xr.DataArray, truth: xr.DataArray, limit: float) -> tuple[float, float, float]:
    """Of values above ``limit``: the share missed, the share of false alarms, predicted ones for each observed one."""
    known = field.notnull() & truth.notnull()
    observed, predicted = known & (truth > limit), known & (field > limit)
    both = int((observed & predicted).sum())
    seen, said = int(observed.sum()), int(predicted.sum())
    return 1 - both / seen, 1 - both / said if said else np.nan, said / seen


def measure(
    data: Path,
    names: Sequence[str],
    losses: Mapping[str, Mapping[str, Any]],
    seeds: int,
    console: Console,
    factor: int = 2,
) -> pd.DataFrame:
    """`judge` for each region, of a single stage by ``factor``: one row for each part of the days, loss and seed."""
    regions = {name: REGIONS[name](data) for name in names}
    for name, region in regions.items():
        finest = region.levels[-1]
        coarser = [level for level in region.levels if finest.sizes["lat"] == factor * level.sizes["lat"]]
        if not coarser:
            raise SystemExit(f"{name} has no level that is {factor} times coarser than its finest one.")
        regions[name] = dataclasses.replace(region, levels=[coarser[0], finest])
    models = skill.train(regions, losses, seeds, console)
    tables = {(name, part): judge(region, models[name], part) for name, region in regions.items() for part in PARTS}
    rows = pd.concat(tables, names=["region", "days", "loss"]).reset_index()
    parts = rows["loss"].str.extract(r"^(?P<loss>.*), seed (?P<seed>\d+)$")
    rows = rows.assign(loss=parts["loss"], seed=parts["seed"].astype(int))
    order = {name: number for number, name in enumerate([*names, *PARTS, *losses])}
    by = ["region", "days", "loss", "seed"]
    return rows.sort_values(by, key=lambda part: part if part.name == "seed" else part.map(order), ignore_index=True)


def against_mse(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds for each region, days and loss; "p NAME": Wilcoxon's p against MSE, after Bonferroni."""
    measures = [name for name in rows if name not in ("region", "days", "loss", "seed")]
    table = rows.groupby(["region", "days", "loss"], sort=False)[measures].mean()
    tested = [name for name in measures if not name.startswith(("count", "heavy_by", "correlation"))]
    others = rows["loss"].nunique() - 1
    for where, part in rows.groupby(["region", "days"], sort=False):
        by_seed = {loss: errors.sort_values("seed") for loss, errors in part.groupby("loss")}
        for loss, errors in by_seed.items():
            for name in tested if loss != REFERENCE else []:
                p = xdeepsd.significance(errors[name], by_seed[REFERENCE][name])["p_wilcoxon"]
                table.loc[(*where, loss), f"p {name}"] = min(1.0, others * p)
    return table


def show(table: pd.DataFrame, factor: int, console: Console) -> None:
    """Print the table of `against_mse`; * marks a difference from MSE beyond chance."""
    columns = {"rmse": "RMSE", "mae": "MAE", "bias": "bias"}
    columns |= {name: name for name in table if name.startswith("rank")}
    columns |= {"misses": "misses", "false_alarms": "false alarms", "heavy": "heavy days"}
    for (region, days), part in table.groupby(["region", "days"], sort=False):
        counts = [f"{int(part[name].iloc[0]):,}" for name in part if name.startswith("count")]
        heading = f"{region} x{factor}, {days} days, RMSE in mm day-1; values in the bins from the rarest: "
        shown = Table(title=heading + ", ".join(counts), title_justify="left")
        for head in ("", *columns.values()):
            shown.add_column(head, justify="right" if head else "left", overflow="fold")
        for (*_, loss), row in part.iterrows():
            stars = {name: "*" if row.get(f"p {name}", np.nan) <= 0.05 else "" for name in columns}
            shown.add_row(loss, *(f"{row[name]:.3f}{stars[name]}" for name in columns))
        console.print(shown)
        by_chance = part["heavy_by_chance"].dropna() if "heavy_by_chance" in part else []
        for (*_, loss), value in by_chance.items() if len(by_chance) else []:
            console.print(f"{loss}: {value:.3f} heavy days for each observed one by its chances", highlight=False)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data"))
    arguments.add_argument("--data", type=Path, default=default, help="folder of gridmet_oregon/ and iberia/")
    arguments.add_argument("--out", type=Path, default=Path("losses"), help="folder for the tables")
    arguments.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    arguments.add_argument("--regions", nargs="+", choices=REGIONS, default=[*skill.REGIONS])
    arguments.add_argument("--factor", type=int, choices=(2, 4, 8), default=2, help="of the one stage")
    arguments.add_argument("--conserve", choices=["multiplicative", "additive"], help="keep coarse means")
    arguments.add_argument("--small", action="store_true", help="a network with a sixth of the multiplications")
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--steps", type=int, default=2000)
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    started = time.perf_counter()
    common: dict[str, Any] = {"steps": chosen.steps, "conserve": chosen.conserve}
    common |= {"channels": (32, 16), "kernels": (5, 1, 3)} if chosen.small else {}
    losses = {name: LOSSES[name] | common for name in dict.fromkeys([REFERENCE, *chosen.losses])}
    rows = measure(chosen.data, chosen.regions, losses, chosen.seeds, console, chosen.factor)
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(chosen.out / "seeds.csv", index=False)
    table = against_mse(rows)
    table.to_csv(chosen.out / "losses.csv")
    show(table, chosen.factor, console)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
