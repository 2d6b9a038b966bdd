"""Random cases of every kind (tests/fuzz): how many give wrong results, lose a user's file or end in a traceback."""

from __future__ import annotations

import collections
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _report import figure, parser, report

from tests.fuzz import KINDS
from tests.fuzz.runner import many, rounds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=time.time_ns() // 1000)
    given = arguments.parse_args()
    count = 200 if given.quick else given.cases
    print(f"seed {given.seed}, {count} cases of {', '.join(KINDS)}", flush=True)
    verdicts: collections.Counter[str] = collections.Counter()
    try:
        for outcome in many(itertools.islice(rounds(given.seed), count)):
            verdicts[outcome.verdict] += 1
            if outcome.verdict != "ok" or verdicts.total() % 1000 == 0:
                print(verdicts.total(), outcome, flush=True)
    except KeyboardInterrupt:  # what there is by now is reported, and fewer cases than wanted do not hold
        print("stopped", flush=True)
    cases = verdicts.total()
    report(
        [
            figure("cases", cases, "", None if given.quick else 20_000, "higher"),
            figure("wrong", verdicts["wrong"], "", 0, "lower"),
            figure("lost_files", verdicts["lost"], "", 0, "lower"),
            figure("tracebacks", verdicts["traceback"], "", 0, "lower"),
        ],
        given.json,
        ["xdeepsd", "xarray", "dask", "zarr", "torch", "numba", "rasterio"],
        {"seed": given.seed},
    )


if __name__ == "__main__":
    main()
