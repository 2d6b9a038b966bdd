"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd.density import DenseWeight
from xdeepsd.losses import DenseLoss, masked_mse
from xdeepsd.normalize import Normalizer
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import StackedSRCNN, Stage, load_model, save_model

__all__ = [
    "SRCNN",
    "DenseLoss",
    "DenseWeight",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "load_model",
    "masked_mse",
    "save_model",
]
