"""An independent coarse product of the same days (a reanalysis, say) as the input of the first stage.

The coarsest level of a ladder is then not the mean of the observations but the product, on the same grid.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from xdeepsd.grids import align, axes
from xdeepsd.grids.cells import Grid, read_grid
from xdeepsd.grids.regrid import block_weights, regrid
from xdeepsd.grids.regrid_weights import Weights, build
from xdeepsd.levels.days import calendar_days, each_once, name_days, name_span
from xdeepsd.models.static import COARSE_PRODUCT
from xdeepsd.models.variable import PRECIPITATION, Values, clean, find_variable
from xdeepsd.stores.remote import without_secrets

logger = logging.getLogger(__name__)

# A product this many times finer than the coarsest level loses much of what it knows in its means.
_FINER = 2.0


def product_of(level: xr.Dataset) -> str | None:
    """Name of the independent product that the precipitation of a level is taken from; None: it is coarsened."""
    name = level["precipitation"].attrs.get(COARSE_PRODUCT)
    return None if name is None else str(name)


class Product(NamedTuple):
    """Daily precipitation of a coarse product, ``(time, lat, lon)`` in mm day-1, lazy, and its cells."""

    days: xr.DataArray
    grid: Grid


def read_product(coarse: xr.DataArray | xr.Dataset, variable: str | None = None) -> Product:
    """The precipitation of a coarse product, each day once, in mm day-1. Lazy. Latitude and longitude may be 2-D.

    Its attribute `COARSE_PRODUCT` names it: the title of the Dataset, else its file, else the variable. Raises
    ValueError where there is no precipitation, no time, or no units of precipitation.
    """
    with _in_product():
        da = find_variable(coarse, variable)
        values, grid, name = Values.of(da, PRECIPITATION.units, coarse), read_grid(coarse), _name(coarse, da)
        times = [name for name, index in da.indexes.items() if axes.is_time(index)]
        if len(times) != 1 or set(da.dims) != {*times, *grid.dims}:
            raise ValueError(
                f"it has the dims {da.dims}. Needed: time, latitude and longitude. Select one of the others with "
                "coarse.isel, or type coarse.expand_dims('time')."
            )
        da = da.transpose(*times, *grid.dims).rename({times[0]: "time"} if times[0] != "time" else {})
        once = each_once(da)
    da = da if once.all() else da.isel(time=once)
    da = clean(da.astype(np.float32, copy=False), values)
    da = da if values.factor == 1.0 else da * np.float32(values.factor)
    da = da.drop_vars([name for name, coord in da.coords.items() if not coord.ndim])
    return Product(da.assign_attrs({"units": PRECIPITATION.units, COARSE_PRODUCT: name}), grid)


def in_chunks(
    coarse: xr.DataArray | xr.Dataset, variable: str | None = None, days: int | None = None
) -> xr.DataArray | xr.Dataset:
    """A coarse product whose precipitation is in chunks of so many ``days``; unchanged if it has chunks."""
    with _in_product():
        da = find_variable(coarse, variable)
    times = [name for name, index in da.indexes.items() if axes.is_time(index)]
    if da.chunks is not None or len(times) != 1:
        return coarse
    da = da.chunk({times[0]: days or axes.days_in_chunk(da.size // da.sizes[times[0]])})
    return da if isinstance(coarse, xr.DataArray) else coarse.assign({da.name: da})


@contextlib.contextmanager
def _in_product() -> Iterator[None]:
    """Say of an error in the product's metadata or days that it is in the product."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"The coarse product: {error}") from error


def _name(coarse: xr.DataArray | xr.Dataset, da: xr.DataArray) -> str:
    """What a model says of its input: the product's title, else its file, else its variable; no path."""
    title = str(coarse.attrs.get("title", "")).strip()
    file = Path(without_secrets(str(coarse.encoding.get("source", da.encoding.get("source", ""))))).name
    return title or (f"{da.name} of {file}" if file else str(da.name))


def on_same_days(product: Product, fine: xr.DataArray) -> tuple[Product, np.ndarray]:
    """The product on the days of ``fine`` that it has, with their ``time``; and bool ``(time,)``: True for them. Lazy.

    Hours do not count: a day is that of its date, in both. The log names days that are in one of them only. Raises
    ValueError where the calendars differ or no day is in both.
    """
    theirs, ours = (calendar_days(da) for da in (product.days, fine))
    kinds = [str(getattr(days, "calendar", "standard")) for days in (theirs, ours)]
    if type(theirs) is not type(ours) or kinds[0] != kinds[1]:
        native = isinstance(ours, xr.CFTimeIndex)
        raise ValueError(
            f"The coarse product has the calendar {kinds[0]!r}, as {type(theirs).__name__}, the observations "
            f"{kinds[1]!r}, as {type(ours).__name__}. Needed: the same days in both. Type "
            f"coarse.convert_calendar({kinds[1]!r}, use_cftime={native})."
        )
    at = theirs.get_indexer(ours)
    common = at >= 0
    if not common.any():
        raise ValueError(
            f"The coarse product has {name_span(product.days)}, the observations have {name_span(fine)}: no day is in "
            "both. Needed: the same days, matched by date. A free-running climate model has no such days, and "
            "nothing can be learned from it."
        )
    if not common.all():
        left = ours[~common]
        logger.warning("%d observed days are left out, the coarse product lacks them: %s.", len(left), name_days(left))
    more = theirs[~theirs.isin(ours)]
    if len(more):
        logger.info(
            "%d days of the coarse product that were not observed are left out: %s.", len(more), name_days(more)
        )
    at = at[common]
    run = slice(int(at[0]), int(at[-1]) + 1) if (np.diff(at) == 1).all() else at
    days = product.days.isel(time=run).assign_coords(time=fine["time"].values[common])
    return Product(days, product.grid), common


def check_covers(product: Product, domain: xr.DataArray | xr.Dataset) -> None:
    """ValueError, with the range that is missing, where the product's cells do not cover those of ``domain``.

    Only coordinates are read. Curvilinear products are checked where they are regridded.
    """
    source = product.grid
    if not source.rectilinear:
        return
    missing = []
    for dim, have, need in zip(("lat", "lon"), source.bounds(), read_grid(domain).bounds(), strict=True):
        have, need = np.sort(have), np.sort(need)
        if dim == "lon":
            if align.goes_round(have):
                continue
            have = have + 360.0 * np.round((need.mean() - have.mean()) / 360.0)
        within = align.LIES_ON * (need[1] - need[0])
        gaps = [(need[0], min(have[0], need[-1])), (max(have[-1], need[0]), need[-1])]
        missing += [f"{dim} {low:g} to {high:g}" for low, high in gaps if high - low > within]
    if missing:
        raise ValueError(
            f"The coarse product does not cover the fine grid: {' and '.join(missing)} are missing (its centres: "
            f"{source.spans}). Needed: cells over all of it. Type fine.sel(lat=slice(FIRST, LAST), lon=slice(FIRST, "
            "LAST)) for a smaller region."
        )


def onto_level(product: Product, level: xr.Dataset, finest: xr.Dataset, domain: xr.DataArray) -> xr.Dataset:
    """``level`` with the precipitation of the product, on the grid of the level; their days are the same. Lazy.

    By conservative means, as `xdeepsd.regrid` makes them without further arguments. Level cells that the product covers
    only in part take that part. ``finest`` is the finest level, ``domain`` the part of its grid that must be covered.
    """
    source, target = product.grid, block_weights(read_grid(finest), finest.sizes["lat"] // level.sizes["lat"]).target
    weights = build(source, target, "conservative")
    _check_cells(weights, read_grid(domain))
    _say_if_finer(source, target)
    like = level["precipitation"]
    da = regrid(product.days, like, weights=weights)
    attrs = like.attrs | {COARSE_PRODUCT: product.days.attrs[COARSE_PRODUCT]}
    return level.assign(precipitation=xr.DataArray(da.data, like.coords, like.dims, attrs=attrs))


def _check_cells(weights: Weights, domain: Grid) -> None:
    """ValueError where a level cell with its centre in the domain takes nothing from the product."""
    lat, lon = weights.target.lat, weights.target.lon
    (south, north), (west, east) = ((edges.min(), edges.max()) for edges in domain.bounds())
    turned = lon + 360.0 * np.round(((west + east) / 2 - lon) / 360.0)
    inside = ((lat >= south) & (lat <= north))[:, None] & (turned >= west) & (turned <= east)
    bare = inside & ~weights.mapped().reshape(weights.target.shape)
    if bare.any():
        rows, cols = np.nonzero(bare)
        lat, lon = lat[rows], lon[cols]
        raise ValueError(
            f"The coarse product does not cover the fine grid: {rows.size} of {inside.sum()} cells of the coarsest "
            f"level take nothing from it, between lat {lat.min():g} and {lat.max():g}, lon {lon.min():g} and "
            f"{lon.max():g} (its centres: {weights.source.spans}). Needed: cells over all of it. Type "
            "fine.sel(lat=slice(FIRST, LAST), lon=slice(FIRST, LAST)) for a smaller region."
        )


def _say_if_finer(source: Grid, target: Grid) -> None:
    """Warn where the coarsest level averages away much of what the product resolves."""
    if not source.rectilinear or min(*source.shape, *target.shape) < 2:
        return
    steps = [abs(float(np.median(np.diff(values)))) for values in (source.lat, target.lat)]
    if steps[1] > _FINER * steps[0]:
        logger.warning(
            "The coarse product has cells of %.3g degrees, the coarsest level %.3g: it is averaged to that. With a "
            "smaller product of the factors the first stage would see more.", *steps,
        )  # fmt: skip


def with_coarse(
    levels: Sequence[xr.Dataset], coarse: xr.DataArray | xr.Dataset, variable: str | None = None
) -> list[xr.Dataset]:
    """``levels`` with an independent product as the precipitation of the coarsest one, on the days of both. Lazy.

    Parameters
    ----------
    levels
        From `make_levels` or `open_levels`; two or more. Their masks are read, to know which cells must be covered.
    coarse, variable
        As ``coarse`` and ``coarse_variable`` in `make_levels`.

    Returns
    -------
    New Datasets. Raises ValueError for what does not fit, see `make_levels`, and where the levels have a product.
    """
    name = product_of(levels[0])
    if name is not None:
        raise ValueError(
            f"The levels were built with a coarse product already ({name}), and another arrived. Needed: one of "
            "the two."
        )
    product = read_product(coarse, variable)
    land = levels[-1]["mask"].transpose("lat", "lon").load()
    rows, cols = (np.flatnonzero(land.any(dim)) for dim in ("lon", "lat"))
    domain = land[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] if rows.size else land
    check_covers(product, domain)
    product, common = on_same_days(product, levels[-1]["precipitation"])
    cut = [level if common.all() else level.isel(time=common) for level in levels]
    return [onto_level(product, cut[0], cut[-1], domain), *cut[1:]]
