"""RMSE of `TrainConfig()` on held-out days over that of the best baseline with means kept; what keeping costs.

And members of a stage that takes noise, on Iberia at x2: their CRPS over the MAE of `TrainConfig()`, and their spread
over the error of their mean, which should be from 0.8 to 1.2.

Oregon (gridMET) at x2, x4 and x8, Iberia (E-OBS) at x2 and x4; how the days are shared out: examples/skill.py. The data
are those of ``--data``; without them there is nothing to measure.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import numpy as np
import torch
import xarray as xr
from _report import figure, parser, report
from rich.console import Console
from skill import TRIES, against_baseline, load_iberia, measure, show

import xdeepsd

TARGETS = {"oregon": 0.85, "iberia": 0.67}
METHOD = "TrainConfig()"
MEMBERS = {"loss": "crps", "noise": 2}


def conserve_rate(quick: bool) -> float:
    """Rate of the same stack with coarse means kept over the one without: interleaved, the median of the rounds."""
    torch.manual_seed(0)
    days, nlat, nlon = (4, 20, 30) if quick else (24, 78, 176)
    config = xdeepsd.SRCNNConfig(residual=True)
    stages = [
        xdeepsd.Stage(
            xdeepsd.SRCNN(config), xdeepsd.Normalizer(1.0, 1.5), {"elevation": xdeepsd.Normalizer(800, 600)},
            xdeepsd.Normalizer(0.0, 0.3), "sqrt",
        )
        for _ in range(3)
    ]  # fmt: skip
    model = xdeepsd.StackedSRCNN(stages)
    rng = np.random.default_rng(0)
    lat, lon = 49 - np.arange(8 * nlat) / 24, -124 + np.arange(8 * nlon) / 24
    coords = {"time": xr.date_range("2001-01-01", periods=days)}
    coords |= {"lat": lat.reshape(-1, 8).mean(1), "lon": lon.reshape(-1, 8).mean(1)}
    rain = rng.gamma(0.3, 8.0, (days, nlat, nlon)).astype("float32")
    coarse = xr.DataArray(rain, coords, ("time", "lat", "lon"), name="pr", attrs={"units": "mm day-1"}).chunk(time=4)
    elevation = xr.DataArray(rng.uniform(0, 2000, (lat.size, lon.size)), {"lat": lat, "lon": lon}, ("lat", "lon"))
    ways = {kind: coarse.deepsd.downscale(model, elevation, conserve=kind) for kind in (None, "multiplicative")}
    rounds = []
    for _ in range(3 if quick else 9):
        seconds = {}
        for kind, fine in ways.items():
            began = time.perf_counter()
            fine.compute(scheduler="threads")
            seconds[kind] = time.perf_counter() - began
        rounds.append(seconds[None] / seconds["multiplicative"])
    return statistics.median(rounds[1:])


def members(data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """`spread_skill` of 20 members on the test days, and their rank histogram (its mean: 1)."""
    region = load_iberia(data)
    levels, config = region.levels[-2:], dataclasses.replace(region.config, **MEMBERS | changes)
    model = xdeepsd.train_stack(levels, config, progress=False)
    test = config.split(levels[-1]["time"]).test
    truth, given = levels[-1]["precipitation"].isel(time=test), levels[0][["precipitation"]].isel(time=test)
    fine = xdeepsd.downscale(given, model, members=20)["precipitation"].assign_coords(truth.coords)
    ranks = xdeepsd.rank_histogram(fine, truth)
    return xdeepsd.spread_skill(fine, truth) | {"ranks": (ranks / ranks.mean()).values.round(3).tolist()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path(os.environ.get("XDEEPSD_DATA", "../shared/data")))
    arguments.add_argument("--seeds", type=int, default=1)
    given = arguments.parse_args()
    if not (given.data / "iberia").exists():
        print(f"No real data at {given.data}: nothing is measured. Type --data FOLDER.")
        return
    console = Console(width=120)
    changes = {"steps": 3} if given.quick else {}
    rows = measure(given.data, {METHOD: TRIES[METHOD] | changes}, given.seeds, console)
    table = against_baseline(rows)
    show(table, console)
    figures = [figure("conserve_rate", conserve_rate(given.quick), "", None if given.quick else 0.9, "higher")]
    notes = {"seeds": given.seeds, "rmse": {}, "baselines": {}}
    for region, stack, method in table.index:
        row = table.loc[(region, stack, method)]
        name = f"{region}_x{2 ** stack.count('x2')}"
        if method == METHOD:
            target = None if given.quick else TARGETS[region]
            figures.append(figure(f"{name}_vs_baseline", float(row["vs_baseline"]), "", target, "lower"))
            notes["baselines"][name] = row["baseline"]
        notes["rmse"].setdefault(name, {})[method] = float(row["rmse"])
    found = members(given.data, changes)
    mae = float(table.loc[("iberia", "x2", METHOD), "mae"])
    figures += [
        figure("crps_vs_mae", found["crps"] / mae, "", None if given.quick else 0.75, "lower"),
        figure("spread_skill_ratio", found["ratio"], "", None if given.quick else 0.8, "higher"),
    ]
    notes["members"] = found | {"mae_of_default": mae}
    report(figures, given.json, ["xdeepsd", "torch", "numpy", "xarray"], notes)


if __name__ == "__main__":
    main()
