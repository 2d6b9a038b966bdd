"""A trained model on the days that it has not seen: the tables and pictures of the report."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import xarray as xr

from xdeepsd._extras import lacking
from xdeepsd.evaluation import plot
from xdeepsd.evaluation.baselines import baselines
from xdeepsd.evaluation.errors import bin_errors
from xdeepsd.evaluation.evaluate import evaluate
from xdeepsd.evaluation.fields import mean_of_members, on_grid, prepared
from xdeepsd.evaluation.indices import LONG_NAMES, compare_indices
from xdeepsd.evaluation.significance import differences
from xdeepsd.evaluation.space import compare_spectra
from xdeepsd.grids.axes import days_in_chunk
from xdeepsd.inference.downscale import downscale
from xdeepsd.levels.coarse import product_of
from xdeepsd.levels.pairs import factor_between
from xdeepsd.levels.splits import Split
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.static import CLIMATOLOGY
from xdeepsd.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMBERS = 10  # drawn from a model that takes noise
_KEPT = 2**28  # bytes of a prediction that are kept for its second use rather than computed again
_OURS = "model"
# Columns of the table of errors: heading, whether the least or the largest is the best.
_ERRORS = {
    "rmse": ("RMSE", "least"), "mae": ("MAE", "least"), "bias": ("bias", "nearest 0"),
    "correlation": ("correlation", "largest"), "skill": ("skill score", "largest"),
    "wet_rmse": ("RMSE, wet", "least"), "dry_mae": ("MAE, dry", "least"),
    "crps": ("CRPS", "least"), "spread_skill_ratio": ("spread / error", None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Judged:
    """The days to judge a model on, why these, and what was found on them."""

    part: str
    split: Split
    days: np.ndarray


def judged_days(levels: Sequence[xr.Dataset], models: Sequence[StackedSRCNN], config: TrainConfig) -> Judged:
    """The test days of a training, or its validation days where it has none.

    Raises ValueError, before anything is read, where it has neither, where the levels do not fit the model, or where
    their days are not those that it was trained with.
    """
    model = models[0]
    split = config.split(levels[-1]["time"])
    part = next((name for name in ("test", "validation") if len(getattr(split, name))), None)
    if part is None:
        raise ValueError(
            "The training has neither test nor validation days, so there are none to judge the model on. Needed: days "
            "that it has not seen. Type test=[...] in the configuration and train again."
        )
    factors = [factor_between(coarse, fine) for coarse, fine in pairwise(levels)]
    if list(model.factors) != factors:
        raise ValueError(
            f"The levels have the factors {factors}, the model {list(model.factors)}. Needed: the levels that it was "
            "trained on."
        )
    for summary in model.training.get("stages", ())[-1:]:
        days = {name: len(days) for name, days in split._asdict().items()}
        ends = {f"{end}_day": str(levels[-1]["time"].values[split.train[at]])[:10] for end, at in
                (("first", 0), ("last", -1))}  # fmt: skip
        if "days" in summary and (summary["days"] != days or any(summary[end] != day for end, day in ends.items())):
            raise ValueError(
                f"The model was trained with {summary['days']} days, training from {summary['first_day']} to "
                f"{summary['last_day']}; in the levels there are {days}, from {ends['first_day']} to "
                f"{ends['last_day']}. Needed: the days of its training, or days that it has seen would be judged. Give "
                "the levels that it was trained on, or train again."
            )
    return Judged(part, split, getattr(split, part))


def measured(levels: Sequence[xr.Dataset], models: Sequence[StackedSRCNN], judged: Judged) -> dict[str, Any]:
    """Tables and pictures of the judged days, by name; computes."""
    coarse, truth, mask = _fields(levels, judged.days)
    prediction = _downscaled(coarse, models)
    predicted = on_grid(prepared(prediction, _OURS), truth, _OURS)
    low = prepared(coarse["precipitation"], "coarse")
    beside = baselines(low, truth, *_means(levels, judged.split), mask=mask, past=_past(levels, judged.split))
    if predicted.nbytes <= _KEPT:
        predicted = predicted.persist()
    area = xr.DataArray(cell_weights(truth["lat"].values, truth.sizes["lon"]), dims=("lat", "lon"))
    wetness = truth.weighted(area).mean(("lat", "lon"))
    found, wetness = dask.compute(evaluate(predicted, truth, beside=beside), wetness)
    if not int(found["count"]):
        raise ValueError(
            f"None of the {len(judged.days)} {judged.part} days has an observed cell inside the mask, so there is no "
            "error. Needed: days with observations. Give the levels other days."
        )
    rmse = found["rmse"].to_series()
    strongest = str(rmse.drop("prediction").idxmin())
    some = {name: beside[name] for name in dict.fromkeys((strongest, "bilinear"))}
    mean = mean_of_members(predicted)
    named = {_OURS: mean, **some}
    series = {name: da.where(truth.notnull()).weighted(area).mean(("lat", "lon")) for name, da in named.items()}
    cells, seasons, spectra, indices, series = dask.compute(
        evaluate(predicted, truth, beside={strongest: beside[strongest]}, by="cell"),
        evaluate(predicted, truth, beside=some, by="season")["rmse"],
        compare_spectra(predicted, truth, beside=some),
        compare_indices(predicted, truth, beside=some)["relative_error"],
        series,
    )
    apart = differences(found)
    whole = found.assign_coords(name=[_OURS, *found["name"].values[1:]])
    pictures = {}
    ranked = wetness.dropna("time").sortby(wetness.dropna("time"))
    for title, at in (("The wettest day", -1), ("A day of middling wetness", int(0.75 * ranked.size))):
        pictures[title] = _of_a_day(title, levels, models, str(ranked["time"].values[at])[:10])
    pictures["where"] = _where(cells, strongest, mask)
    binned = bin_errors(named, truth)
    for name, figure, alt, caption in (
        ("How sure the differences are", plot.differences(apart), "Differences of the RMSE between the prediction and "
         "each baseline with their 95 % intervals.", "RMSE of the model less that of each baseline, with the 95 % "
         "interval of a bootstrap over blocks of 10 days. Left of 0 the model is better."),
        ("Errors by amount", plot.bins(binned), "RMSE in five bins of the observed precipitation.",
         "Rare amounts decide little of the RMSE over all cells; here they have a bin of their own."),
        ("Extremes", plot.quantiles(whole), "Quantiles of each method over those of the truth.",
         "Quantiles over all cells and days, over those of the truth. Below 1 a method has too little of such rain."),
        ("Structure", plot.spectra(_renamed(spectra)), "Power spectra of the maps by wavelength.",
         "Power by scale. Below the black line a method is too smooth there."),
    ):  # fmt: skip
        pictures[name] = picture(name, figure, alt, caption)
    if len(np.unique(wetness["time"].dt.month)) > 1:
        figure = plot.seasonal_cycle(series | {"truth": wetness})
        pictures["cycle"] = picture("Seasonal cycle", figure, "Mean precipitation of each month.",
                                     "Mean precipitation of the judged days in each month.")  # fmt: skip
    if "rank_histogram" in found:
        pictures["ranks"] = picture(
            "Members", plot.ranks(found), "Histogram of the rank of the truth among the members.", "The rank of the "
            "truth among the members; level where they are reliable, a bowl where they are too sure.")  # fmt: skip
    return {
        "verdict": _verdict(rmse, strongest, apart, judged),
        "errors": _errors(whole, strongest),
        "events": _events(whole),
        "apart": apart.to_dict("records"),
        "seasons": _frame(_renamed(seasons), "season"),
        "indices": _frame(_renamed(indices), "index"),
        "index_names": LONG_NAMES,
        "count": int(found["count"]),
        "strongest": strongest,
        "pictures": pictures,
        "units": "mm day-1",
    }


def _fields(levels: Sequence[xr.Dataset], days: np.ndarray) -> tuple[xr.Dataset, xr.DataArray, xr.DataArray]:
    """On these days the coarsest level and the truth, in chunks along time alone, and the mask, in memory."""
    fine = levels[-1]
    mask = fine["mask"].compute() if "mask" in fine else fine["precipitation"].isel(time=0).notnull().compute()
    truth = prepared(fine["precipitation"].isel(time=days), "truth")
    chunks = {"time": days_in_chunk(truth[0].size), "lat": -1, "lon": -1}
    coarse = levels[0][["precipitation"]].isel(time=days)
    if "mask" in fine:
        truth = truth.where(mask)
    return coarse.chunk(chunks), truth.chunk(chunks), mask


def _downscaled(coarse: xr.Dataset, models: Sequence[StackedSRCNN]) -> xr.DataArray:
    """The prediction, lazily; with members, where there are several models or the model takes noise."""
    if len(models) > 1:
        return downscale(coarse, models)["precipitation"]
    members = MEMBERS if models[0].noise else None
    return downscale(coarse, models[0], members=members)["precipitation"]


def _means(levels: Sequence[xr.Dataset], split: Split) -> tuple[xr.DataArray, xr.DataArray]:
    """Means of the training days, fine and coarse, for the climatology ratio; read where the levels have none."""
    ends = levels[-1], levels[0]
    if all(CLIMATOLOGY in level for level in ends) and product_of(levels[0]) is None:
        means = [level[CLIMATOLOGY] for level in ends]
    else:
        means = [prepared(level["precipitation"].isel(time=split.train), "training").mean("time") for level in ends]
    fine, coarse = dask.compute(*means)
    return fine, coarse


def _past(levels: Sequence[xr.Dataset], split: Split) -> tuple[xr.DataArray, xr.DataArray] | None:
    """The training days, fine and coarse, for BCSD; None where it is the climatology ratio, or xsdba is missing.

    It is where the coarse field is the mean of the fine one, which has no bias that could be corrected.
    """
    if product_of(levels[0]) is None or lacking("bias"):
        return None
    fine, coarse = (prepared(level["precipitation"].isel(time=split.train), "training") for level in
                    (levels[-1], levels[0]))  # fmt: skip
    return fine, coarse


def _of_a_day(title: str, levels: Sequence[xr.Dataset], models: Sequence[StackedSRCNN], day: str) -> dict[str, Any]:
    at = np.flatnonzero(levels[-1]["time"].dt.strftime("%Y-%m-%d").values == day)[:1]
    coarse, truth, mask = _fields(levels, at)
    figure = plot.compare(_downscaled(coarse, models), truth, coarse=coarse, mask=mask, title="")
    return picture(f"{title}, {day}", figure, f"Maps of {day}: coarse input, interpolation, prediction, truth, and "
                    "the differences of interpolation and prediction from the truth.",
                    "Precipitation on one scale, and what interpolation and the model miss, on another.", wide=True,
                    kind="png")  # fmt: skip


def _where(cells: xr.Dataset, strongest: str, mask: xr.DataArray) -> dict[str, Any]:
    """Maps of the errors in each cell."""
    ours, theirs = (cells.sel(name=name) for name in ("prediction", strongest))
    shown = {"RMSE of the model": ours["rmse"].assign_attrs(units="mm day-1"), f"RMSE, {strongest}": theirs["rmse"]}
    differ = {"bias of the model": ours["bias"], "RMSE, model less baseline": ours["rmse"] - theirs["rmse"]}
    shown, differ = ({name: da.where(mask) for name, da in part.items()} for part in (shown, differ))
    figure = plot.maps(shown, apart=differ, mask=mask, label="RMSE")
    return picture(
        "Where the errors are", figure, "Maps of the RMSE of the model and of the strongest baseline, of the bias of "
        "the model, and of the difference of the two RMSE.", "Errors of each cell over all judged days. Brown in the "
        "last map: the model is better there.", wide=True, kind="png",
    )  # fmt: skip


def picture(
    title: str, figure: Figure, alt: str, caption: str, wide: bool = False, kind: str = "svg"
) -> dict[str, Any]:
    """A picture as data, with its texts."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # the same page for the same numbers
        figure.savefig(content, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    data = base64.b64encode(content.getvalue()).decode()
    width, height = (round(96 * size) for size in figure.get_size_inches())
    return {"title": title, "src": f"data:{mime};base64,{data}", "alt": alt, "caption": caption, "wide": wide,
            "width": width, "height": height}  # fmt: skip


def _renamed(found: Any) -> Any:
    return found.assign_coords(name=[_OURS if name == "prediction" else str(name) for name in found["name"].values])


def _verdict(rmse: pd.Series, strongest: str, apart: pd.DataFrame, judged: Judged) -> dict[str, Any]:
    ours, theirs = float(rmse["prediction"]), float(rmse[strongest])
    row = apart[(apart["name"] == strongest) & (apart["error"] == "rmse")].iloc[0]
    return {
        "better": ours < theirs, "share": abs(1 - ours / theirs) if theirs else 0.0, "ours": ours, "theirs": theirs,
        "low": row["low"], "high": row["high"], "sure": bool(row["high"] < 0 or row["low"] > 0),
        "known": bool(np.isfinite(row["low"])),
    }  # fmt: skip


def _errors(whole: xr.Dataset, strongest: str) -> dict[str, Any]:
    """Columns and rows of the table of errors; the best of each column is marked."""
    columns = {key: entry for key, entry in _ERRORS.items() if key in whole}
    best = {}
    for key, (_, rule) in columns.items():
        values = whole[key].to_series()
        score = {"least": values, "nearest 0": values.abs(), "largest": -values, None: values * np.nan}[rule]
        best[key] = set(score.index[score.round(3) == score.round(3).min()])  # as good as it is shown
    rows = [
        {"name": str(name), "ours": name == _OURS, "strongest": name == strongest,
         "cells": [(float(whole[key].sel(name=name)), name in best[key]) for key in columns]}
        for name in whole["name"].values
    ]  # fmt: skip
    return {"columns": [heading for heading, _ in columns.values()], "rows": rows}


def _events(whole: xr.Dataset) -> dict[str, Any]:
    names = [str(name) for name in whole["event"].values]
    amounts = whole["amount"].values
    columns = [name if name.endswith("mm") else f"99th percentile ({number(amount, '.3g')} mm)"
               for name, amount in zip(names, amounts, strict=True)]  # fmt: skip
    rows = [
        (str(name), [tuple(float(whole[key].sel(name=name, event=event)) for key in ("pod", "far")) for event in names])
        for name in whole["name"].values
    ]
    return {"columns": columns, "rows": rows}


def _frame(da: xr.DataArray, dim: str) -> dict[str, Any]:
    """A table with a row for each label of ``dim`` that has any value, and a column for each method."""
    known = da.dropna(dim, how="all").transpose(dim, "name")
    return {
        "columns": [str(name) for name in known["name"].values],
        "rows": [(str(label), list(map(float, row))) for label, row in zip(known[dim].values, known.data, strict=True)],
    }  # fmt: skip


def number(value: Any, form: str = ".3f") -> str:
    """As in ``xdeepsd evaluate``: undefined is a dash, and there is no -0."""
    value = float(value)
    text = f"{value:{form}}"
    return "\u2013" if value != value else text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")
