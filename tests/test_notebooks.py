"""The notebooks in examples/ run, hold no outputs in git, and lead to pages that exist."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import wrong_calls

ROOT = Path(__file__).resolve().parents[1]
STRIPPED = runpy.run_path(str(ROOT / "ci" / "strip.py"))["stripped"]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    assert path.read_text("utf-8") == STRIPPED(path.read_text("utf-8")), "run ci/strip.py examples/*.ipynb"


def test_an_output_is_stripped():
    text = NOTEBOOKS[0].read_text("utf-8")
    notebook = json.loads(text)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code.update(outputs=[{"output_type": "stream", "name": "stdout", "text": "1"}], execution_count=1)
    code["metadata"]["scrolled"] = notebook["metadata"]["language_info"]["version"] = "3.11"
    assert STRIPPED(json.dumps(notebook)) == text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_and_calls_exist(path):
    for target in re.findall(r"\]\(([^)#:]+)[#)]", "\n".join(cells(path, "markdown"))):
        assert (path.parent / target).exists(), target
    assert wrong_calls("\n".join(cells(path, "code"))) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path):
    """As a script, and without a kernel, which `make docs` uses. Nothing is written outside the folder it runs in."""
    before = set((ROOT / "examples").iterdir())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(cells(path, "code"))], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert set((ROOT / "examples").iterdir()) == before
