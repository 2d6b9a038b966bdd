"""What an import and the first map cost, each timed as a whole process, in turn: medians of the ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import figure, parser, report

HERE = Path(__file__).resolve().parents[1]

FIRST_MAP = """
import sys, xarray as xr, xdeepsd
fine = xr.open_zarr(sys.argv[1])["pr"].deepsd.downscale(xdeepsd.load_model(sys.argv[2]))
fine.isel(time=0).compute()
"""
PREPARE = """
import sys
sys.path.insert(0, sys.argv[3])
import xdeepsd
assert xdeepsd.__file__.startswith(sys.argv[4]), xdeepsd.__file__
from builders import make_coarse, make_stack, make_static
coarse = make_coarse(days=4)
coarse.to_dataset().to_zarr(sys.argv[1], consolidated=True)
model = make_stack(2)
xdeepsd.save_model(xdeepsd.StackedSRCNN(model.stages, static=make_static(coarse, model.scale)), sys.argv[2])
"""


def seconds(*command: str, code: Path = HERE) -> float:
    """Wall time of a process that finds the package in ``code``, which it runs in: ``python -c`` looks there first."""
    begin = time.perf_counter()
    where = os.environ | {"PYTHONPATH": str(code)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=where, cwd=code)
    return time.perf_counter() - begin


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--before", type=Path, help="a checkout of an earlier state, whose first map is timed in turn"
    )
    given = arguments.parse_args()
    python, program = sys.executable, str(Path(sys.executable).with_name("xdeepsd"))
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, tuple[tuple[str, ...], Path]] = {
            "pass": ((python, "-c", "pass"), HERE),
            "xarray": ((python, "-c", "import xarray"), HERE),
            "xarray and torch": ((python, "-c", "import xarray, torch"), HERE),
            "xdeepsd": ((python, "-c", "import xdeepsd"), HERE),
            "help": ((program, "--help"), HERE),
        }
        for name, code in {"first map": HERE, "first map before": given.before}.items():
            if code is not None:
                code = code.resolve()
                store, model = f"{folder}/{name}.zarr", f"{folder}/{name} model"
                seconds(python, "-W", "ignore", "-c", PREPARE, store, model, f"{code}/tests", str(code), code=code)
                commands[name] = ((python, "-W", "ignore", "-c", FIRST_MAP, store, model), code)
        for command, code in commands.values():
            seconds(*command, code=code)  # once to warm up
        rounds = [
            {name: seconds(*command, code=code) for name, (command, code) in commands.items()}
            for _ in range(3 if given.quick else 9)
        ]

    def ratio(a: str, b: str) -> float:
        return statistics.median(r[a] / r[b] for r in rounds)

    figures = [
        figure("import_vs_xarray", ratio("xdeepsd", "xarray"), "", 1.3, "lower"),
        figure("help_vs_python", ratio("help", "pass"), "", 25, "lower"),
        figure("help_seconds", statistics.median(r["help"] for r in rounds), "s", 0.6, "lower"),
        figure("first_map_vs_xarray_and_torch", ratio("first map", "xarray and torch"), "", None, "lower"),
        figure("first_map_seconds", statistics.median(r["first map"] for r in rounds), "s", None, "lower"),
    ]
    if given.before is not None:
        figures.append(figure("time_to_first_map_vs_before", ratio("first map", "first map before"), "", 1, "lower"))
    report(figures, given.json, ["xarray", "torch", "typer", "lazy-loader"])


if __name__ == "__main__":
    main()
