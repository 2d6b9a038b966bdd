"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch.

The public names are listed in ``__init__.pyi``; each is imported on first use. Each folder has one role, described in
its docstring, and imports go one way:
``stores <- grids <- models <- {inference, levels, losses} <- {training, climate} <- evaluation <- cli``;
``stores``, ``prism`` and ``clusters`` know nothing about networks.
"""

import sys as _sys
from pathlib import Path as _Path

import lazy_loader as _lazy

from xdeepsd._version import __version__ as __version__

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

# Registers ds.deepsd. This imports xarray, which `xdeepsd --help` should not have to wait for.
if _Path(_sys.argv[0] if _sys.argv else "").stem != "xdeepsd":
    from xdeepsd import accessor as _accessor  # noqa: F401
