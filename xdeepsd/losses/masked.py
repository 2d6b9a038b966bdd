"""Losses over the cells that were observed and are wanted: squared, absolute, Huber, pinball, Tweedie.

Every loss is a mean over the cells in ``mask`` whose target is not NaN, 0 if there are none. Prediction and target have
one shape, usually ``(batch, 1, lat, lon)``; ``mask`` is True where the target counts and broadcasts to it, None:
everywhere. All raise ValueError if the shapes do not fit, and have finite gradients wherever the prediction is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# mm day-1, added to both sides of the Tweedie deviance: what a gauge can resolve.
TWEEDIE_OFFSET = 0.1


def valid_cells(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Which cells of the target count; ValueError if the shapes of the three do not fit."""
    if pred.shape != target.shape:
        raise ValueError(
            f"The prediction has shape {tuple(pred.shape)}, the target {tuple(target.shape)}. Needed: the same shape. "
            "Type pred.reshape(target.shape), or crop the target by the network's radius."
        )
    valid = ~torch.isnan(target)
    if mask is not None:
        try:
            wanted = mask.bool().expand_as(target)
        except RuntimeError as error:
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)}, the target {tuple(target.shape)}. Needed: a shape that "
                "broadcasts to the target's, such as (batch, 1, lat, lon) or (lat, lon)."
            ) from error
        valid = valid & wanted
    return valid


def differences(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``pred - target`` (0 where not valid), and which cells are valid."""
    valid = valid_cells(pred, target, mask)
    # Selected before anything is computed from it: cells left out then have gradient 0, whereas NaN * 0 would give NaN.
    return torch.where(valid, pred - target, 0.0), valid


def mean_of(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean over the ``valid`` cells of losses that are 0 elsewhere."""
    return losses.sum() / valid.sum().clamp(min=1)


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``(pred - target)**2`` over the pixels in ``mask`` whose target is not NaN; 0 if there are none.

    Parameters
    ----------
    pred, target
        Normalised, of the same shape, usually ``(batch, 1, lat, lon)``.
    mask
        True where the target counts; any shape that broadcasts to the target's. None: everywhere.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    >>> float(masked_mse(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, torch.nan])))
    2.5
    """
    apart, valid = differences(pred, target, mask)
    return mean_of(apart.square(), valid)


def masked_mae(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``|pred - target|``, lowest at the median.

    >>> float(masked_mae(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, torch.nan])))
    1.5
    """
    apart, valid = differences(pred, target, mask)
    return mean_of(apart.abs(), valid)


def masked_huber(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of half the square of differences up to 1, and of ``|pred - target| - 1/2`` beyond (Huber 1964).

    >>> float(masked_huber(torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0.0, 0.0, torch.nan])))
    1.5
    """
    apart, valid = differences(pred, target, mask)
    return mean_of(F.huber_loss(apart, torch.zeros_like(apart), reduction="none"), valid)


def masked_pinball(pred: Tensor, target: Tensor, mask: Tensor | None = None, quantile: float = 0.5) -> Tensor:
    """Mean of ``quantile`` times what is missing or ``1 - quantile`` times what is too much, lowest at that quantile.

    Koenker and Bassett (Econometrica 1978).

    >>> float(masked_pinball(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 4.0]), quantile=0.75))
    1.25
    """
    apart, valid = differences(pred, target, mask)
    return mean_of(torch.maximum((1 - quantile) * apart, -quantile * apart), valid)


def masked_tweedie(pred: Tensor, target: Tensor, mask: Tensor | None = None, power: float = 1.5) -> Tensor:
    """Mean Tweedie deviance of precipitation, whose variance grows as ``mean**power``; lowest at the mean.

    ``2 (y**(2-p) / ((1-p)(2-p)) - y m**(1-p) / (1-p) + m**(2-p) / (2-p))`` (Jorgensen 1987), where y and m are target
    and prediction plus `TWEEDIE_OFFSET`: without it, a dry prediction of rain would cost infinitely much. It remains a
    Bregman divergence, so the mean is still the best prediction.

    Parameters
    ----------
    pred, target
        mm day-1. Predictions below 0 cost what 0 costs and more, linearly, so that they have a gradient where it rains.
    power
        Between 1 (as Poisson: the variance is the mean) and 2 (as gamma: the standard deviation is the mean).

    >>> float(masked_tweedie(torch.tensor([3.9]), torch.tensor([0.9]), power=1.5))
    2.0
    """
    valid = valid_cells(pred, target, mask)
    y = torch.where(valid, target, 1.0).clamp(min=0) + TWEEDIE_OFFSET
    given = torch.where(valid, pred, 1.0)
    m = given.clamp(min=0) + TWEEDIE_OFFSET
    one, two = 1 - power, 2 - power
    deviance = y**two / (one * two) - y * m**one / one + m**two / two
    below = given.clamp(max=0) * (m**-power * (m - y)).detach()
    return mean_of(torch.where(valid, 2 * (deviance + below), 0.0), valid)
