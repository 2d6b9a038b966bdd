"""The Zarr store to write to: open it, begin or resume it, and finish it; also Icechunk's sessions."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import xarray as xr
import zarr
import zarr.storage
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from xdeepsd.stores.layout import BEGUN, COMPLETE, INCOMPLETE, STATUS, differences
from xdeepsd.stores.remote import is_url, without_secrets
from xdeepsd.stores.sources import place_of, reads
from xdeepsd.stores.whole import clear_zarr_partials, is_zarr_partial

logger = logging.getLogger(__name__)

T = TypeVar("T")
StoreLike = str | Path | Store

_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
_CHUNKS = re.compile(r"c|c?[\d./]+")
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
        _forget_listings(opened)
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
        return zarr.storage.LocalStore(Path(_local(str(store))).expanduser().resolve())
    if not isinstance(store, Store):
        raise TypeError(f"store is a {type(store).__name__}; needed: a path, a URL or a zarr store.")
    if store.read_only:
        raise ValueError(f"{store} is read-only. With Icechunk, type repo.writable_session('main').store.")
    if not (store.supports_deletes and store.supports_listing):
        raise ValueError(
            f"{store} cannot be resumed: it cannot delete or list keys. Type to_zarr('out.zarr') for a folder, and "
            "pack it afterwards."
        )
    _forget_listings(store)
    fs = getattr(store, "fs", None)
    if "file" in getattr(getattr(fs, "sync_fs", fs), "protocol", ()):
        raise ValueError(
            f"{store} writes local files in place: a kill would leave half a chunk. Type to_zarr('/path/out.zarr')."
        )
    return store


def _forget_listings(store: Store) -> None:
    """Drop the listings that fsspec keeps: other processes may have written or deleted chunks since."""
    fs = getattr(store, "fs", None)
    if fs is not None:
        getattr(fs, "sync_fs", fs).invalidate_cache()


def _local(path: str) -> str:
    """The path in a ``file://`` URL; a drive of Windows has no slash before it.

    >>> _local("file:///data/a.zarr"), _local("file:///C:/data/a.zarr"), _local("a.zarr")
    ('/data/a.zarr', 'C:/data/a.zarr', 'a.zarr')
    """
    return re.sub(r"^/(?=[A-Za-z]:[/\\])", "", path.removeprefix("file://")) if path.startswith("file://") else path


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
    except (ValueError, KeyError, TypeError) as error:
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


def _check_replaceable(
    target: Store, prefix: str, where: str, half: Collection[str] = (), overwrite: bool = True
) -> None:
    """Raise FileExistsError if a group holds anything that is not Zarr: the user's files are never deleted.

    ``half``: names of what a killed call had begun to delete or write, whose metadata may be missing. Without
    ``overwrite``, other Zarr nodes may not be replaced either.
    """
    if not isinstance(target, zarr.storage.LocalStore):
        if icechunk_session(target) is None:  # which holds nothing but Zarr
            _check_keys_replaceable(target, prefix, where, half, overwrite)
        return
    for file in (target.root / prefix).iterdir():
        if file.name in _METADATA or is_zarr_partial(file.name):
            continue
        if not overwrite and file.name not in half:
            raise FileExistsError(_not_of_that_call(where, file.name))
        folder = file.is_dir() and not file.is_symlink()
        kind = _node_type(file) if folder else None
        if kind == "group":
            _check_replaceable(target, f"{prefix}{file.name}/", where)
            continue
        known = kind == "array" or (folder and file.name in half)
        foreign = _not_of_an_array(file) if known else [file]
        if foreign:
            raise FileExistsError(_not_zarr(where, foreign[0]))


def _check_keys_replaceable(target: Store, prefix: str, where: str, half: Collection[str], overwrite: bool) -> None:
    """`_check_replaceable` for stores that are not folders, whose keys are listed once."""
    keys = [key.removeprefix(prefix) for key in sync(list_keys(target.list_prefix(prefix)))]
    arrays = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in {"zarr.json", ".zarray"}}
    for key in keys:
        *folders, name = key.split("/")
        if not overwrite and folders and folders[0] not in half:
            raise FileExistsError(_not_of_that_call(where, folders[0]))
        parents = ["/".join(folders[:n]) for n in range(len(folders), 0, -1)]
        array = next((parent for parent in parents if parent in arrays or parent in half), None)
        inside = [] if array is None else key.removeprefix(f"{array}/").split("/")
        if name not in _METADATA and not (inside and all(map(_CHUNKS.fullmatch, inside))):
            raise FileExistsError(_not_zarr(where, key))


def _not_of_that_call(where: str, name: str) -> str:
    return (
        f"{where} was begun by a call that was interrupted, and holds {name}, which that call did not write. Nothing "
        "is replaced. Move it away, or type overwrite=True to replace all the Zarr there."
    )


def _not_zarr(where: str, found: str | Path) -> str:
    return (
        f"{where} also holds something that is not Zarr: {found}. Nothing is replaced. Move it away, or type another "
        "path."
    )


def not_ours(group: Path, arrays: Collection[str], groups: Collection[str] = ()) -> list[Path]:
    """What we did not write in a Zarr group of ours at ``group``.

    Ours are its metadata and the arrays and groups with these names, and in an array its metadata and chunks; a link
    never is. Names decide, because a kill may have left an array without metadata.
    """
    found = []
    for file in group.iterdir():
        if file.is_symlink() or not (file.name in {*arrays, *groups} or _is_metadata(file)):
            found.append(file)
        elif file.is_dir():
            found += not_ours(file, arrays) if file.name in groups else _not_of_an_array(file)
        elif not _is_metadata(file):
            found.append(file)
    return sorted(found)


def _not_of_an_array(array: Path) -> list[Path]:
    """Links and everything with a name that Zarr does not give to a chunk or its folder, anywhere in an array."""

    def ours(file: Path) -> bool:
        metadata = _is_metadata(file) and (file.parent == array or is_zarr_partial(file.name))
        return not file.is_symlink() and (metadata or _CHUNKS.fullmatch(file.name) is not None)

    return [file for file in array.rglob("*") if not ours(file)]


def _is_metadata(file: Path) -> bool:
    return file.is_file() and (file.name in _METADATA or is_zarr_partial(file.name))


def _node_type(folder: Path) -> str | None:
    """ "group" or "array" if the folder is one of Zarr's, of format 2 or 3; otherwise None."""
    for name, kind in ((".zgroup", "group"), (".zarray", "array")):
        if (folder / name).exists():
            return kind
    try:
        return str(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def icechunk_session(store: Store) -> Any:
    """The session of an Icechunk store; None for any other store. This never imports Icechunk."""
    icechunk = sys.modules.get("icechunk")
    return store.session if icechunk is not None and isinstance(store, icechunk.IcechunkStore) else None


def fork(session: Any) -> Any:
    """The store of a fork of an Icechunk session, which can be sent to workers; ValueError if it cannot be forked."""
    import icechunk

    if isinstance(session, icechunk.ForkSession):
        return session.store
    if session.has_uncommitted_changes:
        raise ValueError(
            "The Icechunk session has uncommitted changes, but only a session without any can be forked to the workers "
            "of a cluster. Type session.commit('...') and take a new session, or session.discard_changes()."
        )
    return session.fork().store


def merge(session: Any, target: Any, results: Sequence[Any]) -> None:
    """Merge what the workers wrote into the session, even after an error, so that it can be committed and resumed."""
    fork = target.session
    fork.merge(*results)
    if type(session) is not type(fork):
        session.merge(fork)


async def list_keys(keys: AsyncIterator[T]) -> list[T]:
    """All keys of a listing."""
    return [key async for key in keys]


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
    group = open_group(target, prefix)
    if group is None:
        if _holds_anything(target, prefix):
            raise FileExistsError(f"{where} exists and is not a Zarr group. It is left alone: type another path.")
        _begin(target, prefix, layout)
        return
    status = group.attrs.get(STATUS)
    if overwrite or status == BEGUN:  # killed before anything was computed
        names: Any = group.attrs.get(_HALF, []) if status == BEGUN else []
        _check_replaceable(target, prefix, where, names, overwrite)
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
    if not _CHUNKS.fullmatch(key.rpartition("/")[2]):
        names = [name.strip("/") for name in await list_keys(target.list_dir(key))]
        for name in sorted(names, key=lambda name: name in _METADATA):
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
        for parent in list(Path(prefix).parents)[::-1]:  # the groups above this one, one file each
            name = ".zgroup" if zarr_format == 2 else "zarr.json"
            key = name if parent == Path() else f"{parent.as_posix()}/{name}"
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
    for parent in Path(prefix).parents if prefix else ():
        path = "" if parent == Path() else parent.as_posix()
        try:
            group = zarr.open_group(target, path=path, mode="r")
        except FileNotFoundError:  # a store without a group at its root
            continue
        if group.metadata.consolidated_metadata is not None:
            consolidate(target, path, group.metadata.zarr_format)


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
    group = zarr.open_group(target, path=prefix.rstrip("/"), mode="r+")
    consolidated = not target.supports_consolidated_metadata or group.metadata.consolidated_metadata is not None
    finished = group.attrs[STATUS] == COMPLETE and consolidated
    if isinstance(target, zarr.storage.LocalStore):
        clear_zarr_partials(target.root / prefix, [] if finished else names)
    if finished:
        return
    group.attrs[STATUS] = COMPLETE
    if target.supports_consolidated_metadata:
        _refresh_parents(target, prefix)
        consolidate(target, prefix.rstrip("/"), group.metadata.zarr_format)  # last: this marks the end
