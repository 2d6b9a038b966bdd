"""The noise of a trained stage, scaled so that its members differ as much as they err."""

from __future__ import annotations

import logging
import math

import torch

from xdeepsd.losses.crps import masked_crps
from xdeepsd.models.stage import Stage
from xdeepsd.training.validation import Validation

logger = logging.getLogger(__name__)

MORE_CRPS = 0.02  # how much the score of members may rise, as a fraction, for a spread that is as large as their error


def scale_noise(stage: Stage, validation: Validation) -> dict[str, float]:
    """Widen the noise of a trained stage until its members differ as much as their mean errs on the validation days.

    Trained members differ too little, above all where it rains hard. The scale is a factor on the first layer's weights
    of the noise, from 1 to 3, found by bisection; none raises the CRPS on the validation days by more than 2 %.

    Returns
    -------
    ``noise_scale``; with it, ``spread_skill``, the ratio, and ``crps``, both in normalised space.
    """
    weight, noise = stage.net.layers[0].weight, stage.config.noise
    assert isinstance(weight, torch.Tensor)
    trained = weight.detach()[:, -noise:].clone()

    def scaled(scale: float) -> tuple[float, float]:
        with torch.no_grad():
            weight[:, -noise:] = trained * scale
        crps = validation.loss(stage, lambda members, target, mask, values: masked_crps(members, target, mask))
        return validation.spread_skill(stage), crps

    low, high = 1.0, 3.0
    ratio, score = scaled(low)
    limit = score * (1 + MORE_CRPS)
    for _ in range(6 if ratio < 1 else 0):
        middle = math.sqrt(low * high)
        ratio, score = scaled(middle)
        low, high = (middle, high) if ratio < 1 and score <= limit else (low, middle)
    ratio, score = scaled(low)
    logger.info("The noise is scaled by %.3g: spread over error %.3g on the validation days.", low, ratio)
    return {"noise_scale": low, "spread_skill": ratio, "crps": score}
