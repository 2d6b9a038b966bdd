"""The Zarr store of `xdeepsd fetch`: knows which days it holds, in which release, and survives any interruption.

It is plain Zarr v3 with one chunk per day. A day's release is written after its map, so a day whose release is not 0
is whole. Zarr replaces a file as a whole when it writes one.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from xdeepsd.prism.names import ELEVATION, GRIDS, RELEASE_ATTRS, VARIABLES, Grid, skeleton, snap

logger = logging.getLogger(__name__)

# A release as the service announces it: its date, and its number from 1 (early) to 8 (stable).
Release = tuple[pd.Timestamp, int]

_EPOCH = pd.Timestamp("1970-01-01")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of the store; the system lets go of it even when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except filelock.Timeout:
        raise ValueError(f"Another xdeepsd fetch writes to {path}. Wait for it, or use another --out.") from None


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.xdeepsd-{what}")


def recover(path: Path) -> None:
    """Put the store back, or take away its copy, where a call was interrupted while it laid the store out anew."""
    if not path.exists() and _beside(path, "old").exists():
        _beside(path, "old").rename(path)
    for what in ("old", "new"):
        shutil.rmtree(_beside(path, what), ignore_errors=True)


def open_store(path: Path, region: str, resolution: str) -> xr.Dataset | None:
    """The store at ``path`` without half-written files, or None; ValueError where it is not ours or does not fit."""
    if not path.exists():
        return None
    try:
        store = xr.open_zarr(path, chunks=None, consolidated=False)
        there = (store.attrs["prism_region"], store.attrs["prism_resolution"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is there and is no store of xdeepsd fetch ({error}). Needed: a new or such a store; type another "
            "--out."
        ) from error
    if there != (region, resolution):
        raise ValueError(
            f"{path} holds region {there[0]} at {there[1]}; asked is {region} at {resolution}. Needed: one region and "
            "resolution in a store; type another --out."
        )
    known, grid = GRIDS.get((region, resolution)), store_grid(store)
    if known is not None and grid != known:
        raise ValueError(
            f"{path} is on another grid: {grid}. Needed: {known}, the grid of {region} at {resolution}. Type another "
            "--out."
        )
    for file in path.rglob("*.partial"):  # half-written when an earlier call was killed
        file.unlink()
    return store


def store_grid(store: xr.Dataset | None) -> Grid | None:
    """The grid of a store, from its coordinates."""
    if store is None:
        return None
    lat, lon = store["lat"].values, store["lon"].values
    steps = (lat[-1] - lat[0]) / (lat.size - 1), (lon[-1] - lon[0]) / (lon.size - 1)
    return snap(lat[0], lon[0], *steps, (lat.size, lon.size), "the store")


def marks(store: xr.Dataset | None, variable: str) -> pd.DataFrame:
    """The days that the store holds, and the ``date`` and ``number`` of their releases."""
    if store is None or variable not in store:
        return pd.DataFrame({"date": [], "number": []}, index=pd.DatetimeIndex([]))
    names = {f"{variable}_release_date": "date", f"{variable}_release": "number"}
    table = store[list(names)].to_dataframe().rename(columns=names)
    return table[table["number"] > 0]


def _days(store: xr.Dataset | None) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(store["time"].values if store is not None and "time" in store else [])


def lay_out(
    path: Path,
    grid: Grid,
    region: str,
    resolution: str,
    variable: str,
    period: pd.DatetimeIndex | None = None,
    elevation: np.ndarray | None = None,
) -> tuple[zarr.Group, pd.DatetimeIndex]:
    """Make the store hold ``variable`` and ``period`` beside all that it holds; the group to write to and its days.

    Where something changes, the whole store is laid out anew beside the old one, with hard links to its maps, and
    takes its place when it is whole: whoever opens the store finds the old or the new one.
    """
    store = open_store(path, region, resolution)
    old_days = _days(store)
    days = old_days if period is None else old_days.union(period)
    if len(days):
        days = pd.date_range(days[0], days[-1])  # gapless
    if store is not None and variable in store and days.equals(old_days):
        return zarr.open_group(path, mode="r+", zarr_format=3), days
    maps = [name for name in VARIABLES if name == variable or (store is not None and name in store)]
    logger.info("laying out %s: %s", path, ", ".join(maps))

    new = skeleton(grid, days)
    new.attrs |= {"prism_region": region, "prism_resolution": resolution}
    for name in maps:
        table = marks(store, name).reindex(days)
        numbers = table["number"].fillna(0).to_numpy().astype(np.int8)
        new[f"{name}_release"] = ("time", numbers, RELEASE_ATTRS | {"long_name": f"release of {name}"})
        dates = table["date"].to_numpy().astype("datetime64[ns]")
        new[f"{name}_release_date"] = ("time", dates, {"long_name": f"date of the release of {name}"})
        new[f"{name}_release_date"].encoding = {
            "units": f"days since {_EPOCH:%Y-%m-%d}",
            "dtype": "int32",
            "_FillValue": -1,
        }
    if elevation is not None:
        new["elevation"] = (("lat", "lon"), elevation, ELEVATION)
    elif store is not None and "elevation" in store:
        new["elevation"] = store["elevation"].load()
    for array in new.variables.values():
        array.encoding["chunks"] = array.shape
    target = _beside(path, "new")
    new.to_zarr(target, mode="w-", zarr_format=3, consolidated=False)
    group = zarr.open_group(target, mode="r+", zarr_format=3)
    for name in maps:
        attributes: Any = VARIABLES[name] | {"ancillary_variables": f"{name}_release {name}_release_date"}
        group.create_array(
            name,
            shape=(len(days), *grid.shape),
            chunks=(1, *grid.shape),
            dtype="float32",
            fill_value=np.nan,  # a day without a chunk reads as missing, not as dry
            dimension_names=("time", "lat", "lon"),
            attributes=attributes,
        )
        for day in marks(store, name).index:
            _link(_chunk(path, name, (day - old_days[0]).days), _chunk(target, name, (day - days[0]).days))
    with warnings.catch_warnings():  # xarray looks for it; Zarr says that it is no part of the specification yet
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(target, zarr_format=3)
    if path.exists():
        path.rename(_beside(path, "old"))
    target.rename(path)
    shutil.rmtree(_beside(path, "old"), ignore_errors=True)
    return zarr.open_group(path, mode="r+", zarr_format=3), days


def _chunk(path: Path, variable: str, index: int) -> Path:
    """The file of one day's map in a Zarr v3 store."""
    return path / variable / "c" / str(index) / "0" / "0"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def write_day(path: Path, group: Any, index: int, variable: str, values: np.ndarray, release: Release) -> None:
    """Write the map, see that it is on disk, then the mark that says so. Each file is replaced as a whole."""
    group[variable][index] = values
    with _chunk(path, variable, index).open("rb") as file:
        os.fsync(file.fileno())
    group[f"{variable}_release_date"][index] = (release[0] - _EPOCH).days
    group[f"{variable}_release"][index] = release[1]
