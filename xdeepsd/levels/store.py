"""The Zarr store of a resolution ladder: a group per level, and which days it holds, from which releases.

The array ``done`` marks the days that are on disk in every level; ``releases`` holds the numbers and the dates (days
since 1970) of their releases, 0 where not known. Zarr replaces a chunk as a whole when it writes one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from xdeepsd.grids import align
from xdeepsd.grids.regrid_weights import Weights, apply
from xdeepsd.levels.memory import ATTRS
from xdeepsd.models.static import CLIMATOLOGY
from xdeepsd.stores.begun import changed_fields
from xdeepsd.stores.remote import is_url, meaning, without_secrets
from xdeepsd.stores.replace import not_ours
from xdeepsd.stores.target import consolidate, is_consolidated
from xdeepsd.stores.whole import is_empty, is_zarr_partial

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_FORMAT = 1
# Precipitation is mostly zeros: shuffled zstd compresses it sixfold, and unpacks it twice as fast as zstd alone.
COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4)
_TIME_ENCODING = {"units": "hours since 1900-01-01", "dtype": "int64", "chunks": (36525,)}


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Turn the errors of Zarr and xarray about a damaged store into a ValueError that names the store."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        known = meaning(error, without_secrets(str(path)))
        if known is not None:
            raise known from error
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def get_array(root: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array called ``name``, such as ``level_0/precipitation``."""
    with reading(_place(root)):
        array = root[name]
    assert isinstance(array, zarr.Array)
    return array


def _place(root: zarr.Group) -> str:
    return str(root.store_path).removeprefix("file://")


def done_days(root: zarr.Group) -> np.ndarray:
    """Bool ``(days,)``, True where a day is on disk in every level."""
    array = get_array(root, "done")
    with reading(_place(root)):
        return np.asarray(array[:])


def forget_empty_chunks(root: zarr.Group, path: PathLike) -> None:
    """What a chunk that has a name but no bytes held, as a power failure may leave it, is no longer done.

    Nor does the climatology of days that may come back in a newer release count. Raises ValueError where the chunk held
    what is written only once.
    """
    computed = root.attrs["climatology_years"] is not None
    lost = set()
    for file in filter(is_empty, Path(path).glob("level_*/*/c/**/*")):
        _, name, _, first, *_ = file.relative_to(path).parts
        if name == "precipitation":
            logger.warning("%s is empty: its days are written again.", file)
            done, days = get_array(root, "done"), get_array(root, "level_0/precipitation").chunks[0]
            with reading(path):
                done[int(first) * days : min((int(first) + 1) * days, done.shape[0])] = False
        elif name == CLIMATOLOGY and computed:
            logger.warning("%s is empty: the mean of the training years is computed again.", file)
        else:
            raise ValueError(
                f"{path} is damaged: {file.relative_to(path)} is empty, as a power failure may leave it. Needed: the "
                "file as it was written. Copy it back, or type another path to build the levels anew."
            )
        lost.add(name)
    if lost and computed:  # 0: it may differ from that which models were trained with
        root.attrs["climatology_days"] = 0 if "precipitation" in lost else None


def held_releases(root: zarr.Group) -> np.ndarray:
    """Releases of the days in the store, as `days.releases` returns them; 0 where not known."""
    found = np.zeros((get_array(root, "done").shape[0], 2), np.int32)
    with reading(_place(root)):
        if "releases" in root:  # older versions of xdeepsd wrote none
            held = np.asarray(get_array(root, "releases")[: len(found)])
            found[: len(held)] = held
    return found


def find_store(path: PathLike, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The store at ``path``; None if there is none yet, or its creation was interrupted."""
    folder = Path(path)
    if is_url(path):
        path = str(path)
    elif not folder.exists() or (folder.is_dir() and all(is_zarr_partial(file.name) for file in folder.iterdir())):
        return None
    try:
        root = zarr.open_group(path, mode=mode, use_consolidated=False)
    except (FileNotFoundError, ValueError, NotADirectoryError):
        root = None
    if root is None and is_url(path):
        return None
    if root is None or root.attrs.get("xdeepsd_levels") != _FORMAT:
        raise ValueError(
            f"{path} exists, but is not a store of levels. Needed: a new path, or a store that build_levels wrote. "
            "Type another path."
        )
    if root.attrs.get("ready"):
        return root
    if is_url(path):  # it was copied there before it was whole
        return None
    arrays: Any = root.attrs.get("arrays", ())
    groups = [file.name for file in folder.iterdir() if re.fullmatch(r"level_\d+", file.name)]
    foreign = [p.relative_to(folder).as_posix() for p in not_ours(folder, (*arrays, "done", "releases"), groups)]
    if foreign:
        raise ValueError(
            f"Creating {path} was interrupted, so it would be created again, but it holds {foreign}, which "
            "build_levels did not write. Needed: no other files inside. Move them, or type another path."
        )
    logger.info("Creating %s was interrupted: it is created again.", path)
    return None


def create(path: PathLike, wanted: list[xr.Dataset], days: int, described: dict[str, Any]) -> zarr.Group:
    """A new store with everything but the precipitation. It is complete only once its attribute ``ready`` says so."""
    arrays = sorted({str(name) for level in wanted for name in level.variables} | {CLIMATOLOGY})
    about = described | {"xdeepsd_levels": _FORMAT, "ready": False, "days_per_chunk": days, "arrays": arrays}
    for part in Path(path).glob("*/"):  # of a call that was killed; `find_store` has looked through them
        shutil.rmtree(part)
    # The group has its attributes from its first moment on: a kill never leaves one that cannot be told as ours.
    try:
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        root.attrs.put(about)
    except FileNotFoundError:
        root = zarr.create_group(path, zarr_format=3, attributes=about)
    later = [CLIMATOLOGY] if described["climatology_years"] else []
    static = dask.compute(*[level.drop_vars("precipitation") for level in wanted])
    for k, (level, fields) in enumerate(zip(wanted, static, strict=True)):
        whole = {name: {"chunks": field.shape} for name, field in fields.data_vars.items()}
        encoding = {"time": _TIME_ENCODING} | whole
        fields.to_zarr(path, group=f"level_{k}", mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        shape = level["precipitation"].shape
        group = root[f"level_{k}"]
        assert isinstance(group, zarr.Group)
        for name, size, chunks, dims in (
            ("precipitation", shape, (days, *shape[1:]), ("time", "lat", "lon")),
            *((name, shape[1:], shape[1:], ("lat", "lon")) for name in later),
        ):
            group.create_array(
                name, shape=size, chunks=chunks, dtype="float32", compressors=(COMPRESSOR,), fill_value=np.nan,
                dimension_names=dims, attributes=dict(level[name].attrs if name in level else ATTRS[name]),
            )  # fmt: skip
    root.create_array("done", shape=(wanted[0].sizes["time"],), chunks=(days,), dtype="bool", fill_value=False)
    fit_releases(root)
    root.attrs["ready"] = True
    consolidate(path)
    return root


def fit_releases(root: zarr.Group) -> None:
    """Extend the array of releases to all days; in a store from an older xdeepsd, create it."""
    done = get_array(root, "done")
    if "releases" in root:
        get_array(root, "releases").resize((done.shape[0], 2))
    else:
        root.create_array("releases", shape=(done.shape[0], 2), chunks=(done.chunks[0], 2), dtype="int32", fill_value=0)


def grow(root: zarr.Group, path: PathLike, time: xr.DataArray, levels: int) -> None:
    """Make room for the days of ``time`` at the end of each level; called again after an interruption, finish that.

    Meanwhile, readers use the old metadata in the root. Where all have room, nothing is touched: what is computed from
    the levels knows its input by the times of its files.
    """
    if not is_consolidated(path):
        consolidate(path)
    elif _has_room(path, time.size, levels):
        return
    for k in range(levels):
        with open_maps(path, k) as held:
            encoding = {name: held["time"].encoding[name] for name in ("units", "calendar", "dtype")}
        encoded = xr.conventions.encode_cf_variable(xr.Variable("time", time.values, encoding=encoding))
        if encoded.attrs["units"] != encoding["units"]:  # xarray takes finer units where it must
            raise ValueError(f"{path} stores days in {encoding['units']}; the new days need {encoded.attrs['units']}.")
        array = get_array(root, f"level_{k}/time")
        array.resize((time.size,))
        if not np.array_equal(array[:], encoded.values):  # an interrupted call may have made room, but no more
            array[:] = encoded.values
        array = get_array(root, f"level_{k}/precipitation")
        array.resize((time.size, *array.shape[1:]))
    get_array(root, "done").resize((time.size,))
    fit_releases(root)
    consolidate(path)


def _has_room(path: PathLike, days: int, levels: int) -> bool:
    """Whether the metadata in the root, which are written last, have so many days everywhere."""
    root = zarr.open_group(path, mode="r")
    names = ["done", "releases", *(f"level_{k}/{name}" for k in range(levels) for name in ("time", "precipitation"))]
    return all(name in root and get_array(root, name).shape[0] == days for name in names)


def open_maps(path: PathLike, level: int) -> xr.Dataset:
    """A level without its precipitation: static fields, mask and days, including those not done.

    Raises ValueError where the user keeps arrays in it that xarray cannot open.
    """
    with reading(path):
        group = zarr.open_group(path, mode="r", use_consolidated=False)[f"level_{level}"]
        assert isinstance(group, zarr.Group)
        names = {name: getattr(array.metadata, "dimension_names", None) for name, array in group.arrays() if array.ndim}
    others = [name for name, dims in names.items() if dims is None]
    if others:
        raise ValueError(
            f"{path} holds the arrays {others} in level_{level}, whose dims have no names, so xarray cannot open the "
            "level. Needed: arrays that build_levels or xarray wrote. Move them to another store."
        )
    with reading(path):
        return xr.open_zarr(
            path, group=f"level_{level}", consolidated=False, chunks=None, drop_variables="precipitation"
        )


def open_done(path: PathLike, root: zarr.Group) -> list[xr.Dataset]:
    """The levels with the days that are done."""
    done = done_days(root)
    count = len(root.attrs["factors"]) + 1  # type: ignore[arg-type]
    # There are no consolidated metadata if a change of attributes was interrupted.
    consolidated = is_consolidated(path)
    levels = [xr.open_zarr(path, group=f"level_{k}", consolidated=consolidated, chunks={}) for k in range(count)]
    finished = np.flatnonzero(done[: min(level.sizes["time"] for level in levels)])
    if finished.size == max(level.sizes["time"] for level in levels):
        return levels
    logger.warning("%s: %d of %d days are done; the others are left out.", path, finished.size, done.size)
    return [level.isel(time=finished) for level in levels]


def check_store(root: zarr.Group, path: PathLike, wanted: list[xr.Dataset], described: dict[str, Any]) -> None:
    """ValueError where the store holds another grid, variable, factors or static fields than those given."""
    new = f"Needed: the same as in the store. Type another path for a new store; {path} is left as it is."
    keys = ("factors", "edges", "variable", "climatology_years", "coarse")
    free = ("climatology_years",) if described["climatology_years"] is None else ()
    different = changed_fields({key: root.attrs.get(key) for key in keys}, {key: described[key] for key in keys}, free)
    if different:
        raise ValueError(f"{path} was begun with something else: {'; '.join(different)}. {new}")
    finest = wanted[-1]
    # Its precipitation may be shorter, where growing was interrupted.
    with reading(path), open_maps(path, len(wanted) - 1) as held:
        for dim in ("lat", "lon"):
            values, old = finest[dim].values, held[dim].values
            if not align.same(values, old, dim):
                raise ValueError(
                    f"{path} holds another grid: {dim} of {old.size} cells from {old[0]:.5f} to {old[-1]:.5f}; now "
                    f"{values.size} cells from {values[0]:.5f} to {values[-1]:.5f} were given. {new}"
                )
        for name in sorted({str(n) for n in finest.data_vars} - {"precipitation", "mask", "land_fraction"}):
            if name not in held:
                raise ValueError(f"{path} holds no {name}, only {sorted(map(str, held.data_vars))}. {new}")
            if not np.allclose(finest[name].values, held[name].values, rtol=0, atol=1e-3, equal_nan=True):
                raise ValueError(f"{path} holds other values of {name}. {new}")


def as_run(days: np.ndarray) -> slice | np.ndarray:
    """Increasing positions, as a slice if they are consecutive."""
    return slice(int(days[0]), int(days[-1]) + 1) if days[-1] - days[0] == len(days) - 1 else days


def write_days(
    path: PathLike,
    days: np.ndarray,
    announced: np.ndarray,
    blocks: Sequence[Weights],
    finest: np.ndarray,
    product: np.ndarray | None = None,
) -> None:
    """Coarsen days of one chunk, write them to all levels, then mark them: days marked done are on disk in every level.

    ``product`` is what the coarsest level holds if that is not coarsened. While a day is rewritten, it does not count
    as done. Nor does a day without any value: it is missing, and may come later.
    """
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    levels = [apply(finest, weights, skipna=True, na_thres=1.0, unmapped_to_nan=True) for weights in blocks]
    levels = [*([] if product is None else [product]), *levels, finest]
    done, place = get_array(root, "done"), as_run(days)
    done.oindex[place] = False
    for k, values in enumerate(levels):
        get_array(root, f"level_{k}/precipitation").oindex[place] = values
    get_array(root, "releases").oindex[place] = announced
    observed = [np.isfinite(values).any(axis=(1, 2)) for values in (levels[0], levels[-1])]
    done.oindex[place] = observed[0] & observed[1]


def how_far(path: PathLike, level: int, days: np.ndarray, given: np.ndarray) -> list[float]:
    """Largest difference of each day from the store, mm day-1: 0 within rounding, infinite if only one has a value."""
    held = get_array(zarr.open_group(path, mode="r", use_consolidated=False), f"level_{level}/precipitation")
    far = []
    for new, old in zip(given, np.asarray(held.oindex[as_run(days)]), strict=True):
        if np.array_equal(new, old, equal_nan=True) or np.allclose(new, old, rtol=1e-5, atol=1e-4, equal_nan=True):
            far.append(0.0)
        else:
            far.append(np.inf if (np.isnan(new) != np.isnan(old)).any() else float(np.nanmax(np.abs(new - old))))
    return far
