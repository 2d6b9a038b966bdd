"""The input of `downscale`: find precipitation, static fields and mask, and check that they fit the model.

Nothing here touches the values of a lazy array.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.grids.days import period
from xdeepsd.grids.units import precipitation_factor
from xdeepsd.inference.adapt import Adapted, daily, to_grid, undecoded, values_as_given
from xdeepsd.inference.correction import Correction
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.variable import Values, clean, find_variable, without_fills

logger = logging.getLogger(__name__)


def choose_variable(ds: xr.Dataset | xr.DataArray, model: StackedSRCNN, variable: str | None) -> xr.DataArray:
    """The precipitation to downscale; a model is never silently applied to anything else."""
    name = model.kind.name
    wanted = f"{name}; the model was trained on {model.variable or name!r} in {model.units}"
    return find_variable(ds, variable, model.variable, wanted, model.kind)


@dataclass(frozen=True)
class Prepared:
    """Input that fits its model."""

    given: xr.DataArray  # the precipitation as given
    names: axes.Axes  # its names, restored in the output
    coarse: xr.DataArray  # with our names, in the order of the static fields
    values: Values
    grid: xr.Dataset  # coordinates of the target grid
    turn: Mapping[str, slice]  # puts the result back in the user's order
    maps: Mapping[str, Any]  # arrays of the static fields on the target grid
    mask: Any  # array on the target grid, or None
    adapted: Adapted  # what was done to the input


def prepare(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN,
    static: xr.Dataset | xr.DataArray | None,
    variable: str | None,
    mask: xr.DataArray | None,
    units: str | None = None,
    day_ends: float | None = None,
    allow_partial: bool = False,
    correction: Correction | None = None,
) -> Prepared:
    """Find everything, bring the input to days on the model's grid, check; arguments and errors as in `downscale`."""
    ds = axes.settle(ds)
    given = undecoded(choose_variable(ds, model, variable))
    if units is not None:
        given = given.assign_attrs(units=units)
    check_values(str(given.name), given)
    axes.map_dims(given)  # raises where latitude or longitude is missing
    as_given = values_as_given(given, model.kind)
    fields = target_fields(model, static, given)
    if given.chunks is None and not given.variable._in_memory:
        given = axes.chunk_unread(given, days=steps_in_chunk(given, ds, model))
    adapted = daily(given, ds, model.units, day_ends, as_given)
    fields = oriented(fields, model)
    wanted = target_mask(model, mask, fields)
    land = None if wanted is None else _own(wanted.data)
    adapted = to_grid(adapted, ds, fields, land, model.scale, allow_partial, as_given)
    coarse, names = axes.standardize(adapted.da)
    values = replace(Values.of(coarse, model.units, adapted.source, model.kind), lenient=True)
    coarse, turn = turned(coarse, fields)
    if correction is not None:
        coarse, adapted = _corrected(coarse, values, model, correction, adapted)
    maps = {name: _own(fields[name].data) for name in model.static_names} | learned_fields(model, fields)
    return Prepared(adapted.da, names, coarse, values, fields.coords.to_dataset(), turn, maps, land, adapted)


def _corrected(
    coarse: xr.DataArray, values: Values, model: StackedSRCNN, correction: Correction, adapted: Adapted
) -> tuple[xr.DataArray, Adapted]:
    """The input without its bias, in its own units."""
    factor = np.asarray(values.factor * precipitation_factor(model.units), coarse.dtype)
    out = correction.apply(clean(coarse, values) * factor) / factor
    done = f"corrected by {correction}"
    logger.info("%r: %s.", coarse.name, done)
    out = out.rename(coarse.name).assign_attrs(coarse.attrs)
    return out, replace(adapted, done=(*adapted.done, done))


def steps_in_chunk(
    given: xr.DataArray, ds: xr.Dataset | xr.DataArray, model: StackedSRCNN, days: int | None = None
) -> int:
    """Steps in a chunk of an array that is not read yet: ``days``, or as many as fill a chunk of fine maps."""
    cells = [math.prod(given.sizes[dim] for dim in axes.map_dims(given))]
    cells.append(cells[0] * model.scale**2 if model.static is None else math.prod(model.static.sizes.values()))
    return (days or axes.days_in_chunk(max(cells))) * max(1, round(1 / (period(given, ds).days or 1)))


def _own(data: Any) -> Any:
    """Copy an array in memory, since its owner may change it before the graph is computed; keep a lazy one as it is."""
    return data.copy() if isinstance(data, np.ndarray) else data


def check_values(name: str, da: xr.DataArray) -> None:
    """Raise unless ``da`` holds floats, is not empty and, if it is in memory, has a finite value."""
    if da.dtype.kind != "f":
        raise TypeError(
            f"{name!r} has dtype {da.dtype}; needed: floating point numbers. Packed integers are decoded by "
            f"xr.open_dataset(..., mask_and_scale=True); else type ds[{name!r}].astype('float32'), or "
            "da.astype('float32') of a DataArray."
        )
    if 0 in da.shape:
        raise ValueError(f"{name!r} is empty: {dict(da.sizes)}. Needed: at least one day and one cell.")
    if da.chunks is None and da.variable._in_memory and not np.isfinite(da.values).any():
        raise ValueError(
            f"All {da.size} values of {name!r} are NaN. Needed: observed cells. Check the file, its _FillValue, and "
            "how the data were selected."
        )


# --- static fields, grid and mask -----------------------------------------------------------------------------------


def target_fields(model: StackedSRCNN, static: xr.Dataset | xr.DataArray | None, given: xr.DataArray) -> xr.Dataset:
    """The static fields that the stages need, dims ``lat, lon``, in the order given; at least the target grid.

    A network with precipitation alone and no grid takes that of ``given``, cut into finer cells.
    """
    needed = model.static_names
    if static is None:
        if model.static is None and not needed:
            return finer_grid(given, model.scale)
        if model.static is None:
            raise ValueError(
                f"The model has no grid of its own and no static fields were given. Needed: {list(needed)} "
                f"on the finest grid. Type ds.deepsd.downscale(model, static={_to_type(needed)})."
            )
        static = model.static
    if isinstance(static, xr.DataArray):
        if len(needed) != 1:
            wanted = f"the static fields {list(needed)}" if needed else "no field, only a grid"
            raise ValueError(f"static is one DataArray; the model needs {wanted}. Type static={_to_type(needed)}.")
        static = static.to_dataset(name=needed[0])
    if not isinstance(static, xr.Dataset):
        raise TypeError(f"static is a {type(static).__name__}; needed: a DataArray (elevation, m) or a Dataset.")
    missing = [name for name in needed if name not in static.data_vars]
    if missing:
        raise ValueError(
            f"The static fields {missing} are missing: {sorted(map(str, static.data_vars))} were given, but the model "
            f"needs {list(needed)}. Type static=xr.Dataset({{{missing[0]!r}: ...}}) with all of them."
        )
    fields: dict[str, xr.DataArray] = {}
    for name in needed:
        # Scalar coordinates (a selected time, a band) would conflict between fields and mean nothing to the network.
        da, found = axes.standardize(axes.as_map(without_fills(static[name])))
        if da.dims != ("lat", "lon"):
            raise ValueError(
                f"The static field {name!r} has the dims {static[name].dims}; needed: latitude and longitude only. "
                f"Type static[{name!r}].isel(...) or .mean(...) over the others."
            )
        for dim, own in (("lat", found.lat), ("lon", found.lon)):
            axes.spacing(static[own], f"The {dim} of the static fields")
        _check_static_units(name, da, model)
        fields[name] = da
    if not fields:  # a network with precipitation alone: only the grid is needed
        found = axes.find(static)
        return xr.Dataset(coords={"lat": ("lat", static[found.lat].data), "lon": ("lon", static[found.lon].data)})
    first = next(iter(fields.values()))
    for name, da in fields.items():
        if da.shape != first.shape or not all(np.array_equal(da[c], first[c]) for c in ("lat", "lon")):
            raise ValueError(
                f"The static fields {needed[0]!r} {first.shape} and {name!r} {da.shape} lie on different grids. "
                "Needed: the same grid. Type xdeepsd.regrid(field, target) for one of them."
            )
    return xr.Dataset(fields)


def _to_type(needed: Sequence[str]) -> str:
    """What to type for ``static``; if no field is needed, any map will do for the grid."""
    fields = ", ".join(f"{name!r}: {name}" for name in needed or ["elevation"])
    return needed[0] if len(needed) == 1 else f"xr.Dataset({{{fields}}})"


def _check_static_units(name: str, da: xr.DataArray, model: StackedSRCNN) -> None:
    units = da.attrs.get("units")
    if name == "elevation" and units is not None and str(units).strip().lower() not in {
        "m", "metre", "metres", "meter", "meters", "m.", "gpm",
    }:  # fmt: skip
        raise ValueError(f"The elevation has units {units!r}; needed: m. Type elevation * FACTOR with units 'm'.")
    if name == "climatology" and units is not None and not math.isclose(precipitation_factor(units, model.units), 1):
        raise ValueError(
            f"The climatology has units {units!r}; needed: {model.units!r}, like the model's precipitation. "
            "Convert it and set its units."
        )


def _ascending(coord: xr.DataArray) -> bool:
    return bool(coord[-1] > coord[0])


def finer_grid(given: xr.DataArray, scale: int) -> xr.Dataset:
    """The grid of ``given`` with its cells cut into ``scale`` x ``scale``; it must be regular."""
    names, coords = axes.find(given), {}
    for dim, name in (("lat", names.lat), ("lon", names.lon)):
        step = axes.spacing(given[name], f"The {dim} of the input")
        within = (np.arange(scale) - (scale - 1) / 2) * step / scale
        coords[dim] = (dim, (np.asarray(given[name], np.float64)[:, None] + within).ravel())
    return xr.Dataset(coords=coords)


def oriented(fields: xr.Dataset, model: StackedSRCNN) -> xr.Dataset:
    """Put the static fields in the model's order; check that their grid has the spacing that it was trained on."""
    for dim in ("lat", "lon"):
        if dim not in fields.indexes:
            raise ValueError(f"The dim {dim} has no coordinate values. Needed: cell centres in degrees.")
        reference = fields if model.static is None else model.static
        if _ascending(fields[dim]) != _ascending(reference[dim]):
            fields = fields.isel({dim: slice(None, None, -1)})
    for dim, trained in zip(("lat", "lon"), model.spacing or (), strict=model.spacing is not None):
        coarse = abs(axes.spacing(fields[dim], dim)) * model.scale
        if not align.same_step(coarse, trained):
            raise ValueError(
                f"The spacing of the static grid in {dim} is {coarse / model.scale:.6g} degrees; the model was trained "
                f"on {trained / model.scale:.6g}. A model cannot be applied to another spacing. Leave static out, or "
                "type static=xdeepsd.regrid(static, target) with a target of that spacing."
            )
    return fields


def turned(coarse: xr.DataArray, fields: xr.Dataset) -> tuple[xr.DataArray, dict[str, slice]]:
    """The input in the order of the static fields, and the slices that put the result back in the user's order."""
    turn: dict[str, slice] = {}
    backwards = slice(None, None, -1)
    for dim in ("lat", "lon"):
        if not align.off_blocks(fields[dim], coarse[dim], dim) <= align.LIES_ON:
            coarse = coarse.isel({dim: backwards})
            turn[dim] = backwards
    return coarse, turn


def _cells_of(own: xr.Dataset | xr.DataArray, fields: xr.Dataset) -> dict[str, np.ndarray] | None:
    """Positions of the target grid's cells on another grid, which has all of them; otherwise None."""
    picked = {dim: align.cells_at(own[dim], fields[dim], dim) for dim in ("lat", "lon")}
    return None if any((index < 0).any() for index in picked.values()) else picked


def learned_fields(model: StackedSRCNN, fields: xr.Dataset) -> dict[str, np.ndarray]:
    """The static fields that the stages learned, on the target grid, which has to be part of the model's."""
    if not model.learned_names:
        return {}
    own = model.static
    if own is not None and (picked := _cells_of(own, fields)) is not None:
        return {name: own[name].transpose("lat", "lon").isel(picked).values.copy() for name in model.learned_names}
    raise ValueError(
        "The stages learned a regression for each cell of the model's grid, and the target grid is not part of it. "
        "Needed: cells of the model's grid. Leave static out to downscale its whole domain, or train a model for use "
        f"elsewhere with TrainConfig(static={model.static_names!r})."
    )


def target_mask(model: StackedSRCNN, mask: xr.DataArray | None, fields: xr.Dataset) -> xr.DataArray | None:
    """Mask on the target grid, or None. A given mask must match it; the model's is cut to it where possible."""
    given = mask is not None
    if mask is None:
        mask = model.mask
        if mask is None:
            return None
    if not isinstance(mask, xr.DataArray) or mask.dtype != bool:
        kind = mask.dtype if isinstance(mask, xr.DataArray) else type(mask).__name__
        raise ValueError(
            f"mask has type {kind}; needed: a bool DataArray, True where values are wanted. Type elevation.notnull() "
            "or land_fraction > 0."
        )
    da, _ = axes.standardize(axes.as_map(mask))
    if da.dims == ("lat", "lon"):
        picked = _cells_of(da, fields)
        if picked is not None and (not given or dict(da.sizes) == {dim: i.size for dim, i in picked.items()}):
            return da.isel(picked)
    if given:
        raise ValueError(
            f"The mask has the sizes {dict(da.sizes)} and does not lie on the target grid of {fields.sizes['lat']} x "
            f"{fields.sizes['lon']} cells. Type mask.sel(...) or xdeepsd.regrid(mask.astype(float), target) > 0.5."
        )
    logger.warning(
        "The target grid is not part of the model's grid, so the model's mask is not used and every cell gets a value. "
        "Type mask=..."
    )
    return None
