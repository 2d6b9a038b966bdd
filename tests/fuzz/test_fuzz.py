"""A few seconds of each kind of random case, from a seed that is printed and changes every day."""

import datetime

import pytest

from tests.fuzz import KINDS
from tests.fuzz.runner import many

SEED = int(f"{datetime.date.today():%Y%m%d}") * 1000
CASES = {"stacks": 40, "regridding": 60, "damage": 60, "folders": 16, "kills": 6}


def test_every_kind_is_run():
    assert set(CASES) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_random_cases(kind):
    print(f"seeds {SEED} to {SEED + CASES[kind] - 1}; more: make fuzz")  # noqa: T201
    outcomes = list(many(((kind, SEED + i) for i in range(CASES[kind])), 2))
    assert len(outcomes) == CASES[kind]
    bad = [str(outcome) for outcome in outcomes if outcome.verdict != "ok"]
    assert not bad, "\n".join(bad)
