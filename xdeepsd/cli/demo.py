"""``xdeepsd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdeepsd.cli.terminal import check_writable, consoles, told


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the climate and of the training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each stage.")] = 400,
) -> None:
    """Generate a small climate, train a stack on it, downscale a held-out year and compare."""
    from rich.console import Console

    from xdeepsd.cli.demo_run import run_demo

    _, errors = consoles()
    with told(errors, (ValueError, OSError), "Give the same command again: it starts from the beginning."):
        check_writable(out)
        table = run_demo(out, Console(), seed, steps)
    if table["rmse"]["xdeepsd"] >= table["rmse"].drop("xdeepsd").min():
        raise typer.Exit(1)
