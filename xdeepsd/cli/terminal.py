"""What the commands share: consoles, the log, errors as one sentence, a progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import typer


def consoles() -> tuple[Any, Any]:
    """A `rich.console.Console` for results and one for errors."""
    from rich.console import Console

    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    return Console(**plain), Console(stderr=True, style="red", **plain)


@contextlib.contextmanager
def logged(console: Any) -> Iterator[None]:
    """Show the log of xdeepsd, and nothing of Dask's."""
    from rich.logging import RichHandler

    log, handler = logging.getLogger("xdeepsd"), RichHandler(console=console, show_path=False, show_time=False)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def with_flags(text: str) -> str:
    """Turn a message that names Python arguments into one that names flags: ``resume=True`` becomes ``--resume``.

    >>> with_flags("Type build_levels(..., climatology=slice('1981', '2005')), or allow_missing=True.")
    'Type xdeepsd prepare --climatology-years 1981 2005, or --allow-missing.'
    """
    years = r"climatology=slice\('(\w+)', '(\w+)'\)"
    text = re.sub(rf"build_levels\(\.\.\., {years}\)", r"xdeepsd prepare --climatology-years \1 \2", text)
    text = re.sub(years, r"--climatology-years \1 \2", text)
    text = re.sub(r"\banother out\b", "another --out", text)
    text = re.sub(r"\b(start|end)='([\d-]+)',?", r"--\1 \2", text)
    text = re.sub(r"\bunits='([^']+)'(?: to downscale)?", r"--units '\1'", text)
    text = re.sub(r"\bday_ends=(\d+|\.\.\.)", r"--day-ends \1", text)
    text = re.sub(r"\bday_ends(?= out\b)", "--day-ends", text)
    text = re.sub(r"\bimage='([^']+)'", r"--image \1", text)
    text = re.sub(r"\ba larger timeout=", "a larger timeout in the file of --cluster-options", text)
    text = text.replace("xdeepsd.clusters.manifests.role()", "xdeepsd kubernetes manifest --kind rbac")
    text = re.sub(r"\b([a-z_]+)=True\b", lambda found: f"--{found[1].replace('_', '-')}", text)
    return re.sub(
        r"\b([Tt]ype |or )(variable|device|precision|edges)='?([A-Za-z0-9]+)'?",
        lambda found: f"{found[1]}--{found[2]} {found[3]}",
        text,
    )


def check_writable(path: Path) -> None:
    """Raise OSError, before any work, if a file or folder at ``path`` could not be written."""
    there = path.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != path.expanduser().absolute() and not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {there} is a file. Type another path.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission to write to {there}. Type another path.")


@contextlib.contextmanager
def told(errors: Any, kinds: tuple[type[BaseException], ...], stopped: str, less_memory: str = "") -> Iterator[None]:
    """End the command with one sentence: exit status 1 for an error of these kinds, 130 if the user stops it.

    Also status 1 if a cluster gives up; ``less_memory`` says which flags reduce the memory of its workers.
    """
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"Stopped. {stopped}", markup=False)
        raise typer.Exit(130) from None
    except Exception as error:
        text = str(error)
        if type(error).__name__ == "KilledWorker":  # by name: distributed may not be installed
            text = f"Workers kept dying, probably out of memory: {less_memory}. {text}"
        elif (
            isinstance(error, CancelledError)
            or type(error).__name__ == "CommClosedError"
            or "Timed out trying to connect to " in text  # an OSError of distributed
        ):
            text = f"The connection to the scheduler was lost. What has been done is kept. {text}"
        elif not isinstance(error, kinds):
            raise
        errors.print(with_flags(text), markup=False)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def bar(console: Any, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the things done, on a terminal; to be called with their number and the total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
