"""The Zarr store of `xdeepsd fetch`: records which days it holds, in which release, and survives any interruption.

It is plain Zarr v3 on a daily axis from 1981-01-01, with one chunk per day; a day without a chunk reads as missing.
Zarr replaces each file as a whole, and things are written in an order that makes it safe to be killed at any moment:

* A day's release is written after its map, so a day whose release is not 0 is whole.
* Readers use the consolidated metadata, which one file at the root holds for all arrays. It is written last, so a
  longer axis or a new variable becomes visible only when all of it is there.

Anything else in the store is the user's and is never written to.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from xdeepsd.prism.names import (
    ELEVATION,
    FIRST_DAY,
    GLOBAL_ATTRS,
    GRIDS,
    LAT_ATTRS,
    LON_ATTRS,
    RELEASE_ATTRS,
    TIME_ATTRS,
    VARIABLES,
    PrismGrid,
    snap,
)
from xdeepsd.prism.raster import reading
from xdeepsd.stores.whole import clear_zarr_partials, is_empty, is_zarr_partial

logger = logging.getLogger(__name__)

# A release as the service announces it: its date, and its number from 1 (early) to 8 (stable).
Release = tuple[pd.Timestamp, int]

_EPOCH = pd.Timestamp("1970-01-01")
# Ninety years in one chunk: of the arrays along time, only the maps have more than one.
_SPAN = 2**15


def _arrays(variable: str) -> dict[str, dict[str, Any]]:
    """The arrays of a variable, in the order of creation, with the attributes that identify them as fetch's own."""
    release = f"{variable}_release"
    return {
        release: RELEASE_ATTRS | {"valid_range": [0, 8], "long_name": f"release of {variable}"},
        f"{release}_date": {
            "long_name": f"date of the release of {variable}",
            "units": f"days since {_EPOCH:%Y-%m-%d}",
            "calendar": "proleptic_gregorian",
            "_FillValue": -1,
        },
        variable: VARIABLES[variable] | {"ancillary_variables": f"{release} {release}_date"},
    }


_HOURS = {"units": f"hours since {FIRST_DAY:%Y-%m-%d}", "calendar": "standard"}
_OWN: dict[str, dict[str, Any]] = {
    "lat": LAT_ATTRS,
    "lon": LON_ATTRS,
    "time": TIME_ATTRS | _HOURS,
    "time_bnds": _HOURS,
    "elevation": ELEVATION,
}
for _variable in VARIABLES:
    _OWN |= _arrays(_variable)


def open_store(path: Path, region: str, resolution: str) -> Any:
    """The store at ``path`` as readers see it, or None; ValueError if it is not ours or does not fit."""
    if not path.exists() or (path.is_dir() and all(is_zarr_partial(file.name) for file in path.iterdir())):
        return None
    advice = "Needed: a new path, or a store that fetch wrote; type another out."
    with reading(f"{path} exists, but is not a store of xdeepsd fetch", advice):
        store = zarr.open_group(path, mode="r", zarr_format=3)
        there = (store.attrs["prism_region"], store.attrs["prism_resolution"])
    if there != (region, resolution):
        raise ValueError(
            f"{path} holds region {there[0]} at {there[1]}, not {region} at {resolution}. Needed: one region and "
            "resolution per store; type another out."
        )
    for name in _OWN.keys() - VARIABLES.keys():  # a day whose map is empty is fetched again, see `marks`
        for file in filter(is_empty, (path / name / "c").rglob("*")):
            raise ValueError(
                f"{path} is damaged: {file.relative_to(path)} is empty, as a power failure may leave it. Needed: the "
                "file as it was written. Copy it back, or type another out."
            )
    known, grid = GRIDS.get((region, resolution)), store_grid(store)
    if known is not None and grid not in (None, known):
        raise ValueError(
            f"{path} is on another grid: {grid}. Needed: {known}, the grid of {region} at {resolution}. Type another "
            "out."
        )
    return store


def store_grid(store: Any) -> PrismGrid | None:
    """The grid of a store, from its coordinates; None if it has none yet."""
    if store is None or "lat" not in store:
        return None
    with reading(f"{store.store.root} is damaged: its grid cannot be read"):
        lat, lon = store["lat"][:], store["lon"][:]
        lat_step, lon_step = (float(x[-1] - x[0]) / (x.size - 1) for x in (lat, lon))
    return snap(lat[0], lon[0], lat_step, lon_step, (lat.size, lon.size), "the store")


def _first_day(store: Any) -> pd.Timestamp:
    """The first day of the axis: 1981-01-01, or a later day in stores of early versions of xdeepsd."""
    if store is None or "time" not in store:
        return FIRST_DAY
    return FIRST_DAY + pd.Timedelta(hours=int(store["time"][0]))


def marks(store: Any, variable: str) -> dict[pd.Timestamp, Release]:
    """The days that the store holds, and their releases; not those whose map has a name but no bytes."""
    if store is None or f"{variable}_release" not in store:
        return {}
    with reading(f"{store.store.root} is damaged: the releases of {variable} cannot be read"):
        first = _first_day(store)
        numbers, dates = store[f"{variable}_release"][:], store[f"{variable}_release_date"][:]
        return {
            first + pd.Timedelta(days=int(i)): (_EPOCH + pd.Timedelta(days=int(dates[i])), int(numbers[i]))
            for i in np.flatnonzero(numbers > 0)
            if not is_empty(Path(store.store.root) / variable / "c" / str(i) / "0" / "0")
        }


def check_room(path: Path, store: Any, variable: str, days: Sequence[pd.Timestamp] = ()) -> None:
    """ValueError if arrays in the store that are not fetch's own leave no room for these days of a variable."""
    if store is None:
        return
    first = _first_day(store)
    if days and days[0] < first:
        raise ValueError(
            f"{path} was created by an early version of xdeepsd: it starts on {first:%Y-%m-%d}, later than "
            f"{days[0]:%Y-%m-%d}, and grows only at its end. Needed: days from its first on; for earlier ones type "
            "another out."
        )
    _, others = _sorted(path, zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False))
    taken = {"elevation"} if variable == "elevation" else {"time", "time_bnds", *_arrays(variable)}
    taken &= others.keys()
    if taken:
        raise ValueError(
            f"{path} holds {', '.join(sorted(taken))}, which xdeepsd fetch did not write. It is left alone: type "
            "another out."
        )
    along = [name for name, array in others.items() if "time" in (array.metadata.dimension_names or ())]
    if along and days and "time" in store and (days[-1] - first).days >= store["time"].shape[0]:
        raise ValueError(
            f"{path} holds {', '.join(along)} along time, which xdeepsd fetch did not write: it would no longer fit "
            f"when the axis grows to {days[-1]:%Y-%m-%d}. Needed: only arrays of fetch on that axis. Move it to a "
            "group of the store or to another store, or type another out."
        )


def _sorted(path: Path, group: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays at the root that fetch made, recognized by the attributes it gives them, and all other arrays."""
    with _walking(path):
        arrays = dict(group.arrays())
        own = {
            name: array
            for name, array in arrays.items()
            if name in _OWN and all(array.attrs.get(key) == value for key, value in _OWN[name].items())
        }
    for name in own.keys() & VARIABLES:
        # fetch makes it after its releases, and with one chunk per day.
        if not _arrays(name).keys() <= own.keys() or own[name].chunks != (1, *own[name].shape[1:]):
            del own[name]
    return own, {name: array for name, array in arrays.items() if name not in own}


def make_room(
    path: Path,
    grid: PrismGrid,
    region: str,
    resolution: str,
    variable: str,
    last: pd.Timestamp | None = None,
    elevation: np.ndarray | None = None,
) -> Any:
    """Make the store hold ``variable`` on an axis that reaches ``last``; returns the group to write to.

    Nothing is removed or replaced, and whatever an earlier, killed call left unfinished is completed.
    """
    attributes: Any = GLOBAL_ATTRS | {"prism_region": region, "prism_resolution": resolution}
    group: Any = zarr.open_group(path, mode="a", zarr_format=3, use_consolidated=False, attributes=attributes)
    seen: Any = zarr.open_group(path, mode="r", zarr_format=3)
    if seen.metadata.consolidated_metadata is None:
        _publish(path)  # a new store shows no array until they are whole
        seen = zarr.open_group(path, mode="r", zarr_format=3)
    own, _ = _sorted(path, group)
    first = _first_day(seen)
    lengths = [array.shape[0] for array in own.values() if array.metadata.dimension_names[0] == "time"]
    length = max([*lengths, 0 if last is None else (last - first).days + 1])
    if variable not in seen or ("time" in seen and seen["time"].shape[0] < length):
        logger.info("laying out %s: %s, %d days from %s", path, variable, length, f"{first:%Y-%m-%d}")
        _array(group, "lat", ("lat",), (grid.shape[0],), np.float64)[:] = grid.lat
        _array(group, "lon", ("lon",), (grid.shape[1],), np.float64)[:] = grid.lon
        if length:
            hours = 24 * ((first - FIRST_DAY).days + np.arange(length))
            _array(group, "time", ("time",), (length,), np.int64)[:] = hours
            bounds = np.stack([hours - 12, hours + 12], axis=1)
            _array(group, "time_bnds", ("time", "bnds"), (length, 2), np.int64)[:] = bounds
        for name in VARIABLES:
            if name == variable or own.keys() & _arrays(name):
                release, date, maps = _arrays(name)
                _array(group, release, ("time",), (length,), np.int8)
                _array(group, date, ("time",), (length,), np.int32, -1)
                _array(group, maps, ("time", "lat", "lon"), (length, *grid.shape), np.float32, np.nan)
        if elevation is not None:
            array = _array(group, "elevation", ("lat", "lon"), grid.shape, np.float32, np.nan)
            if not array.nchunks_initialized:
                array[...] = elevation
        _publish(path)
    clear_zarr_partials(path, _sorted(path, group)[0])
    return group


def _array(group: Any, name: str, dims: Sequence[str], shape: tuple[int, ...], dtype: Any, fill: float = 0) -> Any:
    """The array of this name, created if it does not exist and lengthened if it is shorter."""
    if name not in group:
        chunks = (1 if len(shape) == 3 else _SPAN, *shape[1:]) if dims[0] == "time" else shape
        return group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, dimension_names=dims, attributes=_OWN[name]
        )
    array = group[name]
    before = array.shape[0]
    if before < shape[0]:
        array.resize(shape)
        if array.ndim == 1 and array.fill_value != fill:  # in stores of early versions of xdeepsd
            array[before:] = fill
    return array


def _publish(path: Path) -> None:
    """Make everything visible to readers: the arrays, and the user's own groups."""
    with _walking(path):
        zarr.consolidate_metadata(path, zarr_format=3)


@contextmanager
def _walking(path: Path) -> Iterator[None]:
    """Silence Zarr's warnings about folders that are not Zarr and about consolidated metadata, not yet in its spec."""
    with warnings.catch_warnings(), reading(f"{path} is damaged: its content cannot be read"):
        warnings.simplefilter("ignore", UserWarning)
        yield


def write_day(path: Path, group: Any, day: pd.Timestamp, variable: str, values: np.ndarray, release: Release) -> None:
    """Write the map, make sure it is on disk, then write its release as the mark. Each file is replaced as a whole."""
    index = (day - _first_day(group)).days
    group[variable][index] = values
    chunk = path / variable / "c" / str(index) / "0" / "0"
    with chunk.open("r+b") as file:  # Windows forces to disk only what may be written
        os.fsync(file.fileno())
    group[f"{variable}_release_date"][index] = (release[0] - _EPOCH).days
    group[f"{variable}_release"][index] = release[1]
