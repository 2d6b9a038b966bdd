"""Pictures: maps on one colour scale (``panels``), and curves of what the evaluation finds (``curves``).

Each function takes what others of xdeepsd return and gives back a matplotlib Figure, which a notebook shows and
``figure.savefig(path)`` writes; pyplot's state is not touched. May import all of evaluation but the report and the
sweep.
"""

from xdeepsd.evaluation.plot.curves import (
    bins,
    differences,
    quantiles,
    ranks,
    seasonal_cycle,
    spectra,
    sweep,
    training,
)
from xdeepsd.evaluation.plot.panels import compare, maps

__all__ = [
    "bins",
    "compare",
    "differences",
    "maps",
    "quantiles",
    "ranks",
    "seasonal_cycle",
    "spectra",
    "sweep",
    "training",
]
