"""Train stages on pairs of levels: the loop, and the stack made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from xdeepsd.checkpoints import checkpoints, read_checkpoint, write_checkpoint
from xdeepsd.density import DenseWeight
from xdeepsd.levels import open_levels
from xdeepsd.losses import DenseLoss, masked_mse
from xdeepsd.normalize import Normalizer
from xdeepsd.patches import (
    MIB,
    Batch,
    Normalizers,
    Pair,
    PatchLoader,
    bytes_per_day,
    fit_normalizers,
    make_pair,
    patch_origins,
    slabs,
)
from xdeepsd.splits import Split
from xdeepsd.srcnn import SRCNN
from xdeepsd.stack import StackedSRCNN, Stage
from xdeepsd.static import CLIMATOLOGY, block_mean
from xdeepsd.trainconfig import TrainConfig, learning_rate
from xdeepsd.validate import LossFunction, Validation
from xdeepsd.watch import Watch, write_metrics

logger = logging.getLogger(__name__)

# What may change between a run and its resumption: it does not enter the result.
_FREE = ("device", "workers", "threads", "checkpoint_every", "tensorboard")
# On a GPU the loss is fetched so often: each time the GPU has to be waited for.
_LOOK_EVERY = 25


class TrainedStage(NamedTuple):
    """A stage, one row per validation, and what is worth knowing of the training."""

    stage: Stage
    history: pd.DataFrame
    summary: dict[str, Any]


def initialize(net: SRCNN, seed: Sequence[int]) -> None:
    """Uniform weights and biases within ``1 / sqrt(fan in)``: torch's own choice, but from a generator of ours.

    torch's global generator would mix up stages that train in threads of one process.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    fan_in = 1
    with torch.no_grad():
        for parameter in net.parameters():  # weight, bias, weight, ...
            if parameter.ndim == 4:
                fan_in = parameter[0].numel()
            parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


def fit_density(config: TrainConfig, pair: Pair, days: np.ndarray) -> DenseWeight:
    """Density weights of the wanted fine values of the training ``days``, computed chunk by chunk."""
    observed = pair.fine.isel(time=days).where(xr.DataArray(pair.mask, dims=("lat", "lon")))
    with dask.config.set(scheduler="threads"):  # this may run inside a task of a cluster
        return config.dense_weight().fit(observed)


def loss_function(density: DenseWeight | None, device: torch.device) -> LossFunction:
    """DenseLoss with these weights, or the masked mean squared error without any."""
    if density is None:
        return lambda prediction, target, mask, values: masked_mse(prediction, target, mask)
    return DenseLoss(density).to(device)


@dataclass
class _State:
    """All that changes from step to step; what a checkpoint holds."""

    net: SRCNN
    optimizer: torch.optim.Optimizer
    best: dict[str, Any]
    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)  # since the last validation
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    without_better: int = 0
    finished: bool = False

    def save(self, folder: Path, config: TrainConfig, **described: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_metrics(folder, self.history)  # before: a run that is killed in between writes it again
        # Rates and shuffling follow from the step and the seed: there is no other random state.
        write_checkpoint(
            folder,
            self.step,
            {
                **described,
                "config": asdict(config),
                "sampler": {"seed": config.seed, "position": self.step * config.batch},
                "schedule": {"step": self.step, "rate": learning_rate(self.step, config)},
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                **{name: getattr(self, name) for name in _PLAIN},
            },
        )

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in _PLAIN:
            setattr(self, name, saved[name])


_PLAIN = ("step", "losses", "history", "without_better", "finished", "best")


def train_stage(
    coarse: xr.Dataset,
    fine: xr.Dataset,
    config: TrainConfig | None = None,
    *,
    index: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    density: DenseWeight | None = None,
) -> TrainedStage:
    """Train one stage on observed pairs of a coarse and a fine level.

    Parameters
    ----------
    coarse, fine
        Levels as in docs/conventions.md, lazy or in memory: ``precipitation (time, lat, lon)``, ``mask`` and the
        static fields of ``config``, of the same days. Where ``climatology`` is asked for and not there, it is the
        mean of the training days.
    config
        `TrainConfig.default()` if None.
    index
        Number of the stage in its stack, from 0; enters the seed and the messages.
    checkpoint_dir
        Folder for checkpoints and ``metrics.parquet``; None: none are written.
    resume
        Go on from the newest checkpoint in ``checkpoint_dir`` if there is one. On a CPU the result has the same bits
        as that of a run that was not interrupted (with the same number of torch threads).
    progress
        Show a progress bar.
    density
        For DenseLoss, what `fit_density` gave for these levels and training days, at any alpha. None: it is fitted.

    Returns
    -------
    `TrainedStage`: the stage (the best one on the validation days), one row per validation, a summary.

    Raises
    ------
    ValueError
        Unusable levels or days (see `make_pair`, `split_days`), a checkpoint of another configuration.
    FileExistsError
        ``checkpoint_dir`` holds checkpoints and ``resume`` is False.
    FloatingPointError
        The loss became NaN. The last good checkpoint stays.
    OSError
        A checkpoint could not be written. The one before it stays.
    """
    config = config or TrainConfig.default()
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    _check_folder(folder, resume, config)
    pair, split = _pair(coarse, fine, config)
    side = config.patch - 2 * pair.config.radius
    output = min(side, pair.shape[0]), min(side, pair.shape[1])
    origins = patch_origins(pair.mask, output, config.stride, config.min_land)
    identity = _identity(pair, split)
    saved = read_checkpoint(folder) if folder is not None and resume else None
    if saved is not None:
        _check_same(saved, config, identity, folder)
    with _torch_threads(config.threads):
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        validation = None
        if split.validation.size:
            validation = Validation(pair, split.validation, config.validation_days, device)
        buffer, dense = int(config.buffer * MIB), config.loss == "denseloss"
        days = slabs(pair, split.train, limit=max(1, buffer // (4 * bytes_per_day(pair, dense))))
        normalizers = (
            fit_normalizers(pair, days, config.workers) if saved is None else _normalizers(saved["normalizers"])
        )
        net = SRCNN(pair.config)
        initialize(net, (config.seed, index))
        net.to(device)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
        stage = Stage(net, normalizers.precipitation, normalizers.static, normalizers.target, config.target_transform)
        optimizer = torch.optim.Adam(
            [
                {"params": net.layers[:-1].parameters(), "factor": 1.0},
                {"params": net.layers[-1].parameters(), "factor": config.last_layer_rate},
            ],
            lr=config.learning_rate,
        )
        state = _State(net, optimizer, best={"step": 0, "score": math.inf, "rmse": math.nan, "net": _copy(net)})
        if saved is not None:
            state.restore(saved)
            logger.info("Stage %d goes on after step %d of %d.", index, state.step, config.steps)
        if config.loss == "mse":
            density = None
        elif saved is not None:
            density = DenseWeight.from_dict(saved["density"])
        elif density is not None:
            density = density.with_alpha(config.alpha)
        else:
            density = fit_density(config, pair, split.train)
        if density is not None:
            logger.info("Stage %d, weights of DenseLoss: %s", index, density.summary())
        if not state.finished:
            loader = PatchLoader(
                pair, normalizers, days, origins, output, config.batch, (config.seed, index), buffer, config.workers,
                with_values=dense,
            )  # fmt: skip
            loss = loss_function(density, device)
            described = {
                "identity": identity, "normalizers": asdict(normalizers), "index": index,
                "density": None if density is None else density.to_dict(),
            }  # fmt: skip
            events = folder / "tensorboard" if folder is not None and config.tensorboard else None
            with Watch(index, state.step, config.steps, config.batch, progress, events) as watch:
                _loop(state, stage, loader, loss, validation, config, folder, described, watch, index)
        net.load_state_dict(state.best["net"])
        net.to("cpu")
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        stage = dataclasses.replace(stage, net=net.eval())
    summary = _summary(index, config, pair, split, state, validation)
    if density is not None:
        summary["density"] = density.summary()
    return TrainedStage(stage, pd.DataFrame(state.history), summary)


def _loop(
    state: _State, stage: Stage, loader: PatchLoader, loss: LossFunction, validation: Validation | None,
    config: TrainConfig, folder: Path | None, described: Mapping[str, Any], watch: Watch, index: int,
) -> None:  # fmt: skip
    """Steps, validations and checkpoints until the last step or until patience is at its end."""
    device = next(state.net.parameters()).device
    look_every = 1 if device.type == "cpu" else _LOOK_EVERY
    unseen: list[Tensor] = []
    began, waited, first = time.perf_counter(), 0.0, state.step
    with closing(loader.batches(state.step)) as batches:
        while not state.finished:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            rate = learning_rate(state.step, config)
            unseen.append(_update(state, batch, loss, rate, config, device))
            state.step += 1
            last = state.step == config.steps
            validating = last or state.step % config.validate_every == 0
            saving = last or state.step % config.checkpoint_every == 0
            if validating or saving or len(unseen) >= look_every:
                state.losses += torch.stack(unseen).tolist()
                _check_losses(state, len(unseen), index, loader, folder)
                unseen.clear()
                watch.step(state.step, state.losses[-1])
            if validating:
                seconds = time.perf_counter() - began
                row = {
                    "step": state.step, "epoch": loader.epoch(state.step), "loss": float(np.mean(state.losses)),
                    "learning_rate": rate, "seconds": seconds, "waiting_share": waited / seconds,
                    "patches_per_second": (state.step - first) * config.batch / seconds,
                }  # fmt: skip
                state.losses = []
                _validate(state, stage, validation, loss, config, row)
                maps = validation.maps(stage) if validation is not None and watch.wants_maps else None
                watch.validated(row, state.net, maps)
                if config.patience is not None and state.without_better >= config.patience:
                    logger.info("Stage %d: no better validation in %d, stop at step %d.", index, config.patience,
                                state.step)  # fmt: skip
                    state.finished = True
            state.finished = state.finished or last
            if folder is not None and (saving or state.finished):
                state.save(folder, config, **described)


def _update(
    state: _State, batch: Batch, loss: LossFunction, rate: float, config: TrainConfig, device: torch.device
) -> Tensor:
    """One step of Adam; returns the loss before it."""
    inputs = batch.inputs.to(device, memory_format=torch.channels_last, non_blocking=True)
    target, mask = batch.target.to(device, non_blocking=True), batch.mask.to(device, non_blocking=True)
    values = None if batch.values is None else batch.values.to(device, non_blocking=True)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        prediction = state.net(inputs)[:, 0]
    value = loss(prediction.float(), target, mask, values)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    if config.clip_gradient is not None:
        nn.utils.clip_grad_norm_(state.net.parameters(), config.clip_gradient)
    state.optimizer.step()
    return value.detach()


def _validate(
    state: _State, stage: Stage, validation: Validation | None, loss: LossFunction, config: TrainConfig,
    row: dict[str, Any],
) -> None:  # fmt: skip
    """Take the errors into ``row`` and the history, and keep the weights if they are the best so far.

    The score is the RMSE, or for DenseLoss that loss: the weights it asks for are not those of the least RMSE.
    """
    score = -math.inf  # without validation days the last weights are taken
    if validation is not None:
        row["rmse"], row["rmse_interpolation"] = validation.rmse(stage), validation.rmse_interpolation
        score = row["rmse"]
        if config.loss == "denseloss":
            score = row["validation_loss"] = validation.loss(stage, loss)
    state.history.append(row)
    state.without_better += 1
    if score < state.best["score"] or validation is None:
        rmse = row.get("rmse", math.nan)
        state.best = {"step": state.step, "score": score, "rmse": rmse, "net": _copy(state.net)}
        state.without_better = 0


def _check_losses(state: _State, count: int, index: int, loader: PatchLoader, folder: Path | None) -> None:
    """Raise FloatingPointError where one of the last ``count`` losses is not finite: nothing of it is written."""
    bad = np.flatnonzero(~np.isfinite(state.losses[-count:]))
    if not bad.size:
        return
    step = state.step - count + int(bad[0]) + 1
    days = loader.pair.fine["time"].values[loader.days_of(step - 1)]
    last = checkpoints(folder) if folder is not None else []
    kept = f"The last good checkpoint is {last[-1]}." if last else "There is no checkpoint before it."
    raise FloatingPointError(
        f"The loss of stage {index} is {state.losses[-count:][bad[0]]} at step {step} (epoch "
        f"{loader.epoch(step - 1):.2f}, patches of {len(days)} days from {str(days[0])[:10]} to {str(days[-1])[:10]}). "
        f"{kept} Needed: smaller steps. Type TrainConfig(learning_rate=...) with a tenth of it, or clip_gradient=1.0."
    )


def _copy(net: SRCNN) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_folder(folder: Path | None, resume: bool, config: TrainConfig) -> None:
    if folder is not None and not resume and checkpoints(folder):
        raise FileExistsError(
            f"{folder} holds checkpoints of another run. Type resume=True to go on with it, or give another folder."
        )
    if folder is None and (resume or config.tensorboard):
        raise ValueError(
            f"{'resume' if resume else 'tensorboard'} is asked for without a folder. Type checkpoint_dir='FOLDER'."
        )


def _factor(coarse: xr.Dataset, fine: xr.Dataset) -> int:
    return max(1, round(fine.sizes["lat"] / max(coarse.sizes["lat"], 1)))


def _normalizers(saved: Mapping[str, Any]) -> Normalizers:
    static = {name: Normalizer(**n) for name, n in saved["static"].items()}
    return Normalizers(Normalizer(**saved["precipitation"]), static, Normalizer(**saved["target"]))


def _pair(coarse: xr.Dataset, fine: xr.Dataset, config: TrainConfig) -> tuple[Pair, Split]:
    """What a stage learns from, and its days."""
    split = config.split(fine["time"])
    coarse, fine = _with_climatology(coarse, fine, config, split.train)
    return make_pair(coarse, fine, config.network(_factor(coarse, fine)), config.target_transform), split


def _with_climatology(
    coarse: xr.Dataset, fine: xr.Dataset, config: TrainConfig, days: np.ndarray
) -> tuple[xr.Dataset, xr.Dataset]:
    """Both levels with a climatology if the network wants one: the given one, else the mean of the training days."""
    if CLIMATOLOGY not in config.static:
        return coarse, fine
    if CLIMATOLOGY not in fine:
        logger.info("No climatology given: taking the mean of the %d training days.", len(days))
        mean = fine["precipitation"].isel(time=days).mean("time").compute(scheduler="threads").astype(np.float32)
        units = fine["precipitation"].attrs.get("units", "")
        fine = fine.assign({CLIMATOLOGY: mean.assign_attrs(units=units, long_name="mean of the training days")})
        coarse = coarse.drop_vars(CLIMATOLOGY, errors="ignore")
    if CLIMATOLOGY not in coarse:
        means = block_mean(_map(fine, CLIMATOLOGY), _factor(coarse, fine))
        coarse = coarse.assign({CLIMATOLOGY: (("lat", "lon"), means)})
    return coarse, fine


def _map(ds: xr.Dataset, name: str) -> np.ndarray:
    """A static field as ``(lat, lon)``; computed by threads, never by the cluster in whose task this may run."""
    return np.asarray(ds[name].transpose("lat", "lon").compute(scheduler="threads"))


def _identity(pair: Pair, split: Split) -> dict[str, Any]:
    """What the data of a run are, to tell another run's checkpoint apart."""
    digest = hashlib.sha256()
    for part in (pair.mask, pair.static, *split, pair.fine["time"].values.astype(str)):
        digest.update(np.ascontiguousarray(part).tobytes())
    return {"shape": list(pair.shape), "factor": pair.config.factor, "digest": digest.hexdigest()}


def _check_same(saved: Mapping[str, Any], config: TrainConfig, identity: dict[str, Any], folder: Path | None) -> None:
    """Raise ValueError where a checkpoint was written by another configuration or from other data."""
    now, then = asdict(config), saved["config"]
    different = [
        f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(now.keys() | then.keys())
        if name not in _FREE and now.get(name) != then.get(name)
    ]
    if different:
        raise ValueError(
            f"The checkpoint in {folder} belongs to another configuration: {'; '.join(different)}. Type the same "
            "configuration to resume, or give another folder to start anew."
        )
    if saved["identity"] != identity:
        raise ValueError(
            f"The checkpoint in {folder} belongs to other levels (days, mask or static fields differ): "
            f"{saved['identity']['shape']} cells then, {identity['shape']} now. Give the same levels, or a new folder."
        )


def _summary(
    index: int, config: TrainConfig, pair: Pair, split: Split, state: _State, validation: Validation | None
) -> dict[str, Any]:
    """Say in the log, and return, how the stage compares with interpolation."""
    days = pair.fine["time"].values
    summary: dict[str, Any] = {
        "stage": index,
        "factor": pair.config.factor,
        "seed": config.seed,
        "days": {name: len(part) for name, part in split._asdict().items()},
        "first_day": str(days[split.train[0]])[:10],
        "last_day": str(days[split.train[-1]])[:10],
        "steps": state.step,
        "best_step": state.best["step"],
    }
    if validation is None:
        logger.warning("Stage %d: no validation days, so nothing is known of its error.", index)
        return summary
    rmse, interpolation = state.best["rmse"], validation.rmse_interpolation
    summary |= {"rmse": rmse, "rmse_interpolation": interpolation, "beats_interpolation": rmse < interpolation}
    text = f"Stage {index}, {len(validation.days)} validation days: RMSE {rmse:.4g}, interpolation {interpolation:.4g}"
    if rmse < interpolation:
        logger.info("%s (%.0f %% less).", text, 100 * (1 - rmse / interpolation))
    else:
        logger.warning("%s. THE MODEL DOES NOT BEAT INTERPOLATION: train longer, or on more days.", text)
    return summary


Levels = str | os.PathLike[str] | Sequence[xr.Dataset]


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

    A climatology that is asked for and not given is the mean of the finest level's training days.
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
    _, finest = _with_climatology(finest, finest, config, config.split(finest["time"]).train)
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
        factor = _factor(ds, static)
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
        One `TrainConfig` for all stages, or one for each. None: `TrainConfig.default()`.
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
        levels, [config or TrainConfig.default()], client=client,
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
) -> Iterator[tuple[int, StackedSRCNN]]:
    """Train one stack for each of ``configs`` (seeds, alphas): ``(number, stack)`` as they are finished.

    With a ``client`` all stages of all stacks are futures at once. A stage asks for the resource ``GPU`` where workers
    have one (``dask worker --resources GPU=1``). A stage whose worker is lost starts again on another one, from its
    checkpoint where there is one.

    Parameters
    ----------
    configs
        One `TrainConfig`, or one for each stage, for every stack.
    checkpoint_dirs
        A folder for every stack.
    levels, client, resume, progress
        As `train_stack`.
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
    jobs = [
        (i, k, config, folder and folder / f"stage_{k}")
        for i, (plan, folder) in enumerate(zip(plans, folders, strict=True))
        for k, config in enumerate(plan)
    ]
    for _, _, config, folder in jobs:
        _check_folder(folder, resume, config)
    statics = {key: static_fields(levels, config) for key, config in {_about(c): c for _, _, c, _ in jobs}.items()}
    done: dict[tuple[int, int], TrainedStage] = {}
    for i, k, trained in _train_jobs(levels, statics, jobs, client, progress):
        done[i, k] = trained
        if all((i, stage) in done for stage in range(count)):
            yield i, _assemble(levels, statics, plans[i], [done.pop((i, stage)) for stage in range(count)])


_Job = tuple[int, int, TrainConfig, Path | None]


def _about(config: TrainConfig) -> tuple[Any, ...]:
    """What the static fields depend on."""
    return config.static, config.train, config.validation, config.test


def _about_density(k: int, config: TrainConfig) -> tuple[Any, ...] | None:
    """What the density of stage ``k`` depends on: not on alpha, nor on the seed; None for "mse"."""
    if config.loss == "mse":
        return None
    return k, _about(config), config.wet_threshold, config.density_transform


def _train_jobs(
    levels: Levels, statics: Mapping[Any, xr.Dataset], jobs: Sequence[_Job], client: Any, progress: bool
) -> Iterator[tuple[int, int, TrainedStage]]:
    # Runs that differ in alpha or seed only share one fit of the density: one reading of the data, not one for each.
    alike = Counter(_about_density(k, config) for _, k, config, _ in jobs)
    shared = {about for about, count in alike.items() if about is not None and count > 1}
    densities: dict[Any, Any] = {}
    if client is None:
        for i, k, config, folder in jobs:
            static, about = statics[_about(config)], _about_density(k, config)
            if about in shared and about not in densities:
                densities[about] = _fit_job(levels, static, k, config)
            yield i, k, _train_job(levels, static, k, config, folder, progress, density=densities.get(about))
        return
    from distributed import as_completed

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
    futures = {}
    for i, k, config, folder in jobs:
        static, about = statics[_about(config)], _about_density(k, config)
        # `partial`: what is inside is pickled, not looked through for Dask arrays to compute.
        if about in shared and about not in densities:
            key = f"fit-density-stage-{k}-{uuid.uuid4().hex}"
            densities[about] = client.submit(partial(_fit_job, levels, static, k, config), pure=False, key=key)
        future = client.submit(
            partial(_train_job, levels, static, k, config, folder), density=densities.get(about),
            resources=resources, pure=False, key=f"train-stack-{i}-stage-{k}-{uuid.uuid4().hex}",
        )  # fmt: skip
        futures[future] = i, k
    try:
        for future in as_completed(futures):
            yield *futures[future], future.result()
    finally:
        client.cancel([*futures, *densities.values()])


def _fit_job(levels: Levels, static: xr.Dataset, k: int, config: TrainConfig) -> DenseWeight:
    """The density of one stage of a stack, for any alpha."""
    pair, split = _pair(*stage_levels(levels, k, static), config)
    return fit_density(dataclasses.replace(config, alpha=0.0), pair, split.train)


def _train_job(
    levels: Levels,
    static: xr.Dataset,
    k: int,
    config: TrainConfig,
    folder: Path | None,
    progress: bool = False,
    density: DenseWeight | None = None,
) -> TrainedStage:
    """One stage of a stack; always from its checkpoint where there is one: a lost worker's job starts again so."""
    coarse, fine = stage_levels(levels, k, static)
    return train_stage(
        coarse, fine, config, index=k, checkpoint_dir=folder, resume=folder is not None, progress=progress,
        density=density,
    )  # fmt: skip


def _assemble(
    levels: Levels, statics: Mapping[Any, xr.Dataset], configs: Sequence[TrainConfig], trained: Sequence[TrainedStage]
) -> StackedSRCNN:
    """The stack of trained stages, with the grid, static fields and mask of the finest level."""
    maps = xr.merge([statics[_about(config)] for config in configs], compat="override", join="exact")
    training = {"stages": [stage.summary for stage in trained], "config": [asdict(config) for config in configs]}
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
