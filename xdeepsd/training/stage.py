"""Train one stage on a pair of levels: the loop, its checkpoints, and what it says at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from xdeepsd.levels.pairs import (
    Normalizers,
    Pair,
    factor_between,
    fit_normalizers,
    make_pair,
    slabs,
    values_of,
    with_climatology,
)
from xdeepsd.levels.patches import MIB, Batch, PatchLoader, bytes_per_day, patch_origins
from xdeepsd.levels.splits import Split
from xdeepsd.losses.dense_loss import DenseLoss, masked_mse
from xdeepsd.losses.density import DenseWeight
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN
from xdeepsd.models.stage import Stage
from xdeepsd.models.threads import torch_threads
from xdeepsd.models.variable import clean
from xdeepsd.training.checkpoints import METRICS, checkpoints, read_checkpoint, write_checkpoint
from xdeepsd.training.config import TrainConfig, learning_rate
from xdeepsd.training.validation import LossFunction, Validation
from xdeepsd.training.watch import Watch, write_metrics

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
    observed = clean(pair.fine.isel(time=days), values_of(pair.fine)).where(
        xr.DataArray(pair.mask, dims=("lat", "lon"))
    )
    return config.dense_weight().fit(observed, scheduler="threads")  # this may run inside a task of a cluster


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
        mean of the training days (see `with_climatology`).
    config
        `TrainConfig()` if None.
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
        Unusable levels or days (see `make_pair`, `split_days`), a climatology of validation or test days, validation
        days without an observation, a checkpoint of another configuration or of other data.
    FileExistsError
        ``checkpoint_dir`` holds checkpoints and ``resume`` is False.
    FloatingPointError
        The loss or the weights became NaN or infinite. The last good checkpoint stays.
    OSError
        A checkpoint could not be written. The one before it stays.
    """
    config = config or TrainConfig()
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    check_folder(folder, resume, config)
    coarse, fine = with_climatology(coarse, fine, config.static, config.split(fine["time"]))
    return train_pair(*stage_pair(coarse, fine, config), config, index, folder, resume, progress, density)


def train_pair(
    pair: Pair, split: Split, config: TrainConfig, index: int, folder: Path | None, resume: bool, progress: bool,
    density: DenseWeight | None,
) -> TrainedStage:  # fmt: skip
    """`train_stage` on what `stage_pair` gave."""
    side = config.patch - 2 * pair.config.radius
    output = min(side, pair.shape[0]), min(side, pair.shape[1])
    origins = patch_origins(pair.mask, output, config.stride, config.min_land)
    identity = _identity(pair, split)
    saved = read_checkpoint(folder) if folder is not None and resume else None
    if saved is not None:
        _check_same(saved, config, identity, folder)
        if "digests" in saved:  # not in those of an older xdeepsd
            pair.digests[:] = saved["digests"]
        pair.observed(split.train[:1])  # of other data rather now than at the end of an epoch
    with torch_threads(config.threads):
        device = _device(config)
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
                "digests": torch.from_numpy(pair.digests),  # as they are when it is written
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
            if saving or state.finished:
                _check_weights(state, index, loader, folder)
                if folder is not None:
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
    if bad.size:
        step = state.step - count + int(bad[0]) + 1
        _stop(f"The loss of stage {index} is {state.losses[-count:][bad[0]]}", step, loader, folder)


def _check_weights(state: _State, index: int, loader: PatchLoader, folder: Path | None) -> None:
    """Raise FloatingPointError where a finite loss had a gradient that is not: such weights are not written."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in state.net.parameters()):
        _stop(f"The weights of stage {index} are not finite any more", state.step, loader, folder)


def _stop(what: str, step: int, loader: PatchLoader, folder: Path | None) -> NoReturn:
    """Raise FloatingPointError that says where it happened, what is kept and what to do."""
    days = loader.pair.fine["time"].values[loader.days_of(step - 1)]
    last = checkpoints(folder) if folder is not None else []
    kept = f"The last good checkpoint is {last[-1]}." if last else "There is no checkpoint before it."
    raise FloatingPointError(
        f"{what} at step {step} (epoch {loader.epoch(step - 1):.2f}, patches of {len(days)} days from "
        f"{str(days[0])[:10]} to {str(days[-1])[:10]}). "
        f"{kept} Needed: smaller steps. Type TrainConfig(learning_rate=...) with a tenth of it, and another folder."
    )


def _copy(net: SRCNN) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


def _device(config: TrainConfig) -> torch.device:
    """That of the configuration; a GPU where none is named and there is one."""
    try:
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device is {config.device!r}; needed: a device of torch, such as 'cuda', or None.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, and torch finds no CUDA on this machine. Type device='cpu'.")
    return device


def check_folder(folder: Path | None, resume: bool, config: TrainConfig) -> None:
    """Raise where a run would write over another one's checkpoints, or wants a folder and has none."""
    if folder is not None and not resume and checkpoints(folder):
        raise FileExistsError(
            f"{folder} holds checkpoints of another run. Type resume=True to go on with it, or give another folder."
        )
    metrics = None if folder is None else folder / METRICS
    if metrics is not None and metrics.exists() and not checkpoints(metrics.parent) and not _is_metrics(metrics):
        raise FileExistsError(f"{metrics} is there, and no training wrote it. It is left alone: give another folder.")
    if folder is None and (resume or config.tensorboard):
        raise ValueError(
            f"{'resume' if resume else 'tensorboard'} is asked for without a folder. Type checkpoint_dir='FOLDER'."
        )


def _is_metrics(path: Path) -> bool:
    """Whether a file is what a training left that was stopped before its first checkpoint."""
    try:
        columns = set(pd.read_parquet(path).columns)
    except (OSError, ValueError):  # of pyarrow, too
        return False
    return not columns or {"step", "epoch", "loss"} <= columns


def _normalizers(saved: Mapping[str, Any]) -> Normalizers:
    static = {name: Normalizer(**n) for name, n in saved["static"].items()}
    return Normalizers(Normalizer(**saved["precipitation"]), static, Normalizer(**saved["target"]))


def stage_pair(coarse: xr.Dataset, fine: xr.Dataset, config: TrainConfig) -> tuple[Pair, Split]:
    """What a stage learns from, and its days; the levels hold all static fields."""
    network = config.network(factor_between(coarse, fine))
    return make_pair(coarse, fine, network, config.target_transform), config.split(fine["time"])


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
