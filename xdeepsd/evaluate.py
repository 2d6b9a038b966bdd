"""Errors of downscaled precipitation beside the baselines, lazily."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import xarray as xr


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
    common = observed.notnull()
    for predicted in predictions.values():
        common = common & predicted.notnull()
    table = xr.Dataset(
        {
            f"{name}|{error}": value
            for name, predicted in predictions.items()
            for error, value in errors(predicted.where(common), observed.where(common)).items()
        }
    ).compute()
    rows = {
        name: {error: float(table[f"{name}|{error}"]) for error in ("rmse", "mae", "bias", "correlation")}
        for name in predictions
    }
    return pd.DataFrame(rows).T
