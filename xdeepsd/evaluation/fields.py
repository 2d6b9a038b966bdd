"""The fields that are judged: precipitation in mm day-1 on the cells and days of the truth; lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.levels.days import missing_days, name_span
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
    da = on_cells(da, truth, name)
    have, need = days_of(da), days_of(truth)
    if not have.equals(need):
        common = have.intersection(need)
        raise ValueError(
            f"{name} has {name_span(da)}, the truth {name_span(truth)}; {len(common)} days are in both. Needed: the "
            "same days in the same order. Type truth.sel(time=prediction['time']), or select the days that both have."
        )
    return da.assign_coords(time=truth["time"])


def on_cells(da: xr.DataArray, truth: xr.DataArray, name: str) -> xr.DataArray:
    """``da`` with the latitudes and longitudes of the truth, in their order; ValueError where its cells are others."""
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
    return da.assign_coords({dim: truth[dim] for dim in ("lat", "lon")})


def regions_of(given: Any, truth: xr.DataArray) -> tuple[xr.DataArray, list[Any]]:
    """The number of the region of each cell ``(lat, lon)``, -1 for none, and the names of the regions; computes.

    ``given``: a map of labels, as numbers or text (none where NaN, or an empty text), or a mask, of which the regions
    are "inside" and "outside".
    """
    if not isinstance(given, xr.DataArray):
        raise TypeError(
            f"regions is a {type(given).__name__}; needed: a map of labels on the grid of the truth, or a mask. Type "
            "regions=truth.isel(time=0, drop=True).copy(data=labels)."
        )
    labels, _ = axes.standardize(given)
    if labels.dims != ("lat", "lon"):
        raise ValueError(
            f"regions has the dims {dict(given.sizes)}. Needed: a map of latitude and longitude. Select one of the "
            f"others, such as .isel({next((str(d) for d in given.dims if d not in ('lat', 'lon')), 'time')}=0)."
        )
    values = on_cells(labels, truth, "regions").values
    if values.dtype == bool:
        values = np.where(values, "inside", "outside")
    flat = values.ravel()
    numbers = flat.dtype.kind == "f"
    known = np.isfinite(flat) if numbers else np.array([v is not None and v == v and v != "" for v in flat])
    names, codes = np.unique(flat[known].astype(str) if flat.dtype == object else flat[known], return_inverse=True)
    if not names.size:
        raise ValueError("regions has no label in any cell. Needed: a label, or True, in some cells. Look at the map.")
    if numbers and (names == names.astype(int)).all():
        names = names.astype(int)
    out = np.full(flat.shape, -1, np.int32)
    out[known] = codes
    return xr.DataArray(
        out.reshape(values.shape), {d: truth[d] for d in ("lat", "lon")}, ("lat", "lon")
    ), names.tolist()


def days_of(da: xr.DataArray) -> Any:
    """The days as text without hours, so that calendars and hours do not matter; other times as they are."""
    index = da.indexes["time"]
    return index.strftime("%Y-%m-%d") if hasattr(index, "strftime") else index


def dated(da: xr.DataArray) -> xr.DataArray:
    """With a missing map for each day that is left out; ValueError where the times are no dates."""
    if not hasattr(da.indexes["time"], "year"):
        raise ValueError(
            f"The times are {da['time'].dtype}, such as {da['time'].values[:1]}. Needed: dates, from which the years "
            "and months follow. Type ds.assign_coords(time=xr.date_range('2001-01-01', periods=ds.sizes['time']))."
        )
    # The days left out, between winters for example, are missing: what is on both sides of them does not follow.
    absent = missing_days(da.indexes["time"])
    whole = da.reindex(time=da.indexes["time"].union(absent)) if len(absent) else da
    return whole.where(np.isfinite(whole))
