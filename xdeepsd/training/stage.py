"""Train one stage on a pair of levels: its start, anew or from a checkpoint, and its summary."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr

from xdeepsd.levels.climatology import coarse_bias, with_climatology
from xdeepsd.levels.coarse import product_of
from xdeepsd.levels.normalizers import Normalizers, fit_normalizers
from xdeepsd.levels.pairs import Pair, factor_between, make_pair, slabs
from xdeepsd.levels.patches import MIB, PatchLoader, bytes_per_day, patch_origins
from xdeepsd.levels.regression import fit_regression, with_fields
from xdeepsd.levels.splits import Split
from xdeepsd.losses.dense_weight import DenseWeight
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stage import Stage
from xdeepsd.models.static import COARSE_BIAS, REGRESSION, regression_names
from xdeepsd.models.threads import torch_threads
from xdeepsd.stores.begun import changed_fields
from xdeepsd.training.checkpoints import METRICS, checkpoints, read_checkpoint
from xdeepsd.training.config import FREE, IN_MM, LATER, TrainConfig
from xdeepsd.training.ladder import for_product
from xdeepsd.training.loop import Run, State, learn
from xdeepsd.training.losses import fit_density, loss_function
from xdeepsd.training.spread import scale_noise
from xdeepsd.training.validation import Validation
from xdeepsd.training.watch import Watch

logger = logging.getLogger(__name__)


class TrainedStage(NamedTuple):
    """A stage, a row for each validation, a summary of the training, and the static fields that the stage learned.

    ``fields``: the regression's coefficients ``(lat, lon)`` on the fine grid, dimensionless; empty unless
    ``TrainConfig.static`` names "regression". A stack needs them among its static fields.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> trained = xdeepsd.train_stage(*levels, xdeepsd.TrainConfig(static=("elevation",), **small))
    >>> trained.summary["days"]
    {'train': 54, 'validation': 6, 'test': 0}
    """

    stage: Stage
    history: pd.DataFrame
    summary: dict[str, Any]
    fields: xr.Dataset


def initialize(net: SRCNN, seed: Sequence[int]) -> None:
    """Uniform weights and biases within ``1 / sqrt(fan in)``: torch's default, but with our own generator.

    Stages that train in threads of one process would share torch's global generator.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    fan_in = 1
    with torch.no_grad():
        for parameter in net.parameters():  # weight, bias, weight, ...
            if parameter.ndim == 4:
                fan_in = parameter[0].numel()
            parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


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
        static fields of ``config``, on the same days. If ``climatology`` is asked for but missing, it is the mean of
        the training days (see `with_climatology`). Where ``coarse`` is an independent product (see `make_levels`), its
        means are not kept, and ``climatology`` enters as the ratio of the observed mean to the product's.
    config
        `TrainConfig()` if None.
    index
        Number of the stage in its stack, from 0; used for the seed and in messages.
    checkpoint_dir
        Folder for checkpoints and ``metrics.parquet``; None: none are written.
    resume
        Continue from the newest checkpoint in ``checkpoint_dir`` if there is one. On a CPU the result is bit for bit
        the same as without the interruption (with the same number of torch threads).
    progress
        Show a progress bar.

    Returns
    -------
    `TrainedStage`: the stage (the best one on the validation days), one row per validation, a summary.

    Raises
    ------
    ValueError
        Unusable levels or days (see `make_pair`, `split_days`), a climatology that includes validation or test
        days, validation days without observations, a checkpoint of another configuration or other data.
    FileExistsError
        ``checkpoint_dir`` holds checkpoints and ``resume`` is False.
    FloatingPointError
        The loss or the weights became NaN or infinite. The last good checkpoint stays.
    OSError
        A checkpoint could not be written. The one before it stays.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> config = xdeepsd.TrainConfig(static=("elevation",), validate_every=1, **small)
    >>> trained = xdeepsd.train_stage(*levels, config)
    >>> trained.history["step"].tolist()
    [1, 2]
    """
    config = for_product(config or TrainConfig(), coarse, index)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    check_folder(folder, resume, config)
    split = config.split(fine["time"])
    coarse, fine = with_climatology(coarse, fine, config.given_static, split)
    if COARSE_BIAS in config.static and COARSE_BIAS not in fine and product_of(coarse) is not None:
        fine = fine.assign({COARSE_BIAS: (("lat", "lon"), coarse_bias(coarse, fine, split))})
    return train_pair(*stage_pair(coarse, fine, config), config, index, folder, resume, progress)


def train_pair(
    pair: Pair, split: Split, config: TrainConfig, index: int, folder: Path | None, resume: bool, progress: bool,
    density: DenseWeight | None = None,
) -> TrainedStage:  # fmt: skip
    """`train_stage` on the result of `stage_pair`.

    ``density`` is the result of `fit_density` for these data, for any alpha; None: it is fitted if the loss needs it.
    """
    unit = pair.config.factor if config.conserve else 1  # whole coarse cells, whose means can be kept
    side = (config.patch - 2 * pair.config.radius) // unit * unit
    if not side:
        least = unit + 2 * pair.config.radius
        raise ValueError(
            f"patch {config.patch} leaves {config.patch - least + unit} output cells along each side, and a coarse "
            f"cell takes {unit}. Needed: {least} or more. Type patch={least}, or conserve=None."
        )
    output = min(side, pair.shape[0]), min(side, pair.shape[1])
    origins = patch_origins(pair.mask, output, config.stride, config.min_land, unit)
    identity = _identity(pair, split)
    saved = read_checkpoint(folder) if folder is not None and resume else None
    if saved is not None:
        _check_same(saved, config, identity, folder)
        _check_data(saved, pair, split)
    with torch_threads(config.threads):
        device = _device(config)
        buffer, with_values = int(config.buffer * MIB), config.loss in ("denseloss", *IN_MM)
        days = slabs(pair, split.train, limit=max(1, buffer // (4 * bytes_per_day(pair, with_values))))
        regression = saved.get("regression") if saved is not None else None
        if REGRESSION in config.static:
            if regression is None:
                regression = torch.from_numpy(fit_regression(pair, days, config.workers))
            pair = with_fields(pair, regression_names(index), regression.numpy())
        validation = (
            Validation(pair, split.validation, config.validation_days, device) if split.validation.size else None
        )
        normalizers = (
            fit_normalizers(pair, days, config.workers) if saved is None else _normalizers(saved["normalizers"])
        )
        stage, state = _begin(pair.config, normalizers, config, index, device)
        if saved is not None:
            state.restore(saved)
            logger.info("Stage %d resumes after step %d of %d.", index, state.step, config.steps)
        density = _density(config, pair, split, saved, density)
        if density is not None:
            logger.info("Stage %d, weights of DenseLoss: %s", index, density.summary())
        if not state.finished:
            loader = PatchLoader(
                pair, normalizers, days, origins, output, config.batch, (config.seed, index), buffer, config.workers,
                with_values=with_values,
            )  # fmt: skip
            described = {
                "identity": identity, "normalizers": asdict(normalizers), "index": index,
                "density": None if density is None else density.to_dict(), "regression": regression,
                "digests": torch.from_numpy(pair.digests),  # shared: as they are when a checkpoint is written
            }  # fmt: skip
            loss = loss_function(config, density, device)
            run = Run(index, config, stage, loader, loss, validation, folder, described)
            events = folder / "tensorboard" if folder is not None and config.tensorboard else None
            with Watch(index, state.step, config.steps, config.batch, progress, events) as watch:
                learn(run, state, watch)
        stage, calibrated = _best(stage, state, validation)
    summary = _summary(index, config, pair, split, state, validation) | calibrated
    if density is not None:
        summary["density"] = density.summary()
    learned = dict(zip(regression_names(index), () if regression is None else regression, strict=False))
    coords = {name: pair.fine[name] for name in ("lat", "lon") if name in pair.fine.coords}
    fields = xr.Dataset({name: (("lat", "lon"), field.numpy()) for name, field in learned.items()}, coords)
    return TrainedStage(stage, pd.DataFrame(state.history), summary, fields)


def _begin(
    network: SRCNNConfig, normalizers: Normalizers, config: TrainConfig, index: int, device: torch.device
) -> tuple[Stage, State]:
    """A stage with initial weights from its seed, and the state before the first step."""
    net = SRCNN(network)
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
    return stage, State(net, optimizer)


def _density(
    config: TrainConfig, pair: Pair, split: Split, saved: Mapping[str, Any] | None, given: DenseWeight | None
) -> DenseWeight | None:
    """The weights of DenseLoss: from the checkpoint, the ``given`` ones or newly fitted; None for other losses."""
    if config.loss != "denseloss":
        return None
    if saved is not None:
        return DenseWeight.from_dict(saved["density"])
    return fit_density(config, pair, split.train) if given is None else given.with_alpha(config.alpha)


def _best(stage: Stage, state: State, validation: Validation | None) -> tuple[Stage, dict[str, float]]:
    """The stage with its best weights on the validation days, on the CPU and ready to predict.

    And the result of `scale_noise`, where the stage takes noise.
    """
    net = state.net
    net.load_state_dict(state.best["net"])
    found = {}
    if stage.config.noise and validation is not None:
        found = scale_noise(stage, validation)
        state.best["rmse"] = validation.rmse(stage)
    net.to("cpu")
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return dataclasses.replace(stage, net=net.eval()), found


def _device(config: TrainConfig) -> torch.device:
    """The device of the configuration; if it names none, a GPU if there is one."""
    try:
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device is {config.device!r}; needed: a torch device, such as 'cuda', or None.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, but torch finds no CUDA on this machine. Type device='cpu'.")
    return device


def check_folder(folder: Path | None, resume: bool, config: TrainConfig) -> None:
    """Raise where a run would overwrite the checkpoints of another run, or needs a folder and has none."""
    if folder is not None and not resume and checkpoints(folder):
        raise FileExistsError(
            f"{folder} holds checkpoints of an earlier run. Type resume=True to continue it, or give another folder."
        )
    metrics = None if folder is None else folder / METRICS
    if metrics is not None and metrics.exists() and not checkpoints(metrics.parent) and not _is_metrics(metrics):
        raise FileExistsError(f"{metrics} exists, but no training run wrote it. It is left alone: give another folder.")
    if folder is None and (resume or config.tensorboard):
        raise ValueError(
            f"{'resume' if resume else 'tensorboard'} needs a folder of checkpoints. Type checkpoint_dir='FOLDER'."
        )


def _is_metrics(path: Path) -> bool:
    """Whether a file was left by a training run that was stopped before its first checkpoint."""
    try:
        columns = set(pd.read_parquet(path).columns)
    except (OSError, ValueError):  # includes those of pyarrow
        return False
    return not columns or {"step", "epoch", "loss"} <= columns


def _normalizers(saved: Mapping[str, Any]) -> Normalizers:
    static = {name: Normalizer(**n) for name, n in saved["static"].items()}
    return Normalizers(Normalizer(**saved["precipitation"]), static, Normalizer(**saved["target"]))


def stage_pair(coarse: xr.Dataset, fine: xr.Dataset, config: TrainConfig) -> tuple[Pair, Split]:
    """The pair that a stage learns from, and the split of its days; the levels must hold all static fields."""
    network = config.network(factor_between(coarse, fine))
    return make_pair(coarse, fine, network, config.target_transform), config.split(fine["time"])


def _identity(pair: Pair, split: Split) -> dict[str, Any]:
    """A description of the data, to recognise checkpoints of other runs."""
    digest = hashlib.sha256()
    for part in (pair.mask, pair.static, *split, pair.fine["time"].values.astype(str)):
        digest.update(np.ascontiguousarray(part).tobytes())
    return {"shape": list(pair.shape), "factor": pair.config.factor, "digest": digest.hexdigest()}


def _check_same(saved: Mapping[str, Any], config: TrainConfig, identity: dict[str, Any], folder: Path | None) -> None:
    """Raise ValueError where a checkpoint was written with another configuration or other data."""
    different = changed_fields(LATER | saved["config"], asdict(config), FREE)
    if different:
        raise ValueError(
            f"The checkpoint in {folder} was written with another configuration: {'; '.join(different)}. Type the same "
            "configuration to resume, or give another folder to start anew."
        )
    if saved["identity"] != identity:
        raise ValueError(
            f"The checkpoint in {folder} is of a stage trained on other levels (the days, the mask or the static "
            f"fields differ): {saved['identity']['shape']} cells then, {identity['shape']} now. Give the same levels, "
            "or a new folder."
        )


def _check_data(saved: Mapping[str, Any], pair: Pair, split: Split) -> None:
    """Take over the checksums of a checkpoint; ValueError now, not an epoch later, if the first day has changed."""
    if "digests" in saved:  # missing in checkpoints of older versions of xdeepsd
        pair.digests[:] = saved["digests"]
    pair.observed(split.train[:1])


def _summary(
    index: int, config: TrainConfig, pair: Pair, split: Split, state: State, validation: Validation | None
) -> dict[str, Any]:
    """Log and return how the stage compares with interpolation."""
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
        logger.warning("Stage %d: no validation days, so its error is unknown.", index)
        return summary
    rmse, interpolation = state.best["rmse"], validation.rmse_interpolation
    summary |= {"rmse": rmse, "rmse_interpolation": interpolation, "beats_interpolation": rmse < interpolation}
    text = f"Stage {index}, {len(validation.days)} validation days: RMSE {rmse:.4g}, interpolation {interpolation:.4g}"
    if rmse < interpolation:
        logger.info("%s (%.0f %% less).", text, 100 * (1 - rmse / interpolation))
    else:
        logger.warning("%s. THE MODEL DOES NOT BEAT INTERPOLATION: train longer, or on more days.", text)
    return summary
