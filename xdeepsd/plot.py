"""Pictures: maps side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_maps(maps: Mapping[str, xr.DataArray], title: str = "") -> Figure:
    """Maps of precipitation side by side on one colour scale, two in a row.

    Parameters
    ----------
    maps
        Title and ``(lat, lon)`` map of each panel, all in one unit; grids may differ. Computed here. NaN is grey.
    title
        Above all panels.

    Returns
    -------
    A matplotlib Figure; ``figure.savefig(path)`` writes it. Raises ImportError with a hint without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_maps needs matplotlib. Type pip install matplotlib.") from error

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
