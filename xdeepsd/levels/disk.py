"""The resolution ladder on disk: a Zarr group per level, written chunk by chunk; can be resumed and extended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr

from xdeepsd._progress import reporting
from xdeepsd.grids import axes
from xdeepsd.grids.cells import read_grid
from xdeepsd.grids.regrid import block_weights
from xdeepsd.levels.coarse import in_chunks, product_of
from xdeepsd.levels.days import calendar_days, each_once, empty_days, missing_days, name_days, releases
from xdeepsd.levels.memory import Edges, level_mean, make_levels, training_years, with_cf_coordinates
from xdeepsd.levels.renew import announce_renewed, by_chunk, renewed_days
from xdeepsd.levels.splits import within
from xdeepsd.levels.store import (
    PathLike,
    check_store,
    consolidate,
    create,
    done_days,
    find_store,
    forget_empty_chunks,
    get_array,
    grow,
    open_done,
    open_maps,
    reading,
    write_days,
)
from xdeepsd.models.static import CLIMATOLOGY
from xdeepsd.models.variable import find_variable
from xdeepsd.stores.remote import is_url
from xdeepsd.stores.whole import alone, writing

logger = logging.getLogger(__name__)


def _finish_climatology(path: PathLike, root: zarr.Group, factors: list[int]) -> None:
    """Write the mean of the training years at the finest level of the store, and its block means at the others."""
    years = root.attrs["climatology_years"]
    if years is None:
        return
    days = training_years(open_done(path, root)[-1]["precipitation"], slice(*str(years).split("/")))
    size, before = days.sizes["time"], root.attrs.get("climatology_days")
    if before == size:
        return
    mean = days.mean("time", skipna=True, dtype=np.float64).compute()
    for k in range(len(factors) + 1):
        coarse = open_maps(path, k)["mask"]
        get_array(root, f"level_{k}/{CLIMATOLOGY}")[:] = level_mean(mean, int(np.prod(factors[k:])), coarse).values
    root.attrs["climatology_days"] = size
    consolidate(path)
    logger.info("Climatology of %s: the mean of %d days.", years, size)
    if before is not None:
        logger.warning("It has changed: retrain the models that were trained with the old one.")


def build_levels(
    fine: xr.DataArray | xr.Dataset,
    static: xr.Dataset | xr.DataArray | None = None,
    factors: Sequence[int] = (2, 2, 2),
    path: PathLike = "levels.zarr",
    *,
    variable: str | None = None,
    climatology: slice | xr.DataArray | xr.Dataset | None = None,
    mask: xr.DataArray | None = None,
    edges: Edges = "pad",
    allow_missing: bool = False,
    chunk_mb: float = 64.0,
    progress: bool | Callable[[int, int], None] | None = None,
    coarse: xr.DataArray | xr.Dataset | None = None,
    coarse_variable: str | None = None,
) -> list[xr.Dataset]:
    """Write the levels of ``fine`` to a Zarr store: the groups ``level_0`` (coarsest) to ``level_N`` (finest).

    Called again on the same path, it continues where it was interrupted, appends days that are later than those in the
    store, and rewrites days that have a newer release. A day counts as done only when all levels hold it, so the
    process may be killed at any moment.

    Parameters
    ----------
    fine, static, factors, variable, climatology, mask, edges
        As in `make_levels`. The climatology of training years is the mean of the days in the store. For an existing
        store, static fields and climatology may be left out; if given, they must be those in the store. In a Dataset,
        ``NAME_release`` and ``NAME_release_date`` ``(time,)`` (see `fetch_prism`) tell which days are newer than those
        in the store. Where this is not known, days are read again, and must be the same.
    path
        A new folder, or a store that was built from the same grid, variable, factors and static fields.
    allow_missing
        Go on even if days between the first and the last are missing or hold no value at all; otherwise an error lists
        them. A later call may fill days without a value.
    chunk_mb
        Size of a chunk of the finest level, in 1e6 bytes before compression. A chunk holds whole maps of several days,
        the same days at every level.
    progress
        True: show a progress bar, on a terminal and in a notebook. A function is called with (days done, days wanted)
        after each chunk.
    coarse, coarse_variable
        As in `make_levels`: an independent product of the same days, as the coarsest level. The same product, with more
        days perhaps, must be given when the call is repeated. Days that it does not have count as missing.

    Returns
    -------
    The levels as `open_levels` opens them. Memory is bounded by the chunks: per worker a few times ``chunk_mb``, or the
    chunk of ``fine`` if that is larger. Raises ValueError, before anything is written, for what does not fit: another
    store, days that differ from those in the store without being a newer release, precipitation read from ``path``,
    another call that is writing to it.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2, 2), "levels.zarr")
    >>> [level.sizes["lat"] for level in levels]
    [4, 8, 16]
    """
    if is_url(path):
        raise ValueError(
            f"path is {path}. Needed: a folder on a disk, where days are written and marked one by one; training then "
            "reads a copy of it from anywhere. Type path='levels.zarr', and copy the finished store."
        )
    da, announced, empty = _source(fine, variable, chunk_mb)
    _check_apart(da, path)
    years = _years(climatology)
    given = None if isinstance(climatology, slice) else climatology
    if coarse is not None:
        coarse = in_chunks(coarse, coarse_variable, _days_in_chunk(da, chunk_mb))
    wanted = make_levels(
        da, static, factors, climatology=given, mask=mask, edges=edges, coarse=coarse, coarse_variable=coarse_variable
    )
    if years is not None:  # computed at the end, from the store
        wanted = [level.drop_vars(CLIMATOLOGY, errors="ignore") for level in wanted]
    finest = wanted[-1]["precipitation"]
    product = None if coarse is None else wanted[0]["precipitation"]
    if product is not None:
        _check_apart(product, path)
        announced = announced[calendar_days(da).isin(calendar_days(finest))]
    described: dict[str, Any] = {
        "factors": [int(f) for f in factors],
        "edges": edges,
        "variable": None if da.name is None else str(da.name),
        "climatology_years": years,
        "coarse": None if coarse is None else _grid_of(coarse),
    }
    with alone(Path(path), "build_levels", "path"), writing(path):
        root = find_store(path, "r+")
        if root is not None:
            check_store(root, path, wanted, described)
            forget_empty_chunks(root, path)
        time = finest["time"] if root is None else _longer(root, path, finest["time"])
        missing = _missing(time, finest, empty, allow_missing)
        days = calendar_days(finest)
        where = np.where(calendar_days(time).isin(empty), -1, days.get_indexer(calendar_days(time)))
        renewed = np.zeros(time.size, bool)
        if root is None:
            if isinstance(climatology, slice):
                training_years(finest, climatology)
            sizes = {name: [a.sizes["lat"], a.sizes["lon"]] for name, a in (("fine_size", da), ("size", finest))}
            root = create(path, wanted, _days_in_chunk(finest, chunk_mb), described | sizes)
        else:
            both = {len(factors): finest} | ({} if product is None else {0: product})
            renewed = renewed_days(root, path, both, where, announced)
            grow(root, path, time, len(wanted))  # before attributes change, which drops the metadata from the root
            announce_renewed(root, time, renewed)
        with reporting(progress, f"{Path(path).name}, days") as report:
            _fill(root, path, wanted, where, renewed, announced, report)
        unseen = days[np.isin(days, calendar_days(time)[~done_days(root)])].difference(missing)
        if len(unseen):
            text = f"{len(unseen)} days have no values at all: {name_days(unseen)}. All other days are in {path}."
            if not allow_missing:
                raise ValueError(
                    f"{text} Needed: every day. Fetch them and run this again, or type allow_missing=True."
                )
            logger.warning("%s They are left out.", text)
        _finish_climatology(path, root, described["factors"])
    return open_levels(path)


def _years(climatology: Any) -> str | None:
    """The training years that the climatology is the mean of, as text; None where it is a map or missing."""
    if not isinstance(climatology, slice):
        return None
    if climatology.start is None or climatology.stop is None:
        raise ValueError(
            f"climatology is {climatology}. Needed: the first and the last training year. Type "
            "climatology=slice('1981', '2005')."
        )
    return f"{climatology.start}/{climatology.stop}"


def _grid_of(coarse: xr.DataArray | xr.Dataset) -> str:
    """The grid of a coarse product in words, by which a later call is recognised."""
    grid = read_grid(coarse)
    return f"{' x '.join(map(str, grid.shape))} cells, {grid.spans}"


def _days_in_chunk(da: xr.DataArray, chunk_mb: float) -> int:
    """Number of days whose maps take ``chunk_mb``, at least one."""
    return max(1, int(chunk_mb * 1e6 // (4 * da.sizes["lat"] * da.sizes["lon"])))


def _missing(time: xr.DataArray, finest: xr.DataArray, empty: Any, allow_missing: bool) -> Any:
    """Days that ``time`` leaves out, and those that are ``empty``; ValueError unless they may be missing."""
    missing = missing_days(calendar_days(time)).union(empty)
    if len(missing):
        first, last = (str(finest["time"].values[i])[:10] for i in (0, -1))
        text = f"{len(missing)} days are missing between {first} and {last}: {name_days(missing)}."
        if not allow_missing:
            raise ValueError(f"{text} Needed: every day. Fetch them, or type allow_missing=True to go on without.")
        logger.warning("%s Going on without them.", text)
    return missing


def _longer(root: zarr.Group, path: PathLike, time: xr.DataArray) -> xr.DataArray:
    """The days of the store, then the later ones of ``time``; ValueError where one of ``time`` falls in between."""
    with reading(path):
        held = open_maps(path, 0)["time"].isel(time=slice(done_days(root).size)).load()  # without a half-done `grow`
    days, held_days = calendar_days(time), calendar_days(held)
    between = days[(days <= held_days[-1]) & ~days.isin(held_days)]
    if len(between):
        raise ValueError(
            f"{len(between)} days are earlier than the last day in {path} ({str(held_days[-1])[:10]}), but are not in "
            f"it: {name_days(between)}. Needed: later days only. Type another path to build the store anew."
        )
    return xr.concat([held, time.isel(time=days > held_days[-1])], "time")


def _source(
    fine: xr.DataArray | xr.Dataset, variable: str | None, chunk_mb: float
) -> tuple[xr.DataArray, np.ndarray, Any]:
    """The precipitation of ``fine``, each day once, as a Dask array; the releases of its days; days not yet fetched."""
    da = with_cf_coordinates(axes.standardize(find_variable(fine, variable))[0])
    if "time" not in da.indexes:
        raise ValueError(f"The precipitation has the dims {da.dims}. Needed: days along time. Type ds.expand_dims.")
    announced = releases(fine, da)
    empty = empty_days(da, announced[:, 0])
    once = each_once(da)
    da, announced = (da, announced) if once.all() else (da.isel(time=once), announced[once])
    if da.chunks is None:
        da = da.chunk(time=_days_in_chunk(da, chunk_mb))
    return da, announced, empty


def _check_apart(da: xr.DataArray, path: PathLike) -> None:
    """ValueError where ``da`` is read from the store to be written, or from somewhere inside it."""
    target = Path(path).absolute()
    for name, layer in da.data.dask.layers.items():
        if not name.startswith("original-"):  # what Dask reads from
            continue
        for array in layer.values():
            while hasattr(array, "array"):  # xarray's wrappers
                array = array.array
            root = getattr(getattr(getattr(array, "_array", array), "store", None), "root", None)
            if root is not None and target in (Path(root).absolute(), *Path(root).absolute().parents):
                raise ValueError(
                    f"The precipitation is read from {root}, which the levels at {path} would overwrite. Needed: "
                    "another place. Type another path."
                )


def _fill(
    root: zarr.Group,
    path: PathLike,
    wanted: list[xr.Dataset],
    where: np.ndarray,
    renewed: np.ndarray,
    announced: np.ndarray,
    report: Callable[[int, int], None],
) -> None:
    """Compute and write all days that are not done or are ``renewed``, a few chunks at a time."""
    todo = ~done_days(root) | renewed
    count, done = int((todo & (where >= 0)).sum()), int((~todo).sum())
    logger.info("%d days to write, %d are done; %d days in a chunk.", count, done, get_array(root, "done").chunks[0])
    finest = wanted[-1]["precipitation"]
    grid = read_grid(finest)
    arrays = [finest] if product_of(wanted[0]) is None else [finest, wanted[0]["precipitation"]]
    coarsened = wanted[len(arrays) - 1 : -1]
    blocks = [block_weights(grid, grid.shape[0] // level.sizes["lat"]) for level in coarsened]
    write = dask.delayed(write_days, pure=False)
    total = done + count
    for days, _ in by_chunk(
        root, arrays, where, todo, lambda d, *values: write(str(path), d, announced[where[d]], blocks, *values)
    ):
        done += days.size
        report(done, total)


def open_levels(path: PathLike) -> list[xr.Dataset]:
    """The levels of a store that `build_levels` wrote, coarsest first. Lazy, one Dask chunk per Zarr chunk.

    ``path`` is a folder, or a URL (``s3://bucket/levels.zarr``) to which one was copied.

    Days whose writing was interrupted are left out, with a warning in the log, and so is a climatology that is not the
    mean of the training years now in the store. Raises ValueError where ``path`` is not a store of levels, and OSError
    where an object store refuses access or cannot be reached.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2, 2), "levels.zarr")
    >>> list(xdeepsd.open_levels("levels.zarr")[0])
    ['elevation', 'land_fraction', 'mask', 'precipitation']
    """
    with reading(path):
        root = find_store(path, "r") if is_url(path) or Path(path).exists() else None
        if root is None:
            raise ValueError(
                f"No store of levels at {path}. Needed: a folder that build_levels wrote. Type "
                "xdeepsd.build_levels(fine, static, factors, path), or xdeepsd prepare."
            )
        levels = open_done(path, root)
        years = root.attrs["climatology_years"]
        if years is None:
            return levels
        if root.attrs.get("climatology_days") == within(levels[-1]["time"], str(years)).size:
            return [level.assign({CLIMATOLOGY: level[CLIMATOLOGY].assign_attrs(years=years)}) for level in levels]
    logger.warning("%s: the climatology of %s was not computed from the days that are now there; it is left out. The "
                   "same build_levels (xdeepsd prepare), run again, completes it.", path, years)  # fmt: skip
    return [level.drop_vars(CLIMATOLOGY) for level in levels]
