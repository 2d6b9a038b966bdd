"""Days of the input and days of a store, chunk by chunk: which are there already, and which have a newer release."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr

from xdeepsd.levels.days import calendar_days, name_days, newer_and_same
from xdeepsd.levels.memory import UNITS
from xdeepsd.levels.splits import within
from xdeepsd.levels.store import PathLike, as_run, done_days, fit_releases, get_array, held_releases, how_far

logger = logging.getLogger(__name__)

# Chunks computed at a time: more threads would take more memory and write no faster.
_MOST_WORKERS = 8


def by_chunk(
    root: zarr.Group,
    arrays: Sequence[xr.DataArray],
    where: np.ndarray,
    wanted: np.ndarray,
    task: Callable[..., Any],
) -> Iterator[tuple[np.ndarray, Any]]:
    """``(days, result of task(days, values of each array))`` for each chunk of the store that holds wanted days.

    ``where`` is the position in ``arrays``, which have the same days, of each day of the store (-1: not there). All
    days of a chunk are one task: two that write to the same chunk would undo each other's days. A few chunks are
    computed at a time.
    """
    per_chunk = get_array(root, "done").chunks[0]
    index = np.flatnonzero(wanted & (where >= 0))
    chunks = [days for days in np.split(index, np.flatnonzero(np.diff(index // per_chunk)) + 1) if days.size]
    # A chunk of the fine data that reaches into several chunks of the store is read once for all of them.
    batch = max(_workers(), -(-max(arrays[0].chunksizes["time"]) // per_chunk))
    for i in range(0, len(chunks), batch):
        some = chunks[i : i + batch]
        # The graph of a task holds only its own days: a graph of all days would be searched for each task.
        tasks = [task(days, *(da.isel(time=as_run(where[days])).data for da in arrays)) for days in some]
        yield from zip(some, dask.compute(*tasks), strict=True)


def _workers() -> int:
    """Threads of the scheduler in use; within this process at most `_MOST_WORKERS`."""
    try:
        from distributed import default_client

        return max(1, sum(default_client().nthreads().values()))
    except (ImportError, ValueError):
        return min(int(dask.config.get("num_workers", dask.system.CPU_COUNT)), _MOST_WORKERS)


def renewed_days(
    root: zarr.Group, path: PathLike, given: Mapping[int, xr.DataArray], where: np.ndarray, announced: np.ndarray
) -> np.ndarray:
    """Bool ``(where.size,)``, True for the days that are done and have a newer release in the data ``given``.

    ``given`` is the precipitation of the finest level, and of the coarsest if that is a product of its own, by number.
    All other days that are in both must be the same. Days of the same release are assumed to be, except the first and
    the last; the others are read and compared, and the store takes over what is known of their releases. Raises
    ValueError naming the days that differ.
    """
    done, new, old = done_days(root), announced[where], held_releases(root)
    common = (where >= 0) & _padded(done, where.size)
    newer, same = newer_and_same(new, _padded(old, where.size))
    stay = common & ~newer
    compared = stay & ~same
    compared[np.flatnonzero(stay)[[0, -1]] if stay.any() else []] = True
    if compared.sum() > 2:
        logger.info(
            "Reading %d days that are already in %s: they have no release date, so only their values can tell whether "
            "they have changed.", compared.sum(), path,
        )  # fmt: skip
    task = dask.delayed(how_far, pure=False)
    far = np.zeros(where.size)
    for level, da in given.items():
        compare = partial(task, str(path), level)
        for days, found in by_chunk(root, [da], where, compared, compare):
            far[days] = np.maximum(far[days], found)
    if far.any():
        names = calendar_days(next(iter(given.values())))[where[far > 0]]
        apart = (
            f"up to {far.max():.4g} {UNITS} apart" if np.isfinite(far).all() else "values are missing in one of them"
        )
        raise ValueError(
            f"{len(names)} days are already in {path} with different data ({apart}): {name_days(names)}. Needed: the "
            "data that the store was built from, or newer releases of its days, in a Dataset that holds the release "
            "numbers and dates as xdeepsd fetch stores them. Type another path to build a new store from these data."
        )
    learned = (stay & (new[:, 0] > 0))[: done.size] & (old == 0).any(axis=1)
    if learned.any():
        old[learned] = new[: done.size][learned]
        fit_releases(root)
        get_array(root, "releases")[: done.size] = old
    return common & newer


def _padded(held: np.ndarray, size: int) -> np.ndarray:
    """``held``, padded with zeros for days that are not in the store yet."""
    return np.concatenate([held[:size], np.zeros((max(0, size - len(held)), *held.shape[1:]), held.dtype)])


def announce_renewed(root: zarr.Group, time: xr.DataArray, renewed: np.ndarray) -> None:
    """Log which days are rewritten; a climatology that includes one of them no longer counts."""
    days = np.flatnonzero(renewed)
    if not days.size:
        return
    names = name_days(calendar_days(time)[days])
    logger.info("%d days have a newer release and are rewritten: %s.", days.size, names)
    years = root.attrs["climatology_years"]
    if years is not None and np.isin(days, within(time, str(years))).any():
        root.attrs["climatology_days"] = 0
