"""Train stages on pairs of levels: the configuration, the loop, and the stack made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
import zarr
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from xdeepsd.checkpoints import checkpoints, read_checkpoint, write_checkpoint
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
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import TRANSFORMS, StackedSRCNN, Stage, interpolated_input
from xdeepsd.static import CLIMATOLOGY, block_mean

logger = logging.getLogger(__name__)

LOSSES = ("mse", "denseloss")
SCHEDULES = ("constant", "cosine", "exponential")
PRECISIONS = ("float32", "bfloat16")
# What may change between a run and its resumption: it does not enter the result.
_FREE = ("device", "workers", "threads", "checkpoint_every")


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained. The defaults are the paper's (Vandal et al., KDD 2017; SPEC 1); see `default`.

    Parameters
    ----------
    channels, kernels, static, residual
        The network, as in `SRCNNConfig`.
    patch
        Rows and columns of the network's input window, fine cells. The loss is taken in its 'valid' output, which
        is smaller by twice the radius: 26 of 38 for kernels 9-1-5.
    stride
        Step between patches, fine cells. The last patch of each axis ends at the edge of the map.
    min_land
        Smallest share of wanted cells (the level's mask) in the output window.
    batch, steps
        Patches in a batch, and batches.
    learning_rate, last_layer_rate
        Of Adam; the last layer learns at ``last_layer_rate`` times the rate.
    schedule
        "constant", "cosine" (to 0 at the last step) or "exponential" (times 0.96 every 100,000 steps, as deepsd).
    clip_gradient
        Largest norm of the gradient; None: not clipped.
    loss, alpha, wet_threshold, density_transform
        "mse", or "denseloss" with weights from `xdeepsd.DenseWeight` fitted on the training days' fine values.
    target_transform
        None, "sqrt" or "log1p": the network works on transformed precipitation; inverted exactly on output.
    train, validation, test
        Which days: a list of years (2004, 2005) or of dates ("2004-07", "2004-07-15", "2004-06-01/2004-08-31"), or for
        ``validation`` and ``test`` a fraction of the days at the end. ``train`` None: all that are in neither of the
        others. Test days are never read.
    validate_every, validation_days
        Steps between validations, and how many of the validation days (spread evenly) are looked at.
    patience
        Stop after so many validations without a better one; None: go on to the last step. The stage that comes out
        is always the best one on the validation days.
    seed
        Everything random follows from it.
    buffer, workers
        MiB and threads of the loader. ``workers`` changes only the speed.
    checkpoint_every
        Steps.
    device, precision, threads
        "cpu", "cuda", ...; None: a GPU if there is one. "float32" or "bfloat16" (mixed precision). CPU threads of
        torch; None: as they are.

    Raises
    ------
    ValueError
        A value that makes no sense, named with what is needed.
    """

    channels: tuple[int, ...] = (64, 32)
    kernels: tuple[int, ...] = (9, 1, 5)
    static: tuple[str, ...] = ("elevation",)
    residual: bool = False
    patch: int = 38
    stride: int = 20
    min_land: float = 0.5
    batch: int = 200
    steps: int = 100_000
    learning_rate: float = 1e-4
    last_layer_rate: float = 0.1
    schedule: str = "constant"
    clip_gradient: float | None = None
    loss: str = "mse"
    alpha: float = 1.0
    wet_threshold: float | None = None
    density_transform: str | None = None
    target_transform: str | None = None
    train: tuple[int | str, ...] | None = None
    validation: tuple[int | str, ...] | float | None = 0.1
    test: tuple[int | str, ...] | float | None = None
    validate_every: int = 250
    validation_days: int = 60
    patience: int | None = None
    seed: int = 0
    buffer: float = 512
    workers: int = 2
    checkpoint_every: int = 1000
    device: str | None = None
    precision: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "kernels", "static", "train", "validation", "test"):
            value = getattr(self, name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; needed: a list, such as {name}=({value!r},).")
            if isinstance(value, list | tuple | np.ndarray):
                object.__setattr__(self, name, tuple(value))
        network = self.network(2)
        if self.patch <= 2 * network.radius:
            raise ValueError(
                f"patch {self.patch} leaves nothing of the output: the kernels {self.kernels} take {network.radius} "
                f"cells off each side. Needed: more than {2 * network.radius}, such as 38."
            )
        for name, least in (
            ("stride", 1), ("batch", 1), ("steps", 1), ("validate_every", 1), ("validation_days", 1), ("workers", 1),
            ("checkpoint_every", 1), ("seed", 0), ("patience", 1), ("threads", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (int(value) != value or value < least):
                raise ValueError(f"{name} is {value}; needed: a whole number of at least {least}.")
        for name in ("learning_rate", "last_layer_rate", "clip_gradient", "buffer"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; needed: a number above 0.")
        if not 0 <= self.min_land <= 1:
            raise ValueError(f"min_land is {self.min_land}; needed: a share from 0 to 1.")
        for name in ("validation", "test"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; needed: a fraction of the days from 0 to below 1, or a list.")
        for name, choices in (
            ("loss", LOSSES), ("schedule", SCHEDULES), ("precision", PRECISIONS), ("target_transform", TRANSFORMS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; needed: one of {', '.join(map(repr, choices))}.")

    @classmethod
    def paper(cls, **changes: Any) -> TrainConfig:
        """As published: 9-1-5, 64-32-1, elevation, Adam 1e-4 and 1e-5, batches of 200, 100,000 steps."""
        return cls(**changes)

    @classmethod
    def default(cls, **changes: Any) -> TrainConfig:
        """What works better on a short budget (SPEC 1): residual, climatology, 3e-3 with cosine decay, 2000 x 32."""
        return dataclasses.replace(
            cls(
                static=("elevation", "climatology"), residual=True, batch=32, steps=2000, learning_rate=3e-3,
                schedule="cosine", clip_gradient=1.0,
            ),
            **changes,
        )  # fmt: skip

    def network(self, factor: int) -> SRCNNConfig:
        """Configuration of a stage's network."""
        return SRCNNConfig(self.channels, self.kernels, factor, self.static, self.residual)


class Split(NamedTuple):
    """Positions along time of the days of each part, increasing."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_days(time: xr.DataArray, config: TrainConfig) -> Split:
    """Share out whole days as ``config`` says.

    Raises ValueError where parts overlap, where a part that was asked for is empty and where no day is left to train.
    """
    size = time.size
    chosen: dict[str, np.ndarray] = {}
    last = size
    for name in ("test", "validation"):
        wanted = getattr(config, name)
        if isinstance(wanted, float):
            # The fraction is of all days; the test days are the last ones, the validation days those before them.
            count = round(wanted * size)
            chosen[name] = np.arange(max(last - count, 0), last)
            last -= count
        else:
            chosen[name] = _select(time, wanted or (), name)
    overlap = np.intersect1d(chosen["test"], chosen["validation"])
    if overlap.size:
        raise ValueError(_overlap("validation", "test", time, overlap))
    kept_out = np.union1d(chosen["test"], chosen["validation"])
    if config.train is None:
        train = np.setdiff1d(np.arange(size), kept_out)
    else:
        train = _select(time, config.train, "train")
        for name in ("validation", "test"):
            overlap = np.intersect1d(train, chosen[name])
            if overlap.size:
                raise ValueError(_overlap("train", name, time, overlap))
    if not train.size:
        raise ValueError(
            f"No day is left for training: of {size} days, {chosen['validation'].size} are for validation and "
            f"{chosen['test'].size} for test. Needed: at least one. Type TrainConfig(validation=..., test=...)."
        )
    return Split(train, chosen["validation"], chosen["test"])


def _select(time: xr.DataArray, wanted: Sequence[int | str], name: str) -> np.ndarray:
    positions = xr.DataArray(np.arange(time.size), {"time": time.values}, ("time",))
    found = [np.empty(0, int)]
    for item in wanted:
        if isinstance(item, str):
            first, _, end = item.partition("/")
            try:
                part = positions.sel(time=slice(first, end) if end else slice(first, first)).values
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{name} has {item!r}, which is no date ({error}). Needed: a year as a number, '2004-07', "
                    "'2004-07-15' or '2004-06-01/2004-08-31'."
                ) from error
        else:
            part = positions.values[time.dt.year.values == int(item)]
        if not part.size:
            raise ValueError(
                f"{name} has {item!r}, but the levels have no such day: they go from {time.values[0]} to "
                f"{time.values[-1]}."
            )
        found.append(part)
    return np.unique(np.concatenate(found))


def _overlap(one: str, other: str, time: xr.DataArray, days: np.ndarray) -> str:
    return (
        f"The {one} and {other} days overlap in {days.size} days, the first is {str(time.values[days[0]])[:10]}. "
        "Needed: no day in both, or the errors reported would be too small. Take the days out of one of the lists."
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of the step (from 0).

    >>> learning_rate(500, TrainConfig(learning_rate=1e-3, schedule="cosine", steps=1000))
    0.0005
    """
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    if config.schedule == "exponential":
        return config.learning_rate * 0.96 ** (step / 1e5)
    return config.learning_rate


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean square over the cells of the mask; 0 where there is none. ``target`` must be finite everywhere."""
    return ((prediction - target).square() * mask).sum() / mask.sum().clamp_min(1)


class TrainedStage(NamedTuple):
    """A stage, one row per validation, and what is worth knowing of the training."""

    stage: Stage
    history: pd.DataFrame
    summary: dict[str, Any]


def initialize(net: SRCNN, generator: torch.Generator) -> None:
    """Uniform weights and biases within ``1 / sqrt(fan in)``, torch's own choice, but from a generator of ours."""
    fan_in = 1
    with torch.no_grad():
        for parameter in net.parameters():  # weight, bias, weight, ...
            if parameter.ndim == 4:
                fan_in = parameter[0].numel()
            parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


class _Validation:
    """The validation days in memory, and the error of interpolation on them."""

    def __init__(self, pair: Pair, days: np.ndarray, limit: int, device: torch.device) -> None:
        self.days = days[np.unique(np.linspace(0, len(days) - 1, min(len(days), limit)).round().astype(int))]
        parts = [pair.observed(slab) for slab in slabs(pair, self.days, limit=len(self.days))]
        self._coarse = torch.from_numpy(np.concatenate([coarse for coarse, _ in parts])).to(device)
        target = torch.from_numpy(np.concatenate([target for _, target in parts]))
        self._mask = ~target.isnan()
        self._target = target.nan_to_num()
        self._static = torch.from_numpy(pair.static).to(device)
        cells = pair.mask.size * max(pair.config.channels)
        self._at_once = max(1, 2**24 // cells)  # 64 MiB for the widest layer
        radius = pair.config.radius
        interpolated = interpolated_input(self._coarse[:, None].cpu(), pair.config)[:, 0]
        inner = interpolated[:, radius:-radius, radius:-radius] if radius else interpolated
        self.rmse_interpolation = self._rmse(inner)

    def _rmse(self, prediction: Tensor) -> float:
        squares = (prediction - self._target).double().square() * self._mask
        return math.sqrt(float(squares.sum()) / max(int(self._mask.sum()), 1))

    @torch.inference_mode()
    def rmse(self, stage: Stage) -> float:
        """Root mean square error of whole maps, as at inference, units of precipitation."""
        parts = [stage(coarse, self._static).cpu() for coarse in self._coarse.split(self._at_once)]
        return self._rmse(torch.cat(parts))


def train_stage(
    coarse: xr.Dataset,
    fine: xr.Dataset,
    config: TrainConfig | None = None,
    *,
    index: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> TrainedStage:
    """Train one stage on observed pairs of a coarse and a fine level.

    Parameters
    ----------
    coarse, fine
        Levels as in docs/conventions.md, lazy or in memory: ``precipitation (time, lat, lon)``, ``mask`` and the
        static fields of ``config``. The days must be the same. Where a static field ``climatology`` is asked for and
        not there, it is the mean of the training days.
    config
        `TrainConfig.default()` if None.
    index
        Number of the stage in its stack, from 0; enters the seed and the messages.
    checkpoint_dir
        Folder for checkpoints and ``metrics.parquet``; None: none are written.
    resume
        Go on from the newest checkpoint in ``checkpoint_dir`` if there is one.
    progress
        Show a progress bar.

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
    """
    config = config or TrainConfig.default()
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    if folder is not None and checkpoints(folder) and not resume:
        raise FileExistsError(
            f"{folder} holds checkpoints of another run. Type resume=True to go on with it, or give another folder."
        )
    split = split_days(fine["time"], config)
    coarse, fine = _with_climatology(coarse, fine, config, split.train)
    factor = _factor(coarse, fine)
    pair = make_pair(coarse, fine, config.network(factor), config.target_transform)
    radius = pair.config.radius
    output = (min(config.patch - 2 * radius, pair.shape[0]), min(config.patch - 2 * radius, pair.shape[1]))
    origins = patch_origins(pair.mask, output, config.stride, config.min_land)
    buffer = int(config.buffer * MIB)
    train_slabs = slabs(pair, split.train, limit=max(1, buffer // (4 * bytes_per_day(pair))))
    state = read_checkpoint(folder) if folder is not None and resume else None
    identity = _identity(pair, split)
    if state is not None:
        _check_same(state, config, identity, folder)

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    normalizers = _normalizers(state["normalizers"]) if state else fit_normalizers(pair, train_slabs, config.workers)
    net = SRCNN(pair.config)
    initialize(
        net, torch.Generator().manual_seed(int(np.random.SeedSequence([config.seed, index]).generate_state(1)[0]))
    )
    net.to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on CPU
    stage = Stage(net, normalizers.precipitation, normalizers.static, normalizers.target, config.target_transform)
    optimizer = torch.optim.Adam(
        [{"params": net.layers[:-1].parameters(), "factor": 1.0},
         {"params": net.layers[-1].parameters(), "factor": config.last_layer_rate}],
        lr=config.learning_rate,
    )  # fmt: skip
    loader = PatchLoader(
        pair, normalizers, train_slabs, origins, output, config.batch, (config.seed, index), buffer, config.workers
    )
    held = _Validation(pair, split.validation, config.validation_days, device) if split.validation.size else None
    step, without_better, finished = 0, 0, False
    history: list[dict[str, Any]] = []
    losses: list[float] = []
    best: dict[str, Any] = {"step": 0, "rmse": math.inf, "net": _copy(net)}
    if state is not None:
        step, history, best = state["step"], state["history"], state["best"]
        without_better, losses, finished = state["without_better"], state["losses"], state["finished"]
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        logger.info("Stage %d goes on after step %d of %d.", index, step, config.steps)

    def save() -> None:
        if folder is not None:
            write_checkpoint(folder, step, {
                "config": asdict(config), "identity": identity, "normalizers": asdict(normalizers),
                "net": net.state_dict(), "optimizer": optimizer.state_dict(), "position": step * config.batch,
                "history": history, "best": best, "without_better": without_better, "losses": losses,
                "finished": finished,
            })  # fmt: skip
            pd.DataFrame(history).to_parquet(folder / "metrics.parquet")

    batches = loader.batches(step)
    began, waited = time.perf_counter(), 0.0
    with _bar(progress and not finished, index, config.steps) as show:
        while step < config.steps and not finished:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            losses.append(_update(net, optimizer, batch, config, device))
            step += 1
            if not math.isfinite(losses[-1]):
                batches.close()
                raise FloatingPointError(_nan_loss(index, step, loader, pair, folder))
            if step % config.validate_every == 0 or step == config.steps:
                row = {"step": step, "epoch": loader.epoch(step), "loss": float(np.mean(losses)), "learning_rate": rate}
                losses = []
                if held is not None:
                    row |= {"rmse": held.rmse(stage), "rmse_interpolation": held.rmse_interpolation}
                    without_better += 1
                    if row["rmse"] < best["rmse"]:
                        best, without_better = {"step": step, "rmse": row["rmse"], "net": _copy(net)}, 0
                else:
                    best = {"step": step, "rmse": math.nan, "net": _copy(net)}
                seconds = time.perf_counter() - began
                row |= {"seconds": seconds, "waiting_share": waited / seconds}
                history.append(row)
                show(step, row)
                if config.patience is not None and without_better >= config.patience:
                    logger.info("Stage %d stops at step %d: no better validation in %d.", index, step, without_better)
                    finished = True
            finished = finished or step == config.steps
            if step % config.checkpoint_every == 0 or finished:
                save()
    batches.close()
    net.load_state_dict(best["net"])
    net.to("cpu")
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    stage = dataclasses.replace(stage, net=net.eval())
    summary = _summary(index, config, pair, split, best, step, held)
    return TrainedStage(stage, pd.DataFrame(history), summary)


def _update(
    net: SRCNN, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, device: torch.device
) -> float:
    """One step; the loss before it."""
    inputs = batch.inputs.to(device, memory_format=torch.channels_last, non_blocking=True)
    target, mask = (t.to(device, non_blocking=True) for t in (batch.target, batch.mask))
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        prediction = net(inputs)[:, 0]
    loss = masked_mse(prediction.float(), target, mask)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip_gradient is not None:
        nn.utils.clip_grad_norm_(net.parameters(), config.clip_gradient)
    optimizer.step()
    return float(loss.detach())


def _copy(net: SRCNN) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


def _factor(coarse: xr.Dataset, fine: xr.Dataset) -> int:
    ratio = fine.sizes["lat"] / max(coarse.sizes["lat"], 1)
    return max(1, round(ratio))


def _normalizers(saved: dict[str, Any]) -> Normalizers:
    static = {name: Normalizer(**n) for name, n in saved["static"].items()}
    return Normalizers(Normalizer(**saved["precipitation"]), static, Normalizer(**saved["target"]))


def _with_climatology(
    coarse: xr.Dataset, fine: xr.Dataset, config: TrainConfig, days: np.ndarray
) -> tuple[xr.Dataset, xr.Dataset]:
    """Both levels with a climatology if the network wants one: the given one, else the mean of the training days."""
    if CLIMATOLOGY not in config.static:
        return coarse, fine
    if CLIMATOLOGY not in fine:
        logger.info("No climatology given: taking the mean of the %d training days.", len(days))
        mean = fine["precipitation"].isel(time=days).mean("time").compute().astype(np.float32)
        fine = fine.assign({CLIMATOLOGY: mean.assign_attrs(units=fine["precipitation"].attrs.get("units", ""))})
        coarse = coarse.drop_vars(CLIMATOLOGY, errors="ignore")
    if CLIMATOLOGY not in coarse:
        means = block_mean(np.asarray(fine[CLIMATOLOGY].transpose("lat", "lon")), _factor(coarse, fine))
        coarse = coarse.assign({CLIMATOLOGY: (("lat", "lon"), means.astype(np.float32))})
    return coarse, fine


def _identity(pair: Pair, split: Split) -> dict[str, Any]:
    """What the data of a run are, to tell another run's checkpoint apart."""
    digest = hashlib.sha256()
    for part in (pair.mask, pair.static, *split, np.asarray(pair.fine["time"].values.astype(str))):
        digest.update(np.ascontiguousarray(part).tobytes())
    return {"shape": list(pair.shape), "factor": pair.config.factor, "digest": digest.hexdigest()}


def _check_same(state: dict[str, Any], config: TrainConfig, identity: dict[str, Any], folder: Path | None) -> None:
    """Raise ValueError where a checkpoint was written by another configuration or from other data."""
    now, then = asdict(config), state["config"]
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
    if state["identity"] != identity:
        raise ValueError(
            f"The checkpoint in {folder} belongs to other levels (days, mask or static fields differ): "
            f"{state['identity']['shape']} cells then, {identity['shape']} now. Give the same levels, or a new folder."
        )


def _nan_loss(index: int, step: int, loader: PatchLoader, pair: Pair, folder: Path | None) -> str:
    days = pair.fine["time"].values[loader.days_of(step - 1)]
    last = checkpoints(folder) if folder is not None else []
    kept = f"The last good checkpoint is {last[-1]}." if last else "There is no checkpoint."
    return (
        f"The loss of stage {index} is not finite at step {step} (batch from {len(days)} days, "
        f"{str(days[0])[:10]} to {str(days[-1])[:10]}). {kept} Needed: smaller steps. Type "
        "TrainConfig(learning_rate=...) with a tenth of it, or clip_gradient=1.0."
    )


def _summary(
    index: int,
    config: TrainConfig,
    pair: Pair,
    split: Split,
    best: dict[str, Any],
    steps: int,
    held: _Validation | None,
) -> dict[str, Any]:
    """Say in the log, and return, how the stage compares with interpolation."""
    time_values = pair.fine["time"].values
    summary: dict[str, Any] = {
        "stage": index,
        "factor": pair.config.factor,
        "seed": config.seed,
        "days": {name: len(days) for name, days in split._asdict().items()},
        "first_day": str(time_values[split.train[0]])[:10],
        "last_day": str(time_values[split.train[-1]])[:10],
        "steps": steps,
        "best_step": best["step"],
    }
    if held is None:
        logger.warning("Stage %d: no validation days, so nothing is known of its error.", index)
        return summary
    better = best["rmse"] < held.rmse_interpolation
    summary |= {
        "rmse": best["rmse"], "rmse_interpolation": held.rmse_interpolation, "beats_interpolation": better,
    }  # fmt: skip
    text = "Stage %d: RMSE on %d validation days %.4g, bilinear interpolation %.4g."
    values = (index, len(held.days), best["rmse"], held.rmse_interpolation)
    if better:
        logger.info(text, *values)
    else:
        logger.warning(text + " THE MODEL DOES NOT BEAT INTERPOLATION: train longer or on more days.", *values)
    return summary


@contextmanager
def _bar(wanted: bool, index: int, steps: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A function that shows a row of the history."""
    if not wanted:
        yield lambda step, row: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[errors]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task(f"stage {index}", total=steps, errors="")

        def show(step: int, row: dict[str, Any]) -> None:
            errors = f"loss {row['loss']:.4f}"
            if "rmse" in row:
                errors += f", RMSE {row['rmse']:.4g}, interpolation {row['rmse_interpolation']:.4g}"
            bar.update(task, completed=step, errors=errors)

        yield show


Levels = str | os.PathLike[str] | Sequence[xr.Dataset]


def open_level(levels: Levels, k: int) -> xr.Dataset:
    """Level ``k`` of a ladder, lazy: group ``level_k`` of a Zarr store, or the k-th Dataset of a sequence."""
    if isinstance(levels, str | os.PathLike):
        return xr.open_zarr(levels, group=f"level_{k}", chunks={})
    return levels[k]


def count_levels(levels: Levels) -> int:
    """Levels of a ladder. Raises ValueError where there are fewer than two."""
    if isinstance(levels, str | os.PathLike):
        groups = zarr.open_group(str(levels), mode="r").group_keys()
        count = sum(re.fullmatch(r"level_\d+", name) is not None for name in groups)
    else:
        count = len(levels)
    if count < 2:
        raise ValueError(
            f"{count} level(s) in {levels if isinstance(levels, str | os.PathLike) else 'the sequence'}. Needed: two "
            "or more, coarsest first (groups level_0, level_1, ...). Type xdeepsd.make_levels(...)."
        )
    return count


def stage_levels(levels: Levels, k: int, config: TrainConfig) -> tuple[xr.Dataset, xr.Dataset]:
    """Input and output level of stage ``k``, their static fields taken from the finest level by block means.

    That is how inference takes them. A climatology that is asked for and not given is the mean of the finest
    level's training days.
    """
    last = count_levels(levels) - 1
    finest = open_level(levels, last)
    _, finest = _with_climatology(finest, finest, config, split_days(finest["time"], config).train)
    pair = []
    for level in (k, k + 1):
        ds = open_level(levels, level)
        factor = _factor(ds, finest)
        if finest.sizes["lat"] != factor * ds.sizes["lat"] or finest.sizes["lon"] != factor * ds.sizes["lon"]:
            raise ValueError(
                f"Level {last} has {finest.sizes['lat']} x {finest.sizes['lon']} cells, level {level} "
                f"{ds.sizes['lat']} x {ds.sizes['lon']}: they do not divide. Needed: a whole factor, the same along "
                "both axes. Crop the finest grid to a multiple of the scale and make the levels from it."
            )
        fields = {}
        for name in config.static:
            if name not in finest:
                continue  # make_pair says what is missing
            field = np.asarray(finest[name].transpose("lat", "lon"))
            fields[name] = (("lat", "lon"), field if factor == 1 else block_mean(field, factor).astype(np.float32))
        pair.append(ds.drop_vars(config.static, errors="ignore").assign(fields))
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
        Path of a Zarr store with the groups ``level_0`` (coarsest) to ``level_N``, or Datasets, coarsest first (see
        docs/conventions.md).
    config
        One `TrainConfig` for all stages, or one for each. None: `TrainConfig.default()`.
    client
        A `distributed.Client`: all stages train at once on its workers.
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
    ValueError, FileExistsError, FloatingPointError
        As `train_stage`.
    """
    count = count_levels(levels) - 1
    config = config or TrainConfig.default()
    configs = [config] * count if isinstance(config, TrainConfig) else list(config)
    if len(configs) != count:
        raise ValueError(f"{len(configs)} configurations for {count} stages. Needed: one, or one for each stage.")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    trained = []
    for k in range(count):
        coarse, fine = stage_levels(levels, k, configs[k])
        trained.append(
            train_stage(
                coarse, fine, configs[k], index=k, checkpoint_dir=folder and folder / f"stage_{k}", resume=resume,
                progress=progress,
            )
        )  # fmt: skip
    return assemble(levels, configs, trained)


def assemble(levels: Levels, configs: Sequence[TrainConfig], trained: Sequence[TrainedStage]) -> StackedSRCNN:
    """The stack of trained stages, with the grid, static fields and mask of the finest level."""
    finest = open_level(levels, count_levels(levels) - 1)
    names = list(dict.fromkeys(name for config in configs for name in config.static))
    wanted = dataclasses.replace(configs[-1], static=tuple(names))
    _, finest = _with_climatology(finest, finest, wanted, split_days(finest["time"], wanted).train)
    units = finest["precipitation"].attrs.get("units")
    if not units:
        raise ValueError(
            "The precipitation of the finest level has no units. Type level['precipitation'].attrs['units'] = "
            "'mm day-1' with its true units."
        )
    static = finest[names].transpose("lat", "lon").reset_coords(drop=True).load()
    mask = finest["mask"].transpose("lat", "lon").reset_coords(drop=True).astype(bool).load()
    training = {
        "stages": [stage.summary for stage in trained],
        "config": [asdict(config) for config in configs],
    }
    return StackedSRCNN([stage.stage for stage in trained], units, "precipitation", static, mask, training)
