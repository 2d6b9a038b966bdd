"""Which files and Zarr stores lazy values are read from: the paths in everything a graph would send to a worker."""

from __future__ import annotations

import copyreg
import io
import os
import types
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import cloudpickle
from dask.base import tokenize
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore, StorePath

_LONGEST = 4096  # characters in a path
# Of obstore's stores: the scheme of their URLs, as fsspec writes it, and what their bucket is called.
_BUCKETS = {"S3Store": ("s3", "bucket"), "GCSStore": ("gs", "bucket"), "AzureStore": ("abfs", "container_name")}


class _Search(cloudpickle.Pickler):
    """Visit everything that an object refers to, as pickling does; collect stores and strings, write nothing."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=5, buffer_callback=lambda _: None)  # no copies of arrays
        self.stores: list[StorePath] = []
        self.texts: set[str] = set()

    def persistent_id(self, obj: Any) -> str | None:
        """Record a store, string or path, without looking inside it."""
        if isinstance(obj, StorePath):
            self.stores.append(obj)
        elif isinstance(obj, str | PurePath):
            self.texts.add(str(obj))
        else:
            return None
        return "seen"

    def reducer_override(self, obj: Any) -> Any:
        """Skip objects that cannot be pickled (a lock, an open file)."""
        reduced = super().reducer_override(obj)
        named = isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType)  # pickled by name
        if reduced is NotImplemented and not named and type(obj) not in copyreg.dispatch_table:
            try:
                return obj.__reduce_ex__(5)
            except Exception:  # a class may raise any exception here
                return object, ()
        return reduced


def _search(values: Any) -> _Search:
    search = _Search()
    search.dump(values)
    return search


def _file(text: str) -> Path | None:
    """A path on this machine, with links resolved; None for a string that cannot be a path."""
    text = text.removeprefix("file://")
    if not text or len(text) > _LONGEST or "\0" in text or "\n" in text or "://" in text:
        return None
    return Path(os.path.realpath(text))


def place_of(store: Store, path: str = "") -> str | None:
    """The URL of a place in a store, the same for all libraries that reach it; None if that is not known."""
    if isinstance(store, LocalStore):
        return f"file://{os.path.realpath(Path(store.root) / path)}"
    if isinstance(store, FsspecStore):
        root = getattr(store.fs, "sync_fs", store.fs).unstrip_protocol(store.path)
    elif isinstance(store, ObjectStore) and type(store.store).__name__ in _BUCKETS:
        scheme, bucket = _BUCKETS[type(store.store).__name__]
        root = f"{scheme}://{store.store.config[bucket]}/{store.store.prefix or ''}"
    elif isinstance(store, ObjectStore) and type(store.store).__name__ == "LocalStore":
        root = f"file://{os.path.realpath(store.store.prefix or '/')}"
    else:
        return None
    return "/".join(
        part.strip("/") if i else part.rstrip("/") for i, part in enumerate((root, path)) if part.strip("/")
    )


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


def _same_store(a: Store, b: Store) -> bool:
    if type(a) is not type(b):
        return False
    try:
        return bool(a.with_read_only(True) == b.with_read_only(True))
    except Exception:  # stores that cannot be opened read-only
        return a == b


def reads(values: Any, target: Store, prefix: str) -> Iterator[str]:
    """Names of the sources of ``values`` that lie in the group ``prefix`` of the store ``target``, or contain it.

    ``values`` is anything that refers to lazy arrays: a Dask graph, a variable. A path is found even if it is only an
    argument of some function. Only names are read, no data.
    """
    search = _search(values)
    place = Path(os.path.realpath(target.root)) / prefix if isinstance(target, LocalStore) else None
    for source in search.stores:
        there, here = place_of(source.store, source.path), place_of(target, prefix)
        if there is not None and here is not None:
            if _overlap(there, here):
                yield there.removeprefix("file://")
        elif _same_store(source.store, target) and _overlap(f"/{source.path}".rstrip("/"), f"/{prefix}".rstrip("/")):
            yield str(source)
    for text in search.texts if place is not None else ():
        file = _file(text)
        if file is not None and (file == place or place in file.parents) and file.exists():
            yield str(file)


def stamp(values: Any) -> str:
    """A token that changes with the paths that ``values`` are read from and with their modification times."""
    search = _search(values)
    local = {str(Path(s.store.root) / s.path) for s in search.stores if isinstance(s.store, LocalStore)}
    remote = {str(s) for s in search.stores if not isinstance(s.store, LocalStore)}
    paths = {t for t in search.texts if len(t) < _LONGEST and (os.sep in t or (os.altsep or os.sep) in t)}
    files = sorted(local | {t for t in paths if Path(t).is_file()})
    return str(tokenize(files, sorted(remote), [Path(f).stat().st_mtime_ns for f in files if Path(f).exists()]))
