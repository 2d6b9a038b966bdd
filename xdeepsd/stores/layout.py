"""What a Zarr store will hold, before anything is computed: encodings, chunks, metadata; and how two stores differ.

The whole layout is built in an in-memory store. `write` copies it, or compares it with a store to be resumed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
import zarr
import zarr.storage
from zarr.abc.store import Store

from xdeepsd.stores.remote import without_secrets
from xdeepsd.stores.sources import stamp

STATUS, INPUT = "xdeepsd_status", "xdeepsd_input"
BEGUN, INCOMPLETE, COMPLETE = "begun", "incomplete", "complete"
_ATTRIBUTES = {
    "xdeepsd_model": "model",
    "xdeepsd_static": "static fields",
    "xdeepsd_mask": "mask",
    "xdeepsd_options": "options",
    "xdeepsd_correction": "bias correction",
    "xdeepsd_version": "version of xdeepsd",
}
# Attributes that may differ between the first command and the one that resumes it; those of the first are kept.
_FREE = {"history", STATUS, INPUT}
_STORAGE = {"chunks", "shards", "compressors", "filters", "serializer", "fill_value", "chunk_key_encoding"}
PACKING = {"dtype", "scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned"}
_OTHER = {"units", "calendar", "coordinates", "grid_mapping"}


def as_dataset(ds: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """The argument as a Dataset; raises if it is not an xarray object, or is a DataArray without a name."""
    if isinstance(ds, xr.DataArray):
        if ds.name is None:
            raise ValueError("The DataArray has no name. Needed: the variable's name. Type da.rename('precipitation').")
        return ds.to_dataset(promote_attrs=False)
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"to_zarr got a {type(ds).__name__}; needed: an xarray Dataset or DataArray.")
    return ds


def chunk_unread(ds: xr.Dataset) -> xr.Dataset:
    """Chunk variables that xarray opened without chunks and has not read yet, so that they are not read whole."""
    unread = [
        name
        for name, v in ds.variables.items()
        if v.chunks is None and not v._in_memory and v.dtype.kind in "fiub" and v.ndim
    ]
    return ds.assign({name: ds[name].chunk("auto", token=stamp(ds[name].variable)) for name in unread})


def load_small(ds: xr.Dataset) -> xr.Dataset:
    """Load lazy dates, text and single values: their encoding needs all values, and they are small."""
    small = [
        name
        for name, v in ds.variables.items()
        if dask.is_dask_collection(v.data) and (v.ndim == 0 or v.dtype.kind not in "fiub" or v.size == 0)
    ]
    return ds.assign({name: ds[name].compute() for name in small}) if small else ds


def encodings_of(
    ds: xr.Dataset, lazy: Mapping[str, xr.Variable], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Encoding of each variable: the user's first, then what the variable carries, then the Dask chunks."""
    for name, options in given.items():
        if name not in ds.variables:
            raise ValueError(f"encoding names {name!r}; the variables are {sorted(map(str, ds.variables))}.")
        unknown = set(options) - _STORAGE - PACKING - _OTHER
        if unknown:
            known = sorted(_STORAGE | PACKING | _OTHER)
            raise ValueError(f"encoding of {name!r} has {sorted(unknown)}; known keys: {known}.")
    encodings: dict[str, dict[str, Any]] = {}
    for key, variable in ds.variables.items():
        name, carried = str(key), dict(variable.encoding)
        if "preferred_chunks" in carried:  # set by xarray on opening a store: describes that store, not this one
            carried = {k: v for k, v in carried.items() if k not in _STORAGE}
        merged = {**carried, **given.get(name, {})}
        encodings[name] = merged
        if name not in lazy:
            continue
        if merged.get("chunks") is None:
            merged["chunks"] = _dask_chunks(name, variable)
        if merged.get("shards") is True:
            pairs = zip(_dask_chunks(name, variable), merged["chunks"], strict=True)
            merged["shards"] = tuple(math.ceil(size / chunk) * chunk for size, chunk in pairs)
        _check_packing(name, variable, merged)
    return encodings


def _dask_chunks(name: str, variable: xr.Variable) -> tuple[int, ...]:
    """Dask chunks as Zarr chunks: all equal, except that the last may be smaller."""
    for dim, sizes in zip(variable.dims, variable.data.chunks, strict=True):
        if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
            raise ValueError(
                f"The Dask chunks of {name!r} along {dim!r} are {_short(sizes)}; needed: equal ones, except "
                f"that the last may be smaller. Type ds.chunk({dim}={max(sizes)})."
            )
    return tuple(sizes[0] for sizes in variable.data.chunks)


def _check_packing(name: str, variable: xr.Variable, encoding: Mapping[str, Any]) -> None:
    dtype = encoding.get("dtype")
    if dtype is None:
        if "scale_factor" in encoding or "add_offset" in encoding:
            raise ValueError(
                f"{name!r} has a scale_factor or add_offset, but no dtype to pack into. Type encoding={{{name!r}: "
                "{'dtype': 'int16', 'scale_factor': 0.1, '_FillValue': -32768}}."
            )
    elif variable.dtype.kind == "f" and np.dtype(dtype).kind in "iu" and encoding.get("_FillValue") is None:
        raise ValueError(
            f"{name!r} is packed into {np.dtype(dtype)} without a _FillValue: NaN (ocean, missing) would be lost. Type "
            f"encoding={{{name!r}: {{..., '_FillValue': {np.iinfo(dtype).max}}}}}, a value that does not occur."
        )


def lay_out(
    ds: xr.Dataset, lazy: Mapping[str, xr.Variable], encodings: Mapping[str, Mapping[str, Any]], zarr_format: int
) -> zarr.storage.MemoryStore:
    """Everything but the regions, in memory: written first, or compared with a store to be resumed."""
    if zarr_format not in (2, 3):
        raise ValueError(f"zarr_format is {zarr_format!r}; needed: 2 or 3.")
    template = ds.copy()
    for name, encoding in encodings.items():
        variable = template.variables[name]
        if name in lazy:  # as one chunk: building the graph of all chunks would take most of the time here
            zeros = dask.array.zeros(variable.shape, dtype=variable.dtype, chunks=variable.shape)
            template[name] = variable = variable.copy(data=zeros)
            if zarr_format == 3 and encoding.get("_FillValue") is not None:
                # A reader should see a region that is not written yet as missing, not as 0, which would be dry.
                encoding = {"fill_value": encoding["_FillValue"], **encoding}
        template[name].encoding = dict(encoding)
    template.attrs = {**ds.attrs, STATUS: INCOMPLETE, INPUT: _input_identity(ds, lazy)}
    memory = zarr.storage.MemoryStore()
    options: dict[str, Any] = {"compute": False, "consolidated": False, "safe_chunks": False}
    template.to_zarr(memory, zarr_format=zarr_format, **options)
    return memory


def _input_identity(ds: xr.Dataset, lazy: Mapping[str, xr.Variable]) -> str:
    """Where the data comes from, as JSON, so that the attribute also fits into a netCDF file."""
    arrays = {name: v.data.name for name, v in sorted(lazy.items())}
    source = ds.encoding.get("source")
    return json.dumps({"source": None if source is None else without_secrets(str(source)), "arrays": arrays})


def check_aligned(layout: Store, lazy: Mapping[str, xr.Variable]) -> None:
    """Raise unless every Dask chunk holds whole Zarr chunks (whole shards), so that no two tasks write to one."""
    for name, variable in lazy.items():
        array = zarr.open_array(layout, path=name, mode="r")
        what = "chunks" if array.shards is None else "shards"
        for dim, unit, sizes in zip(variable.dims, write_unit(array), variable.data.chunks, strict=True):
            if any(end % unit for end in itertools.accumulate(sizes[:-1])):
                raise ValueError(
                    f"The Dask chunks of {name!r} along {dim!r} are {_short(sizes)}, but the Zarr {what} are {unit}: "
                    f"two tasks would write to one of them. Needed: Dask chunks of a multiple of {unit}. Type ds.chunk("
                    f"{dim}={math.ceil(max(sizes) / unit) * unit}), or encoding={{{name!r}: {{{what!r}: ...}}}}."
                )


def write_unit(array: zarr.Array) -> tuple[int, ...]:
    """Shape of the unit that is written at once: a shard, or a chunk."""
    return array.chunks if array.shards is None else array.shards


def _short(sizes: Sequence[int]) -> str:
    return str(tuple(sizes)) if len(sizes) <= 5 else f"({', '.join(map(str, sizes[:3]))}, ..., {sizes[-1]})"


# --- compare ----------------------------------------------------------------------------------------------------------


def differences(
    there: zarr.Group, now: zarr.Group, lazy: Mapping[str, xr.Variable], same_input: bool
) -> dict[str, tuple[Any, Any]]:
    """What differs, by name: the value the store was begun with, and the one it would be begun with now."""
    found: dict[str, tuple[Any, Any]] = {}

    def compare(name: str, a: Any, b: Any) -> None:
        if a != b and repr(a) != repr(b):  # NaN is not equal to itself
            found.setdefault(name, (a, b))

    _compare_attributes("", there, now, compare)
    arrays_there, arrays_now = dict(there.arrays()), dict(now.arrays())
    compare("variables", sorted(arrays_there), sorted(arrays_now))
    for name in sorted(set(arrays_there) & set(arrays_now)):
        a, b = arrays_there[name], arrays_now[name]
        _compare_attributes(f"{name}: ", a, b, compare)
        for key in ("shape", "dtype", "chunks", "shards", "compressors", "filters", "fill_value"):
            compare(f"{name}: {key}", getattr(a, key), getattr(b, key))
        with_nan = a.dtype.kind in "fc" and b.dtype.kind in "fc"
        if name not in lazy and a.shape == b.shape and not np.array_equal(a[...], b[...], equal_nan=with_nan):
            found[f"{name}: values"] = (_ends(a), _ends(b))
    if not same_input:
        begun, given = (json.loads(str(group.attrs[INPUT])) for group in (there, now))
        if begun["source"] != given["source"] or not found:  # Dask's names also change with any of the above
            was, is_now = (
                f"{x['source'] or 'data'} ({', '.join(f'{k} {v[-12:]}' for k, v in x['arrays'].items())})"
                for x in (begun, given)
            )
            compare("input", was, is_now)
    return found


def _compare_attributes(where: str, there: Any, now: Any, compare: Callable[[str, Any, Any], None]) -> None:
    a, b = dict(there.attrs), dict(now.attrs)
    for key in sorted((set(a) | set(b)) - _FREE):
        name = _ATTRIBUTES.get(key)
        compare(name or f"{where}attribute {key}", a.get(key), b.get(key))


def _ends(array: zarr.Array) -> str:
    values = np.asarray(array[...]).ravel()
    return f"{values[0]} to {values[-1]}" if values.size else "nothing"
