"""xdeepsd: statistical downscaling with stacked SRCNNs (DeepSD) on xarray, Dask, Zarr and PyTorch."""

__version__ = "0.1.0"

from xdeepsd import accessor as _accessor  # noqa: F401  (registers ds.deepsd)
from xdeepsd.grids.regrid import coarsen, regrid, regrid_weights
from xdeepsd.inference import downscale
from xdeepsd.levels.disk import build_levels, make_levels, open_levels
from xdeepsd.losses.dense_loss import DenseLoss, masked_mse
from xdeepsd.losses.density import DenseWeight
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stack import StackedSRCNN, Stage, load_model, save_model
from xdeepsd.prism.fetch import FetchReport, fetch_prism
from xdeepsd.prism.files import open_prism
from xdeepsd.stores.write import to_zarr
from xdeepsd.training.config import TrainConfig
from xdeepsd.training.stack import train_stack
from xdeepsd.training.stage import TrainedStage, train_stage

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
