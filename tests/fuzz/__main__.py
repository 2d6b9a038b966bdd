"""``python -m tests.fuzz``: repeat a case, or run cases for some time."""

import argparse
import collections
import sys
import time

from . import KINDS
from .runner import many, rounds


def main() -> int:
    """Print seeds and failures; exit status 1 where there is a failure."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--kind", choices=KINDS, help="only this kind")
    arguments.add_argument("--seed", type=int, default=time.time_ns() // 1000, help="seed of the first case")
    arguments.add_argument("--seconds", type=float, help="run cases for so long; without it, one is repeated")
    arguments.add_argument("--processes", type=int)
    given = arguments.parse_args()
    say = sys.stdout.write
    if given.seconds is None:
        (outcome,) = many([(given.kind or "stacks", given.seed)], 1)
        say(f"{outcome}\n")
        return outcome.verdict != "ok"
    kinds = [given.kind] if given.kind else list(KINDS)
    say(f"seed {given.seed}, {given.seconds:.0f} s of {', '.join(kinds)}\n")
    verdicts = collections.Counter()
    told = time.monotonic()
    for outcome in many(rounds(given.seed, kinds), given.processes, given.seconds):
        verdicts[outcome.kind, outcome.verdict] += 1
        if outcome.verdict != "ok":
            say(f"{outcome}\n")
        if time.monotonic() > told + 60 or outcome.verdict != "ok":
            told = time.monotonic()
            say(f"{verdicts.total()} cases, now at {outcome.kind} {outcome.seed}\n")
            sys.stdout.flush()
    for (kind, verdict), number in sorted(verdicts.items()):
        say(f"{kind:12} {verdict:10} {number}\n")
    return any(verdict != "ok" for _, verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
