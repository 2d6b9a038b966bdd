"""A few seconds of each kind of random case, from a seed that is printed and changes every day."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import KINDS
from tests.fuzz.runner import many

SEED = int(f"{datetime.date.today():%Y%m%d}") * 1000
CASES = {"stacks": 40, "regridding": 60, "damage": 60, "folders": 16, "kills": 6}


def test_every_kind_is_run():
    assert {*CASES, "faults"} == set(KINDS)  # faults: below, by the clock


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks processes, which Windows cannot")
@pytest.mark.parametrize("kind", CASES)
def test_random_cases(kind):
    print(f"seeds {SEED} to {SEED + CASES[kind] - 1}; more: make fuzz")  # noqa: T201
    outcomes = list(many(((kind, SEED + i) for i in range(CASES[kind])), 2))
    assert len(outcomes) == CASES[kind]
    bad = [str(outcome) for outcome in outcomes if outcome.verdict != "ok"]
    assert not bad, "\n".join(bad)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills and forks processes as Linux does")
def test_soak(tmp_path):
    """Three minutes of random faults, or XDEEPSD_SOAK seconds."""
    root, seconds = Path(__file__).parents[2], os.environ.get("XDEEPSD_SOAK", "180")
    command = [sys.executable, "benchmarks/soak.py", "--seconds", seconds, "--seed", str(SEED), "--processes", "2"]
    done = subprocess.run([*command, "--json", tmp_path / "soak.json"], cwd=root, capture_output=True, text=True)
    print(done.stdout)  # noqa: T201
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {f["name"]: f["value"] for f in json.loads((tmp_path / "soak.json").read_text())["figures"]}
    assert figures["data_lost"] == 0
    assert 0 < figures["faults_injected"] == figures["faults_survived"]
