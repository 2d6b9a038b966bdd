"""A generated climate: terrain, an ocean, and daily orographic rain; small for the demo, long and hard for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from scipy import ndimage


def _noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1, correlated over about ``width`` cells (last two axes)."""
    sigma = (*(0,) * (len(shape) - 2), width, width)
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap")
    return field / field.std()


def _terrain(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Elevation (m, 0 in the ocean) and land mask: a coast in the west, ridges parallel to it, fractal detail."""
    rows, cols = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    coast = 0.12 + 0.05 * np.sin(5 * rows + 1) + 0.03 * _noise(rng, shape, 6)
    land = cols > coast
    inland = np.clip((cols - coast) / 0.3, 0, 1)
    ridges = np.exp(-(((cols - coast - 0.22 - 0.05 * np.sin(4 * rows)) / 0.09) ** 2))
    ridges += 0.7 * np.exp(-(((cols - coast - 0.58 + 0.08 * np.cos(3 * rows)) / 0.07) ** 2))
    detail = sum(_noise(rng, shape, width) * width**0.5 for width in (1.5, 3.0, 6.0, 12.0)) / 6.0
    height = 250 * inland + 1700 * ridges * (1 + 0.5 * detail) + 350 * inland * detail
    return np.where(land, np.clip(height, 1, None), 0.0).astype(np.float32), land


@dataclass(frozen=True, eq=False)
class _World:
    """What is fixed before any weather: maps ``(lat, lon)``, and a number for each day ``(time,)``."""

    seed: int
    elevation: np.ndarray
    land: np.ndarray
    lift: np.ndarray  # rain gained on windward slopes, lost behind them
    lee: np.ndarray  # height (m) of the highest ridge upwind above the cell, decaying with distance
    winter: np.ndarray  # 1 in January, -1 in July
    warmer: np.ndarray  # degrees warmer than the first half
    storms: float
    seasons: float
    shadow: float
    gaps: float

    def random(self, stream: int, day: int) -> np.random.Generator:
        """Random number generator of one stream on one day."""
        return np.random.default_rng([self.seed, stream, day])


# The streams of random numbers, and how many days back their sums reach: 0.55**9 and 0.3**4 are below 1 %.
_WEATHER, _WIND, _FLICKER, _STORMS, _GAPS = range(5)
_WEATHER_DAYS, _FLICKER_DAYS, _WIND_DAYS = 9, 4, 4
_GAP_DAYS = 30
# Storm peaks: generalised Pareto, mm day-1; fits to station rainfall give shapes of 0.1 to 0.3.
_PEAK, _TAIL = 30.0, 0.2
# Clausius-Clapeyron: growth per degree of the water vapour that air can hold; days also become slightly drier.
_PER_DEGREE, _DRIER = 1.07, 0.02


def _ridge_above(elevation: np.ndarray, reach: float = 40.0) -> np.ndarray:
    """Metres from each cell up to the highest one upwind (west), decaying with distance over ``reach`` cells."""
    highest = elevation.copy()
    for column in range(1, elevation.shape[1]):
        highest[:, column] = np.maximum(elevation[:, column], highest[:, column - 1] * np.exp(-1 / reach))
    return highest - elevation


def _rain(world: _World, day: int, weather: np.ndarray, wind: float, flicker: np.ndarray) -> np.ndarray:
    """Rain of one day ``(lat, lon)``, mm, from weather on a four times coarser grid, wind and small-scale noise."""
    nlat, nlon = world.land.shape
    large = ndimage.zoom(weather, 4, order=1)[:nlat, :nlon]
    more = float(_PER_DEGREE ** world.warmer[day])
    amount = np.clip(large - float(0.15 + _DRIER * world.warmer[day]) + 0.05 * flicker, 0, None) ** 1.5 * (8.0 * more)
    rain = amount * np.clip(1 + wind * world.lift, 0.1, None) * (1 + world.elevation / 2500.0)
    if world.shadow:
        rain = rain * np.exp(-world.shadow * wind * world.lee / 1000.0)
    if world.storms:
        _add_storms(rain, large, world, day, _PEAK * more)
    return rain


def _add_storms(rain: np.ndarray, large: np.ndarray, world: _World, day: int, peak: float) -> None:
    """Add bell-shaped storms where the weather is unsettled."""
    rng = world.random(_STORMS, day)
    rate = world.storms * rain.size / 1e4 * (1 - 0.9 * min(world.seasons, 1.0) * world.winter[day])
    for _ in range(rng.poisson(rate)):
        row, column = (int(rng.integers(n)) for n in rain.shape)
        width, chance, rare = rng.uniform(1.0, 3.5), rng.uniform(), rng.uniform()
        if chance > np.clip(0.4 + 0.4 * large[row, column], 0, 1):
            continue
        box = tuple(slice(max(0, at - 12), at + 13) for at in (row, column))
        rows, columns = (np.arange(n)[part] - at for n, part, at in zip(rain.shape, box, (row, column), strict=True))
        bell = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * width**2))
        rain[box] += peak * ((1 - rare) ** -_TAIL - 1) / _TAIL * bell


def _not_observed(world: _World, period: int) -> np.ndarray:
    """Where nothing is observed in a period: areas, as if stations came and went; on average `gaps` of the land."""
    rng = world.random(_GAPS, period)
    field = _noise(rng, world.land.shape, 4.0)
    return world.land & (field <= np.quantile(field[world.land], rng.uniform(0, 2) * world.gaps))


def _observed(world: _World, days: np.ndarray, rain: np.ndarray) -> np.ndarray:
    """``rain (day, lat, lon)`` as reported: 0 below 0.1 mm, NaN in the ocean and in gaps."""
    rain = np.where(rain < 0.1, 0.0, rain).astype(np.float32)
    rain[:, ~world.land] = np.nan
    if world.gaps:
        for period in np.unique(days // _GAP_DAYS):
            inside = days // _GAP_DAYS == period
            rain[inside] = np.where(_not_observed(world, int(period)), np.float32(np.nan), rain[inside])
    return rain


def _season(world: _World) -> np.ndarray:
    return (0.35 * (1 + 0.5 * world.seasons) * world.winter).astype(np.float32)


def _strength(world: _World, gusts: Any, days: Any) -> Any:
    """Strength of the westerly wind on ``days`` from smooth noise, stronger in winter."""
    return (1.0 + 0.5 * np.tanh(gusts)) * (1 + 0.4 * min(world.seasons, 1.0) * world.winter[days])


def _in_memory(world: _World, rng: np.random.Generator) -> np.ndarray:
    """All days ``(time, lat, lon)``, one after another, from a single sequence of random numbers."""
    days, (nlat, nlon) = len(world.winter), world.land.shape
    # Weather: smooth fields that drift from day to day, wetter in winter.
    weather = _noise(rng, (days, nlat // 4 + 1, nlon // 4 + 1), 5.0)
    for day in range(1, days):
        weather[day] = 0.55 * np.roll(weather[day - 1], 3, axis=1) + 0.84 * weather[day]
    weather = weather + _season(world)[:, None, None]
    wind = _strength(world, ndimage.gaussian_filter1d(rng.standard_normal(days), 1.0), np.arange(days))
    rain = np.empty((days, nlat, nlon), np.float32)
    flicker = np.zeros(world.land.shape, np.float32)
    for day in range(days):
        flicker = 0.3 * flicker + _noise(rng, world.land.shape, 1.0)
        rain[day] = _rain(world, day, weather[day], wind[day], flicker)
    return _observed(world, np.arange(days), rain)


def _by_day(days: np.ndarray, world: _World) -> np.ndarray:
    """``(day, lat, lon)`` for ``days`` (consecutive positions along time), each day from its own random numbers."""
    nlat, nlon = world.land.shape
    first, last = int(days[0]), int(days[-1])

    def noise(stream: int, shape: tuple[int, int], width: float, back: int) -> dict[int, np.ndarray]:
        # Standard deviation 1 on average, not on each day: the filter's response to a single cell gives the divisor.
        one = np.zeros(shape)
        one[0, 0] = 1
        std = np.float32(np.sqrt((ndimage.gaussian_filter(one, width, mode="wrap") ** 2).sum()))
        rough = (
            (day, world.random(stream, day + _WEATHER_DAYS).standard_normal(shape, np.float32))
            for day in range(first - back + 1, last + 1)
        )
        return {day: ndimage.gaussian_filter(field, width, mode="wrap") / std for day, field in rough}

    drift = noise(_WEATHER, (nlat // 4 + 1, nlon // 4 + 1), 5.0, _WEATHER_DAYS)
    small = noise(_FLICKER, world.land.shape, 1.0, _FLICKER_DAYS)
    near = np.arange(-_WIND_DAYS, _WIND_DAYS + 1)
    bell = np.exp(-(near**2) / 2) / np.exp(-(near**2) / 2).sum()
    season = _season(world)
    rain = np.empty((len(days), nlat, nlon), np.float32)
    for i, day in enumerate(days.tolist()):
        weather = season[day] + np.sum(
            [0.84 * 0.55**k * np.roll(drift[day - k], 3 * k, axis=1) for k in range(_WEATHER_DAYS)], axis=0
        )
        flicker = np.sum([0.3**k * small[day - k] for k in range(_FLICKER_DAYS)], axis=0)
        gusts = bell @ [world.random(_WIND, day + _WIND_DAYS + k).standard_normal() for k in near]
        rain[i] = _rain(world, day, weather, _strength(world, gusts, day), flicker)
    return _observed(world, days, rain)


def make_climate(
    seed: int = 0,
    years: int = 3,
    shape: tuple[int, int] = (96, 128),
    spacing: float = 1 / 24,
    start: int = 2001,
    *,
    storms: float = 0.0,
    seasons: float = 0.0,
    shadow: float = 0.0,
    warming: float = 0.0,
    gaps: float = 0.0,
    chunks: int | None = None,
) -> xr.Dataset:
    """Generate daily precipitation over terrain with an ocean.

    Rain comes with large-scale westerly weather, is enhanced on windward slopes (and reduced behind them), increases
    with height, and varies on small scales. About half of the days are dry at any place. The options make the climate
    harder to downscale and closer to observations; for tests of models: ``make_climate(years=24, storms=8, seasons=1,
    shadow=1, warming=3, gaps=0.05, chunks=365)``.

    Parameters
    ----------
    seed
        The same seed gives the same climate, bit for bit on one machine. Each option changes only what it describes.
    years, start
        Number of calendar years, and the first one.
    shape, spacing
        Number of cells along latitude and longitude, and their size in degrees.
    storms
        Storms per day and 10,000 cells, where the weather is unsettled: a few cells wide, anywhere, with peaks from a
        generalised Pareto distribution of shape 0.2 (heavy tails).
    seasons
        1: the contrast between wet winters and dry summers grows by half, summers are less windy, and nearly all storms
        come in summer.
    shadow
        Rain shadow: behind a ridge of 1000 m, ``1 - exp(-shadow)`` of the rain is lost at mean wind, and less farther
        away.
    warming
        Degrees by which the second half of the days is warmer: heavy rain and storms grow by 7 % per degree, and there
        are fewer wet days.
    gaps
        Average share of land without observations (NaN): the areas change every 30 days, as if stations came and went.
    chunks
        Days per chunk of a lazy climate; None: in memory. The lazy climate draws random numbers for each day, so its
        values do not depend on the chunks, but differ from those of the climate in memory.

    Returns
    -------
    Dataset on ``(time, lat, lon)``, latitude descending: ``precipitation`` (mm day-1, float32, NaN in the ocean and
    in gaps), ``elevation`` (m, float32, 0 in the ocean) and ``mask`` (bool, True on land). With the defaults it takes
    55 MB of memory; with ``chunks`` the precipitation is lazy. Raises ValueError for a number that makes no sense.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 24))
    >>> dict(climate["precipitation"].sizes)
    {'time': 365, 'lat': 16, 'lon': 24}
    """
    options = {"storms": storms, "seasons": seasons, "shadow": shadow, "gaps": gaps}
    for name, value in (options | {"warming": warming}).items():
        low, high = -np.inf if name == "warming" else 0, 0.5 if name == "gaps" else np.inf
        if not (np.isfinite(value) and low <= value <= high):
            span = "a finite number" if low else "a number of at least 0"
            raise ValueError(f"{name} is {value}; needed: {span}{'' if high > 1 else f' and at most {high}'}.")
    if chunks is not None and (int(chunks) != chunks or chunks < 1):
        raise ValueError(f"chunks is {chunks}; needed: the number of days in a chunk, or None.")
    rng = np.random.default_rng(seed)
    elevation, land = _terrain(rng, shape)
    time = xr.date_range(f"{start}-01-01", f"{start + years - 1}-12-31", freq="D")
    days = len(time)
    nlat, nlon = shape
    smooth = ndimage.gaussian_filter(elevation, 1.2)
    upslope = np.gradient(smooth, axis=1) / 200.0
    dried = ndimage.uniform_filter1d(np.clip(np.gradient(smooth, axis=1), None, 0), 9, axis=1, origin=4) / 90.0
    lift = np.clip(np.tanh(upslope) * 0.9 + dried * 0.5, -0.8, 1.2)
    winter = np.cos(2 * np.pi * (np.asarray(time.day_of_year) - 20) / 365.25)
    warmer = np.where(np.arange(days) < days // 2, 0.0, warming)
    world = _World(seed, elevation, land, lift, _ridge_above(smooth), winter, warmer, **options)
    if chunks is None:
        rain = _in_memory(world, rng)
    else:
        which = dask.array.arange(days, chunks=chunks)
        rain = which.map_blocks(
            _by_day, world, dtype=np.float32, new_axis=[1, 2], chunks=(*which.chunks, (nlat,), (nlon,)),
            meta=np.empty((0, 0, 0), np.float32),
        )  # fmt: skip

    lat = 46.0 - spacing / 2 - spacing * np.arange(nlat)
    lon = -124.0 + spacing / 2 + spacing * np.arange(nlon)
    coords = {
        "time": ("time", time, {"standard_name": "time", "axis": "T"}),
        "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}),
        "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}),
    }
    rain_attrs = {
        "standard_name": "lwe_precipitation_rate",
        "long_name": "daily precipitation",
        "units": "mm day-1",
        "cell_methods": "time: mean",
    }
    height_attrs = {"standard_name": "surface_altitude", "long_name": "elevation", "units": "m"}
    return xr.Dataset(
        {
            "precipitation": (("time", "lat", "lon"), rain, rain_attrs),
            "elevation": (("lat", "lon"), elevation, height_attrs),
            "mask": (("lat", "lon"), land, {"long_name": "land"}),
        },
        coords,
        {"title": f"Generated climate, seed {seed}", "Conventions": "CF-1.11"},
    )
