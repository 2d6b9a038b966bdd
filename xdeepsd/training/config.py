"""How a stage is trained: `TrainConfig`, its presets and its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from xdeepsd.levels.splits import Split, split_days
from xdeepsd.losses.dense_weight import DenseWeight
from xdeepsd.models import html
from xdeepsd.models.srcnn import HEADS, SRCNNConfig
from xdeepsd.models.static import REGRESSION
from xdeepsd.models.transform import check

LOSSES = ("mse", "denseloss", "mae", "huber", "pinball", "tweedie", "bernoulli_gamma", "crps")
# Losses of precipitation in mm day-1; the others see normalised, transformed values.
IN_MM = ("tweedie", "bernoulli_gamma")
# Losses that are lowest at the mean: a stage is then chosen by its RMSE, otherwise by the loss itself.
OF_THE_MEAN = ("mse", "tweedie")
SCHEDULES = ("constant", "cosine", "exponential")
PRECISIONS = ("float32", "bfloat16")
# Fields that may change when a run is resumed: they do not affect the result.
FREE = ("device", "workers", "threads", "checkpoint_every", "tensorboard")
# Fields that checkpoints of older versions lack, with what they amounted to.
LATER = {
    "noise": 0, "members": 2, "head": None, "quantile": 0.5, "tweedie_power": 1.5, "weight_cap": None, "anneal": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained; the defaults are what we recommend, `paper` is what was published.

    Parameters
    ----------
    channels, kernels, static, residual, target_transform, conserve, head
        *Network*, as in `SRCNNConfig`; ``target_transform`` None, "sqrt" or "log1p": network and loss work on
        transformed precipitation, which is inverted exactly on output. ``static`` names maps of the levels; a missing
        "climatology" is the mean of the training days, and "regression" stands for five fields that each stage fits
        to the training days at each cell of its own grid (`xdeepsd.levels.regression`): a stack with it serves that
        grid or parts of it only. ``head`` None: the one that the loss needs.
    patch, stride, min_land
        *Patches*: rows and columns of the network's input window, in fine cells; the step between patches (the last one
        along each axis ends at the edge of the map); the smallest share of wanted cells (the level's mask) in the
        output window. The loss is taken over the 'valid' output, which is smaller by twice the radius: 26 of 38 for
        9-1-5.
    batch, steps, learning_rate, last_layer_rate, schedule, clip_gradient
        *Optimiser*: patches in a batch, and number of batches; Adam's learning rate, and the factor on it for the last
        layer; "constant", "cosine" (to 0 at the last step) or "exponential" (times 0.96 every 100,000 steps, as in
        deepsd); the largest norm of the gradient, None: not clipped.
    loss, alpha, wet_threshold, density_transform, weight_cap, anneal, quantile, tweedie_power
        *Loss* (docs/method.md): "mse", "mae", "huber" (of differences up to 1 normalised unit: squared; beyond:
        absolute) or "pinball" (lowest at ``quantile``, from 0 to 1, of what may fall; nothing else uses it), all of
        normalised precipitation; "tweedie", of precipitation in mm day-1 whose variance grows as the mean to the power
        ``tweedie_power``, between 1 and 2 (nothing else uses it); "bernoulli_gamma", the likelihood of a chance of rain
        and a gamma distribution of wet amounts in mm day-1 (`xdeepsd.distribution`); "denseloss" with weights from
        `xdeepsd.DenseWeight` (``alpha``, ``wet_threshold``, ``density_transform``, ``weight_cap``) fitted to the fine
        values of the training days, which come in over a share ``anneal`` of the steps, from 0 (at once) to 1: plain
        squares first, weighted last; or "crps", the fair CRPS of the members of a network that takes noise
        (`xdeepsd.losses.crps`).
    noise, members
        *Ensemble*, with loss "crps": channels of white noise that the network takes, see `SRCNNConfig`; members per
        patch in training, each with other noise.
    train, validation, test
        *Days*: a list of years (2004, 2005) or of dates ("2004-07", "2004-07-15", "2004-06-01/2004-08-31"), or for
        ``validation`` and ``test`` a fraction of the days at the end. ``train`` None: all that are in neither of the
        other two. Test days are never read.
    validate_every, validation_days, patience
        *Validation*: steps between validations; how many of the validation days (spread evenly) are used; stop after
        this many validations without improvement, None: go on to the last step. The resulting stage is always the best
        one on the validation days: of the lowest RMSE with "mse" and "tweedie", which are lowest at the mean, of the
        lowest loss otherwise.
    seed, buffer, workers, checkpoint_every, device, precision, threads, tensorboard
        *Run*: the seed of everything random. MiB that the loader may hold, and its threads, which change only the
        speed. Steps between checkpoints. "cpu", "cuda", ..., None: a GPU if there is one. "float32" or "bfloat16"
        (mixed precision). CPU threads of torch, None: unchanged. Whether to write TensorBoard events (scalars, maps,
        histograms of the weights) to the checkpoint folder.

    Raises
    ------
    ValueError
        A value makes no sense; the error says what is needed.

    Examples
    --------
    >>> import xdeepsd
    >>> config = xdeepsd.TrainConfig(validation=[2004], test=[2005], loss="denseloss", alpha=0.5)
    >>> config.steps, config.static
    (2000, ('elevation', 'climatology'))
    >>> xdeepsd.TrainConfig.paper().static
    ('elevation',)
    """

    # Network
    channels: tuple[int, ...] = (64, 32)
    kernels: tuple[int, ...] = (9, 1, 5)
    static: tuple[str, ...] = ("elevation", "climatology")
    residual: bool = True
    target_transform: str | None = "sqrt"
    conserve: str | None = "multiplicative"
    head: str | None = None
    # Patches
    patch: int = 38
    stride: int = 20
    min_land: float = 0.5
    # Optimiser
    batch: int = 32
    steps: int = 2000
    learning_rate: float = 3e-3
    last_layer_rate: float = 1.0
    schedule: str = "cosine"
    clip_gradient: float | None = 1.0
    # Loss
    loss: str = "mse"
    alpha: float = 1.0
    wet_threshold: float | None = None
    density_transform: Literal["log1p", "sqrt"] | None = None
    weight_cap: float | None = None
    anneal: float = 0.0
    quantile: float = 0.5
    tweedie_power: float = 1.5
    # Ensemble
    noise: int = 0
    members: int = 2
    # Days
    train: tuple[int | str, ...] | None = None
    validation: tuple[int | str, ...] | float | None = 0.1
    test: tuple[int | str, ...] | float | None = None
    # Validation
    validate_every: int = 250
    validation_days: int = 60
    patience: int | None = None
    # Run
    seed: int = 0
    buffer: float = 1024
    workers: int = 2
    checkpoint_every: int = 1000
    device: str | None = None
    precision: str = "float32"
    threads: int | None = None
    tensorboard: bool = False

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
                f"patch {self.patch} leaves no output: the kernels {self.kernels} take {network.radius} cells off "
                f"each side. Needed: more than {2 * network.radius}, such as 38."
            )
        for name, least in (
            ("stride", 1), ("batch", 1), ("steps", 1), ("validate_every", 1), ("validation_days", 1), ("workers", 1),
            ("checkpoint_every", 1), ("seed", 0), ("patience", 1), ("threads", 1), ("noise", 0), ("members", 2),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (int(value) != value or value < least):
                raise ValueError(f"{name} is {value}; needed: a whole number of at least {least}.")
        for name in ("learning_rate", "last_layer_rate", "clip_gradient", "buffer"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; needed: a number above 0.")
        for name in ("min_land", "anneal"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed: a share from 0 to 1.")
        for name in ("validation", "test"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; needed: a fraction of the days from 0 to below 1, or a list.")
        for name, choices in (
            ("loss", LOSSES), ("schedule", SCHEDULES), ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; needed: one of {', '.join(map(repr, choices))}.")
        if network.head != _head(self.loss):
            raise ValueError(
                f"head={self.head!r} and loss={self.loss!r} do not fit each other: needed for this loss is "
                f"head={_head(self.loss)!r}. Leave head out."
            )
        check(self.target_transform, "target_transform")
        for name, low, high, such in (("quantile", 0, 1, 0.9), ("tweedie_power", 1, 2, 1.5)):
            value = getattr(self, name)
            if not low < value < high:
                raise ValueError(f"{name} is {value}; needed: a number between {low} and {high}, such as {such}.")
        if self.loss == "denseloss":
            self.dense_weight()
        if (self.loss == "crps") != (self.noise > 0):
            raise ValueError(
                f"loss is {self.loss!r} and noise is {self.noise}: the CRPS is that of members, which differ in their "
                "noise. Needed: both or neither. Type TrainConfig(loss='crps', noise=2), or noise=0 with another loss."
            )

    @classmethod
    def paper(cls, **changes: Any) -> TrainConfig:
        """As published (Vandal et al., KDD 2017): elevation alone, Adam 1e-4 and 1e-5, 100,000 batches of 200."""
        published: dict[str, Any] = {
            "static": ("elevation",), "residual": False, "target_transform": None, "conserve": None, "batch": 200,
            "steps": 100_000,
            "learning_rate": 1e-4, "last_layer_rate": 0.1, "schedule": "constant", "clip_gradient": None,
        }  # fmt: skip
        return cls(**published | changes)

    def _repr_html_(self) -> str:
        """The same as ``repr``, as a table in a notebook: first what differs from the defaults."""
        return html.settings(self)

    @property
    def given_static(self) -> tuple[str, ...]:
        """The static fields that are read from the levels: all but the regression's."""
        return tuple(name for name in self.static if name != REGRESSION)

    def network(self, factor: int) -> SRCNNConfig:
        """The configuration of a stage's network, before the regression's fields are added."""
        return SRCNNConfig(
            self.channels, self.kernels, factor, self.given_static, self.residual, self.conserve, self.noise,
            self.head or _head(self.loss),
        )  # fmt: skip

    def dense_weight(self) -> DenseWeight:
        """The weights of DenseLoss, not yet fitted."""
        return DenseWeight(
            self.alpha, wet_threshold=self.wet_threshold, transform=self.density_transform, weight_cap=self.weight_cap
        )

    def split(self, time: xr.DataArray) -> Split:
        """Days of ``time`` for training, validation and test (`xdeepsd.levels.splits.split_days`)."""
        return split_days(time, self.train, self.validation, self.test)


def _head(loss: str) -> str:
    """The head of the network that a loss is for."""
    return loss if loss in HEADS else "value"


def share_of_weights(step: int, config: TrainConfig) -> float:
    """How much of DenseLoss counts at a step (counted from 0); the rest is the plain mean squared error.

    >>> share_of_weights(100, TrainConfig(loss="denseloss", anneal=0.5, steps=1000))
    0.2
    """
    annealed = config.anneal * config.steps
    return step / annealed if step < annealed else 1.0


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (counted from 0).

    >>> learning_rate(500, TrainConfig(learning_rate=1e-3, schedule="cosine", steps=1000))
    0.0005
    """
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    if config.schedule == "exponential":
        return config.learning_rate * 0.96 ** (step / 1e5)
    return config.learning_rate
