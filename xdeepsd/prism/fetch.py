"""Fetch PRISM days from the web service: politely, one after the other, and only what the store does not hold."""

from __future__ import annotations

import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pandas as pd
import rasterio
import tenacity
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import xdeepsd
from xdeepsd.prism import names as prism_names
from xdeepsd.prism import store as prism_store
from xdeepsd.prism.files import raster_grid, read_map, zip_sources
from xdeepsd.prism.names import Grid, Source
from xdeepsd.prism.store import Release

logger = logging.getLogger(__name__)

T = TypeVar("T")
# So many days in a row without an answer mean that the service, or the way to it, is down.
_GIVE_UP = 5


@dataclass
class FetchReport:
    """What a call of `fetch_prism` did: days written, days held before, and what is missing and why."""

    fetched: list[pd.Timestamp] = field(default_factory=list)
    held: list[pd.Timestamp] = field(default_factory=list)
    unpublished: list[pd.Timestamp] = field(default_factory=list)
    failed: dict[pd.Timestamp, str] = field(default_factory=dict)
    not_tried: list[pd.Timestamp] = field(default_factory=list)
    stopped: str | None = None
    megabytes: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the store now holds everything that was asked for, in the current release."""
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

    The release dates are asked first, in one request; then one request per day, one after the other. An answer 5xx
    or no answer is asked for again with growing pauses, a broken transfer once (the service gives a file out twice
    in 24 hours). A day whose zip, grid, variable or date is not what was asked never enters the store; it is in the
    report. When the service refuses (a text in place of a zip), the call stops at once.

    Parameters
    ----------
    out : path
        Zarr v3 store (a local folder), made if it is not there. It holds one region and resolution, and any number
        of variables, on one gapless axis of days. Days not held are NaN and have ``{variable}_release`` 0 (a call
        that is killed may leave one whole map without its release; the next call writes both). A period before or
        after the one there lengthens the axis; open the store anew after that.
    variable : str
        One of ppt, tmin, tmax, tmean, tdmean, vpdmin, vpdmax; or elevation, which needs no period.
    start, end : date
        First and last day, from 1981-01-01.
    resolution, region : str
        4km, 800m or 400m; us, ak, hi or pr.
    pace, timeout : float
        Seconds between an answer and the next request; seconds without a byte after which a transfer is broken off
        (ten times as long for the whole of it).
    base_url : str
        Address of the service.
    progress : bool
        Show days, megabytes and the time left.

    Returns
    -------
    FetchReport

    Raises
    ------
    ValueError
        Before any request: unknown names, a period that is none, a store that holds something else.
    httpx.HTTPError, PermissionError
        The service does not say which releases there are: nothing is done.
    """
    days = _check(variable, start, end, resolution, region)
    if "://" in str(out):
        raise ValueError(f"out is {str(out)!r}. Needed: a local folder. Copy the store when it is done.")
    path = Path(out).expanduser().absolute()
    with prism_store.alone(path):
        prism_store.recover(path)
        store = prism_store.open_store(path, region, resolution)
        with _Service(base_url, region, resolution, pace, timeout) as service:
            if variable == "elevation":
                return _fetch_elevation(service, path, store)
            return _fetch_days(service, path, store, variable, days, progress)


def _check(variable: str, start: Any, end: Any, resolution: str, region: str) -> pd.DatetimeIndex:
    """The days asked for. Raises ValueError for anything that cannot be asked."""
    for value, allowed, name in (
        (variable, (*prism_names.VARIABLES, "elevation"), "variable"),
        (resolution, tuple(prism_names.RESOLUTIONS), "resolution"),
        (region, prism_names.REGIONS, "region"),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}. Needed: one of {', '.join(allowed)}.")
    if variable == "elevation":
        if region != "us":
            raise ValueError(f"PRISM gives out no elevation of {region!r}, only of 'us'. Use another elevation.")
        return pd.DatetimeIndex([])
    if start is None or end is None:
        raise ValueError(f"start is {start}, end is {end}. Needed: both, such as --start 2014-01-01 --end 2015-12-31.")
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
    service: _Service, path: Path, store: Any, variable: str, days: pd.DatetimeIndex, progress: bool
) -> FetchReport:
    announced = service.releases(variable, days[0], days[-1])
    marks = prism_store.marks(store, variable)
    held = dict(zip(marks.index, zip(marks["date"], marks["number"], strict=True), strict=True))
    wanted = [day for day in days if day in announced and held.get(day) != announced[day]]
    report = FetchReport(
        held=[day for day in days if day in held and held[day] == announced.get(day, held[day])],
        unpublished=[day for day in days if day not in announced and day not in held],
    )
    logger.info("%s: %d days to fetch, %d held", variable, len(wanted), len(report.held))
    grid = prism_store.store_grid(store) or prism_names.GRIDS.get((service.region, service.resolution))
    group: Any = None
    silent = 0
    bar = Progress(
        TextColumn(f"{variable} {{task.fields[day]}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days, {task.fields[megabytes]:.1f} MB,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        disable=not (progress and wanted),
    )
    with bar:
        task = bar.add_task("", total=len(wanted), day="", megabytes=0.0)
        for i, day in enumerate(wanted):
            bar.update(task, day=f"{day:%Y-%m-%d}")
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
                    report.stopped = f"No answer for {silent} days in a row; the last: {report.failed[day]}"
                    report.not_tried = wanted[i + 1 :]
                    break
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                report.failed[day] = str(error)
                silent = 0
            else:
                if group is None:
                    group, axis = prism_store.lay_out(
                        path, grid, service.region, service.resolution, variable, pd.date_range(wanted[0], wanted[-1])
                    )
                prism_store.write_day(path, group, (day - axis[0]).days, variable, values, announced[day])
                report.fetched.append(day)
                silent = 0
            bar.update(task, advance=1, megabytes=report.megabytes)
    for day, cause in report.failed.items():
        logger.warning("%s of %s failed: %s", variable, f"{day:%Y-%m-%d}", cause)
    return report


def _fetch_elevation(service: _Service, path: Path, store: Any) -> FetchReport:
    if store is not None and "elevation" in store:
        return FetchReport()
    try:
        content = service.elevation()
        with _in_memory(content, "elevation.zip") as sources:
            if [source.variable for source in sources] != ["elevation"]:
                raise ValueError(f"the zip holds {', '.join(map(str, sources)) or 'no grid'}, not the elevation")
            grid, source = raster_grid(sources[0])
            _compare(grid, prism_store.store_grid(store) or prism_names.GRIDS.get((service.region, service.resolution)))
            values = read_map(source, grid)
    except PermissionError as error:
        return FetchReport(stopped=str(error))
    except (httpx.HTTPError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return FetchReport(stopped=f"elevation: {error}")
    prism_store.lay_out(path, grid, service.region, service.resolution, "elevation", elevation=values)
    return FetchReport(megabytes=len(content) / 1e6)


# ---------------------------------------------------------------------------------------------------- the service


class _Service:
    """One connection to the web service: paces, retries, and tells a refusal from a zip."""

    def __init__(self, base_url: str, region: str, resolution: str, pace: float, timeout: float) -> None:
        self.base_url, self.region, self.resolution = base_url.rstrip("/"), region, resolution
        self.pace, self.timeout = pace, timeout
        self._answered = -np.inf
        self._client = httpx.Client(
            headers={"User-Agent": f"xdeepsd/{xdeepsd.__version__} (python-httpx/{httpx.__version__})"},
            timeout=timeout,
            follow_redirects=True,
        )

    def __enter__(self) -> _Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def releases(self, variable: str, start: pd.Timestamp, end: pd.Timestamp) -> dict[pd.Timestamp, Release]:
        """The current release of each published day."""
        today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
        end = min(end, today)
        while start <= end:
            url = prism_names.release_url(variable, start, end, self.region, self.resolution, self.base_url)
            content = self._get(url, lambda content: content)
            try:
                rows = json.loads(content)
            except ValueError:
                text = _text(content)
                # What is said of a range that reaches beyond the newest day, which is not known: step back to it.
                if text.startswith("Invalid date") and today - end < pd.Timedelta(days=14):
                    end -= pd.Timedelta(days=1)
                    continue
                raise PermissionError(f"The service does not tell its releases ({url}); it says: {text}") from None
            return _parse_releases(rows, variable, url)
        return {}

    def day(self, variable: str, day: pd.Timestamp) -> bytes:
        """The zip of one day, whole."""
        return self._get(prism_names.day_url(variable, day, self.region, self.resolution, self.base_url), _whole_zip)

    def elevation(self) -> bytes:
        """The zip of the elevation, whole."""
        return self._get(prism_names.elevation_url(self.region, self.resolution, self.base_url), _whole_zip)

    def _get(self, url: str, accept: Callable[[bytes], T]) -> T:
        """``accept`` of what the service answers, asked again where that makes sense."""
        retrying = tenacity.Retrying(
            retry=_again,
            reraise=True,  # the error itself comes out, not tenacity's
            wait=tenacity.wait_exponential(multiplier=2 * self.pace, max=120) + tenacity.wait_random(0, self.pace),
            before_sleep=tenacity.before_sleep_log(logger, logging.INFO),
        )
        return retrying(lambda: accept(self._get_once(url)))

    def _get_once(self, url: str) -> bytes:
        time.sleep(max(0.0, self._answered + self.pace - time.monotonic()))
        begin = time.monotonic()
        try:
            with self._client.stream("GET", url) as response:
                if response.status_code in (403, 429):
                    response.read()
                    raise PermissionError(f"status {response.status_code}: {_text(response.content)}")
                response.raise_for_status()
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() - begin > 10 * self.timeout:
                        raise httpx.ReadTimeout(f"{len(content)} bytes in {10 * self.timeout:.0f} s, broken off")
                return bytes(content)
        finally:
            self._answered = time.monotonic()


def _again(state: tenacity.RetryCallState) -> bool:
    """Whether to ask again: five times where nothing was given out, twice where a file was (the service's limit)."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 and state.attempt_number < 5
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return state.attempt_number < 5
    # An empty zip is what the service has; a broken one may be the way to us.
    return isinstance(error, httpx.TransportError | EOFError) and state.attempt_number < 2


def _text(content: bytes) -> str:
    return " ".join(content[:500].decode(errors="replace").split()) or "(nothing)"


def _whole_zip(content: bytes) -> bytes:
    """``content`` if it is a whole zip.

    Raises PermissionError for a refusal, ValueError for a day that is not there, BadZipFile and EOFError for zips.
    """
    if content.startswith(b"PK\x05\x06"):
        raise zipfile.BadZipFile("an empty zip")
    if not content.startswith(b"PK\x03\x04"):
        # Errors come as text with status 200 and the name of a zip.
        text = _text(content)
        if text.startswith("Invalid"):
            raise ValueError(f"no zip but the text: {text}")
        if not content:
            raise EOFError("an empty answer")
        raise PermissionError(f"The service refuses; it says: {text}")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise EOFError(f"a broken zip of {len(content)} bytes ({error})") from error
    if broken:
        raise EOFError(f"a broken zip of {len(content)} bytes (checksum of {broken})")
    return content


def _parse_releases(rows: Any, variable: str, url: str) -> dict[pd.Timestamp, Release]:
    """Rows of day, release date, variable, release number, address; one row alone is not in a list of rows."""
    if rows and not isinstance(rows[0], list):
        rows = [rows]
    found: dict[pd.Timestamp, Release] = {}
    try:
        for day, date, element, number, *_ in rows:
            if element != variable:
                raise ValueError(f"it lists {element!r}")
            if date and number:  # neither where a day is not published
                found[pd.Timestamp(day)] = (pd.Timestamp(date), int(number))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"The list of releases at {url} is not understood ({error}). It may have changed.") from error
    return found


# -------------------------------------------------------------------------------------------------------- the zips


@contextmanager
def _in_memory(content: bytes, name: str) -> Iterator[list[Source]]:
    """The rasters of a zip in memory, to be read while the context lasts."""
    with rasterio.MemoryFile(content, filename=name) as file:
        try:
            yield zip_sources(Path(file.name), content)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{file.name}/", "")) from error


def _read_day(
    content: bytes, service: _Service, variable: str, day: pd.Timestamp, release: Release, grid: Grid | None
) -> tuple[np.ndarray, Grid]:
    """The map in a zip if it is the one that was asked for, on ``grid``; ValueError otherwise."""
    with _in_memory(content, f"{variable}_{day:%Y%m%d}.zip") as sources:
        asked = (variable, day, service.region, service.resolution)
        there = [
            source for source in sources if (source.variable, source.day, source.region, source.resolution) == asked
        ]
        if len(there) != 1 or len(sources) != 1:
            names = ", ".join(str(source.member) for source in sources) or "no grid"
            raise ValueError(f"the zip holds {names}; asked was {variable} of {day:%Y-%m-%d}, {service.region}, "
                             f"{service.resolution}")  # fmt: skip
        found, source = raster_grid(there[0])
        _compare(found, grid)
        values = read_map(source, found)
    if np.isnan(values).all():
        raise ValueError("the map has no value")
    if source.release and source.release != release[1]:
        logger.info("%s is release %d; announced was %d", source.member, source.release, release[1])
    return values, found


def _compare(found: Grid, grid: Grid | None) -> None:
    if grid is not None and found != grid:
        raise ValueError(f"wrong grid: {found}; needed: {grid}")
