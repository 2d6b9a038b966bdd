"""The error of a stage in training on the validation days, beside the error of interpolation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from xdeepsd.levels.pairs import Pair, slabs
from xdeepsd.models.noise import white_noise
from xdeepsd.models.stage import Stage, interpolated_input
from xdeepsd.models.transform import transform

logger = logging.getLogger(__name__)

MEMBERS = 4  # whose mean and score are taken where the stage takes noise

# From prediction, target and mask, and fine precipitation in its units, to a loss. Prediction and target are normalised
# or, for losses in mm, in the units of precipitation.
LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Validation:
    """Some validation days in memory.

    Parameters
    ----------
    pair
        The pair of levels of the stage.
    days
        Positions along time of all validation days, increasing, at least one.
    limit
        At most this many days, spread evenly over ``days``, are used.
    device
        Where the stage is.

    Raises
    ------
    ValueError
        None of the days has an observed cell inside the mask.
    """

    def __init__(self, pair: Pair, days: np.ndarray, limit: int, device: torch.device) -> None:
        self.days = days[np.unique(np.linspace(0, len(days) - 1, min(len(days), limit)).round().astype(int))]
        parts = [pair.observed(slab) for slab in slabs(pair, self.days, limit=len(self.days))]
        empty = self.days[np.concatenate([np.isnan(target).all(axis=(1, 2)) for _, target in parts])]
        if empty.size == self.days.size:
            raise ValueError(
                f"None of the {empty.size} validation days that are used has an observed cell inside the mask: "
                f"{pair.name(empty)}. Needed: days with observations; without them the error is unknown. Type "
                "validation=[...] with other days, or look at level['precipitation'].notnull() and level['mask']."
            )
        if empty.size:
            logger.warning("%d of %d validation days have no observed cell inside the mask and do not count: %s.",
                           empty.size, self.days.size, pair.name(empty))  # fmt: skip
        coarse = torch.from_numpy(np.concatenate([coarse for coarse, _ in parts])).to(device)
        target = torch.from_numpy(np.concatenate([target for _, target in parts])).to(device)
        # Days computed at a time: 64 MiB for the widest layer
        at_once = max(1, 2**24 // (pair.mask.size * max(pair.config.channels, default=1)))
        self._parts = list(zip(coarse.split(at_once), target.split(at_once), strict=True))
        self._numbers = [part.numpy() for part in torch.arange(len(coarse)).split(at_once)]
        self._static = torch.from_numpy(pair.static).to(device)
        self._weights = torch.from_numpy(pair.weights).to(device)
        self._config = pair.config
        self.rmse_interpolation = self._rmse(self._interpolated)

    def _interpolated(self, coarse: Tensor) -> Tensor:
        radius = self._config.radius
        fine = interpolated_input(coarse[:, None], self._config)[:, 0]
        return fine[:, radius:-radius, radius:-radius] if radius else fine

    def _rmse(self, predict: Callable[[Tensor], Tensor]) -> float:
        total, count = 0.0, 0
        for coarse, target in self._parts:
            errors = (predict(coarse) - target).double()
            total += float(errors.square().nansum())
            count += int((~errors.isnan()).sum())
        return math.sqrt(total / count) if count else math.nan

    def _predicted(self, stage: Stage, coarse: Tensor, days: np.ndarray) -> Tensor:
        """``(day, lat, lon)``, or ``(member, day, lat, lon)`` where the stage takes noise, the same at each call.

        ``days`` are the numbers of the days that ``coarse`` holds.
        """
        config = stage.config
        if not config.noise:
            return stage(coarse, self._static, self._weights)
        rows, columns = (np.arange(-config.radius, n * config.factor + config.radius) for n in coarse.shape[1:])
        members = [
            torch.from_numpy(white_noise(0, member, days, rows, columns, channels=config.noise)).to(coarse.device)
            for member in range(MEMBERS)
        ]
        return torch.stack([stage(coarse, self._static, self._weights, noise) for noise in members])

    def _mean(self, stage: Stage, coarse: Tensor, days: np.ndarray) -> Tensor:
        predicted = self._predicted(stage, coarse, days)
        return predicted.mean(0) if stage.config.noise else predicted

    @torch.inference_mode()
    def rmse(self, stage: Stage) -> float:
        """Root mean square error over whole maps, as at inference, in the units of precipitation. NaN stays NaN.

        Of a stage that takes noise: the error of the mean of some members.
        """
        predictions = [
            self._mean(stage, coarse, days) for (coarse, _), days in zip(self._parts, self._numbers, strict=True)
        ]
        if not all(bool(p.isfinite().all()) for p in predictions):
            return math.nan
        remaining = iter(predictions)
        return self._rmse(lambda coarse: next(remaining))

    @torch.inference_mode()
    def loss(self, stage: Stage, loss: LossFunction, in_mm: bool = False) -> float:
        """The training loss over whole maps: the mean over batches of days, weighted by their number of cells."""
        total, count = 0.0, 0
        for predicted, target, mask, values in self._compared(stage, in_mm):
            cells = int(mask.sum())
            total += float(loss(predicted, target, mask, values)) * cells
            count += cells
        return total / count

    def _compared(self, stage: Stage, in_mm: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The arguments of a `LossFunction` for each batch of days, normalised or ``in_mm``."""
        for (coarse, values), days in zip(self._parts, self._numbers, strict=True):
            mask, known = ~values.isnan(), values.nan_to_num()
            if self._config.head == "value":
                predicted, target = self._predicted(stage, coarse, days), known
            else:
                predicted, target = stage.distribution(coarse, self._static, self._weights), known
            if not in_mm:
                before = self._interpolated(transform(coarse, stage.transform)) if self._config.residual else 0.0
                predicted, target = (
                    stage.target.apply(transform(fine, stage.transform) - before) for fine in (predicted, known)
                )
            yield predicted, target, mask, known

    @torch.inference_mode()
    def spread_skill(self, stage: Stage) -> float:
        """Spread of the members of a stage that takes noise over the error of their mean, in normalised space."""
        spread, error = 0.0, 0.0
        for predicted, target, mask, _ in self._compared(stage):
            spread += float(predicted.double().var(0)[mask].sum()) * (1 + 1 / MEMBERS)
            error += float((predicted.double().mean(0) - target)[mask].square().sum())
        return math.sqrt(spread / error) if error else math.nan

    @torch.inference_mode()
    def maps(self, stage: Stage) -> np.ndarray:
        """``(3, lat, lon)``: interpolation, the stage and the truth on the wettest day; NaN where not wanted."""
        coarse, target = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        day = int(target.nan_to_num().mean((1, 2)).argmax())
        coarse, target = coarse[day : day + 1], target[day : day + 1]
        maps = torch.cat([self._interpolated(coarse), self._mean(stage, coarse, np.array([day])), target])
        return maps.where(~target.isnan(), math.nan).cpu().numpy()
