"""Ensembles: models that belong together, which noise each member gets, and the mean and spread of all members."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import axes
from xdeepsd.inference.digests import digest
from xdeepsd.models.noise import day_keys
from xdeepsd.models.stack import StackedSRCNN

MEMBER = "member"


def check_alike(models: Sequence[StackedSRCNN], fields: bool, mask: bool) -> None:
    """ValueError that names the first of ``models`` that cannot be in one ensemble with those before it, and why.

    ``fields``, ``mask``: whether the static fields and the mask are those saved with the models.
    """
    if len(models) == 1:
        return  # before the maps are read for nothing
    first = _traits(models[0], fields, mask)
    for number, model in enumerate(models[1:], 1):
        traits = _traits(model, fields, mask)
        different = [f"{name}: {first[name]}, {traits[name]}" for name in first if first[name] != traits[name]]
        if different:
            raise ValueError(
                f"Models 0 and {number} of the list differ ({'; '.join(different)}). Needed in one ensemble: models "
                f"that differ in their weights alone, such as the seeds of one training. Leave models[{number}] out."
            )


def check_count(members: int) -> None:
    """ValueError where ``members`` is no number of members."""
    if isinstance(members, bool) or int(members) != members or members < 1:
        raise ValueError(f"members is {members}; needed: a whole number of at least 1. Type members=10.")


def check_no_members(dims: Sequence[Hashable], what: str, name: str) -> None:
    """ValueError where members could not get a dim of their own; ``what`` and ``name``: whose ``dims`` they are."""
    if MEMBER in dims:
        raise ValueError(
            f"The {what} has a dim {MEMBER!r} already, {tuple(dims)}, and so would the output. Needed: another name "
            f"for that of the {what}. Type {name}.rename({MEMBER}='realization')."
        )


def _traits(model: StackedSRCNN, fields: bool, mask: bool) -> dict[str, str]:
    """What all models of an ensemble must share, in words. Computes nothing."""
    traits = {
        "factors": " x ".join(map(str, model.factors)),
        "variable": f"{model.kind.name} {model.variable!r}",
        "units": model.units,
        "static fields": ", ".join((*sorted(model.static_names), *model.learned_names)) or "none",
        "grid": "none" if model.static is None else _grid(model.static),
        "noise": "yes" if model.noise else "no",
    }
    if model.static is not None:
        names = (*sorted(model.static_names) * fields, *model.learned_names)
        traits["values of the static fields"] = _digests(model.static[name] for name in names if name in model.static)
    if mask:
        traits["mask"] = "none" if model.mask is None else _digests([model.mask])
    return traits


def _grid(fields: xr.Dataset) -> str:
    ends = {dim: np.asarray(fields[dim], np.float64) for dim in ("lat", "lon")}
    return " and ".join(f"{v.size} {dim} from {v[0]:.7g} to {v[-1]:.7g}" for dim, v in ends.items())


def _digests(maps: Iterable[xr.DataArray]) -> str:
    return " ".join(digest(field.transpose("lat", "lon").data) for field in maps)


# --- noise ------------------------------------------------------------------------------------------------------------


def origin_of(coarse: xr.DataArray, model: StackedSRCNN) -> tuple[int, int]:
    """Row and column, on the model's own coarse grid, of the first cell of ``coarse`` (``..., lat, lon``).

    So a part of the domain gets the noise that the whole would get there. 0, 0 for a model without a grid.
    """
    if model.static is None:
        return 0, 0
    found = []
    for dim in ("lat", "lon"):
        own = np.asarray(model.static[dim], np.float64)
        step = axes.spacing(own, dim) * model.scale
        first = np.asarray(coarse[dim][:1], np.float64)
        if dim == "lon":
            first = axes.wrap_longitude(first, near=own)
        found.append(round((float(first[0]) - own[: model.scale].mean()) / step))
    return found[0], found[1]


def days_of(coarse: xr.DataArray) -> np.ndarray:
    """`day_keys` of the maps of ``coarse``, in the shape of all dims but the last two; ValueError without dates."""
    shape = coarse.shape[:-2]
    if "time" not in coarse.dims:
        if coarse[0, 0].size == 1 or not shape:
            return np.zeros(shape, np.int64)
        raise ValueError(
            f"The input has the dims {coarse.dims} and no dates, and the noise of the members is that of a date. "
            "Needed: a time coordinate. Type ds.rename(DIM='time').assign_coords(time=xr.date_range('2000-01-01', "
            "periods=N))."
        )
    keys = day_keys(coarse["time"].values)
    along = [-1 if dim == "time" else 1 for dim in coarse.dims[:-2]]
    return np.broadcast_to(keys.reshape(along), shape)


# --- mean and spread --------------------------------------------------------------------------------------------------


class Spread:
    """Mean and standard deviation of arrays that come one at a time, in float64 (Welford, Technometrics 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # of the distances from the mean, summed

    def add(self, member: np.ndarray) -> None:
        """Take one more member into account."""
        self.count += 1
        member = member.astype(np.float64)
        apart = member - self.mean
        self.mean = self.mean + apart / self.count
        self.squares = self.squares + apart * (member - self.mean)

    def result(self, dtype: Any) -> np.ndarray:
        """``(2, ...)``: the mean, and the standard deviation with ``count - 1`` in the denominator."""
        return np.stack([self.mean, np.sqrt(self.squares / (self.count - 1))]).astype(dtype)
