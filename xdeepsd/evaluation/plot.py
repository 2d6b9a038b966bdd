"""Figures: maps side by side, and the errors of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xdeepsd._extras import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def plot_maps(maps: Mapping[str, xr.DataArray], title: str = "") -> Figure:
    """Maps of precipitation on one colour scale, two to a row.

    Parameters
    ----------
    maps
        Title and ``(lat, lon)`` map of each panel, all in the same units; grids may differ. Lazy maps are computed. NaN
        is grey.
    title
        Title above all panels.

    Returns
    -------
    A matplotlib Figure; ``figure.savefig(path)`` writes it. Without matplotlib, raises an ImportError that
    says what to type.
    """
    require("plot", "plot_maps")
    from matplotlib.figure import Figure

    loaded = {name: da.compute() for name, da in maps.items()}
    wet = np.concatenate([da.values[da.values > 0.1].ravel() for da in loaded.values()])
    top = float(np.quantile(wet, 0.995)) if wet.size else 1.0
    first = next(iter(loaded.values()))
    aspect = 1 / np.cos(np.deg2rad(float(first["lat"].mean())))

    rows = (len(loaded) + 1) // 2
    height = float(np.ptp(first["lat"].values) / np.ptp(first["lon"].values) * aspect)
    figure = Figure(figsize=(10, 0.6 + rows * (3.8 * height + 0.4)), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for ax, (name, da) in zip(panels.ravel(), loaded.items(), strict=False):
        ax.set_facecolor("0.85")
        drawn = ax.pcolormesh(da["lon"], da["lat"], da, cmap="YlGnBu", vmin=0, vmax=top, rasterized=True)
        ax.set_title(name, fontsize=11)
        ax.set_aspect(aspect)
        ax.tick_params(labelsize=8)
    for ax in panels.ravel()[len(loaded) :]:
        ax.set_visible(False)
    figure.supxlabel("longitude (degrees east)", fontsize=9)
    figure.supylabel("latitude (degrees north)", fontsize=9)
    units = str(first.attrs.get("units", ""))
    figure.colorbar(drawn, ax=panels, extend="max", shrink=0.8, label=f"precipitation ({units})")
    figure.suptitle(title)
    return figure


def plot_sweep(summary: pd.DataFrame, chosen: float | None = None) -> Figure:
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
    require("plot", "plot_sweep")
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
