"""A PRISM web service on loopback: real HTTP, files in the real format, and every misbehaviour on demand."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import rasterio
from rasterio.transform import Affine

REFUSAL = (
    "You have tried to download the file {name} more than twice in one day (Pacific local time).  Note that repeated "
    "offenses may result in your IP address being blocked."
)
SHAPE = (12, 20)  # a small region with the real cell size, for quick tests
NORTH, WEST, PER_DEGREE = 22.0, -160.0, 24
FILES = {"4km": "25m", "800m": "30s", "400m": "15s"}


def map_of(day: pd.Timestamp, release: int = 8, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A map that is different on each day and in each release, with an ocean of NaN. float32."""
    values = np.random.default_rng([day.toordinal(), release]).gamma(0.5, 8.0, shape).round(3).astype(np.float32)
    values[:, : shape[1] // 4] = np.nan
    return values


def tif(values: np.ndarray, tags: dict[str, str] | None = None, **grid: float) -> bytes:
    """A cloud-optimised GeoTIFF like the service's."""
    step = grid.get("step", 0.041666666667)
    north, west = grid.get("north", NORTH), grid.get("west", WEST)
    with rasterio.MemoryFile() as file:
        with file.open(
            driver="COG", dtype="float32", nodata=-9999.0, count=1, height=values.shape[0], width=values.shape[1],
            crs="EPSG:4269", compress="lzw", transform=Affine(step, 0, west - step / 2, 0, -step, north + step / 2),
        ) as raster:  # fmt: skip
            raster.write(np.where(np.isnan(values), np.float32(-9999), values), 1)
            raster.update_tags(**(tags or {}))
        return file.read()


def day_zip(variable: str, day: pd.Timestamp, values: np.ndarray, release: int, *, region: str = "hi",
            resolution: str = "4km", tag_day: pd.Timestamp | None = None, **grid: float) -> bytes:  # fmt: skip
    """The zip of one day; ``tag_day`` is the day given in the tags, if different."""
    stem = f"prism_{variable}_{region}_{FILES[resolution]}_{day:%Y%m%d}"
    tags = {
        "PRISM_DATASET_FILENAME": f"best_{variable}_us_us_30s_{tag_day or day:%Y%m%d}.bil",
        "PRISM_DATASET_RELEASE_NUMBER": str(release),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}.info.txt", "".join(f"{key}: {value}\n" for key, value in tags.items()))
        archive.writestr(f"{stem}.stx", "1 0.0 76.6 0.56 2.80\n")
        archive.writestr(f"{stem}.tif", tif(values, tags, **grid))
        archive.writestr(f"{stem}.xml", "<metadata/>")
    return content.getvalue()


def broken(content: bytes) -> bytes:
    """The first two thirds of a zip, sent as if it were all."""
    return content[: 2 * len(content) // 3]


@dataclass
class PrismServer:
    """``releases[day]`` is what is published; ``mischief[day]`` lists the misbehaviours to come, one per request."""

    region: str = "hi"
    resolution: str = "4km"
    releases: dict[pd.Timestamp, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # by "variable/YYYYMMDD" or name, instead of generated ones
    mischief: dict[pd.Timestamp, list[str]] = field(default_factory=dict)
    release_mischief: list[str] = field(default_factory=list)
    delay: float = 0.0
    requests: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def publish(self, start: str, end: str, release: int = 8) -> pd.DatetimeIndex:
        days = pd.date_range(start, end)
        self.releases |= dict.fromkeys(days, release)
        return days

    def release_date(self, day: pd.Timestamp) -> pd.Timestamp:
        return day + pd.Timedelta(days=1 + 25 * (self.releases[day] - 1))

    @property
    def asked(self) -> list[str]:
        """The days asked for, in order, as YYYYMMDD."""
        return [url.split("/")[-1] for url in self.requests if "releaseDate" not in url]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/prism/data/get"

    def __enter__(self) -> PrismServer:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.requests.append(self.path)
                service.times.append(time.monotonic())
                service.agents.add(self.headers["User-Agent"])
                service.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = handler.path.partition("?")[0].removeprefix("/prism/data/get/").split("/")
        if parts[0] == "releaseDate":
            return self._answer_releases(handler, parts[3], parts[4:])
        if len(parts) == 1:  # the elevation
            return self._send_zip(handler, self.files.get(parts[0], b""), parts[0])
        variable, date = parts[2], parts[3]
        day = pd.Timestamp(date)
        name = f"prism_{variable}_{self.region}_{FILES[self.resolution]}_{date}.zip"
        made = lambda **changes: self.make(variable, day, **changes)  # noqa: E731
        todo = self.mischief.get(day, [])
        what = todo.pop(0) if todo else "good"
        time.sleep(self.delay)
        if day not in self.releases:
            return self._send(handler, f"Invalid date: {date}".encode(), name)
        other = day + pd.Timedelta(days=1)
        actions: dict[str, Callable[[], None]] = {
            "good": lambda: self._send_zip(handler, made(), name),
            "503": lambda: self._send(handler, b"busy", name, status=503),
            "404": lambda: self._send(handler, b"not found", name, status=404),
            "429": lambda: self._send(handler, b"slow down", name, status=429),
            "cut": lambda: self._send_part(handler, made(), name),
            "slow": lambda: self._send_slowly(handler, made(), name, pause=3),
            "silent": lambda: self._send_slowly(handler, made(), name, pause=600),
            "drip": lambda: self._send_slowly(handler, made(), name, pause=0.04),
            "hang up": lambda: handler.connection.shutdown(socket.SHUT_RDWR),
            "truncated": lambda: self._send_zip(handler, broken(made()), name),
            "refusal": lambda: self._send(handler, REFUSAL.format(name=name).encode(), name),
            "html": lambda: self._send(handler, b"<html><body>maintenance</body></html>", name),
            "nothing": lambda: self._send_zip(handler, b"", name),
            "empty": lambda: self._send_zip(handler, b"PK\x05\x06" + bytes(18), name),
            "no grid": lambda: self._send_zip(handler, made(only_text=True), name),
            "wrong shape": lambda: self._send_zip(handler, made(shape=(13, 20)), name),
            "wrong corner": lambda: self._send_zip(handler, made(west=WEST + 1 / 24), name),
            "wrong step": lambda: self._send_zip(handler, made(step=1 / 23.7), name),
            "wrong day": lambda: self._send_zip(handler, self.make(variable, other), name),
            "wrong day in tags": lambda: self._send_zip(handler, made(tag_day=other), name),
            "wrong variable": lambda: self._send_zip(handler, self.make("tmax", day), name),
            "no value": lambda: self._send_zip(handler, made(values=np.full(SHAPE, np.nan, np.float32)), name),
        }
        actions[what]()
        return None

    def make(self, variable: str, day: pd.Timestamp, *, only_text: bool = False, values: np.ndarray | None = None,
             shape: tuple[int, int] = SHAPE, **changes: object) -> bytes:  # fmt: skip
        if f"{variable}/{day:%Y%m%d}" in self.files:
            return self.files[f"{variable}/{day:%Y%m%d}"]
        if only_text:
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                archive.writestr("readme.txt", "no grid here")
            return content.getvalue()
        release = self.releases.get(day, 8)
        values = map_of(day, release, shape) if values is None else values
        return day_zip(variable, day, values, release, region=self.region, resolution=self.resolution, **changes)

    def _answer_releases(self, handler: BaseHTTPRequestHandler, variable: str, dates: list[str]) -> None:
        what = self.release_mischief.pop(0) if self.release_mischief else "good"
        if what == "503":
            return self._send(handler, b"busy", None, status=503)
        if what == "text":
            return self._send(handler, b"Database is not available", None)
        days = pd.date_range(dates[0], dates[-1])
        if days[-1] > max(self.releases):
            return self._send(handler, f"Invalid date: {dates[-1]}".encode(), None)
        rows = [
            [f"{day:%Y-%m-%d}", f"{self.release_date(day):%Y-%m-%d}", variable, str(self.releases[day]),
             f"https://elsewhere.invalid/{day:%Y%m%d}"] if day in self.releases
            else [f"{day:%Y-%m-%d}", "", variable, "", ""]
            for day in days
        ]  # fmt: skip
        return self._send(handler, json.dumps(rows if len(dates) > 1 else rows[0]).encode(), None)

    def _headers(self, handler: BaseHTTPRequestHandler, size: int, name: str | None, status: int = 200) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(size))
        if name:
            handler.send_header("Content-Disposition", f'attachment; filename="{name}"')
            handler.send_header("Content-Type", "application/zip")
        handler.end_headers()

    def _send(self, handler: BaseHTTPRequestHandler, content: bytes, name: str | None, status: int = 200) -> None:
        self._headers(handler, len(content), name, status)
        handler.wfile.write(content)

    def _send_zip(self, handler: BaseHTTPRequestHandler, content: bytes, name: str) -> None:
        self._send(handler, content, name)

    def _send_part(self, handler: BaseHTTPRequestHandler, content: bytes, name: str) -> None:
        self._headers(handler, len(content), name)
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()

    def _send_slowly(self, handler: BaseHTTPRequestHandler, content: bytes, name: str, pause: float) -> None:
        self._headers(handler, len(content), name)
        try:
            for i in range(0, len(content), 8):
                handler.wfile.write(content[i : i + 8])
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:  # the client has gone
            handler.close_connection = True
