"""``xdeepsd sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdeepsd.cli.terminal import connected, consoles, logged, told
from xdeepsd.cli.train import LESS_MEMORY, STOPS


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file (docs/howto/config.md), with validation and test days.")],
    alpha: Annotated[
        str, typer.Option(help="start:stop:step, both ends included, or a list such as 0,0.5,1.")
    ] = "0:4:0.2",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each alpha.")] = 20,
    stage: Annotated[int | None, typer.Option(min=0, help="Sweep this stage alone; 0 is the coarsest.")] = None,
    choose: Annotated[str, typer.Option(help="What alpha is chosen by: bins, rarest or all.")] = "bins",
    workers: Annotated[int, typer.Option(min=-1, help="Processes that train at once; 0: none; -1: one a core.")] = -1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to train on instead.")] = None,
) -> None:
    """Train with DenseLoss at many alpha and seeds, choose alpha on the validation days, report the test days once.

    Run it again to go on: what is done is not done again.
    """
    import os

    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.evaluation.sweep import parse_alphas, report, run_sweep

    console, errors = consoles()
    with logged(console), told(errors, STOPS, "The same command goes on.", LESS_MEMORY):
        settings = load_config(config)
        alphas = parse_alphas(alpha)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1)
        if stage is not None:
            if stage >= len(configs):
                raise ValueError(f"There is no stage {stage}: the levels make the stages 0 to {len(configs) - 1}.")
            levels, configs = levels[stage : stage + 2], configs[stage : stage + 1]
        with connected((os.cpu_count() or 1) if workers < 0 else workers, scheduler) as client:
            table = run_sweep(levels, configs, alphas, seeds, settings.paths.sweep, client=client, choose=choose)
    report(table, settings.paths.sweep, choose, console)
