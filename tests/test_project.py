"""What the project's own files promise: pinned workflows without rights they do not need, one version everywhere."""

import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import xdeepsd

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_is_one_version_and_one_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["license"] == project["license"]
    newest = re.search(r"^## ([\d.]+) ", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert cited["version"] == newest  # and the workflow `release` compares it with the tag


def test_the_readme_lists_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    told = {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}
    assert told.keys() >= extras.keys() - {"all", "bench", "docs", "test"}
    within = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    apart = {name for name, text in told.items() if "not part of `all`" in text}
    assert apart == (told.keys() & extras.keys()) - within


def test_the_version_is_that_of_the_installed_package():
    """It comes from git's tags (setuptools-scm): ci/packages.sh compares wheel and sdist with them."""
    assert xdeepsd.__version__ == importlib.metadata.version("xdeepsd")


def test_a_folder_on_the_path_has_no_version(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert runpy.run_path(str(ROOT / "xdeepsd" / "_version.py"))["__version__"] == "0+unknown"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_and_may_do_nothing_they_need_not(path):
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        assert job["timeout-minutes"] <= 120
        rights = job.get("permissions", {})
        assert rights == ({"id-token": "write"} if name == "publish" else {})
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), step
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False
            # What others may choose (titles, branches) never becomes part of a script.
            assert "${{" not in step.get("run", "")


def test_workflows_call_what_there_is():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for command in (step["run"] for step in job["steps"] if "run" in step):
                if found := re.match(r"make (\w+)", command):
                    assert found[1] in targets
                if found := re.match(r"[\w./]+", command):
                    script = ROOT / found[0]
                    assert "/" not in found[0] or script.exists() or found[0].startswith(".venv/"), command


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no make")
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split()) - {"install-bench"}
    assert {line.split()[0] for line in listed.splitlines()} == phony
