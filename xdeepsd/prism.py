"""PRISM daily grids: names, addresses, grids and CF metadata; files on disk to a lazy Dataset.

Source of the data: PRISM Climate Group, Oregon State University. A PRISM day ends at 12 UTC of its date.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from glob import glob
from io import BytesIO
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import rasterio
import rioxarray
import xarray as xr

logger = logging.getLogger(__name__)

SERVICE = "https://services.nacse.org/prism/data/get"
DOWNLOADS = "https://prism.oregonstate.edu/downloads/data"
ATTRIBUTION = "PRISM Climate Group, Oregon State University, https://prism.oregonstate.edu"
FIRST_DAY = pd.Timestamp("1981-01-01")

REGIONS = ("us", "ak", "hi", "pr")
# How the present service names a resolution in its files: 2.5 arc minutes, 30 and 15 arc seconds.
RESOLUTIONS = {"4km": "25m", "800m": "30s", "400m": "15s"}

_VPD = "water_vapor_saturation_deficit_in_air"
VARIABLES: dict[str, dict[str, str]] = {
    # The amount of a day is its mean rate in mm day-1, the unit of precipitation everywhere in xdeepsd.
    "ppt": {"long_name": "precipitation", "standard_name": "lwe_precipitation_rate", "units": "mm day-1",
            "cell_methods": "time: mean"},
    "tmin": {"long_name": "minimum temperature", "standard_name": "air_temperature", "units": "degC",
             "cell_methods": "time: minimum"},
    "tmax": {"long_name": "maximum temperature", "standard_name": "air_temperature", "units": "degC",
             "cell_methods": "time: maximum"},
    "tmean": {"long_name": "mean of minimum and maximum temperature", "standard_name": "air_temperature",
              "units": "degC", "cell_methods": "time: mid_range"},
    "tdmean": {"long_name": "mean dew point", "standard_name": "dew_point_temperature", "units": "degC",
               "cell_methods": "time: mean"},
    "vpdmin": {"long_name": "minimum vapour pressure deficit", "standard_name": _VPD, "units": "hPa",
               "cell_methods": "time: minimum"},
    "vpdmax": {"long_name": "maximum vapour pressure deficit", "standard_name": _VPD, "units": "hPa",
               "cell_methods": "time: maximum"},
}  # fmt: skip
ELEVATION = {"long_name": "elevation", "standard_name": "surface_altitude", "units": "m"}

# A day is modelled anew up to seven times in half a year: releases 1 to 8. The names of old files say less.
RELEASES = {"early": 1, "provisional": 2, "stable": 8}
RELEASE_ATTRS = {
    "units": "1",
    "valid_range": np.array([0, 8], dtype=np.int8),
    "comment": "0: no data of this day, or release not known; 1 (first, early) to 8 (final, stable). From the name of "
    "an old file: early is 1, provisional is 2, stable is 8.",
}
LAT_ATTRS = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"}
LON_ATTRS = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"}
TIME_ATTRS = {
    "standard_name": "time",
    "long_name": "date of the PRISM day",
    "axis": "T",
    "bounds": "time_bnds",
    "comment": "A PRISM day is the 24 hours that end at 12 UTC of its date.",
}

_ADVICE = "Leave it out of paths; fetch it again if it is broken."
_RASTERS = {".tif", ".bil", ".asc", ".nc"}
_OLD_NAME = re.compile(
    r"PRISM_(?P<variable>[a-z]+)_(?P<release>stable|provisional|early)_(?P<resolution>4km|800m|400m)[A-Z]\d+_"
    r"(?P<date>\d{4,8})(_bil|_asc|_nc)?"
)
_NEW_NAME = re.compile(r"prism_(?P<variable>[a-z]+)_(?P<region>[a-z]{2})_(?P<resolution>25m|30s|15s)_(?P<date>\d{4,8})")
_ELEVATION_NAME = re.compile(r"PRISM_(?P<region>[a-z]{2})_dem_(?P<resolution>4km|800m|400m)(_bil|_asc|_nc)?")
_NORMAL_NAME = re.compile(r"prism_.*(_normal_|_avg_30y)", re.IGNORECASE)


@dataclass(frozen=True)
class Grid:
    """A regular north-up grid of ``shape`` (lat, lon) with ``per_degree`` cells per degree.

    ``north`` and ``west`` are the centres of the first row and column in half cells, so that every centre is a whole
    number over a whole number and comes out as the nearest float64, whatever a file's header was rounded to.

    >>> GRIDS["us", "4km"].lon[:3] * 24
    array([-3000., -2999., -2998.])
    """

    per_degree: int
    north: int
    west: int
    shape: tuple[int, int]

    @property
    def lat(self) -> np.ndarray:
        """Cell centres from north to south, ``(lat,)``, degrees, float64."""
        return (self.north - 2 * np.arange(self.shape[0])) / (2 * self.per_degree)

    @property
    def lon(self) -> np.ndarray:
        """Cell centres from west to east, ``(lon,)``, degrees, float64."""
        return (self.west + 2 * np.arange(self.shape[1])) / (2 * self.per_degree)

    def __str__(self) -> str:
        rows, columns = self.shape
        return (
            f"{rows} x {columns} cells of 1/{self.per_degree} degree from {self.lat[0]:.4f} N, {self.lon[0]:.4f} E "
            "(centre of the first cell)"
        )


# The grids of the other regions are taken from their first file.
GRIDS = {
    ("us", "4km"): Grid(24, 2396, -6000, (621, 1405)),
    ("us", "800m"): Grid(120, 11984, -30004, (3105, 7025)),
}


def snap(lat: float, lon: float, lat_step: float, lon_step: float, shape: tuple[int, int], where: str) -> Grid:
    """The grid whose first (north-west) cell centre is ``lat, lon``, snapped to whole half cells.

    ``lat_step`` is negative. Raises ValueError, naming ``where``, where the steps are not one whole part of a degree
    or the centre is off by more than 1/40 of a cell.
    """
    per_degree = round(1 / lon_step) if lon_step > 0 else 0
    steps_fit = per_degree > 0 and all(
        abs(abs(step) * per_degree - 1) * cells < 0.025 for step, cells in zip((lat_step, lon_step), shape, strict=True)
    )
    north, west = lat * 2 * per_degree, lon * 2 * per_degree
    if not steps_fit or lat_step >= 0 or max(abs(north - round(north)), abs(west - round(west))) > 0.05:
        raise ValueError(
            f"{where}: its grid starts at {lat:.6f} N, {lon:.6f} E with steps of {lat_step:.8f} and {lon_step:.8f} "
            "degrees. Needed: a PRISM grid in degrees, north-up, with cells of 1/24 (4km), 1/120 (800m) or 1/240 "
            "(400m) degree. Use xdeepsd.regrid for other grids."
        )
    return Grid(per_degree, round(north), round(west), shape)


@dataclass(frozen=True)
class Source:
    """One map of one day in one file. ``day`` is None for the elevation; ``index`` is the place along its time."""

    path: Path
    member: str | None
    variable: str
    day: pd.Timestamp | None
    release: int = 0
    region: str | None = None
    resolution: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def uri(self) -> str:
        """What GDAL opens; zips are read where they are."""
        return f"/vsizip/{{{self.path}}}/{self.member}" if self.member else str(self.path)


def day_url(variable: str, day: pd.Timestamp, region: str, resolution: str, base_url: str = SERVICE) -> str:
    """Address of the zip of one day."""
    return f"{base_url}/{region}/{resolution}/{variable}/{day:%Y%m%d}"


def release_url(
    variable: str, start: pd.Timestamp, end: pd.Timestamp, region: str, resolution: str, base_url: str = SERVICE
) -> str:
    """Address of the list of release dates and numbers of the days from ``start`` to ``end``."""
    days = f"{start:%Y%m%d}" if start == end else f"{start:%Y%m%d}/{end:%Y%m%d}"
    return f"{base_url}/releaseDate/{region}/{resolution}/{variable}/{days}?json=true"


def elevation_url(region: str, resolution: str, base_url: str = SERVICE) -> str:
    """Address of the zip with the elevation that PRISM used; another host than that of the days."""
    return f"{DOWNLOADS if base_url == SERVICE else base_url}/PRISM_{region}_dem_{resolution}_bil.zip"


def parse_name(path: Path, member: str | None = None) -> Source | None:
    """What the name of a raster says: variable, day, release, region, resolution; None if it is no name of PRISM.

    Raises ValueError for normals and for monthly and annual grids.

    >>> parse_name(Path("prism_ppt_us_25m_20251103.tif")).day
    Timestamp('2025-11-03 00:00:00')
    """
    name = PurePosixPath(member).name if member else path.name
    stem = name.rpartition(".")[0]
    where = f"{path}/{member}" if member else str(path)
    if _NORMAL_NAME.match(stem):
        raise ValueError(
            f"{where} is a normal: a mean of 30 years, not a day. Needed: daily grids, with year, month and day in "
            "their name."
        )
    match = _OLD_NAME.fullmatch(stem) or _NEW_NAME.fullmatch(stem)
    if match is None:
        elevation = _ELEVATION_NAME.fullmatch(stem)
        if elevation is None:
            return None
        return Source(path, member, "elevation", None, region=elevation["region"], resolution=elevation["resolution"])
    found = match.groupdict()
    if found["variable"] not in VARIABLES:
        raise ValueError(f"{where} holds {found['variable']!r}. Needed: one of {', '.join(VARIABLES)}.")
    if len(found["date"]) != 8:
        raise ValueError(
            f"{where} is {'a monthly' if len(found['date']) == 6 else 'an annual'} grid ({found['date']}). Needed: "
            "daily grids, with year, month and day in their name."
        )
    try:
        day = pd.Timestamp(int(found["date"][:4]), int(found["date"][4:6]), int(found["date"][6:]))
    except ValueError as error:
        raise ValueError(f"{where}: {found['date']} is no date.") from error
    resolution = {"25m": "4km", "30s": "800m", "15s": "400m"}.get(found["resolution"], found["resolution"])
    release = RELEASES.get(found.get("release", ""), 0)
    return Source(path, member, found["variable"], day, release, found.get("region", "us"), resolution)


def zip_sources(path: Path, content: bytes | None = None) -> list[Source]:
    """The rasters in a zip, by the names of its members; ``content`` where it is not the file at ``path``.

    Raises ValueError where the file is no zip (quoting what it says), has no members, or a BIL in it is cut.
    """
    with BytesIO(content) if content is not None else path.open("rb") as file:
        start = file.read(200)
        if not start.startswith(b"PK"):
            text = start.decode(errors="replace").strip()
            raise ValueError(f"{path} is no zip; it starts with {text!r}.")
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if not members:
                    raise ValueError(f"{path} is an empty zip.")
                sources = []
                for member in members:
                    if PurePosixPath(member.filename).suffix.lower() in _RASTERS:
                        source = parse_name(path, member.filename)
                        if source is not None:
                            sources.append(_with_facts(source, archive, member))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a broken zip ({error}).") from error
    return sources


def _with_facts(source: Source, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Source:
    """Check the length of a BIL and take release and day from the text files beside a raster in its zip."""
    stem = member.filename.rpartition(".")[0]
    beside = {name.lower(): name for name in archive.namelist()}
    header = beside.get(f"{stem}.hdr".lower())
    if member.filename.lower().endswith(".bil") and header:
        facts = _key_values(archive.read(header), None)
        needed = int(facts["NROWS"]) * int(facts["NCOLS"]) * int(facts.get("NBITS", "32")) // 8
        if member.file_size < needed:
            raise ValueError(f"{source} is cut: {member.file_size} bytes of {needed}.")
    info = beside.get(f"{stem}.info.txt".lower())
    return _apply_tags(source, _key_values(archive.read(info), ":") if info else {})


def _key_values(text: bytes, separator: str | None) -> dict[str, str]:
    """Lines of ``key separator value``."""
    lines = (line.split(separator, 1) for line in text.decode(errors="replace").splitlines() if line.strip())
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}


def _apply_tags(source: Source, tags: dict[str, str]) -> Source:
    """Release number from PRISM's tags; ValueError where they name another day than the file."""
    # Annual and upscaled grids list several names; a day comes from one.
    dates = set(re.findall(r"(?<!\d)(\d{8})(?!\d)", tags.get("PRISM_DATASET_FILENAME", "")))
    if source.day is not None and dates and dates != {f"{source.day:%Y%m%d}"}:
        raise ValueError(
            f"{source} holds another day than it says: its tag PRISM_DATASET_FILENAME is "
            f"{tags['PRISM_DATASET_FILENAME']!r}."
        )
    number = tags.get("PRISM_DATASET_RELEASE_NUMBER", "")
    return replace(source, release=int(number)) if number.isdigit() and not source.release else source


def raster_grid(source: Source) -> tuple[Grid, Source]:
    """Grid of a raster from its header, and the source with what its tags say. Reads no map.

    Raises ValueError, naming the file, where it cannot be opened or is not on a PRISM grid.
    """
    if PurePosixPath(source.uri).suffix.lower() == ".nc":
        with _open_netcdf(source) as ds:
            lat, lon = ds["lat"].values.astype(float), ds["lon"].values.astype(float)
        north, south = max(lat[0], lat[-1]), min(lat[0], lat[-1])
        step = (south - north) / (lat.size - 1)
        return snap(north, lon[0], step, (lon[-1] - lon[0]) / (lon.size - 1), (lat.size, lon.size), str(source)), source
    try:
        with rasterio.open(source.uri) as raster:
            transform, shape, tags = raster.transform, raster.shape, raster.tags()
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"{source} cannot be read ({error}).") from error
    # GDAL's transform is that of the outer corner, also for BIL, whose header names the centre (ULXMAP).
    grid = snap(
        transform.f + transform.e / 2, transform.c + transform.a / 2, transform.e, transform.a, shape, str(source)
    )
    return grid, _apply_tags(source, tags)


def _open_netcdf(source: Source) -> xr.Dataset:
    """A NetCDF file, also inside a zip (in memory, nothing is unpacked), with ``lat`` and ``lon``. Lazy."""
    file: Path | BytesIO = source.path
    if source.member:
        with zipfile.ZipFile(source.path) as archive:
            file = BytesIO(archive.read(source.member))
    with file.open("rb") if isinstance(file, Path) else BytesIO(file.getbuffer()) as beginning:
        classic = beginning.read(3) == b"CDF"
    try:
        # Not the netcdf4 engine: its library crashes when several threads open files.
        ds = xr.open_dataset(file, engine="scipy" if classic else "h5netcdf", cache=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{source} cannot be read as NetCDF ({error}).") from error
    names = {"latitude": "lat", "longitude": "lon", "y": "lat", "x": "lon"}
    return ds.rename({old: new for old, new in names.items() if old in ds.dims and new not in ds.variables})


def read_map(source: Source, grid: Grid) -> np.ndarray:
    """The map of a source, ``(lat, lon)`` from north to south, float32; NaN where there is no value.

    Raises ValueError, naming the file, where it cannot be read or is not on ``grid``.
    """
    if PurePosixPath(source.uri).suffix.lower() == ".nc":
        with _open_netcdf(source) as ds:
            name = source.variable if source.variable in ds else "Band1"
            array = ds[name] if source.index is None else ds[name].isel({_time_dim(ds[name]): source.index})
            values = array.squeeze(drop=True).transpose("lat", "lon").sortby("lat", ascending=False).values
    else:
        try:
            raster: Any = rioxarray.open_rasterio(source.uri, masked=True, cache=False)
            with raster:
                values = raster.values[0]
        except rasterio.errors.RasterioIOError as error:
            raise ValueError(f"{source} cannot be read ({error}).") from error
    if values.shape != grid.shape:
        raise ValueError(f"{source} has {values.shape[0]} x {values.shape[1]} cells. Needed: {grid}.")
    values = values.astype(np.float32)
    # Some files hold a nodata value that their header does not name.
    values[~np.isfinite(values) | (values <= -9990) | (values >= 1e20)] = np.nan
    return values


def _time_dim(array: xr.DataArray) -> str | None:
    return next((str(dim) for dim in ("time", "day") if dim in array.dims), None)


def _netcdf_sources(path: Path) -> list[Source]:
    """Sources of a NetCDF file whose name is not PRISM's: its variables that are named as PRISM names them."""
    with _open_netcdf(Source(path, None, "", None)) as ds:
        sources = [Source(path, None, "elevation", None)] if "elevation" in ds else []
        for variable in (name for name in VARIABLES if name in ds):
            dim = _time_dim(ds[variable])
            if dim is None:
                raise ValueError(f"{path}: {variable} has no time. Needed: the date in the file's name or a time axis.")
            days = pd.DatetimeIndex(ds[dim].values).floor("D")
            sources += [Source(path, None, variable, day, index=i) for i, day in enumerate(days)]
    return sources


def find_sources(paths: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Source]:
    """Every map in files, folders (searched to the bottom) and glob patterns, in the order of their names.

    Text and header files beside rasters are passed over; a raster or zip of another kind is passed over in a folder
    (with a warning) and is an error where it is named itself. Raises ValueError listing every file that is bad.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    files: dict[Path, bool] = {}  # and whether the file was named itself
    for item in map(str, given):
        path = Path(item).expanduser()
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in _RASTERS | {".zip"} and file.is_file():
                    files.setdefault(file.resolve(), False)
        elif path.is_file():
            files[path.resolve()] = True
        else:
            found = sorted(Path(name) for name in glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
            if not found:
                raise FileNotFoundError(
                    f"No file or folder {item}. Needed: PRISM files, a folder of them or a pattern."
                )
            files.update({file.resolve(): False for file in found if file.suffix.lower() in _RASTERS | {".zip"}})

    sources: list[Source] = []
    problems: list[str] = []
    for file, named in files.items():
        try:
            if file.suffix.lower() == ".zip":
                found_here = zip_sources(file)
            elif (source := parse_name(file)) is not None:
                found_here = [source]
            else:
                found_here = _netcdf_sources(file) if file.suffix.lower() == ".nc" else []
        except ValueError as error:
            problems.append(f"{error} {_ADVICE}")
            continue
        if not found_here and named:
            problems.append(
                f"{file} has no PRISM name, nor has anything in it. Needed: names such as "
                "prism_ppt_us_25m_20251103.tif or PRISM_ppt_stable_4kmD2_20110101_bil.bil."
            )
        elif not found_here:
            logger.warning("%s is passed over: no PRISM name, nor in it", file)
        sources += found_here
    _raise_all(problems)
    if not sources:
        raise ValueError(f"No PRISM grid in {', '.join(map(str, given))}. Needed: zips, .tif, .bil, .asc or .nc.")
    return sources


def _raise_all(problems: list[str]) -> None:
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError("\n".join(problems[:20]) + more)


def days_text(days: Iterable[pd.Timestamp]) -> str:
    """Days as a short text, runs of days as first and last.

    >>> days_text(pd.to_datetime(["2011-01-01", "2011-01-02", "2011-01-03", "2011-02-01"]))
    '2011-01-01 to 2011-01-03 (3 days), 2011-02-01'
    """
    runs: list[list[pd.Timestamp]] = []
    for day in sorted(days):
        if runs and day - runs[-1][-1] == pd.Timedelta(days=1):
            runs[-1].append(day)
        else:
            runs.append([day])
    texts = [f"{r[0]:%Y-%m-%d}" + (f" to {r[-1]:%Y-%m-%d} ({len(r)} days)" if len(r) > 1 else "") for r in runs]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more gaps" if len(texts) > 20 else "")


def skeleton(grid: Grid, days: pd.DatetimeIndex) -> xr.Dataset:
    """Coordinates, time bounds and global attributes of a PRISM Dataset. In memory; no maps."""
    ends = days + pd.Timedelta(hours=12)
    bounds = np.stack([(ends - pd.Timedelta(days=1)).to_numpy(), ends.to_numpy()], axis=1)
    ds = xr.Dataset(
        coords={"lat": ("lat", grid.lat, LAT_ATTRS), "lon": ("lon", grid.lon, LON_ATTRS)},
        attrs={
            "Conventions": "CF-1.11",
            "title": "PRISM daily grids",
            "institution": "PRISM Climate Group, Oregon State University",
            "source": ATTRIBUTION,
            "references": "https://prism.oregonstate.edu/terms",
            "geographic_crs": "NAD83 (EPSG:4269)",
        },
    )
    if len(days):
        ds = ds.assign_coords(time=("time", days.to_numpy().astype("datetime64[ns]"), TIME_ATTRS))
        ds["time_bnds"] = (("time", "bnds"), bounds.astype("datetime64[ns]"))
        for name in ("time", "time_bnds"):
            ds[name].encoding = {"units": "hours since 1981-01-01", "calendar": "standard", "dtype": "int64"}
    return ds


def open_prism(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, allow_missing: bool = False
) -> xr.Dataset:
    """Open PRISM files as they lie on disk, lazily, one task per map.

    Zips (of BIL, ASCII grid, GeoTIFF or NetCDF, one map or several in a zip) are read in place; unpacked BIL, ASCII,
    GeoTIFF and NetCDF too, in any mixture. A NetCDF file of many days needs variables named as PRISM names them and a
    time axis.

    Parameters
    ----------
    paths : path, folder, glob pattern, or several of them
        Folders are searched to the bottom. Or the store of `xdeepsd fetch`, of which the days that are there come.
    allow_missing : bool
        Go on where days between the first and the last are missing. With one variable these days are not in the
        result; with several, days that one of them lacks are NaN there, and its release is 0.

    Returns
    -------
    xarray.Dataset
        Each variable (``ppt`` in mm day-1; ``tmin``, ``tmax``, ``tmean``, ``tdmean`` in degC; ``vpdmin``, ``vpdmax``
        in hPa) is ``(time, lat, lon)``, float32, lazy, a chunk per day; NaN is nodata (ocean), whatever number the
        file has for it. ``lat`` (descending) and ``lon`` are cell centres, whole parts of a degree to the last bit.
        ``time`` is the date; ``time_bnds`` the 24 hours that end at 12 UTC of it. ``ppt_release`` ``(time)`` is 1
        (early) to 8 (stable), 0 if not known. ``elevation`` ``(lat, lon)``, m, where a file of it is given.

    Raises
    ------
    ValueError
        For normals, monthly grids, broken files and zips (all of them are listed), grids that differ, a day that two
        files of the same release have with different data, and missing days. Where two files have the same day, the
        more final release is taken; only such files are read at this point.
    """
    if isinstance(paths, str | PathLike) and (Path(paths) / "zarr.json").is_file():
        return _open_store(Path(paths), allow_missing)
    sources = find_sources(paths)
    # Opening a header takes about a millisecond, and GDAL does it without the lock of the interpreter.
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(_grid_or_error, sources))
    _raise_all([str(item) for item in opened if isinstance(item, ValueError)])
    grids = [item for item in opened if not isinstance(item, ValueError)]
    grid, first = grids[0]
    others = [(g, s) for g, s in grids if g != grid]
    _raise_all(
        [
            f"{source} is on another grid: {other}. Needed: {grid}, as in {first}. Open them apart."
            for other, source in others
        ]
    )

    by_day: dict[tuple[str, pd.Timestamp | None], list[Source]] = defaultdict(list)
    for _, source in grids:
        by_day[source.variable, source.day].append(source)
    chosen = {key: _most_final(same, grid) for key, same in by_day.items()}
    days = pd.DatetimeIndex(sorted({day for _, day in chosen if day is not None}))
    variables = [name for name in VARIABLES if any(name == variable for variable, _ in chosen)]
    held = {name: pd.DatetimeIndex([day for day in days if (name, day) in chosen]) for name in variables}
    if not allow_missing:
        _refuse_gaps(held)

    ds = skeleton(grid, days)
    for name in variables:
        maps = [chosen.get((name, day)) for day in days]
        ds[name] = (
            ("time", "lat", "lon"),
            _lazy(maps, grid),
            VARIABLES[name] | {"ancillary_variables": f"{name}_release"},
        )
        releases = np.array([item.release if item else 0 for item in maps], dtype=np.int8)
        ds[f"{name}_release"] = ("time", releases, RELEASE_ATTRS | {"long_name": f"release of {name}"})
    if ("elevation", None) in chosen:
        ds["elevation"] = (("lat", "lon"), _lazy([chosen["elevation", None]], grid)[0], ELEVATION)
    return ds


def _open_store(path: Path, allow_missing: bool) -> xr.Dataset:
    """The days that a store of `xdeepsd fetch` holds; its axis also has those that are not fetched yet."""
    ds = xr.open_zarr(path)
    variables = [name for name in VARIABLES if f"{name}_release" in ds]
    if not variables:
        raise ValueError(f"{path} is no store of xdeepsd fetch: none of its variables has a release. Use xr.open_zarr.")
    there = np.stack([ds[f"{name}_release"].values > 0 for name in variables])
    days = pd.DatetimeIndex(ds["time"].values)
    if not allow_missing:
        _refuse_gaps({name: days[mine] for name, mine in zip(variables, there, strict=True)})
    return ds.isel(time=np.flatnonzero(there.any(axis=0)))


def _refuse_gaps(held: dict[str, pd.DatetimeIndex]) -> None:
    """ValueError where a variable lacks days between the first and the last of all."""
    days = pd.DatetimeIndex([]).append(list(held.values()))
    if len(days) == 0:
        return
    gaps = {name: pd.date_range(days.min(), days.max()).difference(mine) for name, mine in held.items()}
    _raise_all(
        [
            f"{len(gap)} days of {name} are missing between {days.min():%Y-%m-%d} and {days.max():%Y-%m-%d}: "
            f"{days_text(gap)}. Needed: every day. Fetch them, or go on with allow_missing=True (--allow-missing)."
            for name, gap in gaps.items()
            if len(gap)
        ]
    )


def _grid_or_error(source: Source) -> tuple[Grid, Source] | ValueError:
    try:
        return raster_grid(source)
    except ValueError as error:
        return ValueError(f"{error} {_ADVICE}")


def _most_final(sources: list[Source], grid: Grid) -> Source:
    """The source to take of several for the same map; reads them where their releases cannot decide."""
    final, *others = sorted(sources, key=lambda source: -source.release)
    for other in others:
        known = 0 < other.release < final.release
        if known:
            logger.info("%s (release %d) is taken, not %s (release %d)", final, final.release, other, other.release)
        elif not np.array_equal(read_map(final, grid), read_map(other, grid), equal_nan=True):
            what = f"{final.variable} of {final.day:%Y-%m-%d}" if final.day is not None else final.variable
            raise ValueError(
                f"{what} comes twice with different data, and neither release is the later one: {final} (release "
                f"{final.release or 'not known'}) and {other} (release {other.release or 'not known'}). Needed: one. "
                "Leave one of them out of paths."
            )
    return final


def _lazy(sources: list[Source | None], grid: Grid) -> da.Array:
    """Maps of the sources, ``(time, lat, lon)``, a chunk and a task for each; None gives NaN."""
    items = np.empty((len(sources), 1, 1), dtype=object)
    items[:, 0, 0] = sources
    name = f"open-prism-{dask_token(sources, grid)}"
    chunks = ((1,) * len(sources), (grid.shape[0],), (grid.shape[1],))
    return da.from_array(items, chunks=1, name=f"{name}-files").map_blocks(
        _read_block, grid, name=name, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )


def dask_token(sources: list[Source | None], grid: Grid) -> str:
    """A name for the same maps, so that Dask knows them again: paths, members, sizes and times of change."""
    from dask.base import tokenize

    stats = [s and (str(s), s.variable, s.index, s.path.stat().st_size, s.path.stat().st_mtime_ns) for s in sources]
    return str(tokenize(stats, grid))


def _read_block(block: np.ndarray, grid: Grid) -> np.ndarray:
    source = block[0, 0, 0]
    if source is None:
        return np.full((1, *grid.shape), np.nan, np.float32)
    return read_map(source, grid)[None]
