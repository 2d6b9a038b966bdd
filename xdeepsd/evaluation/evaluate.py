"""Errors, rare events, distributions and members of a prediction and of what stands beside it, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from xdeepsd.evaluation.fields import alike, mean_of_members, regions_of
from xdeepsd.evaluation.measures import GROUPS, grouped, of_cells, of_days, of_groups, of_members, of_one
from xdeepsd.evaluation.sums import day_sums, region_sums
from xdeepsd.grids.regrid import coarsen
from xdeepsd.levels.days import name_days
from xdeepsd.levels.splits import within
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.stack import StackedSRCNN

By = Literal["season", "month", "region", "cell", "level"]
_LONG_NAMES = {
    "bias": "mean error", "rmse": "root mean squared error", "mae": "mean absolute error",
    "correlation": "correlation", "skill": "overlap of the distributions",
    "wet_bias": "mean error where it rained", "wet_rmse": "root mean squared error where it rained",
    "wet_mae": "mean absolute error where it rained", "dry_bias": "mean error where it was dry",
    "dry_rmse": "root mean squared error where it was dry", "dry_mae": "mean absolute error where it was dry",
    "count": "cells and days that count", "amount": "an event is this amount or more",
    "pod": "probability of detection", "far": "false alarm ratio", "csi": "critical success index",
    "frequency_bias": "predicted over observed events", "wasserstein": "Wasserstein distance of the distributions",
    "predicted_quantile": "quantile of the prediction", "observed_quantile": "quantile of the truth",
    "crps": "fair continuous ranked probability score",
    "tail_crps": "the same of what lies above the amount of the event", "spread": "spread of the members",
    "spread_skill_ratio": "spread over the error of the mean", "rank_histogram": "occurrences of the rank of the truth",
    "daily_weight": "area that counts", "daily_error": "mean error of the day",
    "daily_absolute": "mean absolute error of the day", "daily_squared": "mean squared error of the day",
}  # fmt: skip
_NO_UNITS = ("correlation", "skill", "count", "pod", "far", "csi", "frequency_bias", "spread_skill_ratio",
             "rank_histogram", "daily_weight")  # fmt: skip


def evaluate(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
    by: By | None = None,
    regions: xr.DataArray | None = None,
    factors: Sequence[int] | None = None,
    thresholds: Sequence[float] = (0.1, 10.0, 50.0),
    wet: float = 1.0,
    model: StackedSRCNN | None = None,
    training_days: Any = None,
) -> xr.Dataset:
    """How good a prediction of daily precipitation is, beside other methods over the same cells and days.

    Everything is made of sums that take one pass over the fields, so memory depends on the chunks alone. Several
    results computed together (``dask.compute(evaluate(p, y), evaluate(p, y, by="month"))``) share that pass.

    Parameters
    ----------
    prediction
        ``(time, lat, lon)``, also with ``member``; precipitation in any units, with the user's names and order. Of
        members, the mean is judged, and they themselves by their CRPS, spread and ranks.
    truth
        ``(time, lat, lon)`` on the same grid and days. NaN and infinite values are missing.
    beside
        Other methods by name, as from `xdeepsd.baselines`. A cell counts on a day where all of them and the truth have
        a value.
    by
        None: over all days and cells; "season" or "month": over the days of each, and all cells; "region": over all
        days, and the cells of each of the ``regions``; "cell": over the days, for each cell, without what needs whole
        distributions; "level": over all, at each resolution of a ladder with these ``factors``.
    regions
        With ``by="region"``: a map ``(lat, lon)`` on the grid of the truth, of labels (numbers or text; NaN or an empty
        text: in no region), such as `regionmask` makes of polygons; or a mask, whose regions are "inside" and
        "outside". It is computed.
    factors
        With ``by="level"``: as of `xdeepsd.make_levels`, the coarsest first. All fields are coarsened to the levels,
        without the cells that do not count; level 0 is the coarsest, the last one the fields as they are.
    thresholds
        mm day-1; an event is that amount or more. Taken are the edges of the bins nearest below (0.1 mm and whole
        millimetres up to 25, 30, 40, 50 and 100 are edges, others are up to 1.6 % away; by cell they are exact).
    wet
        mm day-1: where it rained as much or more in the truth counts as wet, the rest as dry. 1 mm as in the ETCCDI
        indices.
    model
        The model behind the prediction: a warning is given if the days lie within those of its training.
    training_days
        The days of the training, if more is known: dates, or years and periods as in `TrainConfig` (``[2004,
        "2005-06/2005-08"]``).

    Returns
    -------
    A Dataset, float64, lazy if the input is; ``name`` is "prediction" or a name in ``beside``. Means are weighted by
    area. In mm day-1:

    * ``bias`` (predicted minus observed), ``rmse``, ``mae`` ``(name)``; ``wet_bias``, ``dry_rmse`` and so on over the
      wet and the dry alone; ``correlation`` (Pearson's, over space and time together), ``count``;
    * ``skill``: the overlap of the two distributions in bins of 1 mm, 1 if they are alike (Perkins et al., J. Climate
      2007, the skill score of the DeepSD paper);
    * ``pod`` (hits over observed events), ``far`` (false alarms over predicted events), ``csi`` (hits over all events)
      and ``frequency_bias`` (predicted over observed events) ``(name, event)``: events are the thresholds, and the
      99th percentile of the truth as ``p99``; ``amount`` says how much that is;
    * ``predicted_quantile``, ``observed_quantile`` ``(name, quantile)`` and ``wasserstein`` ``(name)``, in bins of 1 to
      1.6 %;
    * with members: ``crps`` (fair; the MAE of a method without), ``tail_crps`` ``(name, event)`` (of what lies above
      each of the thresholds, as `xdeepsd.crps` with ``above=``), ``spread``, ``spread_skill_ratio`` and
      ``rank_histogram`` as in `xdeepsd.spread_skill` and `xdeepsd.rank_histogram`;
    * with ``by=None``: ``daily_error``, ``daily_absolute``, ``daily_squared`` ``(name, time)`` and ``daily_weight``
      ``(time)``, of which `xdeepsd.differences` makes intervals.

    What is undefined is NaN: errors without a cell, the correlation of a constant, POD without an event.

    Raises
    ------
    ValueError
        Other grids or days; no time, latitude or longitude; units that are none of precipitation; dims besides
        ``member``; an unknown ``by``; regions on another grid, without any label, or missing, or given for another
        ``by``; the same for factors, which must divide the grid.
    TypeError
        ``regions`` is no DataArray.

    >>> rain = xr.DataArray([[[0.0, 12.0]], [[4.0, 20.0]]], dims=("time", "lat", "lon"), name="pr",
    ...     attrs={"units": "mm day-1"},
    ...     coords={"time": xr.date_range("2001-01-01", periods=2), "lat": [50.0], "lon": [5.0, 6.0]})
    >>> found = evaluate(rain + 1, rain)
    >>> found["bias"].item(), found["pod"].values[0].tolist()
    (1.0, [1.0, 1.0, nan, 1.0])
    """
    if by not in (None, *GROUPS, "region", "cell", "level"):
        raise ValueError(f"by is {by!r}; needed: None, 'season', 'month', 'region', 'cell' or 'level'.")
    if (by == "level") != (factors is not None):
        raise ValueError(
            f"by is {by!r}, and factors are {factors}. Needed: both by='level' and the factors, or neither. Type "
            "by='level', factors=(2, 2)."
        )
    if by == "region" and regions is None:
        raise ValueError(
            "by is 'region', and regions is not given. Needed: a map of labels, or a mask, on the grid of the truth. "
            "Type regions=mask."
        )
    if by != "region" and regions is not None:
        raise ValueError(f"by is {by!r}, and regions are given. Needed: both or neither. Type by='region'.")
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    _warn_of_training(observed, model, training_days)
    if factors is not None:
        ladder = _at_levels(fields | {"": observed}, factors)
        found = [evaluate(at.pop("prediction"), at.pop(""), beside=at, thresholds=thresholds, wet=wet) for at in ladder]
        return xr.concat(found, xr.DataArray(np.arange(len(found)), dims="level", name="level"))
    means = {name: mean_of_members(da) for name, da in fields.items()}
    area = xr.DataArray(cell_weights(observed["lat"].values, observed.sizes["lon"]), dims=("lat", "lon"))
    members = {name: da for name, da in fields.items() if "member" in da.dims}
    over: Callable[[xr.DataArray], xr.DataArray]
    if by == "cell":
        edges = tuple(map(float, thresholds))
        parts = {name: of_cells(mean, observed, area, wet, edges) for name, mean in means.items()}
        over = partial(xr.DataArray.sum, dim="time")
    elif by == "region":
        codes, labels = regions_of(regions, observed)
        sums = {name: region_sums(mean, observed, area, codes, len(labels), wet) for name, mean in means.items()}
        of_each = {name: da.sum("time").assign_coords(region=labels) for name, da in sums.items()}
        parts = {name: of_groups(da, thresholds) for name, da in of_each.items()}
        inside = (codes == xr.DataArray(np.arange(len(labels)), dims="region")).astype(np.float64)
        inside = inside.assign_coords(region=labels)
        over = partial(_of_regions, inside=inside)
    else:
        sums = {name: day_sums(mean, observed, area, wet) for name, mean in means.items()}
        parts = {name: of_groups(grouped(da, by), thresholds) for name, da in sums.items()}
        if by is None:
            parts = {name: part | of_days(sums[name]) for name, part in parts.items()}
        over = partial(_of_days, by=by)
    for name in parts if members else ():
        judged = of_members(members[name], observed, area, over, parts[name], thresholds) if name in members else (
            of_one(means[name], observed, area, over, parts[name], thresholds))  # fmt: skip
        parts[name] |= judged
    # Ensembles may differ in size: only the ranks among the members of the prediction are shown.
    ranks = {name: part.pop("rank_histogram") for name, part in parts.items() if name in members}
    whole = xr.concat([xr.Dataset(part) for part in parts.values()], "name", join="outer", coords="minimal",
                      compat="override")  # fmt: skip
    whole = whole.assign_coords(name=list(parts))
    if "prediction" in ranks:
        whole["rank_histogram"] = ranks["prediction"]
    for shared in {"count", "daily_weight", "amount"} & set(whole):
        whole[shared] = whole[shared].isel(name=0)
    return _labelled(whole)


def _at_levels(fields: Mapping[str, xr.DataArray], factors: Sequence[int]) -> list[dict[str, xr.DataArray]]:
    """The fields at each level, the coarsest first; all of them miss the same cells."""
    ladder = [{name: da.rename("precipitation").assign_attrs(units="mm day-1") for name, da in fields.items()}]
    for factor in reversed(factors):
        whole = {name: da if da.chunks is None else da.chunk(lat=-1, lon=-1) for name, da in ladder[0].items()}
        ladder.insert(0, {name: coarsen(da, factor) for name, da in whole.items()})
    return ladder


def _of_days(field: xr.DataArray, by: str | None) -> xr.DataArray:
    return grouped(field.sum(("lat", "lon")), by)


def _of_regions(field: xr.DataArray, inside: xr.DataArray) -> xr.DataArray:
    return xr.dot(field.fillna(0.0), inside, dim=("lat", "lon")).sum("time")


def _warn_of_training(truth: xr.DataArray, model: StackedSRCNN | None, training_days: Any) -> None:
    """Warn where days of the truth are, or may be, in the training."""
    days = truth.indexes["time"]
    seen = np.zeros(len(days), bool)
    how = "are days of the training"
    if training_days is not None:
        if isinstance(training_days, xr.DataArray | np.ndarray) or hasattr(training_days, "strftime"):
            training_days = [str(day)[:10] for day in np.asarray(training_days)]
        for period in training_days if not isinstance(training_days, str | int) else [training_days]:
            seen[within(truth["time"], str(period)[:10] if "/" not in str(period) else str(period))] = True
    elif model is not None:
        how = "lie between the first and the last day of the training"
        for stage in model.training.get("stages", ()):
            if "first_day" in stage:
                seen[within(truth["time"], f"{stage['first_day']}/{stage['last_day']}")] = True
    if seen.any():
        warnings.warn(
            f"{seen.sum()} of {len(days)} days {how}: {name_days(days[seen])}. On such days a model looks better than "
            "it is.", stacklevel=3,
        )  # fmt: skip


def _labelled(whole: xr.Dataset) -> xr.Dataset:
    order: Iterable[str] = (name for name in _LONG_NAMES if name in whole)
    whole = whole[list(order)]
    for name in whole:
        whole[name].attrs = {"long_name": _LONG_NAMES[str(name)]} | (
            {} if name in _NO_UNITS else {"units": "mm2 day-2" if name == "daily_squared" else "mm day-1"}
        )
    return whole
