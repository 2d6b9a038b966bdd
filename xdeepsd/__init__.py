"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd import accessor as _accessor  # noqa: F401  (registers ds.deepsd)
from xdeepsd.density import DenseWeight
from xdeepsd.inference import downscale
from xdeepsd.levels import build_levels, make_levels, open_levels
from xdeepsd.losses import DenseLoss, masked_mse
from xdeepsd.normalize import Normalizer
from xdeepsd.regrid import coarsen, regrid, regrid_weights
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import StackedSRCNN, Stage, load_model, save_model
from xdeepsd.train import TrainConfig, TrainedStage, train_stack, train_stage

__all__ = [
    "SRCNN",
    "DenseLoss",
    "DenseWeight",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "TrainConfig",
    "TrainedStage",
    "build_levels",
    "coarsen",
    "downscale",
    "load_model",
    "make_levels",
    "masked_mse",
    "open_levels",
    "regrid",
    "regrid_weights",
    "save_model",
    "train_stack",
    "train_stage",
]
