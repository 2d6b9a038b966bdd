"""The training loop of a stage: steps, validations, checkpoints, and the state they share."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from xdeepsd.levels.patches import Batch, PatchLoader
from xdeepsd.losses.masked import masked_mse
from xdeepsd.models.srcnn import SRCNN
from xdeepsd.models.stage import Stage
from xdeepsd.training.checkpoints import checkpoints, write_checkpoint
from xdeepsd.training.config import IN_MM, OF_THE_MEAN, TrainConfig, learning_rate, share_of_weights
from xdeepsd.training.validation import LossFunction, Validation
from xdeepsd.training.watch import Watch, write_metrics

logger = logging.getLogger(__name__)

# Steps between two looks at the loss on a GPU: each look has to wait for the GPU.
_LOOK_EVERY = 25
# Parts of the state that a checkpoint keeps unchanged
_PLAIN = ("step", "losses", "history", "without_better", "finished", "best")


@dataclass
class State:
    """All that changes from step to step; what a checkpoint holds."""

    net: SRCNN
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)  # since the last validation
    history: list[dict[str, Any]] = field(default_factory=list)
    without_better: int = 0
    finished: bool = False
    best: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.keep(score=math.inf, rmse=math.nan)

    def keep(self, score: float, rmse: float) -> None:
        """Keep the current weights as the best so far."""
        net = {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}
        self.best = {"step": self.step, "score": score, "rmse": rmse, "net": net}
        self.without_better = 0

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in _PLAIN:
            setattr(self, name, saved[name])


@dataclass(frozen=True, eq=False)
class Run:
    """All that stays the same from step to step. ``described`` is what a checkpoint holds besides the state."""

    index: int
    config: TrainConfig
    stage: Stage
    loader: PatchLoader
    loss: LossFunction
    validation: Validation | None
    folder: Path | None
    described: Mapping[str, Any]


def learn(run: Run, state: State, watch: Watch) -> None:
    """Steps, validations and checkpoints until the last step, or until patience runs out."""
    config, device = run.config, next(state.net.parameters()).device
    look_every = 1 if device.type == "cpu" else _LOOK_EVERY
    unseen: list[Tensor] = []
    began, waited, first = time.perf_counter(), 0.0, state.step
    with closing(run.loader.batches(state.step)) as batches:
        while not state.finished:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            rate = learning_rate(state.step, config)
            unseen.append(_update(run, state, batch.to(device), rate))
            state.step += 1
            last = state.step == config.steps
            validating = last or state.step % config.validate_every == 0
            saving = last or state.step % config.checkpoint_every == 0
            if validating or saving or len(unseen) >= look_every:
                state.losses += torch.stack(unseen).tolist()
                _check_losses(run, state, len(unseen))
                unseen.clear()
                watch.step(state.step, state.losses[-1])
            if validating:
                seconds = time.perf_counter() - began
                row = {
                    "step": state.step, "epoch": run.loader.epoch(state.step), "loss": float(np.mean(state.losses)),
                    "learning_rate": rate, "seconds": seconds, "waiting_share": waited / seconds,
                    "patches_per_second": (state.step - first) * config.batch / seconds,
                }  # fmt: skip
                state.losses = []
                _validate(run, state, row, watch)
            state.finished = state.finished or last
            if saving or state.finished:
                _check_weights(run, state)
                _save(run, state)


def _update(run: Run, state: State, batch: Batch, rate: float) -> Tensor:
    """One step of Adam; returns the loss before it."""
    config = run.config
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    inputs = _with_noise(batch.inputs, run, state.step) if config.noise else batch.inputs
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        output = state.net(inputs).squeeze(1)
    if config.noise:  # (member, patch, lat, lon)
        output = output.unflatten(0, (config.members, -1))
    value = _loss(run, output.float(), batch)
    if config.loss == "denseloss" and (share := share_of_weights(state.step, config)) < 1:
        value = share * value + (1 - share) * _loss(replace(run, loss=_plain), output.float(), batch)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    if config.clip_gradient is not None:
        nn.utils.clip_grad_norm_(state.net.parameters(), config.clip_gradient)
    state.optimizer.step()
    return value.detach()


def _with_noise(inputs: Tensor, run: Run, step: int) -> Tensor:
    """``(members * batch, 1 + static + noise, patch, patch)``: the patches once for each member.

    The noise is that of the step, not of the cells: patches overlap and come in any order.
    """
    config, count = run.config, run.config.members * len(inputs)
    # Like the shuffling, the noise follows from the seed and the step: there is no other random state.
    seed = np.random.SeedSequence((config.seed, run.index, step, config.noise)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
    noise = torch.randn((count, config.noise, *inputs.shape[2:]), generator=generator).to(inputs.device)
    return torch.cat([inputs.repeat(config.members, 1, 1, 1), noise], 1).contiguous(memory_format=torch.channels_last)


def _plain(prediction: Tensor, target: Tensor, mask: Tensor, values: Tensor | None) -> Tensor:
    return masked_mse(prediction, target, mask)


def _loss(run: Run, output: Tensor, batch: Batch) -> Tensor:
    """Loss of the network's output; where coarse means are kept, averaged with the loss after they are imposed.

    The latter alone does not constrain the sums that are divided out, and the network learns less (docs/method.md).
    With "softmax" only the latter counts: there is no target for its exponents.
    """
    stage, in_mm = run.stage, run.config.loss in IN_MM
    radius = stage.config.radius
    inner = batch.inputs[:, 0, radius:-radius, radius:-radius] if radius else batch.inputs[:, 0]
    interpolated = stage.precipitation.invert(inner)
    predictions = []
    if stage.config.conserve != "softmax":
        predictions.append(stage.predicted_for_loss(output, interpolated) if in_mm else output)
    if batch.coarse is not None and batch.weights is not None:
        kept = stage.conserved(output, interpolated, batch.coarse, batch.weights)
        predictions.append(kept if in_mm else stage.normalized_target(kept, interpolated))
    target = batch.values if in_mm else batch.target
    assert target is not None
    losses = [run.loss(prediction, target, batch.mask, batch.values) for prediction in predictions]
    return torch.stack(losses).mean()


def _validate(run: Run, state: State, row: dict[str, Any], watch: Watch) -> None:
    """Add the errors to ``row``, and the row to the history; keep the weights if they are the best so far, or stop.

    The score is the RMSE, or for a loss that is not lowest at the mean the loss itself: its best weights are others.
    """
    config, validation = run.config, run.validation
    score = -math.inf  # without validation days, the last weights are taken
    if validation is not None:
        row["rmse"], row["rmse_interpolation"] = validation.rmse(run.stage), validation.rmse_interpolation
        score = row["rmse"]
        if config.loss not in OF_THE_MEAN:
            score = row["validation_loss"] = validation.loss(run.stage, run.loss, config.loss in IN_MM)
    state.history.append(row)
    state.without_better += 1
    if score < state.best["score"] or validation is None:
        state.keep(score, row.get("rmse", math.nan))
    maps = validation.maps(run.stage) if validation is not None and watch.wants_maps else None
    watch.validated(row, state.net, maps)
    if config.patience is not None and state.without_better >= config.patience:
        logger.info(
            "Stage %d stops at step %d: no improvement in %d validations.", run.index, state.step, config.patience
        )
        state.finished = True


def _save(run: Run, state: State) -> None:
    """Write a checkpoint if there is a folder for it."""
    config, folder = run.config, run.folder
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder, state.history)  # first: a run killed in between writes it again
    # Rates and shuffling follow from the step and the seed: there is no other random state.
    write_checkpoint(
        folder,
        state.step,
        {
            **run.described,
            "config": asdict(config),
            "sampler": {"seed": config.seed, "position": state.step * config.batch},
            "schedule": {"step": state.step, "rate": learning_rate(state.step, config)},
            "net": state.net.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            **{name: getattr(state, name) for name in _PLAIN},
        },
    )


def _check_losses(run: Run, state: State, count: int) -> None:
    """Raise FloatingPointError if one of the last ``count`` losses is not finite, before anything of it is written."""
    bad = np.flatnonzero(~np.isfinite(state.losses[-count:]))
    if bad.size:
        step = state.step - count + int(bad[0]) + 1
        _stop(f"The loss of stage {run.index} is {state.losses[-count:][bad[0]]}", step, run)


def _check_weights(run: Run, state: State) -> None:
    """Raise FloatingPointError if a finite loss had an infinite or NaN gradient: such weights are not written."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in state.net.parameters()):
        _stop(f"The weights of stage {run.index} are no longer finite", state.step, run)


def _stop(what: str, step: int, run: Run) -> NoReturn:
    """Raise FloatingPointError that says where it happened, what is kept and what to do."""
    days = run.loader.pair.fine["time"].values[run.loader.days_of(step - 1)]
    last = checkpoints(run.folder) if run.folder is not None else []
    kept = f"The last good checkpoint is {last[-1]}." if last else "There is no checkpoint before it."
    raise FloatingPointError(
        f"{what} at step {step} (epoch {run.loader.epoch(step - 1):.2f}, patches of {len(days)} days from "
        f"{str(days[0])[:10]} to {str(days[-1])[:10]}). "
        f"{kept} Needed: a lower learning rate. Type TrainConfig(learning_rate=...) with a tenth of it, and give "
        "another folder."
    )
