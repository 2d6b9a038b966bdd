"""A small generated climate for the demo, docs and tests: terrain, an ocean, and orographic daily rain."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import ndimage


def _noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1, correlated over about ``width`` cells (last two axes)."""
    sigma = (*(0,) * (len(shape) - 2), width, width)
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap")
    return field / field.std()


def _terrain(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Elevation (m, 0 in the ocean) and land mask: a coast in the west, ridges along it, fractal detail."""
    rows, cols = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    coast = 0.12 + 0.05 * np.sin(5 * rows + 1) + 0.03 * _noise(rng, shape, 6)
    land = cols > coast
    inland = np.clip((cols - coast) / 0.3, 0, 1)
    ridges = np.exp(-(((cols - coast - 0.22 - 0.05 * np.sin(4 * rows)) / 0.09) ** 2))
    ridges += 0.7 * np.exp(-(((cols - coast - 0.58 + 0.08 * np.cos(3 * rows)) / 0.07) ** 2))
    detail = sum(_noise(rng, shape, width) * width**0.5 for width in (1.5, 3.0, 6.0, 12.0)) / 6.0
    height = 250 * inland + 1700 * ridges * (1 + 0.5 * detail) + 350 * inland * detail
    return np.where(land, np.clip(height, 1, None), 0.0).astype(np.float32), land


def make_climate(
    seed: int = 0, years: int = 3, shape: tuple[int, int] = (96, 128), spacing: float = 1 / 24, start: int = 2001
) -> xr.Dataset:
    """Generate daily precipitation over terrain with an ocean.

    Rain comes with westerly weather of large scale, is lifted by slopes that face the wind (and dried behind them),
    grows with height, and flickers on small scales. About half of the days are dry at any place.

    Parameters
    ----------
    seed
        The same seed gives the same climate, to the bit on one machine.
    years, start
        Calendar years and the first of them.
    shape, spacing
        Cells of latitude and longitude, and their size in degrees.

    Returns
    -------
    Dataset on ``(time, lat, lon)``, latitude descending: ``precipitation`` (mm day-1, float32, NaN in the ocean),
    ``elevation`` (m, float32, 0 in the ocean) and ``mask`` (bool, True on land). In memory, not lazy: 55 MB for the
    defaults.
    """
    rng = np.random.default_rng(seed)
    elevation, land = _terrain(rng, shape)
    time = xr.date_range(f"{start}-01-01", f"{start + years - 1}-12-31", freq="D")
    days = len(time)

    # Weather: smooth fields that move on from day to day, wetter in winter.
    nlat, nlon = shape
    weather = _noise(rng, (days, nlat // 4 + 1, nlon // 4 + 1), 5.0)
    for day in range(1, days):
        weather[day] = 0.55 * np.roll(weather[day - 1], 3, axis=1) + 0.84 * weather[day]
    season = 0.35 * np.cos(2 * np.pi * (np.asarray(time.day_of_year) - 20) / 365.25)
    weather = weather + season[:, None, None].astype(np.float32)
    wind = 1.0 + 0.5 * np.tanh(ndimage.gaussian_filter1d(rng.standard_normal(days), 1.0))  # strength of the westerly

    smooth = ndimage.gaussian_filter(elevation, 1.2)
    upslope = np.gradient(smooth, axis=1) / 200.0
    shadow = ndimage.uniform_filter1d(np.clip(np.gradient(smooth, axis=1), None, 0), 9, axis=1, origin=4) / 90.0
    lift = np.clip(np.tanh(upslope) * 0.9 + shadow * 0.5, -0.8, 1.2)

    rain = np.empty((days, nlat, nlon), np.float32)
    flicker = np.zeros(shape, np.float32)
    for day in range(days):
        large = ndimage.zoom(weather[day], 4, order=1)[:nlat, :nlon]
        flicker = 0.3 * flicker + _noise(rng, shape, 1.0)
        amount = np.clip(large - 0.15 + 0.05 * flicker, 0, None) ** 1.5 * 8.0
        rain[day] = amount * np.clip(1 + wind[day] * lift, 0.1, None) * (1 + elevation / 2500.0)
    rain = np.where(rain < 0.1, 0.0, rain).astype(np.float32)
    rain[:, ~land] = np.nan

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
