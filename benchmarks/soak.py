"""Random faults for minutes: how many were injected, how many the work survived, and whether data were lost.

Levels, training, models, inference, fetching and the chain of them meet kills, signals, full and read-only disks, files
that are cut or cannot grow, a clock set back, a second writer, dying workers and schedulers, and days of NaN. After the
faults of a case, the same call has to finish with the same bits as one that met none (tests/fuzz/faults.py).
"""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _report import figure, parser, report

from tests.fuzz.runner import many, rounds


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=180, help="no case begins after so many")
    arguments.add_argument("--seed", type=int, default=time.time_ns() // 1000, help="seed of the first case")
    arguments.add_argument("--processes", type=int)
    given = arguments.parse_args()
    seconds = 20 if given.quick else given.seconds
    print(f"seed {given.seed}, {seconds:.0f} s; one case: python -m tests.fuzz --kind faults --seed SEED", flush=True)
    outcomes = []
    for outcome in many(rounds(given.seed, ["faults"]), given.processes, seconds):
        outcomes.append(outcome)
        if outcome.verdict != "ok":
            print(outcome, flush=True)
    kinds = collections.Counter(kind for outcome in outcomes for kind, _ in outcome.faults)
    for kind, number in kinds.most_common():
        print(f"{number:5} x {kind}")
    survived = sum(len(outcome.faults) for outcome in outcomes if outcome.verdict == "ok")
    lost = sum(outcome.verdict in ("wrong", "lost") for outcome in outcomes)
    bad = sum(outcome.verdict != "ok" for outcome in outcomes)
    report(
        [
            figure("faults_injected", kinds.total(), "", None, "higher"),
            figure("faults_survived", survived, "", kinds.total(), "higher"),
            figure("data_lost", lost, "cases", 0, "lower"),
            figure("cases", len(outcomes), "", None, "higher"),
            figure("cases_failed", bad, "", 0, "lower"),
        ],
        given.json,
        ["xdeepsd", "xarray", "dask", "distributed", "zarr", "torch"],
        {"seed": given.seed, "seconds": seconds, "faults": dict(kinds)},
    )
    return bad or not kinds


if __name__ == "__main__":
    sys.exit(min(1, main()))
