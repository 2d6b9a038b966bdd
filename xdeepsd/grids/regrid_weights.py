"""Regridding weights: built from two grids, applied to arrays, saved and loaded (numpy, scipy, numba)."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from dataclasses import dataclass, fields
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from xdeepsd.grids import align
from xdeepsd.grids.cells import Grid, unit_vectors
from xdeepsd.grids.great_circles import bilinear, csr, intersections
from xdeepsd.stores.whole import write_whole

logger = logging.getLogger(__name__)

METHODS = ("conservative", "conservative_normed", "bilinear", "nearest")


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights from one grid to another: two small matrices along lat and lon, or one over all cells.

    ``lat`` ``(target nlat, source nlat)`` and ``lon`` ``(target nlon, source nlon)`` if the weights are a product,
    otherwise ``matrix`` ``(target cells, source cells)``, cells in row-major order. float64 CSR.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import xdeepsd
    >>> fine = xr.DataArray(np.ones((4, 4)), coords={"lat": np.arange(4.0), "lon": np.arange(4.0)}, dims=("lat", "lon"))
    >>> target = xr.Dataset(coords={"lat": [0.5, 2.5], "lon": [0.5, 2.5]})
    >>> weights = xdeepsd.regrid_weights(fine, target)
    >>> weights.lat.shape, weights.method
    ((2, 4), 'conservative')
    """

    method: str
    source: Grid
    target: Grid
    lat: sparse.csr_array | None = None
    lon: sparse.csr_array | None = None
    matrix: sparse.csr_array | None = None

    def __dask_tokenize__(self) -> list[Any]:
        """The matrices by content, so that a graph has the same names in every process and a store can be resumed."""
        parts = [m for m in (self.lat, self.lon, self.matrix) if m is not None]
        return [self.method, *((m.shape, m.data, m.indices, m.indptr) for m in parts)]

    def covered(self) -> np.ndarray:
        """``(ny, nx)`` share of each target cell that the source covers: 1 where wholly, 0 where not at all."""
        if self.matrix is not None:
            return np.asarray(self.matrix.sum(axis=1)).reshape(self.target.shape)
        assert self.lat is not None
        assert self.lon is not None
        return np.multiply.outer(np.asarray(self.lat.sum(axis=1)), np.asarray(self.lon.sum(axis=1)))

    def mapped(self) -> np.ndarray:
        """``(ny, nx)`` bool on the target grid: True where a cell takes anything from the source."""
        if self.matrix is not None:
            return (np.diff(self.matrix.indptr) > 0).reshape(self.target.shape)
        assert self.lat is not None
        assert self.lon is not None
        return np.logical_and.outer(np.diff(self.lat.indptr) > 0, np.diff(self.lon.indptr) > 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a NumPy ``.npz`` file without loss; `load` reads it back.

        The file is written whole or not at all. Raises FileExistsError if ``path`` exists and does not hold weights.
        """
        content: dict[str, np.ndarray] = {"method": np.array(self.method)}
        for side, grid in (("source", self.source), ("target", self.target)):
            for field in fields(Grid):
                value = getattr(grid, field.name)
                if value is not None:
                    content[f"{side}.{field.name}"] = np.asarray(value)
        for name in ("lat", "lon", "matrix"):
            m = getattr(self, name)
            if m is not None:
                content |= {f"{name}.data": m.data, f"{name}.indices": m.indices, f"{name}.indptr": m.indptr}
                content[f"{name}.shape"] = np.array(m.shape)
        if os.path.lexists(path) and not _holds_weights(path):
            raise FileExistsError(
                f"{os.fspath(path)} exists, but holds no weights. It is left alone: type another path."
            )
        if Path(path).exists():
            logger.info("The weights at %s are replaced.", os.fspath(path))
        file = BytesIO()
        np.savez_compressed(file, **content)  # type: ignore[arg-type]
        write_whole(Path(path), file.getvalue())


def _holds_weights(path: str | os.PathLike[str]) -> bool:
    try:
        load(path)
    except (ValueError, OSError):
        return False
    return True


def load(path: str | os.PathLike[str]) -> Weights:
    """Read weights that `Weights.save` wrote; ValueError if the file is anything else, or damaged."""
    try:
        with np.load(path) as file:
            content = {name: file[name] for name in file}
        return _from_content(content)
    except (TypeError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a file of weights, or is damaged ({error}). Needed: a file that "
            "xdeepsd.regrid_weights(source, target).save(NAME) wrote."
        ) from error


def _from_content(content: dict[str, np.ndarray]) -> Weights:
    def grid(side: str) -> Grid:
        dims = content[f"{side}.dims"]
        return Grid(
            content[f"{side}.lat"],
            content[f"{side}.lon"],
            content.get(f"{side}.lat_bounds"),
            content.get(f"{side}.lon_bounds"),
            str(content[f"{side}.lat_name"]),
            str(content[f"{side}.lon_name"]),
            (str(dims[0]), str(dims[1])),
        )

    matrices = {
        name: sparse.csr_array(
            tuple(content[f"{name}.{part}"] for part in ("data", "indices", "indptr")),
            shape=tuple(content[f"{name}.shape"]),
        )
        for name in ("lat", "lon", "matrix")
        if f"{name}.data" in content
    }
    return Weights(str(content["method"]), grid("source"), grid("target"), **matrices)


def check_method(method: str) -> None:
    """ValueError if the method is not one of `METHODS`."""
    if method not in METHODS:
        raise ValueError(f"The method is {method!r}. Needed: one of {', '.join(METHODS)}. Type method='conservative'.")


def check_overlap(weights: Weights) -> Weights:
    """Return the weights; ValueError if no target cell takes anything, or all lie cells away from the source."""
    source, target = weights.source, weights.target
    apart = not weights.mapped().any()
    if weights.method == "nearest" and weights.matrix is not None and not apart:
        centres, pairs = unit_vectors(*source.centres()), weights.matrix.tocoo()
        goal = unit_vectors(*target.centres()).reshape(-1, 3)[pairs.row]
        apart = not align.meets(centres, centres.reshape(-1, 3)[pairs.col], goal)
    if apart:
        raise ValueError(
            f"The grids do not overlap: the source spans {source.spans}, the target {target.spans}. Needed: a target "
            "that lies at least partly on the source. Check that latitude and longitude are in degrees and not "
            "swapped, and type xdeepsd.regrid(ds, target) with the intended target."
        )
    return weights


def build(source: Grid, target: Grid, method: str, great_circles: bool = False) -> Weights:
    """Build the weights of one of `METHODS`. ValueError if the grids do not overlap.

    Between rectilinear grids they are a product of weights along lat and lon. Between other grids, or with
    ``great_circles``, the edges of cells are great circles, as in ESMF.
    """
    check_method(method)
    flat = source.rectilinear and target.rectilinear and not great_circles
    parts: tuple[sparse.csr_array, ...]
    if method.startswith("conservative"):
        parts = conservative_axes(source, target) if flat else (intersections(source, target),)
        if method == "conservative_normed":
            parts = tuple(_normalized(part) for part in parts)
    elif method == "bilinear":
        if min(source.shape) < 2:
            raise ValueError(
                f"Bilinear interpolation on a source of {source.shape[0]} x {source.shape[1]} cells. Needed: two or "
                "more along each axis. Type method='nearest'."
            )
        parts = _bilinear_axes(source, target) if flat else (bilinear(source, target),)
    else:
        parts = (_nearest(source, target),)
    if len(parts) == 2:
        return check_overlap(Weights(method, source, target, lat=parts[0], lon=parts[1]))
    return check_overlap(Weights(method, source, target, matrix=parts[0]))


def _normalized(matrix: sparse.csr_array) -> sparse.csr_array:
    """Rows divided by their sums (empty rows stay empty)."""
    matrix = matrix.copy()
    matrix.data /= np.repeat(matrix.sum(axis=1), np.diff(matrix.indptr))
    return matrix


def _overlaps(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the intervals of two partitions meet: (target index, source index, low, high) of each common piece.

    Both arguments are edges, ascending or descending; the indices count the intervals in the order given.
    """
    source_up, target_up = np.sort(source), np.sort(target)
    source_up = align.snap(source_up, target_up)
    low, high = max(source_up[0], target_up[0]), min(source_up[-1], target_up[-1])
    cuts = np.unique(np.concatenate([source_up, target_up]))
    cuts = cuts[(cuts >= low) & (cuts <= high)]
    middle = (cuts[:-1] + cuts[1:]) / 2
    i = np.searchsorted(source_up, middle) - 1
    j = np.searchsorted(target_up, middle) - 1
    if source[0] > source[-1]:
        i = source.size - 2 - i
    if target[0] > target[-1]:
        j = target.size - 2 - j
    return j, i, cuts[:-1], cuts[1:]


def _turns(source: np.ndarray, target: np.ndarray) -> list[float]:
    """Whole turns, in degrees, by which source longitudes may be shifted to meet the target."""
    nearest = np.round((np.mean(target) - np.mean(source)) / 360.0)
    return [360.0 * (nearest + turn) for turn in (-1, 0, 1)]


def _sin_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``sin(high) - sin(low)`` of degrees, without the cancellation that thin cells near the poles would cause."""
    low, high = np.deg2rad(low), np.deg2rad(high)
    return 2 * np.cos((low + high) / 2) * np.sin((high - low) / 2)


def conservative_axes(source: Grid, target: Grid) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Share of each target interval that lies in each source interval, in sin(lat) and in lon.

    The product is exactly the share of each target cell's area in each source cell when cells are bounded by latitude
    circles and meridians.
    """
    (source_lat, source_lon), (target_lat, target_lon) = source.bounds(), target.bounds()
    row, col, low, high = _overlaps(source_lat, target_lat)
    share = _sin_between(low, high) / np.abs(_sin_between(target_lat[:-1], target_lat[1:]))[row]
    lat = csr(row, col, share, (target.lat.size, source.lat.size))
    pieces = [_overlaps(source_lon + turn, target_lon) for turn in _turns(source_lon, target_lon)]
    row, col, low, high = (np.concatenate(column) for column in zip(*pieces, strict=True))
    share = (high - low) / np.abs(np.diff(target_lon))[row]
    return lat, csr(row, col, share, (target.lon.size, source.lon.size))


def _linear(source: np.ndarray, target: np.ndarray) -> sparse.csr_array:
    """Linear interpolation between centres; rows for targets beyond the outermost centres are empty."""
    order = np.argsort(source)
    up = source[order]
    target = align.snap(target, up)
    inside = np.flatnonzero((target >= up[0]) & (target <= up[-1]))
    left = np.clip(np.searchsorted(up, target[inside], side="right") - 1, 0, up.size - 2)
    right_share = (target[inside] - up[left]) / (up[left + 1] - up[left])
    row, col = np.concatenate([inside, inside]), np.concatenate([order[left], order[left + 1]])
    return csr(row, col, np.concatenate([1 - right_share, right_share]), (target.size, source.size))


def _bilinear_axes(source: Grid, target: Grid) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Linear interpolation along lat and along lon (round the earth if the source is global)."""
    columns = np.arange(source.lon.size)
    lon = source.lon
    if source.is_global:
        turn = 360.0 * np.sign(lon[-1] - lon[0])
        lon, columns = np.append(lon, lon[0] + turn), np.append(columns, 0)
    along = sparse.csr_array((target.lon.size, lon.size))
    for turn in _turns(lon, target.lon):
        more = _linear(lon + turn, target.lon)
        # A target on the seam turns up twice; it must count only once.
        free = sparse.diags_array((np.diff(along.indptr) == 0).astype(float))
        along = (along + free @ more).tocsr()
    fold = csr(np.arange(columns.size), columns, np.ones(columns.size), (columns.size, source.lon.size))
    along = (along @ fold).tocsr()
    along.eliminate_zeros()
    return _linear(source.lat, target.lat), along


def _nearest(source: Grid, target: Grid) -> sparse.csr_array:
    """The nearest source centre by great-circle distance; every target cell has one, inside the source or beyond it."""
    tree = cKDTree(unit_vectors(*source.centres()).reshape(-1, 3))
    _, col = tree.query(unit_vectors(*target.centres()).reshape(-1, 3))
    return csr(np.arange(len(col)), col, np.ones(len(col)), (len(col), source.size))


def apply(values: np.ndarray, weights: Weights, skipna: bool, na_thres: float, unmapped_to_nan: bool) -> np.ndarray:
    """Weighted sums of ``(..., lat, lon)`` on the target grid: accumulated in float64, returned in ``values``' dtype.

    ``skipna`` and ``na_thres`` work as in xESMF: the sum over values that are not NaN is divided by their weight; NaN
    where this weight is below ``clip(1 - na_thres, 1e-6, 1 - 1e-6)``.
    """
    least = float(np.clip(1.0 - na_thres, 1e-6, 1.0 - 1e-6))
    flat = np.ascontiguousarray(values).reshape(-1, *values.shape[-2:])
    out = np.empty((len(flat), *weights.target.shape), flat.dtype)
    (_sum_compiled if find_spec("numba") else _sum_plain)(flat, weights, skipna, least, out)
    if unmapped_to_nan and not skipna:
        out[:, ~weights.mapped()] = np.nan
    return out.reshape(*values.shape[:-2], *weights.target.shape)


def _sum_compiled(days: np.ndarray, weights: Weights, skipna: bool, least: float, out: np.ndarray) -> None:
    from xdeepsd.grids import compiled

    if weights.matrix is not None:
        m, cells = weights.matrix, days.reshape(len(days), -1)
        compiled.sum_matrix(cells, m.indptr, m.indices, m.data, skipna, least, out.reshape(len(days), -1))
    else:
        lat, lon = weights.lat, weights.lon
        assert lat is not None
        assert lon is not None
        csr_parts = (lat.indptr, lat.indices, lat.data, lon.indptr, lon.indices, lon.data)
        compiled.sum_axes(days, *csr_parts, skipna, least, out)


def _sum_plain(days: np.ndarray, weights: Weights, skipna: bool, least: float, out: np.ndarray) -> None:
    """The same with scipy, for when numba is not installed."""

    def product(day: np.ndarray) -> np.ndarray:
        if weights.matrix is not None:
            return np.asarray(weights.matrix @ day.ravel()).reshape(weights.target.shape)
        assert weights.lat is not None
        assert weights.lon is not None
        return np.asarray((weights.lon @ (weights.lat @ day).T).T)

    for n, day in enumerate(days):
        if skipna:
            seen = ~np.isnan(day)
            above, below = product(np.where(seen, day, 0.0).astype(np.float64)), product(seen.astype(np.float64))
            out[n] = np.divide(above, below, out=np.full(below.shape, np.nan), where=below >= least)
        else:
            out[n] = product(day.astype(np.float64))
