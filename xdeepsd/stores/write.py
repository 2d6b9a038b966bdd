"""Dataset to Zarr, region by region, so that whatever stops the writing, it can be taken up again.

A region is one Dask chunk of one variable. The whole output is laid out first: metadata, coordinates, attributes. Then
each region is one task, which encodes and writes its own Zarr chunks, whole ones only. Stores write a chunk wholly or
not at all, and chunks of nothing but NaN are written too: so a region is done when all of its chunks are there, and one
listing of the store says what is left to do. No marks besides the chunks, nothing that a plain reader could stumble on.

The attribute ``xdeepsd_status`` of the group says how far it is: ``begun`` (metadata not whole), ``incomplete``,
``complete``. ``xdeepsd_input`` keeps where the data came from, to refuse another input.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import pickle
import re
import sys
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import dask
import dask.array
import dask.base
import dask.threaded
import numpy as np
import xarray as xr
import zarr
import zarr.storage
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArraySliceDep
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from xdeepsd.stores.layout import (
    BEGUN,
    COMPLETE,
    INCOMPLETE,
    PACKING,
    STATUS,
    as_dataset,
    check_aligned,
    chunk_unread,
    differences,
    encodings_of,
    lay_out,
    load_small,
    write_unit,
)
from xdeepsd.stores.sources import reads

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
# What Zarr's local store writes to before it renames.
_PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")
_ARRAY_FILES = re.compile(rf"{'|'.join(map(re.escape, _METADATA))}|c|c?[\d./]+|{_PARTIAL.pattern}")

# Of a group that is begun: what is deleted from it, and what is written.
_HALF = "xdeepsd_half"

StoreLike = str | Path | Store


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
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a Dataset to Zarr so that nothing is lost when the writing is stopped.

    The metadata of the whole output is written first, then region by region (a Dask chunk of a variable). After a
    crash, kill -9 or a full disk the same call goes on with the regions that are not done, and ends with the same bits
    as an uninterrupted one.

    Parameters
    ----------
    ds
        Dataset or DataArray, usually of `xdeepsd.downscale`; any other one too. Lazy variables of numbers are computed
        and written region by region; what is in memory, and lazy dates, text and single values, goes with the metadata.
    store
        Path, URL (``s3://...``, through fsspec) or any Zarr store: obstore's through ``zarr.storage.ObjectStore``,
        ``session.store`` of an Icechunk session (nothing is visible to others before you commit the session).
    group
        Path of the group inside the store. None: its root.
    resume
        Go on with a store that was begun by the same call. False: a store that exists is an error.
    overwrite
        Replace a Zarr store that exists. Anything but a Zarr store is never replaced.
    same_input
        You vouch that the input is the one the store was begun with; only its grid, times and attributes are compared.
        For an input that was moved, and for another version of Dask or xarray.
    encoding
        As in `xarray.Dataset.to_zarr`, for each variable: ``chunks``, ``shards``, ``compressors``, and packing by
        ``dtype``, ``scale_factor``, ``add_offset``, ``_FillValue``. Default chunks: those of Dask.
    zarr_format
        2 or 3.
    storage_options
        For fsspec, with a URL.
    progress
        Called with the number of finished regions and of all regions, first before anything is computed.

    Raises
    ------
    ValueError
        Before any work: Dask chunks that do not hold whole Zarr chunks (two writers on one chunk), packing without a
        value for NaN, a store begun with another model, input or option (each named). While writing: values that the
        packing cannot hold.
    FileExistsError
        The store exists and is not to be, or cannot be, resumed.
    OSError
        The disk is full. What is written is kept; the same call goes on.

    Notes
    -----
    Computes with the scheduler of Dask in force (threads; a ``distributed.Client``). Reading, downscaling and writing
    of a region are one task as Dask fuses them; one region for each thread is in memory. The ``history`` of a resumed
    store is that of the first call.

    What is compared on resuming: every shape, chunk, codec, attribute except ``history``, the values of coordinates,
    and the name that Dask gave to each lazy array, which is made from the input's path and modification time and every
    step after it. The input's values are not read: a change inside it that leaves path and time alone is not seen.
    """
    ds = as_dataset(ds)
    target = _open_store(store, storage_options)
    prefix = f"{group.strip('/')}/" if group else ""
    ds = load_small(chunk_unread(ds))
    lazy = {str(name): v for name, v in ds.variables.items() if dask.is_dask_collection(v.data)}
    encodings = encodings_of(ds, lazy, encoding or {})
    layout = lay_out(ds, lazy, encodings, zarr_format)
    check_aligned(layout, lazy)

    client = _client()
    if client is not None and isinstance(target, zarr.storage.MemoryStore):
        raise ValueError("A MemoryStore is not shared with the workers of a cluster. Type a path or a URL.")
    session = _icechunk_session(target) if client is not None else None
    if session is not None:  # a session cannot go to workers, its forks can: everything happens on a fork
        target = _fork(session)
    progress = progress or (lambda done, total: None)
    done, total = 0, 0
    written: list[Any] = []
    try:
        _check_apart([v.data.dask for v in lazy.values()], target, prefix)
        _begin_or_resume(target, prefix, layout, lazy, resume=resume, overwrite=overwrite, same_input=same_input)
        arrays = {name: _open_array(target, prefix + name) for name in lazy}
        regions = {name: list(_regions(arrays[name], v.data.chunks)) for name, v in lazy.items()}
        todo = _unfinished(target, arrays, regions)
        total = sum(map(len, regions.values()))
        done = total - sum(map(len, todo.values()))
        logger.info("%s: %d of %d regions are done", _name(target), done, total)
        progress(done, total)
        before = done

        def advance(result: Any) -> None:
            nonlocal done
            written.append(result)
            done = before + len(written)
            progress(done, total)

        try:
            _compute(*_graph(lazy, arrays, todo, encodings, session is not None), client, advance)
        finally:
            if session is not None:
                _merge(session, target, written)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"No space left for {_name(target)} ({error.strerror}). {done} of {total} regions are written and kept: "
            "free some space and give the same command again, it goes on from there.",
        ) from error
    missing = sum(map(len, _unfinished(target, arrays, regions).values()))
    if missing:
        raise RuntimeError(
            f"{missing} of {total} regions were computed but are not in {_name(target)}: the workers do not write to "
            "the store that this process sees. Needed: a path or bucket that all of them share. Type the path as the "
            "workers see it, or a URL."
        )
    _finish(session.store if session is not None else target, prefix, map(str, ds.variables))


# --- the store ------------------------------------------------------------------------------------------------------


def _open_store(store: StoreLike, storage_options: Mapping[str, Any] | None) -> Store:
    """A Zarr store that writes a chunk wholly or not at all, and can be listed."""
    if isinstance(store, str) and "://" in store and not store.startswith("file://"):
        try:
            return zarr.storage.FsspecStore.from_url(store, storage_options=dict(storage_options or {}))
        except ImportError as error:
            raise ImportError(
                f"{store} needs a package that is not installed ({error}). Type pip install s3fs for s3://, gcsfs for "
                "gs://, adlfs for az://."
            ) from error
    if storage_options:
        raise ValueError(f"storage_options are for URLs; got {store!r}. Leave them out, or type a URL such as s3://.")
    if isinstance(store, str | Path):
        pipeline = zarr.config.get("codec_pipeline.path")
        if not pipeline.startswith("zarr."):
            raise ValueError(
                f"The codec pipeline {pipeline} may write local files in place: a kill would leave half a chunk. "
                "Needed: Zarr's own. Type zarr.config.reset()."
            )
        # Absolute: workers of a cluster may run in another folder.
        return zarr.storage.LocalStore(Path(str(store).removeprefix("file://")).expanduser().resolve())
    if not isinstance(store, Store):
        raise TypeError(f"store is a {type(store).__name__}; needed: a path, a URL or a zarr store.")
    if store.read_only:
        raise ValueError(f"{store} is read-only. Of Icechunk, type repo.writable_session('main').store.")
    if not (store.supports_deletes and store.supports_listing):
        raise ValueError(
            f"{store} cannot be resumed: it cannot delete or list. Type to_zarr('out.zarr') for a folder, and pack it "
            "afterwards."
        )
    fs = getattr(store, "fs", None)
    if "file" in getattr(getattr(fs, "sync_fs", fs), "protocol", ()):
        raise ValueError(
            f"{store} writes local files in place: a kill would leave half a chunk. Type to_zarr('/path/out.zarr')."
        )
    return store


def _name(target: Store) -> str:
    return str(target.root) if isinstance(target, zarr.storage.LocalStore) else str(target)


def _check_apart(graphs: Sequence[Any], target: Store, prefix: str) -> None:
    """Raise where the output would replace what it is computed from."""
    found = sorted(set(reads(graphs, target, prefix)))
    if found:
        where = f"{_name(target)}/{prefix}".rstrip("/")
        raise ValueError(f"The output {where} is, or holds, the input {found[0]}. Type another path.")


def _check_replaceable(target: Store, prefix: str, where: str, half: Collection[str] = ()) -> None:
    """Raise FileExistsError where a group holds anything that is not Zarr: the user's files are never deleted.

    ``half``: names of what a killed call had begun to delete or to write, of which metadata may be missing.
    """
    if not isinstance(target, zarr.storage.LocalStore):
        return  # other stores are not folders in which people keep files
    for file in (target.root / prefix).iterdir():
        if file.name in _METADATA or _PARTIAL.fullmatch(file.name):
            continue
        if file.name in half and not not_zarr(file):
            continue
        kind = None if file.is_symlink() or not file.is_dir() else _node_type(file)
        if kind == "group":
            _check_replaceable(target, f"{prefix}{file.name}/", where)
            continue
        foreign = [file] if kind is None else [f for f in file.iterdir() if not _ARRAY_FILES.fullmatch(f.name)]
        if foreign:
            raise FileExistsError(
                f"{where} also holds what is not Zarr: {foreign[0]}. Nothing is replaced. Move it away, or type "
                "another path."
            )


def not_zarr(path: Path) -> list[Path]:
    """Links, and files whose names are none that Zarr gives, among a path and all that is below it."""
    files = [file for file in (path, *path.rglob("*")) if file.is_symlink() or file.is_file()]
    return sorted(file for file in files if file.is_symlink() or not _ARRAY_FILES.fullmatch(file.name))


def _node_type(folder: Path) -> str | None:
    """ "group" or "array" where the folder is one of Zarr, of format 2 or 3."""
    for name, kind in ((".zgroup", "group"), (".zarray", "array")):
        if (folder / name).exists():
            return kind
    try:
        return str(json.loads((folder / "zarr.json").read_text())["node_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _icechunk_session(store: Store) -> Any:
    """The session of an Icechunk store; None for any other. Icechunk is never imported for this."""
    icechunk = sys.modules.get("icechunk")
    return store.session if icechunk is not None and isinstance(store, icechunk.IcechunkStore) else None


def _fork(session: Any) -> Any:
    import icechunk

    if isinstance(session, icechunk.ForkSession):
        return session.store
    if session.has_uncommitted_changes:
        raise ValueError(
            "The Icechunk session has uncommitted changes, and with a distributed scheduler only a session without can "
            "be forked to the workers. Type session.commit('...') and take a new session, or session.discard_changes()."
        )
    return session.fork().store


def _merge(session: Any, target: Any, results: Sequence[Any]) -> None:
    """Bring what the workers wrote into the session, also after an error: it may be committed and resumed."""
    fork = target.session
    fork.merge(*results)
    if type(session) is not type(fork):
        session.merge(fork)


async def _list(keys: AsyncIterator[T]) -> list[T]:
    return [key async for key in keys]


async def _any_key(store: Store, prefix: str) -> bool:
    """True if there is anything but the temporary files of killed writes."""
    async for key in store.list_prefix(prefix):
        if not key.endswith(".partial"):
            return True
    return False


def _open_group(store: Store, prefix: str) -> zarr.Group | None:
    with warnings.catch_warnings():  # while one of format 2 begins, both lie there
        warnings.filterwarnings("ignore", "Both zarr.json", UserWarning)
        try:
            return zarr.open_group(store, path=prefix.rstrip("/"), mode="r", use_consolidated=False)
        except FileNotFoundError:
            return None


def _open_array(store: Store, path: str) -> zarr.Array:
    # Chunks of nothing but NaN (ocean) must be there too: their being there is what says that they are done.
    with zarr.config.set({"array.write_empty_chunks": True}):  # kept by the array, also through pickle
        return zarr.open_array(store, path=path, mode="r+")


# --- begin, resume, finish ------------------------------------------------------------------------------------------


def _begin_or_resume(
    target: Store,
    prefix: str,
    layout: zarr.storage.MemoryStore,
    lazy: Mapping[str, xr.Variable],
    *,
    resume: bool,
    overwrite: bool,
    same_input: bool,
) -> None:
    """Lay the store out, or make sure that it was begun with the same Dataset and options."""
    where = f"{_name(target)}/{prefix}".rstrip("/")
    group = _open_group(target, prefix)
    if group is None:
        # Icechunk holds nothing but Zarr, and does not list where there is nothing.
        if _icechunk_session(target) is None and sync(_any_key(target, prefix)):
            raise FileExistsError(f"{where} exists and is not a Zarr group. It is left alone: type another path.")
        _begin(target, prefix, layout)
        return
    status = group.attrs.get(STATUS)
    if overwrite or status == BEGUN:  # killed before anything was computed
        names: Any = group.attrs.get(_HALF, []) if status == BEGUN else []
        _check_replaceable(target, prefix, where, names)
        logger.info("%s is replaced.", where)
        _begin(target, prefix, layout)
        return
    if not resume:
        raise FileExistsError(f"{where} exists. Type resume=True to go on with it, or overwrite=True to replace it.")
    if status not in (INCOMPLETE, COMPLETE):
        raise FileExistsError(
            f"{where} exists and was not written by xdeepsd.to_zarr, so it cannot be resumed. Type overwrite=True to "
            "replace it, or another path."
        )
    different = differences(group, zarr.open_group(layout, mode="r"), lazy, same_input)
    if different:
        lines = "\n".join(f"- {name}: {there} there, {now} now" for name, (there, now) in different.items())
        hint = (
            " If you know that it is the same input (moved, or read by another version of Dask or xarray), type "
            "same_input=True."
            if set(different) == {"input"}
            else ""
        )
        raise ValueError(
            f"{where} was begun with something else:\n{lines}\nNeeded: all as it was begun. Type another path, or "
            f"overwrite=True to begin anew.{hint}"
        )


def _begin(target: Store, prefix: str, layout: zarr.storage.MemoryStore) -> None:
    """Clear the place and lay the store out; killed at any moment, it is found empty or as ``begun``."""
    zarr_format: Any = zarr.open_group(layout, mode="r").metadata.zarr_format
    root = f"{prefix}zarr.json"
    prototype = default_buffer_prototype()
    parents = {"zarr_format": zarr_format} | ({} if zarr_format == 2 else {"node_type": "group", "attributes": {}})
    folder = target.root / prefix if isinstance(target, zarr.storage.LocalStore) else None
    there = [] if folder is None or not folder.exists() else [file.name for file in folder.iterdir()]

    async def begin() -> None:
        keys = await _list(layout.list())
        half = sorted({*there, *(key.partition("/")[0] for key in keys)})
        mark = {"zarr_format": 3, "node_type": "group", "attributes": {STATUS: BEGUN, _HALF: half}}
        for parent in list(Path(prefix).parents)[::-1]:  # the groups that hold this one, each by one file
            name = ".zgroup" if zarr_format == 2 else "zarr.json"
            key = name if parent == Path() else f"{parent.as_posix()}/{name}"
            if not await target.exists(key):
                await target.set(key, prototype.buffer.from_bytes(json.dumps(parents).encode()))
        await target.set(root, prototype.buffer.from_bytes(json.dumps(mark).encode()))
        for name in await _list(target.list_dir(prefix)):
            key = f"{prefix}{name.strip('/')}"
            if key == root:
                continue
            if await target.exists(key):
                await target.delete(key)
            else:
                await target.delete_dir(key)
        for key in sorted(keys, key=lambda k: k == "zarr.json"):  # the group's own last: now it is laid out
            value = await layout.get(key, prototype)
            assert value is not None
            await target.set(prefix + key, value)
        if "zarr.json" not in keys:  # format 2
            await target.delete(root)

    sync(begin())
    _refresh_parents(target, prefix)


def _refresh_parents(target: Store, prefix: str) -> None:
    """Consolidate anew the groups above that are consolidated: readers believe what stands there."""
    for parent in Path(prefix).parents if prefix else ():
        path = "" if parent == Path() else parent.as_posix()
        try:
            group = zarr.open_group(target, path=path, mode="r")
        except FileNotFoundError:  # a store without a group at its root
            continue
        if group.metadata.consolidated_metadata is not None:
            _consolidate(target, path, group.metadata.zarr_format)


def _consolidate(target: Store, path: str, zarr_format: Any) -> None:
    with warnings.catch_warnings():  # "not part of the Zarr format 3 specification": every reader knows it
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(target, path=path, zarr_format=zarr_format)


def _finish(target: Store, prefix: str, names: Iterable[str]) -> None:
    """Take away what killed writes left behind, mark as complete, consolidate the metadata."""
    group = zarr.open_group(target, path=prefix.rstrip("/"), mode="r+")
    consolidated = not target.supports_consolidated_metadata or group.metadata.consolidated_metadata is not None
    finished = group.attrs[STATUS] == COMPLETE and consolidated
    if isinstance(target, zarr.storage.LocalStore):
        folder = target.root / prefix
        arrays = [] if finished else [file for name in names for file in (folder / name).rglob("*.partial")]
        for left in (*folder.glob("*.partial"), *arrays):
            if _PARTIAL.fullmatch(left.name):
                left.unlink(missing_ok=True)
    if finished:
        return
    group.attrs[STATUS] = COMPLETE
    if target.supports_consolidated_metadata:
        _refresh_parents(target, prefix)
        _consolidate(target, prefix.rstrip("/"), group.metadata.zarr_format)  # last: it says that all is done


# --- regions --------------------------------------------------------------------------------------------------------

Region = tuple[tuple[int, ...], list[str]]  # index of the Dask chunk, keys of the Zarr chunks (shards) in it


def _regions(array: zarr.Array, chunks: Sequence[Sequence[int]]) -> Iterator[Region]:
    axes = []
    for sizes, unit in zip(chunks, write_unit(array), strict=True):
        ends = [0, *itertools.accumulate(sizes)]
        axes.append([range(start // unit, math.ceil(end / unit)) for start, end in itertools.pairwise(ends)])
    for index in itertools.product(*(range(len(axis)) for axis in axes)):
        units = itertools.product(*(axis[i] for axis, i in zip(axes, index, strict=True)))
        yield index, [f"{array.path}/{array.metadata.encode_chunk_key(u)}" for u in units]


def _unfinished(
    target: Store, arrays: Mapping[str, zarr.Array], regions: Mapping[str, Sequence[Region]]
) -> dict[str, list[Region]]:
    """Regions of each variable that miss a chunk."""
    todo = {}
    for name, array in arrays.items():
        there = set(sync(_list(target.list_prefix(f"{array.path}/"))))
        if isinstance(target, zarr.storage.LocalStore):
            # A chunk is never empty: after a power failure, a file system may keep its name without its bytes.
            there = {key for key in there if (target.root / key).stat().st_size}
        todo[name] = [region for region in regions[name] if not there.issuperset(region[1])]
    return todo


def _write(
    block: np.ndarray,
    array: zarr.Array,
    where: tuple[slice, ...],
    dims: tuple[str, ...],
    encoding: Mapping[str, Any],
    fork: bool,
) -> Any:
    """Encode and write one region; returns the fork of an Icechunk session that holds it, else None."""
    dtype = np.dtype(encoding.get("dtype") or block.dtype)
    if dtype.kind in "iu" and block.dtype.kind == "f":
        _check_fits(block, array.path, dtype, encoding)
    encoded = xr.conventions.encode_cf_variable(xr.Variable(dims, block, encoding=encoding)).values
    if fork:  # a copy of its own, so that only this region's changes are sent back
        array = pickle.loads(pickle.dumps(array))
    array[where] = encoded
    return array.store.session if fork else None  # type: ignore[attr-defined]


def _check_fits(block: np.ndarray, name: str, dtype: np.dtype, encoding: Mapping[str, Any]) -> None:
    """Raise where packing would wrap around, or turn a value into the one that means missing."""
    scale, offset = encoding.get("scale_factor", 1), encoding.get("add_offset", 0)
    finite = block[~np.isnan(block)]
    if not finite.size:
        return
    info, fill = np.iinfo(dtype), encoding["_FillValue"]
    packed = np.around((np.array([finite.min(), finite.max()], np.float64) - offset) / scale)
    low, high = packed.min(), packed.max()
    allowed = (info.min + (fill == info.min), info.max - (fill == info.max))
    if not (allowed[0] <= low and high <= allowed[1]):
        raise ValueError(
            f"{name!r} has values from {finite.min():g} to {finite.max():g}; {dtype} with scale_factor {scale:g} and "
            f"add_offset {offset:g} holds {allowed[0] * scale + offset:g} to {allowed[1] * scale + offset:g}. Type "
            "overwrite=True with a larger scale_factor or dtype."
        )


def _graph(
    lazy: Mapping[str, xr.Variable],
    arrays: Mapping[str, zarr.Array],
    todo: Mapping[str, Sequence[Region]],
    encodings: Mapping[str, Mapping[str, Any]],
    fork: bool,
) -> tuple[dict[Any, Any], list[Any]]:
    """Tasks of the regions to do, culled and fused by Dask, and their keys."""
    layers, keys = [], []
    for name, variable in lazy.items():
        written = dask.array.map_blocks(
            _write,
            variable.data,
            arrays[name],
            ArraySliceDep(variable.data.chunks),
            variable.dims,
            {k: v for k, v in encodings[name].items() if k in PACKING},
            fork,
            name=f"write-{name}-{uuid.uuid4().hex}",  # never the same: a cluster must not take an old result
            meta=np.empty((0,) * variable.ndim, object),
        )
        keys += [(written.name, *index) for index, _ in todo[name]]
        layers.append(written.__dask_graph__())
    return dask.array.optimize(HighLevelGraph.merge(*layers), keys) if keys else {}, keys


def _client() -> Any:
    """The `distributed.Client` in force, None for any other scheduler."""
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    return client if hasattr(client, "scheduler_info") else None


def _compute(graph: dict[Any, Any], keys: list[Any], client: Any, advance: Callable[[Any], None]) -> None:
    """Compute; call ``advance`` with the result of each region as soon as it is written."""
    if not keys:
        return
    if client is None:
        wanted = set(keys)

        def posttask(key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
            if key in wanted:
                advance(result)

        get = dask.base.get_scheduler() or dask.threaded.get
        with Callback(posttask=posttask):
            get(graph, keys)
        return
    from distributed import as_completed

    futures = client.get(graph, keys, sync=False)
    try:
        for future in as_completed(futures, loop=client.loop):
            advance(future.result())
            future.release()
    finally:
        client.cancel(futures)
