"""What an import and the first map cost, each timed as a whole process, in turn: medians of the ratios."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import figure, parser, report

FIRST_MAP = """
import sys, xarray as xr, xdeepsd
fine = xr.open_zarr(sys.argv[1])["pr"].deepsd.downscale(xdeepsd.load_model(sys.argv[2]))
fine.isel(time=0).compute()
"""
PREPARE = """
import sys
sys.path.insert(0, sys.argv[3])
import xdeepsd
from builders import make_coarse, make_stack, make_static
coarse = make_coarse(days=4)
coarse.to_dataset().to_zarr(sys.argv[1], consolidated=True)
model = make_stack(2)
xdeepsd.save_model(xdeepsd.StackedSRCNN(model.stages, static=make_static(coarse, model.scale)), sys.argv[2])
"""


def seconds(*command: str) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    given = parser(__doc__).parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        store, model = f"{folder}/in.zarr", f"{folder}/model"
        tests = str(Path(__file__).parents[1] / "tests")
        subprocess.run([python, "-W", "ignore", "-c", PREPARE, store, model, tests], check=True)
        commands = {
            "pass": (python, "-c", "pass"),
            "xarray": (python, "-c", "import xarray"),
            "xarray and torch": (python, "-c", "import xarray, torch"),
            "xdeepsd": (python, "-c", "import xdeepsd"),
            "help": (str(Path(python).with_name("xdeepsd")), "--help"),
            "first map": (python, "-W", "ignore", "-c", FIRST_MAP, store, model),
        }
        for command in commands.values():
            seconds(*command)  # once to warm up
        rounds = [{name: seconds(*c) for name, c in commands.items()} for _ in range(3 if given.quick else 9)]

    def ratio(a: str, b: str) -> float:
        return statistics.median(r[a] / r[b] for r in rounds)

    report(
        [
            figure("import_vs_xarray", ratio("xdeepsd", "xarray"), "", 1.3, "lower"),
            figure("help_vs_python", ratio("help", "pass"), "", 25, "lower"),
            figure("help_seconds", statistics.median(r["help"] for r in rounds), "s", 0.6, "lower"),
            figure("first_map_vs_xarray_and_torch", ratio("first map", "xarray and torch"), "", None, "lower"),
            figure("first_map_seconds", statistics.median(r["first map"] for r in rounds), "s", None, "lower"),
        ],
        given.json,
        ["xarray", "torch", "typer", "lazy-loader"],
    )


if __name__ == "__main__":
    main()
