"""Many trainings at many alpha and seeds, their errors by bins, and what alpha is best: the DenseLoss experiment.

Steininger et al. (Machine Learning 2021, section 5.3), with alpha chosen on validation days and the test days looked at
once.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from xdeepsd.evaluation.errors import BINS, bin_edges, bin_errors
from xdeepsd.evaluation.plot import plot_sweep
from xdeepsd.evaluation.significance import significance
from xdeepsd.grids.interpolate import interpolate
from xdeepsd.inference.downscale import downscale
from xdeepsd.levels.days import name_days
from xdeepsd.levels.pairs import chunk_edges
from xdeepsd.models.files import load_model, save_model
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.training.checkpoints import remove_checkpoints
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.stack import Levels, open_ladder, train_stacks

logger = logging.getLogger(__name__)

CHOICES = ("bins", "rarest", "all")
BASELINE = "bilinear"
_TABLE, _ABOUT, _FIGURE = "sweep.parquet", "sweep.json", "sweep.png"
# Of a configuration: what the sweep sets, and what changes the speed only.
_FREE = ("alpha", "seed", "loss", "device", "workers", "threads", "checkpoint_every", "tensorboard")


def parse_alphas(text: str) -> list[float]:
    """Alphas of ``start:stop:step``, both ends included, or of a list with commas.

    >>> parse_alphas("0:1:0.25")
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> parse_alphas("0,2")
    [0.0, 2.0]

    Raises ValueError where it is neither, or a number is below 0.
    """
    message = f"alpha is {text!r}. Needed: start:stop:step such as 0:4:0.2, or a list such as 0,0.5,1; none below 0."
    try:
        parts = [Decimal(part) for part in text.replace(":", ",").split(",")]
    except InvalidOperation:
        raise ValueError(message) from None
    if ":" in text:
        if len(parts) != 3 or not all(p.is_finite() for p in parts) or parts[2] <= 0 or parts[1] < parts[0]:
            raise ValueError(message)
        # Decimals, so that 0:4:0.2 holds 0.6 and not 0.6000000000000001.
        parts = [parts[0] + i * parts[2] for i in range(int((parts[1] - parts[0]) / parts[2]) + 1)]
    if not all(part.is_finite() and part >= 0 for part in parts):
        raise ValueError(message)
    return [float(part) for part in parts]


def run_sweep(
    levels: Sequence[xr.Dataset],
    config: TrainConfig | Sequence[TrainConfig],
    alphas: Sequence[float],
    seeds: int | Sequence[int],
    folder: str | os.PathLike[str],
    *,
    client: Any = None,
    choose: str = "bins",
    bins: int = BINS,
) -> pd.DataFrame:
    """Train a stack with DenseLoss for every alpha and seed, and compare the errors by bins of the observed value.

    Restartable: runs whose errors are in ``folder`` are not done again, interrupted ones go on from their checkpoints.
    More alphas or seeds may be asked for later.

    Parameters
    ----------
    levels
        The ladder, coarsest first (two levels sweep a single stage).
    config
        `TrainConfig`, or one for each stage, with validation and test days; its alpha, seed and loss are set here.
    alphas
        Values of alpha; 0, the reference, is added if it is not among them.
    seeds
        Number of runs of each alpha (seeds 0, 1, ...), or the seeds.
    folder
        For the runs, the table ``sweep.parquet`` and the figure ``sweep.png``.
    client
        A `distributed.Client`: all stages of all runs are futures at once. None: one after the other.
    choose
        What alpha is chosen by, over all seeds on the validation days: "bins" (the mean over the bins of the RMSE
        relative to alpha 0), "rarest" (the RMSE in the rarest bin) or "all" (the RMSE over all cells).
    bins
        Bins of equal width over the range of the observed values of the days that are evaluated.

    Returns
    -------
    The table, as written: a row for each ``part`` ("validation", "test"), ``name`` ("model", or "bilinear" for
    interpolation), ``alpha``, ``seed`` and bin, with ``rank`` (1 = rarest, 0 = all cells), ``low``, ``high``,
    ``count``, ``rmse``, ``mae`` (units of the precipitation) and ``chosen`` (True for the chosen alpha). Test rows are
    there for the chosen alpha and alpha 0 only: the test days are looked at once, after the choice.

    Raises
    ------
    ValueError
        No validation or test days, or none with an observation; another configuration or other precipitation in
        ``folder`` (it says what differs); an unknown choice.
    """
    configs = [config] * (len(levels) - 1) if isinstance(config, TrainConfig) else list(config)
    alphas = sorted({0.0, *map(float, alphas)})
    seeds = list(range(seeds)) if isinstance(seeds, int) else sorted(set(seeds))
    if choose not in CHOICES:
        raise ValueError(f"choose is {choose!r}. Needed: one of {', '.join(map(repr, CHOICES))}.")
    if not (np.isfinite(alphas).all() and min(alphas) >= 0) or not seeds:
        raise ValueError(f"alphas are {alphas}, seeds {seeds}. Needed: alphas of 0 or more, and one seed or more.")
    split = configs[-1].split(levels[-1]["time"])
    for name in ("validation", "test"):
        if not len(getattr(split, name)):
            raise ValueError(
                f"The configuration names no {name} days. Needed: alpha is chosen on validation days and reported on "
                f"test days. Give both, such as validation = [2004, 2005] and test = [2006] under [training]."
            )
    # Before hours of training: days on which no error can be known end it here.
    between = pd.concat(
        [
            _interpolation(levels, days, part, bins).assign(part=part, alpha=np.nan, seed=-1)
            for part, days in (("validation", split.validation), ("test", split.test))
        ]
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, levels, configs, bins)

    wanted = [(alpha, seed) for seed in seeds for alpha in alphas]
    missing = [run for run in wanted if not (_place(folder, *run) / "validation.parquet").exists()]
    if len(missing) < len(wanted):
        logger.info("%d of %d runs are done already.", len(wanted) - len(missing), len(wanted))
    plans = [
        [dataclasses.replace(c, loss="denseloss", alpha=alpha, seed=seed) for c in configs] for alpha, seed in missing
    ]
    places = [_place(folder, *run) for run in missing]
    if missing:
        # On a cluster a run is evaluated where it was trained, on the one core that the task has.
        scheduler = None if client is None else "synchronous"
        stacks = train_stacks(
            levels, plans, client=client, checkpoint_dirs=[place / "checkpoints" for place in places], resume=True,
            progress=False, then=partial(_with_errors, days=split.validation, bins=bins, scheduler=scheduler),
        )  # fmt: skip
        began = time.monotonic()
        for done, (i, (model, rows)) in enumerate(stacks, start=1):
            save_model(model, places[i] / "model", overwrite=True)
            _write(rows, places[i] / "validation.parquet")
            remove_checkpoints(places[i] / "checkpoints")
            left = datetime.timedelta(seconds=round((time.monotonic() - began) / done * (len(missing) - done)))
            logger.info("alpha %g, seed %d: %d of %d, about %s left", *missing[i], done, len(missing), left)

    validation = _gather(folder, wanted, "validation")
    best = choose_alpha(validation, choose)
    tested = sorted({0.0, best})
    logger.info("Chosen on the validation days: alpha %g.", best)
    looked_at = {path.parent.name for path in folder.glob("runs/*/test.parquet")}
    for run in [(alpha, seed) for alpha in tested for seed in seeds]:
        path = _place(folder, *run) / "test.parquet"
        if not path.exists():
            _write(_evaluate(levels, split.test, {"model": load_model(path.parent / "model")}, bins), path)
    before = {name for name in looked_at if not any(name.startswith(f"alpha-{alpha:g}-seed-") for alpha in tested)}
    if before:
        logger.warning(
            "The test days were looked at before, at another choice of alpha (%s): what they say of alpha %g is no "
            "longer independent of the choice.", ", ".join(sorted(before)), best,
        )  # fmt: skip
    test = _gather(folder, [(alpha, seed) for alpha in tested for seed in seeds], "test")
    table = pd.concat([validation, test, between], ignore_index=True)
    table = table[["part", "name", "alpha", "seed", "rank", "low", "high", "count", "rmse", "mae"]]
    table["chosen"] = table["alpha"] == best
    _write(table, folder / _TABLE)
    figure = plot_sweep(summarize(table), best)
    figure.savefig(folder / _FIGURE, dpi=130)
    return table


def _place(folder: Path, alpha: float, seed: int) -> Path:
    return folder / "runs" / f"alpha-{alpha:g}-seed-{seed}"


def _write(content: pd.DataFrame | str, path: Path) -> None:
    """A table or a text, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        content.to_parquet(temporary)
    temporary.replace(path)


def _gather(folder: Path, runs: Sequence[tuple[float, int]], part: str) -> pd.DataFrame:
    return pd.concat(
        [
            pd.read_parquet(_place(folder, alpha, seed) / f"{part}.parquet").assign(part=part, alpha=alpha, seed=seed)
            for alpha, seed in runs
        ],
        ignore_index=True,
    )


def _with_errors(
    levels: Levels, model: StackedSRCNN, days: np.ndarray, bins: int, scheduler: str | None
) -> tuple[StackedSRCNN, pd.DataFrame]:
    return model, _evaluate(open_ladder(levels), days, {"model": model}, bins, scheduler)


def _evaluate(
    levels: Sequence[xr.Dataset],
    days: np.ndarray,
    models: dict[str, StackedSRCNN],
    bins: int,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Rows of `bin_errors` of the models on some days, or of interpolation where there is none."""
    coarse, truth, between = _fields(levels, days)
    fields = {
        name: downscale(coarse, model)["precipitation"].assign_coords(truth.coords) for name, model in models.items()
    }
    edges = bin_edges(truth, bins, scheduler=scheduler)
    return bin_errors(fields or {BASELINE: between}, truth, edges=list(edges), scheduler=scheduler)


def _fields(levels: Sequence[xr.Dataset], days: np.ndarray) -> tuple[xr.Dataset, xr.DataArray, xr.DataArray]:
    """The coarsest level on some days, what was observed of the finest (NaN where not wanted), and interpolation."""
    coarse, truth = levels[0][["precipitation"]].isel(time=days), levels[-1]["precipitation"].isel(time=days)
    if "mask" in levels[-1]:
        truth = truth.where(levels[-1]["mask"])
    between = interpolate(coarse["precipitation"], truth)
    return coarse, truth.where(between.notnull()), between


def _interpolation(levels: Sequence[xr.Dataset], days: np.ndarray, part: str, bins: int) -> pd.DataFrame:
    """Rows of interpolation. ValueError where none of the days has an observation, or all values are the same."""
    truth = _fields(levels, days)[1]
    there = truth.notnull().any(("lat", "lon")).values
    empty = name_days(truth["time"].to_index()[~there])
    if not there.any():
        raise ValueError(
            f"None of the {len(days)} {part} days has an observed cell inside the mask: {empty}. Needed: days with "
            f"observations, or nothing is known of the error. Give other {part} days under [training]."
        )
    if empty:
        logger.warning("Some %s days have no observed cell inside the mask and count nothing: %s.", part, empty)
    return _evaluate(levels, days, {}, bins)


def _digest(da: xr.DataArray) -> int:
    """Checksum of all values, read a chunk of days at a time."""
    da, found = da.transpose("time", "lat", "lon"), 0
    for first, last in pairwise(chunk_edges(da)):
        found = zlib.crc32(np.ascontiguousarray(da.isel(time=slice(first, last)).values, np.float32).data, found)
    return found


def _check_same(folder: Path, levels: Sequence[xr.Dataset], configs: Sequence[TrainConfig], bins: int) -> None:
    """Raise ValueError where the folder holds runs of another configuration or other data."""
    days = levels[-1]["time"].values
    now = {
        "stages": [{k: v for k, v in dataclasses.asdict(c).items() if k not in _FREE} for c in configs],
        "bins": bins,
        "levels": [[int(level.sizes[dim]) for dim in ("time", "lat", "lon")] for level in levels],
        "days": [str(days[0])[:10], str(days[-1])[:10]],
        "precipitation": [_digest(level["precipitation"]) for level in levels],
    }
    now = json.loads(json.dumps(now))
    path = folder / _ABOUT
    if not path.exists():
        others = [name for name in (_TABLE, _FIGURE, "runs") if (folder / name).exists()]
        if others:
            raise FileExistsError(
                f"{folder} holds {others}, and no sweep says that they are its own. They are left alone: give another "
                "folder ([paths] sweep)."
            )
        _write(json.dumps(now, indent=2) + "\n", path)
        return
    then = json.loads(path.read_text())
    different = [
        f"{key} was {then.get(key)}, is {now[key]}" for key in ("bins", "levels", "days") if now[key] != then.get(key)
    ]
    if now["precipitation"] != then.get("precipitation", now["precipitation"]):
        different.append("the precipitation of the same days was another one")
    for i, (old, new) in enumerate(zip(then["stages"], now["stages"], strict=False)):
        different += [
            f"{key} of stage {i} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    if len(then["stages"]) != len(now["stages"]):
        different.append(f"there were {len(then['stages'])} stages, there are {len(now['stages'])}")
    if different:
        raise ValueError(
            f"{folder} holds the runs of another configuration: {'; '.join(different)}. Needed: the same, to go on. "
            "Give another folder ([paths] sweep) to start anew."
        )


def choose_alpha(validation: pd.DataFrame, choose: str = "bins") -> float:
    """The alpha of the least error on the validation days, mean over the seeds (`run_sweep` says which error)."""
    mean = validation.groupby(["alpha", "rank"])["rmse"].mean().unstack("rank")
    relative = mean / mean.loc[0.0]
    score = {"all": relative[0], "rarest": relative[1], "bins": relative.drop(columns=0).mean(axis=1)}[choose]
    return float(score.index[int(score.argmin())])


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Each alpha against alpha 0 in each bin: a row for each part, alpha, rank and error ("rmse", "mae").

    ``value`` is the mean over the seeds; ``relative``, ``p_mannwhitney``, ``p_wilcoxon`` as
    `xdeepsd.evaluation.errors.significance`; ``interpolation`` the error of bilinear interpolation there.
    """
    models, between = table[table["name"] == "model"], table[table["name"] == BASELINE]
    rows = []
    for (part, alpha, rank), runs in models.groupby(["part", "alpha", "rank"]):
        reference = models[(models["part"] == part) & (models["alpha"] == 0) & (models["rank"] == rank)]
        runs, reference = runs.sort_values("seed"), reference.sort_values("seed")
        beside = between[(between["part"] == part) & (between["rank"] == rank)].iloc[0]
        first = runs.iloc[0]
        for error in ("rmse", "mae"):
            rows.append(
                {
                    "part": part, "alpha": alpha, "rank": rank, "error": error, "value": runs[error].mean(),
                    **significance(runs[error].to_numpy(), reference[error].to_numpy()),
                    "interpolation": float(beside[error]),
                    "low": first["low"], "high": first["high"], "count": first["count"], "chosen": first["chosen"],
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def report(table: pd.DataFrame, folder: str | os.PathLike[str], choose: str, console: Console) -> None:
    """Print what was chosen, and the test days: alpha 0, the chosen alpha and interpolation, bin by bin."""
    summary = summarize(table)
    seeds = table.loc[table["name"] == "model", "seed"].nunique()
    best = float(table.loc[table["chosen"], "alpha"].iloc[0])
    by = {"bins": "the mean over the bins of the RMSE relative to alpha 0", "rarest": "the RMSE in the rarest bin",
          "all": "the RMSE over all cells"}[choose]  # fmt: skip
    console.print(f"Chosen on the validation days by {by}, over {seeds} seeds: alpha {best:g}")
    for error in ("rmse", "mae"):
        # Narrow enough for a terminal of 80 columns: a cut number is none.
        shown = Table(
            title=f"{error.upper()} on the test days, mean of {seeds} seeds", title_justify="left", box=SIMPLE_HEAD,
            padding=0,
        )  # fmt: skip
        for head in ("rank", "range", "values", "bilinear", "alpha 0", f"alpha {best:g}", "change", "p of U", "p of W"):
            shown.add_column(head, justify="right", no_wrap=True)
        rows = summary[(summary["part"] == "test") & (summary["error"] == error)]
        for rank in [*sorted(set(rows["rank"]) - {0}), 0]:
            zero = rows[(rows["rank"] == rank) & (rows["alpha"] == 0)].iloc[0]
            ours = rows[(rows["rank"] == rank) & (rows["alpha"] == best)].iloc[0]
            shown.add_row(
                str(rank) if rank else "all", f"{ours['low']:.3g} to {ours['high']:.3g}", f"{ours['count']:,}",
                *(f"{value:#.3g}" for value in (ours["interpolation"], zero["value"], ours["value"])),
                f"{ours['relative'] - 1:+.1%}", _p(ours["p_mannwhitney"]), _p(ours["p_wilcoxon"]),
            )  # fmt: skip
        console.print(shown)
    console.print("Rank 1 is the rarest bin. p of U: Mann-Whitney; p of W: Wilcoxon, pairs of the same seed.")
    test = summary[(summary["part"] == "test") & (summary["error"] == "rmse") & (summary["alpha"] == best)]
    test = test.set_index("rank")
    if best == 0:
        console.print("No alpha above 0 is better on the validation days: the plain MSE (alpha 0) stays.")
    else:
        change, p = test["relative"] - 1, float(test["p_wilcoxon"][1])
        sure = p <= 0.05 and change[1] < 0
        console.print(
            f"In the rarest bin alpha {best:g} {'lowers' if sure else 'does not lower beyond chance'} the RMSE "
            f"({change[1]:+.1%}, p = {_p(p)}); in the most common bin it is {change.iloc[-1]:+.1%}, over all cells "
            f"{change[0]:+.1%}."
        )
    worse = test[test["value"] >= test["interpolation"]]
    if len(worse):
        console.print(
            "[bold red]Not better than interpolation[/] in "
            + ", ".join("all cells together" if rank == 0 else f"the bin of rank {rank}" for rank in worse.index)
        )
    console.print(f"{Path(folder) / _TABLE}, {Path(folder) / _FIGURE}", markup=False)


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
