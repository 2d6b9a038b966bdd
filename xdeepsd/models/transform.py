"""Transforms of precipitation for networks and densities, defined once for tensors, arrays and compiled code."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Transform = Literal["sqrt", "log1p"]

# Compiled code refers to a transform by its position here.
TRANSFORMS: tuple[Transform | None, ...] = (None, "sqrt", "log1p")
_INVERSE = {"sqrt": "square", "log1p": "expm1"}  # names in both numpy and torch


def transform(values: Any, name: Transform | str | None) -> Any:
    """Transformed precipitation: values below 0 count as 0, NaN stays NaN. Tensors or numpy arrays.

    >>> transform(np.array([4.0, -1.0]), "sqrt")
    array([2., 0.])
    """
    return values if name is None else _call(name, values.clip(min=0))


def invert(values: Any, name: Transform | str | None) -> Any:
    """The inverse of `transform` for values of at least 0.

    >>> float(invert(2.0, "sqrt"))
    4.0
    """
    return values if name is None else _call(_INVERSE[name], values)


def _call(name: str, values: Any) -> Any:
    method = getattr(values, name, None)  # tensors have a method
    return getattr(np, name)(values) if method is None else method()


def check(name: str | None, argument: str = "transform") -> None:
    """Raise ValueError for anything but one of `TRANSFORMS`."""
    if name not in TRANSFORMS:
        raise ValueError(f"{argument} is {name!r}; needed: one of {', '.join(map(repr, TRANSFORMS))}.")


# For numba, which compiles these into their callers.


def transform_number(value: Any, number: int) -> Any:
    """`transform` of a single value of at least 0; ``number`` is the transform's position in `TRANSFORMS`."""
    if number == 1:
        return np.sqrt(value)
    if number == 2:
        return np.log1p(value)
    return value


def invert_number(value: Any, number: int) -> Any:
    """`invert` of a single value; ``number`` is the transform's position in `TRANSFORMS`."""
    if number == 1:
        return value * value
    if number == 2:
        return np.expm1(value)
    return value
