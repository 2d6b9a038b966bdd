"""Curves of what the evaluation finds; each function takes what a function of xdeepsd returns, or a run's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from xdeepsd._extras import require
from xdeepsd.evaluation.indices import WET
from xdeepsd.evaluation.space import TRUTH
from xdeepsd.grids import axes
from xdeepsd.models.conserve import cell_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart. What is judged has the first, the truth is black.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
KEPT = ", means kept"
_MONTHS = "JFMAMJJASOND"


def quantiles(evaluated: xr.Dataset) -> Figure:
    """Quantiles of each method over those of the truth, up to the most extreme: a Q-Q plot with its line made level.

    Parameters
    ----------
    evaluated
        From `xdeepsd.evaluate`, without ``by``; computes ``predicted_quantile`` and ``observed_quantile``.

    Returns
    -------
    A matplotlib Figure, against the quantiles of the truth in mm day-1: below 1 such amounts are predicted too seldom.
    Quantiles of the truth below 1 mm day-1 are left out. ImportError without matplotlib, and ValueError where the
    quantiles are missing, as in all functions here.
    """
    found = _needed(evaluated, "predicted_quantile", "observed_quantile", dims=("name", "quantile")).compute()
    seen = found["observed_quantile"].isel(name=0)
    wet = (seen >= WET).values
    figure, ax = _one()
    for name, style in styles(found["name"].values):
        ax.plot(seen[wet], (found["predicted_quantile"].sel(name=name) / seen)[wet], marker="o", ms=3, **style)
    ax.axhline(1, color="black", lw=0.8, zorder=0)
    ax.set_xscale("log")
    _plain_logs(ax)
    for quantile, x in zip(found["quantile"].values[wet], seen.values[wet], strict=True):
        ax.annotate(f"{100 * quantile:g} %", (x, 1.01), xycoords=("data", "axes fraction"), fontsize=7, rotation=90,
                    ha="center", va="bottom", color="0.35")  # fmt: skip
    ax.set_xlabel("quantile of the truth (mm day-1)")
    ax.set_ylabel("quantile of the method / of the truth")
    return _legend(figure, ax)


def spectra(compared: xr.Dataset, cell: float | None = None) -> Figure:
    """Power of the maps by wavelength, beside the truth's.

    Parameters
    ----------
    compared
        From `xdeepsd.compare_spectra`; computes.
    cell
        Size of a cell in km, for an axis in km; None: in cells.

    Returns
    -------
    A matplotlib Figure: a line below the truth's is too smooth at that scale.
    """
    found = _needed(compared, "spectrum", dims=("name", "wavenumber")).compute()
    figure, ax = _one()
    # The last band holds all that is left in the corners of the transform, many coefficients in one.
    found = found.isel(wavenumber=slice(0, max(found.sizes["wavenumber"] - 1, 1)))
    size = found["wavelength"].values * (cell or 1.0)
    for name, style in styles(found["name"].values):
        power = found["spectrum"].sel(name=name)
        ax.plot(size, power.where(power > 0), **style)
    ax.set_xscale("log")
    ax.set_yscale("log")
    _plain_logs(ax)
    ax.invert_xaxis()
    ax.set_xlabel("wavelength (km)" if cell else "wavelength (cells)")
    ax.set_ylabel("power (mm2 day-2)")
    return _legend(figure, ax)


def ranks(histogram: xr.Dataset | xr.DataArray) -> Figure:
    """How often the truth takes each rank among the members; flat if they are reliable.

    Parameters
    ----------
    histogram
        ``(rank,)`` from `xdeepsd.rank_histogram`, or the Dataset of `xdeepsd.evaluate` for a prediction with members.

    Returns
    -------
    A matplotlib Figure of shares. A bowl: too little spread; a slope: too wet (left) or too dry (right).
    """
    if isinstance(histogram, xr.Dataset):
        histogram = _needed(histogram, "rank_histogram", dims=("rank",))["rank_histogram"]
    counts = histogram.compute()
    shares = counts / counts.sum()
    figure, ax = _one()
    ax.bar(counts["rank"], shares, width=0.9, color=COLOURS[1])
    ax.axhline(1 / counts.size, color="black", lw=1, ls="--", label="reliable")
    ax.set_xlabel("rank of the truth among the members (0: below all)")
    ax.set_ylabel("share of cells and days")
    return _legend(figure, ax)


def seasonal_cycle(fields: Mapping[str, xr.DataArray]) -> Figure:
    """Mean precipitation of each month.

    Parameters
    ----------
    fields
        Name and field of each method, "truth" for the observations: ``(time, lat, lon)``, whose mean is weighted by
        area, or ``(time,)``; all in the same units. NaN is left out. Lazy fields are computed together.

    Returns
    -------
    A matplotlib Figure. ValueError where there are no dates.
    """
    import dask

    series = {name: _series(da, name) for name, da in fields.items()}
    (series,) = dask.compute(series)
    figure, ax = _one()
    for name, style in styles(series):
        by_month = series[name].groupby("time.month").mean()
        if name == TRUTH:  # circles, which show around lines that lie on them
            style |= {"ls": "", "marker": "o", "ms": 8, "mfc": "none"}
        ax.plot(by_month["month"], by_month, **style)
    ax.set_xticks(range(1, 13), list(_MONTHS))
    ax.set_ylim(bottom=0)
    units = next((str(da.attrs["units"]) for da in fields.values() if da.attrs.get("units")), "mm day-1")
    ax.set_ylabel(f"mean precipitation ({units})")
    return _legend(figure, ax)


def bins(errors: pd.DataFrame, error: str = "rmse") -> Figure:
    """Error by how much it rained: in bins of the observed value, each with how many values it holds.

    Parameters
    ----------
    errors
        From `xdeepsd.bin_errors`.
    error
        "rmse" or "mae".

    Returns
    -------
    A matplotlib Figure, in the units of the table (mm day-1).
    """
    missing = {"name", "rank", "low", "high", "count", error} - set(errors.columns)
    if missing:
        raise ValueError(
            f"The table has the columns {list(errors.columns)}, without {', '.join(sorted(missing))}. Needed: a table "
            "of bin_errors, and error 'rmse' or 'mae'. Type xdeepsd.bin_errors({'model': prediction}, truth)."
        )
    figure, ax = _one()
    rows = errors[errors["rank"] > 0].sort_values("low")
    edges = rows.drop_duplicates("low")
    at = {low: k for k, low in enumerate(edges["low"])}
    for name, style in styles(rows["name"].unique()):
        mine = rows[rows["name"] == name]
        ax.plot([at[low] for low in mine["low"]], mine[error], marker="o", ms=4, **style)
    texts = [f"{low:.3g} to {high:.3g}\nn = {count:,}" for low, high, count in
             edges[["low", "high", "count"]].itertuples(index=False)]  # fmt: skip
    ax.set_xticks(range(len(texts)), texts, fontsize=8)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("observed precipitation (mm day-1)")
    ax.set_ylabel(f"{error.upper()} (mm day-1)")
    return _legend(figure, ax)


def differences(table: pd.DataFrame, error: str = "rmse") -> Figure:
    """How much smaller the error of the prediction is than that of each method, with its 95 % interval.

    Parameters
    ----------
    table
        From `xdeepsd.differences`.
    error
        "rmse" or "mae".

    Returns
    -------
    A matplotlib Figure: left of 0 the prediction is better; an interval that crosses 0 may be chance.
    """
    rows = table[table["error"] == error].reset_index(drop=True) if "error" in table else table[:0]
    if rows.empty:
        raise ValueError(
            f"There are no differences of {error!r} in the table with the columns {list(table.columns)}. Needed: a "
            "table of differences, and error 'rmse' or 'mae'. Type xdeepsd.differences(evaluated)."
        )
    figure, ax = _one(0.9 + 0.42 * len(rows))
    for k, row in enumerate(rows.to_dict("records")):
        colour = COLOURS[1] if row["high"] < 0 else COLOURS[0] if row["low"] > 0 else "0.35"
        ax.plot([row["low"], row["high"]], [k, k], color=colour, lw=2)
        ax.plot(row["difference"], k, "o", ms=5, color=colour)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), rows["name"], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel(f"difference of the {error.upper()} (mm day-1)\n\u2190 the prediction is better")
    return figure


def training(metrics: pd.DataFrame) -> Figure:
    """How the error on the validation days fell during the training, beside interpolation, one panel a stage.

    Parameters
    ----------
    metrics
        ``metrics.parquet`` of a run of `xdeepsd.train_stage` or `xdeepsd.train_stack`, or the ``history`` of a
        `xdeepsd.TrainedStage`: a row for each validation, with ``step``, ``loss``, and where there are validation days
        ``rmse`` and ``rmse_interpolation`` (mm day-1). Of several runs joined, the columns ``stage`` and ``seed`` say
        which one.

    Returns
    -------
    A matplotlib Figure. Circles: the lowest error.
    """
    require("plot", "A picture")
    from matplotlib.figure import Figure

    if not {"step", "loss"} <= set(metrics.columns) or metrics.empty:
        raise ValueError(
            f"The metrics have {len(metrics)} rows with the columns {list(metrics.columns)}. Needed: step and loss, a "
            "row for each validation. Type pandas.read_parquet('checkpoints/stage_0/metrics.parquet')."
        )
    stages = sorted(metrics["stage"].unique()) if "stage" in metrics else [None]
    figure = Figure(figsize=(1.0 + 2.6 * max(len(stages), 2), 3.4), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    shown = "rmse" if "rmse" in metrics and metrics["rmse"].notna().any() else "loss"
    for ax, stage in zip(panels, stages, strict=True):
        rows = metrics if stage is None else metrics[metrics["stage"] == stage]
        runs = [group for _, group in rows.groupby("seed")] if "seed" in rows else [rows]
        for k, run in enumerate(runs):
            one = run.sort_values("step")
            label = "model" if len(runs) == 1 else f"{len(runs)} seeds" if k == 0 else None
            ax.plot(
                one["step"], one[shown], color=COLOURS[0], lw=1.5 if len(runs) == 1 else 0.9, marker=".", label=label
            )
            best = one[one[shown] == one[shown].min()][:1]
            ax.plot(best["step"], best[shown], "o", ms=8, mfc="none", mec=COLOURS[0])
        if shown == "rmse":
            ax.axhline(rows["rmse_interpolation"].iloc[-1], color=COLOURS[1], ls="--", lw=1.2, label="interpolation")
            ax.set_ylim(bottom=0)
        ax.set_title("" if stage is None else f"stage {stage}", fontsize=10)
        ax.set_xlabel("steps")
        _quiet(ax)
    panels[0].set_ylabel("RMSE on validation days (mm day-1)" if shown == "rmse" else "training loss")
    return _legend(figure, panels[0])


def sweep(summary: pd.DataFrame, chosen: float | None = None) -> Figure:
    """Error relative to alpha 0 against alpha on the validation days, one line per rank of the bins.

    Parameters
    ----------
    summary
        From `xdeepsd.evaluation.sweep.summarize`.
    chosen
        The chosen alpha, marked by a line.

    Returns
    -------
    A matplotlib Figure with one panel each for RMSE and MAE. Filled points differ from alpha 0 (Wilcoxon, p <= 0.05).
    """
    require("plot", "A picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    validation = summary[summary["part"] == "validation"]
    ranks = [*sorted(set(validation["rank"]) - {0}), 0]
    # From rare (dark) to common (light); all cells together in grey.
    shades = ["#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#c9b458"]
    for ax, error in zip(panels, ("rmse", "mae"), strict=True):
        for i, rank in enumerate(ranks):
            rows = validation[(validation["rank"] == rank) & (validation["error"] == error)].sort_values("alpha")
            first = rows.iloc[0]
            span = f"{first['low']:.3g} to {first['high']:.3g}, n = {first['count']:,}"
            name = f"{rank}{' (rarest)' if rank == 1 else ''}: {span}" if rank else "all cells"
            colour = shades[i % len(shades)] if rank else "0.45"
            ax.plot(rows["alpha"], rows["relative"], color=colour, lw=1.4, ls="-" if rank else "--", label=name)
            sure = (rows["p_wilcoxon"] <= 0.05).to_numpy()
            for which, fill in ((sure, colour), (~sure, "white")):
                ax.plot(rows["alpha"][which], rows["relative"][which], "o", ms=4.5, mec=colour, mfc=fill, ls="")
        ax.axhline(1, color="0.3", lw=0.8)
        if chosen is not None:
            ax.axvline(chosen, color="0.3", lw=0.8, ls=":")
            ax.annotate(f" chosen: {chosen:g}", (chosen, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
        ax.set_xlabel("alpha")
        ax.set_ylabel(f"{error.upper()} relative to alpha = 0")
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, title="rank of the bin (mm day-1)",
                  title_fontsize=8)  # fmt: skip
    figure.suptitle("Validation days; filled: differs from alpha = 0 (Wilcoxon, p <= 0.05)", fontsize=10)
    return figure


def styles(names: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Each name with its line: the truth black, what is judged thick, with kept means dashed in the colour without."""
    found: list[tuple[Any, dict[str, Any]]] = []
    taken: dict[str, str] = {}
    for name in names:
        plain = str(name).removesuffix(KEPT)
        if plain != TRUTH and plain not in taken:
            taken[plain] = COLOURS[len(taken) % len(COLOURS)]
        first = len(taken) == 1 and plain in taken
        style = {"color": taken.get(plain, "black"), "lw": 2.2 if first else 1.3, "zorder": 3 if first else 2,
                 "ls": "--" if str(name).endswith(KEPT) else "-", "label": str(name)}  # fmt: skip
        found.append((name, style | ({"lw": 1.8} if plain == TRUTH else {})))
    return found


def _needed(found: xr.Dataset, *names: str, dims: tuple[str, ...]) -> xr.Dataset:
    """These variables; ValueError where one is missing or has other dims."""
    require("plot", "A picture")
    wrong = [name for name in names if name not in found or not set(found[name].dims) <= set(dims)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} with the dims {', '.join(dims)} is not in the Dataset, which has "
            f"{dict(found.sizes)} and {sorted(map(str, found))[:6]}. Needed: the result for all days and cells, with "
            "members for ranks. Leave by out."
        )
    return found[list(names)]


def _series(da: xr.DataArray, name: str) -> xr.DataArray:
    """``(time,)``: means of the days, weighted by area; lazily."""
    if {"lat", "lon"} <= set(da.dims):
        found = da
    elif len(da.dims) > 1:
        found = axes.standardize(da)[0]
    else:
        found = da
    if "time" not in found.dims or not hasattr(found.indexes.get("time"), "month"):
        raise ValueError(
            f"{name!r} has the dims {dict(da.sizes)}, without dates. Needed: time with dates, from which the months "
            "follow. Type da.assign_coords(time=xr.date_range('2001-01-01', periods=da.sizes['time']))."
        )
    if "lat" not in found.dims:
        return found
    area = xr.DataArray(cell_weights(found["lat"].values, found.sizes["lon"]), dims=("lat", "lon"))
    return found.weighted(area).mean([dim for dim in found.dims if dim != "time"])


def _one(height: float = 3.7) -> tuple[Figure, Axes]:
    require("plot", "A picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height + 0.3), layout="constrained")
    ax = figure.subplots()
    _quiet(ax)
    return figure, ax


def _quiet(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)


def _plain_logs(ax: Axes) -> None:
    """Numbers such as 20 along the abscissa, rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, ax: Axes) -> Figure:
    """Below the panel, where it hides no line."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
