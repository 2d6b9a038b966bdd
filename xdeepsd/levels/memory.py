"""The resolution ladder in memory: fine precipitation and static fields, coarsened level by level, lazily."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.grids.blocks import block_mean
from xdeepsd.grids.cells import read_grid
from xdeepsd.grids.regrid import coarsen
from xdeepsd.grids.units import precipitation_factor
from xdeepsd.levels.coarse import check_covers, on_same_days, onto_level, read_product
from xdeepsd.models.static import CLIMATOLOGY
from xdeepsd.models.variable import PRECIPITATION, Values, clean, find_variable, without_fills

logger = logging.getLogger(__name__)

Edges = Literal["crop", "pad", "error"]

UNITS = PRECIPITATION.units
# The mask is where anything is observed in the first days: a single day may have gaps.
_MASK_DAYS = 30
ATTRS: Mapping[str, Mapping[str, str]] = {
    "precipitation": {"units": UNITS, "long_name": "precipitation", "standard_name": "lwe_precipitation_rate"},
    "elevation": {"units": "m", "long_name": "height of the surface", "standard_name": "surface_altitude"},
    CLIMATOLOGY: {"units": UNITS, "long_name": "mean precipitation"},
    "land_fraction": {"units": "1", "long_name": "share of observed cells", "standard_name": "land_area_fraction"},
    "mask": {"long_name": "True where values are wanted"},
}
COORD_ATTRS = {
    "lat": {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"},
    "lon": {"units": "degrees_east", "standard_name": "longitude", "axis": "X"},
}


def with_cf_coordinates(da: xr.DataArray) -> xr.DataArray:
    """``da`` with CF attributes on ``lat`` and ``lon``, by which they are recognised at once from then on."""
    return da.assign_coords({name: da[name].assign_attrs(attrs) for name, attrs in COORD_ATTRS.items()})


def fit_edges(obj: axes.XarrayObject, scale: int, edges: Edges) -> axes.XarrayObject:
    """Make the sizes of ``lat`` and ``lon`` multiples of ``scale``: the same for training and inference.

    Parameters
    ----------
    obj
        ``(..., lat, lon)``, as `axes.standardize` leaves it.
    scale
        Fine cells per cell of the coarsest level.
    edges
        ``"crop"`` drops the remainder at the end of each axis; ``"pad"`` extends the grid at its own spacing, with
        NaN (False and 0 for ``mask`` and ``land_fraction``); ``"error"`` raises ValueError.

    Returns
    -------
    The same kind of object, lazy if it was; ``obj`` itself if there is nothing to do.
    """
    if edges not in ("crop", "pad", "error"):
        raise ValueError(f"edges is {edges!r}. Needed: 'crop', 'pad' or 'error'. Type edges='pad'.")
    sizes = {dim: obj.sizes[dim] for dim in ("lat", "lon")}
    if not any(size % scale for size in sizes.values()):
        return obj
    text = f"The grid of {sizes['lat']} x {sizes['lon']} cells is not divisible by {scale}, the product of the factors."
    if edges == "error":
        raise ValueError(
            f"{text} Needed: both sizes a multiple of {scale}. Type edges='crop' to drop the last cells or edges='pad' "
            "to add missing ones."
        )
    if edges == "crop":
        kept = {dim: size - size % scale for dim, size in sizes.items()}
        if not all(kept.values()):
            raise ValueError(f"{text} Cropping would leave nothing. Type edges='pad'.")
        logger.info("%s Cropped to %d x %d: the last cells of each axis are left out.", text, *kept.values())
        return obj.isel({dim: slice(size) for dim, size in kept.items()})
    more = {dim: -size % scale for dim, size in sizes.items()}
    coords = {}
    for dim, extra in more.items():
        values = np.asarray(obj[dim].values, np.float64)
        step = axes.spacing(values, dim)
        coords[dim] = np.concatenate([values, values[-1] + step * np.arange(1, extra + 1)])
    if np.abs(coords["lat"]).max() > 90:
        raise ValueError(f"{text} Padding would take it beyond the pole. Type edges='crop'.")
    padded = tuple(len(coords[dim]) for dim in ("lat", "lon"))
    logger.info("%s Padded to %d x %d with missing cells at the end of each axis.", text, *padded)

    def pad(da: xr.DataArray) -> xr.DataArray:
        if not {"lat", "lon"} <= set(da.dims):
            return da
        fill = False if da.dtype == bool else 0.0 if da.name == "land_fraction" else np.nan
        widths = [(0, more["lat"]), (0, more["lon"])]
        out = xr.apply_ufunc(
            lambda a: np.pad(a, [(0, 0)] * (a.ndim - 2) + widths, constant_values=fill),
            da.drop_vars(["lat", "lon"]),
            input_core_dims=[["lat", "lon"]],
            output_core_dims=[["lat", "lon"]],
            exclude_dims={"lat", "lon"},
            dask="parallelized",
            output_dtypes=[da.dtype],
            dask_gufunc_kwargs={"output_sizes": dict(zip(("lat", "lon"), padded, strict=True))},
            keep_attrs=True,
        )
        return out.assign_coords({dim: (dim, coords[dim], obj[dim].attrs) for dim in ("lat", "lon")})

    return obj.map(pad) if isinstance(obj, xr.Dataset) else pad(obj)


def _on_grid(da: xr.DataArray, like: xr.DataArray, name: str) -> xr.DataArray:
    """A static map ``(lat, lon)`` on the grid of ``like``: the matching cells, in the order of ``like``. Lazy."""
    da, _ = axes.standardize(without_fills(da.squeeze(drop=True)))
    if "time" in da.dims:
        raise ValueError(
            f"{name} has {da.sizes['time']} time steps. Needed: one map. Type ds[{name!r}].mean('time') or "
            ".isel(time=0)."
        )
    if da.dims != ("lat", "lon"):
        raise ValueError(f"{name} has the dims {da.dims}. Needed: lat and lon. Select one map with ds.isel.")
    picked = {}
    for dim in ("lat", "lon"):
        wanted = np.asarray(like[dim].values, np.float64)
        index = align.cells_at(da[dim], wanted, dim)
        if (index < 0).any():
            have = np.asarray(da[dim].values)
            raise ValueError(
                f"{name} is on another grid: no cell at {dim} {wanted[index < 0][0]:.5f} "
                f"({np.count_nonzero(index < 0)} of {wanted.size} are missing). It has {have.size} cells "
                f"from {have.min():.5f} to {have.max():.5f}; needed: {wanted.size} with centres from "
                f"{wanted.min():.5f} to {wanted.max():.5f}. Type xdeepsd.regrid(static, fine) first."
            )
        picked[dim] = index
    return da.isel(picked).assign_coords(lat=like["lat"], lon=like["lon"])


def _static_maps(static: xr.Dataset | xr.DataArray | None, like: xr.DataArray) -> dict[str, xr.DataArray]:
    """Maps on the finest grid by name; ``elevation`` is found by its standard name, or is the only map."""
    if static is None:
        return {}
    if isinstance(static, xr.DataArray):
        static = static.to_dataset(name="elevation")
    found = axes.find(static)
    maps = {str(n): da for n, da in static.data_vars.items() if {found.lat_dim, found.lon_dim} <= set(da.dims)}
    if "elevation" not in maps:
        heights = [n for n, da in maps.items() if da.attrs.get("standard_name") in ("surface_altitude", "height")]
        name = heights[0] if heights else next(iter(maps)) if len(maps) == 1 and CLIMATOLOGY not in maps else None
        if name is not None:
            maps["elevation"] = maps.pop(name)
    return {name: _on_grid(da, like, name) for name, da in maps.items()}


def training_years(precipitation: xr.DataArray, years: slice) -> xr.DataArray:
    """The days of ``precipitation`` within ``years``, such as ``slice("1981", "2005")``. Lazy; ValueError if none."""
    days = precipitation.sel(time=years)
    if days.sizes["time"] == 0:
        time = precipitation["time"].values
        raise ValueError(
            f"No day between {years.start} and {years.stop}; the data reach from {str(time[0])[:10]} to "
            f"{str(time[-1])[:10]}. Needed: the training years. Type climatology=slice('YEAR', 'YEAR')."
        )
    return days


def _climatology(
    climatology: slice | xr.DataArray | xr.Dataset | None, maps: dict[str, xr.DataArray], fine: xr.DataArray
) -> xr.DataArray | None:
    """Mean precipitation on the finest grid, mm day-1: computed from training years, given, or None. Lazy."""
    if isinstance(climatology, slice):
        days = training_years(fine, climatology)
        first, last = (str(days["time"].values[i])[:10] for i in (0, -1))
        return days.mean("time", skipna=True, dtype=np.float64).assign_attrs(years=f"{first}/{last}")
    given = maps.pop(CLIMATOLOGY, None)
    if climatology is not None:
        given = _on_grid(_only_map(climatology), fine, CLIMATOLOGY)
    if given is None:
        return None
    return given * precipitation_factor(given.attrs.get("units", UNITS))


def _only_map(climatology: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """The only map of a Dataset, or the DataArray itself."""
    if isinstance(climatology, xr.DataArray):
        return climatology
    found = axes.find(climatology)
    names: list[Hashable] = [
        name for name, da in climatology.data_vars.items() if {found.lat_dim, found.lon_dim} <= set(da.dims)
    ]
    if len(names) != 1:
        raise ValueError(f"The climatology holds {len(names)} maps: {names}. Needed: one. Type climatology=ds['NAME'].")
    return climatology[names[0]]


def level_mean(da: xr.DataArray, factor: int, like: xr.DataArray) -> xr.DataArray:
    """`block_mean` of a map, float32, on the coordinates of ``like``. Lazy."""
    out = xr.apply_ufunc(
        lambda field: block_mean(field, factor).astype(np.float32),
        da.drop_vars(["lat", "lon"]),
        input_core_dims=[["lat", "lon"]],
        output_core_dims=[["lat", "lon"]],
        exclude_dims={"lat", "lon"},
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {d: like.sizes[d] for d in ("lat", "lon")}, "allow_rechunk": True},
    )
    return out.assign_coords(lat=like["lat"], lon=like["lon"])


def make_levels(
    fine: xr.DataArray | xr.Dataset,
    static: xr.Dataset | xr.DataArray | None = None,
    factors: Sequence[int] = (2, 2, 2),
    *,
    variable: str | None = None,
    climatology: slice | xr.DataArray | xr.Dataset | None = None,
    mask: xr.DataArray | None = None,
    edges: Edges = "pad",
    coarse: xr.DataArray | xr.Dataset | None = None,
    coarse_variable: str | None = None,
) -> list[xr.Dataset]:
    """The levels of ``fine``, from the coarsest to the finest. Lazy where ``fine`` is.

    Parameters
    ----------
    fine
        Daily precipitation with 1-D latitude and longitude under any names; units as in docs/conventions.md. NaN
        means not observed (ocean).
    static
        Maps on the finest grid: ``elevation`` (m), and optionally ``climatology`` (mm day-1), ``land_fraction`` (0 to
        1) and others. They may cover a larger area than ``fine``.
    factors
        Fine cells per coarse cell of each stage, the coarsest stage first. With ``coarse`` the first may be 1: a stage
        that corrects the product on its own grid.
    variable
        Name of the precipitation in a Dataset of several variables.
    climatology
        ``slice("1981", "2005")``: the mean of these (training) years; or a map on the finest grid; None: the one in
        ``static``, if any.
    mask
        True where values are wanted, on the finest grid. None: wherever anything is observed in the first 30 days.
    edges
        What to do where the sizes do not divide by the product of the factors: see `fit_edges`.
    coarse
        An independent product of the same days, such as a reanalysis: daily precipitation on any grid that covers
        ``fine``, in any units of precipitation. It becomes the input of the first stage: the precipitation of the
        coarsest level, by conservative means (as ``xdeepsd.regrid(coarse, levels[0])`` makes them), with its name in
        the attribute ``coarse_product``. Days are matched by date, whatever the hour; the others are left out, and the
        log names them. Round-off below 0 counts as 0. None: the coarsest level is the mean of ``fine``.
    coarse_variable
        Name of the precipitation in ``coarse``, if it is a Dataset of several variables.

    Returns
    -------
    One Dataset per level with the variables of docs/conventions.md: ``precipitation`` ``(time, lat, lon)`` mm day-1
    float32, area-weighted means of the finest cells with NaN left out; the static fields, block means of the finest;
    ``land_fraction`` and ``mask``. Raises ValueError, before any work, for what does not fit.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> coarse, middle, fine = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2, 2))
    >>> dict(coarse.sizes)
    {'time': 60, 'lat': 4, 'lon': 4}
    """
    factors = [int(f) for f in factors]
    if not factors or factors[0] < (2 if coarse is None else 1) or min(factors[1:], default=2) < 2:
        raise ValueError(f"The factors are {factors}. Needed: whole numbers of 2 or more. Type factors=(2, 2, 2).")
    da = _daily_precipitation(fine, variable)
    product = None
    if coarse is not None:
        product = read_product(coarse, coarse_variable)
        check_covers(product, da)
        product, common = on_same_days(product, da)
        da = da if common.all() else da.isel(time=common)
    finest = fit_edges(_with_maps(da, static, climatology, mask), math.prod(factors), edges)
    levels = [_coarser(finest, math.prod(factors[k:])) for k in range(len(factors) + 1)]
    if product is not None:
        levels[0] = onto_level(product, levels[0], finest, da)
    return [level.assign_attrs(level=k, factors=factors, edges=edges) for k, level in enumerate(levels)]


def _daily_precipitation(fine: xr.DataArray | xr.Dataset, variable: str | None) -> xr.DataArray:
    """The precipitation of ``fine``: ``(time, lat, lon)``, mm day-1, float32, with no other coordinates. Lazy."""
    da, found = axes.standardize(find_variable(fine, variable))
    if da.dims != ("time", "lat", "lon"):
        raise ValueError(
            f"The precipitation has the dims {found.dims}. Needed: time, latitude and longitude. Select one value of "
            "the others with ds.isel, or type ds.expand_dims('time')."
        )
    da = with_cf_coordinates(da)
    values = Values.of(da, UNITS, fine)
    read_grid(da)  # raises for coordinates that do not form a grid
    da = clean(da.astype(np.float32, copy=False), values)
    da = (da if values.factor == 1.0 else da * np.float32(values.factor)).rename("precipitation")
    return da.drop_vars([name for name in da.coords if name not in da.dims])


def _with_maps(
    da: xr.DataArray,
    static: xr.Dataset | xr.DataArray | None,
    climatology: slice | xr.DataArray | xr.Dataset | None,
    mask: xr.DataArray | None,
) -> xr.Dataset:
    """The finest level: precipitation, static maps in the order in which they are written, and the mask. Lazy."""
    maps = _static_maps(static, da)
    mean = _climatology(climatology, maps, da)
    if mean is not None:
        maps[CLIMATOLOGY] = mean
    given_mask = maps.pop("mask", None) if mask is None else _on_grid(mask, da, "mask")
    observed = da.isel(time=slice(_MASK_DAYS)).notnull().any("time") if given_mask is None else given_mask.astype(bool)
    maps["land_fraction"] = maps.get("land_fraction", observed)
    ordered = sorted(maps, key=lambda name: (name != "elevation", name != CLIMATOLOGY, name))
    return xr.Dataset({"precipitation": da} | {name: maps[name] for name in ordered} | {"mask": observed}, attrs={})


def _coarser(finest: xr.Dataset, factor: int) -> xr.Dataset:
    """The level whose cells are ``factor`` finest cells wide, with its attributes; for 1 the finest itself. Lazy."""
    precipitation = coarsen(finest["precipitation"], factor) if factor > 1 else finest["precipitation"]
    level = xr.Dataset({"precipitation": precipitation})
    for name in finest.data_vars:
        if name not in ("precipitation", "mask"):
            level[name] = level_mean(finest[name], factor, precipitation)
    level["mask"] = level_mean(finest["mask"], factor, precipitation) > 0 if factor > 1 else finest["mask"]
    for name, array in level.data_vars.items():
        attrs = finest[name].attrs
        array.attrs = dict(ATTRS.get(str(name), attrs))
        if name == CLIMATOLOGY and "years" in attrs:
            array.attrs["years"] = attrs["years"]
    for dim, attrs in COORD_ATTRS.items():
        level[dim].attrs = dict(attrs)
    level["land_fraction"] = level["land_fraction"].fillna(0.0)
    return level
