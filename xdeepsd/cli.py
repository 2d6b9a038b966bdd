"""The command line: ``xdeepsd --help``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

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


@app.command()
def fetch(
    out: Annotated[Path, typer.Option(help="Zarr store (a folder) to make or to go on with.")],
    variable: Annotated[
        str, typer.Option(help="ppt, tmin, tmax, tmean, tdmean, vpdmin, vpdmax, or elevation (needs no period).")
    ] = "ppt",
    start: Annotated[str | None, typer.Option(help="First day, such as 2014-01-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Last day, such as 2015-12-31.")] = None,
    resolution: Annotated[str, typer.Option(help="4km, 800m or 400m.")] = "4km",
    region: Annotated[str, typer.Option(help="us, ak, hi or pr.")] = "us",
    pace: Annotated[float, typer.Option(help="Seconds to wait between requests.", min=0)] = 2.0,
    timeout: Annotated[float, typer.Option(help="Seconds without an answer until a request is given up.")] = 60.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Days that are not published yet are no failure.")
    ] = False,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fetch PRISM days into a Zarr store; run it again to go on, or for newer releases.

    Data: PRISM Climate Group, Oregon State University. Exit status 1 where days are missing, which are listed.
    """
    import httpx
    from rich.console import Console

    from xdeepsd import prism
    from xdeepsd.fetch import fetch_prism

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    try:
        report = fetch_prism(
            out, variable, start, end, resolution=resolution, region=region, pace=pace, timeout=timeout,
            base_url=base_url or prism.SERVICE, progress=console.is_terminal,
        )  # fmt: skip
    except (ValueError, OSError, httpx.HTTPError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    if report.failed:
        errors.print(f"{len(report.failed)} days failed:")
        for day, cause in report.failed.items():
            errors.print(f"  {day:%Y-%m-%d}  {cause}", markup=False)
    if report.unpublished:
        errors.print(f"{len(report.unpublished)} days are not published: {prism.days_text(report.unpublished)}.")
    if report.stopped:
        errors.print(f"Stopped. {report.stopped}", markup=False)
    if report.not_tried:
        errors.print(f"{len(report.not_tried)} days were not tried: {prism.days_text(report.not_tried)}.")
    text = "elevation" if variable == "elevation" else f"{len(report.fetched)} days of {variable}"
    console.print(
        f"{out}: {text} fetched ({report.megabytes:.1f} MB), {len(report.held)} held before. "
        f"Data: {prism.ATTRIBUTION}", markup=False,
    )  # fmt: skip
    missing = report.failed or report.not_tried or report.stopped or (report.unpublished and not allow_missing)
    if missing:
        errors.print("What is fetched is kept. Run the same command again to fetch what is missing.")
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file (docs/howto/config.md).")],
    stage: Annotated[int | None, typer.Option(min=0, help="Train this stage alone; 0 is the coarsest.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints that are there.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that train stages at once; 0: none.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to train on instead.")] = None,
) -> None:
    """Train a stack, all stages or one, and save it as a model.

    With --stage no model is made: when every stage has been trained, train with --resume puts them together. Exit
    status 2 where a stage does not beat interpolation on its validation days.
    """
    import logging

    from rich.console import Console
    from rich.table import Table

    from xdeepsd.config import load_config, read_levels
    from xdeepsd.stack import save_model
    from xdeepsd.train import stage_levels, static_fields, train_stack, train_stage

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_config(config)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1)
        model_path, folder = settings.paths.model, settings.paths.checkpoints
        if stage is not None and stage >= len(configs):
            raise ValueError(f"There is no stage {stage}: the levels make the stages 0 to {len(configs) - 1}.")
        if stage is None and model_path.exists() and not resume:
            raise FileExistsError(f"{model_path} exists. Remove it, or type --resume to go on and replace it.")
        if stage is not None:
            coarse, fine = stage_levels(levels, stage, static_fields(levels, configs[stage]))
            trained = train_stage(
                coarse, fine, configs[stage], index=stage, checkpoint_dir=folder / f"stage_{stage}", resume=resume,
                progress=console.is_terminal,
            )  # fmt: skip
            summaries = [trained.summary]
        else:
            with _connect(workers, scheduler) as client:
                model = train_stack(
                    levels, configs, client=client, checkpoint_dir=folder, resume=resume, progress=console.is_terminal
                )
            save_model(model, model_path, overwrite=True)
            summaries = model.training["stages"]
    except (ValueError, OSError, FloatingPointError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    table = Table("stage", "factor", "steps", "best at", "RMSE", "interpolation", "", title="Validation days, mm day-1")
    for s in summaries:
        known = "rmse" in s
        verdict = (
            ("[green]better[/]" if s["beats_interpolation"] else "[red]NOT BETTER[/]") if known else "not validated"
        )
        values = (f"{s['rmse']:.4g}", f"{s['rmse_interpolation']:.4g}") if known else ("", "")
        table.add_row(*(str(s[k]) for k in ("stage", "factor", "steps", "best_step")), *values, verdict)
    console.print(table)
    console.print(f"{folder / f'stage_{stage}' if stage is not None else model_path}", markup=False)
    if any(not s.get("beats_interpolation", True) for s in summaries):
        errors.print("A stage does not beat interpolation: train longer, or on more days.")
        raise typer.Exit(2)


@contextlib.contextmanager
def _connect(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client of a running scheduler or of local processes of one thread each; None for neither."""
    from distributed import Client, LocalCluster

    if scheduler is not None:
        with Client(scheduler, timeout=30) as client:
            yield client
    elif workers:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client
    else:
        yield None


config_app = typer.Typer(no_args_is_help=True, help="Configuration files.")
app.add_typer(config_app, name="config")


@config_app.callback()
def config_main() -> None:
    """Configuration files."""


@config_app.command("from-ini")
def config_from_ini(
    ini: Annotated[Path, typer.Argument(help="Old config.ini of deepsd or DenseLoss.")],
    out: Annotated[Path | None, typer.Option(help="TOML file to write; beside the old one by default.")] = None,
) -> None:
    """Convert an old config.ini to a TOML file and say what was repaired, added or not kept."""
    from rich.console import Console

    from xdeepsd.config import convert_ini

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    target = out or ini.with_suffix(".toml")
    try:
        text, notes = convert_ini(ini)
        with target.open("x") as file:
            file.write(text)
    except FileExistsError:
        errors.print(f"{target} exists. Remove it, or type --out NAME.", markup=False)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    for note in notes:
        console.print(f"* {note}", markup=False)
    console.print(f"{target}: look through it, then type xdeepsd train {target}", markup=False)


@app.command()
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
    import logging
    import os

    from rich.console import Console

    from xdeepsd.config import load_config, read_levels
    from xdeepsd.sweep import parse_alphas, report, run_sweep

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_config(config)
        alphas = parse_alphas(alpha)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1)
        if stage is not None:
            if stage >= len(configs):
                raise ValueError(f"There is no stage {stage}: the levels make the stages 0 to {len(configs) - 1}.")
            levels, configs = levels[stage : stage + 2], configs[stage : stage + 1]
        with _connect((os.cpu_count() or 1) if workers < 0 else workers, scheduler) as client:
            table = run_sweep(levels, configs, alphas, seeds, settings.paths.sweep, client=client, choose=choose)
    except (ValueError, OSError, FloatingPointError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    report(table, settings.paths.sweep, choose, console)
