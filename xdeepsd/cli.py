"""The command line: ``xdeepsd --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Statistical downscaling with stacked SRCNNs (DeepSD).",
)


@app.callback()
def main() -> None:
    """Statistical downscaling with stacked SRCNNs (DeepSD)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the climate and of the training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each stage.")] = 400,
) -> None:
    """Generate a small climate, train a stack on it, downscale a held-out year and compare."""
    from rich.console import Console

    from xdeepsd.demo import run_demo

    table = run_demo(out, Console(), seed, steps)
    if float(table["rmse"]["xdeepsd"]) >= float(table["rmse"]["bilinear interpolation"]):
        raise typer.Exit(1)
