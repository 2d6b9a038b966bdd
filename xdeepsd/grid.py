"""A horizontal grid: cell centres and cell bounds, read from the coordinates of an xarray object."""

from __future__ import annotations

from dataclasses import dataclass

import cf_xarray  # noqa: F401  (registers the .cf accessor)
import numpy as np
import xarray as xr

from xdeepsd import axes

XarrayObject = xr.Dataset | xr.DataArray


@dataclass(frozen=True, eq=False)
class Grid:
    """Centres and bounds in degrees, with the names under which they were found.

    Rectilinear: ``lat`` ``(nlat,)``, ``lon`` ``(nlon,)``, bounds ``(nlat + 1,)`` and ``(nlon + 1,)``. Curvilinear: all
    centres ``(ny, nx)``, bounds the four corners of each cell, ``(ny, nx, 4)``, in order around the cell.
    Longitudes of a rectilinear grid are unwrapped (monotonic, perhaps beyond 180 or 360).
    """

    lat: np.ndarray
    lon: np.ndarray
    lat_bounds: np.ndarray
    lon_bounds: np.ndarray
    lat_name: str
    lon_name: str
    dims: tuple[str, str]

    @property
    def rectilinear(self) -> bool:
        """True where lat and lon are one-dimensional."""
        return self.lat.ndim == 1

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along the two dims."""
        return (self.lat.size, self.lon.size) if self.rectilinear else (self.lat.shape[0], self.lat.shape[1])


def _monotonic(values: np.ndarray, name: str) -> np.ndarray:
    """``values`` as float64; ValueError where they are not finite and strictly monotonic."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} has {np.count_nonzero(~np.isfinite(values))} NaN among its {values.size} values. Needed: the "
            f"centre of every cell. Type ds.dropna({name!r})."
        )
    steps = np.diff(values)
    if (steps == 0).any():
        repeated = np.unique(values[1:][steps == 0])
        raise ValueError(
            f"{name} holds values twice: {repeated[:5].tolist()}. Needed: every cell once. "
            f"Type ds.drop_duplicates({name!r})."
        )
    if not ((steps > 0).all() or (steps < 0).all()):
        at = int(np.argmax(np.sign(steps) != np.sign(steps[0])))
        raise ValueError(
            f"{name} is not monotonic: {values[at]:g} is followed by {values[at + 1]:g} at position {at + 1} of "
            f"{values.size}. Needed: ascending or descending values. Type ds.sortby({name!r})."
        )
    return values


def infer_edges(centres: np.ndarray, name: str) -> np.ndarray:
    """Edges ``(n + 1,)`` half-way between centres ``(n,)``; the outermost cells are as wide as their inner half."""
    if centres.size < 2:
        raise ValueError(
            f"{name} has {centres.size} value, so the size of its cell is unknown. Needed: two cells or more, or CF "
            f"bounds. Type ds['{name}_bnds'] = (('{name}', 'bnds'), [[LOW, HIGH]]); "
            f"ds['{name}'].attrs['bounds'] = '{name}_bnds'."
        )
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _edges_from_bounds(bounds: np.ndarray, centres: np.ndarray, name: str) -> np.ndarray:
    """Edges ``(n + 1,)`` from CF bounds ``(n, 2)`` or from edges ``(n + 1,)``, in the order of ``centres``.

    ValueError where a centre lies outside its cell, or cells overlap or leave gaps.
    """
    bounds = np.asarray(bounds, np.float64)
    n = centres.size
    if bounds.shape == (n + 1,):
        bounds = np.stack([bounds[:-1], bounds[1:]], axis=1)
    if bounds.shape != (n, 2):
        raise ValueError(
            f"The bounds of {name} have the shape {bounds.shape}. Needed: ({n}, 2) for {n} cells. Type "
            f"ds.drop_vars('{name}_bnds') to have them inferred from the centres."
        )
    if name.startswith("lon"):
        bounds = bounds + 360.0 * np.round((centres[:, None] - bounds) / 360.0)
    low, high = bounds.min(axis=1), bounds.max(axis=1)
    slack = 1e-3 * np.maximum(high - low, 1e-12)
    outside = (centres < low - slack) | (centres > high + slack)
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"The bounds of {name} disagree with its centres: {centres[i]:g} at position {i} lies outside its bounds "
            f"[{low[i]:g}, {high[i]:g}] ({np.count_nonzero(outside)} of {n} cells). Needed: every centre inside its "
            f"cell. Correct the bounds, or type ds.drop_vars('{name}_bnds') to have them inferred from the centres."
        )
    ascending = n == 1 or centres[-1] > centres[0]
    first, last = (low, high) if ascending else (high, low)
    gaps = np.abs(last[:-1] - first[1:])
    if (gaps > 1e-3 * (high - low)[1:]).any():
        i = int(np.argmax(gaps))
        raise ValueError(
            f"The bounds of {name} leave gaps or overlap: cell {i} ends at {last[i]:g} and cell {i + 1} begins at "
            f"{first[i + 1]:g}. Needed: cells that meet. Correct the bounds, or type "
            f"ds.drop_vars('{name}_bnds') to have them inferred from the centres."
        )
    return np.concatenate([first, last[-1:]])


def _find_bounds(obj: XarrayObject, name: str) -> np.ndarray | None:
    """Values of the CF bounds of the coordinate ``name``, or of xESMF's ``NAME_b``; None where there are none."""
    named = obj[name].attrs.get("bounds") or obj[name].encoding.get("bounds")
    there = obj.variables if isinstance(obj, xr.Dataset) else obj.coords
    for candidate in (named, f"{name}_b"):
        if candidate is not None and candidate in there:
            return np.asarray(obj[candidate].values)
    return None


def read_grid(obj: XarrayObject) -> Grid:
    """The horizontal grid of a Dataset or DataArray: 1-D or 2-D latitude and longitude, bounds by CF or inferred.

    Reads coordinates only. Latitude bounds are clipped at the poles. Raises ValueError where coordinates are missing,
    not monotonic, repeated, or disagree with their bounds.
    """
    found = axes.find(obj)
    lat = _monotonic(obj[found.lat].values, found.lat)
    if np.abs(lat).max() > 90.001:
        raise ValueError(
            f"{found.lat} reaches from {lat.min():g} to {lat.max():g}. Needed: degrees within -90..90. "
            "Check that latitude and longitude are not exchanged and that the units are degrees."
        )
    lon = _monotonic(np.unwrap(np.asarray(obj[found.lon].values, np.float64), period=360.0), found.lon)
    edges = []
    for name, centres in ((found.lat, lat), (found.lon, lon)):
        bounds = _find_bounds(obj, name)
        edges.append(infer_edges(centres, name) if bounds is None else _edges_from_bounds(bounds, centres, name))
    lat_edges, lon_edges = np.clip(edges[0], -90.0, 90.0), edges[1]
    turn = abs(lon_edges[-1] - lon_edges[0])
    if turn > 360.0 * (1 + 1e-6):
        raise ValueError(
            f"{found.lon} spans {turn:g} degrees, more than a whole turn: some cells are there twice. Needed: 360 or "
            f"less. Type ds.isel({found.lon}=slice(None, -1)) if the last column repeats the first."
        )
    return Grid(lat, lon, lat_edges, lon_edges, found.lat, found.lon, (found.lat_dim, found.lon_dim))
