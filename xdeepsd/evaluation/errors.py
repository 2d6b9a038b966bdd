"""Errors of downscaled precipitation, over all cells and by bins of the target, beside the baselines; lazily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import dask
import dask.array
import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from xdeepsd.grids.interpolate import interpolate, upsample
from xdeepsd.models.static import fill

BINS = 5


def errors(predicted: xr.DataArray, observed: xr.DataArray) -> dict[str, xr.DataArray]:
    """RMSE, MAE, bias and correlation over all cells and days that both have.

    Both ``(..., lat, lon)`` in the same units on the same coordinates; NaN is left out. Scalars, lazy if the input is
    and reduced chunk by chunk; units of the input (correlation: 1), float64. Bias is predicted minus observed.
    Pearson's correlation over space and time together.
    """
    predicted, observed = predicted.astype("float64"), observed.astype("float64")
    error = predicted - observed
    return {
        "rmse": (error**2).mean() ** 0.5,
        "mae": abs(error).mean(),
        "bias": error.mean(),
        "correlation": xr.corr(predicted, observed),
    }


def compare(predictions: Mapping[str, xr.DataArray], observed: xr.DataArray) -> pd.DataFrame:
    """Table of `errors`, a row for each prediction (the model and its baselines); computes.

    All rows are over the same cells: those that every prediction and the observation have.
    """
    observed = _common(predictions, observed)
    table = xr.Dataset(
        {
            f"{name}|{error}": value
            for name, predicted in predictions.items()
            for error, value in errors(predicted.where(observed.notnull()), observed).items()
        }
    ).compute()
    rows = {
        name: {error: float(table[f"{name}|{error}"]) for error in ("rmse", "mae", "bias", "correlation")}
        for name in predictions
    }
    return pd.DataFrame(rows).T


def _common(predictions: Mapping[str, xr.DataArray], observed: xr.DataArray) -> xr.DataArray:
    """``observed``, NaN wherever a prediction is missing. Lazy. ValueError where the coordinates are others."""
    for name, predicted in predictions.items():
        try:
            xr.align(observed, predicted, join="exact")
        except ValueError as error:
            raise ValueError(
                f"The coordinates of {name!r} are not those of the observed values: {error}. Needed: the same cells "
                "and days. Where they differ by rounding only, type predicted.assign_coords(observed.coords)."
            ) from error
        observed = observed.where(predicted.notnull())
    return observed


def bin_edges(observed: xr.DataArray, bins: int = BINS, *, scheduler: str | None = None) -> np.ndarray:
    """Edges ``(bins + 1,)`` of equal-width bins over the range of the observed values, their units; computes.

    ``scheduler`` as in `bin_errors`. Raises ValueError where no value is finite or all are the same.
    """
    low, high = (float(v) for v in dask.compute(observed.min(), observed.max(), scheduler=scheduler))
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(
            f"The observed values range from {low} to {high}: no bins of equal width fit in between. Needed: finite "
            "values that differ. Give days on which it rains."
        )
    return np.linspace(low, high, bins + 1)


def bin_errors(
    predictions: Mapping[str, xr.DataArray],
    observed: xr.DataArray,
    bins: int = BINS,
    edges: Sequence[float] | None = None,
    *,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """RMSE and MAE in equal-width bins of the observed value, the bins ranked by their count; computes.

    Steininger et al. (Machine Learning 2021, section 5.3): errors over all cells hide how a model does on rare values.

    Parameters
    ----------
    predictions
        Name and ``(..., lat, lon)`` field of each model and baseline, in the units and on the grid of ``observed``.
    observed
        ``(..., lat, lon)``; NaN is left out, and so are cells where any prediction is NaN.
    bins
        Number of bins over the range of the observed values.
    edges
        Edges of the bins instead: values outside of them are left out.
    scheduler
        Of Dask; None: the one that is set. Within a task of a cluster "synchronous" or "threads".

    Returns
    -------
    One row per prediction and bin: ``name``, ``rank`` (1 = the rarest bin that holds anything), ``low``, ``high``,
    ``count``, ``rmse``, ``mae``; then one row per prediction of ``rank`` 0 for all bins together. Empty bins have no
    row.
    """
    common = _common(predictions, observed)
    limits = bin_edges(common, bins, scheduler=scheduler) if edges is None else np.asarray(edges, np.float64)
    values = common.astype(np.float64).data
    sums = {"count": _histogram(values, limits, None)}
    for name, predicted in predictions.items():
        apart = (predicted.transpose(*common.dims).astype(np.float64) - common.astype(np.float64)).fillna(0.0).data
        sums[f"{name}|rmse"] = _histogram(values, limits, apart**2)
        sums[f"{name}|mae"] = _histogram(values, limits, abs(apart))
    (sums,) = dask.compute(sums, scheduler=scheduler)
    count = sums["count"]
    filled = np.flatnonzero(count)
    # The rarest first; of two of the same count the one of the larger values.
    order = sorted(filled, key=lambda i: (count[i], -i))
    rows = []
    for name in predictions:
        squares, absolute = sums[f"{name}|rmse"], sums[f"{name}|mae"]
        parts = [(rank, [i]) for rank, i in enumerate(order, start=1)] + [(0, list(range(len(count))))]
        for rank, which in parts:
            n = count[which].sum()
            rows.append(
                {
                    "name": name, "rank": rank, "low": limits[which[0]], "high": limits[which[-1] + 1], "count": int(n),
                    "rmse": float(np.sqrt(squares[which].sum() / n)), "mae": float(absolute[which].sum() / n),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _histogram(values: np.ndarray | dask.array.Array, edges: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sums of the weights in each bin (counts without weights); NaN values fall into none. Lazy if ``values`` is."""
    if isinstance(values, np.ndarray):
        return np.histogram(values.ravel(), edges, weights=None if weights is None else np.asarray(weights).ravel())[0]
    if weights is not None:
        weights = dask.array.asarray(weights).rechunk(values.chunks)
    return dask.array.histogram(values, edges, weights=weights)[0]


def climatology_ratio(
    coarse: xr.DataArray, like: xr.DataArray, fine_mean: xr.DataArray, coarse_mean: xr.DataArray
) -> xr.DataArray:
    """Bilinear interpolation times the ratio of the training means: the strongest simple baseline.

    ``interpolate(coarse) * fine_mean / upsample(coarse_mean)``: what is fixed in the fine pattern is known already.

    Parameters
    ----------
    coarse, like
        As in `xdeepsd.grids.interpolate.interpolate`.
    fine_mean, coarse_mean
        ``(lat, lon)`` means of the training days on both grids (not of the days that are tested), units of ``coarse``.

    Returns
    -------
    As `xdeepsd.grids.interpolate.interpolate`; lazy if ``coarse`` is. The means are computed. The ratio is 1 where the
    interpolated mean is 0.
    """
    fine, below = (np.asarray(da.transpose("lat", "lon").values, np.float64) for da in (fine_mean, coarse_mean))
    between = upsample(fill(below), fine.shape[0] // below.shape[0])
    ratio = np.where(between > 0, fill(fine) / np.where(between > 0, between, 1.0), 1.0).astype(coarse.dtype)
    result = interpolate(coarse, like)
    return (result * xr.DataArray(ratio, dims=("lat", "lon"))).assign_attrs(coarse.attrs)


def baselines(
    coarse: xr.DataArray,
    like: xr.DataArray,
    fine_mean: xr.DataArray | None = None,
    coarse_mean: xr.DataArray | None = None,
) -> dict[str, xr.DataArray]:
    """What a model has to beat: "bilinear", "bicubic" and, where the training means are given, "climatology ratio".

    Arguments as in `climatology_ratio`; lazy if ``coarse`` is.
    """
    fields = {"bilinear": interpolate(coarse, like), "bicubic": interpolate(coarse, like, method="cubic")}
    if fine_mean is not None and coarse_mean is not None:
        fields["climatology ratio"] = climatology_ratio(coarse, like, fine_mean, coarse_mean)
    return fields


def significance(
    errors: Sequence[float] | np.ndarray,
    reference: Sequence[float] | np.ndarray,
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
) -> dict[str, float]:
    """Whether the errors of some runs differ from those of the reference runs with the same seeds, in the same order.

    Returns ``relative`` (mean error over mean reference error), ``p_mannwhitney`` (scipy's ``mannwhitneyu``: two
    independent groups) and ``p_wilcoxon`` (``wilcoxon``: pairs of the same seed; 1 where all pairs are equal, NaN for
    fewer than two pairs). ``alternative="less"`` asks if the errors are smaller.
    """
    ours, theirs = np.asarray(errors, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(
            f"{ours.shape} errors and {theirs.shape} of the reference. Needed: one of each for every seed, in the same "
            "order."
        )
    result = {"relative": float(ours.mean() / theirs.mean()), "p_mannwhitney": np.nan, "p_wilcoxon": np.nan}
    if ours.size > 1:
        same = bool((ours == theirs).all())
        result["p_mannwhitney"] = float(stats.mannwhitneyu(ours, theirs, alternative=alternative).pvalue)
        result["p_wilcoxon"] = 1.0 if same else float(stats.wilcoxon(ours, theirs, alternative=alternative).pvalue)
    return result
