"""Files that are whole or absent: how to write them, and the leftovers of killed writes, our own and Zarr's."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

_PARTIAL = r"\.[0-9a-f]{32}\.partial"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk and rename it: there is never half a file at ``path``.

    Leftovers of killed calls for the same ``path`` are removed. Raises OSError, naming ``path``, if it cannot be
    written, and FileExistsError if it is a link, which the new file would replace.
    """
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link. It is left alone: remove it, or type another path.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        for left in path.parent.iterdir() if path.parent.is_dir() else ():
            if partial_of(left.name) == path.name:
                left.unlink(missing_ok=True)


def partial_of(file_name: str) -> str | None:
    """The name of the file that ``file_name`` is to become, if it is one of our temporary names; otherwise None."""
    found = re.fullmatch(rf"\.(.+){_PARTIAL}", file_name)
    return found and found[1]


def is_zarr_partial(file_name: str) -> bool:
    """Whether Zarr's local store, if killed while writing, may have left a file of this name.

    >>> is_zarr_partial(f"zarr.{32 * '0'}.partial"), is_zarr_partial("notes.partial")
    (True, False)
    """
    return re.fullmatch(rf".+{_PARTIAL}", file_name) is not None  # what it calls a file before renaming it


def clear_zarr_partials(group: Path, arrays: Iterable[str]) -> None:
    """Remove what killed writes left in the folder of a Zarr group and in these of its arrays, and nothing else."""
    for file in (*group.glob("*.partial"), *(file for name in arrays for file in (group / name).rglob("*.partial"))):
        if is_zarr_partial(file.name):
            file.unlink(missing_ok=True)
