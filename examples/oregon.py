"""Nine months of gridMET over Oregon: `TrainConfig()` ("default") and `TrainConfig.paper()` ("paper") as x2, x2-x2,
x2-x2-x2 and a single x4, beside the baselines.

    python examples/oregon.py --data FOLDER                 # the table, under 15 minutes on two cores
    python examples/oregon.py --data FOLDER --denseloss     # MSE against DenseLoss, bin by bin, ten seeds each: an hour

FOLDER holds gridMET's daily precipitation over Oregon for January to September 2000 (pr_2000_jan_sep.nc) and its
elevation (metdata_elevationdata.nc). August and September are held out; the validation days are the last week of
January, March, May and July. With ``--further FILE`` these nine months are all used for training and validation, and
the test days are those in FILE (on the same grid).

"paper" calls for 100,000 steps of 200 patches at a rate of 1e-4, which takes days on two cores. Here it gets the steps,
batch and schedule of "default" and a rate of 1e-3; the network, static fields and loss are the paper's.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

import xdeepsd
from xdeepsd.evaluation.baselines import baselines
from xdeepsd.evaluation.errors import bin_errors, compare
from xdeepsd.evaluation.significance import significance
from xdeepsd.training.stack import train_stacks

TEST = ("2000-08", "2000-09")
VALIDATION = ("2000-01-25/2000-01-31", "2000-03-25/2000-03-31", "2000-05-25/2000-05-31", "2000-07-25/2000-07-31")
STACKS = {"x2": (2,), "x2-x2": (2, 2), "x2-x2-x2": (2, 2, 2), "x4": (4,)}

# What --denseloss compares: by name, the changes to a configuration that is otherwise the same.
LOSSES = {
    "MSE": {},
    "DenseLoss alpha=0.5": {"loss": "denseloss", "alpha": 0.5},
    "DenseLoss alpha=1": {"loss": "denseloss", "alpha": 1.0},
    "DenseLoss alpha=2": {"loss": "denseloss", "alpha": 2.0},
    "alpha=0.5, log1p": {"loss": "denseloss", "alpha": 0.5, "density_transform": "log1p"},
    "alpha=1, log1p": {"loss": "denseloss", "alpha": 1.0, "density_transform": "log1p"},
    "alpha=1, wet > 0.1": {"loss": "denseloss", "alpha": 1.0, "wet_threshold": 0.1},
    "alpha=1, wet > 0.1, log1p": {
        "loss": "denseloss", "alpha": 1.0, "wet_threshold": 0.1, "density_transform": "log1p",
    },
}  # fmt: skip


def read(data: Path, further: Path | None) -> tuple[xr.DataArray, xr.DataArray, tuple[str, ...]]:
    """Daily precipitation, elevation and the test days."""
    files, test = [data / "pr_2000_jan_sep.nc"], TEST
    if further is not None:
        files.append(further)
    days = [xr.open_dataset(file)["precipitation_amount"].load() for file in files]
    if further is not None:
        dates = pd.DatetimeIndex(days[1]["day"].values)
        test = (f"{dates[0]:%Y-%m-%d}/{dates[-1]:%Y-%m-%d}",)
        days[1] = days[1].assign_coords(lat=days[0]["lat"], lon=days[0]["lon"])
    rain = xr.concat(days, "day").astype("float32").assign_attrs(days[0].attrs)
    elevation = xr.open_dataset(data / "metdata_elevationdata.nc")["elevation"]
    return rain, elevation, test


def presets(test: tuple[str, ...], steps: int, seed: int) -> dict[str, xdeepsd.TrainConfig]:
    """Both configurations on the same days and with the same budget."""
    default = xdeepsd.TrainConfig(validation=VALIDATION, test=test, seed=seed, threads=1, steps=steps)
    paper = xdeepsd.TrainConfig.paper(
        validation=VALIDATION, test=test, seed=seed, threads=1, steps=steps, batch=default.batch,
        schedule=default.schedule, learning_rate=1e-3,
    )  # fmt: skip
    return {"paper": paper, "default": default}


def compare_stacks(data: Path, further: Path | None, steps: int, seed: int, console: Console) -> pd.DataFrame:
    """Errors on the test days, one row per stack and method (RMSE, MAE and bias in mm day-1; correlation)."""
    rain, elevation, test = read(data, further)
    configs = presets(test, steps, seed)
    split = configs["default"].split(rain["day"])
    ladders = {factors: load(rain, elevation, factors) for factors in ((2, 2, 2), (4,))}
    models: dict[tuple[str, tuple[int, ...]], xdeepsd.StackedSRCNN] = {}
    with xdeepsd.cluster("local", workers=2) as client:
        for factors, levels in ladders.items():
            for number, model in train_stacks(levels, list(configs.values()), client=client, progress=False):
                models[list(configs)[number], factors] = model
                console.print(f"trained: {list(configs)[number]}, {'-'.join(f'x{f}' for f in factors)}")

    tables = {}
    for name, factors in STACKS.items():
        whole = (4,) if factors == (4,) else (2, 2, 2)
        levels = ladders[whole]
        coarse, truth = levels[-1 - len(factors)], levels[-1]["precipitation"]
        past = levels[-1]["precipitation"].isel(time=split.train), coarse["precipitation"].isel(time=split.train)
        held_out = coarse[["precipitation"]].isel(time=split.test)
        truth = truth.isel(time=split.test)
        fields = baselines(held_out["precipitation"], truth, past=past)
        for preset in configs:
            # The stages are trained independently, so the last ones of the longest stack make up the shorter stacks.
            model = models[preset, whole]
            model = dataclasses.replace(model, stages=model.stages[-len(factors) :])
            fields[f"{preset} preset"] = xdeepsd.downscale(held_out, model)["precipitation"].assign_coords(truth.coords)
        tables[name] = compare(fields, truth)
    return pd.concat(tables, names=["stack", "method"])


def load(rain: xr.DataArray, elevation: xr.DataArray, factors: tuple[int, ...]) -> list[xr.Dataset]:
    """The ladder in memory (the whole year takes 12 MB), without climatology: training takes the mean of its days."""
    return [level.load() for level in xdeepsd.make_levels(rain, elevation, factors)]


def show_stacks(table: pd.DataFrame, console: Console) -> bool:
    """Print the table; True if the default preset beats every baseline at x2 and x4."""
    for stack, rows in table.groupby("stack", sort=False):
        shown = Table(title=f"{stack}, test days", title_justify="left")
        shown.add_column("")
        for column in ("RMSE", "MAE", "bias", "correlation"):
            shown.add_column(column, justify="right")
        for (_, method), row in rows.iterrows():
            shown.add_row(method, *(f"{row[c.lower()]:.3f}" for c in ("RMSE", "MAE", "bias", "correlation")))
        console.print(shown)
    rmse = table["rmse"].unstack("method")
    others = [name for name in rmse if not name.endswith("preset")]
    beaten = rmse["default preset"] < rmse[others].min(axis=1)
    for stack, won in beaten.items():
        best = rmse.loc[stack, others].idxmin()
        change = rmse.loc[stack, "default preset"] / rmse.loc[stack, best] - 1
        says = "beats" if won else "[bold red]does not beat[/]"
        console.print(f"{stack}: the default preset {says} the best baseline ({best}): {change:+.1%}")
    return bool(beaten[["x2", "x4"]].all())


def compare_losses(
    data: Path, steps: int, seeds: int, out: Path, console: Console
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Errors by bin of the default network at x2, trained with each loss and each seed.

    Runs whose rows are already in ``out`` are not repeated.
    """
    rain, elevation, test = read(data, None)
    levels = load(rain, elevation, (2,))
    # Without the square root, which gives heavy rain less weight: just what DenseLoss is meant to undo.
    base = dataclasses.replace(
        presets(test, steps, 0)["default"], validate_every=steps, target_transform=None, conserve=None
    )
    split = base.split(rain["day"])
    done = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=["name", "seed"])
    wanted = [
        (name, seed)
        for seed in range(seeds)
        for name in LOSSES
        if not ((done["name"] == name) & (done["seed"] == seed)).any()
    ]
    configs = [dataclasses.replace(base, seed=seed, **LOSSES[name]) for name, seed in wanted]
    with xdeepsd.cluster("local", workers=2) as client:
        for i, model in train_stacks(levels, configs, client=client, progress=False) if configs else ():
            name, seed = wanted[i]
            for part, days in (("validation", split.validation), ("test", split.test)):
                coarse, truth = (level.isel(time=days) for level in levels)
                predicted = xdeepsd.downscale(coarse[["precipitation"]], model)["precipitation"]
                rows = bin_errors({name: predicted.assign_coords(truth.coords)}, truth["precipitation"])
                done = pd.concat(
                    [done, rows.assign(seed=seed, part=part)] if len(done) else [rows.assign(seed=seed, part=part)]
                )
            out.parent.mkdir(parents=True, exist_ok=True)
            done.to_parquet(out.with_suffix(".new"))
            out.with_suffix(".new").replace(out)
            console.print(f"{name}, seed {seed}: {i + 1} of {len(wanted)}", highlight=False)
    done = done[done["seed"] < seeds]
    return done, summarize(done)


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean error of each loss in each bin, relative to MSE, and whether the two differ (Wilcoxon over the seeds)."""
    rows = []
    for (part, rank, name), run in runs.groupby(["part", "rank", "name"]):
        mse = runs[(runs["part"] == part) & (runs["rank"] == rank) & (runs["name"] == "MSE")].set_index("seed")
        run = run.set_index("seed").loc[mse.index]
        for error in ("rmse", "mae"):
            test = significance(run[error], mse[error])
            rows.append(
                {"part": part, "rank": rank, "name": name, "error": error, "value": run[error].mean(), **test}
                | {"low": run["low"].iloc[0], "high": run["high"].iloc[0], "count": run["count"].iloc[0]}
            )
    return pd.DataFrame(rows)


def show_losses(table: pd.DataFrame, seeds: int, console: Console) -> None:
    """Print errors by bin and what they mean."""
    for part in ("validation", "test"):
        for error in ("rmse", "mae"):
            rows = table[(table["part"] == part) & (table["error"] == error)]
            ranks = [*sorted(set(rows["rank"]) - {0}), 0]
            shown = Table(
                title=f"{error.upper()} on the {part} days, mean of {seeds} seeds (mm day-1)", title_justify="left"
            )
            shown.add_column("", overflow="fold")
            for rank in ranks:
                bin_ = rows[rows["rank"] == rank].iloc[0]
                span = f"{bin_['low']:.1f} to {bin_['high']:.1f} mm"
                head = f"rank {rank}\n{span}" if rank else f"all\n{span}"
                shown.add_column(f"{head}\nn = {bin_['count']:,}", justify="right", overflow="fold")
            for name in LOSSES:
                cells = []
                for rank in ranks:
                    row = rows[(rows["rank"] == rank) & (rows["name"] == name)].iloc[0]
                    change = (
                        ""
                        if name == "MSE"
                        else f" ({row['relative'] - 1:+.1%}{'*' if row['p_wilcoxon'] <= 0.05 else ''})"
                    )
                    cells.append(f"{row['value']:.3f}{change}")
                shown.add_row(name, *cells)
            console.print(shown)
    console.print("In brackets: against MSE; * Wilcoxon over the seeds, two-sided, p <= 0.05.", highlight=False)
    console.print(verdict(table), highlight=False)


def verdict(table: pd.DataFrame) -> str:
    """Which loss, if any, lowers the error in the rarest bin, and at what cost; chosen on the validation days."""
    losses = [name for name in LOSSES if name != "MSE"]
    rmse = table[table["error"] == "rmse"].set_index(["part", "name", "rank"]).sort_index()
    rows, p = rmse["relative"], rmse["p_wilcoxon"]
    common = int(table["rank"].max())

    def cost(name: str) -> str:
        test = rows["test", name]
        return f"{test[common] - 1:+.1%} in the most common bin and {test[0] - 1:+.1%} over all cells"

    chosen = min(losses, key=lambda name: rows["validation", name, 1])
    lines = ["On the validation days no DenseLoss has a lower RMSE than MSE in the rarest bin."]
    if rows["validation", chosen, 1] < 1:
        lines = [
            f"Chosen on the validation days, for the least RMSE in the rarest bin: {chosen}. On the test days its RMSE "
            f"is {rows['test', chosen, 1] - 1:+.1%} in the rarest bin (p = {p['test', chosen, 1]:.3f}), {cost(chosen)}."
        ]
    # Several losses are compared with MSE at once, hence Bonferroni.
    for part in ("validation", "test"):
        better = [n for n in losses if rows[part, n, 1] < 1 and len(losses) * p[part, n, 1] <= 0.05]
        lines.append(
            f"Lower than MSE in the rarest bin of the {part} days beyond chance (p <= 0.05 after Bonferroni): "
            + (", ".join(f"{n} ({rows[part, n, 1] - 1:+.1%})" for n in better) or "none")
            + "."
        )
    return "\n".join(lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDEEPSD_DATA", "data")) / "gridmet_oregon"
    arguments.add_argument("--data", type=Path, default=default, help="folder of the two files")
    arguments.add_argument("--out", type=Path, default=Path("oregon"), help="folder for the tables")
    arguments.add_argument("--further", type=Path, help="NetCDF of further days: test on these, train on the others")
    arguments.add_argument("--steps", type=int, default=2000, help="training steps")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--denseloss", action="store_true", help="compare losses bin by bin instead")
    arguments.add_argument("--seeds", type=int, default=10, help="seeds of --denseloss")
    chosen = arguments.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # for a file, rich would assume 80
    started, burned = time.perf_counter(), os.times()
    chosen.out.mkdir(parents=True, exist_ok=True)
    won = True
    if chosen.denseloss:
        _, table = compare_losses(
            chosen.data, chosen.steps, chosen.seeds, chosen.out / f"denseloss_{chosen.steps}_steps.parquet", console
        )
        table.to_csv(chosen.out / "denseloss.csv", index=False)
        show_losses(table, chosen.seeds, console)
    else:
        table = compare_stacks(chosen.data, chosen.further, chosen.steps, chosen.seed, console)
        table.to_csv(chosen.out / "stacks.csv")
        won = show_stacks(table, console)
    now = os.times()
    used = sum(now[:4]) - sum(burned[:4])
    console.print(f"{time.perf_counter() - started:.0f} s, {used:.0f} s of processor time", highlight=False)
    return 0 if won or chosen.steps < 500 else 1


if __name__ == "__main__":
    raise SystemExit(main())
