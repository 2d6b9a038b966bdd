from ._version import __version__ as __version__
from .climate.audit import Audit, audit
from .climate.correction import fit_correction
from .clusters.cluster import cluster
from .evaluation import plot
from .evaluation.baselines import baselines, bcsd, climatology_ratio
from .evaluation.errors import bin_edges, bin_errors, compare
from .evaluation.evaluate import evaluate
from .evaluation.indices import climate_indices, compare_changes, compare_indices
from .evaluation.members import crps, rank_histogram, reliability, spread_skill
from .evaluation.objects import sal
from .evaluation.significance import differences, significance
from .evaluation.space import compare_spectra, decorrelation_length, fractions_skill
from .evaluation.spells import compare_spells
from .evaluation.sweep import run_sweep
from .grids.interpolate import interpolate
from .grids.regrid import coarsen, regrid, regrid_weights
from .grids.regrid_weights import Weights
from .inference.correction import Correction, load_correction
from .inference.distribution import chance_above, distribution, expectation, quantile
from .inference.downscale import downscale
from .inference.sample import sample
from .levels.climate import make_climate
from .levels.disk import build_levels, open_levels
from .levels.memory import make_levels
from .losses.dense_loss import DenseLoss
from .losses.dense_weight import DenseWeight
from .losses.masked import masked_mse
from .models.files import load_model, load_models, save_model
from .models.normalize import Normalizer
from .models.srcnn import SRCNN, SRCNNConfig
from .models.stack import StackedSRCNN
from .models.stage import Stage
from .prism.fetch import FetchReport, fetch_prism
from .prism.files import open_prism
from .stores.write import to_zarr
from .training.config import TrainConfig
from .training.stack import train_stack, train_stacks
from .training.stage import TrainedStage, train_stage

__all__ = [
    "SRCNN",
    "Audit",
    "Correction",
    "DenseLoss",
    "DenseWeight",
    "FetchReport",
    "Normalizer",
    "SRCNNConfig",
    "StackedSRCNN",
    "Stage",
    "TrainConfig",
    "TrainedStage",
    "Weights",
    "__version__",
    "audit",
    "baselines",
    "bcsd",
    "bin_edges",
    "bin_errors",
    "build_levels",
    "chance_above",
    "climate_indices",
    "climatology_ratio",
    "cluster",
    "coarsen",
    "compare",
    "compare_changes",
    "compare_indices",
    "compare_spectra",
    "compare_spells",
    "crps",
    "decorrelation_length",
    "differences",
    "distribution",
    "downscale",
    "evaluate",
    "expectation",
    "fetch_prism",
    "fit_correction",
    "fractions_skill",
    "interpolate",
    "load_correction",
    "load_model",
    "load_models",
    "make_climate",
    "make_levels",
    "masked_mse",
    "open_levels",
    "open_prism",
    "plot",
    "quantile",
    "rank_histogram",
    "regrid",
    "regrid_weights",
    "reliability",
    "run_sweep",
    "sal",
    "sample",
    "save_model",
    "significance",
    "spread_skill",
    "to_zarr",
    "train_stack",
    "train_stacks",
    "train_stage",
]
