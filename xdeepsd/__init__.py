"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd.levels import build_levels, make_levels, open_levels
from xdeepsd.normalize import Normalizer
from xdeepsd.regrid import coarsen
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import StackedSRCNN, Stage, load_model, save_model

__all__ = [
    "SRCNN",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "build_levels",
    "coarsen",
    "load_model",
    "make_levels",
    "open_levels",
    "save_model",
]
