"""Small models and grids for tests."""

import numpy as np
import torch
import xarray as xr

import xdeepsd


def make_stack(stages=2, seed=0, gain=3.0, **config):
    """A stack of random weights, large enough that every layer matters."""
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
    """Rain with dry cells on a regular grid, latitude descending."""
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
