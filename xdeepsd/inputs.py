"""What arrives at `downscale`: find precipitation, static fields and mask, and check that they fit the model.

Nothing here touches the values of a lazy array.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from xdeepsd import axes as _axes
from xdeepsd.stack import StackedSRCNN
from xdeepsd.units import is_amount, precipitation_factor

STANDARD_NAMES = {
    "precipitation_flux",
    "precipitation_amount",
    "lwe_precipitation_rate",
    "lwe_thickness_of_precipitation_amount",
    "rainfall_flux",
    "rainfall_rate",
    "thickness_of_rainfall_amount",
}
NAMES = {"precipitation", "precip", "pr", "ppt", "prcp", "prec", "tp", "pre", "rain", "rainfall"}


def _is_precipitation(da: xr.DataArray, model: StackedSRCNN) -> bool:
    standard_name = da.attrs.get("standard_name")
    if standard_name is not None:
        return standard_name in STANDARD_NAMES
    return str(da.name).lower() in NAMES or (model.variable is not None and da.name == model.variable)


def choose_variable(
    ds: xr.Dataset | xr.DataArray, model: StackedSRCNN, variable: str | None
) -> tuple[str, xr.DataArray]:
    """Name and DataArray of the precipitation; a model is never applied unnoticed to something else."""
    trained = f"The model was trained on {model.variable or 'precipitation'!r} in {model.units}."
    if isinstance(ds, xr.DataArray):
        if variable is not None and variable != ds.name:
            raise ValueError(
                f"variable={variable!r} is not there: the DataArray is named {ds.name!r}. "
                f"Leave variable out, or type da.rename({variable!r})."
            )
        candidates = {str(ds.name): ds}
    else:
        candidates = {str(k): v for k, v in ds.data_vars.items() if v.ndim >= 2}
        if variable is not None:
            if variable not in ds.data_vars:
                raise ValueError(
                    f"variable={variable!r} is not there. The Dataset has {sorted(map(str, ds.data_vars))}. "
                    f"Type variable=NAME with one of them."
                )
            candidates = {variable: ds[variable]}
    if variable is not None:  # named by the user: only a standard name that says otherwise speaks against it
        found = {k: v for k, v in candidates.items() if v.attrs.get("standard_name", "") in {"", *STANDARD_NAMES}}
    else:
        found = {k: v for k, v in candidates.items() if _is_precipitation(v, model)}
        if isinstance(ds, xr.DataArray) and ds.name is None and "standard_name" not in ds.attrs:
            found = candidates  # nothing is said: the units decide
        exact = [k for k in found if k == model.variable]
        if len(found) > 1 and exact:
            found = {exact[0]: found[exact[0]]}
    if not found:
        described = {k: v.attrs.get("standard_name") for k, v in candidates.items()}
        raise ValueError(
            f"No precipitation among the variables (with their standard names) {described}. {trained} "
            "Type variable=NAME for precipitation of another name, or set its attribute standard_name to "
            "'precipitation_flux'."
        )
    if len(found) > 1:
        raise ValueError(f"Two candidates or more for precipitation: {sorted(found)}. {trained} Type variable=NAME.")
    return next(iter(found.items()))


def check_values(name: str, da: xr.DataArray) -> None:
    """Raise unless ``da`` is of floats, not empty and, where it lies in memory, not of NaN only."""
    if da.dtype.kind != "f":
        raise TypeError(
            f"{name!r} has dtype {da.dtype}; needed: floating point numbers. Packed integers are decoded by "
            f"xr.open_dataset(..., mask_and_scale=True); else type ds.astype('float32')."
        )
    if 0 in da.shape:
        raise ValueError(f"{name!r} is empty: {dict(da.sizes)}. Needed: at least one day and one cell.")
    if isinstance(da.data, np.ndarray) and np.isnan(da.data).all():
        raise ValueError(
            f"{name!r} has nothing but NaN in its {da.size} values. Needed: observed cells. Look at the file, its "
            "_FillValue and the selection before it."
        )


def units_factor(coarse: xr.DataArray, model: StackedSRCNN) -> float:
    """Number that turns the input's units into the model's; amounts of a day need daily steps."""
    units = coarse.attrs.get("units")
    factor = precipitation_factor(units, model.units)
    if is_amount(str(units)) and not is_amount(model.units):
        step = _daily_step(coarse)
        if step is not None and not math.isclose(step, 1.0, rel_tol=1e-6):
            raise ValueError(
                f"The units {units!r} are an amount, and the steps of time are {step:g} days. Needed: daily data, or "
                "a rate. Type ds['NAME'] / days with units 'mm day-1'."
            )
    return factor


def _daily_step(coarse: xr.DataArray) -> float | None:
    """Median step of time in days; None without a time axis of two steps or of another kind."""
    if "time" not in coarse.dims or coarse.sizes["time"] < 2:
        return None
    steps = np.diff(coarse.indexes["time"].to_numpy() if "time" in coarse.indexes else np.arange(2))
    if steps.dtype.kind == "m":
        return float(np.median(steps) / np.timedelta64(1, "D"))
    if steps.dtype == object:
        return float(np.median([s.total_seconds() / 86400 for s in steps]))
    return None


# --- static fields, grid and mask -----------------------------------------------------------------------------------


def static_fields(model: StackedSRCNN, static: xr.Dataset | xr.DataArray | None) -> xr.Dataset:
    """The static fields the stages need, dims ``lat, lon``, in the order they came; at least the target grid."""
    needed = model.static_names
    if static is None:
        if model.static is None:
            raise ValueError(
                f"The model has no grid of its own and no static fields were given. Needed: {list(needed) or 'a grid'} "
                "on the finest grid. Type ds.deepsd.downscale(model, static=elevation)."
            )
        static = model.static
    if isinstance(static, xr.DataArray):
        if len(needed) != 1:
            raise ValueError(
                f"static is one DataArray; the model needs the static fields {list(needed)}. "
                "Type static=xr.Dataset({'elevation': elevation, ...})."
            )
        static = static.to_dataset(name=needed[0])
    if not isinstance(static, xr.Dataset):
        raise TypeError(f"static is a {type(static).__name__}; needed: a DataArray (elevation, m) or a Dataset.")
    missing = [name for name in needed if name not in static.data_vars]
    if missing:
        raise ValueError(
            f"The static fields {missing} are missing: given are {sorted(map(str, static.data_vars))}, the model "
            f"needs {list(needed)}. Type static=xr.Dataset({{{missing[0]!r}: ...}}) with all of them."
        )
    fields: dict[str, xr.DataArray] = {}
    for name in needed:
        # Scalars (a selected time, a band) would clash between fields and mean nothing to the network.
        da, _ = _axes.standardize(static[name].squeeze().reset_coords(drop=True))
        if da.dims != ("lat", "lon"):
            raise ValueError(
                f"The static field {name!r} has the dims {static[name].dims}; needed: latitude and longitude only. "
                f"Type static[{name!r}].isel(...) or .mean(...) over the others."
            )
        _check_static_units(name, da, model)
        fields[name] = da
    if not fields:  # a network of precipitation alone: the grid is all that is asked for
        found = _axes.find(static)
        return xr.Dataset(coords={"lat": ("lat", static[found.lat].data), "lon": ("lon", static[found.lon].data)})
    first = next(iter(fields.values()))
    for name, da in fields.items():
        if da.shape != first.shape or not all(np.array_equal(da[c], first[c]) for c in ("lat", "lon")):
            raise ValueError(
                f"The static fields {needed[0]!r} {first.shape} and {name!r} {da.shape} lie on different grids. "
                "Needed: one grid. Type xdeepsd.regrid(field, target) for one of them."
            )
    return xr.Dataset(fields)


def _check_static_units(name: str, da: xr.DataArray, model: StackedSRCNN) -> None:
    units = da.attrs.get("units")
    if name == "elevation" and units is not None and str(units).strip().lower() not in {
        "m", "metre", "metres", "meter", "meters", "m.", "gpm",
    }:  # fmt: skip
        raise ValueError(f"The elevation has units {units!r}; needed: m. Type elevation * FACTOR with units 'm'.")
    if name == "climatology" and units is not None and not math.isclose(precipitation_factor(units, model.units), 1):
        raise ValueError(
            f"The climatology has units {units!r}; needed: {model.units!r}, as the precipitation of the model. "
            "Convert it and set its units."
        )


def _ascending(coord: xr.DataArray) -> bool:
    return bool(coord[-1] > coord[0])


def align(
    fields: xr.Dataset, coarse: xr.DataArray, model: StackedSRCNN
) -> tuple[xr.Dataset, xr.DataArray, dict[str, slice]]:
    """Turn static fields to the model's order and the input to theirs; check that the grids belong together.

    Returns the fields, the coarse array, and what turns the result to the user's order.
    """
    turn: dict[str, slice] = {}
    backwards = slice(None, None, -1)
    for dim in ("lat", "lon"):
        if dim not in fields.indexes or dim not in coarse.indexes:
            raise ValueError(f"{dim} has no coordinate values along its dim. Needed: cell centres in degrees.")
        _axes.spacing(fields[dim], f"The {dim} of the static fields")
        if coarse.sizes[dim] > 1:
            _axes.spacing(coarse[dim], f"The {dim} of the input")
        reference = fields if model.static is None else model.static
        if _ascending(fields[dim]) != _ascending(reference[dim]):
            fields = fields.isel({dim: backwards})
        if coarse.sizes[dim] > 1 and _ascending(coarse[dim]) != _ascending(fields[dim]):
            coarse = coarse.isel({dim: backwards})
            turn[dim] = backwards
    _check_scale(fields, coarse, model)
    return fields, coarse, turn


def _check_scale(fields: xr.Dataset, coarse: xr.DataArray, model: StackedSRCNN) -> None:
    """The target grid is ``scale`` times the input's, cell by cell, and of the spacing the model was trained for."""
    scale = model.scale
    fine_step = {dim: _axes.spacing(fields[dim], dim) for dim in ("lat", "lon")}
    if model.spacing is not None:
        for dim, trained in zip(("lat", "lon"), model.spacing, strict=True):
            given = abs(_axes.spacing(coarse[dim], dim)) if coarse.sizes[dim] > 1 else abs(fine_step[dim]) * model.scale
            if not math.isclose(given, trained, rel_tol=0.01):
                raise ValueError(
                    f"The input's spacing in {dim} is {given:.6g} degrees; the model was trained on {trained:.6g}. "
                    "A model cannot be applied to another spacing. Type xdeepsd.regrid(ds, target) onto a grid of "
                    f"{trained:.6g} degrees first."
                )
    have, need = (fields.sizes["lat"], fields.sizes["lon"]), (coarse.sizes["lat"] * scale, coarse.sizes["lon"] * scale)
    if have != need:
        raise ValueError(
            f"The static grid is {have[0]} x {have[1]} cells; needed: {scale} times the input's "
            f"{coarse.sizes['lat']} x {coarse.sizes['lon']}, {need[0]} x {need[1]}. "
            "Type static.sel(lat=slice(...), lon=slice(...)) or the same on the input, so that both cover one region."
        )
    for dim in ("lat", "lon"):
        fine = np.asarray(fields[dim], np.float64).reshape(-1, scale).mean(axis=1)
        centres = np.asarray(coarse[dim], np.float64)
        if dim == "lon":
            centres = _axes.wrap_longitude(centres, near=fine)
        off = np.abs(fine - centres).max()
        if off > 0.05 * abs(fine_step[dim]):
            raise ValueError(
                f"The static grid does not lie on the input's grid: in {dim} the blocks of {scale} fine cells have "
                f"centres {fine[0]:.6g} to {fine[-1]:.6g}, the input's cells {centres[0]:.6g} to {centres[-1]:.6g} "
                f"(off by up to {off:.3g} degrees). Type xdeepsd.regrid(ds, target) onto those centres first."
            )


def target_mask(model: StackedSRCNN, mask: xr.DataArray | None, fields: xr.Dataset) -> xr.DataArray | None:
    """Mask on the target grid, or None. A given mask must lie on it; the model's is taken where it does."""
    given = mask is not None
    if mask is None:
        mask = model.mask
        if mask is None:
            return None
    if not isinstance(mask, xr.DataArray) or mask.dtype != bool:
        kind = mask.dtype if isinstance(mask, xr.DataArray) else type(mask).__name__
        raise ValueError(
            f"mask is of {kind}; needed: a bool DataArray, True where values are wanted. Type elevation.notnull() or "
            "land_fraction > 0."
        )
    da, _ = _axes.standardize(mask.squeeze().reset_coords(drop=True))
    for dim in ("lat", "lon"):
        if da.sizes[dim] > 1 and _ascending(da[dim]) != _ascending(fields[dim]):
            da = da.isel({dim: slice(None, None, -1)})
    fits = da.dims == ("lat", "lon") and da.shape == (fields.sizes["lat"], fields.sizes["lon"])
    if fits:
        for dim in ("lat", "lon"):
            centres = np.asarray(da[dim], np.float64)
            fine = np.asarray(fields[dim], np.float64)
            centres = _axes.wrap_longitude(centres, near=fine) if dim == "lon" else centres
            fits = fits and bool(np.abs(centres - fine).max() < 0.05 * abs(_axes.spacing(fine, dim)))
    if fits:
        return da
    if given:
        raise ValueError(
            f"The mask has {dict(da.sizes)} and does not lie on the target grid of {fields.sizes['lat']} x "
            f"{fields.sizes['lon']} cells. Type mask.sel(...) or xdeepsd.regrid(mask.astype(float), target) > 0.5."
        )
    return None  # another region than the model's: its mask says nothing there
