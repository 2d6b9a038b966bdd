"""RMSE of `TrainConfig()` on held-out real days as a share of the best baseline with coarse means kept.

Oregon (gridMET) at x2, x4 and x8, Iberia (E-OBS) at x2 and x4; how the days are shared out: examples/skill.py. The data
are those of ``--data``; without them there is nothing to measure.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from _report import figure, parser, report
from rich.console import Console
from skill import TRIES, against_baseline, measure, show

TARGETS = {"oregon": 0.85, "iberia": 0.67}
METHOD = "TrainConfig()"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path(os.environ.get("XDEEPSD_DATA", "../shared/data")))
    arguments.add_argument("--seeds", type=int, default=1)
    given = arguments.parse_args()
    if not (given.data / "iberia").exists():
        print(f"No real data at {given.data}: nothing is measured. Type --data FOLDER.")
        return
    console = Console(width=120)
    rows = measure(given.data, {METHOD: TRIES[METHOD] | ({"steps": 3} if given.quick else {})}, given.seeds, console)
    table = against_baseline(rows)
    show(table, console)
    figures, notes = [], {"seeds": given.seeds, "rmse": {}, "baselines": {}}
    for region, stack, method in table.index:
        row = table.loc[(region, stack, method)]
        name = f"{region}_x{2 ** stack.count('x2')}"
        if method == METHOD:
            target = None if given.quick else TARGETS[region]
            figures.append(figure(f"{name}_vs_baseline", float(row["vs_baseline"]), "", target, "lower"))
            notes["baselines"][name] = row["baseline"]
        notes["rmse"].setdefault(name, {})[method] = float(row["rmse"])
    report(figures, given.json, ["xdeepsd", "torch", "numpy", "xarray"], notes)


if __name__ == "__main__":
    main()
