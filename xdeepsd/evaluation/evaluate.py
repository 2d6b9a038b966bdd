"""Errors, rare events, distributions and members of a prediction and of what stands beside it, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy import stats

from xdeepsd.evaluation.members import crps, rank_parts
from xdeepsd.evaluation.sums import BINS, MILLIMETRES, NAMES, bin_of, cell_sums, day_sums, lower_edges
from xdeepsd.grids import align, axes
from xdeepsd.levels.days import name_days, name_span
from xdeepsd.levels.splits import within
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.variable import find_variable, rate_factor

By = Literal["season", "month", "cell"]
GROUPS: dict[str, tuple[Any, ...]] = {"season": ("DJF", "MAM", "JJA", "SON"), "month": tuple(range(1, 13))}
PERCENTILE = 0.99
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)
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
    "crps": "fair continuous ranked probability score", "spread": "spread of the members",
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
        None: over all days and cells; "season" or "month": over the days of each, and all cells; "cell": over the days,
        for each cell, without what needs whole distributions.
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
    * with members: ``crps`` (fair; the MAE of a method without), ``spread``, ``spread_skill_ratio`` and
      ``rank_histogram`` as in `xdeepsd.spread_skill` and `xdeepsd.rank_histogram`;
    * with ``by=None``: ``daily_error``, ``daily_absolute``, ``daily_squared`` ``(name, time)`` and ``daily_weight``
      ``(time)``, of which `xdeepsd.differences` makes intervals.

    What is undefined is NaN: errors without a cell, the correlation of a constant, POD without an event.

    Raises
    ------
    ValueError
        Other grids or days; no time, latitude or longitude; units that are none of precipitation; dims besides
        ``member``; an unknown ``by``.

    >>> rain = xr.DataArray([[[0.0, 12.0]], [[4.0, 20.0]]], dims=("time", "lat", "lon"), name="pr",
    ...     attrs={"units": "mm day-1"},
    ...     coords={"time": xr.date_range("2001-01-01", periods=2), "lat": [50.0], "lon": [5.0, 6.0]})
    >>> found = evaluate(rain + 1, rain)
    >>> found["bias"].item(), found["pod"].values[0].tolist()
    (1.0, [1.0, 1.0, nan, 1.0])
    """
    if by not in (None, *GROUPS, "cell"):
        raise ValueError(f"by is {by!r}; needed: None, 'season', 'month' or 'cell'.")
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    _warn_of_training(observed, model, training_days)
    means = {name: _mean_of_members(da) for name, da in fields.items()}
    area = xr.DataArray(cell_weights(observed["lat"].values, observed.sizes["lon"]), dims=("lat", "lon"))
    members = {name: da for name, da in fields.items() if "member" in da.dims}
    if by == "cell":
        edges = tuple(map(float, thresholds))
        parts = {name: _of_cells(mean, observed, area, wet, edges) for name, mean in means.items()}
    else:
        sums = {name: day_sums(mean, observed, area, wet) for name, mean in means.items()}
        parts = {name: _of_groups(_grouped(da, by), thresholds) for name, da in sums.items()}
        if by is None:
            parts = {name: part | _daily(sums[name]) for name, part in parts.items()}
    for name in parts if members else ():
        if name in members:
            parts[name] |= _of_members(members[name], observed, area, by, parts[name])
        else:
            parts[name] |= {"crps": parts[name]["mae"]}
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


def alike(truth: Any, given: Mapping[str, Any]) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """The truth and the fields by name, as from `prepared`, on one grid, and missing where any of them is; lazily."""
    observed = prepared(truth, "truth")
    if "member" in observed.dims:
        raise ValueError(
            "The truth has members. Needed: one truth; members are for the prediction. Type truth.isel(member=0)."
        )
    fields = {name: on_grid(prepared(field, name), observed, name) for name, field in given.items()}
    for da in fields.values():
        observed = observed.where(np.isfinite(_mean_of_members(da)))
    observed = observed.where(np.isfinite(observed))
    return observed, {name: da.where(observed.notnull()) for name, da in fields.items()}


def _mean_of_members(da: xr.DataArray) -> xr.DataArray:
    return da.mean("member", skipna=False) if "member" in da.dims else da


def prepared(field: xr.Dataset | xr.DataArray, name: str) -> xr.DataArray:
    """``([member,] time, lat, lon)`` in mm day-1, lazily; ValueError if there is no such field in it."""
    settled = axes.settle(field)
    found, _ = axes.standardize(find_variable(settled))
    others = set(found.dims) - {"member", "time", "lat", "lon"}
    missing = {"time", "lat", "lon"} - set(found.dims)
    if others or missing:
        raise ValueError(
            f"{name} has the dims {dict(found.sizes)}. Needed: time, lat, lon, and member for members. Select one of "
            f"the others, such as .isel({(sorted(map(str, others)) or ['height'])[0]}=0)."
            if others
            else f"{name} has the dims {dict(found.sizes)}, without {', '.join(sorted(missing))}. Needed: days of maps."
        )
    factor = rate_factor(found, ds=settled)
    found = found.reset_coords(drop=True)
    if found.sizes.get("member") == 1:
        found = found.isel(member=0, drop=True)
    return found if factor == 1 else found * factor


def on_grid(da: xr.DataArray, truth: xr.DataArray, name: str) -> xr.DataArray:
    """``da`` with the coordinates of the truth; ValueError where its cells or days are others."""
    for dim in ("lat", "lon"):
        have, need = da[dim].values, truth[dim].values
        if have.size == need.size > 1 and not align.same(have, need, dim) and align.same(have[::-1], need, dim):
            da, have = da.isel({dim: slice(None, None, -1)}), have[::-1]
        if not align.same(have, need, dim):
            raise ValueError(
                f"{name} has {have.size} {dim} from {have[0]:g} to {have[-1]:g}, the truth {need.size} from "
                f"{need[0]:g} to {need[-1]:g}. Needed: the same cells. Type xdeepsd.regrid(prediction, truth), or give "
                "a truth on this grid."
            )
    have, need = days_of(da), days_of(truth)
    if not have.equals(need):
        common = have.intersection(need)
        raise ValueError(
            f"{name} has {name_span(da)}, the truth {name_span(truth)}; {len(common)} days are in both. Needed: the "
            "same days in the same order. Type truth.sel(time=prediction['time']), or select the days that both have."
        )
    return da.assign_coords({dim: truth[dim] for dim in ("time", "lat", "lon")})


def days_of(da: xr.DataArray) -> Any:
    """The days as text without hours, so that calendars and hours do not matter; other times as they are."""
    index = da.indexes["time"]
    return index.strftime("%Y-%m-%d") if hasattr(index, "strftime") else index


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


# --- from sums to measures --------------------------------------------------------------------------------------------


def _grouped(daily: xr.DataArray, by: str | None) -> xr.DataArray:
    """Sums of the days of each season or month, or of all."""
    if by is None:
        return daily.sum("time")
    labels = getattr(daily["time"].dt, by)
    groups = xr.DataArray(list(GROUPS[by]), dims=by)
    within_group = (labels.drop_vars("time") == groups).astype(np.float64).assign_coords({by: groups})
    found = xr.dot(daily.drop_vars("time"), within_group, dim="time")
    # Dask splits a product that is larger than its parts.
    return found if found.chunks is None else found.chunk(dict.fromkeys(found.dims, -1))


def _ratio(of: xr.DataArray, by: xr.DataArray) -> xr.DataArray:
    """NaN where the denominator is 0."""
    return of / by.where(by > 0)


def _of_sums(sums: xr.DataArray) -> dict[str, xr.DataArray]:
    """The errors that follow from the sums of `NAMES`."""
    s = {name: sums.isel(sum=k) for k, name in enumerate(NAMES)}
    found = {"bias": _ratio(s["error"], s["weight"]), "mae": _ratio(s["absolute"], s["weight"])}
    found["rmse"] = _ratio(s["squared"], s["weight"]) ** 0.5
    variances = {}
    for name in ("predicted", "observed"):
        square, mean = _ratio(s[f"{name}2"], s["weight"]), _ratio(s[name], s["weight"])
        # What rounding leaves of the variance of a constant is none.
        variances[name] = (square - mean**2).where(square - mean**2 > 1e-13 * square)
    covariance = _ratio(s["product"], s["weight"]) - _ratio(s["predicted"] * s["observed"], s["weight"] ** 2)
    found["correlation"] = covariance / (variances["predicted"] * variances["observed"]) ** 0.5
    for part in ("wet", "dry"):
        w, e, a, q = (
            s[f"wet_{name}"] if part == "wet" else s[name] - s[f"wet_{name}"]
            for name in ("weight", "error", "absolute", "squared")
        )
        w = w.where(w > 1e-12 * s["weight"], 0.0)
        found |= {f"{part}_bias": _ratio(e, w), f"{part}_mae": _ratio(a, w), f"{part}_rmse": _ratio(q, w) ** 0.5}
    return found | {"count": s["count"]}


def _of_events(
    predicted: xr.DataArray, observed: xr.DataArray, hits: xr.DataArray, enough: float = 0.0
) -> dict[str, xr.DataArray]:
    """Scores of the predicted and observed events and of their hits (Wilks, 2011, section 8.2)."""
    predicted, observed, hits = (da.where(da > enough, 0.0) for da in (predicted, observed, hits))
    return {
        "pod": _ratio(hits, observed), "far": 1 - _ratio(hits, predicted),
        "csi": _ratio(hits, predicted + observed - hits), "frequency_bias": _ratio(predicted, observed),
    }  # fmt: skip


def _of_groups(sums: xr.DataArray, thresholds: Sequence[float]) -> dict[str, xr.DataArray]:
    """All measures over whole groups of days: errors, events, and the distributions."""
    at = np.cumsum([len(NAMES), BINS, BINS, BINS, MILLIMETRES, MILLIMETRES])
    of_p, of_y, of_both, mm_p, mm_y = (sums.isel(sum=slice(a, b)).rename(sum="bin") for a, b in pairwise(at))
    weight = sums.isel(sum=0)
    both = xr.where(mm_p < mm_y, mm_p, mm_y).sum("bin")
    edges, fixed = lower_edges(), [int(bin_of(np.asarray(t))) for t in thresholds]

    def events(p: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        above = [np.cumsum(v[..., ::-1], -1)[..., ::-1] for v in (p, y, h)]
        ends = np.cumsum(y, -1)
        rare = (ends < PERCENTILE * ends[..., -1:]).sum(-1)[..., None]
        bins = np.concatenate([np.broadcast_to(fixed, (*rare.shape[:-1], len(fixed))), rare], -1).clip(0, BINS - 1)
        amounts = np.where(ends[..., -1:] > 0, edges[bins], np.nan)
        return np.stack([amounts, *(np.take_along_axis(v, bins, -1) for v in above)], -1)

    def apply(function: Any, fields: Sequence[xr.DataArray], **sizes: int) -> xr.DataArray:
        return xr.apply_ufunc(
            function, *fields, input_core_dims=[["bin"]] * len(fields), output_core_dims=[list(sizes)],
            dask="parallelized", output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": sizes},
        )  # fmt: skip

    table = apply(events, (of_p, of_y, of_both), event=len(fixed) + 1, column=4)
    names = [f"{t:g} mm" for t in thresholds] + ["p99"]
    amount, predicted, observed, hits = (table.isel(column=k).assign_coords(event=names) for k in range(4))
    quantiles = {
        f"{which}_quantile": apply(_quantiles, (da,), quantile=len(QUANTILES)).assign_coords(quantile=list(QUANTILES))
        for which, da in (("predicted", of_p), ("observed", of_y))
    }
    return {
        **_of_sums(sums), "skill": _ratio(both, weight), "amount": amount,
        **_of_events(predicted, observed, hits, enough=1e-9),
        "wasserstein": apply(_wasserstein, (of_p, of_y)), **quantiles,
    }  # fmt: skip


def _middles() -> np.ndarray:
    """The amount that stands for each bin: 0 for the dry one, the middle of the others."""
    edges = lower_edges()
    return np.concatenate([[0.0], (edges[1:-1] + edges[2:]) / 2, edges[-1:]])


def _quantiles(histogram: np.ndarray) -> np.ndarray:
    """Middles of the bins where the quantiles lie, ``(..., quantile)``."""
    ends = np.cumsum(histogram, -1)[..., None, :]
    bins = (ends < np.array(QUANTILES)[:, None] * ends[..., -1:]).sum(-1).clip(0, BINS - 1)
    return np.where(ends[..., -1] > 0, _middles()[bins], np.nan)


def _wasserstein(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = np.full(p.shape[:-1], np.nan)
    for place in np.ndindex(out.shape):
        if p[place].sum() > 0:
            # Rounding may leave a dry bin that is less than empty.
            weights = (np.clip(p[place], 0, None), np.clip(y[place], 0, None))
            out[place] = stats.wasserstein_distance(_middles(), _middles(), *weights)
    return out


def _daily(sums: xr.DataArray) -> dict[str, xr.DataArray]:
    weight, error, absolute, squared = (
        sums.isel(sum=NAMES.index(name)) for name in ("weight", "error", "absolute", "squared")
    )
    of_days = {"daily_error": error, "daily_absolute": absolute, "daily_squared": squared}
    return {"daily_weight": weight} | {name: _ratio(da, weight) for name, da in of_days.items()}


def _of_cells(
    mean: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, wet: float, edges: tuple[float, ...]
) -> dict[str, xr.DataArray]:
    sums = cell_sums(mean, observed, area, wet, edges)
    names = [f"{edge:g} mm" for edge in edges]
    predicted, observed_, hits = (
        sums.isel(sum=slice(len(NAMES) + k, None, 3)).rename(sum="event").assign_coords(event=names) for k in range(3)
    )
    amount = xr.DataArray(list(edges), {"event": names}, "event")
    return {**_of_sums(sums), "amount": amount, **_of_events(predicted, observed_, hits)}


def _of_members(
    members: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, by: str | None, found: Mapping[str, xr.DataArray]
) -> dict[str, xr.DataArray]:
    """CRPS, spread, ratio and ranks, over the same groups as the errors."""
    count = members.sizes["member"]
    variance = members.astype(np.float64).var("member", ddof=1, skipna=False).where(observed.notnull())
    score, ranks = crps(members, observed), rank_parts(members, observed)
    if by == "cell":
        return {"crps": score.mean("time"), **_spread(variance.mean("time"), count, found),
                "rank_histogram": ranks.sum("time")}  # fmt: skip
    space = ("lat", "lon")
    weight = _grouped((area * observed.notnull()).sum(space), by)
    sums = [_grouped((area * field).sum(space), by) for field in (score, variance)]
    return {"crps": _ratio(sums[0], weight), **_spread(_ratio(sums[1], weight), count, found),
            "rank_histogram": _grouped(ranks.sum(space), by)}  # fmt: skip


def _spread(variance: xr.DataArray, count: int, found: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    spread = (variance * (1 + 1 / count)) ** 0.5
    return {"spread": spread, "spread_skill_ratio": _ratio(spread, found["rmse"])}


def _labelled(whole: xr.Dataset) -> xr.Dataset:
    order: Iterable[str] = (name for name in _LONG_NAMES if name in whole)
    whole = whole[list(order)]
    for name in whole:
        whole[name].attrs = {"long_name": _LONG_NAMES[str(name)]} | (
            {} if name in _NO_UNITS else {"units": "mm2 day-2" if name == "daily_squared" else "mm day-1"}
        )
    return whole
