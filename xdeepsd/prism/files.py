"""Open PRISM files of every format, as they are on disk, as one lazy Dataset."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from os import PathLike
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from xdeepsd.prism.names import ELEVATION, RELEASE_ATTRS, VARIABLES, PrismGrid, Source, days_text, parse_name, skeleton
from xdeepsd.prism.raster import RASTERS, netcdf_sources, raster_grid, read_map, reading, zip_sources

logger = logging.getLogger(__name__)

_ADVICE = "Leave it out of paths; fetch it again if it is broken."


def find_sources(paths: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Source]:
    """Every map in files, folders (searched recursively) and glob patterns, in the order of their names.

    Text and header files beside rasters are skipped. A raster or zip that is not PRISM's is skipped in a folder (with a
    warning), but is an error if it is given by name. Raises ValueError listing every bad file.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    files: dict[Path, bool] = {}  # and whether the file was given by name
    for item in map(str, given):
        path = Path(item).expanduser()
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in RASTERS | {".zip"} and file.is_file():
                    files.setdefault(file.resolve(), False)
        elif path.is_file():
            files[path.resolve()] = True
        else:
            found = sorted(Path(name) for name in glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
            if not found:
                raise FileNotFoundError(
                    f"No file or folder {item}. Needed: PRISM files, a folder of them or a pattern."
                )
            files.update({file.resolve(): False for file in found if file.suffix.lower() in RASTERS | {".zip"}})

    sources: list[Source] = []
    problems: list[str] = []
    for file, named in files.items():
        try:
            if file.suffix.lower() == ".zip":
                found_here = zip_sources(file)
            elif (source := parse_name(file)) is not None:
                found_here = [source]
            else:
                found_here = netcdf_sources(file) if file.suffix.lower() == ".nc" else []
        except ValueError as error:
            problems.append(f"{error} {_ADVICE}")
            continue
        if not found_here and named:
            problems.append(
                f"Neither {file} nor anything in it has a PRISM name. Needed: names such as "
                "prism_ppt_us_25m_20251103.tif or PRISM_ppt_stable_4kmD2_20110101_bil.bil."
            )
        elif not found_here:
            logger.warning("%s is skipped: neither it nor anything in it has a PRISM name", file)
        sources += found_here
    _raise_all(problems)
    if not sources:
        raise ValueError(f"No PRISM grid in {', '.join(map(str, given))}. Needed: zips, .tif, .bil, .asc or .nc.")
    return sources


def _raise_all(problems: list[str]) -> None:
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError("\n".join(problems[:20]) + more)


def open_prism(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, allow_missing: bool = False
) -> xr.Dataset:
    """Open PRISM files as they are on disk, lazily, with one task per map.

    Zips (of BIL, ASCII grid, GeoTIFF or NetCDF, with one or several maps) are read in place; so are unpacked BIL,
    ASCII, GeoTIFF and NetCDF files, in any mixture. A NetCDF file of many days needs PRISM's variable names and a time
    axis.

    Parameters
    ----------
    paths : path, folder, glob pattern, or several of them
        Folders are searched recursively. Or a store of `xdeepsd fetch`, which gives the days that it holds.
    allow_missing : bool
        Continue when days between the first and the last are missing. With one variable these days are not in the
        result; with several, a variable is NaN, and its release 0, on days that it lacks but another has.

    Returns
    -------
    xarray.Dataset
        Each variable (``ppt`` in mm day-1; ``tmin``, ``tmax``, ``tmean``, ``tdmean`` in degC; ``vpdmin``, ``vpdmax``
        in hPa) is ``(time, lat, lon)``, float32, lazy, one chunk per day; NaN is nodata (ocean), whatever number the
        file uses for it. ``lat`` (descending) and ``lon`` are cell centres, exact fractions of a degree to the last
        bit. ``time`` is the date; ``time_bnds`` the 24 hours that end at 12 UTC on it. ``ppt_release`` ``(time)`` is 1
        (early) to 8 (stable), 0 if not known. ``elevation`` ``(lat, lon)``, m, if a file of it is given.

    Raises
    ------
    ValueError
        For normals, monthly grids, broken files and zips (all are listed), grids that differ, a day on which two files
        of the same release have different data, and missing days. If two files have the same day, the later release
        is taken; no other files are read at this point.

    Examples
    --------
    >>> from pathlib import Path
    >>> import xdeepsd
    >>> header = "ncols 2\\nnrows 1\\nxllcorner -120.0208333\\nyllcorner 43.9791667\\ncellsize 0.04166667\\n"
    >>> text = header + "NODATA_value -9999\\n1.5 -9999\\n"
    >>> _ = Path("PRISM_ppt_stable_4kmD2_20110101_asc.asc").write_text(text)
    >>> xdeepsd.open_prism("*.asc")["ppt"].values
    array([[[1.5, nan]]], dtype=float32)
    """
    if isinstance(paths, str | PathLike) and (Path(paths) / "zarr.json").is_file():
        return _open_store(Path(paths), allow_missing)
    by_map, grid = _on_one_grid(find_sources(paths))
    with ThreadPoolExecutor() as pool:
        chosen = dict(zip(by_map, pool.map(lambda same: _most_final(same, grid), by_map.values()), strict=True))
    days = pd.DatetimeIndex(sorted({day for _, day in chosen if day is not None}))
    variables = [name for name in VARIABLES if any(name == variable for variable, _ in chosen)]
    held = {name: pd.DatetimeIndex([day for day in days if (name, day) in chosen]) for name in variables}
    if not allow_missing:
        _refuse_gaps(held)

    ds = skeleton(grid, days)
    for name in variables:
        maps = [chosen.get((name, day)) for day in days]
        attrs = VARIABLES[name] | {"ancillary_variables": f"{name}_release"}
        ds[name] = (("time", "lat", "lon"), _lazy(maps, grid), attrs)
        releases = np.array([item.release if item else 0 for item in maps], dtype=np.int8)
        ds[f"{name}_release"] = ("time", releases, RELEASE_ATTRS | {"long_name": f"release of {name}"})
    if ("elevation", None) in chosen:
        ds["elevation"] = (("lat", "lon"), _lazy([chosen["elevation", None]], grid)[0], ELEVATION)
    return ds


def _on_one_grid(sources: list[Source]) -> tuple[dict[tuple[str, pd.Timestamp | None], list[Source]], PrismGrid]:
    """The sources of each variable and day, and their common grid; ValueError for bad files or more than one grid."""
    # Opening a header takes about a millisecond, and GDAL does it without holding the interpreter lock.
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(_grid_or_error, sources))
    _raise_all([str(item) for item in opened if isinstance(item, ValueError)])
    grids = [item for item in opened if not isinstance(item, ValueError)]
    grid, first = grids[0]
    _raise_all(
        [
            f"{source} is on another grid: {other}. Needed: {grid}, as in {first}. Open them separately."
            for other, source in grids
            if other != grid
        ]
    )
    by_map: dict[tuple[str, pd.Timestamp | None], list[Source]] = defaultdict(list)
    for _, source in grids:
        by_map[source.variable, source.day].append(source)
    return by_map, grid


def _open_store(path: Path, allow_missing: bool) -> xr.Dataset:
    """The days that a store of `xdeepsd fetch` holds; its axis also has days that were not fetched."""
    with reading(f"{path} cannot be read as a store of xdeepsd fetch"):
        ds = xr.open_zarr(path)
        variables = [name for name in VARIABLES if f"{name}_release" in ds]
        there = {name: ds[f"{name}_release"].values > 0 for name in variables}
        days = pd.DatetimeIndex(ds["time"].values if variables else [])
    if not variables and "elevation" not in ds:
        raise ValueError(f"{path} is not a store of xdeepsd fetch: no variable has a release. Use xr.open_zarr.")
    if not variables:
        return ds
    if not allow_missing:
        _refuse_gaps({name: days[mine] for name, mine in there.items() if mine.any()})
    return ds.isel(time=np.flatnonzero(np.any(list(there.values()), axis=0)))


def _refuse_gaps(held: dict[str, pd.DatetimeIndex]) -> None:
    """ValueError if a variable lacks days between the first and the last day of all variables."""
    days = pd.DatetimeIndex([]).append(list(held.values()))
    if len(days) == 0:
        return
    full = pd.date_range(days.min(), days.max())
    gaps = {name: full.difference(mine) for name, mine in held.items()}
    _raise_all(
        [
            f"{name} is missing on {len(gap)} of the {len(full)} days from {full[0]:%Y-%m-%d} to {full[-1]:%Y-%m-%d}: "
            f"{days_text(gap)}. Needed: every day. Fetch them, or go on with allow_missing=True."
            for name, gap in gaps.items()
            if len(gap)
        ]
    )


def _grid_or_error(source: Source) -> tuple[PrismGrid, Source] | ValueError:
    try:
        return raster_grid(source)
    except ValueError as error:
        return ValueError(f"{error} {_ADVICE}")


def _most_final(sources: list[Source], grid: PrismGrid) -> Source:
    """Which of several sources for the same map to take; reads them if their releases do not decide it."""
    final, *others = sorted(sources, key=lambda source: -source.release)
    for other in others:
        known = 0 < other.release < final.release
        if known:
            logger.info("%s (release %d) is used, not %s (release %d)", final, final.release, other, other.release)
        elif not np.array_equal(read_map(final, grid), read_map(other, grid), equal_nan=True):
            what = f"{final.variable} of {final.day:%Y-%m-%d}" if final.day is not None else final.variable
            raise ValueError(
                f"{what} is there twice with different data, and neither is known to be later: {final} (release "
                f"{final.release or 'unknown'}) and {other} (release {other.release or 'unknown'}). Needed: one. "
                "Leave one of them out of paths."
            )
    return final


def _lazy(sources: list[Source | None], grid: PrismGrid) -> da.Array:
    """Maps of the sources, ``(time, lat, lon)``, with a chunk and a task for each; None gives NaN."""
    items = np.empty((len(sources), 1, 1), dtype=object)
    items[:, 0, 0] = sources
    # The same maps have the same name: from paths, members, sizes and modification times.
    stats = [s and (str(s), s.variable, s.index, s.path.stat().st_size, s.path.stat().st_mtime_ns) for s in sources]
    name = f"open-prism-{tokenize(stats, grid)}"
    chunks = ((1,) * len(sources), (grid.shape[0],), (grid.shape[1],))
    return da.from_array(items, chunks=1, name=f"{name}-files").map_blocks(
        _read_block, grid, name=name, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )


def _read_block(block: np.ndarray, grid: PrismGrid) -> np.ndarray:
    source = block[0, 0, 0]
    if source is None:
        return np.full((1, *grid.shape), np.nan, np.float32)
    return read_map(source, grid)[None]
