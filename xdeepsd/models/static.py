"""Static fields (elevation, climatology, ...) at each level, as a stage needs them (numpy).

Training and inference share these functions, so a field is never resampled in two different ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from xdeepsd.grids.interpolate import upsample

CLIMATOLOGY = "climatology"
# Log ratio of the observed mean to that of an independent coarse product, see `xdeepsd.levels.climatology.coarse_bias`.
COARSE_BIAS = "coarse_bias"
# The name of that product: an attribute of a level's precipitation, and among the facts of a model's training.
COARSE_PRODUCT = "coarse_product"
# Stands for five fields that each stage learns on its own grid before its network, see `xdeepsd.levels.regression`.
REGRESSION = "regression"
REGRESSION_TERMS = ("value", "rows", "columns", "laplacian", "constant")


def regression_names(stage: int) -> tuple[str, ...]:
    """Names of the regression's fields of a stage.

    >>> regression_names(0)[0]
    'regression_0_value'
    """
    return tuple(f"{REGRESSION}_{stage}_{term}" for term in REGRESSION_TERMS)


def is_learned(name: str) -> bool:
    """Whether a static field is one of a regression's."""
    return name.startswith(f"{REGRESSION}_")


def fill(field: np.ndarray) -> np.ndarray:
    """Fill NaN in a static map ``(lat, lon)`` from the nearest known cell; ValueError if no cell is known."""
    missing = ~np.isfinite(field)
    if not missing.any():
        return field
    if missing.all():
        raise ValueError("A static field has no finite value. Needed: at least one known cell.")
    rows, cols = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return field[rows, cols]


def climatology_channel(fine: np.ndarray, coarse: np.ndarray, factor: int) -> np.ndarray:
    """``log(clip(fine / upsample(coarse), 1/5, 5))``, dimensionless (docs/method.md).

    The ratio is 1 where both are 0. Neither climatology may contain NaN.
    """
    between = upsample(np.asarray(coarse, np.float64), factor)
    fine = np.asarray(fine, np.float64)
    ratio = np.where(between > 0, fine / np.where(between > 0, between, 1.0), np.where(fine > 0, 5.0, 1.0))
    return np.log(np.clip(ratio, 0.2, 5.0))


def stage_channels(
    fine: Mapping[str, np.ndarray], coarse: Mapping[str, np.ndarray], names: Sequence[str], factor: int
) -> np.ndarray:
    """Static channels of one stage, in the order of ``names``, before normalisation.

    Parameters
    ----------
    fine, coarse
        Maps ``(lat, lon)`` of the stage's output and input level by name; NaN is filled here. From ``coarse`` only
        ``climatology`` is read.
    names, factor
        ``static`` and ``factor`` of the stage's `SRCNNConfig`.

    Returns
    -------
    ``(len(names), lat, lon)`` float32: metres for elevation, the log ratio for climatology, and so on.
    """
    channels = []
    for name in names:
        if name == CLIMATOLOGY:
            channels.append(climatology_channel(fill(fine[name]), fill(coarse[name]), factor))
        else:
            channels.append(fill(np.asarray(fine[name], np.float64)))
    shape = next(iter(fine.values())).shape if fine else (0, 0)
    return np.stack(channels).astype(np.float32) if channels else np.zeros((0, *shape), np.float32)
