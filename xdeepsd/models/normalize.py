"""Normalisation of one channel by a fixed mean and standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Normalizer:
    """``(value - mean) / std`` with a mean and std fixed in training.

    Only two constants, unlike batch norm, so that it can be folded into the convolutions (docs/method.md). Works on
    numbers, numpy and dask arrays, DataArrays and tensors; NaN stays NaN; lazy if its input is.

    >>> n = Normalizer(mean=2.0, std=4.0)
    >>> n.apply(10.0), n.invert(2.0)
    (2.0, 10.0)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"Normalizer got mean {self.mean} and std {self.std}; needed: a finite mean and a std above 0. "
                "A constant field has std 0: give Normalizer(mean, 1.0)."
            )

    def apply(self, values: Any) -> Any:
        """Normalised values, dimensionless, same type and shape."""
        return (values - self.mean) / self.std

    def invert(self, values: Any) -> Any:
        """Values in their original units: ``values * std + mean``."""
        return values * self.std + self.mean
