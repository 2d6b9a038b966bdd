"""The resolution ladder on disk: a Zarr group per level, written region by region, resumable, appended to later."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import dask
import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from xdeepsd.grids.cells import read_grid
from xdeepsd.grids.regrid import block_weights
from xdeepsd.grids.regrid_weights import Weights, apply
from xdeepsd.levels.memory import (
    ATTRS,
    UNITS,
    Edges,
    find_precipitation,
    level_mean,
    make_levels,
    standardize,
    training_years,
)
from xdeepsd.models.static import CLIMATOLOGY

__all__ = ["build_levels", "make_levels", "open_levels"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_FORMAT = 1
# Regions in flight at a time: more threads than this would hold more memory and write no faster.
_MOST_WORKERS = 8
# Precipitation is mostly zeros: shuffled zstd packs it six times and unpacks twice as fast as zstd alone.
_COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4)
_TIME_ENCODING = {"units": "hours since 1900-01-01", "dtype": "int64", "chunks": (36525,)}


def _array(root: zarr.Group, name: str) -> zarr.Array[Any]:
    array = root[name]
    assert isinstance(array, zarr.Array)
    return array


def _done(root: zarr.Group) -> np.ndarray:
    """Marks ``(days,)``: True where a day is on disk in every level."""
    return np.asarray(_array(root, "done")[:])


def _days(da: xr.DataArray) -> Any:
    """The calendar days of ``time``, whatever the hour."""
    index: Any = da.indexes["time"]
    return index.floor("D")


def _text(days: Sequence[Any]) -> str:
    """Days as text, runs joined: ``2014-02-03, 2014-02-07..2014-02-09``; the first ten runs."""
    runs: list[list[Any]] = []
    for day in days:
        if runs and (day - runs[-1][-1]).days == 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    names = [str(r[0])[:10] if len(r) == 1 else f"{str(r[0])[:10]}..{str(r[-1])[:10]}" for r in runs[:10]]
    return ", ".join(names) + (f" and {len(runs) - 10} more" if len(runs) > 10 else "")


def _once(da: xr.DataArray) -> xr.DataArray:
    """``da`` with every day once, in order. A day that is there twice with the same values is taken once."""
    days = _days(da)
    if not days.is_monotonic_increasing:
        at = int(np.argmax(days[1:] < days[:-1]))
        raise ValueError(
            f"The days are not in order: {str(days[at])[:10]} is followed by {str(days[at + 1])[:10]}. Needed: "
            "ascending days. Type ds.sortby('time')."
        )
    again = np.flatnonzero(days.duplicated())
    for i in again:
        first = int(np.argmax(days == days[i]))
        a, b = dask.compute(da.isel(time=first).data, da.isel(time=i).data)
        if not np.array_equal(a, b, equal_nan=True):
            raise ValueError(
                f"The day {str(days[i])[:10]} is there twice with different data (at {da['time'].values[first]} and "
                f"{da['time'].values[i]}; they differ by up to {np.nanmax(np.abs(a - b)):.4g}). Needed: each day once. "
                "Type ds.drop_duplicates('time', keep='last'), or ds.resample(time='1D').mean() for data of several "
                "times a day."
            )
    if again.size:
        logger.warning("%d days are there twice with the same data: %s. Taken once.", again.size, _text(days[again]))
        da = da.isel(time=~days.duplicated())
    return da


def _missing_days(days: Any) -> Any:
    """Days of the calendar between the first and the last that are not there."""
    if len(days) < 2:
        return days[:0]
    every = xr.date_range(
        days[0],
        days[-1],
        freq="D",
        calendar=getattr(days, "calendar", "standard"),
        use_cftime=isinstance(days, xr.CFTimeIndex),
    )
    return every.difference(days)


def _empty_days(fine: xr.DataArray | xr.Dataset, da: xr.DataArray) -> Any:
    """Days that are on the axis of a store of `fetch` but not fetched: release 0, and nothing in the map.

    A release may be 0 because it is not known, so the maps of these days are read, unless none has a release.
    """
    name = f"{da.name}_release"
    days = _days(da)
    if not isinstance(fine, xr.Dataset) or name not in fine or fine[name].size != da.sizes["time"]:
        return days[:0]
    unknown = np.flatnonzero(fine[name].values == 0)
    if unknown.size in (0, days.size):
        return days[:0]
    empty = da.isel(time=unknown).isnull().all(["lat", "lon"]).values
    return days[unknown[empty]]


def _same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)


def _check_store(root: zarr.Group, path: PathLike, wanted: list[xr.Dataset], described: dict[str, Any]) -> None:
    """ValueError where the store holds another grid, variable, factors or static fields than those given."""
    new = f"Needed: the same as in the store. Type another path (--out NAME) for a new store; {path} is left as it is."
    names = {"factors": "factors", "edges": "edges", "variable": "variable", "climatology_years": "climatology years"}
    for key, name in names.items():
        if root.attrs.get(key) != described[key] and not (key == "climatology_years" and described[key] is None):
            raise ValueError(
                f"{path} was built with the {name} {root.attrs.get(key)!r}; now {described[key]!r} arrived. {new}"
            )
    finest = wanted[-1]
    with _open_group(path, len(wanted) - 1) as held:
        for dim in ("lat", "lon"):
            values, old = finest[dim].values, held[dim].values
            if not _same(values, old, 0.01 * abs(float(old[1] - old[0]))):
                raise ValueError(
                    f"{path} holds another grid: {dim} of {old.size} cells from {old[0]:.5f} to {old[-1]:.5f}; now "
                    f"{values.size} cells from {values[0]:.5f} to {values[-1]:.5f} arrived. {new}"
                )
        for name in sorted({str(n) for n in finest.data_vars} - {"precipitation", "mask", "land_fraction"}):
            if name not in held:
                raise ValueError(f"{path} holds no {name} among {sorted(map(str, held.data_vars))}. {new}")
            if not _same(finest[name].values, held[name].values, 1e-3):
                raise ValueError(f"{path} holds another field of {name}. {new}")


def _open_group(path: PathLike, level: int) -> xr.Dataset:
    return xr.open_zarr(path, group=f"level_{level}", consolidated=False, chunks={})


def _create(path: PathLike, wanted: list[xr.Dataset], days: int, described: dict[str, Any]) -> zarr.Group:
    """An empty store with all but the precipitation. It is ready only when its attribute says so."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update(described | {"xdeepsd_levels": _FORMAT, "ready": False, "days_per_chunk": days})
    later = [CLIMATOLOGY] if described["climatology_years"] else []
    static = dask.compute(*[level.drop_vars("precipitation") for level in wanted])
    for k, (level, fields) in enumerate(zip(wanted, static, strict=True)):
        whole = {name: {"chunks": field.shape} for name, field in fields.data_vars.items()}
        encoding = {"time": _TIME_ENCODING} | whole
        fields.to_zarr(path, group=f"level_{k}", mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        shape = level["precipitation"].shape
        group = root[f"level_{k}"]
        assert isinstance(group, zarr.Group)
        for name, size, chunks, dims in (
            ("precipitation", shape, (days, *shape[1:]), ("time", "lat", "lon")),
            *((name, shape[1:], shape[1:], ("lat", "lon")) for name in later),
        ):
            group.create_array(
                name,
                shape=size,
                chunks=chunks,
                dtype="float32",
                compressors=(_COMPRESSOR,),
                fill_value=np.nan,
                dimension_names=dims,
                attributes=dict(ATTRS[name]),
            )
    root.create_array("done", shape=(wanted[0].sizes["time"],), chunks=(days,), dtype="bool", fill_value=False)
    root.attrs["ready"] = True
    _consolidate(path)
    return root


def _consolidate(path: PathLike) -> None:
    """Collect the metadata of all levels in the root, so that opening reads one file. Changed attributes drop it."""
    with warnings.catch_warnings():
        # Zarr warns that other readers may ignore consolidated metadata of format 3: they lose nothing.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(str(path), zarr_format=3)


def _grow(root: zarr.Group, path: PathLike, time: xr.DataArray, levels: int) -> None:
    """Make room for the days of ``time`` at the end of each level. Done again after an interruption, it completes."""
    for k in range(levels):
        with _open_times(path, k) as held:
            more = time.isel(time=slice(held.sizes["time"], None))
        if more.size:
            xr.Dataset(coords={"time": more}).to_zarr(path, group=f"level_{k}", append_dim="time", consolidated=False)
        array = _array(root, f"level_{k}/precipitation")
        array.resize((time.size, *array.shape[1:]))
    _array(root, "done").resize((time.size,))
    _consolidate(path)


def _open_times(path: PathLike, level: int) -> xr.Dataset:
    return xr.open_zarr(path, group=f"level_{level}", consolidated=False, chunks=None, drop_variables="precipitation")


def _regions(where: np.ndarray, wanted: np.ndarray, days: int) -> Iterator[tuple[slice, slice]]:
    """Runs of days that are wanted, cut at chunk boundaries: (slice in the store, slice in the fine data).

    ``where`` is the position in the fine data of each day of the store (-1: not there).
    """
    index = np.flatnonzero(wanted & (where >= 0))
    cut = (np.diff(index) != 1) | (np.diff(where[index]) != 1) | (np.diff(index // days) != 0)
    for run in np.split(index, np.flatnonzero(cut) + 1):
        if run.size:
            yield slice(run[0], run[-1] + 1), slice(where[run[0]], where[run[-1]] + 1)


def _write_region(path: PathLike, start: int, finest: np.ndarray, blocks: Sequence[Weights]) -> int:
    """Coarsen some days, write them to all levels, then mark them done: what is marked is on disk in every level.

    A day without any value is not done: it is missing, and may come later.
    """
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    stop = start + len(finest)
    levels = [apply(finest, weights, skipna=True, na_thres=1.0, unmapped_to_nan=True) for weights in blocks]
    for k, values in enumerate([*levels, finest]):
        _array(root, f"level_{k}/precipitation")[start:stop] = values
    _array(root, "done")[start:stop] = np.isfinite(levels[0]).any(axis=(1, 2))
    return stop - start


def _workers() -> int:
    """Threads of the scheduler in use, at most `_MOST_WORKERS` in this process."""
    try:
        from distributed import default_client

        return max(1, sum(default_client().nthreads().values()))
    except (ImportError, ValueError):
        return min(int(dask.config.get("num_workers", dask.system.CPU_COUNT)), _MOST_WORKERS)


def _check_common_days(path: PathLike, fine: xr.DataArray, where: np.ndarray, done: np.ndarray, level: int) -> None:
    """The first and the last day that are in the store and in ``fine`` must hold the same values."""
    common = np.flatnonzero(done & (where >= 0))
    for i in sorted({int(common[0]), int(common[-1])} if common.size else set()):
        with _open_group(path, level) as held:
            old, new = dask.compute(held["precipitation"].isel(time=i).data, fine.isel(time=int(where[i])).data)
        if not np.allclose(old, new, rtol=1e-5, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"The day {str(_days(fine)[where[i]])[:10]} is in {path} with different data (up to "
                f"{np.nanmax(np.abs(old - new)):.4g} {UNITS} apart). Needed: the data that the store was built from, "
                "and later days. Type another path (--out NAME) to build a new store from these data."
            )


def _finish_climatology(path: PathLike, root: zarr.Group, factors: list[int]) -> None:
    """Mean of the training years from the finest level of the store, block means of it in the others."""
    years = root.attrs["climatology_years"]
    if years is None:
        return
    begin, end = str(years).split("/")
    precipitation = open_levels(path)[-1]["precipitation"]
    within = training_years(precipitation, slice(begin, end))
    if root.attrs.get("climatology_days") == within.sizes["time"]:
        return
    mean = within.mean("time", skipna=True, dtype=np.float64).compute()
    for k in range(len(factors) + 1):
        coarse = _open_times(path, k)["mask"]
        _array(root, f"level_{k}/{CLIMATOLOGY}")[:] = level_mean(mean, int(np.prod(factors[k:])), coarse).values
    root.attrs["climatology_days"] = within.sizes["time"]
    _consolidate(path)
    logger.info("Climatology of %s: the mean of %d days.", years, within.sizes["time"])


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
    progress: Callable[[int, int], None] | None = None,
) -> list[xr.Dataset]:
    """Write the levels of ``fine`` to a Zarr store: the groups ``level_0`` (coarsest) to ``level_N`` (finest).

    Called again on the same path it goes on where it was interrupted, and appends days that are later than those in
    the store. A day counts as done only when all levels hold it, so that it may be killed at any moment.

    Parameters
    ----------
    fine, static, factors, variable, climatology, mask, edges
        As in `make_levels`. The climatology of training years is the mean of the days in the store. For a store that
        exists, static fields and climatology may be left out; given ones must be those in the store.
    path
        A new folder, or a store that was built from the same grid, variable, factors and static fields.
    allow_missing
        Go on although days are missing between the first and the last, or hold no value at all; they are listed in the
        error otherwise. A day without a value may be filled by a later call.
    chunk_mb
        Size of a chunk of the finest level, in 1e6 bytes before compression. A chunk holds whole maps of several days,
        and the same days at every level.
    progress
        Called with (days done, days wanted) after each region.

    Returns
    -------
    `open_levels` of ``path``. Memory is bounded by the chunks: a few times ``chunk_mb``, or the chunk of ``fine`` if
    that is larger, for each worker. Raises ValueError, before anything is written, for what does not fit.
    """
    da, _ = standardize(find_precipitation(fine, variable))
    if "time" not in da.indexes:
        raise ValueError(f"The precipitation has no time among its dims {da.dims}. Needed: days. Type ds.expand_dims.")
    empty = _empty_days(fine, da)
    da = _once(da)
    if da.chunks is None:
        day = 4 * da.sizes["lat"] * da.sizes["lon"]
        da = da.chunk(time=max(1, min(int(chunk_mb * 1e6 // day), da.sizes["time"])))
    years = f"{climatology.start}/{climatology.stop}" if isinstance(climatology, slice) else None
    given = None if isinstance(climatology, slice) else climatology
    wanted = make_levels(da, static, factors, climatology=given, mask=mask, edges=edges)
    if years is not None:  # computed at the end, from the store
        wanted = [level.drop_vars(CLIMATOLOGY, errors="ignore") for level in wanted]
    finest = wanted[-1]["precipitation"]
    described: dict[str, Any] = {
        "factors": [int(f) for f in factors],
        "edges": edges,
        "variable": None if da.name is None else str(da.name),
        "climatology_years": years,
    }
    root = _existing(path, "r+")
    days = _days(finest)
    time = finest["time"]
    if root is not None:
        _check_store(root, path, wanted, described)
        held = _open_times(path, 0)["time"].load()
        held_days = _days(held)
        between = days[(days <= held_days[-1]) & ~days.isin(held_days)]
        if len(between):
            raise ValueError(
                f"{len(between)} days before the last one of {path} ({str(held_days[-1])[:10]}) are not in it: "
                f"{_text(between)}. Needed: later days only. Type another path (--out NAME) to build the store anew."
            )
        time = xr.concat([held, time.isel(time=days > held_days[-1])], "time")
    missing = _missing_days(_days(time)).union(empty)
    if len(missing):
        text = (
            f"{len(missing)} days are missing between {str(days[0])[:10]} and {str(days[-1])[:10]}: {_text(missing)}."
        )
        if not allow_missing:
            raise ValueError(
                f"{text} Needed: every day. Fetch them, or type allow_missing=True (--allow-missing) to go on without."
            )
        logger.warning("%s Going on without them.", text)
    where = days.get_indexer(_days(time))
    if root is None:
        if isinstance(climatology, slice):
            training_years(finest, climatology)
        per_chunk = max(1, int(chunk_mb * 1e6 // (4 * finest.sizes["lat"] * finest.sizes["lon"])))
        sizes = {"fine_size": [da.sizes["lat"], da.sizes["lon"]], "size": [finest.sizes["lat"], finest.sizes["lon"]]}
        root = _create(path, wanted, per_chunk, described | sizes)
    else:
        marks = _done(root)
        _check_common_days(path, finest, where[: marks.size], marks, len(wanted) - 1)
        _grow(root, path, time, len(wanted))
    _fill(root, path, wanted, where, progress)
    unseen = days[np.isin(days, _days(time)[~_done(root)])].difference(missing)
    if len(unseen):
        text = f"{len(unseen)} days hold no value at all: {_text(unseen)}. All other days are in {path}."
        if not allow_missing:
            raise ValueError(
                f"{text} Needed: every day. Fetch them and run this again, or type allow_missing=True "
                "(--allow-missing)."
            )
        logger.warning("%s They are left out.", text)
    _finish_climatology(path, root, described["factors"])
    return open_levels(path)


def _existing(path: PathLike, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The store at ``path``; None where there is none yet, or one whose creation was interrupted."""
    folder = Path(path)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        root = zarr.open_group(path, mode=mode, use_consolidated=False)
    except (FileNotFoundError, ValueError, NotADirectoryError):
        root = None
    if root is None or root.attrs.get("xdeepsd_levels") != _FORMAT:
        raise ValueError(
            f"{path} is there and is no store of levels. Needed: a new path, or a store that build_levels wrote. "
            "Type another path (--out NAME)."
        )
    return root if root.attrs.get("ready") else None


def _fill(
    root: zarr.Group,
    path: PathLike,
    wanted: list[xr.Dataset],
    where: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Compute and write all days that are not done, some regions at a time."""
    done = _done(root)
    per_chunk = _array(root, "done").chunks[0]
    regions = list(_regions(where, ~done, per_chunk))
    todo = sum(region.stop - region.start for region, _ in regions)
    kept = int(done.sum())
    logger.info("%d days to write, %d are done; %d days in a chunk.", todo, kept, per_chunk)
    # A chunk of the fine data that reaches into several regions is read once for all of them.
    finest = wanted[-1]["precipitation"]
    source = max(finest.chunksizes["time"])
    batch = max(_workers(), -(-source // per_chunk))
    written = 0
    # The graph of a region holds its days of the finest level only: graphs of all days would be searched each time.
    write = dask.delayed(_write_region, pure=False)
    grid = read_grid(finest)
    blocks = [block_weights(grid, grid.shape[0] // level.sizes["lat"]) for level in wanted[:-1]]
    for i in range(0, len(regions), batch):
        tasks = [
            write(str(path), region.start, finest.isel(time=days).data, blocks)
            for region, days in regions[i : i + batch]
        ]
        written += sum(dask.compute(*tasks))
        if progress is not None:
            progress(kept + written, kept + todo)


def open_levels(path: PathLike) -> list[xr.Dataset]:
    """The levels of a store that `build_levels` wrote, the coarsest first. Lazy, a Dask chunk per Zarr chunk.

    Days whose writing was interrupted are left out, with a warning in the log. Raises ValueError where ``path`` is no
    store of levels.
    """
    root = _existing(path, "r") if Path(path).exists() else None
    if root is None:
        raise ValueError(
            f"No store of levels at {path}. Needed: a folder that build_levels wrote. Type xdeepsd.build_levels(fine, "
            "static, factors, path), or xdeepsd prepare."
        )
    done = _done(root)
    count = len(root.attrs["factors"]) + 1  # type: ignore[arg-type]
    # An interrupted change of attributes leaves none.
    consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    levels = [xr.open_zarr(path, group=f"level_{k}", consolidated=consolidated, chunks={}) for k in range(count)]
    finished = np.flatnonzero(done[: min(level.sizes["time"] for level in levels)])
    if finished.size == max(level.sizes["time"] for level in levels):
        return levels
    logger.warning("%s: %d of %d days are done; the others are left out.", path, finished.size, done.size)
    return [level.isel(time=finished) for level in levels]
