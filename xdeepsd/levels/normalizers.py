"""The normalisers of a stage: exact means and standard deviations, a slab of days at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from xdeepsd.levels.pairs import Pair
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.transform import transform

logger = logging.getLogger(__name__)


class MeanAndStd(NamedTuple):
    """Count, mean and sum of squared deviations, which can be merged exactly (Chan et al. 1979)."""

    size: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def merge(self, values: np.ndarray) -> MeanAndStd:
        """Including more ``values`` (without NaN), in float64."""
        if not values.size:
            return self
        values = values.astype(np.float64)
        mean = float(values.mean())
        deviations = float(np.square(values - mean).sum())
        size = self.size + values.size
        apart = mean - self.mean
        return MeanAndStd(
            size,
            self.mean + apart * values.size / size,
            self.deviations + deviations + apart**2 * self.size * values.size / size,
        )

    def normalizer(self) -> Normalizer:
        """Mean and standard deviation; 1 where all values are the same."""
        std = float(np.sqrt(self.deviations / max(self.size, 1)))
        return Normalizer(self.mean, std if std > 0 else 1.0)


@dataclass(frozen=True)
class Normalizers:
    """The normalisers of a stage, as `xdeepsd.Stage` takes them."""

    precipitation: Normalizer
    static: Mapping[str, Normalizer]
    target: Normalizer


def fit_normalizers(pair: Pair, days: Sequence[np.ndarray], workers: int = 2) -> Normalizers:
    """Exact means and standard deviations over the cells that count in the loss, a slab of days at a time.

    Raises ValueError where no day has an observed cell, or a value is infinite. Single days without an observed cell
    are named in the log.
    """
    radius, residual = pair.config.radius, pair.config.residual

    def read(slab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, interpolated, target = pair.read(slab)
        inner = interpolated[:, radius:-radius, radius:-radius] if radius else interpolated
        valid = ~np.isnan(target)
        wanted = transform(torch.from_numpy(target[valid]), pair.transform).numpy()
        return inner[valid], wanted - inner[valid] if residual else wanted, slab[~valid.any(axis=(1, 2))]

    moments = [MeanAndStd(), MeanAndStd()]
    empty: list[np.ndarray] = []
    with ThreadPoolExecutor(workers) as pool:
        for *values, without in in_order(pool, read, days, ahead=workers):
            moments = [m.merge(v) for m, v in zip(moments, values, strict=True)]
            empty.append(without)
    if not moments[0].size:
        raise ValueError(
            f"The {sum(map(len, days))} training days have no observed cell inside the mask. Look at "
            "level['precipitation'].notnull() and level['mask'] (True is land)."
        )
    without = np.concatenate(empty)
    if without.size:
        logger.warning(
            "%d of %d training days have no observed cell inside the mask, so nothing is learned from them: %s.",
            without.size, sum(map(len, days)), pair.name(without),
        )  # fmt: skip
    static = {
        name: MeanAndStd().merge(channel[pair.mask]).normalizer()
        for name, channel in zip(pair.config.static, pair.static, strict=True)
    }
    return Normalizers(moments[0].normalizer(), static, moments[1].normalizer())


def in_order(pool: ThreadPoolExecutor, function, items, ahead: int) -> Iterator:  # type: ignore[no-untyped-def]
    """Like the ``map`` of a pool, but at most ``ahead`` items ahead of the consumer, so that memory is bounded."""
    pending: deque[Future] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
