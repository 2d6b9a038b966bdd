"""Train a stack: a job for each stage, one after the other or all at once on a cluster, and the stack made of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids.blocks import block_mean
from xdeepsd.levels.disk import open_levels
from xdeepsd.levels.pairs import factor_between, with_climatology
from xdeepsd.losses.density import DenseWeight
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.static import CLIMATOLOGY
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.stage import TrainedStage, check_folder, fit_density, stage_pair, train_pair

logger = logging.getLogger(__name__)

Levels = str | os.PathLike[str] | Sequence[xr.Dataset]
Then = Callable[[Levels, StackedSRCNN], Any]


def open_ladder(levels: Levels) -> list[xr.Dataset]:
    """Levels, coarsest first, lazy. Raises ValueError where there are fewer than two."""
    where = "the sequence"
    if isinstance(levels, str | os.PathLike):
        where, levels = str(levels), open_levels(levels)
    if len(levels) < 2:
        raise ValueError(
            f"{len(levels)} level(s) in {where}. Needed: two or more, coarsest first. Type xdeepsd.make_levels(...)."
        )
    return list(levels)


def static_fields(levels: Levels, config: TrainConfig) -> xr.Dataset:
    """Static fields of ``config`` and the mask on the finest grid, in memory.

    A climatology that is asked for and not given is the mean of the finest level's training days; see
    `with_climatology` for a given one.
    """
    finest = open_ladder(levels)[-1]
    missing = [name for name in config.static if name not in finest and name != CLIMATOLOGY]
    if missing:
        raise ValueError(
            f"The finest level has no {missing[0]!r} (it has {sorted(map(str, finest.data_vars))}), which the network "
            f"takes as a static field. Add level[{missing[0]!r}] (lat, lon), or leave it out: TrainConfig(static="
            f"{tuple(n for n in config.static if n not in missing)!r})."
        )
    if "mask" not in finest:
        raise ValueError(
            "The finest level has no 'mask'. Needed: bool (lat, lon), True where values are wanted. Type "
            "level['mask'] = level['precipitation'].notnull().any('time')."
        )
    _, finest = with_climatology(finest, finest, config.static, config.split(finest["time"]))
    fields = finest[[*config.static, "mask"]].transpose("lat", "lon")
    return fields.drop_vars([name for name in fields.coords if name not in fields.dims]).compute(scheduler="threads")


def stage_levels(levels: Levels, k: int, static: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Input and output level of stage ``k``, their static fields from the finest ones by block means.

    That is how inference takes them. ``static`` comes from `static_fields`. Precipitation stays lazy.
    """
    ladder = open_ladder(levels)
    if not 0 <= k < len(ladder) - 1:
        raise ValueError(f"There is no stage {k}: {len(ladder)} levels have the stages 0 to {len(ladder) - 2}.")
    pair = []
    for level in (k, k + 1):
        ds = ladder[level]
        factor = factor_between(ds, static)
        if any(static.sizes[dim] != factor * ds.sizes[dim] for dim in ("lat", "lon")):
            raise ValueError(
                f"The finest level has {static.sizes['lat']} x {static.sizes['lon']} cells, level {level} "
                f"{ds.sizes['lat']} x {ds.sizes['lon']}: they do not divide. Needed: a whole factor, the same along "
                "both axes. Crop the finest grid to a multiple of the scale and make the levels from it."
            )
        fields = {
            str(name): (("lat", "lon"), block_mean(np.asarray(field), factor))
            for name, field in static.data_vars.items()
            if name != "mask"
        }
        pair.append(ds.drop_vars(fields, errors="ignore").assign(fields))
    return pair[0], pair[1]


def train_stack(
    levels: Levels,
    config: TrainConfig | Sequence[TrainConfig] | None = None,
    *,
    client: Any = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> StackedSRCNN:
    """Train every stage of a stack on a resolution ladder.

    The stages are independent of each other: each learns from the observed pairs of its two levels.

    Parameters
    ----------
    levels
        Path of a Zarr store of `build_levels`, or Datasets, coarsest first (see docs/conventions.md).
    config
        One `TrainConfig` for all stages, or one for each. None: `TrainConfig()`.
    client
        A `distributed.Client`: all stages train at once on its workers. The levels and ``checkpoint_dir`` must be
        within their reach.
    checkpoint_dir
        Folder for the stages' checkpoints, ``stage_0`` and so on.
    resume
        Go on from the checkpoints that are there.
    progress
        Show a progress bar (without a client).

    Returns
    -------
    `StackedSRCNN` with the finest static fields and mask, and the errors of each stage in ``training``.

    Raises
    ------
    ValueError, FileExistsError, FloatingPointError, OSError
        As `train_stage`.
    """
    [(_, stack)] = train_stacks(
        levels, [config or TrainConfig()], client=client,
        checkpoint_dirs=None if checkpoint_dir is None else [checkpoint_dir], resume=resume, progress=progress,
    )  # fmt: skip
    return stack


def train_stacks(
    levels: Levels,
    configs: Sequence[TrainConfig | Sequence[TrainConfig]],
    *,
    client: Any = None,
    checkpoint_dirs: Sequence[str | os.PathLike[str]] | None = None,
    resume: bool = False,
    progress: bool = True,
    then: Then | None = None,
) -> Iterator[tuple[int, Any]]:
    """Train one stack for each of ``configs`` (seeds, alphas): ``(number, stack)`` as they are finished.

    With a ``client`` all stages of all stacks are futures at once. A stage asks for the resource ``GPU`` where workers
    have one (``dask worker --resources GPU=1``). A stage whose worker is lost starts again on another one, from its
    checkpoint where there is one. What the caller computes on the client meanwhile may wait for all of the stages: do
    it in ``then``.

    Parameters
    ----------
    configs
        One `TrainConfig`, or one for each stage, for every stack.
    checkpoint_dirs
        A folder for every stack.
    levels, client, resume, progress
        As `train_stack`.
    then
        ``then(levels, stack)`` is called with every stack, with a ``client`` as a task of a worker (to evaluate it
        there, say; what it computes with Dask needs a scheduler of its own). What it returns stands in the place of
        the stack.
    """
    count = len(open_ladder(levels)) - 1
    _units(levels)
    plans = [[c] * count if isinstance(c, TrainConfig) else list(c) for c in configs]
    for plan in plans:
        if len(plan) != count:
            raise ValueError(f"{len(plan)} configurations for {count} stages. Needed: one, or one for each stage.")
    if checkpoint_dirs is not None and len(checkpoint_dirs) != len(plans):
        raise ValueError(f"{len(checkpoint_dirs)} checkpoint folders for {len(plans)} stacks. Needed: one for each.")
    folders = [None] * len(plans) if checkpoint_dirs is None else [Path(folder) for folder in checkpoint_dirs]
    stages = [
        [_Stage(k, config, folder and folder / f"stage_{k}") for k, config in enumerate(plan)]
        for plan, folder in zip(plans, folders, strict=True)
    ]
    jobs = [stage for stack in stages for stage in stack]
    for stage in jobs:
        check_folder(stage.folder, resume, stage.config)
    for plan in plans:
        _check_one_climatology(levels, plan)
    statics = {key: static_fields(levels, config) for key, config in {_about(s.config): s.config for s in jobs}.items()}
    # Runs that differ in alpha or seed only share one fit of the density: one reading of the data, not one for each.
    alike = Counter(_about_density(stage) for stage in jobs)
    shared = {about for about, number in alike.items() if about is not None and number > 1}
    if client is None:
        yield from _one_by_one((levels, statics), stages, shared, progress, then)
    else:
        yield from _on_cluster((levels, statics), stages, shared, client, then)


def _check_one_climatology(levels: Levels, plan: Sequence[TrainConfig]) -> None:
    """ValueError where the stages of a stack would each take the mean of other training days."""
    days = {(c.train, c.validation, c.test) for c in plan if CLIMATOLOGY in c.static}
    if len(days) > 1 and CLIMATOLOGY not in open_ladder(levels)[-1]:
        raise ValueError(
            f"The stages have {len(days)} sets of training days, and the levels no climatology: the model would hold "
            "the mean of one set, for stages that learned with another. Needed: the same train, validation and test "
            "for all stages, or levels with a climatology. Type build_levels(..., climatology=slice('YEAR', 'YEAR')) "
            "(xdeepsd prepare --climatology-years YEAR YEAR)."
        )


@dataclass(frozen=True)
class _Stage:
    """A stage to be trained. No tuple: Dask looks through those."""

    k: int
    config: TrainConfig
    folder: Path | None


# The ladder, and the static fields by `_about`.
_Given = tuple[Levels, Mapping[Any, xr.Dataset]]


def _about(config: TrainConfig) -> tuple[Any, ...]:
    """What the static fields depend on."""
    return config.static, config.train, config.validation, config.test


def _about_density(stage: _Stage) -> tuple[Any, ...] | None:
    """What the density of a stage depends on: not on alpha, nor on the seed; None for "mse"."""
    config = stage.config
    if config.loss == "mse":
        return None
    return stage.k, _about(config), config.wet_threshold, config.density_transform


def _one_by_one(
    given: _Given, stacks: Sequence[Sequence[_Stage]], shared: Collection[Any], progress: bool, then: Then | None
) -> Iterator[tuple[int, Any]]:
    densities: dict[Any, DenseWeight] = {}
    for i, stages in enumerate(stacks):
        trained = []
        for stage in stages:
            about = _about_density(stage)
            if about in shared and about not in densities:
                densities[about] = _fit_job(given, stage)
            trained.append(_train_job(given, stage, progress, density=densities.get(about)))
        yield i, _finish_job(given, stages, then, *trained)


def _on_cluster(
    given: _Given, stacks: Sequence[Sequence[_Stage]], shared: Collection[Any], client: Any, then: Then | None
) -> Iterator[tuple[int, Any]]:
    from distributed import as_completed

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None

    run = uuid.uuid4().hex

    # One name for all tasks of a kind: the scheduler then keeps what no worker is free for, and new workers get their
    # share. Tasks of different names are all handed out at once.
    def submit(
        name: str, number: tuple[int, ...], function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        return client.submit(function, *arguments, **options, pure=False, key=(f"{name}-{run}", *number))

    with warnings.catch_warnings():
        # Sent once, not with every task; unlike scattered data it can be sent again where a worker is lost.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        # `partial`: what is inside is pickled, not looked through for Dask arrays to compute.
        there = submit("levels", (), partial(_give, given))
    densities: dict[Any, Any] = {}
    running: dict[Any, tuple[int, list[Any]]] = {}
    for i, stages in enumerate(stacks):
        trained = []
        for stage in stages:
            about = _about_density(stage)
            if about in shared and about not in densities:
                densities[about] = submit("fit-density", (len(densities),), _fit_job, there, stage)
            # Below what finishes a stack, which shall not wait until all of them are trained.
            training = submit(
                "train-stage", (i, stage.k), _train_job, there, stage, density=densities.get(about),
                resources=resources, priority=-1,
            )  # fmt: skip
            trained.append(training)
        running[submit("finish-stack", (i,), _finish_job, there, stages, then, *trained)] = i, trained
    # Of a single stack, say which stages are done: it may take long, and what workers log is not seen here.
    single = {future: stage.k for future, stage in zip(trained, stages, strict=True)} if len(stacks) == 1 else {}
    try:
        for future in as_completed([*single, *running]):
            if future in single:
                if future.status == "finished":
                    logger.info("Stage %d is trained.", single[future])
                continue
            result = future.result()
            i, _ = running.pop(future)  # the workers may forget the stages
            yield i, result
    finally:
        rest = [future for finish, (_, trained) in running.items() for future in (finish, *trained)]
        client.cancel([there, *densities.values(), *rest])


def _give(given: _Given) -> _Given:
    return given


def _fit_job(given: _Given, stage: _Stage) -> DenseWeight:
    """The density of one stage of a stack, for any alpha."""
    levels, statics = given
    pair, split = stage_pair(*stage_levels(levels, stage.k, statics[_about(stage.config)]), stage.config)
    return fit_density(dataclasses.replace(stage.config, alpha=0.0), pair, split.train)


def _train_job(
    given: _Given, stage: _Stage, progress: bool = False, density: DenseWeight | None = None
) -> TrainedStage:
    """One stage of a stack; always from its checkpoint where there is one: a lost worker's job starts again so."""
    levels, statics = given
    pair, split = stage_pair(*stage_levels(levels, stage.k, statics[_about(stage.config)]), stage.config)
    return train_pair(
        pair, split, stage.config, stage.k, stage.folder, resume=stage.folder is not None, progress=progress,
        density=density,
    )  # fmt: skip


def _finish_job(given: _Given, stages: Sequence[_Stage], then: Then | None, *trained: TrainedStage) -> Any:
    """The stack of its trained stages, or what is made of it."""
    levels, statics = given
    stack = _assemble(levels, statics, [stage.config for stage in stages], trained)
    return stack if then is None else then(levels, stack)


def _assemble(
    levels: Levels, statics: Mapping[Any, xr.Dataset], configs: Sequence[TrainConfig], trained: Sequence[TrainedStage]
) -> StackedSRCNN:
    """The stack of trained stages, with the grid, static fields and mask of the finest level."""
    maps = xr.merge([statics[_about(config)] for config in configs], compat="override", join="exact")
    training = {"stages": [stage.summary for stage in trained], "config": [asdict(config) for config in configs]}
    if CLIMATOLOGY in maps:
        training["climatology"] = maps[CLIMATOLOGY].attrs["origin"]
    return StackedSRCNN(
        [stage.stage for stage in trained], _units(levels), "precipitation", maps.drop_vars("mask"),
        maps["mask"].astype(bool), training,
    )  # fmt: skip


def _units(levels: Levels) -> str:
    units = open_ladder(levels)[-1]["precipitation"].attrs.get("units")
    if not units:
        raise ValueError(
            "The precipitation of the finest level has no units. Type level['precipitation'].attrs['units'] = "
            "'mm day-1' with its true units."
        )
    return str(units)
