"""``xdeepsd sweep``."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xdeepsd.cli import clusters
from xdeepsd.cli.terminal import consoles, logged, told
from xdeepsd.cli.train import LESS_MEMORY, STOPS

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file (docs/howto/config.md), with validation and test days.")],
    alpha: Annotated[
        str, typer.Option(help="start:stop:step, both ends included, or a list such as 0,0.5,1.")
    ] = "0:4:0.2",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each alpha.")] = 20,
    stage: Annotated[int | None, typer.Option(min=0, help="Sweep only this stage; 0 is the coarsest.")] = None,
    choose: Annotated[str, typer.Option(help="Error that alpha is chosen by: bins, rarest or all.")] = "bins",
    workers: clusters.Workers = None,
    scheduler: clusters.Scheduler = None,
    cluster: clusters.Kind = None,
    image: clusters.Image = None,
    gpus: clusters.Gpus = 0,
    cluster_options: clusters.Options = None,
) -> None:
    """Train with DenseLoss for many alphas and seeds, choose alpha on the validation days, report the test days once.

    Run it again to resume: finished runs are not repeated.
    """
    import os

    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.evaluation.sweep import run_sweep

    console, errors = consoles()
    with logged(console), told(errors, STOPS, "The same command continues.", LESS_MEMORY):
        settings = load_config(config)
        alphas = parse_alphas(alpha)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1, stage)
        if stage is not None:
            levels, configs = levels[stage : stage + 2], configs[stage : stage + 1]
        where = cluster, None if workers == "-1" else workers, scheduler, image, gpus, cluster_options
        with clusters.connected(*where, default=os.cpu_count() or 1) as client:
            table = run_sweep(levels, configs, alphas, seeds, settings.paths.sweep, client=client, choose=choose)
    report(table, settings.paths.sweep, choose, console)


def parse_alphas(text: str) -> list[float]:
    """The alphas of ``start:stop:step``, both ends included, or of a comma-separated list.

    >>> parse_alphas("0:1:0.25")
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> parse_alphas("0,2")
    [0.0, 2.0]

    Raises ValueError if the text is neither, or a number is below 0.
    """
    message = f"alpha is {text!r}. Needed: start:stop:step such as 0:4:0.2, or a list such as 0,0.5,1; none below 0."
    try:
        parts = [Decimal(part) for part in text.replace(":", ",").split(",")]
    except InvalidOperation:
        raise ValueError(message) from None
    if ":" in text:
        if len(parts) != 3 or not all(p.is_finite() for p in parts) or parts[2] <= 0 or parts[1] < parts[0]:
            raise ValueError(message)
        # Decimals, so that 0:4:0.2 gives 0.6 and not 0.6000000000000001.
        parts = [parts[0] + i * parts[2] for i in range(int((parts[1] - parts[0]) / parts[2]) + 1)]
    if not all(part.is_finite() and part >= 0 for part in parts):
        raise ValueError(message)
    return [float(part) for part in parts]


def report(table: pd.DataFrame, folder: Path, choose: str, console: Console) -> None:
    """Print the choice and the results on the test days: alpha 0, the chosen alpha and interpolation, bin by bin."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from xdeepsd.evaluation.sweep import FIGURE, TABLE, summarize

    summary = summarize(table)
    seeds = table.loc[table["name"] == "model", "seed"].nunique()
    best = float(table.loc[table["chosen"], "alpha"].iloc[0])
    by = {"bins": "the mean over the bins of the RMSE relative to alpha 0", "rarest": "the RMSE in the rarest bin",
          "all": "the RMSE over all cells"}[choose]  # fmt: skip
    console.print(f"Chosen on the validation days by {by}, over {seeds} seeds: alpha {best:g}")
    for error in ("rmse", "mae"):
        # Narrow enough for a terminal of 80 columns: a truncated number would be useless.
        shown = Table(
            title=f"{error.upper()} on the test days, mean of {seeds} seeds", title_justify="left", box=SIMPLE_HEAD,
            padding=0,
        )  # fmt: skip
        for head in ("rank", "range", "values", "bilinear", "alpha 0", f"alpha {best:g}", "change", "p of U", "p of W"):
            shown.add_column(head, justify="right", no_wrap=True)
        rows = summary[(summary["part"] == "test") & (summary["error"] == error)]
        for rank in [*sorted(set(rows["rank"]) - {0}), 0]:
            zero = rows[(rows["rank"] == rank) & (rows["alpha"] == 0)].iloc[0]
            ours = rows[(rows["rank"] == rank) & (rows["alpha"] == best)].iloc[0]
            shown.add_row(
                str(rank) if rank else "all", f"{ours['low']:.3g} to {ours['high']:.3g}", f"{ours['count']:,}",
                *(f"{value:#.3g}" for value in (ours["interpolation"], zero["value"], ours["value"])),
                f"{ours['relative'] - 1:+.1%}", _p(ours["p_mannwhitney"]), _p(ours["p_wilcoxon"]),
            )  # fmt: skip
        console.print(shown)
    console.print("Rank 1 is the rarest bin. p of U: Mann-Whitney; p of W: Wilcoxon, pairs with the same seed.")
    test = summary[(summary["part"] == "test") & (summary["error"] == "rmse") & (summary["alpha"] == best)]
    test = test.set_index("rank")
    if best == 0:
        console.print("No alpha above 0 is better on the validation days: the plain MSE (alpha 0) stays.")
    else:
        change, p = test["relative"] - 1, float(test["p_wilcoxon"][1])
        sure = p <= 0.05 and change[1] < 0
        console.print(
            f"In the rarest bin alpha {best:g} {'lowers' if sure else 'does not significantly lower'} the RMSE "
            f"({change[1]:+.1%}, p = {_p(p)}); in the most common bin it is {change.iloc[-1]:+.1%}, over all cells "
            f"{change[0]:+.1%}."
        )
    worse = test[test["value"] >= test["interpolation"]]
    if len(worse):
        console.print(
            "[bold red]Not better than interpolation[/] in "
            + ", ".join("all cells together" if rank == 0 else f"the bin of rank {rank}" for rank in worse.index)
        )
    console.print(f"{folder / TABLE}, {folder / FIGURE}", markup=False)


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
