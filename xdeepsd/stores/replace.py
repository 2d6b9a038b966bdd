"""What may be replaced in a store: Zarr's own files, and of those only what was meant; nothing else of the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

import zarr.storage
from zarr.abc.store import Store
from zarr.core.sync import sync

from xdeepsd.stores.engines import icechunk_session, list_keys
from xdeepsd.stores.whole import is_zarr_partial

METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
CHUNKS = re.compile(r"c|c?[\d./]+")


def check_replaceable(
    target: Store, prefix: str, where: str, half: Collection[str] = (), overwrite: bool = True
) -> None:
    """Raise FileExistsError if a group holds anything that is not Zarr: the user's files are never deleted.

    ``half``: names of what a killed call had begun to delete or write, whose metadata may be missing. Without
    ``overwrite``, other Zarr nodes may not be replaced either.
    """
    if not isinstance(target, zarr.storage.LocalStore):
        if icechunk_session(target) is None:  # which holds nothing but Zarr
            _check_keys(target, prefix, where, half, overwrite)
        return
    for file in (target.root / prefix).iterdir():
        if file.name in METADATA or is_zarr_partial(file.name):
            continue
        if not overwrite and file.name not in half:
            raise FileExistsError(_not_of_that_call(where, file.name))
        folder = file.is_dir() and not file.is_symlink()
        kind = _node_type(file) if folder else None
        if kind == "group":
            check_replaceable(target, f"{prefix}{file.name}/", where)
            continue
        known = kind == "array" or (folder and file.name in half)
        foreign = _not_of_an_array(file) if known else [file]
        if foreign:
            raise FileExistsError(_not_zarr(where, foreign[0]))


def _check_keys(target: Store, prefix: str, where: str, half: Collection[str], overwrite: bool) -> None:
    """`check_replaceable` for stores that are not folders, whose keys are listed once."""
    keys = [key.removeprefix(prefix) for key in sync(list_keys(target.list_prefix(prefix)))]
    arrays = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in {"zarr.json", ".zarray"}}
    for key in keys:
        *folders, name = key.split("/")
        if not overwrite and folders and folders[0] not in half:
            raise FileExistsError(_not_of_that_call(where, folders[0]))
        parents = ["/".join(folders[:n]) for n in range(len(folders), 0, -1)]
        array = next((parent for parent in parents if parent in arrays or parent in half), None)
        inside = [] if array is None else key.removeprefix(f"{array}/").split("/")
        if name not in METADATA and not (inside and all(map(CHUNKS.fullmatch, inside))):
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
        return not file.is_symlink() and (metadata or CHUNKS.fullmatch(file.name) is not None)

    return [file for file in array.rglob("*") if not ours(file)]


def _is_metadata(file: Path) -> bool:
    return file.is_file() and (file.name in METADATA or is_zarr_partial(file.name))


def _node_type(folder: Path) -> str | None:
    """ "group" or "array" if the folder is one of Zarr's, of format 2 or 3; otherwise None."""
    for name, kind in ((".zgroup", "group"), (".zarray", "array")):
        if (folder / name).exists():
            return kind
    try:
        return str(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
