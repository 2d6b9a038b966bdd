"""Facts about PRISM: names of variables and files, addresses of the web service, grids, CF metadata.

Source of the data: PRISM Climate Group, Oregon State University. A PRISM day ends at 12 UTC on its date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import xarray as xr

SERVICE = "https://services.nacse.org/prism/data/get"
DOWNLOADS = "https://prism.oregonstate.edu/downloads/data"
ATTRIBUTION = "PRISM Climate Group, Oregon State University, https://prism.oregonstate.edu"
FIRST_DAY = pd.Timestamp("1981-01-01")
REGIONS = ("us", "ak", "hi", "pr")
# How the current service writes a resolution in file names: 2.5 arc minutes, 30 and 15 arc seconds.
RESOLUTIONS = {"4km": "25m", "800m": "30s", "400m": "15s"}
_VPD = "water_vapor_saturation_deficit_in_air"
VARIABLES: dict[str, dict[str, str]] = {
    # A daily amount equals the mean rate in mm day-1, the unit of precipitation everywhere in xdeepsd.
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
# A day is remodelled up to seven times within half a year: releases 1 to 8. The names of old files say less.
RELEASES = {"early": 1, "provisional": 2, "stable": 8}
RELEASE_ATTRS = {
    "units": "1",
    "valid_range": np.array([0, 8], dtype=np.int8),
    "comment": "0: no data of this day, or release not known; 1 (first, early) to 8 (final, stable). From the name of "
    "an old file: early is 1, provisional is 2, stable is 8.",
}
GLOBAL_ATTRS = {
    "Conventions": "CF-1.11",
    "title": "PRISM daily grids",
    "institution": "PRISM Climate Group, Oregon State University",
    "source": ATTRIBUTION,
    "references": "https://prism.oregonstate.edu/terms",
    "geographic_crs": "NAD83 (EPSG:4269)",
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
_OLD_NAME = re.compile(
    r"PRISM_(?P<variable>[a-z]+)_(?P<release>stable|provisional|early)_(?P<resolution>4km|800m|400m)[A-Z]\d+_"
    r"(?P<date>\d{4,8})(_bil|_asc|_nc)?"
)
_NEW_NAME = re.compile(r"prism_(?P<variable>[a-z]+)_(?P<region>[a-z]{2})_(?P<resolution>25m|30s|15s)_(?P<date>\d{4,8})")
_ELEVATION_NAME = re.compile(r"PRISM_(?P<region>[a-z]{2})_dem_(?P<resolution>4km|800m|400m)(_bil|_asc|_nc)?")
_NORMAL_NAME = re.compile(r"prism_.*(_normal_|_avg_30y)", re.IGNORECASE)


@dataclass(frozen=True)
class PrismGrid:
    """A regular north-up grid of ``shape`` (lat, lon) with ``per_degree`` cells per degree.

    ``north`` and ``west`` are the centres of the first row and column in half cells, so every centre is a ratio of
    whole numbers and comes out as the nearest float64, however a file's header was rounded.

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
    ("us", "4km"): PrismGrid(24, 2396, -6000, (621, 1405)),
    ("us", "800m"): PrismGrid(120, 11984, -30004, (3105, 7025)),
}
# No map has more cells than one of CONUS, the largest region.
MOST_CELLS = {"4km": 621 * 1405, "800m": 3105 * 7025, "400m": 6210 * 14050}


def most_bytes(resolution: str | None) -> int:
    """More than any file of one map needs: 16 bytes per cell, whatever the format, plus 16 MiB for texts beside it."""
    return 16 * MOST_CELLS[resolution or "400m"] + 2**24


def snap(lat: float, lon: float, lat_step: float, lon_step: float, shape: tuple[int, int], where: str) -> PrismGrid:
    """The grid whose first (north-west) cell centre is ``lat, lon``, snapped to whole half cells.

    ``lat_step`` is negative. Raises ValueError, naming ``where``, if the steps are not the same whole fraction of a
    degree, the centre is off by more than 1/40 of a cell, or there are more cells than in any PRISM map.
    """
    if shape[0] * shape[1] > max(MOST_CELLS.values()):
        raise ValueError(
            f"{where} has {shape[0]} x {shape[1]} cells. Needed: a PRISM grid; the largest has "
            f"{max(MOST_CELLS.values())}."
        )
    known = abs(lat) <= 360 and abs(lon) <= 360 and lon_step > 1e-6  # a damaged header may hold any number
    per_degree = round(1 / lon_step) if known else 0
    steps_fit = per_degree > 0 and all(
        abs(abs(step) * per_degree - 1) * cells < 0.025 for step, cells in zip((lat_step, lon_step), shape, strict=True)
    )
    north, west = lat * 2 * per_degree, lon * 2 * per_degree
    if not steps_fit or lat_step >= 0 or max(abs(north - round(north)), abs(west - round(west))) > 0.05:
        raise ValueError(
            f"{where}: its grid starts at {lat:.6f} N, {lon:.6f} E with steps of {lat_step:.8f} and {lon_step:.8f} "
            "degrees. Needed: a PRISM grid in degrees, north at the top, with cells of 1/24 (4km), 1/120 (800m) or "
            "1/240 (400m) degree. Use xdeepsd.regrid for other grids."
        )
    return PrismGrid(per_degree, round(north), round(west), shape)


@dataclass(frozen=True)
class Source:
    """One map of one day in one file. ``day`` is None for the elevation; ``index`` is the position along time."""

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
        """The path that GDAL opens; zips are read in place."""
        return f"/vsizip/{{{self.path}}}/{self.member}" if self.member else str(self.path)


def parse_name(path: Path, member: str | None = None) -> Source | None:
    """Variable, day, release, region and resolution from the name of a raster; None if it is not a PRISM name.

    Raises ValueError for normals and for monthly and annual grids.

    >>> parse_name(Path("prism_ppt_us_25m_20251103.tif")).day
    Timestamp('2025-11-03 00:00:00')
    """
    name = PurePosixPath(member).name if member else path.name
    stem = name.rpartition(".")[0]
    where = f"{path}/{member}" if member else str(path)
    if _NORMAL_NAME.match(stem):
        raise ValueError(
            f"{where} is a normal, a mean of 30 years, not a day. Needed: daily grids, with year, month and day in "
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
        day = pd.Timestamp(int(found["date"][:4]), int(found["date"][4:6]), int(found["date"][6:])).as_unit("ns")
    except ValueError as error:
        raise ValueError(f"{where}: {found['date']} is not a date.") from error
    resolution = {"25m": "4km", "30s": "800m", "15s": "400m"}.get(found["resolution"], found["resolution"])
    release = RELEASES.get(found.get("release", ""), 0)
    return Source(path, member, found["variable"], day, release, found.get("region", "us"), resolution)


def days_text(days: Iterable[pd.Timestamp]) -> str:
    """Days as a short text; runs of consecutive days are shortened to their first and last.

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


def skeleton(grid: PrismGrid, days: pd.DatetimeIndex) -> xr.Dataset:
    """Coordinates, time bounds and global attributes of a PRISM Dataset. In memory; no maps."""
    ends = days + pd.Timedelta(hours=12)
    bounds = np.stack([(ends - pd.Timedelta(days=1)).to_numpy(), ends.to_numpy()], axis=1)
    ds = xr.Dataset(
        coords={"lat": ("lat", grid.lat, LAT_ATTRS), "lon": ("lon", grid.lon, LON_ATTRS)},
        attrs=GLOBAL_ATTRS,
    )
    if len(days):
        ds = ds.assign_coords(time=("time", days.to_numpy().astype("datetime64[ns]"), TIME_ATTRS))
        ds["time_bnds"] = (("time", "bnds"), bounds.astype("datetime64[ns]"))
        for name in ("time", "time_bnds"):
            ds[name].encoding = {"units": "hours since 1981-01-01", "calendar": "standard", "dtype": "int64"}
    return ds
