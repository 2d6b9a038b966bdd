"""A horizontal grid: cell centres and cell bounds, read from the coordinates of an xarray object."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import cf_xarray  # noqa: F401  (registers the .cf accessor)
import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes


@dataclass(frozen=True, eq=False)
class Grid:
    """Centres and bounds in degrees, with the names under which they were found.

    Rectilinear: ``lat`` ``(nlat,)``, ``lon`` ``(nlon,)``, bounds ``(nlat + 1,)`` and ``(nlon + 1,)``; longitudes are
    unwrapped (monotonic, possibly beyond 180 or 360). Curvilinear: centres ``(ny, nx)``; bounds ``(ny, nx, 4)`` are the
    four corners of each cell, in order around it (in the order of `_around` if neighbours share corners). Bounds are
    None if none are given and a single cell along an axis has no neighbour to infer them from.
    """

    lat: np.ndarray
    lon: np.ndarray
    lat_bounds: np.ndarray | None
    lon_bounds: np.ndarray | None
    lat_name: str
    lon_name: str
    dims: tuple[str, str]

    @property
    def rectilinear(self) -> bool:
        """True if lat and lon are one-dimensional."""
        return self.lat.ndim == 1

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along the two dims."""
        return (self.lat.size, self.lon.size) if self.rectilinear else (self.lat.shape[0], self.lat.shape[1])

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.shape[0] * self.shape[1]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude bounds; ValueError if they are unknown."""
        if self.lat_bounds is not None and self.lon_bounds is not None:
            return self.lat_bounds, self.lon_bounds
        if not self.rectilinear:
            types = (
                f"ds['{name}_bnds'] = ({(*self.dims, 'corner')}, {name.upper()}_OF_FOUR_CORNERS); "
                f"ds['{name}'].attrs['bounds'] = '{name}_bnds'"
                for name in (self.lat_name, self.lon_name)
            )
            raise ValueError(
                f"A 2-D grid of {self.shape[0]} x {self.shape[1]} cells has no bounds, so the size of its cells is "
                "unknown. Needed: two cells or more along both dims, or CF bounds of latitude and longitude. Type "
                f"{'; '.join(types)}."
            )
        name, dim = (self.lat_name, self.dims[0]) if self.lat_bounds is None else (self.lon_name, self.dims[1])
        raise ValueError(
            f"{name} has 1 value and no bounds, so the size of its cell is unknown. Needed: two cells or more, or "
            f"CF bounds. Type ds['{name}_bnds'] = (('{dim}', 'bnds'), [[LOW, HIGH]]); "
            f"ds['{name}'].attrs['bounds'] = '{name}_bnds'."
        )

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of every cell, each ``(ny, nx)``."""
        if not self.rectilinear:
            return self.lat, self.lon
        lat, lon = np.meshgrid(self.lat, self.lon, indexing="ij")
        return lat, lon

    @property
    def is_global(self) -> bool:
        """True if the columns go round the earth, so that the last is the neighbour of the first."""
        if self.rectilinear:
            return self.lon_bounds is not None and align.goes_round(self.lon_bounds)
        return align.rows_close(unit_vectors(self.lat, self.lon))

    def closed_centres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latitude, longitude and number of every cell, each ``(ny, nx)``; a global grid repeats its first column.

        This way the gap between the last and the first column needs no special case.
        """
        lat, lon = self.centres()
        number = np.arange(self.size).reshape(self.shape)
        if self.is_global:
            lat, lon, number = (np.concatenate([a, a[:, :1]], axis=1) for a in (lat, lon, number))
        return lat, lon, number

    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of the four corners of every cell, each ``(cells, 4)``, in order around it."""
        lat, lon = self.bounds()
        if self.rectilinear:
            lat, lon = _around(*np.meshgrid(lat, lon, indexing="ij"))
        return lat.reshape(-1, 4), lon.reshape(-1, 4)

    def shared_corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of the corners ``(ny + 1, nx + 1)``; ValueError if neighbours do not share them."""
        lat, lon = self.bounds()
        if self.rectilinear:
            lat, lon = np.meshgrid(lat, lon, indexing="ij")
            return lat, lon
        if not _neighbours_share(unit_vectors(lat, lon)):
            raise ValueError(
                f"The bounds of {self.lat_name} and {self.lon_name} are corners that neighbouring cells do not share. "
                "Needed for engine='xesmf': cells without gaps and overlaps between them. Leave engine out: the "
                "default takes any cells."
            )
        lat, lon = (np.block([[b[..., 0], b[:, -1:, 1]], [b[-1:, :, 3], b[-1:, -1:, 2]]]) for b in (lat, lon))
        return lat, lon

    @property
    def spans(self) -> str:
        """The extent in words, for messages."""
        return (
            f"{self.lat_name} {self.lat.min():.6g}..{self.lat.max():.6g}, "
            f"{self.lon_name} {self.lon.min():.6g}..{self.lon.max():.6g}"
        )


def _around(*corners: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four corners of each cell ``(ny, nx, 4)`` from shared corners ``(ny + 1, nx + 1)``."""
    return tuple(np.stack([c[:-1, :-1], c[:-1, 1:], c[1:, 1:], c[1:, :-1]], axis=-1) for c in corners)


def unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Points on the unit sphere ``(..., 3)`` from degrees."""
    lat, lon = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _monotonic(coord: xr.DataArray, turn: bool) -> np.ndarray:
    """The values as float64; ValueError if they are not finite and strictly monotonic.

    ``turn``: the values are longitudes and may jump by whole turns; the result does not.
    """
    name, dim = str(coord.name), str(coord.dims[0])
    given = np.asarray(coord.values, np.float64)
    if not np.isfinite(given).all():
        raise ValueError(
            f"{name} has {np.count_nonzero(~np.isfinite(given))} NaN among its {given.size} values. Needed: the "
            f"centre of every cell. Type ds.isel({dim}=np.isfinite(ds['{name}'].values))."
        )
    values = np.unwrap(given, period=360.0) if turn else given
    steps = np.diff(values)
    if (steps == 0).any():
        repeated = np.flatnonzero(steps == 0) + 1
        raise ValueError(
            f"{name} has repeated values: {np.unique(given[repeated])[:5].tolist()}. Needed: every cell once. "
            f"Type ds.isel({dim}=np.delete(range({values.size}), {repeated.tolist()}))."
        )
    if not ((steps > 0).all() or (steps < 0).all()):
        at = int(np.argmax(np.sign(steps) != np.sign(steps[0])))
        raise ValueError(
            f"{name} is not monotonic: {values[at]:g} is followed by {values[at + 1]:g} at position {at + 1} of "
            f"{values.size}. Needed: ascending or descending values. Type {axes.to_order(given, name)}."
        )
    return values


def infer_edges(centres: np.ndarray) -> np.ndarray | None:
    """Edges ``(n + 1,)`` half-way between centres ``(n,)``; the outermost cells extend as far outwards as inwards.

    None for a single cell.
    """
    if centres.size < 2:
        return None
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _reach(points: np.ndarray) -> np.ndarray:
    """Distance ``(ny, nx)`` from the middle of each cell to the farthest of its corners ``(ny, nx, 4, 3)``."""
    return np.linalg.norm(points - points.mean(axis=2, keepdims=True), axis=-1).max(axis=2)


def _neighbours_share(points: np.ndarray) -> bool:
    """True if corners ``(ny, nx, 4, 3)``, in the order of `_around`, coincide with those of neighbouring cells."""
    reach = _reach(points)
    pairs = (
        (points[:, :-1, [1, 2]], points[:, 1:, [0, 3]], reach[:, 1:]),
        (points[:-1, :, [3, 2]], points[1:, :, [0, 1]], reach[1:]),
    )
    return all(align.same_edge(np.linalg.norm(a - b, axis=-1), cell[..., None]).all() for a, b, cell in pairs)


def _infer_corners(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """Four corners of each cell ``(ny, nx, 4)``: means of the surrounding centres on the sphere.

    None if there is only one cell along a dim, which then has no neighbour.
    """
    if min(lat.shape) < 2:
        return None, None
    points = unit_vectors(lat, lon)
    for axis in (0, 1):
        first, second, before, last = (np.take(points, [i], axis) for i in (0, 1, -2, -1))
        points = np.concatenate([2 * first - second, points, 2 * last - before], axis=axis)
    x, y, z = np.moveaxis(points[:-1, :-1] + points[1:, :-1] + points[:-1, 1:] + points[1:, 1:], -1, 0)
    return _around(np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x)))


def _edges_from_bounds(given: xr.DataArray, centres: np.ndarray, name: str, turn: bool) -> np.ndarray:
    """Edges ``(n + 1,)`` from CF bounds ``(n, 2)`` or from edges ``(n + 1,)``, in the order of ``centres``.

    ``turn``: the values are longitudes and may be off by whole turns. ValueError if a centre lies outside its cell, or
    cells overlap or leave gaps.
    """
    bounds = np.asarray(given.values, np.float64)
    n = centres.size
    if bounds.shape == (n + 1,):
        bounds = np.stack([bounds[:-1], bounds[1:]], axis=1)
    drop = f"type ds.drop_vars('{given.name}') to have them inferred from the centres."
    if bounds.shape != (n, 2):
        raise ValueError(
            f"The bounds of {name} have the shape {bounds.shape}. Needed: ({n}, 2) for {n} cells. Correct them, or "
            f"{drop}"
        )
    if turn:
        bounds = bounds + 360.0 * np.round((centres[:, None] - bounds) / 360.0)
    low, high = bounds.min(axis=1), bounds.max(axis=1)
    cell = np.maximum(high - low, 1e-12)
    outside = ~align.same_edge(np.maximum(low - centres, centres - high), cell)  # NaN too
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"The bounds of {name} disagree with its centres: {centres[i]:g} at position {i} lies outside its bounds "
            f"[{low[i]:g}, {high[i]:g}] ({np.count_nonzero(outside)} of {n} cells). Needed: every centre inside its "
            f"cell. Correct them, or {drop}"
        )
    ascending = n == 1 or centres[-1] > centres[0]
    first, last = (low, high) if ascending else (high, low)
    gaps = np.abs(last[:-1] - first[1:])
    if not align.same_edge(gaps, cell[1:]).all():
        i = int(np.argmax(gaps))
        raise ValueError(
            f"The bounds of {name} have gaps or overlaps: cell {i} ends at {last[i]:g} and cell {i + 1} begins at "
            f"{first[i + 1]:g}. Needed: cells that meet. Correct them, or {drop}"
        )
    return np.concatenate([first, last[-1:]])


def _find_bounds(obj: xr.Dataset | xr.DataArray, name: str) -> xr.DataArray | None:
    """The CF bounds of the coordinate ``name``, or xESMF's ``NAME_b``; None if there are none."""
    named = obj[name].attrs.get("bounds") or obj[name].encoding.get("bounds")
    there = obj.variables if isinstance(obj, xr.Dataset) else obj.coords
    for candidate in (named, f"{name}_b"):
        if candidate is not None and candidate in there:
            bounds, along = obj[candidate], obj[name].dims
            # Files joined along time may have repeated them for every step.
            repeated = [d for d in bounds.dims[:-1] if d not in along] if set(along) < set(bounds.dims) else []
            return bounds.isel(dict.fromkeys(repeated, 0))
    return None


def _read_curvilinear(obj: xr.Dataset | xr.DataArray, lat_name: str, lon_name: str) -> Grid:
    dims = (str(obj[lat_name].dims[0]), str(obj[lat_name].dims[1]))
    lat, lon = (np.asarray(obj[n].transpose(*dims).values, np.float64) for n in (lat_name, lon_name))
    for name, values in ((lat_name, lat), (lon_name, lon)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} has {np.count_nonzero(~np.isfinite(values))} NaN among its {values.size} values. Needed: the "
                "centre of every cell. Select the part of the grid that has them with ds.isel."
            )
    _check_latitude(lat, lat_name)
    lat_bounds, lon_bounds = (_find_bounds(obj, name) for name in (lat_name, lon_name))
    if lat_bounds is None or lon_bounds is None:
        lat_corners, lon_corners = _infer_corners(lat, lon)
        return Grid(lat, lon, lat_corners, lon_corners, lat_name, lon_name, dims)
    names = [lat_bounds.name, lon_bounds.name]
    drop = f"Correct them, or type ds.drop_vars({names}) to have them inferred from the centres."
    given = []
    for bounds in (lat_bounds, lon_bounds):
        bounds = bounds.transpose(*dims, ...) if set(dims) <= set(bounds.dims) else bounds
        given.append(np.asarray(bounds.values, np.float64))
    if given[0].shape == (lat.shape[0] + 1, lat.shape[1] + 1) == given[1].shape:
        given = list(_around(*given))
    for name, values in zip((lat_name, lon_name), given, strict=True):
        if values.shape != (*lat.shape, 4):
            raise ValueError(
                f"The bounds of {name} have the shape {values.shape}. Needed: {(*lat.shape, 4)}, four corners for "
                f"each cell. {drop}"
            )
    points = unit_vectors(*given)
    outside = ~(np.linalg.norm(unit_vectors(lat, lon) - points.mean(axis=2), axis=-1) <= _reach(points))  # NaN too
    if outside.any():
        j, i = np.argwhere(outside)[0]
        raise ValueError(
            f"The bounds of {lat_name} and {lon_name} disagree with the centres: cell ({j}, {i}) has its centre at "
            f"{lat[j, i]:g}, {lon[j, i]:g} and its corners at {given[0][j, i].tolist()}, {given[1][j, i].tolist()} "
            f"({np.count_nonzero(outside)} of {lat.size} cells). Needed: every centre inside its cell. {drop}"
        )
    # Files start at any corner and go either way round: only the neighbours show which corner is which.
    order = next((list(o) for o in permutations(range(4)) if _neighbours_share(points[:, :, o])), [0, 1, 2, 3])
    return Grid(lat, lon, given[0][..., order], given[1][..., order], lat_name, lon_name, dims)


def _check_latitude(lat: np.ndarray, name: str) -> None:
    if lat.size == 0:
        raise ValueError(f"{name} has no values: the selection is empty. Needed: two cells or more along both dims.")
    if np.abs(lat).max() > 90.001:
        raise ValueError(
            f"{name} reaches from {lat.min():g} to {lat.max():g}. Needed: degrees within -90..90. "
            "Check that latitude and longitude are not swapped and that the units are degrees."
        )


def read_grid(obj: xr.Dataset | xr.DataArray) -> Grid:
    """The horizontal grid of a Dataset or DataArray: 1-D or 2-D latitude and longitude, with CF or inferred bounds.

    Reads coordinates only. Latitude bounds are clipped at the poles. Raises ValueError if coordinates are missing,
    not monotonic, repeated, or disagree with their bounds.
    """
    # Bounds may be coordinates too, and their names would pass for latitudes.
    named = {c.attrs.get("bounds", c.encoding.get("bounds")) for c in obj.coords.values()} | {
        f"{name}_b" for name in obj.coords
    }
    centres_only = obj.drop_vars([name for name in obj.coords if name in named])
    if not {"latitude", "longitude"} & set(centres_only.cf.coordinates):
        plain = [pair for pair in (("lat", "lon"), ("latitude", "longitude")) if set(pair) <= set(centres_only.coords)]
        if len(plain) == 1:  # guessing would find the same but take some ten milliseconds
            attrs = dict(zip(plain[0], ({"standard_name": "latitude"}, {"standard_name": "longitude"}), strict=True))
            named_so = {name: centres_only[name].assign_attrs(more) for name, more in attrs.items()}
            centres_only = centres_only.assign_coords(named_so)
        else:
            centres_only = centres_only.cf.guess_coord_axis()  # once, for everything below
    curvilinear = axes.two_dimensional(centres_only)
    if curvilinear is not None:
        return _read_curvilinear(obj, *curvilinear)
    found = axes.find(centres_only)
    lat = _monotonic(obj[found.lat], turn=False)
    _check_latitude(lat, found.lat)
    lon = _monotonic(obj[found.lon], turn=True)
    edges = []
    for name, centres in ((found.lat, lat), (found.lon, lon)):
        bounds = _find_bounds(obj, name)
        if bounds is None:
            edges.append(infer_edges(centres))
        else:
            edges.append(_edges_from_bounds(bounds, centres, name, turn=name == found.lon))
    lat_edges, lon_edges = edges
    if lat_edges is not None:
        lat_edges = np.clip(lat_edges, -90.0, 90.0)
    if lon_edges is not None and abs(lon_edges[-1] - lon_edges[0]) > 360.0 * (1 + 1e-6):
        raise ValueError(
            f"{found.lon} spans {abs(lon_edges[-1] - lon_edges[0]):g} degrees, more than the whole circle: some cells "
            f"occur twice. Needed: 360 or less. Type ds.isel({found.lon_dim}=slice(None, -1)) if the last column "
            "repeats the first."
        )
    return Grid(lat, lon, lat_edges, lon_edges, found.lat, found.lon, (found.lat_dim, found.lon_dim))
