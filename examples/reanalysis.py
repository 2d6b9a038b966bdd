"""From a reanalysis to observations: stacks whose first stage learns from NCEP's precipitation over Iberia.

    python examples/reanalysis.py --data FOLDER                       # baselines and what is recommended, one seed
    python examples/reanalysis.py --data FOLDER --seeds 5             # and the mean of five seeds
    python examples/reanalysis.py --data FOLDER --tries "x1-x2-x2, 5-5-5" "x2-x2, 9-1-5"
    python examples/reanalysis.py --data FOLDER --tries --members 20 --seeds 5   # and members drawn from chances

FOLDER holds iberia/: 15 winters of E-OBS at half a degree and of the NCEP reanalysis at 1.9 degrees, the same days. The
first 11 winters train, the 12th validates, the last three test, as in skill.py. The baselines: the training mean,
interpolation, a regression of each cell on the interpolated value, and a ridge regression of each cell on all 48
values of the reanalysis, its penalty chosen on the validation days. Errors are over all observed cells, mm day-1.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import skill
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd
from xdeepsd.evaluation.errors import compare
from xdeepsd.levels.splits import Split
from xdeepsd.training.ladder import Ladder, for_product
from xdeepsd.training.stage import train_stage


class Try(NamedTuple):
    """The factors of a ladder, and how its first stage differs from the configuration of the others."""

    factors: tuple[int, ...]
    first: Mapping[str, Any]


# The first stage works on the coarse grid or the next one, where wide kernels are cheap. Without a transform: the mean
# of the square roots, squared, is far below the mean where the input says little of the day.
WIDE: dict[str, Any] = {
    "kernels": (5, 5, 5), "channels": (32, 16), "target_transform": None, "steps": 600, "validate_every": 100,
    "validation_days": 90, "static": ("climatology", "land_fraction", "north", "east"),
}  # fmt: skip
RECOMMENDED = "x2-x2, 5-5-5"
TRIES = {
    RECOMMENDED: Try((2, 2), WIDE),
    "x1-x2-x2, 5-5-5": Try((1, 2, 2), WIDE),
    "x2-x2, 9-1-5": Try((2, 2), {}),  # the first stage as any other
}

# Members: one stage over the whole factor, since only the last stage has chances, on amounts, which the gamma is of.
CHANCES = {key: value for key, value in WIDE.items() if key != "target_transform"} | {"loss": "bernoulli_gamma"}


class Iberia(NamedTuple):
    """Both products of the same days, and which days are for what."""

    observed: xr.DataArray
    reanalysis: xr.DataArray
    config: xdeepsd.TrainConfig

    @property
    def split(self) -> Split:
        return self.config.split(self.observed["time"])

    def levels(self, factors: Sequence[int]) -> list[xr.Dataset]:
        """The ladder in memory; where a cell lies is a static field, since the errors of a reanalysis depend on it."""
        lat, lon = xr.broadcast(self.observed["lat"], self.observed["lon"])
        static = xr.Dataset({"north": lat, "east": lon})
        levels = xdeepsd.make_levels(
            self.observed, static, factors, mask=self.observed.notnull().any("time"), coarse=self.reanalysis
        )
        return [level.load() for level in levels]


def load(data: Path) -> Iberia:
    """E-OBS and NCEP, days of December to February."""
    files = [data / "iberia" / name for name in ("obs_eobs_05deg.nc", "reanalysis_ncep_19deg.nc")]
    observed, reanalysis = (xr.open_dataset(file)[name].load() for file, name in zip(files, ("rr", "pr"), strict=True))
    return Iberia(observed, reanalysis, skill.load_iberia(data).config)


# --- baselines --------------------------------------------------------------------------------------------------------


def ridge(x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float) -> np.ndarray:
    """Regression of each column of ``y`` on all of ``x``, both ``(day, value)``, standardised; 0 or more."""
    spread = x[train].std(axis=0)
    z = (x - x[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)  # always dry: says nothing
    middle = y[train].mean(axis=0)
    weights = np.linalg.solve(z[train].T @ z[train] + penalty * np.eye(x.shape[1]), z[train].T @ (y[train] - middle))
    return np.clip(z @ weights + middle, 0, None)


def baselines(case: Iberia) -> dict[str, xr.DataArray]:
    """The observed days as simple methods predict them, from the training days alone."""
    observed, (train, validation, _) = case.observed, case.split
    mean = observed.isel(time=train).mean("time")
    rain = (case.reanalysis * 86400).clip(min=0)
    edges = {dim: observed[dim].clip(rain[dim].min(), rain[dim].max()) for dim in ("lat", "lon")}
    interpolated = rain.interp(edges).assign_coords(observed.coords).astype("float32")
    wanted = observed.notnull().any("time")
    y = observed.fillna(mean).values[:, wanted]
    x, low = rain.values.reshape(len(rain), -1).astype(float), interpolated.values[:, wanted]

    def as_map(values: np.ndarray) -> xr.DataArray:
        out = xr.full_like(observed, np.nan)
        out.values[:, wanted] = values
        return out

    days, means = low[train] - low[train].mean(axis=0), y[train].mean(axis=0)
    slope = (days * (y[train] - means)).mean(axis=0) / np.where(days.var(axis=0) > 0, days.var(axis=0), np.inf)

    def error(penalty: float) -> float:
        predicted = as_map(ridge(x, y, train, penalty))
        return float(((predicted - observed).isel(time=validation) ** 2).mean())

    best = min((10.0, 30.0, 100.0, 300.0, 1000.0), key=error)
    return {
        "training mean": mean.broadcast_like(observed),
        "interpolated": interpolated,
        "regression of each cell": as_map(np.clip(means + (low - low[train].mean(axis=0)) * slope, 0, None)),
        f"ridge regression on all {x.shape[1]} values": as_map(ridge(x, y, train, best)),
    }


# --- stacks -----------------------------------------------------------------------------------------------------------


def stacks(case: Iberia, tried: Try, seeds: int, steps: int | None) -> tuple[xr.Dataset, list[xdeepsd.StackedSRCNN]]:
    """The input, and a stack for each seed of the first stage; the others learn from observations, and are the same."""
    levels = case.levels(tried.factors)
    config = case.config if steps is None else dataclasses.replace(case.config, steps=steps, validate_every=steps)
    first = dataclasses.replace(config, **tried.first | ({} if steps is None else {"steps": steps}))
    model = xdeepsd.train_stack(levels, [first, *[config] * (len(levels) - 2)], progress=False)
    chosen = for_product(first, levels[0])
    pair = Ladder.of(levels, [chosen]).stage_levels(0, chosen)
    more = [train_stage(*pair, dataclasses.replace(chosen, seed=seed)).stage for seed in range(1, seeds)]
    return levels[0], [model, *(dataclasses.replace(model, stages=[stage, *model.stages[1:]]) for stage in more)]


def measure(
    case: Iberia, tries: Mapping[str, Try], seeds: int, steps: int | None, console: Console, part: str = "test"
) -> pd.DataFrame:
    """Errors on the days of one part: a row for each baseline, each seed of what is tried, and their mean."""
    wanted = getattr(case.split, part)
    fields = baselines(case)
    for name, tried in tries.items():
        coarse, models = stacks(case, tried, seeds, steps)
        cut = {dim: case.observed.sizes[dim] for dim in ("lat", "lon")}  # without what was padded
        found = []
        for seed, model in enumerate(models):
            fine = xdeepsd.downscale(coarse[["precipitation"]], model)["precipitation"]
            fine = fine.isel({dim: slice(size) for dim, size in cut.items()}).assign_coords(case.observed.coords)
            found.append(fine)
            fields[f"{name}, seed {seed}"] = fine
        if seeds > 1:
            fields[f"{name}, mean of {seeds} seeds"] = sum(found[1:], found[0]) / seeds
        console.print(models[0], highlight=False)
    truth = case.observed.isel(time=wanted)
    return compare({name: da.isel(time=wanted) for name, da in fields.items()}, truth)


def measure_members(case: Iberia, seeds: int, count: int, steps: int | None, part: str) -> dict[str, float]:
    """`xdeepsd.spread_skill` of members drawn from chances, ``count`` of each seed, and the 99th percentiles."""
    days = getattr(case.split, part)
    levels = case.levels((4,))
    found = []
    for seed in range(seeds):
        given = CHANCES | {"seed": seed} | ({} if steps is None else {"steps": steps, "validate_every": steps})
        model = xdeepsd.train_stack(levels, dataclasses.replace(case.config, **given), progress=False)
        chances = xdeepsd.distribution(levels[0][["precipitation"]].isel(time=days), model)
        drawn = xdeepsd.sample(chances, count, seed=seed)
        drawn = drawn["precipitation"] if isinstance(drawn, xr.Dataset) else drawn
        found.append(drawn.isel({dim: slice(case.observed.sizes[dim]) for dim in ("lat", "lon")}))
    truth = case.observed.isel(time=days)
    members = xr.concat(found, "member").assign_coords(truth.coords).assign_coords(member=np.arange(seeds * count))
    heavy = {"p99": members.where(truth.notnull()).quantile(0.99), "p99 observed": truth.quantile(0.99)}
    return xdeepsd.spread_skill(members, truth) | {name: float(value) for name, value in heavy.items()}


def show(table: pd.DataFrame, console: Console, part: str) -> None:
    """Print the errors, and the RMSE relative to the ridge regression."""
    ridge_rmse = table["rmse"][table.index.str.startswith("ridge")].iloc[0]
    shown = Table(title=f"Iberia, {part} days, mm day-1", title_justify="left")
    for head in ("", "RMSE", "of the ridge regression", "MAE", "bias", "correlation"):
        shown.add_column(head, justify="right" if head else "left", overflow="fold")
    for name, row in table.iterrows():
        shown.add_row(
            str(name), f"{row['rmse']:.3f}", f"{row['rmse'] / ridge_rmse:.3f}",
            *(f"{row[column]:.3f}" for column in ("mae", "bias", "correlation")),
        )  # fmt: skip
    console.print(shown)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "../shared/data"))
    arguments.add_argument("--data", type=Path, default=default, help="folder of iberia/")
    arguments.add_argument("--out", type=Path, default=Path("reanalysis"), help="folder for the table")
    arguments.add_argument("--tries", nargs="*", choices=TRIES, default=[RECOMMENDED], help="what is trained")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--steps", type=int, help="other training steps than those of what is tried")
    arguments.add_argument("--members", type=int, default=0, help="members drawn for each seed, from chances")
    arguments.add_argument("--part", choices=("validation", "test"), default="test", help="days that are judged")
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    started = time.perf_counter()
    tries = {name: TRIES[name] for name in chosen.tries}
    case = load(chosen.data)
    table = measure(case, tries, chosen.seeds, chosen.steps, console, chosen.part)
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.rename_axis("method").to_csv(chosen.out / "errors.csv")
    show(table, console, chosen.part)
    if chosen.members:
        found = measure_members(case, chosen.seeds, chosen.members, chosen.steps, chosen.part)
        console.print(f"{chosen.members * chosen.seeds} members, {chosen.part} days, mm day-1:", highlight=False)
        console.print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
