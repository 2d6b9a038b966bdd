"""The likelihood of precipitation that is dry with some chance, and otherwise gamma distributed."""

from __future__ import annotations

import torch
from torch import Tensor

from xdeepsd.losses.masked import mean_of, valid_cells
from xdeepsd.models.bernoulli_gamma import WET


def bernoulli_gamma(parameters: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood over the cells in ``mask`` whose target is not NaN; 0 if there are none.

    ``-log(1 - p)`` of a dry cell, ``-log(p) - log(gamma density of y; a, b)`` of a wet one (Williams 1998, Cannon
    2008). Amounts below `WET` count as dry, since their density is infinite for shapes below 1; the gamma distribution
    is not cut off there.

    Parameters
    ----------
    parameters
        ``(batch, 3, lat, lon)``: chance of rain p, shape a, scale b (mm day-1), see `xdeepsd.models.bernoulli_gamma`. A
        mean of wet amounts a b below `WET` (where a dry coarse cell makes it 0) counts as that.
    target
        ``(batch, lat, lon)``, mm day-1.
    mask
        True where the target counts; any shape that broadcasts to the target's. None: everywhere.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    valid = valid_cells(parameters[:, 0], target, mask)
    chance, shape, scale = torch.where(valid.unsqueeze(1), parameters, 0.5).unbind(dim=1)
    wet = valid & (target >= WET)
    y = torch.where(wet, target, 1.0)
    rate = shape / (shape * scale).clamp(min=WET)
    density = shape * rate.log() + (shape - 1) * y.log() - rate * y - torch.lgamma(shape)
    likelihood = torch.where(wet, chance.log() + density, torch.log1p(-chance))
    return mean_of(torch.where(valid, -likelihood, 0.0), valid)
