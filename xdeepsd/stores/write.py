"""Dataset to Zarr, region by region, so that writing can resume after any interruption.

A region is one Dask chunk of one variable. The whole output is laid out first: metadata, coordinates, attributes. Then
each region is one task, which encodes and writes its own Zarr chunks, always whole ones. Stores write each chunk whole
or not at all, and chunks of nothing but NaN are written too, so a region is done when all of its chunks exist, and one
listing of the store shows what is left to do. There are no other marks that a plain reader could trip over.

The attribute ``xdeepsd_status`` of the group records progress: ``begun`` (metadata not whole), ``incomplete``,
``complete``. ``xdeepsd_input`` records where the data came from, so that a different input can be refused.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import dask
import xarray as xr
import zarr
import zarr.storage
from zarr.abc.store import Store

from xdeepsd._progress import reporting
from xdeepsd.stores.engines import fork, icechunk_session, merge
from xdeepsd.stores.layout import as_dataset, check_aligned, chunk_unread, encodings_of, lay_out, load_small
from xdeepsd.stores.regions import Region, client_in_force, compute, graph_of, regions_of, unfinished
from xdeepsd.stores.remote import is_url, meaning
from xdeepsd.stores.target import (
    StoreLike,
    begin_or_resume,
    check_apart,
    finish,
    name_of,
    open_array,
    open_store,
    reading,
)
from xdeepsd.stores.whole import locked

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def to_zarr(
    ds: xr.Dataset | xr.DataArray,
    store: StoreLike,
    *,
    group: str | None = None,
    resume: bool = True,
    overwrite: bool = False,
    same_input: bool = False,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
    zarr_format: Literal[2, 3] = 3,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[int, int], None] | None = None,
) -> None:
    """Write a Dataset to Zarr so that nothing is lost when writing is interrupted.

    The metadata of the whole output is written first, then the data region by region (a Dask chunk of a variable).
    After a crash, kill -9 or a full disk, the same call resumes with the regions that are not done and gives
    bit-for-bit the result of an uninterrupted call.

    Parameters
    ----------
    ds
        Dataset or DataArray, usually from `xdeepsd.downscale`, but any will do. Lazy numeric variables are computed and
        written region by region; variables in memory, and lazy dates, text and scalars, are written with the metadata.
    store
        Path, URL (``s3://...``, through fsspec) or any Zarr store: obstore through ``zarr.storage.ObjectStore``, or
        ``session.store`` of an Icechunk session (others see nothing until you commit the session).
    group
        Path of the group inside the store. None: its root.
    resume
        Resume a store that the same call began. False: an existing store is an error.
    overwrite
        Replace an existing Zarr store. Anything other than a Zarr store is never replaced.
    same_input
        You vouch that the input is the one the store was begun with; only its grid, times and attributes are compared.
        For an input that was moved, or after a change of the Dask or xarray version.
    encoding
        As in `xarray.Dataset.to_zarr`, for each variable: ``chunks``, ``shards``, ``compressors``, and packing by
        ``dtype``, ``scale_factor``, ``add_offset``, ``_FillValue``. Default chunks: the Dask chunks. ``shards=True``
        makes a shard of each Dask chunk: one file, written by one task, in which readers find the smaller ``chunks``.
    zarr_format
        2 or 3.
    storage_options
        Options for fsspec, when ``store`` is a URL.
    progress
        True: show a progress bar, on a terminal and in a notebook. A function is called with the number of finished
        regions and the total, for the first time before anything is computed.

    Raises
    ------
    ValueError
        Before any work: Dask chunks that do not hold whole Zarr chunks (two tasks would write to one), packing without
        a value for NaN, a store begun with another model, input or option (each is named), another call that is writing
        to it. While writing: values that
        the packing cannot hold.
    FileExistsError
        The store exists and cannot be resumed, or ``resume`` is False.
    OSError
        The disk is full; an object store has no such bucket, refuses access or cannot be reached. What is written is
        kept; the same call resumes.

    Notes
    -----
    One call writes to a group at a time: a file ``.NAME.lock`` beside a store on a disk sees to that.

    Uses the active Dask scheduler (threads, or a ``distributed.Client``). Dask fuses reading, downscaling and writing
    of a region into one task, so each thread holds one region in memory. A resumed store keeps the ``history`` of the
    first call.

    On resuming, these are compared: every shape, chunk, codec and attribute except ``history``, the values of
    coordinates, and Dask's name of each lazy array, which depends on the input's path and modification time and on
    every later step. The input's values are not read: a change that leaves its path and modification time alone goes
    unnoticed.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> ds = xdeepsd.make_climate(years=1, shape=(16, 16)).chunk(time=100)
    >>> xdeepsd.to_zarr(ds, "climate.zarr")  # run it again: nothing is left to do
    >>> xr.open_zarr("climate.zarr").attrs["xdeepsd_status"]
    'complete'
    """
    ds = as_dataset(ds)
    target = open_store(store, storage_options)
    prefix = f"{group.strip('/')}/" if group else ""
    ds = load_small(chunk_unread(ds))
    lazy = {str(name): v for name, v in ds.variables.items() if dask.is_dask_collection(v.data)}
    encodings = encodings_of(ds, lazy, encoding or {})
    layout = lay_out(ds, lazy, encodings, zarr_format)
    check_aligned(layout, lazy)

    client = client_in_force()
    if client is not None and isinstance(target, zarr.storage.MemoryStore):
        raise ValueError("The workers of a cluster cannot write to a MemoryStore. Type a path or a URL.")
    session = icechunk_session(target) if client is not None else None
    if session is not None:  # a session cannot be sent to workers, but a fork can: use a fork throughout
        target = fork(session)
    with (
        reporting(progress, PurePath(name_of(target)).name) as report,
        _stops_told(target, count := _Count(report)),
        ExitStack() as held,
    ):
        check_apart([v.data.dask for v in lazy.values()], target, prefix)
        held.enter_context(_one_writer(target, prefix))
        with reading(target, prefix):
            begin_or_resume(target, prefix, layout, lazy, resume=resume, overwrite=overwrite, same_input=same_input)
            arrays = {name: open_array(target, prefix + name) for name in lazy}
        regions = {name: list(regions_of(arrays[name], v.data.chunks)) for name, v in lazy.items()}
        todo = unfinished(target, arrays, regions)
        count.begin(total=_number(regions), left=_number(todo))
        logger.info("%s: %d of %d regions are done", name_of(target), count.done, count.total)
        written: list[Any] = []

        def advance(result: Any) -> None:
            written.append(result)
            count.advance()

        try:
            compute(*graph_of(lazy, arrays, todo, encodings, session is not None), client, advance)
        finally:
            if session is not None:
                merge(session, target, written)
        _check_all_there(target, _number(unfinished(target, arrays, regions)), count.total)
        finish(session.store if session is not None else target, prefix, map(str, ds.variables))


@contextmanager
def _one_writer(target: Store, prefix: str) -> Iterator[None]:
    """Hold the lock of a group on a disk, a file beside the store; others have none."""
    if not isinstance(target, zarr.storage.LocalStore):
        yield
        return
    root = target.root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(root.parent, os.W_OK):  # only the store itself can be written to
        yield
        return
    lock = root.with_name(".".join(["", root.name, *prefix.split("/")[:-1], "lock"]))
    where = f"{name_of(target)}/{prefix}".rstrip("/")
    with locked(lock, f"Another to_zarr is writing to {where}. Wait for it, or type another path."):
        yield


@dataclass
class _Count:
    """Counts the regions that are done, and passes each count to ``report``."""

    report: Callable[[int, int], None]
    done: int = 0
    total: int = 0

    def begin(self, total: int, left: int) -> None:
        self.done, self.total = total - left, total
        self.report(self.done, self.total)

    def advance(self) -> None:
        self.done += 1
        self.report(self.done, self.total)


def _number(regions: Mapping[str, Sequence[Region]]) -> int:
    return sum(map(len, regions.values()))


@contextmanager
def _stops_told(target: Store, count: _Count) -> Iterator[None]:
    """Make the errors of a full disk and of an object store say how much is written and how to resume."""
    try:
        yield
    except Exception as error:
        kept = f"{count.done} of {count.total} regions are written and kept"
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(
                error.errno,
                f"No space left for {name_of(target)} ({error.strerror}). {kept}: free some space and give the same "
                "command again, and it continues from there.",
            ) from error
        name = name_of(target)
        known = meaning(error, name if is_url(name) else "The object store of the input")
        if known is None:
            raise
        if not count.total:
            raise known from error
        raise type(known)(f"{known} {kept}: the same command continues from there.") from error


def _check_all_there(target: Store, missing: int, total: int) -> None:
    """RuntimeError if the workers wrote to a place that this process does not see."""
    if missing:
        raise RuntimeError(
            f"{missing} of {total} regions were computed but are not in {name_of(target)}: the workers do not write to "
            "the store that this process sees. Needed: a path or bucket that all of them share. Type the path as the "
            "workers see it, or a URL."
        )
