"""What interpolation misses at each cell, learned from the training days: a ridge regression, as static fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from xdeepsd.levels.normalizers import in_order
from xdeepsd.levels.pairs import Pair
from xdeepsd.models.static import REGRESSION_TERMS, fill
from xdeepsd.models.transform import transform

# Of the mean of the diagonal of a cell's normal equations; chosen on validation days of Oregon and Iberia.
RIDGE = 0.02
# Five numbers for each cell need more days than this, or they hold the noise of the training days.
FEW = 100

logger = logging.getLogger(__name__)


def fit_regression(pair: Pair, days: Sequence[np.ndarray], workers: int = 2) -> np.ndarray:
    """Coefficients of a ridge regression at each fine cell, a slab of days at a time.

    Target: transformed precipitation minus its interpolated value. Predictors, from the interpolated field: its value,
    its differences along rows and columns, its Laplacian, and 1.

    Parameters
    ----------
    pair
        The levels to learn from.
    days
        Slabs of training days, from `xdeepsd.levels.pairs.slabs`.
    workers
        Threads that read.

    Returns
    -------
    ``(term, lat, lon)`` float32, the terms of `REGRESSION_TERMS`; cells without an observed day have the values of the
    nearest cell that has one. Memory: one slab, and 30 float64 for each cell.

    Notes
    -----
    Hoerl and Kennard (1970), with a penalty of 2 % of the mean diagonal of the normal equations.
    """
    count = sum(map(len, days))
    if count < FEW:
        logger.warning(
            "'regression' fits five numbers at each cell to only %d training days, and may learn their noise. "
            "With fewer than some %d days, leave it out of static.", count, FEW,
        )  # fmt: skip
    radius, terms = pair.config.radius, len(REGRESSION_TERMS)
    cells = pair.mask.size
    squares = np.zeros((cells, terms, terms))
    products = np.zeros((cells, terms))
    with ThreadPoolExecutor(workers) as pool:
        for _, interpolated, fine in in_order(pool, pair.read, days, ahead=workers):
            inner = interpolated[:, radius:-radius, radius:-radius] if radius else interpolated
            valid = ~np.isnan(fine)
            target = transform(torch.from_numpy(fine), pair.transform).numpy() - inner
            rows = _by_cell(predictors(interpolated, radius) * valid[:, None])
            wanted = _by_cell(np.where(valid, target, 0.0).astype(np.float64)[:, None])
            squares += torch.einsum("dpc,dqc->cpq", rows, rows).numpy()
            products += torch.einsum("dpc,dqc->cp", rows, wanted).numpy()
    diagonal = np.trace(squares, axis1=1, axis2=2)
    seen = diagonal > 0
    penalty = np.where(seen, RIDGE / terms * diagonal, 1.0)
    found = np.linalg.solve(squares + penalty[:, None, None] * np.eye(terms), products[..., None])[..., 0]
    if seen.any():  # else reported later, where the normalisers are fitted
        found[~seen] = np.nan
    return np.stack([fill(field.reshape(pair.shape)) for field in found.T]).astype(np.float32)


def predictors(interpolated: np.ndarray, radius: int) -> np.ndarray:
    """``(day, lat + 2 radius, lon + 2 radius)`` to ``(day, term, lat, lon)``, float64; edges are replicated."""
    wide = np.pad(interpolated.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    value, above, below, left, right = (
        wide[:, 1 + i : wide.shape[1] - 1 + i, 1 + j : wide.shape[2] - 1 + j]
        for i, j in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    )
    found = np.stack(
        [value, (below - above) / 2, (right - left) / 2, above + below + left + right - 4 * value, np.ones_like(value)],
        axis=1,
    )
    return found[..., radius:-radius, radius:-radius] if radius else found


def with_fields(pair: Pair, names: Sequence[str], fields: np.ndarray) -> Pair:
    """The pair with further static fields ``(name, lat, lon)``."""
    config = replace(pair.config, static=(*pair.config.static, *names))
    wider = replace(pair, static=np.concatenate([pair.static, fields]), config=config)
    object.__setattr__(wider, "digests", pair.digests)
    return wider


def _by_cell(values: np.ndarray) -> torch.Tensor:
    """``(day, term, lat, lon)`` to ``(day, term, cell)``."""
    return torch.from_numpy(values.reshape(*values.shape[:2], -1))
