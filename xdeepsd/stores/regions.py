"""Regions: each is a Dask chunk of one variable, made of whole Zarr chunks, encoded and written by one task."""

from __future__ import annotations

import itertools
import math
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dask
import dask.array
import dask.base
import dask.threaded
import numpy as np
import xarray as xr
import zarr
import zarr.storage
from dask.blockwise import optimize_blockwise
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArraySliceDep
from zarr.abc.store import Store
from zarr.core.sync import sync

from xdeepsd.stores.engines import list_keys
from xdeepsd.stores.layout import PACKING, write_unit

Region = tuple[tuple[int, ...], list[str]]  # index of the Dask chunk, keys of the Zarr chunks (shards) in it


def regions_of(array: zarr.Array, chunks: Sequence[Sequence[int]]) -> Iterator[Region]:
    """The regions of an array with these Dask ``chunks``."""
    axes = []
    for sizes, unit in zip(chunks, write_unit(array), strict=True):
        ends = [0, *itertools.accumulate(sizes)]
        axes.append([range(start // unit, math.ceil(end / unit)) for start, end in itertools.pairwise(ends)])
    for index in itertools.product(*(range(len(axis)) for axis in axes)):
        units = itertools.product(*(axis[i] for axis, i in zip(axes, index, strict=True)))
        yield index, [f"{array.path}/{array.metadata.encode_chunk_key(u)}" for u in units]


def unfinished(
    target: Store, arrays: Mapping[str, zarr.Array], regions: Mapping[str, Sequence[Region]]
) -> dict[str, list[Region]]:
    """Regions of each variable that lack a chunk."""
    todo = {}
    for name, array in arrays.items():
        there = set(sync(list_keys(target.list_prefix(f"{array.path}/"))))
        if isinstance(target, zarr.storage.LocalStore):
            # A chunk is never empty, but after a power failure the file system may keep its name without its bytes.
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
    """Encode and write one region; returns the fork of the Icechunk session that holds it, or None."""
    dtype = np.dtype(encoding.get("dtype") or block.dtype)
    if dtype.kind in "iu" and block.dtype.kind == "f":
        _check_fits(block, array.path, dtype, encoding)
    encoded = xr.conventions.encode_cf_variable(xr.Variable(dims, block, encoding=encoding)).values
    if fork:  # a separate copy, so that only this region's changes are sent back
        array = pickle.loads(pickle.dumps(array))
    array[where] = encoded
    return array.store.session if fork else None  # type: ignore[attr-defined]


def _check_fits(block: np.ndarray, name: str, dtype: np.dtype, encoding: Mapping[str, Any]) -> None:
    """Raise if packing would overflow, or turn a value into the fill value that means missing."""
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


def graph_of(
    lazy: Mapping[str, xr.Variable],
    arrays: Mapping[str, zarr.Array],
    todo: Mapping[str, Sequence[Region]],
    encodings: Mapping[str, Mapping[str, Any]],
    fork: bool,
) -> tuple[Mapping[Any, Any], list[Any]]:
    """The tasks of the unfinished regions, culled and fused by Dask, and their keys."""
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
            name=f"write-{name}-{uuid.uuid4().hex}",  # always new: a cluster must not reuse an old result
            meta=np.empty((0,) * variable.ndim, object),
        )
        key = written.name  # looked up once: it takes as long as there are chunks
        keys += [(key, *index) for index, _ in todo[name]]
        layers.append(written.__dask_graph__())
    return _optimized(HighLevelGraph.merge(*layers), keys) if keys else {}, keys


def _optimized(graph: HighLevelGraph, keys: list[Any]) -> Mapping[Any, Any]:
    """The graph of these keys, with one task for each where Dask can fuse that far.

    Where fusing whole layers is enough (reading, downscaling and writing), they stay layers: a formula for all tasks,
    which only the scheduler writes out, hardly larger for a thousand years than for one.
    """
    lean = optimize_blockwise(graph, keys=keys).cull(set(keys))
    if len(lean) <= len(keys) + len(lean.layers):
        return lean
    return dask.array.optimize(graph, keys)


def client_in_force() -> Any:
    """The active `distributed.Client`, or None for any other scheduler."""
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    return client if hasattr(client, "scheduler_info") else None


def compute(graph: Mapping[Any, Any], keys: list[Any], client: Any, advance: Callable[[Any], None]) -> None:
    """Compute the graph; call ``advance`` with the result of each region as soon as it is written."""
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
