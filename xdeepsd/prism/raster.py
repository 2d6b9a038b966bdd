"""One PRISM file of any format: its maps, their grid and their values. A damaged file raises ValueError."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pandas as pd
import rasterio
import rioxarray
import xarray as xr

from xdeepsd.prism.names import VARIABLES, PrismGrid, Source, most_bytes, parse_name, snap

RASTERS = {".tif", ".bil", ".asc", ".nc"}
_MOST_TEXT = 2**20  # bytes; PRISM's own texts have a few hundred


@contextmanager
def reading(what: str, advice: str = "") -> Iterator[None]:
    """Turn any error while reading a file into a ValueError that begins with ``what``: the file and what is wrong.

    The libraries for zips, rasters, NetCDF and Zarr raise all kinds of errors on damaged bytes: KeyError, RuntimeError,
    NotImplementedError, zlib.error and more.
    """
    try:
        yield
    except Exception as error:
        why = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} ({why}). {advice}".rstrip()) from error


def zip_sources(path: Path) -> list[Source]:
    """The rasters in a zip, by the names of its members.

    Raises ValueError if the file is not a zip (quoting its first bytes), has no members, or holds a truncated BIL.
    """
    with reading(f"{path} cannot be read"), path.open("rb") as file:
        start = file.read(200)
    if not start.startswith(b"PK"):
        raise ValueError(f"{path} is not a zip; it starts with {start.decode(errors='replace').strip()!r}.")
    with reading(f"{path} is a broken zip"):
        archive = zipfile.ZipFile(path)
    with archive:
        if not archive.namelist():
            raise ValueError(f"{path} is an empty zip.")
        sources = []
        others = []
        for member in archive.infolist():
            raster = PurePosixPath(member.filename).suffix.lower() in RASTERS
            source = parse_name(path, member.filename) if raster else None
            if source is None:
                others.append(member)
            else:
                sources.append(_with_facts(source, archive, member))
        with reading(f"{path} is a broken zip"):
            for member in others:
                archive.open(member).close()  # this detects a damaged name
    return sources


def check_zip(file: Path | BytesIO, most: int, stem: str = "") -> None:
    """Read every member whose name begins with ``stem`` to its end, in pieces.

    Raises whatever `zipfile` raises for a wrong checksum (GDAL checks none), and ValueError beyond ``most`` bytes.
    """
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.startswith(stem)]
        size = sum(member.file_size for member in members)
        if size > most:
            raise ValueError(f"it holds {size} bytes; no map of its resolution has more than {most}")
        for member in members:
            with _open_member(archive, member) as content:
                while content.read(2**20):
                    pass


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile limits how much it unpacks at a time only for these, and GDAL reads no others.
        raise ValueError(f"{member.filename} is compressed by a method other than deflate")
    return archive.open(member)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """A whole member of a zip; ValueError if it has more than ``most`` bytes."""
    with _open_member(archive, member) as content:
        found = content.read(most + 1)
    if len(found) > most:
        raise ValueError(f"{member.filename} has more than {most} bytes")
    return found


def _with_facts(source: Source, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Source:
    """Check the length of a BIL; take the release from, and check the day against, the text files beside a raster."""
    stem = member.filename.rpartition(".")[0].lower()
    beside = {other.filename.lower(): other for other in archive.infolist()}
    header, info = beside.get(f"{stem}.hdr"), beside.get(f"{stem}.info.txt")
    needed, tags = 0, {}
    with reading(f"{source}: a text file beside it cannot be read"):
        if member.filename.lower().endswith(".bil") and header:
            facts = _key_values(_read_member(archive, header, _MOST_TEXT), None)
            needed = int(facts["NROWS"]) * int(facts["NCOLS"]) * int(facts.get("NBITS", "32")) // 8
        if info:
            tags = _key_values(_read_member(archive, info, _MOST_TEXT), ":")
    if member.file_size < needed:
        raise ValueError(f"{source} is truncated: {member.file_size} bytes of {needed}.")
    return _apply_tags(source, tags)


def _key_values(text: bytes, separator: str | None) -> dict[str, str]:
    """Lines of ``key separator value``."""
    lines = (line.split(separator, 1) for line in text.decode(errors="replace").splitlines() if line.strip())
    return {line[0].strip().upper(): line[1].strip() for line in lines if len(line) == 2}


def _apply_tags(source: Source, tags: dict[str, str]) -> Source:
    """Take the release number from PRISM's tags; ValueError if they name a different day from the file name."""
    dates = set(re.findall(r"(?<!\d)(\d{8})(?!\d)", tags.get("PRISM_DATASET_FILENAME", "")))
    if source.day is not None and dates and f"{source.day:%Y%m%d}" not in dates:
        raise ValueError(
            f"{source} does not hold the day in its name: its tag PRISM_DATASET_FILENAME is "
            f"{tags['PRISM_DATASET_FILENAME']!r}."
        )
    number = tags.get("PRISM_DATASET_RELEASE_NUMBER", "")
    return replace(source, release=int(number)) if re.fullmatch("[1-8]", number) and not source.release else source


def raster_grid(source: Source) -> tuple[PrismGrid, Source]:
    """The grid of a raster from its header, and the source completed from its tags. Reads no map.

    Raises ValueError, naming the file, if it cannot be opened or is not on a PRISM grid.
    """
    if _is_netcdf(source):
        with reading(f"{source} cannot be read as NetCDF"), _open_netcdf(source) as ds:
            lat, lon = ds["lat"].values.astype(float), ds["lon"].values.astype(float)
            lat = lat if lat[0] > lat[-1] else lat[::-1]
            lat_step, lon_step = (float(x[-1] - x[0]) / (x.size - 1) for x in (lat, lon))
        grid = snap(lat[0], lon[0], lat_step, lon_step, (lat.size, lon.size), str(source))
        off = max(np.abs(lat - grid.lat).max(), np.abs(lon - grid.lon).max())
        if not off * grid.per_degree < 0.05:
            raise ValueError(f"{source}: its lat or lon is {off:g} degrees away from regular steps. Needed: {grid}.")
        return grid, source
    if source.member and source.uri.lower().endswith(".asc"):
        _check_member(source)  # or GDAL may count lines for minutes in a text with damaged numbers
    with reading(f"{source} cannot be read"), rasterio.open(source.uri) as raster:
        transform, shape, tags = raster.transform, raster.shape, raster.tags()
        needed = raster.count * shape[0] * shape[1] * np.dtype(raster.dtypes[0]).itemsize
    if not source.member and source.path.suffix.lower() == ".bil" and source.path.stat().st_size < needed:
        raise ValueError(f"{source} is truncated: {source.path.stat().st_size} bytes of {needed}.")
    # GDAL's transform refers to the outer corner, even for BIL, whose header gives the centre (ULXMAP).
    grid = snap(
        transform.f + transform.e / 2, transform.c + transform.a / 2, transform.e, transform.a, shape, str(source)
    )
    return grid, _apply_tags(source, tags)


def _check_member(source: Source) -> None:
    """ValueError if a raster in a zip, or a text beside it, does not match its checksum."""
    with reading(f"{source.path} is a broken zip"):
        check_zip(source.path, most_bytes(source.resolution), f"{str(source.member).rpartition('.')[0]}.")


def _is_netcdf(source: Source) -> bool:
    return PurePosixPath(source.uri).suffix.lower() == ".nc"


def _open_netcdf(source: Source) -> xr.Dataset:
    """Open a NetCDF file, also inside a zip (in memory, without unpacking to disk), with ``lat`` and ``lon``. Lazy."""
    file: Path | BytesIO = source.path
    if source.member:
        with zipfile.ZipFile(source.path) as archive:
            file = BytesIO(_read_member(archive, archive.getinfo(source.member), most_bytes(source.resolution)))
    with file.open("rb") if isinstance(file, Path) else BytesIO(file.getbuffer()) as beginning:
        classic = beginning.read(3) == b"CDF"
    # Not the netcdf4 engine: its library crashes when several threads open files.
    ds = xr.open_dataset(file, engine="scipy" if classic else "h5netcdf", cache=False)
    names = {"latitude": "lat", "longitude": "lon", "y": "lat", "x": "lon"}
    return ds.rename({old: new for old, new in names.items() if old in ds.dims and new not in ds.variables})


def read_map(source: Source, grid: PrismGrid) -> np.ndarray:
    """The map of a source, ``(lat, lon)`` from north to south, float32; NaN where there is no value.

    Raises ValueError, naming the file, if it cannot be read, is not on ``grid``, or a checksum of its zip is wrong.
    """
    if source.member and not _is_netcdf(source):
        _check_member(source)
    with reading(f"{source} cannot be read"):
        if _is_netcdf(source):
            with _open_netcdf(source) as ds:
                array = ds[source.variable if source.variable in ds else "Band1"]
                array = array if source.index is None else array.isel({_time_dim(array): source.index})
                array = array.squeeze(drop=True).transpose("lat", "lon").sortby("lat", ascending=False)
                values = _values(array, grid)
        else:
            raster: Any = rioxarray.open_rasterio(source.uri, masked=True, cache=False)
            with raster:
                values = _values(raster.isel(band=0), grid)
    # Some files use a nodata value that their header does not give.
    values[~np.isfinite(values) | (values <= -9990) | (values >= 1e20)] = np.nan
    return values


def _values(array: xr.DataArray, grid: PrismGrid) -> np.ndarray:
    if array.shape != grid.shape:  # before an array of that size is in memory
        raise ValueError(f"it has {' x '.join(map(str, array.shape))} cells; needed: {grid}")
    return array.values.astype(np.float32)


def _time_dim(array: xr.DataArray) -> str | None:
    return next((str(dim) for dim in ("time", "day") if dim in array.dims), None)


def netcdf_sources(path: Path) -> list[Source]:
    """Sources in a NetCDF file without a PRISM file name: its variables that have PRISM's names."""
    timeless: list[str] = []
    sources: list[Source] = []
    with reading(f"{path} cannot be read as NetCDF"), _open_netcdf(Source(path, None, "", None)) as ds:
        if "elevation" in ds:
            sources = [Source(path, None, "elevation", None)]
        for variable in (name for name in VARIABLES if name in ds):
            dim = _time_dim(ds[variable])
            if dim is None:
                timeless.append(variable)
                continue
            days = pd.DatetimeIndex(ds[dim].values).floor("D").as_unit("ns")
            if days.hasnans:
                raise ValueError(f"{variable} has days without a date")
            sources += [Source(path, None, variable, day, index=i) for i, day in enumerate(days)]
    if timeless:
        raise ValueError(f"{path}: {timeless[0]} has no time. Needed: the date in the file's name or a time axis.")
    return sources
