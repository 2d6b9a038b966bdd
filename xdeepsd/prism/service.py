"""PRISM's web service: polite requests, one at a time, and checks of the answers."""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from typing import Any, TypeVar

import httpx
import numpy as np
import pandas as pd
import tenacity

from xdeepsd._version import __version__
from xdeepsd.prism import names
from xdeepsd.prism.raster import check_zip, reading
from xdeepsd.prism.store import Release

logger = logging.getLogger(__name__)

T = TypeVar("T")
_QUOTED = 500  # bytes quoted of the text that the service sends in place of a zip


class Service:
    """One connection to the web service: paces requests, retries, and tells a refusal from a zip."""

    def __init__(self, base_url: str, region: str, resolution: str, pace: float, timeout: float) -> None:
        self.base_url, self.region, self.resolution = base_url.rstrip("/"), region, resolution
        self.pace, self.timeout = pace, timeout
        self._answered = -np.inf
        self._client = httpx.Client(
            headers={
                "User-Agent": f"xdeepsd/{__version__} (python-httpx/{httpx.__version__})",
                "Accept-Encoding": "identity",  # so that the bytes counted are those sent
            },
            timeout=timeout,
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def releases(self, variable: str, start: pd.Timestamp, end: pd.Timestamp) -> dict[pd.Timestamp, Release]:
        """The current release of each published day."""
        today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
        end = min(end, today)
        while start <= end:
            days = f"{start:%Y%m%d}" if start == end else f"{start:%Y%m%d}/{end:%Y%m%d}"
            url = f"{self.base_url}/releaseDate/{self.region}/{self.resolution}/{variable}/{days}?json=true"
            content = self._get(url, 1000 * ((end - start).days + 100), lambda content: content)
            try:
                rows = json.loads(content)
            except (ValueError, RecursionError):
                text = _text(content)
                # The answer to a range that ends after the newest day, whose date we do not know: step back to it.
                if text.startswith("Invalid date") and today - end < pd.Timedelta(days=14):
                    end -= pd.Timedelta(days=1)
                    continue
                raise PermissionError(f"The service does not list its releases ({url}); it answers: {text}") from None
            return _parse_releases(rows, variable, url)
        return {}

    def day(self, variable: str, day: pd.Timestamp) -> bytes:
        """The whole zip of one day."""
        return self._zip(f"{self.base_url}/{self.region}/{self.resolution}/{variable}/{day:%Y%m%d}")

    def elevation(self) -> bytes:
        """The whole zip of the elevation that PRISM used; another host has it."""
        base = names.DOWNLOADS if self.base_url == names.SERVICE else self.base_url
        return self._zip(f"{base}/PRISM_{self.region}_dem_{self.resolution}_bil.zip")

    def _zip(self, url: str) -> bytes:
        most = names.most_bytes(self.resolution)
        return self._get(url, most, lambda content: _whole_zip(content, most))

    def _get(self, url: str, most: int, accept: Callable[[bytes], T]) -> T:
        """The result of ``accept`` on the service's answer; the request is repeated where that makes sense."""
        retrying = tenacity.Retrying(
            retry=_again,
            reraise=True,  # raise the error itself, not tenacity's
            wait=tenacity.wait_exponential(multiplier=2 * self.pace, max=120) + tenacity.wait_random(0, self.pace),
            before_sleep=tenacity.before_sleep_log(logger, logging.INFO),
        )
        return retrying(lambda: accept(self._get_once(url, most)))

    def _get_once(self, url: str, most: int) -> bytes:
        """The answer, of at most ``most`` bytes; redirects are followed without reading their bodies."""
        time.sleep(max(0.0, self._answered + self.pace - time.monotonic()))
        request = self._client.build_request("GET", url)
        try:
            for _ in range(10):
                with closing(self._client.send(request, stream=True)) as response:
                    if response.next_request is None:
                        return self._content(response, most)
                    request = response.next_request
            raise httpx.TooManyRedirects(f"{url} is redirected too often", request=request)
        finally:
            self._answered = time.monotonic()

    def _content(self, response: httpx.Response, most: int) -> bytes:
        refused = response.status_code in (403, 429)
        if not refused:
            response.raise_for_status()
        if response.headers.get("Content-Encoding") in ("gzip", "deflate", "br", "zstd"):
            raise httpx.DecodingError(f"the answer is in {response.headers['Content-Encoding']}, not as requested")
        begin = time.monotonic()
        content = bytearray()
        for part in response.iter_raw():
            content += part
            if refused and len(content) >= _QUOTED:
                break
            if len(content) > most:
                raise ValueError(
                    f"{response.url} answers with more than {most} bytes, more than any such file has: aborted"
                )
            if time.monotonic() - begin > 10 * self.timeout:
                raise httpx.ReadTimeout(f"{len(content)} bytes in {10 * self.timeout:.0f} s: aborted")
        if refused:
            raise PermissionError(f"status {response.status_code}: {_text(content)}")
        return bytes(content)


def _again(state: tenacity.RetryCallState) -> bool:
    """Whether to try again: up to five times if no file was served, twice if one was (the service's limit)."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 and state.attempt_number < 5
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return state.attempt_number < 5
    # An empty zip is all the service has; a broken one may have been damaged on the way.
    return isinstance(error, httpx.TransportError | EOFError) and state.attempt_number < 2


def _text(content: bytes | bytearray) -> str:
    return " ".join(content[:_QUOTED].decode(errors="replace").split()) or "(nothing)"


def _whole_zip(content: bytes, most: int) -> bytes:
    """``content`` if it is a whole zip of no more than ``most`` bytes unpacked.

    Raises PermissionError for a refusal, ValueError for something the service does not have, EOFError for a broken zip.
    """
    if content.startswith(b"PK\x05\x06"):
        raise ValueError("an empty zip")
    if not content.startswith(b"PK\x03\x04"):
        # Errors come as text with status 200 and the name of a zip.
        text = _text(content)
        if text.startswith("Invalid"):
            raise ValueError(f"not a zip but the text: {text}")
        if not content:
            raise EOFError("an empty answer")
        raise PermissionError(f"The service refuses; it answers: {text}")
    try:
        with reading(f"a broken zip of {len(content)} bytes"):
            check_zip(BytesIO(content), most)
    except ValueError as error:
        raise EOFError(str(error)) from error
    return content


def _parse_releases(rows: Any, variable: str, url: str) -> dict[pd.Timestamp, Release]:
    """Parse rows of day, release date, variable, release number, address; a single row comes without an outer list."""
    found: dict[pd.Timestamp, Release] = {}
    with reading(f"The list of releases at {url} cannot be understood", "Its format may have changed."):
        if not isinstance(rows, list):
            raise ValueError(f"it is not a list but {str(rows)[:_QUOTED]}")
        for day, date, element, number, *_ in rows if not rows or isinstance(rows[0], list) else [rows]:
            if element != variable:
                raise ValueError(f"it lists {element!r}")
            if date and number:  # both are empty if a day is not published
                if int(number) not in range(1, 9):
                    raise ValueError(f"release {number!r} of {day!r}")
                found[_date(day)] = (_date(date), int(number))
    return found


def _date(text: str) -> pd.Timestamp:
    return pd.Timestamp(dt.date.fromisoformat(text[:10]))
