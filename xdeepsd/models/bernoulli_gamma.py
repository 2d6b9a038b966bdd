"""The Bernoulli-gamma distribution of a fine cell's precipitation, from the three outputs of a network (tensors only).

With the chance p of rain, and the shape a and scale b of the gamma distribution of wet amounts, the expectation is
p a b (Williams, NIPS 10, 1998; Cannon, J. Hydrometeorol. 2008; in CNNs for downscaling Baño-Medina et al., Geosci.
Model Dev. 2020). Parameters are ``(batch, 3, lat, lon)``: chance, shape, scale (mm day-1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xdeepsd.models.transform import invert

PARAMETERS = ("wet_chance", "shape", "scale")
# mm day-1: observed amounts below count as dry, and no mean of wet amounts is lower. What a gauge can resolve.
WET = 0.1
_CHANCE = 1e-6  # chances lie between this and 1 - this
_LOG_SHAPE = 6.0  # shapes lie between exp(-6) and exp(6)


def parameters_of(output: Tensor, first: Tensor, std: float, transform: str | None) -> Tensor:
    """Parameters from the network's ``output`` ``(batch, 3, lat, lon)``, with finite gradients that never vanish.

    The chance is a sigmoid of the second output, the shape an exponential of the third. ``first`` ``(batch, lat, lon)``
    is the first one in transformed units, the interpolated input added in a residual stage. Its softplus (which follows
    it but for a fraction of ``std``, that of the target, near 0) is the transformed mean of wet amounts less `WET`.
    """
    chance = _CHANCE + (1 - 2 * _CHANCE) * torch.sigmoid(output[:, 1])
    shape = (_LOG_SHAPE * torch.tanh(output[:, 2] / _LOG_SHAPE)).exp()
    wet_mean = WET + invert(F.softplus(first, beta=2 / std), transform)
    return torch.stack([chance, shape, wet_mean / shape], dim=1)


def expectation(parameters: Tensor) -> Tensor:
    """``(batch, lat, lon)``, mm day-1."""
    return parameters.prod(dim=1)


def with_expectation(parameters: Tensor, mean: Tensor) -> Tensor:
    """The same chance and shape, with the scale that has this expectation ``(batch, lat, lon)``."""
    chance, shape, _ = parameters.unbind(dim=1)
    return torch.stack([chance, shape, mean / (chance * shape)], dim=1)
