"""Fill numba's cache, so that no worker compiles: downscale a little with every kind of kernel, and fit DenseLoss.

Prints how many functions were compiled and how many came from the cache.
"""

import warnings

import numpy as np
import torch
import xarray as xr

import xdeepsd
from xdeepsd.inference.fast import compiled, fused
from xdeepsd.inference.forward import fast_forward, has_bfloat16
from xdeepsd.losses import compiled as losses


def main() -> None:
    warnings.simplefilter("ignore")
    assert fast_forward() is not None, "the fast forward cannot be compiled here"
    demo = xdeepsd.load_model("demo")
    lat, lon = (demo.static[dim].values.reshape(-1, demo.scale).mean(1) for dim in ("lat", "lon"))
    rain = np.random.default_rng(0).gamma(0.7, 8.0, (3, lat.size, lon.size)).astype(np.float32)
    coords = {"time": xr.date_range("2001-01-01", periods=3), "lat": lat, "lon": lon}
    coarse = xr.DataArray(rain, coords, ("time", "lat", "lon"), "precipitation", {"units": "mm day-1"})
    precisions = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    for precision in precisions:
        for conserve in (None, "multiplicative", "additive"):
            xdeepsd.downscale(coarse, demo, precision=precision, conserve=conserve)
    torch.manual_seed(0)
    for factor, kernels in ((2, (9, 1, 5)), (2, (9, 3, 5)), (3, (9, 1, 5)), (4, (9, 1, 5))):
        config = xdeepsd.SRCNNConfig(factor=factor, kernels=kernels, static=())
        stage = xdeepsd.Stage(
            xdeepsd.SRCNN(config).eval(), xdeepsd.Normalizer(2.5, 6.0), {}, xdeepsd.Normalizer(2.5, 6.0)
        )
        fused.prepare(stage, np.zeros((0, 8 * factor, 8 * factor), np.float32))(np.ones((2, 8, 8), np.float32))
    xdeepsd.DenseWeight().fit(rain.ravel()).weights(rain.ravel())
    functions = [value for module in (compiled, losses) for value in vars(module).values() if hasattr(value, "stats")]
    missed, hit = (
        sum(sum(getattr(function.stats, kind).values()) for function in functions)
        for kind in ("cache_misses", "cache_hits")
    )
    print(f"{missed} compiled, {hit} from the cache")


if __name__ == "__main__":
    main()
