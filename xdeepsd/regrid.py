"""Regrid xarray objects lazily: conservative, bilinear, nearest; coarsen by whole factors."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import xarray as xr

from xdeepsd import weights
from xdeepsd.grid import Grid, infer_edges, read_grid
from xdeepsd.weights import Weights

XarrayObject = TypeVar("XarrayObject", xr.Dataset, xr.DataArray)


def _coordinates(like: xr.Dataset | xr.DataArray, source: Grid, target: Grid) -> dict[str, xr.DataArray]:
    """Coordinates of the target under the names and with the attributes of the source.

    Bounds are added (to a Dataset) only where they cannot be inferred from the centres.
    """
    coords = {}
    for name, dim, centres, edges in (
        (source.lat_name, source.dims[0], target.lat, target.lat_bounds),
        (source.lon_name, source.dims[1], target.lon, target.lon_bounds),
    ):
        attrs = {key: value for key, value in like[name].attrs.items() if key != "bounds"}
        inferred = infer_edges(centres, name) if centres.size > 1 else np.full(edges.shape, np.nan)
        if name == source.lat_name:
            inferred = np.clip(inferred, -90.0, 90.0)
        if not np.allclose(inferred, edges, rtol=0, atol=1e-6 * np.abs(np.diff(edges)).min()):
            pairs = np.stack([edges[:-1], edges[1:]], axis=1)
            coords[f"{name}_bnds"] = xr.DataArray(pairs, dims=(dim, "bnds"))
            attrs["bounds"] = f"{name}_bnds"
        coords[name] = xr.DataArray(centres, dims=dim, attrs=attrs)
    return coords


def _check_chunks(da: xr.DataArray, dims: tuple[str, str]) -> None:
    chunks = da.chunksizes
    split = [dim for dim in dims if len(chunks.get(dim, ())) > 1]
    if split:
        raise ValueError(
            f"{da.name!r} is chunked over {split}: {[len(chunks[dim]) for dim in split]} chunks. Needed: whole maps. "
            f"Type ds.chunk({{{', '.join(f'{d!r}: -1' for d in dims)}}})."
        )


def _apply(
    da: xr.DataArray, by: Weights, coords: dict[str, xr.DataArray], skipna: bool, na_thres: float
) -> xr.DataArray:
    """Regrid one array that holds both dims of the source. Lazy if it is."""
    dims = by.source.dims
    _check_chunks(da, dims)
    if da.dtype.kind not in "fiub":
        raise ValueError(f"{da.name!r} is of dtype {da.dtype}. Needed: numbers. Type ds.drop_vars({da.name!r}).")
    dtype = da.dtype if da.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    out = xr.apply_ufunc(
        weights.apply,
        da.astype(dtype).drop_vars([name for name, coord in da.coords.items() if set(coord.dims) & set(dims)]),
        kwargs={"weights": by, "skipna": skipna, "na_thres": na_thres},
        input_core_dims=[dims],
        output_core_dims=[dims],
        exclude_dims=set(dims),
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": dict(zip(dims, by.target.shape, strict=True))},
        keep_attrs=True,
    )
    # A DataArray cannot hold bounds: their second dim is none of its own.
    return out.transpose(*da.dims).assign_coords({n: c for n, c in coords.items() if set(c.dims) <= set(out.dims)})


def _map(
    obj: XarrayObject, by: Weights, coords: dict[str, xr.DataArray], skipna: bool, na_thres: float
) -> XarrayObject:
    """`_apply` to a DataArray, or to each variable of a Dataset that lies on the grid; other variables stay."""
    if isinstance(obj, xr.DataArray):
        return _apply(obj, by, coords, skipna, na_thres)
    dims = set(by.source.dims)
    bounds = {obj[name].attrs.get("bounds") for name in (by.source.lat_name, by.source.lon_name)}
    kept = {}
    for name, da in obj.data_vars.items():
        if dims <= set(da.dims):
            kept[name] = _apply(da, by, coords, skipna, na_thres)
        elif not dims & set(da.dims) and name not in bounds:
            kept[name] = da
    out = xr.Dataset(kept, attrs=obj.attrs)
    rest = {n: c for n, c in obj.coords.items() if n not in out.coords and not dims & set(c.dims)}
    return out.assign_coords(rest | coords)


def coarsen(obj: XarrayObject, factor: int) -> XarrayObject:
    """Conservative means of blocks of ``factor`` x ``factor`` cells: area-weighted by sin(lat), NaN left out.

    The same as ``regrid(obj, target, method="conservative", skipna=True)`` onto the grid of the blocks.

    Parameters
    ----------
    obj
        Dataset or DataArray with 1-D latitude and longitude under any names, in any order of dims. Variables of a
        Dataset without both are kept as they are.
    factor
        Fine cells per coarse cell along each axis.

    Returns
    -------
    The same names, dims, attributes and dtype (integers become float64), lazy if ``obj`` is; the coordinates are the
    centres of the blocks. NaN where a block holds nothing else. Raises ValueError where the sizes do not divide, or
    where latitude or longitude is chunked.

    Examples
    --------
    >>> coords = {"lat": [0.5, -0.5], "lon": [0.5, 1.5]}
    >>> da = xr.DataArray([[1.0, 3.0], [np.nan, 5.0]], coords=coords, dims=("lat", "lon"))
    >>> float(coarsen(da, 2).item())
    3.0
    """
    source = read_grid(obj)
    factor = int(factor)
    if factor < 1:
        raise ValueError(f"The factor is {factor}. Needed: a whole number of 1 or more. Type coarsen(ds, 2).")
    nlat, nlon = source.shape
    if nlat % factor or nlon % factor:
        raise ValueError(
            f"A grid of {nlat} x {nlon} cells does not divide into blocks of {factor}. Needed: both sizes a multiple "
            f"of {factor}. Type ds.isel({source.dims[0]}=slice({nlat - nlat % factor}), "
            f"{source.dims[1]}=slice({nlon - nlon % factor}))."
        )
    lat_edges, lon_edges = source.lat_bounds[::factor], source.lon_bounds[::factor]
    target = replace(
        source,
        lat=(lat_edges[:-1] + lat_edges[1:]) / 2,
        lon=(lon_edges[:-1] + lon_edges[1:]) / 2,
        lat_bounds=lat_edges,
        lon_bounds=lon_edges,
    )
    lat, lon = weights.conservative_axes(source, target)
    by = Weights("conservative", source, target, lat, lon)
    return _map(obj, by, _coordinates(obj, source, target), skipna=True, na_thres=1.0)
