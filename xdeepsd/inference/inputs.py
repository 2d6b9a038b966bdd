"""The input of `downscale`: find precipitation, static fields and mask, and check that they fit the model.

Nothing here touches the values of a lazy array.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.grids.units import precipitation_factor
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.variable import Values, find_variable, without_fills

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


def prepare(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN,
    static: xr.Dataset | xr.DataArray | None,
    variable: str | None,
    mask: xr.DataArray | None,
) -> Prepared:
    """Find everything and check that it fits; arguments and errors as in `downscale`."""
    given = choose_variable(ds, model, variable)
    check_values(str(given.name), given)
    coarse, names = axes.standardize(axes.chunk_unread(given, model.scale))
    for dim, own in (("lat", names.lat), ("lon", names.lon)):
        if given[own].size > 1:
            axes.spacing(given[own], f"The {dim} of the input")
    values = Values.of(coarse, model.units, ds, model.kind)
    fields, coarse, turn = fit(target_fields(model, static), coarse, model)
    wanted = target_mask(model, mask, fields)
    maps = {name: _own(fields[name].data) for name in model.static_names} | learned_fields(model, fields)
    land = None if wanted is None else _own(wanted.data)
    return Prepared(given, names, coarse, values, fields.coords.to_dataset(), turn, maps, land)


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


def target_fields(model: StackedSRCNN, static: xr.Dataset | xr.DataArray | None) -> xr.Dataset:
    """The static fields that the stages need, dims ``lat, lon``, in the order given; at least the target grid."""
    needed = model.static_names
    if static is None:
        if model.static is None:
            raise ValueError(
                f"The model has no grid of its own and no static fields were given. Needed: {list(needed) or 'a grid'} "
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


def fit(
    fields: xr.Dataset, coarse: xr.DataArray, model: StackedSRCNN
) -> tuple[xr.Dataset, xr.DataArray, dict[str, slice]]:
    """Put the static fields in the model's order and the input in theirs; check that the grids fit together.

    Returns the fields, the coarse array, and the slices that put the result back in the user's order.
    """
    turn: dict[str, slice] = {}
    backwards = slice(None, None, -1)
    for dim in ("lat", "lon"):
        if dim not in fields.indexes or dim not in coarse.indexes:
            raise ValueError(f"The dim {dim} has no coordinate values. Needed: cell centres in degrees.")
        reference = fields if model.static is None else model.static
        if _ascending(fields[dim]) != _ascending(reference[dim]):
            fields = fields.isel({dim: backwards})
        if coarse.sizes[dim] > 1 and _ascending(coarse[dim]) != _ascending(fields[dim]):
            coarse = coarse.isel({dim: backwards})
            turn[dim] = backwards
    _check_scale(fields, coarse, model)
    return fields, coarse, turn


def _check_scale(fields: xr.Dataset, coarse: xr.DataArray, model: StackedSRCNN) -> None:
    """Check the target grid: ``scale`` times finer than the input, cell by cell, and of the spacing trained on."""
    scale = model.scale
    fine_step = {dim: axes.spacing(fields[dim], dim) for dim in ("lat", "lon")}
    if model.spacing is not None:
        for dim, trained in zip(("lat", "lon"), model.spacing, strict=True):
            given = abs(axes.spacing(coarse[dim], dim)) if coarse.sizes[dim] > 1 else abs(fine_step[dim]) * model.scale
            if not align.same_step(given, trained):
                raise ValueError(
                    f"The input's spacing in {dim} is {given:.6g} degrees; the model was trained on {trained:.6g}. "
                    "A model cannot be applied at another spacing. Type xdeepsd.regrid(ds, target) onto a grid of "
                    f"{trained:.6g} degrees first."
                )
    have, need = (fields.sizes["lat"], fields.sizes["lon"]), (coarse.sizes["lat"] * scale, coarse.sizes["lon"] * scale)
    if have != need:
        raise ValueError(
            f"The static grid is {have[0]} x {have[1]} cells; needed: {scale} times the input's "
            f"{coarse.sizes['lat']} x {coarse.sizes['lon']}, {need[0]} x {need[1]}. "
            "Type static.sel(lat=slice(...), lon=slice(...)), or the same for the input, so that both cover the same "
            "region."
        )
    for dim in ("lat", "lon"):
        off = align.off_blocks(fields[dim], coarse[dim], dim)
        if off > align.LIES_ON:
            middles = np.asarray(fields[dim], np.float64).reshape(-1, scale).mean(axis=1)
            centres = np.asarray(coarse[dim], np.float64)
            raise ValueError(
                f"The static grid does not lie on the input's grid: in {dim} the blocks of {scale} fine cells have "
                f"centres from {middles[0]:.6g} to {middles[-1]:.6g}, the input's cells from {centres[0]:.6g} to "
                f"{centres[-1]:.6g} (off by up to {off * abs(fine_step[dim]):.3g} degrees). Type xdeepsd.regrid(ds, "
                "target) onto those centres first."
            )


def learned_fields(model: StackedSRCNN, fields: xr.Dataset) -> dict[str, np.ndarray]:
    """The static fields that the stages learned, on the target grid, which has to be part of the model's."""
    if not model.learned_names:
        return {}
    own = model.static
    if own is not None:
        picked = {dim: align.cells_at(own[dim], fields[dim], dim) for dim in ("lat", "lon")}
        if not any((index < 0).any() for index in picked.values()):
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
        sizes = {dim: da.sizes[dim] for dim in da.dims}
        picked = {dim: align.cells_at(da[dim], fields[dim], dim) for dim in ("lat", "lon")}
        if not any((index < 0).any() for index in picked.values()) and (
            not given or sizes == {dim: index.size for dim, index in picked.items()}
        ):
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
