"""What other systems do differently, played here or read from the sources: text, forks, paths, forcing to disk."""

import ast
import sys
from pathlib import Path

import pytest

import xdeepsd

PACKAGE = Path(xdeepsd.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Modules that Windows lacks.
POSIX = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios"}
# Of os and signal, what Windows lacks.
MISSING = {"fork", "getuid", "geteuid", "killpg", "mkfifo", "sched_getaffinity", "setsid", "waitpid", "SIGKILL"}


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_text_file_says_its_encoding_and_nothing_is_for_posix_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in calls(tree):
        named = {keyword.arg for keyword in call.keywords}
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ("read_text", "write_text"):
            first = 0 if name == "read_text" else 1  # position of the encoding
            assert "encoding" in named or len(call.args) > first, f"{path}:{call.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not POSIX & {alias.name for alias in node.names}, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in POSIX, f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("os", "signal"):
            assert node.attr not in MISSING, f"{path}:{node.lineno}"


@pytest.mark.skipif(sys.platform == "win32", reason="plays Windows")
def test_forcing_a_day_to_disk_needs_a_file_that_may_be_written(tmp_path, monkeypatch):
    """On Windows `os.fsync` refuses one that was opened for reading only."""
    import fcntl
    import os

    import pandas as pd
    from prism_server import PrismServer

    forced, fsync = [], os.fsync

    def as_windows(descriptor):
        forced.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        if forced[-1] == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", as_windows)
    with PrismServer() as server:
        days = pd.date_range("2011-01-01", periods=2)
        server.publish(days[0], days[-1])
        report = xdeepsd.fetch_prism(tmp_path / "a.zarr", "ppt", *days, region="hi", pace=0, base_url=server.url)
    assert len(report.fetched) == 2
    assert forced
