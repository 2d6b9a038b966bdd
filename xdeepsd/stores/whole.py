"""Files that are whole or absent: how to write them, and the leftovers of killed writes, our own and Zarr's."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
        # That of a disk that fills up while writing names no file.
        if error.errno is None or error.filename not in (str(temporary), None):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        for left in path.parent.iterdir() if path.parent.is_dir() else ():
            if partial_of(left.name) == path.name:
                discard(left)


def discard(file: Path) -> None:
    """Remove a leftover; one that another process holds open stays where the system does not let go of it (Windows)."""
    with suppress(PermissionError):
        file.unlink(missing_ok=True)


def is_empty(file: Path) -> bool:
    """Whether a file has a name but no bytes, as a power failure may leave one that was not forced to disk."""
    return file.is_file() and not file.stat().st_size


@contextmanager
def alone(path: Path, who: str, argument: str) -> Iterator[None]:
    """Hold the lock of a store, a file beside it; the system releases it even if the process is killed.

    Raises OSError with the reason if nothing can be written, ValueError if another call of ``who`` holds the lock; both
    advise another ``argument``.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        if path.is_dir():
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        why = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise type(error)(
            f"{path} cannot be written: {why} ({error.filename}). Needed: a place that can be written to; type "
            f"another {argument}."
        ) from error
    with locked(lock, f"Another {who} is writing to {path}. Wait for it, or use another {argument}."):
        yield


@contextmanager
def locked(lock: Path, message: str) -> Iterator[None]:
    """Hold a lock file, which stays; ValueError with ``message`` while another call holds it."""
    import filelock

    try:
        with filelock.FileLock(lock, timeout=0):
            yield
    except filelock.Timeout:
        raise ValueError(message) from None


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name ``path`` in an OSError of the system that names no file, as that of a disk that fills up does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None or str(path) in str(error):
            raise
        text = (
            f"{path} could not be written to the end ({error.strerror}). What is done is kept; the same call goes on."
        )
        raise type(error)(error.errno, text) from error


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
            discard(file)
