"""The fields that are judged: precipitation in mm day-1 on the cells and days of the truth; lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.levels.days import name_span
from xdeepsd.models.variable import find_variable, rate_factor


def alike(truth: Any, given: Mapping[str, Any]) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """The truth and the fields by name, as from `prepared`, on one grid, and missing where any of them is; lazily."""
    observed = prepared(truth, "truth")
    if "member" in observed.dims:
        raise ValueError(
            "The truth has members. Needed: one truth; members are for the prediction. Type truth.isel(member=0)."
        )
    fields = {name: on_grid(prepared(field, name), observed, name) for name, field in given.items()}
    for da in fields.values():
        observed = observed.where(np.isfinite(mean_of_members(da)))
    observed = observed.where(np.isfinite(observed))
    return observed, {name: da.where(observed.notnull()) for name, da in fields.items()}


def mean_of_members(da: xr.DataArray) -> xr.DataArray:
    """``(time, lat, lon)``: the mean of the members, where there are any; missing where one is."""
    return da.mean("member", skipna=False) if "member" in da.dims else da


def prepared(field: xr.Dataset | xr.DataArray, name: str) -> xr.DataArray:
    """``([member,] time, lat, lon)`` in mm day-1, lazily; ValueError if there is no such field in it."""
    settled = axes.settle(field)
    found, _ = axes.standardize(find_variable(settled))
    others = set(found.dims) - {"member", "time", "lat", "lon"}
    missing = {"time", "lat", "lon"} - set(found.dims)
    if others or missing:
        raise ValueError(
            f"{name} has the dims {dict(found.sizes)}. Needed: time, lat, lon, and member for members. Select one of "
            f"the others, such as .isel({(sorted(map(str, others)) or ['height'])[0]}=0)."
            if others
            else f"{name} has the dims {dict(found.sizes)}, without {', '.join(sorted(missing))}. Needed: days of maps."
        )
    factor = rate_factor(found, ds=settled)
    found = found.reset_coords(drop=True)
    if found.sizes.get("member") == 1:
        found = found.isel(member=0, drop=True)
    return found if factor == 1 else found * factor


def on_grid(da: xr.DataArray, truth: xr.DataArray, name: str) -> xr.DataArray:
    """``da`` with the coordinates of the truth; ValueError where its cells or days are others."""
    for dim in ("lat", "lon"):
        have, need = da[dim].values, truth[dim].values
        if have.size == need.size > 1 and not align.same(have, need, dim) and align.same(have[::-1], need, dim):
            da, have = da.isel({dim: slice(None, None, -1)}), have[::-1]
        if not align.same(have, need, dim):
            raise ValueError(
                f"{name} has {have.size} {dim} from {have[0]:g} to {have[-1]:g}, the truth {need.size} from "
                f"{need[0]:g} to {need[-1]:g}. Needed: the same cells. Type xdeepsd.regrid(prediction, truth), or give "
                "a truth on this grid."
            )
    have, need = days_of(da), days_of(truth)
    if not have.equals(need):
        common = have.intersection(need)
        raise ValueError(
            f"{name} has {name_span(da)}, the truth {name_span(truth)}; {len(common)} days are in both. Needed: the "
            "same days in the same order. Type truth.sel(time=prediction['time']), or select the days that both have."
        )
    return da.assign_coords({dim: truth[dim] for dim in ("time", "lat", "lon")})


def days_of(da: xr.DataArray) -> Any:
    """The days as text without hours, so that calendars and hours do not matter; other times as they are."""
    index = da.indexes["time"]
    return index.strftime("%Y-%m-%d") if hasattr(index, "strftime") else index
