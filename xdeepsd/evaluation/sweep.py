"""Training runs for many alphas and seeds, their errors by bins, and the best alpha: the DenseLoss experiment.

Steininger et al. (Machine Learning 2021, section 5.3), with alpha chosen on the validation days, and the test days
looked at once.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import logging
import os
import time
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xdeepsd.evaluation.errors import BINS, bin_edges, bin_errors
from xdeepsd.evaluation.plot.curves import sweep as plot_sweep
from xdeepsd.evaluation.significance import significance
from xdeepsd.grids.interpolate import interpolate
from xdeepsd.inference.downscale import downscale
from xdeepsd.levels.days import name_days
from xdeepsd.levels.pairs import chunk_edges
from xdeepsd.levels.splits import Split
from xdeepsd.models.files import load_model, save_model
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.stores.begun import changed_fields
from xdeepsd.stores.whole import write_whole
from xdeepsd.training.checkpoints import remove_checkpoints
from xdeepsd.training.config import FREE, LATER, TrainConfig
from xdeepsd.training.ladder import Levels, check_levels
from xdeepsd.training.stack import train_stacks

logger = logging.getLogger(__name__)

CHOICES = ("bins", "rarest", "all")
BASELINE = "bilinear"
TABLE, _ABOUT, FIGURE = "sweep.parquet", "sweep.json", "sweep.png"
# Fields of a configuration that the sweep sets, or that affect only the speed.
_FREE = ("alpha", "seed", "loss", *FREE)


def run_sweep(
    levels: Levels,
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

    Can be restarted: runs whose errors are in ``folder`` are not repeated, interrupted runs continue from their
    checkpoints. More alphas or seeds may be added later.

    Parameters
    ----------
    levels
        Path of a Zarr store written by `build_levels`, or Datasets, coarsest first (two levels: a sweep of a single
        stage).
    config
        `TrainConfig`, or one per stage, with validation and test days; alpha, seed and loss are set by the sweep.
    alphas
        Values of alpha; 0, the reference, is added if missing.
    seeds
        Number of runs for each alpha (seeds 0, 1, ...), or the seeds themselves.
    folder
        Folder for the runs, the table ``sweep.parquet`` and the figure ``sweep.png``.
    client
        A `distributed.Client`: all stages of all runs are submitted at once. None: one after another.
    choose
        How alpha is chosen, over all seeds on the validation days: by "bins" (the mean over the bins of the RMSE
        relative to alpha 0), "rarest" (the RMSE in the rarest bin) or "all" (the RMSE over all cells).
    bins
        Number of equal-width bins over the range of the observed values on the evaluated days.

    Returns
    -------
    The table as written to disk: a row for each ``part`` ("validation", "test"), ``name`` ("model", or "bilinear" for
    interpolation), ``alpha``, ``seed`` and bin, with ``rank`` (1 = rarest, 0 = all cells), ``low``, ``high``,
    ``count``, ``rmse``, ``mae`` (units of the precipitation) and ``chosen`` (True for the chosen alpha). There are
    test rows only for the chosen alpha and alpha 0: the test days are looked at once, after the choice.

    Raises
    ------
    ValueError
        No validation or test days, or none with observations; another configuration or other precipitation in
        ``folder`` (the error says what differs); an unknown ``choose``.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> config = xdeepsd.TrainConfig(validation=0.2, test=0.2, **small)
    >>> table = xdeepsd.run_sweep(levels, config, alphas=[0.0, 0.5], seeds=1, folder="sweep")
    >>> sorted(table["part"].unique())
    ['test', 'validation']
    """
    levels = check_levels(levels)
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
                f"The configuration names no {name} days. Needed: validation days, on which alpha is chosen, and test "
                "days, on which it is reported. Give both, such as validation=[2004, 2005] and test=[2006]."
            )
    # Checked before hours of training: without observations on these days there is no error to choose by.
    between = pd.concat([_interpolation(levels, split, part, bins) for part in ("validation", "test")])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, levels, configs, bins)
    runs = [(alpha, seed) for seed in seeds for alpha in alphas]
    _train_missing(levels, configs, runs, folder, split.validation, bins, client)
    validation = _gather(folder, runs, "validation")
    best = choose_alpha(validation, choose)
    logger.info("Chosen on the validation days: alpha %g.", best)
    test = _test(levels, best, seeds, folder, split.test, bins)
    table = pd.concat([validation, test, between], ignore_index=True)
    table = table[["part", "name", "alpha", "seed", "rank", "low", "high", "count", "rmse", "mae"]]
    table["chosen"] = table["alpha"] == best
    _write(table, folder / TABLE)
    plot_sweep(summarize(table), best).savefig(folder / FIGURE, dpi=130)
    return table


def _train_missing(
    levels: Sequence[xr.Dataset],
    configs: Sequence[TrainConfig],
    runs: Sequence[tuple[float, int]],
    folder: Path,
    days: np.ndarray,
    bins: int,
    client: Any,
) -> None:
    """Train the runs (alpha, seed) whose errors on the validation ``days`` are not in the folder yet."""
    missing = [run for run in runs if not (_place(folder, *run) / "validation.parquet").exists()]
    if len(missing) < len(runs):
        logger.info("%d of %d runs are already done.", len(runs) - len(missing), len(runs))
    if not missing:
        return
    plans = [
        [dataclasses.replace(c, loss="denseloss", alpha=alpha, seed=seed) for c in configs] for alpha, seed in missing
    ]
    places = [_place(folder, *run) for run in missing]
    # On a cluster, a run is evaluated on a worker, on the single core of its task.
    scheduler = None if client is None else "synchronous"
    stacks = train_stacks(
        levels, plans, client=client, checkpoint_dirs=[place / "checkpoints" for place in places], resume=True,
        progress=False, then=partial(_with_errors, days=days, bins=bins, scheduler=scheduler),
    )  # fmt: skip
    began = time.monotonic()
    for done, (i, (model, rows)) in enumerate(stacks, start=1):
        save_model(model, places[i] / "model", overwrite=True)
        _write(rows, places[i] / "validation.parquet")
        remove_checkpoints(places[i] / "checkpoints")
        left = datetime.timedelta(seconds=round((time.monotonic() - began) / done * (len(missing) - done)))
        logger.info("alpha %g, seed %d: %d of %d, about %s left", *missing[i], done, len(missing), left)


def _test(
    levels: Sequence[xr.Dataset], best: float, seeds: Sequence[int], folder: Path, days: np.ndarray, bins: int
) -> pd.DataFrame:
    """Errors of the best alpha and of alpha 0 on the test ``days``; warns if another choice was tested before."""
    runs = [(alpha, seed) for alpha in sorted({0.0, best}) for seed in seeds]
    before = {path.parent.name for path in folder.glob("runs/*/test.parquet")}
    before = {name for name in before if not name.startswith((f"alpha-{best:g}-seed-", "alpha-0-seed-"))}
    for run in runs:
        path = _place(folder, *run) / "test.parquet"
        if not path.exists():
            _write(_evaluate(levels, days, load_model(path.parent / "model"), bins), path)
    if before:
        logger.warning(
            "The test days were looked at before, for another choice of alpha (%s): what they say of alpha %g is no "
            "longer independent of the choice.", ", ".join(sorted(before)), best,
        )  # fmt: skip
    return _gather(folder, runs, "test")


def _place(folder: Path, alpha: float, seed: int) -> Path:
    return folder / "runs" / f"alpha-{alpha:g}-seed-{seed}"


def _write(table: pd.DataFrame, path: Path) -> None:
    content = io.BytesIO()
    table.to_parquet(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _gather(folder: Path, runs: Sequence[tuple[float, int]], part: str) -> pd.DataFrame:
    tables = (
        pd.read_parquet(_place(folder, *run) / f"{part}.parquet").assign(alpha=run[0], seed=run[1]) for run in runs
    )
    return pd.concat(tables, ignore_index=True).assign(part=part)


def _with_errors(
    levels: Sequence[xr.Dataset], model: StackedSRCNN, days: np.ndarray, bins: int, scheduler: str | None
) -> tuple[StackedSRCNN, pd.DataFrame]:
    return model, _evaluate(levels, days, model, bins, scheduler)


def _evaluate(
    levels: Sequence[xr.Dataset], days: np.ndarray, model: StackedSRCNN | None, bins: int, scheduler: str | None = None
) -> pd.DataFrame:
    """Rows of `bin_errors` for a model on some days; None: for interpolation."""
    coarse, truth, between = _fields(levels, days)
    fields = {BASELINE: between}
    if model is not None:
        fields = {"model": downscale(coarse, model)["precipitation"].assign_coords(truth.coords)}
    edges = bin_edges(truth, bins, scheduler=scheduler)
    return bin_errors(fields, truth, edges=list(edges), scheduler=scheduler)


def _fields(levels: Sequence[xr.Dataset], days: np.ndarray) -> tuple[xr.Dataset, xr.DataArray, xr.DataArray]:
    """On some days: the coarsest level, the finest precipitation (NaN where not wanted), and interpolation."""
    coarse, truth = levels[0][["precipitation"]].isel(time=days), levels[-1]["precipitation"].isel(time=days)
    if "mask" in levels[-1]:
        truth = truth.where(levels[-1]["mask"])
    between = interpolate(coarse["precipitation"], truth)
    return coarse, truth.where(between.notnull()), between


def _interpolation(levels: Sequence[xr.Dataset], split: Split, part: str, bins: int) -> pd.DataFrame:
    """Rows for interpolation. ValueError where none of the days has observations, or all values are equal."""
    days = getattr(split, part)
    truth = _fields(levels, days)[1]
    there = truth.notnull().any(("lat", "lon")).values
    empty = name_days(truth["time"].to_index()[~there])
    if not there.any():
        raise ValueError(
            f"None of the {len(days)} {part} days has an observed cell inside the mask: {empty}. Needed: days with "
            f"observations; without them the error is unknown. Give other {part} days."
        )
    if empty:
        logger.warning("Some %s days have no observed cell inside the mask and do not count: %s.", part, empty)
    return _evaluate(levels, days, None, bins).assign(part=part, alpha=np.nan, seed=-1)


def _digest(da: xr.DataArray) -> int:
    """Checksum of all values, read one chunk of days at a time."""
    da, found = da.transpose("time", "lat", "lon"), 0
    for first, last in pairwise(chunk_edges(da)):
        found = zlib.crc32(np.ascontiguousarray(da.isel(time=slice(first, last)).values, np.float32).data, found)
    return found


def _check_same(folder: Path, levels: Sequence[xr.Dataset], configs: Sequence[TrainConfig], bins: int) -> None:
    """Raise ValueError if the folder holds runs with another configuration or other data."""
    days = levels[-1]["time"].values
    now = {
        "stages": [{k: v for k, v in dataclasses.asdict(c).items() if k not in _FREE} for c in configs],
        "bins": bins,
        "levels": [[int(level.sizes[dim]) for dim in ("time", "lat", "lon")] for level in levels],
        "days": [str(days[0])[:10], str(days[-1])[:10]],
        "precipitation": [_digest(level["precipitation"]) for level in levels],
    }
    text = json.dumps(now, indent=2) + "\n"
    path = folder / _ABOUT
    if not path.exists():
        others = [name for name in (TABLE, FIGURE, "runs") if (folder / name).exists()]
        if others:
            raise FileExistsError(
                f"{folder} holds {others}, which no sweep wrote, as there is no {_ABOUT}. They are left alone. Give "
                "another folder."
            )
        write_whole(path, text.encode())
        return
    now, then = json.loads(text), json.loads(path.read_text(encoding="utf-8"))
    different = changed_fields(then, now, free=("precipitation", "stages"))
    if now["precipitation"] != then.get("precipitation", now["precipitation"]):
        different.append("the precipitation of the same days has changed")
    for i, (old, new) in enumerate(zip(then["stages"], now["stages"], strict=False)):
        different += changed_fields(LATER | old, new, of=f" of stage {i}")
    if len(then["stages"]) != len(now["stages"]):
        different.append(f"there were {len(then['stages'])} stages, now there are {len(now['stages'])}")
    if different:
        raise ValueError(
            f"{folder} holds the runs of another configuration: {'; '.join(different)}. Needed: the same, to continue. "
            "Give another folder to start anew."
        )


def choose_alpha(validation: pd.DataFrame, choose: str = "bins") -> float:
    """The alpha with the lowest error on validation days, averaged over the seeds (``choose`` as in `run_sweep`)."""
    mean = validation.groupby(["alpha", "rank"])["rmse"].mean().unstack("rank")
    relative = mean / mean.loc[0.0]
    score = {"all": relative[0], "rarest": relative[1], "bins": relative.drop(columns=0).mean(axis=1)}[choose]
    return float(score.index[int(score.argmin())])


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Each alpha against alpha 0 in each bin: a row for each part, alpha, rank and error ("rmse", "mae").

    ``value`` is the mean over the seeds; ``relative``, ``p_mannwhitney`` and ``p_wilcoxon`` are as in
    `xdeepsd.evaluation.significance.significance`; ``interpolation`` is the error of bilinear interpolation.
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
