"""The loss that a configuration names, and the density that DenseLoss weights with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xdeepsd.levels.pairs import Pair, values_of
from xdeepsd.losses.bernoulli_gamma import bernoulli_gamma
from xdeepsd.losses.crps import masked_crps
from xdeepsd.losses.dense_loss import DenseLoss
from xdeepsd.losses.dense_weight import DenseWeight
from xdeepsd.losses.masked import masked_huber, masked_mae, masked_mse, masked_pinball, masked_tweedie
from xdeepsd.models.variable import clean
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.validation import LossFunction


def fit_density(config: TrainConfig, pair: Pair, days: np.ndarray) -> DenseWeight:
    """`DenseWeight` fitted to the wanted fine values of the training ``days``, chunk by chunk."""
    observed = clean(pair.fine.isel(time=days), values_of(pair.fine))
    wanted = observed.where(xr.DataArray(pair.mask, dims=("lat", "lon")))
    return config.dense_weight().fit(wanted, scheduler="threads")  # this may run inside a task of a cluster


def loss_function(config: TrainConfig, density: DenseWeight | None, device: torch.device) -> LossFunction:
    """The loss of the configuration; DenseLoss has the weights of ``density``."""
    if config.loss == "denseloss":
        assert density is not None
        return DenseLoss(density).to(device)
    if config.loss == "bernoulli_gamma":
        return lambda pred, target, mask, values: bernoulli_gamma(pred, target, mask)
    if config.loss == "tweedie":
        return lambda pred, target, mask, values: masked_tweedie(pred, target, mask, config.tweedie_power)
    if config.loss == "pinball":
        return lambda pred, target, mask, values: masked_pinball(pred, target, mask, config.quantile)
    simple: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "mse": masked_mse, "mae": masked_mae, "huber": masked_huber, "crps": masked_crps
    }  # fmt: skip
    return lambda pred, target, mask, values: simple[config.loss](pred, target, mask)
