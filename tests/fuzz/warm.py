"""Imported once by the server that forks processes: loads all modules, compiles with numba, leaves no thread."""

import dask
import distributed  # noqa: F401
import torch
import torch._dynamo  # imported when the first optimizer is made
from builders import make_coarse, make_stack, make_static

import xdeepsd

from . import damage, faults, folders, kills, regridding, stacks  # noqa: F401

torch.set_num_threads(1)
for dtype in ("float32", "float64"):
    coarse = make_coarse(days=1, nlat=4, nlon=6, dtype=dtype)
    static = make_static(coarse, 2)
    for method in ("conservative", "nearest"):
        xdeepsd.regrid(coarse, static, method)
coarse.deepsd.downscale(make_stack(1, channels=(2,), kernels=(3, 3)), static)
with dask.config.set(scheduler="synchronous"):
    for level in xdeepsd.make_levels(coarse, make_static(coarse, 1), (2,)):
        level.load()
