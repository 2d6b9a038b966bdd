"""Train a stack: one job per stage, one after another or all at once on a cluster, and then the stack made of them."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.levels.coarse import product_of
from xdeepsd.levels.pairs import read_days
from xdeepsd.losses.dense_weight import DenseWeight
from xdeepsd.models.stack import LARGEST, StackedSRCNN
from xdeepsd.models.static import CLIMATOLOGY, COARSE_PRODUCT
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.ladder import Ladder, Levels, check_levels, for_product, static_key
from xdeepsd.training.losses import fit_density
from xdeepsd.training.stage import TrainedStage, check_folder, stage_pair, train_pair

logger = logging.getLogger(__name__)

_VALUES_IN_SLAB = 2**24

Then = Callable[[Sequence[xr.Dataset], StackedSRCNN], Any]


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
        Path of a Zarr store written by `build_levels`, or Datasets, coarsest first (see docs/conventions.md).
    config
        One `TrainConfig` for all stages, or one per stage. None: `TrainConfig()`.
    client
        A `distributed.Client`: all stages train at once on its workers, which must be able to read the levels and to
        write to ``checkpoint_dir``.
    checkpoint_dir
        Folder for the stages' checkpoints, ``stage_0`` and so on.
    resume
        Continue from existing checkpoints.
    progress
        Show a progress bar (without a client).

    Returns
    -------
    `StackedSRCNN` with the static fields and mask of the finest level, and the errors of each stage in ``training``.

    Raises
    ------
    ValueError, FileExistsError, FloatingPointError, OSError
        As `train_stage`.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> model = xdeepsd.train_stack(levels, xdeepsd.TrainConfig(**small), progress=False)
    >>> model.scale, model.training["stages"][0]["steps"]
    (2, 2)
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
    """Train one stack for each of ``configs`` (seeds, alphas), and yield ``(number, stack)`` as each is finished.

    With a ``client``, the stages of all stacks are submitted at once. A stage asks for the resource ``GPU`` where
    workers have one (``dask worker --resources GPU=1``). A stage whose worker is lost starts again on another worker,
    from its checkpoint if there is one. Anything that the caller computes on the client meanwhile may have to wait for
    all stages: do that in ``then``.

    Parameters
    ----------
    configs
        For every stack one `TrainConfig`, or one per stage.
    checkpoint_dirs
        One folder per stack.
    levels, client, resume, progress
        As `train_stack`.
    then
        ``then(levels, stack)`` is called for every stack, with the levels as a list; with a ``client``, as a task on a
        worker (to evaluate the stack there, say; Dask computations in it must use a scheduler other than the
        cluster's). Its return value takes the place of the stack.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> seeds = [xdeepsd.TrainConfig(seed=seed, **small) for seed in (0, 1)]
    >>> stacks = dict(xdeepsd.train_stacks(levels, seeds, progress=False))
    >>> stacks[0].fingerprint() == stacks[1].fingerprint()
    False
    """
    levels = check_levels(levels)
    count = len(levels) - 1
    plans = [[c] * count if isinstance(c, TrainConfig) else list(c) for c in configs]
    for plan in plans:
        if len(plan) != count:
            raise ValueError(f"{len(plan)} configurations for {count} stages. Needed: one, or one for each stage.")
        plan[0] = for_product(plan[0], levels[0])
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
    ladder = Ladder.of(levels, [stage.config for stage in jobs])
    # Runs that differ only in alpha or seed share one fit of the density, so the data are read once for all of them.
    alike = Counter(_about_density(stage) for stage in jobs)
    shared = {about for about, number in alike.items() if about is not None and number > 1}
    if client is None:
        yield from _one_by_one(ladder, stages, shared, progress, then)
    else:
        yield from _on_cluster(ladder, stages, shared, client, then)


def _check_one_climatology(levels: Sequence[xr.Dataset], plan: Sequence[TrainConfig]) -> None:
    """ValueError where the stages of a stack would use means of different training days."""
    days = {(c.train, c.validation, c.test) for c in plan if CLIMATOLOGY in c.static}
    if len(days) > 1 and CLIMATOLOGY not in levels[-1]:
        raise ValueError(
            f"The stages have {len(days)} different sets of training days, and the levels have no climatology: the "
            "model would store the mean of one set, but some of its stages were trained with the mean of another. "
            "Needed: the same train, validation and test for all stages, or levels with a climatology. Type "
            "build_levels(..., climatology=slice('YEAR', 'YEAR'))."
        )


@dataclass(frozen=True)
class _Stage:
    """A stage to be trained. Not a tuple: Dask searches those for tasks."""

    k: int
    config: TrainConfig
    folder: Path | None


def _about_density(stage: _Stage) -> tuple[Any, ...] | None:
    """What the density of a stage depends on (neither alpha nor the seed); None for other losses than DenseLoss."""
    config = stage.config
    if config.loss != "denseloss":
        return None
    return stage.k, static_key(config), config.wet_threshold, config.density_transform, config.weight_cap


def _one_by_one(
    ladder: Ladder, stacks: Sequence[Sequence[_Stage]], shared: Collection[Any], progress: bool, then: Then | None
) -> Iterator[tuple[int, Any]]:
    densities: dict[Any, DenseWeight] = {}
    for i, stages in enumerate(stacks):
        trained = []
        for stage in stages:
            about = _about_density(stage)
            if about in shared and about not in densities:
                densities[about] = _fit_job(ladder, stage)
            trained.append(_train_job(ladder, stage, progress, density=densities.get(about)))
        yield i, _finish_job(ladder, stages, then, *trained)


def _on_cluster(
    ladder: Ladder, stacks: Sequence[Sequence[_Stage]], shared: Collection[Any], client: Any, then: Then | None
) -> Iterator[tuple[int, Any]]:
    from distributed import as_completed

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None

    run = uuid.uuid4().hex

    # All tasks of a kind have one name: the scheduler then holds back those for which no worker is free, and new
    # workers get their share. Tasks with different names would all be handed out at once.
    def submit(
        name: str, number: tuple[int, ...], function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        return client.submit(function, *arguments, **options, pure=False, key=(f"{name}-{run}", *number))

    with warnings.catch_warnings():
        # Sent once, not with every task; unlike scattered data, it can be sent again if a worker is lost.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        # `partial`: its arguments are pickled, and not searched for Dask arrays to compute.
        there = submit("levels", (), partial(_give, ladder))
    densities: dict[Any, Any] = {}
    running: dict[Any, tuple[int, list[Any]]] = {}
    for i, stages in enumerate(stacks):
        trained = []
        for stage in stages:
            about = _about_density(stage)
            if about in shared and about not in densities:
                densities[about] = submit("fit-density", (len(densities),), _fit_job, there, stage)
            # Lower priority than finishing a stack, which should not wait until all other stacks are trained.
            training = submit(
                "train-stage", (i, stage.k), _train_job, there, stage, density=densities.get(about),
                resources=resources, priority=-1,
            )  # fmt: skip
            trained.append(training)
        running[submit("finish-stack", (i,), _finish_job, there, stages, then, *trained)] = i, trained
    # For a single stack, log which stages are done: training may take long, and the logs of workers are not seen here.
    single = {future: stage.k for future, stage in zip(trained, stages, strict=True)} if len(stacks) == 1 else {}
    try:
        for future in as_completed([*single, *running]):
            if future in single:
                if future.status == "finished":
                    logger.info("Stage %d is trained.", single[future])
                continue
            result = future.result()
            i, _ = running.pop(future)  # so that the workers may release the stages
            yield i, result
    finally:
        rest = [future for finish, (_, trained) in running.items() for future in (finish, *trained)]
        client.cancel([there, *densities.values(), *rest])


def _give(ladder: Ladder) -> Ladder:
    return ladder


def _fit_job(ladder: Ladder, stage: _Stage) -> DenseWeight:
    """The density for one stage of a stack, for any alpha."""
    pair, split = stage_pair(*ladder.stage_levels(stage.k, stage.config), stage.config)
    return fit_density(dataclasses.replace(stage.config, alpha=0.0), pair, split.train)


def _train_job(
    ladder: Ladder, stage: _Stage, progress: bool = False, density: DenseWeight | None = None
) -> TrainedStage:
    """Train one stage of a stack, resuming from its checkpoint if there is one (after the loss of a worker, say)."""
    pair, split = stage_pair(*ladder.stage_levels(stage.k, stage.config), stage.config)
    return train_pair(
        pair, split, stage.config, stage.k, stage.folder, resume=stage.folder is not None, progress=progress,
        density=density,
    )  # fmt: skip


def _finish_job(ladder: Ladder, stages: Sequence[_Stage], then: Then | None, *trained: TrainedStage) -> Any:
    """The stack of the trained stages, with grid, static fields and mask of the finest level; or ``then`` of that."""
    configs = [stage.config for stage in stages]
    maps = xr.merge([ladder.fields(config) for config in configs], compat="override", join="exact")
    for stage in trained:  # on the finest grid, as all static fields, which inference takes block means of
        times = maps.sizes["lat"] // max(stage.fields.sizes.get("lat", 1), 1)
        repeated = {
            name: (("lat", "lon"), np.repeat(np.repeat(field.values, times, 0), times, 1))
            for name, field in stage.fields.items()
        }
        maps = maps.assign(repeated)
    training: dict[str, Any] = {
        "stages": [stage.summary for stage in trained],
        "config": [asdict(config) for config in configs],
        LARGEST: _largest(ladder.levels[0]["precipitation"], configs[0]),
    }
    if CLIMATOLOGY in maps:
        training["climatology"] = maps[CLIMATOLOGY].attrs["origin"]
    product = product_of(ladder.levels[0])
    if product is not None:
        training[COARSE_PRODUCT] = product
    stack = StackedSRCNN(
        [stage.stage for stage in trained], ladder.units, "precipitation", maps.drop_vars("mask"),
        maps["mask"].astype(bool), training,
    )  # fmt: skip
    return stack if then is None else then(ladder.levels, stack)


def _largest(da: xr.DataArray, config: TrainConfig) -> float:
    """The largest value of a level on the training days, a slab of them at a time."""
    da = da.transpose("time", "lat", "lon")
    days = config.split(da["time"]).train
    limit = max(1, _VALUES_IN_SLAB // math.prod(da.shape[1:]))
    slabs = np.split(days, range(limit, len(days), limit))
    return max(float(np.fmax.reduce(read_days(da, slab), axis=None, initial=0)) for slab in slabs)
