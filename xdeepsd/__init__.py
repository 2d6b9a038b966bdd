"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd import accessor as _accessor  # noqa: F401  (registers ds.deepsd)
from xdeepsd.density import DenseWeight
from xdeepsd.fetch import FetchReport, fetch_prism
from xdeepsd.inference import downscale
from xdeepsd.levels import build_levels, make_levels, open_levels
from xdeepsd.losses import DenseLoss, masked_mse
from xdeepsd.normalize import Normalizer
from xdeepsd.prism import open_prism
from xdeepsd.regrid import coarsen, regrid, regrid_weights
from xdeepsd.srcnn import SRCNN, SRCNNConfig
from xdeepsd.stack import StackedSRCNN, Stage, load_model, save_model
from xdeepsd.stack_training import train_stack
from xdeepsd.store import to_zarr
from xdeepsd.train import TrainedStage, train_stage
from xdeepsd.trainconfig import TrainConfig

__all__ = [
    "SRCNN",
    "DenseLoss",
    "DenseWeight",
    "FetchReport",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "TrainConfig",
    "TrainedStage",
    "build_levels",
    "coarsen",
    "downscale",
    "fetch_prism",
    "load_model",
    "make_levels",
    "masked_mse",
    "open_levels",
    "open_prism",
    "regrid",
    "regrid_weights",
    "save_model",
    "to_zarr",
    "train_stack",
    "train_stage",
]
