"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd import accessor as _accessor  # noqa: F401  (registers ds.deepsd)
from xdeepsd.inference import downscale
from xdeepsd.normalize import Normalizer
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import StackedSRCNN, Stage, load_model, save_model
from xdeepsd.store import to_zarr

__all__ = [
    "SRCNN",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "downscale",
    "load_model",
    "save_model",
    "to_zarr",
]
