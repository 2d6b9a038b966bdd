"""Pictures: maps on one colour scale (``panels``), and curves of what the evaluation finds (``curves``).

Each function takes what others of xdeepsd return and gives back a matplotlib Figure, which a notebook shows and
``figure.savefig(path)`` writes; pyplot's state is not touched. May import all of evaluation but the report and the
sweep.

Examples
--------
>>> import xdeepsd
>>> climate = xdeepsd.make_climate(years=1, shape=(16, 16))
>>> rain = climate["precipitation"].isel(time=5)
>>> figure = xdeepsd.plot.maps({"fine": rain, "coarse": xdeepsd.coarsen(rain, 4)})
>>> figure.savefig("maps.png")
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
