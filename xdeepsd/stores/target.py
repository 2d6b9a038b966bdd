"""The Zarr store to write to: open it, begin or resume it, and finish it."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
import zarr.storage
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from xdeepsd.stores.engines import forget_listings, icechunk_session, list_keys
from xdeepsd.stores.layout import BEGUN, COMPLETE, INCOMPLETE, STATUS, differences
from xdeepsd.stores.remote import is_url, local_path, without_secrets
from xdeepsd.stores.replace import CHUNKS, METADATA, check_replaceable
from xdeepsd.stores.sources import place_of, reads
from xdeepsd.stores.whole import clear_zarr_partials, is_zarr_partial

logger = logging.getLogger(__name__)

StoreLike = str | Path | Store

# Attribute of a group that is being laid out: names of what is deleted from it or written to it.
_HALF = "xdeepsd_half"


def open_store(store: StoreLike, storage_options: Mapping[str, Any] | None) -> Store:
    """A Zarr store that writes each chunk whole or not at all, and can be listed."""
    if isinstance(store, str) and is_url(store):
        try:
            opened = zarr.storage.FsspecStore.from_url(store, storage_options=dict(storage_options or {}))
        except ImportError as error:
            raise ImportError(
                f"{store} needs a package that is not installed ({error}). Type pip install s3fs for s3://, gcsfs for "
                "gs://, adlfs for az://."
            ) from error
        forget_listings(opened)
        return opened
    if storage_options:
        raise ValueError(f"storage_options are for URLs; got {store!r}. Leave them out, or type a URL such as s3://.")
    if isinstance(store, str | Path):
        pipeline = zarr.config.get("codec_pipeline.path")
        if not pipeline.startswith("zarr."):
            raise ValueError(
                f"The codec pipeline {pipeline} may write local files in place: a kill would leave half a chunk. "
                "Needed: Zarr's own. Type zarr.config.reset()."
            )
        # Absolute, because workers of a cluster may run in another folder.
        return zarr.storage.LocalStore(Path(local_path(str(store))).expanduser().resolve())
    if not isinstance(store, Store):
        raise TypeError(f"store is a {type(store).__name__}; needed: a path, a URL or a zarr store.")
    if store.read_only:
        raise ValueError(f"{store} is read-only. With Icechunk, type repo.writable_session('main').store.")
    if not (store.supports_deletes and store.supports_listing):
        raise ValueError(
            f"{store} cannot be resumed: it cannot delete or list keys. Type to_zarr('out.zarr') for a folder, and "
            "pack it afterwards."
        )
    forget_listings(store)
    fs = getattr(store, "fs", None)
    if "file" in getattr(getattr(fs, "sync_fs", fs), "protocol", ()):
        raise ValueError(
            f"{store} writes local files in place: a kill would leave half a chunk. Type to_zarr('/path/out.zarr')."
        )
    return store


def name_of(target: Store) -> str:
    """The name of the store in messages: its folder, its URL without credentials, or its string form."""
    if isinstance(target, zarr.storage.LocalStore):
        return str(target.root)
    return without_secrets(place_of(target) or str(target))


@contextmanager
def reading(target: Store, prefix: str) -> Iterator[None]:
    """Turn Zarr's errors about damaged metadata into a ValueError that names the store."""
    where = f"{name_of(target)}/{prefix}".rstrip("/")
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # RuntimeError: a chunk that cannot be unpacked
        if isinstance(error, ValueError) and where in str(error):
            raise
        raise ValueError(
            f"{where} is damaged: {type(error).__name__}: {error}. Nothing is replaced. Move it away, or type another "
            "path."
        ) from error


def check_apart(graphs: Sequence[Any], target: Store, prefix: str) -> None:
    """Raise if the output would replace what it is computed from."""
    found = sorted(set(reads(graphs, target, prefix)))
    if found:
        where = f"{name_of(target)}/{prefix}".rstrip("/")
        raise ValueError(f"The output {where} is or contains the input {found[0]}. Type another path.")


async def _any_key(store: Store, prefix: str) -> bool:
    """True if there is anything other than the temporary files of killed writes."""
    async for key in store.list_prefix(prefix):
        if key.startswith(prefix) and not key.endswith(".partial"):
            return True
    return False


def _holds_anything(store: Store, prefix: str) -> bool:
    """Whether a place without a group is taken; on a disk, by an empty folder or a link, too."""
    if icechunk_session(store) is not None:
        return False  # it holds nothing but Zarr, and does not list where there is nothing
    if isinstance(store, zarr.storage.LocalStore):
        folder = store.root / prefix
        return folder.exists() and (not folder.is_dir() or not all(is_zarr_partial(f.name) for f in folder.iterdir()))
    return sync(_any_key(store, prefix))


def open_group(store: Store, prefix: str) -> zarr.Group | None:
    """The group at ``prefix``; None if there is none."""
    with warnings.catch_warnings():  # while a format 2 group is being laid out, both are there
        warnings.filterwarnings("ignore", "Both zarr.json", UserWarning)
        try:
            return zarr.open_group(store, path=prefix.rstrip("/"), mode="r", use_consolidated=False)
        except FileNotFoundError:
            return None


def open_array(store: Store, path: str) -> zarr.Array:
    """An array to write regions to."""
    # Chunks of nothing but NaN (ocean) must be written too: a chunk counts as done when it exists.
    with zarr.config.set({"array.write_empty_chunks": True}):  # the array keeps it, even through pickle
        return zarr.open_array(store, path=path, mode="r+")


# --- begin, resume, finish ------------------------------------------------------------------------------------------


def begin_or_resume(
    target: Store,
    prefix: str,
    layout: zarr.storage.MemoryStore,
    lazy: Mapping[str, xr.Variable],
    *,
    resume: bool,
    overwrite: bool,
    same_input: bool,
) -> None:
    """Lay out the store, or make sure that it was begun with the same Dataset and options."""
    where = f"{name_of(target)}/{prefix}".rstrip("/")
    for parent in _parents(prefix):
        open_group(target, parent)  # readers come by way of them: an error if one is damaged
    group = open_group(target, prefix)
    if group is None:
        if _holds_anything(target, prefix):
            raise FileExistsError(f"{where} exists and is not a Zarr group. It is left alone: type another path.")
        _begin(target, prefix, layout)
        return
    status = group.attrs.get(STATUS)
    if overwrite or status == BEGUN:  # killed before anything was computed
        names: Any = group.attrs.get(_HALF, []) if status == BEGUN else []
        check_replaceable(target, prefix, where, names, overwrite)
        logger.info("%s is replaced.", where)
        _begin(target, prefix, layout)
        return
    if not resume:
        raise FileExistsError(f"{where} exists. Type resume=True to continue it, or overwrite=True to replace it.")
    if status not in (INCOMPLETE, COMPLETE):
        raise FileExistsError(
            f"{where} exists and was not written by xdeepsd.to_zarr, so it cannot be resumed. Type overwrite=True to "
            "replace it, or another path."
        )
    different = differences(group, zarr.open_group(layout, mode="r"), lazy, same_input)
    if different:
        lines = "\n".join(f"- {name}: {there} in the store, {now} now" for name, (there, now) in different.items())
        hint = (
            " If you know that the input is the same (moved, or read by another version of Dask or xarray), type "
            "same_input=True."
            if set(different) == {"input"}
            else ""
        )
        raise ValueError(
            f"{where} was begun with something else:\n{lines}\nNeeded: the same throughout. Type another path, or "
            f"overwrite=True to begin anew.{hint}"
        )


async def _delete(target: Store, key: str) -> None:
    """Delete a file or folder, metadata last: what is left after a kill can still be recognised as Zarr."""
    local = isinstance(target, zarr.storage.LocalStore)
    # A bucket has no folders, but s3fs says of "pr" that it exists where there is a "pr/zarr.json".
    if await target.exists(key) if local else not await _any_key(target, f"{key}/"):
        await target.delete(key)
        return
    if not CHUNKS.fullmatch(key.rpartition("/")[2]):
        names = [name.strip("/") for name in await list_keys(target.list_dir(key))]
        for name in sorted(names, key=lambda name: name in METADATA):
            await _delete(target, f"{key}/{name}")
    await target.delete_dir(key)


def _begin(target: Store, prefix: str, layout: zarr.storage.MemoryStore) -> None:
    """Clear the place and lay out the store; if killed at any moment, it is left empty or marked ``begun``."""
    zarr_format: Any = zarr.open_group(layout, mode="r").metadata.zarr_format
    root = f"{prefix}zarr.json"
    prototype = default_buffer_prototype()
    parents = {"zarr_format": zarr_format} | ({} if zarr_format == 2 else {"node_type": "group", "attributes": {}})

    async def begin() -> None:
        keys = await list_keys(layout.list())
        there = [name.strip("/") for name in await list_keys(target.list_dir(prefix))]
        half = sorted({*there, *(key.partition("/")[0] for key in keys)})
        mark = {"zarr_format": 3, "node_type": "group", "attributes": {STATUS: BEGUN, _HALF: half}}
        for parent in _parents(prefix)[::-1]:  # one file each
            key = f"{parent}/{'.zgroup' if zarr_format == 2 else 'zarr.json'}".lstrip("/")
            if not await target.exists(key):
                if isinstance(target, zarr.storage.LocalStore):  # of a call that was killed while it wrote this
                    clear_zarr_partials(target.root / parent, [])
                await target.set(key, prototype.buffer.from_bytes(json.dumps(parents).encode()))
        await target.set(root, prototype.buffer.from_bytes(json.dumps(mark).encode()))
        for name in await list_keys(target.list_dir(prefix)):
            key = f"{prefix}{name.strip('/')}"
            if key != root:
                await _delete(target, key)
        for key in sorted(keys, key=lambda k: k == "zarr.json"):  # the group's own file last: now it is laid out
            value = await layout.get(key, prototype)
            assert value is not None
            await target.set(prefix + key, value)
        if "zarr.json" not in keys:  # format 2
            await target.delete(root)

    sync(begin())
    _refresh_parents(target, prefix)


def _refresh_parents(target: Store, prefix: str) -> None:
    """Consolidate the parent groups again if they were consolidated: readers rely on what they list."""
    for path in _parents(prefix):
        group = open_group(target, path)
        if group is not None and is_consolidated(target, path, damaged=True):
            consolidate(target, path, group.metadata.zarr_format)


def _parents(prefix: str) -> list[str]:
    """The paths of the groups above one, the root last: of "a/b/" these are "a" and ""."""
    return ["" if parent == Path() else parent.as_posix() for parent in Path(prefix).parents]


def is_consolidated(store: Store | str | os.PathLike[str], path: str = "", damaged: bool = False) -> bool:
    """Whether a group's consolidated metadata are there; ``damaged``: the answer where they cannot be read."""
    try:
        return zarr.open_group(store, path=path, mode="r").metadata.consolidated_metadata is not None
    except ValueError:  # in format 2 they are a file of their own
        return damaged


def consolidate(store: Store | str | os.PathLike[str], path: str = "", zarr_format: Any = 3) -> None:
    """Collect the metadata of a group and all below it in one file, so that opening reads only that.

    A change of the group's attributes drops them.
    """
    with warnings.catch_warnings():  # "not part of the Zarr format 3 specification": but every reader understands it
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        where = store if isinstance(store, Store) else str(store)
        zarr.consolidate_metadata(where, path=path, zarr_format=zarr_format)


def finish(target: Store, prefix: str, names: Iterable[str]) -> None:
    """Remove what killed writes left behind, mark the group as complete, consolidate the metadata."""
    path = prefix.rstrip("/")
    group = zarr.open_group(target, path=path, mode="r+", use_consolidated=False)
    consolidated = not target.supports_consolidated_metadata or is_consolidated(target, path)
    finished = group.attrs[STATUS] == COMPLETE and consolidated
    if isinstance(target, zarr.storage.LocalStore):
        clear_zarr_partials(target.root / prefix, [] if finished else names)
    if finished:
        return
    group.attrs[STATUS] = COMPLETE
    if target.supports_consolidated_metadata:
        _refresh_parents(target, prefix)
        consolidate(target, path, group.metadata.zarr_format)  # last: this marks the end
