"""The climatology of a pair of levels: a given one, whose years are checked, or the mean of the training days."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xdeepsd.grids.blocks import block_mean
from xdeepsd.levels.days import name_days, name_span
from xdeepsd.levels.pairs import factor_between
from xdeepsd.levels.splits import Split, within
from xdeepsd.models.static import CLIMATOLOGY, climatology_channel, fill

logger = logging.getLogger(__name__)


def with_climatology(
    coarse: xr.Dataset, fine: xr.Dataset, static: Sequence[str], split: Split
) -> tuple[xr.Dataset, xr.Dataset]:
    """Both levels, with a climatology if the network uses one: the given one, else the mean of the training days.

    Its attribute ``origin`` says which. Raises ValueError where the years of a given climatology (its attribute
    ``years``, set by `make_levels` and `build_levels`) include validation or test days: the errors of those days would
    be too small. Where the years are not known, the log says so.
    """
    if CLIMATOLOGY not in static:
        return coarse, fine
    if CLIMATOLOGY not in fine:
        origin = f"mean of the training days ({name_span(fine['time'][split.train])})"
        logger.info("No climatology was given: using the %s.", origin)
        mean = fine["precipitation"].isel(time=split.train).mean("time").compute(scheduler="threads")
        mean.attrs = {"units": fine["precipitation"].attrs.get("units", ""), "long_name": "mean of the training days"}
        fine = fine.assign({CLIMATOLOGY: mean.astype(np.float32)})
        coarse = coarse.drop_vars(CLIMATOLOGY, errors="ignore")
    else:
        origin = _check_climatology(fine, split)
    fine = fine.assign({CLIMATOLOGY: fine[CLIMATOLOGY].assign_attrs(origin=origin)})
    if CLIMATOLOGY not in coarse:
        # With threads: this may run inside a task of a cluster, which must not wait for the cluster
        field = np.asarray(fine[CLIMATOLOGY].transpose("lat", "lon").compute(scheduler="threads"))
        coarse = coarse.assign({CLIMATOLOGY: (("lat", "lon"), block_mean(field, factor_between(coarse, fine)))})
    return coarse, fine


def coarse_bias(coarse: xr.Dataset, fine: xr.Dataset, split: Split) -> np.ndarray:
    """What an independent coarse product gets wrong in the mean: `climatology_channel` of the training days' means.

    ``(lat, lon)`` on the grid of ``fine``, from the observations there and the product in ``coarse``, of the same
    days. Reads the training days of both.
    """
    means = [
        level["precipitation"].isel(time=split.train).mean("time", dtype=np.float64).compute(scheduler="threads")
        for level in (fine, coarse)
    ]
    above, below = (fill(mean.transpose("lat", "lon").values) for mean in means)
    return climatology_channel(above, below, factor_between(coarse, fine))


def _check_climatology(fine: xr.Dataset, split: Split) -> str:
    """The origin of a given climatology, as text; ValueError where its years include validation or test days."""
    years = fine[CLIMATOLOGY].attrs.get("years")
    if not isinstance(years, str) or "/" not in years:
        logger.warning(
            "The climatology was given as a map of unknown years. If they include validation or test days, the errors "
            "of these days will be too small."
        )
        return "a given map, its years are not known"
    index, days = fine["time"].to_index(), within(fine["time"], years)
    parts = {name: np.intersect1d(days, part) for name, part in split._asdict().items() if name != "train"}
    found = [f"{len(part)} {name} days ({name_days(index[part])})" for name, part in parts.items() if len(part)]
    if found:
        raise ValueError(
            f"The climatology in the levels is the mean of {years}, which includes {' and '.join(found)}. Needed: one "
            "without them, or their errors would be too small. Type [level.drop_vars('climatology') for level in "
            "levels], and training uses the mean of its own days; or build levels at another path, with the "
            "climatology of the training years, build_levels(..., climatology=slice('FIRST', 'LAST')), or with none; "
            "or give other days for validation and test."
        )
    return f"mean of {years}"
