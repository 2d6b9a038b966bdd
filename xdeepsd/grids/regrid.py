"""Regrid xarray objects lazily (conservative, bilinear or nearest), and coarsen them by whole factors."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
from scipy import sparse

from xdeepsd.grids import align
from xdeepsd.grids import regrid_weights as _weights
from xdeepsd.grids.axes import XarrayObject
from xdeepsd.grids.cells import Grid, infer_edges, read_grid, unit_vectors
from xdeepsd.grids.regrid_weights import Weights

logger = logging.getLogger(__name__)


def regrid(
    obj: XarrayObject,
    target: xr.Dataset | xr.DataArray | None = None,
    method: str = "conservative",
    skipna: bool = True,
    na_thres: float = 1.0,
    engine: str | None = None,
    weights: Weights | str | os.PathLike[str] | None = None,
    unmapped_to_nan: bool = True,
) -> XarrayObject:
    """Regrid to another latitude-longitude grid. Lazy over Dask; chunks may split any but the horizontal dims.

    Parameters
    ----------
    obj
        Dataset or DataArray with 1-D latitude and longitude (ascending or descending, any longitude convention) or
        2-D latitude and longitude (rotated pole, Lambert ...), under any names. In a Dataset every variable on the grid
        is regridded, variables with neither horizontal dim are kept, and the rest are left out. Cells are bounded by
        the CF bounds (or xESMF's ``lat_b``, ``lon_b``) if a Dataset has them, otherwise half-way between the centres.
    target
        Anything with the coordinates of the target grid, 1-D or 2-D. None: the target grid of ``weights``.
    method
        ``"conservative"``: area-weighted means of the source; a cell that the source covers only in part gets only
        that part (so totals are conserved), unless ``skipna``. ``"conservative_normed"``: divided by the covered part.
        ``"bilinear"``: between the four surrounding centres; nothing beyond the outermost centres. ``"nearest"``: the
        nearest centre, also beyond the source.
    skipna
        Leave NaN out and divide by the weight of the rest. False: a NaN makes every cell that takes from it NaN.
    na_thres
        With ``skipna``: NaN where the missing weight (not observed, or beyond the source) exceeds this: 1 keeps every
        cell that takes anything, 0 only cells with nothing missing. As in xESMF, the least weight is clipped to
        [1e-6, 1 - 1e-6].
    engine
        None: exact product weights between 1-D grids (cells bounded by latitude circles), otherwise intersections of
        spherical polygons (edges are great circles). ``"spherely"``: polygons in any case, which gives ESMF's numbers
        but takes seconds to minutes for large grids. ``"xesmf"``: weights from xESMF itself, which conda installs.
    weights
        From `regrid_weights`, or a file they were saved to; they must belong to the two grids.
    unmapped_to_nan
        Without ``skipna``: NaN in target cells that take nothing from the source. False: 0 there, as in xESMF.

    Returns
    -------
    The same dims in the same order, names, attributes and dtype (integers become float64), on the target's
    coordinates. If either grid is curvilinear, the horizontal dims and coordinates are named as in the target.
    Weights are computed immediately, from coordinates only; values are accumulated in float64. Raises ValueError if the
    grids do not overlap, the coordinates do not form a grid, or the horizontal dims are chunked.

    Examples
    --------
    >>> fine = xr.DataArray([[1.0, 3.0]], coords={"lat": [0.0], "lon": [0.5, 1.5]}, dims=("lat", "lon"))
    >>> target = xr.Dataset(coords={"lat": [0.0], "lon": [0.75, 1.25]})
    >>> regrid(fine, target, method="nearest").values
    array([[1., 3.]])
    """
    source = read_grid(obj)
    if isinstance(weights, str | os.PathLike):
        weights = _weights.load(weights)
    if weights is None:
        if target is None:
            raise ValueError("No target was given. Needed: a grid. Type xdeepsd.regrid(ds, target), or weights=FILE.")
        weights = _build(source, read_grid(target), method, engine)
    else:
        _check_weights(weights, source, None if target is None else read_grid(target), method)
    weights = replace(weights, source=source)  # with the names of obj
    unmapped = int(np.count_nonzero(~weights.mapped()))
    if unmapped:
        logger.info("%d of %d target cells lie beyond the source.", unmapped, np.prod(weights.target.shape))
    coords = _coordinates(obj, weights, target)
    return _map(obj, weights, coords, {"skipna": skipna, "na_thres": na_thres, "unmapped_to_nan": unmapped_to_nan})


def regrid_weights(
    source: xr.Dataset | xr.DataArray,
    target: xr.Dataset | xr.DataArray,
    method: str = "conservative",
    engine: str | None = None,
) -> Weights:
    """Weights for `regrid`, to save or to use for many datasets on the same grids.

    ``regrid_weights(ds, target).save("weights.npz")``, then ``regrid(ds, weights="weights.npz")``. Reads coordinates
    only; arguments as in `regrid`.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import xdeepsd
    >>> fine = xr.DataArray(np.ones((4, 4)), coords={"lat": np.arange(4.0), "lon": np.arange(4.0)}, dims=("lat", "lon"))
    >>> target = xr.Dataset(coords={"lat": [0.5, 2.5], "lon": [0.5, 2.5]})
    >>> weights = xdeepsd.regrid_weights(fine, target)
    >>> xdeepsd.regrid(fine, weights=weights).shape
    (2, 2)
    """
    return _build(read_grid(source), read_grid(target), method, engine)


def _build(source: Grid, target: Grid, method: str, engine: str | None) -> Weights:
    if engine not in (None, "spherely", "xesmf"):
        raise ValueError(f"The engine is {engine!r}. Needed: None, 'spherely' or 'xesmf'. Leave engine out.")
    _weights.check_method(method)
    if engine == "xesmf":
        with _without_esmf_logs():
            return _weights.check_overlap(_xesmf_weights(source, target, method))
    return _weights.build(source, target, method, great_circles=engine == "spherely")


@contextlib.contextmanager
def _without_esmf_logs() -> Iterator[None]:
    """Remove the logs that ESMF leaves in the working directory, but none that were there before.

    esmpy has no way to turn them off or write them elsewhere, and changing directory would affect all threads.
    If an error occurs, the end of the log is added to it.
    """
    before = set(Path().glob("PET*.ESMF_LogFile"))
    try:
        yield
    except Exception as error:
        for log in set(Path().glob("PET*.ESMF_LogFile")) - before:
            error.add_note(f"{log.name} (removed) ends with:\n{log.read_text('utf-8', 'replace')[-2000:]}")
        raise
    finally:
        for log in set(Path().glob("PET*.ESMF_LogFile")) - before:
            with contextlib.suppress(OSError):  # Windows cannot delete an open file
                log.unlink()


def _xesmf_weights(source: Grid, target: Grid, method: str) -> Weights:
    """Weights computed by xESMF, to be applied here like any others."""
    try:
        import xesmf
    except ImportError as error:
        raise ImportError(
            f"engine='xesmf' needs xESMF, which cannot be imported here ({error}). ESMF comes with conda: "
            "conda install -c conda-forge xesmf. Or leave engine out: the results agree (docs/howto/regrid.md)."
        ) from error

    def dataset(grid: Grid, lat: np.ndarray, lon: np.ndarray) -> xr.Dataset:
        coords = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
        if method.startswith("conservative"):
            lat_b, lon_b = grid.shared_corners()
            coords |= {"lat_b": (("y_b", "x_b"), lat_b), "lon_b": (("y_b", "x_b"), lon_b)}
        return xr.Dataset(coords=coords)

    lat, lon = source.centres()
    number = np.arange(lat.size)
    if method == "bilinear":  # closed here: periodic=True would also fill everything beyond the outermost rows
        lat, lon, number = source.closed_centres()
    regridder = xesmf.Regridder(
        dataset(source, lat, lon),
        dataset(target, *target.centres()),
        "nearest_s2d" if method == "nearest" else method,
        periodic=False,
    )
    matrix = sparse.coo_array(regridder.weights.data.to_scipy_sparse())
    matrix = sparse.coo_array((matrix.data, (matrix.row, number.ravel()[matrix.col])), (matrix.shape[0], source.size))
    return Weights(method, source, target, matrix=matrix.tocsr())


def _check_weights(weights: Weights, source: Grid, target: Grid | None, method: str) -> None:
    """ValueError if the weights are for other grids or another method."""
    for side, given, grid in (("source", source, weights.source), ("target", target, weights.target)):
        if given is None:
            continue
        if given.rectilinear and grid.rectilinear:
            same = align.same(given.lat, grid.lat, "lat") and align.same(given.lon, grid.lon, "lon")
        else:
            same = given.shape == grid.shape and align.same_points(
                unit_vectors(*given.centres()), unit_vectors(*grid.centres())
            )
        if not same:
            raise ValueError(
                f"The weights are for another {side} grid: {grid.shape} cells, {grid.spans}; the grid given has "
                f"{given.shape} cells, {given.spans}. Needed: the same cells in the same order. Type "
                "weights=xdeepsd.regrid_weights(ds, target)."
            )
    if method not in (weights.method, "conservative"):  # "conservative" is the default, so perhaps not asked for
        raise ValueError(
            f"The weights are {weights.method}, but the method is {method!r}. Needed: the same. Type "
            f"method={weights.method!r}, or weights=xdeepsd.regrid_weights(ds, target, {method!r})."
        )


def _bounds_coordinate(centres: np.ndarray, edges: np.ndarray | None, dim: str, polar: bool) -> xr.DataArray | None:
    """CF bounds of an axis if they cannot be inferred from its centres; None if they can."""
    if edges is None:
        return None
    inferred = infer_edges(centres)
    if inferred is not None and align.inferred(edges, np.clip(inferred, -90.0, 90.0) if polar else inferred):
        return None
    return xr.DataArray(np.stack([edges[:-1], edges[1:]], axis=1), dims=(dim, "bnds"))


def _coordinates(
    obj: xr.Dataset | xr.DataArray, weights: Weights, target: xr.Dataset | xr.DataArray | None
) -> dict[str, xr.DataArray]:
    """Coordinates of the output: between 1-D grids named like the source, otherwise like the target.

    Bounds are added (to a Dataset) only where they cannot be inferred from the centres.
    """
    source, grid = weights.source, weights.target
    coords: dict[str, xr.DataArray] = {}
    if not grid.rectilinear:
        for name, values in ((grid.lat_name, grid.lat), (grid.lon_name, grid.lon)):
            attrs = {} if target is None else {k: v for k, v in target[name].attrs.items() if k != "bounds"}
            coords[name] = xr.DataArray(values, dims=grid.dims, attrs=attrs)
        given: Mapping[Any, Any] = {} if target is None else target.coords
        return {str(n): c.variable for n, c in given.items() if c.dims in {(d,) for d in grid.dims}} | coords
    like, named = (obj, source) if source.rectilinear else (target, grid)
    for name, dim, wanted, centres, edges in (
        (named.lat_name, named.dims[0], grid.lat_name, grid.lat, grid.lat_bounds),
        (named.lon_name, named.dims[1], grid.lon_name, grid.lon, grid.lon_bounds),
    ):
        attrs = {} if like is None else {k: v for k, v in like[name].attrs.items() if k != "bounds"}
        bounds = _bounds_coordinate(centres, edges, dim, polar=name == named.lat_name)
        if bounds is not None:
            coords[f"{name}_bnds"] = bounds
            attrs["bounds"] = f"{name}_bnds"
        # The target's own values, because the grid holds its longitudes unwrapped.
        values = centres if target is None else np.asarray(target[wanted].values)
        coords[name] = xr.DataArray(values, dims=dim, attrs=attrs)
    return coords


def _apply(da: xr.DataArray, weights: Weights, coords: dict[str, xr.DataArray], how: dict[str, Any]) -> xr.DataArray:
    """Regrid one array that has both dims of the source, ``how``: as in `regrid_weights.apply`. Lazy if it is."""
    dims = weights.source.dims
    new = dims if weights.source.rectilinear and weights.target.rectilinear else weights.target.dims
    split = [dim for dim in dims if len(da.chunksizes.get(dim, ())) > 1]
    if split:
        raise ValueError(
            f"{da.name!r} is chunked over {split}: {[len(da.chunksizes[dim]) for dim in split]} chunks. Needed: whole "
            f"maps. Type ds.chunk({{{', '.join(f'{d!r}: -1' for d in dims)}}})."
        )
    if da.dtype.kind not in "fiub":
        raise ValueError(f"{da.name!r} has dtype {da.dtype}. Needed: numbers. Type ds.drop_vars({da.name!r}).")
    dtype = da.dtype if da.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    moved = da.astype(dtype, copy=False).transpose(..., *dims)
    if moved.chunks is None:
        data = _weights.apply(moved.values, weights, **how)
    else:
        data = dask.array.map_blocks(
            _weights.apply,
            moved.data,
            weights=dask.delayed(weights, pure=True),  # once in the graph, not in every task
            **how,
            dtype=dtype,
            chunks=(*moved.chunks[:-2], *((n,) for n in weights.target.shape)),
            meta=np.empty((0,) * moved.ndim, dtype),
        )
    attrs = da.attrs if weights.source.rectilinear else {k: v for k, v in da.attrs.items() if k != "grid_mapping"}
    kept = {n: c for n, c in da.coords.items() if not set(c.dims) & set(dims)}
    out = xr.DataArray(data, dims=(*moved.dims[:-2], *new), coords=kept, attrs=attrs, name=da.name)
    order = [dict(zip(dims, new, strict=True)).get(str(d), d) for d in da.dims]
    # A DataArray cannot hold bounds: it does not have their second dim.
    return out.transpose(*order).assign_coords({n: c for n, c in coords.items() if set(c.dims) <= set(new)})


def _map(obj: XarrayObject, weights: Weights, coords: dict[str, xr.DataArray], how: dict[str, Any]) -> XarrayObject:
    """`_apply` to a DataArray, or to each variable of a Dataset on the grid; the rest are kept or left out."""
    if isinstance(obj, xr.DataArray):
        return _apply(obj, weights, coords, how)
    dims = set(weights.source.dims)
    old = {obj[name].attrs.get("bounds") for name in (weights.source.lat_name, weights.source.lon_name)}
    if not weights.source.rectilinear:
        old |= {da.attrs.get("grid_mapping") for da in obj.data_vars.values()}
    kept = {}
    for name, da in obj.data_vars.items():
        if name in old:
            continue
        if dims <= set(da.dims):
            kept[name] = _apply(da, weights, coords, how)
        elif not dims & set(da.dims):
            kept[name] = da
    rest = {n: c for n, c in obj.coords.items() if not dims & set(c.dims) and n not in coords and n not in old}
    return xr.Dataset(kept, attrs=obj.attrs).assign_coords(rest | coords)


def block_weights(source: Grid, factor: int) -> Weights:
    """Conservative weights from a rectilinear grid to its blocks of ``factor`` x ``factor`` cells."""
    nlat, nlon = source.shape
    if factor != int(factor) or not 1 <= factor <= min(nlat, nlon):
        raise ValueError(
            f"The factor is {factor}, for {nlat} x {nlon} cells. Needed: a whole number from 1 to {min(nlat, nlon)}. "
            f"Type xdeepsd.coarsen(ds, {min(2, nlat, nlon)})."
        )
    factor = int(factor)
    if nlat % factor or nlon % factor:
        raise ValueError(
            f"A grid of {nlat} x {nlon} cells does not divide into blocks of {factor}. Needed: both sizes a multiple "
            f"of {factor}. Type ds.isel({source.dims[0]}=slice({nlat - nlat % factor}), "
            f"{source.dims[1]}=slice({nlon - nlon % factor}))."
        )
    lat_edges, lon_edges = (edges[::factor] for edges in source.bounds())
    lat, lon = ((edges[:-1] + edges[1:]) / 2 for edges in (lat_edges, lon_edges))
    target = replace(source, lat=lat, lon=lon, lat_bounds=lat_edges, lon_bounds=lon_edges)
    return Weights("conservative", source, target, *_weights.conservative_axes(source, target))


def coarsen(obj: XarrayObject, factor: int) -> XarrayObject:
    """Conservative means of blocks of ``factor`` x ``factor`` cells: area-weighted by sin(lat), NaN left out.

    The same as ``regrid(obj, target, method="conservative", skipna=True)`` onto the grid of the blocks.

    Parameters
    ----------
    obj
        Dataset or DataArray with 1-D latitude and longitude under any names, in any order of dims. Variables of a
        Dataset with neither are kept as they are.
    factor
        Fine cells per coarse cell along each axis.

    Returns
    -------
    The same names, dims, attributes and dtype (integers become float64), lazy if ``obj`` is; the coordinates are the
    centres of the blocks. NaN where a whole block is NaN. Raises ValueError if the sizes are not multiples of
    ``factor``, or if latitude or longitude is chunked.

    Examples
    --------
    >>> coords = {"lat": [0.5, -0.5], "lon": [0.5, 1.5]}
    >>> da = xr.DataArray([[1.0, 3.0], [np.nan, 5.0]], coords=coords, dims=("lat", "lon"))
    >>> float(coarsen(da, 2).item())
    3.0
    """
    source = read_grid(obj)
    if not source.rectilinear:
        raise ValueError(
            f"{source.lat_name} and {source.lon_name} are 2-D: the blocks of a curvilinear grid are not latitude-"
            "longitude cells. Needed: 1-D coordinates. Type xdeepsd.regrid(ds, target)."
        )
    weights = block_weights(source, factor)
    coords = _coordinates(obj, weights, None)
    # If the longitudes jump at the date line, those of the blocks must jump there too.
    lon, edges = weights.target.lon, source.bounds()[1]
    west = float(obj[source.lon_name].min()) - abs(float(edges[1] - edges[0])) / 2
    wrapped = np.where((lon < west) | (lon >= west + 360.0), west + (lon - west) % 360.0, lon)
    coords[source.lon_name] = coords[source.lon_name].copy(data=wrapped)
    return _map(obj, weights, coords, {"skipna": True, "na_thres": 1.0, "unmapped_to_nan": True})
