"""Bring precipitation of any climate model to what a stack takes: days, on its coarse grid. Lazy.

What lies there already is returned as it is. Everything else that is done is logged and described in ``Adapted.done``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.grids.cells import Grid, infer_edges, read_grid
from xdeepsd.grids.days import Period, period, to_days
from xdeepsd.grids.regrid import regrid, regrid_weights
from xdeepsd.grids.units import is_amount, precipitation_factor
from xdeepsd.models.variable import Values, Variable, clean, fill_values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapted:
    """Daily precipitation, and how it differs from what was given."""

    da: xr.DataArray
    source: xr.Dataset | xr.DataArray  # what tells the period of an amount
    period: Period  # of each value that was given
    done: tuple[str, ...] = ()  # in words
    gone: frozenset[str] = frozenset()  # dims and variables that the output does not share with the input
    bounds: dict[str, Any] = field(default_factory=dict)  # of the days, by name


def daily(
    da: xr.DataArray, ds: xr.Dataset | xr.DataArray, units: str, day_ends: float | None, values: Values
) -> Adapted:
    """Sum or average steps of hours to days that end at ``day_ends`` UTC; refuse what is longer than a day."""
    precipitation_factor(da.attrs.get("units"), units)  # raises where the units are missing or wrong
    found, time = period(da, ds), axes.find_time(da)
    climatology = time is not None and isinstance(ds, xr.Dataset) and ds[time].attrs.get("climatology")
    if climatology or (found.days is not None and found.days > 1.5 and found.known_by != "gaps"):
        what = "are means over many years" if climatology else f"stand for {found} each (by their {found.known_by})"
        raise ValueError(
            f"The values of {da.name!r} {what}. Needed: days, or steps of hours. The model was trained on single days, "
            "and a longer mean is light rain on every day: no day can be made of it. Where these are single days taken "
            "from a longer series, type ds.attrs['frequency'] = 'day'."
        )
    if time is None or found.days is None or found.days > 0.9:
        if day_ends is not None:
            raise ValueError(
                f"day_ends={day_ends:g}, and the values of {da.name!r} stand for {found}. Needed: steps of hours, "
                "which can be put together to days. Leave day_ends out."
            )
        return Adapted(da, ds, found)
    if da.indexes[time].dtype.kind == "m":
        raise ValueError(
            f"The steps of {time!r} are lead times of {found}, and the days they belong to are not known. Needed: "
            f"dates. Type ds.assign_coords({time}=START + ds[{time!r}]) with the start of the forecast."
        )
    if not axes.is_time(da.indexes[time]):
        raise ValueError(
            f"The time {time!r} holds numbers ({da[time].attrs.get('units')}) in steps of {found}. Needed: dates, to "
            "put them together to days. Type xr.decode_cf(ds)."
        )
    amount, end = is_amount(str(da.attrs["units"])), 0.0 if day_ends is None else day_ends
    out, edges = to_days(clean(da, values), ds, found.days, amount, end)
    done = f"{'sums' if amount else 'means'} of {found} steps over days that end at {end % 24:g} UTC"
    logger.info("%r: %s.", da.name, done)
    name = ds[time].attrs.get("bounds") or f"{time}_bnds"
    out[time].attrs["bounds"] = name
    bounds: dict[str, Any] = {
        name: ((time, "bnds"), edges, {}, {k: v for k, v in out[time].encoding.items() if k != "dtype"})
    }
    return Adapted(out, xr.Dataset(attrs={"frequency": "day"}), found, (done,), frozenset({time, name}), bounds)


def coarse_grid(fields: xr.Dataset, scale: int) -> xr.Dataset:
    """The grid of blocks of ``scale`` x ``scale`` cells of ``fields``, with bounds."""
    coords: dict[str, Any] = {}
    for dim in ("lat", "lon"):
        centres = np.asarray(fields[dim], np.float64)
        if centres.size % scale:
            sizes = (f"{d}=slice({fields.sizes[d] // scale * scale})" for d in ("lat", "lon"))
            raise ValueError(
                f"The static grid is {fields.sizes['lat']} x {fields.sizes['lon']} cells; needed: a multiple of "
                f"{scale}, so that {scale} x {scale} of them make a coarse cell. Type static.isel({', '.join(sizes)})."
            )
        edges = infer_edges(centres)
        assert edges is not None  # `axes.spacing` has asked for two cells
        edges = edges[::scale]
        attrs = {"units": "degrees_north" if dim == "lat" else "degrees_east", "bounds": f"{dim}_bnds"}
        coords[dim] = (dim, centres.reshape(-1, scale).mean(axis=1), attrs)
        coords[f"{dim}_bnds"] = ((dim, "bnds"), np.stack([edges[:-1], edges[1:]], axis=1))
    return xr.Dataset(coords=coords)


def lies_on(da: xr.DataArray, fields: xr.Dataset, scale: int) -> bool:
    """Whether the cells of ``da``, on its own names, are the blocks of ``fields``, in either order along each dim."""
    if axes.two_dimensional(da) is not None:
        return False
    names = axes.find(da)
    for dim, name in (("lat", names.lat), ("lon", names.lon)):
        if da[name].size * scale != fields.sizes[dim]:
            return False
        ways = (da[name], da[name][::-1])
        if not min(align.off_blocks(fields[dim], way, dim) for way in ways) <= align.LIES_ON:  # NaN too
            return False
    return True


def _cut(da: xr.DataArray, target: xr.Dataset, fields: xr.Dataset) -> dict[str, Any] | None:
    """Positions of the cells of ``target`` among those of ``da`` where its grid goes on beyond; None if it is another.

    They must lie on the blocks of ``fields`` as in `lies_on`, and their neighbours as well.
    """
    if axes.two_dimensional(da) is not None:
        return None
    names, where = axes.find(da), {}
    for dim, name, own in (("lat", names.lat, names.lat_dim), ("lon", names.lon, names.lon_dim)):
        at = align.cells_at(da[name], target[dim], dim)
        steps = np.diff(at)
        around = steps % da[name].size if dim == "lon" else steps
        if (at < 0).any() or not (np.isin(around, (1, da[name].size - 1)).all() or (np.abs(steps) == 1).all()):
            return None
        if not align.off_blocks(fields[dim], da[name].values[at], dim) <= align.LIES_ON:
            return None
        if at.size == 1 and da[name].size > 1:  # its neighbours are not in the target: compare the sizes of the cells
            edges = np.asarray(target[f"{dim}_bnds"]).ravel()
            if not align.same_step(abs(float(da[name][1] - da[name][0])), abs(float(edges[1] - edges[0]))):
                return None
        one_way = steps.size == 0 or (steps == 1).all() or (steps == -1).all()  # else across the seam
        where[own] = slice(int(at.min()), int(at.max()) + 1) if one_way else at
    return where


def to_grid(
    adapted: Adapted, ds: xr.Dataset | xr.DataArray, fields: xr.Dataset, mask: Any, scale: int, allow_partial: bool,
    values: Values,
) -> Adapted:  # fmt: skip
    """Cut or regrid to the blocks of ``fields``, conservatively; the same object if it lies on them.

    ``mask``: bool array on the grid of ``fields``, where values are wanted, or None. ValueError if a wanted coarse cell
    is not covered, unless ``allow_partial``: then it is NaN.
    """
    da = adapted.da
    if lies_on(da, fields, scale):
        return adapted
    target = coarse_grid(fields, scale)
    where = _cut(da, target, fields)
    if where is not None:
        logger.info("%r is cut to the model's domain.", da.name)
        return replace(adapted, da=da.isel(where))
    name = str(da.name) if da.name is not None else "precipitation"
    source, curvilinear = _with_bounds(da, ds, name), axes.two_dimensional(da)
    names = curvilinear or (axes.find(da).lat, axes.find(da).lon)
    extent = ", ".join(f"{n} {float(source[n].min()):.6g}..{float(source[n].max()):.6g}" for n in names)
    if curvilinear is not None:
        source = _around(source, *curvilinear, target)
    try:
        grid = read_grid(source)
    except ValueError as error:
        raise ValueError(f"The grid of the input: {error}") from error
    _not_twice(grid)
    if curvilinear is None:  # in the order and with the longitudes of the input
        backwards = slice(None, None, -1)
        for dim, centres in (("lat", grid.lat), ("lon", grid.lon)):
            if centres.size > 1 and (centres[-1] > centres[0]) != bool(target[dim][-1] > target[dim][0]):
                target = target.isel({dim: backwards})
        near = axes.wrap_longitude(np.asarray(target["lon"]), near=np.asarray(da[grid.lon_name], np.float64))
        shift = near - np.asarray(target["lon"])
        target["lon_bnds"] = target["lon_bnds"] + xr.DataArray(shift, dims="lon")
        target = target.assign_coords(lon=("lon", near, target["lon"].attrs))
    weights = regrid_weights(source, target)
    covered = xr.DataArray(weights.covered(), {"lat": target["lat"], "lon": target["lon"]})
    short = (covered < align.COVERED).values & _wanted(mask, fields, covered, scale)
    if short.any() and not allow_partial:
        raise ValueError(_not_covered(extent, covered, short, target))
    dims = tuple(axes.map_dims(da))
    if any(len(da.chunksizes.get(dim, ())) > 1 for dim in dims):
        logger.info("%r is rechunked to whole maps, which regridding needs.", da.name)
        source[name] = source[name].chunk(dict.fromkeys(dims, -1))
    if not adapted.done:  # else it is clean
        source[name] = clean(source[name], values)
    out = regrid(source, target, weights=weights)[name].rename(da.name)
    if short.any():
        keep = xr.DataArray(~short, dims=axes.map_dims(out))
        out = out.where(keep).assign_attrs(out.attrs).transpose(*out.dims)
    done = f"regridded conservatively from {' x '.join(str(da.sizes[dim]) for dim in grid.dims)} cells ({extent})"
    logger.info("%r: %s to the model's %d x %d.", da.name, done, *covered.shape)
    _tell_if_coarser(da, grid, target)
    gone = {*dims, *(curvilinear or ()), *source.variables} - {name, *out.dims, *out.coords}
    mapping = da.attrs.get("grid_mapping", da.encoding.get("grid_mapping"))
    if curvilinear and mapping:  # the output has latitude and longitude
        gone, out = gone | {str(mapping)}, out.drop_vars(mapping, errors="ignore")
    return replace(adapted, da=out, done=(*adapted.done, done), gone=adapted.gone | gone)


def _not_twice(grid: Grid) -> None:
    """ValueError if rows or columns differ by rounding only, as after an outer join of files: half of them are NaN."""
    for name, centres in ((grid.lat_name, grid.lat), (grid.lon_name, grid.lon)) if grid.rectilinear else ():
        steps = np.abs(np.diff(centres))
        if steps.size and steps.min() < 1e-3 * steps.max():
            at = int(np.argmin(steps))
            raise ValueError(
                f"{name} holds values that differ by rounding only, such as {centres[at]:.17g} and "
                f"{centres[at + 1]:.17g}: files were joined whose coordinates differ. Needed: every cell once. "
                "Type xr.open_mfdataset(FILES, join='override')."
            )


def _around(source: xr.Dataset, lat_name: str, lon_name: str, target: xr.Dataset) -> xr.Dataset:
    """The rows and columns of a curvilinear grid around the target: weights of the others would take long to find."""
    dims = source[lat_name].dims
    near = np.ones(source[lat_name].shape, bool)
    for name, dim, turn in ((lat_name, "lat", np.inf), (lon_name, "lon", 360.0)):
        centres, edges = (np.asarray(a, np.float64) for a in (source[name].transpose(*dims), target[f"{dim}_bnds"]))
        middle, half = (edges.max() + edges.min()) / 2, (edges.max() - edges.min()) / 2
        # The corners of a cell are inferred from the next centres, so the margin is of more than one cell.
        apart = [np.abs(np.diff(centres, axis=axis)).ravel() for axis in (0, 1)]
        margin = 3 * max(float(np.minimum(a, turn - a).max(initial=0.0)) for a in apart)
        off = np.abs(centres - middle) if dim == "lat" else np.abs((centres - middle + 180.0) % 360.0 - 180.0)
        near &= off <= half + margin
    if not near.any() or not all(np.isfinite(source[name]).all() for name in (lat_name, lon_name)):
        return source  # the errors about the grid say what is wrong
    where = {}
    for axis, along in enumerate(dims):
        at = np.flatnonzero(near.any(axis=1 - axis))
        where[along] = slice(max(0, int(at[0]) - 1), int(at[-1]) + 2)
    return source.isel(where)


def _tell_if_coarser(da: xr.DataArray, grid: Grid, target: xr.Dataset) -> None:
    """Warn where the input has no detail at the scale of the model's coarse cells."""
    if grid.lat_bounds is None or not grid.rectilinear:
        return
    height, own = (float(np.median(np.abs(np.diff(b)))) for b in (grid.lat_bounds, target["lat_bnds"]))
    if height > 1.5 * own:
        logger.warning(
            "The cells of %r are %.3g degrees high, the model's coarse cells %.3g: neighbours get the same value, and "
            "the result lacks the detail of the levels that the model was trained on.", da.name, height, own,
        )  # fmt: skip


def _with_bounds(da: xr.DataArray, ds: xr.Dataset | xr.DataArray, name: str) -> xr.Dataset:
    """``da`` as a Dataset with the bounds of its latitude and longitude, where ``ds`` has them."""
    source = da.to_dataset(name=name)
    names = axes.two_dimensional(da) or (axes.find(da).lat, axes.find(da).lon)
    source = source.assign_coords({coord: source[coord].compute() for coord in names})  # read once
    for coord in names:
        for bounds in (da[coord].attrs.get("bounds") or da[coord].encoding.get("bounds"), f"{coord}_b"):
            if bounds is not None and isinstance(ds, xr.Dataset) and bounds in ds.variables:
                source[bounds] = ds[bounds].variable
    return source


def _wanted(mask: Any, fields: xr.Dataset, covered: xr.DataArray, scale: int) -> np.ndarray:
    """Coarse cells with any wanted fine cell, in the order of ``covered``; all if the mask is lazy."""
    if not isinstance(mask, np.ndarray):
        return np.ones(covered.shape, bool)
    nlat, nlon = (size // scale for size in mask.shape)
    blocks = np.asarray(mask.reshape(nlat, scale, nlon, scale).any(axis=(1, 3)))
    for axis, dim in enumerate(("lat", "lon")):
        if nlat * nlon and covered[dim].size > 1 and _up(covered[dim]) != _up(fields[dim]):
            blocks = np.flip(blocks, axis)
    return blocks


def _up(coord: xr.DataArray) -> bool:
    return bool(coord[-1] > coord[0])


def _not_covered(extent: str, covered: xr.DataArray, short: np.ndarray, target: xr.Dataset) -> str:
    rows, cols = short.any(axis=1), short.any(axis=0)
    ranges = []
    for dim, index in (("lat", rows), ("lon", cols)):
        edges = np.asarray(target[f"{dim}_bnds"])[index]
        ranges.append(f"{dim} {edges.min():.6g} to {edges.max():.6g}")
    return (
        f"The grid of the input ({extent}) does not cover the model's domain: {int(short.sum())} of its {covered.size} "
        f"coarse cells are missing, within {' and '.join(ranges)}. Needed: all of it. Type allow_partial=True to have "
        "NaN there, or static=model.static.sel(lat=slice(...), lon=slice(...)) for a part of it."
    )


def undecoded(da: xr.DataArray) -> xr.DataArray:
    """Decode packed integers by their own attributes, as xarray would have on opening. Lazy if the input is."""
    if da.dtype.kind not in "iu" or not {"scale_factor", "add_offset"} & set(da.attrs):
        return da
    packed = da.drop_vars(list(da.coords)).to_dataset(name="packed")
    out = xr.decode_cf(packed, decode_times=False, decode_coords=False)["packed"]
    if da.chunks is None and da.variable._in_memory:
        out = out.load()
    return out.assign_coords(da.coords).rename(da.name)


def values_as_given(da: xr.DataArray, kind: Variable) -> Values:
    """What the numbers mean before they are put together: all of `Values` but the factor."""
    lowest = kind.lowest / precipitation_factor(da.attrs.get("units"), kind.units)
    return Values(str(da.name), 1.0, lowest, fill_values(da), lenient=True)
