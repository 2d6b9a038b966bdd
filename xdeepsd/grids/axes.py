"""Find latitude, longitude and time by their CF metadata; bring arrays into our order of dims and back.

This is the only module that searches for coordinates. Everything downstream may rely on the dims
``(..., time, lat, lon)`` with one-dimensional ``lat`` and ``lon`` in degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cf_xarray  # noqa: F401  (registers the .cf accessor)
import numpy as np
import xarray as xr

from xdeepsd.stores import sources

XarrayObject = TypeVar("XarrayObject", xr.Dataset, xr.DataArray)

# Names accepted without any CF attribute, in order of preference.
_PLAIN_NAMES = {"latitude": (("lat", "latitude"), ("y",)), "longitude": (("lon", "longitude"), ("x",))}
_NOT_DEGREES = {"m", "km", "metre", "meter", "metres", "meters", "kilometre", "kilometer"}


@dataclass(frozen=True)
class Axes:
    """The user's names: coordinates ``lat``, ``lon``, ``time`` (or None), their dims, and the order of dims."""

    lat: str
    lon: str
    lat_dim: str
    lon_dim: str
    time: str | None
    dims: tuple[str, ...]

    @property
    def names(self) -> dict[str, str]:
        """From the user's names to ours."""
        ours = {self.lat: "lat", self.lon: "lon"} | ({self.time: "time"} if self.time else {})
        return {old: new for old, new in ours.items() if old != new}


def _candidates(obj: xr.Dataset | xr.DataArray, kind: Literal["latitude", "longitude"]) -> list[str]:
    """Names of coordinates that may be ``kind``: by CF attributes, plain names or cf-xarray's guess, in that order."""
    names = [str(n) for n in obj.cf.coordinates.get(kind, []) if n in obj.coords]
    if names:
        return names
    for same in _PLAIN_NAMES[kind]:
        names = [n for n in same if n in obj.coords and str(obj[n].attrs.get("units", "")).lower() not in _NOT_DEGREES]
        if names:
            return names
    guessed = obj.cf.guess_coord_axis().cf.coordinates.get(kind, [])
    # The guess goes by how a name begins, so it also takes bounds for coordinates.
    return [str(n) for n in guessed if n in obj.coords and not str(n).endswith(("_bnds", "_bounds", "_vertices"))]


def _least_likely(obj: xr.Dataset | xr.DataArray, names: list[str]) -> str:
    """Which of several candidates to leave out: first one that is not 1-D, then one not named like its dim."""
    return min(reversed(names), key=lambda name: (obj[name].ndim == 1, name in obj.dims))


def _one(obj: xr.Dataset | xr.DataArray, kind: Literal["latitude", "longitude"]) -> str:
    names = _candidates(obj, kind)
    short = kind[:3]
    if not names:
        raise ValueError(
            f"No {kind} found among the coordinates {sorted(map(str, obj.coords))} of dims {tuple(obj.dims)}. "
            f"Needed: a one-dimensional coordinate in degrees. Type "
            f"ds['NAME'].attrs['standard_name'] = '{kind}' for the coordinate that holds it, or "
            f"ds.rename(NAME='{short}'); if a data variable holds it, first ds.set_coords('NAME')."
        )
    if len(names) > 1:
        raise ValueError(
            f"Several candidates for {kind}: {sorted(names)}. Needed: exactly one. "
            f"Type ds.drop_vars({_least_likely(obj, names)!r}) to leave one of them out."
        )
    name = names[0]
    if obj[name].ndim > 1:
        raise ValueError(
            f"The {kind} {name!r} is {obj[name].ndim}-D, on dims {obj[name].dims}: a curvilinear grid (rotated pole, "
            "Lambert, ...). Needed: 1-D latitude and longitude. Type xdeepsd.regrid(ds, target) first, where target is "
            "the regular coarse grid."
        )
    if obj[name].ndim == 0:
        raise ValueError(
            f"The {kind} {name!r} is a single number, not a dimension. Needed: a map. "
            f"Select with a list, ds.isel({name}=[i]), or type ds.expand_dims({name!r})."
        )
    if obj[name].dtype.kind not in "fiu":
        raise ValueError(
            f"The {kind} {name!r} has dtype {obj[name].dtype}. Needed: numbers in degrees. "
            f"Type ds.assign_coords({name}=ds[{name!r}].astype(float))."
        )
    return name


def is_time(values: Any) -> bool:
    """Whether these are dates or lead times (numpy or cftime)."""
    values = np.asarray(values)
    return values.dtype.kind in "mM" or (
        values.dtype == object and bool(values.size) and hasattr(values.flat[0], "timetuple")
    )


def days_since_first(values: Any) -> np.ndarray | None:
    """Days ``(n,)`` since the first of a series of dates or lead times (numpy or cftime); None for anything else."""
    values = np.asarray(values)
    if not is_time(values):
        return None
    if values.dtype.kind in "mM":
        return (values - values[:1]) / np.timedelta64(1, "D")
    return np.array([(value - values[0]).total_seconds() / 86400 for value in values])


def find(obj: xr.Dataset | xr.DataArray) -> Axes:
    """Find the latitude, longitude and time of ``obj`` by CF metadata, then by common names.

    Reads only the metadata of coordinates, never data. Raises ValueError, naming what is there, if there is no
    candidate or more than one, or if the coordinates are two-dimensional.
    """
    lat, lon = _one(obj, "latitude"), _one(obj, "longitude")
    return Axes(lat, lon, str(obj[lat].dims[0]), str(obj[lon].dims[0]), find_time(obj), tuple(map(str, obj.dims)))


def find_time(obj: xr.Dataset | xr.DataArray) -> str | None:
    """The name of the time of ``obj``, which is that of its dim; None if it has none. Reads only coordinates."""
    times = [str(n) for n in (obj.cf.axes.get("T", []) or obj.cf.coordinates.get("time", [])) if n in obj.coords]
    times = [n for n in times if obj[n].dims == (n,)]
    if not times:  # no CF attributes, any name: t, Time, valid_time, cfgrib's step
        dims = [n for n, index in obj.indexes.items() if obj[n].dims == (n,) and is_time(index)]
        times = [n for n in ("time", "day", "date") if n in obj.coords and obj[n].dims == (n,)] or list(map(str, dims))
    return times[0] if times else None


def two_dimensional(obj: xr.Dataset | xr.DataArray) -> tuple[str, str] | None:
    """Names of 2-D latitude and longitude coordinates, by CF metadata or common names; None if they are not 2-D."""
    names = []
    for kind in ("latitude", "longitude"):
        found = obj.cf.coordinates.get(kind) or [name for name in (kind, kind[:3]) if name in obj.coords]
        dims = {str(name): obj[name].ndim for name in found if name in obj.coords}
        flat = [name for name, ndim in dims.items() if ndim == 2]
        if 1 in dims.values() or len(flat) != 1:
            return None
        names.append(flat[0])
    return names[0], names[1]


def map_dims(obj: xr.Dataset | xr.DataArray) -> tuple[str, str]:
    """The two horizontal dims, whether latitude and longitude are 1-D or 2-D. Errors as in `find`."""
    curvilinear = two_dimensional(obj)
    if curvilinear:
        rows, cols = map(str, obj[curvilinear[0]].dims)
        return rows, cols
    found = find(obj)
    if found.lat_dim == found.lon_dim:
        raise ValueError(
            f"The latitude {found.lat!r} and the longitude {found.lon!r} both lie along the dim {found.lat_dim!r}: "
            "points, such as stations or the cells of an unstructured grid. Needed: a map, with a dim for each."
        )
    return found.lat_dim, found.lon_dim


def settle(obj: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """Make proper coordinates of those that a file holds in another form. Reads no data.

    Latitudes and longitudes among the variables become coordinates; those that are given for every step of time (WRF)
    lose that dim if the grid stays where it is; a dim without values gets those of a time that lies along it. Where
    there are only x and y of a projection, latitude and longitude follow from its grid mapping (if pyproj is there).
    """
    if isinstance(obj, xr.Dataset):
        hidden = [n for n, v in obj.data_vars.items() if v.attrs.get("standard_name") in _PLAIN_NAMES]
        obj = obj.set_coords(hidden)
    for kind in _PLAIN_NAMES:
        for name in obj.cf.coordinates.get(kind, []):
            moving = obj[name].dims[:-2]
            if obj[name].ndim > 2 and all(obj.sizes[dim] for dim in moving):
                first, last = (obj[name].isel(dict.fromkeys(moving, at), drop=True) for at in (0, -1))
                if np.array_equal(first, last):
                    obj = obj.assign_coords({name: first})
    for dim in set(obj.dims) - set(obj.coords):
        times = [c for c in obj.coords.values() if c.dims == (dim,) and is_time(c)]
        if len(times) == 1:
            obj = obj.assign_coords({dim: (dim, times[0].values, times[0].attrs)})
    return _from_projection(obj)


def _from_projection(obj: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """Add the latitude and longitude of every cell of a projected grid that has but x and y."""
    there = obj.variables.values() if isinstance(obj, xr.Dataset) else obj.coords.values()
    mappings = [v.attrs for v in there if not v.ndim and {"crs_wkt", "grid_mapping_name"} & set(v.attrs)]
    if len(mappings) != 1 or set(_PLAIN_NAMES) & set(obj.cf.coordinates) or {"lat", "latitude"} & set(obj.coords):
        return obj
    along = {axis: [n for n in obj.cf.axes.get(axis.upper(), []) or [axis] if n in obj.indexes] for axis in ("x", "y")}
    if any(len(names) != 1 for names in along.values()):
        return obj
    try:
        from pyproj import CRS, Transformer
        from pyproj.exceptions import CRSError

        try:
            projection = CRS.from_cf(mappings[0])
        except (CRSError, KeyError):
            return obj
    except ImportError:
        return obj
    if projection.is_geographic:
        return obj
    names = [along[axis][0] for axis in ("x", "y")]
    scales = [
        1000.0 if str(obj[n].attrs.get("units", "")).lower() in ("km", "kilometre", "kilometer") else 1.0 for n in names
    ]
    x, y = np.meshgrid(*(np.asarray(obj[n], np.float64) * scale for n, scale in zip(names, scales, strict=True)))
    lon, lat = Transformer.from_crs(projection, projection.geodetic_crs, always_xy=True).transform(x, y)
    dims = (names[1], names[0])
    return obj.assign_coords(
        lat=(dims, lat, {"standard_name": "latitude", "units": "degrees_north"}),
        lon=(dims, lon, {"standard_name": "longitude", "units": "degrees_east"}),
    )


def _aside(name: str) -> str:
    """Temporary name for a coordinate of the user's that has one of our names but another meaning."""
    return f"{name} of another kind"


def as_map(da: xr.DataArray) -> xr.DataArray:
    """Drop dims of length one and scalar coordinates (a selected time, a band): they mean nothing to a map."""
    da = da.squeeze()
    return da.drop_vars([name for name, coord in da.coords.items() if not coord.ndim])


def standardize(da: xr.DataArray) -> tuple[xr.DataArray, Axes]:
    """Rename to ``time, lat, lon`` and move them last: ``(..., time, lat, lon)``. Lazy; values untouched."""
    axes = find(da)
    for name, dim in ((axes.lat, axes.lat_dim), (axes.lon, axes.lon_dim)):
        if dim != name:
            da = da.drop_vars(dim, errors="ignore").swap_dims({dim: name})
    taken = {new: _aside(new) for new in axes.names.values() if new in da.coords or new in da.dims}
    da = da.rename(taken).rename(axes.names)
    last = [d for d in ("time", "lat", "lon") if d in da.dims]
    return da.transpose(..., *last), axes


def restore(da: xr.DataArray, axes: Axes) -> xr.DataArray:
    """Undo `standardize`: restore the user's names and order of dims. Lazy."""
    da = da.rename({new: old for old, new in axes.names.items() if new in da.coords or new in da.dims})
    da = da.rename({_aside(n): n for n in ("time", "lat", "lon") if _aside(n) in da.coords or _aside(n) in da.dims})
    for name, dim in ((axes.lat, axes.lat_dim), (axes.lon, axes.lon_dim)):
        if dim != name:
            da = da.swap_dims({name: dim})
    return da.transpose(*[d for d in axes.dims if d in da.dims])


def chunk_unread(da: xr.DataArray, scale: int = 1, days: int | None = None) -> xr.DataArray:
    """Chunk along time an array that xarray opened without chunks and has not read yet, so that it is not read whole.

    Chunks have ``days`` days; by default 30, or fewer if float32 maps ``scale`` times finer (along each axis) would
    exceed 128 MiB per chunk. Arrays in memory and Dask arrays are returned as they are.
    """
    if da.chunks is not None or da.variable._in_memory:
        return da
    maps, time = map_dims(da), find_time(da)
    days = days or days_in_chunk(math.prod(da.sizes[dim] for dim in maps) * scale**2)
    chunks = {dim: -1 if dim in maps else days if dim == time else 1 for dim in da.dims}
    name = f"{da.name}-{sources.stamp(da.variable)}"  # the same in the next process, so that a store can be resumed
    return da.chunk(chunks, name_prefix=f"{name}-", token=name)


def days_in_chunk(cells: int) -> int:
    """Days per chunk for float32 maps of this many cells: 30, or fewer if that would exceed 128 MiB."""
    return max(1, min(30, 2**27 // (4 * cells)))


def to_order(values: np.ndarray, name: str) -> str:
    """What to type to put a coordinate in order: sort it, after wrapping longitudes that jump by a turn.

    >>> to_order(np.array([-179.0, 178.0, 179.0]), "lon")
    "ds.assign_coords(lon=ds['lon'].copy(data=(ds['lon'].values +0.5) % 360 -0.5)).sortby('lon')"
    """
    if np.abs(np.diff(values)).max(initial=0.0) <= 180:
        return f"ds.sortby({name!r})"
    up = np.sort(values % 360.0)
    gaps = np.diff(up, append=up[0] + 360.0)
    west = ((up + gaps / 2)[np.argmax(gaps)] + 180) % 360 - 180  # in the middle of the widest gap in longitude
    turned = f"ds[{name!r}].copy(data=(ds[{name!r}].values {-west:+g}) % 360 {west:+g})"
    return f"ds.assign_coords({name}={turned}).sortby({name!r})"


def spacing(coord: xr.DataArray | np.ndarray, name: str) -> float:
    """Signed step of a regular one-dimensional coordinate, degrees.

    Raises ValueError if values are missing, repeated, unordered or irregular by more than a hundredth of a step
    (float32 coordinates of a fine grid are off by a few thousandths).
    """
    values = np.asarray(coord, dtype=np.float64)
    own, along = name, name  # name may be a phrase such as "The lat of the input"
    if isinstance(coord, xr.DataArray):
        own, along = str(coord.name), str(coord.dims[0])
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} has NaN among its {values.size} values. Type ds.isel({along}=np.isfinite(ds[{own!r}].values))."
        )
    if values.size < 2:
        raise ValueError(f"{name} has {values.size} value: its spacing is unknown. Needed: two cells or more.")
    steps = np.diff(values)
    step = (values[-1] - values[0]) / (values.size - 1)
    if step == 0 or np.abs(steps - step).max() > 0.01 * abs(step):
        raise ValueError(
            f"{name} is irregular: steps from {steps.min():.6g} to {steps.max():.6g} degrees. Needed: equal steps. "
            f"Type {to_order(values, own)} if it is only unordered, else xdeepsd.regrid(ds, target) onto a "
            "regular grid."
        )
    return float(step)


def wrap_longitude(lon: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Shift ``lon`` (degrees) by whole turns so that its mean lies within half a turn of the mean of ``near``.

    >>> wrap_longitude(np.array([235.0, 236.0]), near=np.array([-125.0, -124.0]))
    array([-125., -124.])
    """
    turns = np.round((np.mean(near) - np.mean(lon)) / 360.0)
    return np.asarray(lon, dtype=np.float64) + 360.0 * turns
