"""The commands of training: ``train``, ``sweep`` and ``config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdeepsd.cli.terminal import check_writable, connected, consoles, logged, told

app = typer.Typer()


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
    from rich.table import Table

    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.models.stack import check_model_folder, save_model
    from xdeepsd.training.stack import stage_levels, static_fields, train_stack
    from xdeepsd.training.stage import train_stage

    console, errors = consoles()
    with logged(console), told(errors, _stops(), "--resume goes on from the last checkpoint.", _why):
        settings = load_config(config)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1)
        model_path, folder = settings.paths.model, settings.paths.checkpoints
        if stage is not None and stage >= len(configs):
            raise ValueError(f"There is no stage {stage}: the levels make the stages 0 to {len(configs) - 1}.")
        if stage is None and model_path.exists() and not resume:
            raise FileExistsError(f"{model_path} exists. Remove it, or type --resume to go on and replace it.")
        check_writable(folder)
        if stage is None:
            check_writable(model_path)
            check_model_folder(model_path, overwrite=True)  # now, not after the training
        if stage is not None:
            coarse, fine = stage_levels(levels, stage, static_fields(levels, configs[stage]))
            trained = train_stage(
                coarse, fine, configs[stage], index=stage, checkpoint_dir=folder / f"stage_{stage}", resume=resume,
                progress=console.is_terminal,
            )  # fmt: skip
            summaries = [trained.summary]
        else:
            with connected(workers, scheduler) as client:
                model = train_stack(
                    levels, configs, client=client, checkpoint_dir=folder, resume=resume, progress=console.is_terminal
                )
            if model_path.exists():
                console.print(f"The model at {model_path} is replaced.", markup=False)
            save_model(model, model_path, overwrite=True)
            summaries = model.training["stages"]
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


def _stops() -> tuple[type[BaseException], ...]:
    """What may end a training, and is told in a sentence."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    return ValueError, OSError, FloatingPointError, KilledWorker, CancelledError


def _why(error: BaseException) -> str:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return (
            "Workers kept dying, probably out of memory: fewer --workers, or a smaller buffer under [training]. "
            f"{error}"
        )
    if isinstance(error, CancelledError):
        return f"The scheduler is lost. What is done is kept in the checkpoints. {error}"
    return str(error)


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
    from xdeepsd.cli.ini import convert_ini

    console, errors = consoles()
    target = out or ini.with_suffix(".toml")
    with told(errors, (ValueError, OSError), "Nothing is written."):
        text, notes = convert_ini(ini)
        if target.exists():
            raise FileExistsError(f"{target} exists. Remove it, or type --out NAME.")
        with target.open("x") as file:
            file.write(text)
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
    import os

    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.evaluation.sweep import parse_alphas, report, run_sweep

    console, errors = consoles()
    with logged(console), told(errors, _stops(), "The same command goes on.", _why):
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
