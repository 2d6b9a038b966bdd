"""Small models and grids for tests."""

import numpy as np
import torch
import xarray as xr

import xdeepsd
from xdeepsd.grids.blocks import block_mean


def make_stack(stages=2, seed=0, gain=3.0, **config):
    """A stack with random weights, large enough for every layer to matter."""
    torch.manual_seed(seed)
    config = xdeepsd.SRCNNConfig(**config)
    made = []
    for _ in range(stages):
        net = xdeepsd.SRCNN(config)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(gain if parameter.ndim > 1 else 1.0)
        normalizers = {
            name: xdeepsd.Normalizer(0.1, 0.4) if name == "climatology" else xdeepsd.Normalizer(800, 600)
            for name in config.static
        }
        target = xdeepsd.Normalizer(0.05, 1.5) if config.residual else xdeepsd.Normalizer(2.5, 6)
        made.append(xdeepsd.Stage(net, xdeepsd.Normalizer(2.5, 6), normalizers, target))
    return xdeepsd.StackedSRCNN(made)


def make_coarse(days=5, nlat=6, nlon=8, spacing=1.0, seed=1, name="pr", dtype="float32"):
    """Precipitation with dry cells on a regular grid, latitude descending."""
    rng = np.random.default_rng(seed)
    rain = np.clip(rng.normal(0, 6, (days, nlat, nlon)), 0, None).astype(dtype)
    lat = 49 - spacing * (np.arange(nlat) + 0.5)
    lon = -124 + spacing * (np.arange(nlon) + 0.5)
    return xr.DataArray(
        rain,
        {
            "time": ("time", xr.date_range("2001-01-01", periods=days), {"standard_name": "time"}),
            "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east"}),
        },
        ("time", "lat", "lon"),
        name=name,
        attrs={
            "units": "mm day-1",
            "standard_name": "lwe_precipitation_rate",
            "long_name": "rain",
            "cell_methods": "time: mean",
        },
    )


def make_static(coarse, scale, seed=2, names=("elevation",)):
    """Static fields on the grid ``scale`` times finer than ``coarse``."""
    rng = np.random.default_rng(seed)
    coords = {}
    for dim in ("lat", "lon"):
        centres = coarse[dim].values
        step = (centres[1] - centres[0]) / scale
        first = centres[0] - (scale - 1) / 2 * step
        coords[dim] = (dim, first + step * np.arange(centres.size * scale), coarse[dim].attrs)
    shape = tuple(coarse.sizes[d] * scale for d in ("lat", "lon"))
    fields = {}
    for name in names:
        if name == "climatology":
            fields[name] = (("lat", "lon"), rng.gamma(4, 1, shape), {"units": "mm day-1"})
        else:
            fields[name] = (("lat", "lon"), rng.normal(800, 600, shape), {"units": "m"})
    return xr.Dataset(fields, coords)


def pair_of_levels(days=10, shape=(12, 14), factor=2, seed=0, ocean=True, chunks=None):
    """A coarse and a fine level with an ocean in one corner and some days with gaps."""
    rng = np.random.default_rng(seed)
    nlat, nlon = shape
    fine = rng.gamma(0.5, 4.0, (days, nlat * factor, nlon * factor)).astype(np.float32)
    mask = np.ones(fine.shape[1:], bool)
    if ocean:
        mask[: 2 * factor, : 3 * factor] = False
        fine[:, ~mask] = np.nan
        fine[days // 2, -factor:, -factor:] = np.nan
    coarse = block_mean(fine, factor).astype(np.float32)
    elevation = rng.uniform(0, 2000, mask.shape).astype(np.float32)
    time = xr.date_range("2001-01-01", periods=days)
    lat, lon = 50 - np.arange(nlat * factor) / 24, np.arange(nlon * factor) / 24 - 120

    def level(values, factor, **maps):
        coords = {"time": time, "lat": lat.reshape(-1, factor).mean(1), "lon": lon.reshape(-1, factor).mean(1)}
        fields = {"precipitation": (("time", "lat", "lon"), values, {"units": "mm day-1"})}
        return xr.Dataset(fields | {name: (("lat", "lon"), field) for name, field in maps.items()}, coords)

    low = level(coarse, factor, elevation=block_mean(elevation, factor), mask=block_mean(mask, factor) > 0)
    high = level(fine, 1, elevation=elevation, mask=mask)
    return (low.chunk(time=chunks), high.chunk(time=chunks)) if chunks else (low, high)


def make_correction(seed=0):
    """A small bias correction, not fitted to anything."""
    rng, grid = np.random.default_rng(seed), make_coarse(nlat=3, nlon=4)
    cells = {"lat": grid["lat"].values, "lon": grid["lon"].values, "group": ["DJF", "JJA"]}
    factors = rng.uniform(0.5, 2, (3, 4, 2, 5)).astype("f4")
    factors[0, 0] = np.nan
    data = xr.Dataset(
        {"factors": ((*cells, "quantiles"), factors), "highest": (tuple(cells), factors[..., -1] * 20)},
        cells | {"quantiles": np.linspace(0.1, 0.9, 5, dtype="f4")},
    )
    how = {"group": "time.season", "window": 1, "kind": "*", "interp": "linear", "adapt_freq_thresh": None}
    return xdeepsd.Correction(data, how | {"max_tail_factor": 10.0, "max_factor": 10.0, "calendar": "noleap"})
