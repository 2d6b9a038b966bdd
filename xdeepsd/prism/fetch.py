"""Fetch PRISM days from the web service: politely, one at a time, and only what the store does not hold."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from xdeepsd._progress import Bar
from xdeepsd.prism import names as prism_names
from xdeepsd.prism import store as prism_store
from xdeepsd.prism.names import PrismGrid, Source
from xdeepsd.prism.raster import raster_grid, read_map, zip_sources
from xdeepsd.prism.service import Service
from xdeepsd.prism.store import Release
from xdeepsd.stores.whole import alone, writing

logger = logging.getLogger(__name__)

# This many days in a row without an answer mean that the service, or the connection to it, is down.
_GIVE_UP = 5


@dataclass
class FetchReport:
    """What a call of `fetch_prism` did: days written, days already held, and what is missing and why.

    Examples
    --------
    >>> import pandas as pd
    >>> import xdeepsd
    >>> xdeepsd.FetchReport(unpublished=[pd.Timestamp("2026-01-01")]).complete
    False
    """

    fetched: list[pd.Timestamp] = field(default_factory=list)
    held: list[pd.Timestamp] = field(default_factory=list)
    unpublished: list[pd.Timestamp] = field(default_factory=list)
    failed: dict[pd.Timestamp, str] = field(default_factory=dict)
    not_tried: list[pd.Timestamp] = field(default_factory=list)
    stopped: str | None = None
    megabytes: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the store now holds everything requested, in the current release."""
        return not (self.unpublished or self.failed or self.not_tried or self.stopped)


def fetch_prism(
    out: str | PathLike[str],
    variable: str = "ppt",
    start: str | pd.Timestamp | None = None,
    end: str | pd.Timestamp | None = None,
    *,
    resolution: str = "4km",
    region: str = "us",
    pace: float = 2.0,
    timeout: float = 60.0,
    base_url: str = prism_names.SERVICE,
    progress: bool = False,
) -> FetchReport:
    """Fetch the days of a period that a store does not hold in their current release.

    One request fetches the release dates; then each day has its own request, one after the other. After a 5xx answer or
    no answer, a request is repeated with growing pauses; after a broken transfer, once (the service serves a file at
    most twice in 24 hours). A day whose zip, grid, variable or date is not the one requested never enters the store and
    is listed in the report. If the service refuses (a text instead of a zip), the call stops at once.

    Parameters
    ----------
    out : path
        Zarr v3 store (a local folder), created if it does not exist. It holds one region and resolution, and any number
        of variables, on an axis of every day from 1981-01-01 to the last one requested. Days not held take no space,
        are NaN and have ``{variable}_release`` 0 (a call that is killed may leave one whole map without its release;
        the next call writes both). `open_prism` opens the days that are held. You may keep groups and arrays of your
        own in the store; they are never touched.
    variable : str
        One of ppt, tmin, tmax, tmean, tdmean, vpdmin, vpdmax; or elevation, which takes no period.
    start, end : date
        First and last day, 1981-01-01 or later.
    resolution, region : str
        4km, 800m or 400m; us, ak, hi or pr.
    pace, timeout : float
        Seconds between an answer and the next request; seconds without a byte after which a transfer is aborted (ten
        times as long for the whole transfer).
    base_url : str
        Address of the service.
    progress : bool
        Show a progress bar with days, megabytes and time left.

    Returns
    -------
    FetchReport

    Raises
    ------
    ValueError
        Before any request: unknown names, an invalid period, a store that holds something else. Before any day is
        requested: a list of releases that cannot be parsed; an array of your own in the way.
    OSError
        Nothing can be written at ``out``.
    httpx.HTTPError, PermissionError
        The service does not list its releases: nothing is done.

    Examples
    --------
    >>> import xdeepsd
    >>> report = xdeepsd.fetch_prism("prism.zarr", "ppt", "2014-01-01", "2014-12-31")  # doctest: +SKIP
    >>> report.complete, len(report.fetched)  # doctest: +SKIP
    (True, 365)
    """
    days = _check(variable, start, end, resolution, region)
    if "://" in str(out):
        raise ValueError(f"out is {str(out)!r}. Needed: a local folder. Copy the store there when it is complete.")
    path = Path(out).expanduser().absolute()
    with alone(path, "xdeepsd fetch", "out"), writing(path):
        store = prism_store.open_store(path, region, resolution)
        with Service(base_url, region, resolution, pace, timeout) as service:
            if variable == "elevation":
                return _fetch_elevation(service, path, store)
            return _fetch_days(service, path, store, variable, days, progress)


def _check(variable: str, start: Any, end: Any, resolution: str, region: str) -> pd.DatetimeIndex:
    """The days requested. Raises ValueError for anything that cannot be requested."""
    for value, allowed, name in (
        (variable, (*prism_names.VARIABLES, "elevation"), "variable"),
        (resolution, tuple(prism_names.RESOLUTIONS), "resolution"),
        (region, prism_names.REGIONS, "region"),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}. Needed: one of {', '.join(allowed)}.")
    if variable == "elevation":
        if region != "us":
            raise ValueError(f"PRISM provides no elevation for {region!r}, only for 'us'. Use another elevation.")
        return pd.DatetimeIndex([])
    if start is None or end is None:
        raise ValueError(f"start is {start}, end is {end}. Needed: both. Type start='2014-01-01', end='2015-12-31'.")
    try:
        first, last = pd.Timestamp(start).normalize(), pd.Timestamp(end).normalize()
    except ValueError as error:
        raise ValueError(f"start is {start!r}, end is {end!r}. Needed: dates such as 2014-01-01.") from error
    if last < first or first < prism_names.FIRST_DAY:
        raise ValueError(
            f"The period is {first:%Y-%m-%d} to {last:%Y-%m-%d}. Needed: an end not before the start, and a start "
            f"from {prism_names.FIRST_DAY:%Y-%m-%d}, the first daily grid of PRISM."
        )
    return pd.date_range(first, last)


def _fetch_days(
    service: Service, path: Path, store: Any, variable: str, days: pd.DatetimeIndex, progress: bool
) -> FetchReport:
    announced = service.releases(variable, days[0], days[-1])
    held = prism_store.marks(store, variable)
    wanted = [day for day in days if day in announced and held.get(day) != announced[day]]
    prism_store.check_room(path, store, variable, wanted)
    report = FetchReport(
        held=[day for day in days if day in held and held[day] == announced.get(day, held[day])],
        unpublished=[day for day in days if day not in announced and day not in held],
    )
    logger.info("%s: %d days to fetch, %d held", variable, len(wanted), len(report.held))
    grid = prism_store.store_grid(store) or prism_names.GRIDS.get((service.region, service.resolution))
    group: Any = None
    silent = 0
    with Bar(variable, total=len(wanted)) if progress and wanted else nullcontext() as bar:
        for i, day in enumerate(wanted):
            try:
                content = service.day(variable, day)
                report.megabytes += len(content) / 1e6
                values, grid = _read_day(content, service, variable, day, announced[day], grid)
            except PermissionError as error:
                report.stopped, report.not_tried = str(error), wanted[i:]
                break
            except httpx.HTTPError as error:
                report.failed[day] = f"{error} ({type(error).__name__})"
                silent += 1
                if silent == _GIVE_UP:
                    report.stopped = f"No answer for {silent} days in a row; the last one: {report.failed[day]}"
                    report.not_tried = wanted[i + 1 :]
                    break
            except (ValueError, EOFError) as error:
                report.failed[day] = str(error)
                silent = 0
            else:
                if group is None:
                    group = prism_store.make_room(path, grid, service.region, service.resolution, variable, wanted[-1])
                prism_store.write_day(path, group, day, variable, values, announced[day])
                report.fetched.append(day)
                silent = 0
            if bar is not None:
                bar.update(i + 1, len(wanted), f"days, {report.megabytes:.1f} MB, {day:%Y-%m-%d},")
    for day, cause in report.failed.items():
        logger.warning("%s of %s failed: %s", variable, f"{day:%Y-%m-%d}", cause)
    return report


def _fetch_elevation(service: Service, path: Path, store: Any) -> FetchReport:
    if store is not None and "elevation" in store:
        return FetchReport()
    prism_store.check_room(path, store, "elevation")
    try:
        content = service.elevation()
        with _unpacked(content, "elevation.zip") as sources:
            if [source.variable for source in sources] != ["elevation"]:
                raise ValueError(f"the zip holds {', '.join(map(str, sources)) or 'no grid'}, not the elevation")
            grid, source = raster_grid(sources[0])
            _compare(grid, prism_store.store_grid(store) or prism_names.GRIDS.get((service.region, service.resolution)))
            values = read_map(source, grid)
    except PermissionError as error:
        return FetchReport(stopped=str(error))
    except (httpx.HTTPError, ValueError, EOFError) as error:
        return FetchReport(stopped=f"elevation: {error}")
    prism_store.make_room(path, grid, service.region, service.resolution, "elevation", elevation=values)
    return FetchReport(megabytes=len(content) / 1e6)


@contextmanager
def _unpacked(content: bytes, name: str) -> Iterator[list[Source]]:
    """The rasters of a zip, which can be read inside the context."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            yield zip_sources(path)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{path.parent}{os.sep}", "")) from error


def _read_day(
    content: bytes, service: Service, variable: str, day: pd.Timestamp, release: Release, grid: PrismGrid | None
) -> tuple[np.ndarray, PrismGrid]:
    """The map in a zip if it is the one requested, on ``grid``; ValueError otherwise."""
    with _unpacked(content, f"{variable}_{day:%Y%m%d}.zip") as sources:
        asked = (variable, day, service.region, service.resolution)
        there = [
            source for source in sources if (source.variable, source.day, source.region, source.resolution) == asked
        ]
        if len(there) != 1 or len(sources) != 1:
            names = ", ".join(str(source.member) for source in sources) or "no grid"
            raise ValueError(f"the zip holds {names}, not {variable} of {day:%Y-%m-%d}, {service.region}, "
                             f"{service.resolution}")  # fmt: skip
        found, source = raster_grid(there[0])
        _compare(found, grid)
        values = read_map(source, found)
    if np.isnan(values).all():
        raise ValueError("the map has no values")
    if source.release and source.release != release[1]:
        logger.info("%s is release %d, but release %d was announced", source.member, source.release, release[1])
    return values, found


def _compare(found: PrismGrid, grid: PrismGrid | None) -> None:
    if grid is not None and found != grid:
        raise ValueError(f"wrong grid: {found}; needed: {grid}")
