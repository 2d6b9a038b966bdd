"""``xdeepsd train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdeepsd.cli.terminal import check_writable, connected, consoles, logged, told

if TYPE_CHECKING:
    from rich.table import Table

# Errors that may end training and are reported in one sentence.
STOPS = (ValueError, OSError, FloatingPointError, ImportError)
LESS_MEMORY = "fewer --workers, or a smaller buffer under [training]"


def train(
    config: Annotated[Path, typer.Argument(help="TOML file (docs/howto/config.md).")],
    stage: Annotated[int | None, typer.Option(min=0, help="Train this stage alone; 0 is the coarsest.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints that are there.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that train stages at once; 0: none.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to train on instead.")] = None,
) -> None:
    """Train a stack, all stages or one, and save it as a model.

    With --stage no model is saved: once every stage has been trained, train with --resume puts them together. Exit
    status 2 if a stage does not beat interpolation on its validation days.
    """
    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.models.files import check_model_folder, save_model
    from xdeepsd.training.ladder import Ladder, check_levels, for_product
    from xdeepsd.training.stack import train_stack
    from xdeepsd.training.stage import train_stage

    console, errors = consoles()
    with logged(console), told(errors, STOPS, "--resume goes on from the last checkpoint.", LESS_MEMORY):
        settings = load_config(config)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1, stage)
        model_path, folder = settings.paths.model, settings.paths.checkpoints
        if stage is None and model_path.exists() and not resume:
            raise FileExistsError(
                f"{model_path} exists. Type --resume to go on and replace it; or remove it, and the checkpoints in "
                f"{folder}, to train anew."
            )
        check_writable(folder)
        if stage is None:
            check_writable(model_path)
            check_model_folder(model_path, overwrite=True)  # now, not after the training
        if stage is not None:
            chosen = for_product(configs[stage], levels[stage], stage)
            pair = Ladder.of(check_levels(levels), [chosen]).stage_levels(stage, chosen)
            trained = train_stage(
                *pair, chosen, index=stage, checkpoint_dir=folder / f"stage_{stage}", resume=resume,
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
    console.print(_table(summaries))
    console.print(f"{folder / f'stage_{stage}' if stage is not None else model_path}", markup=False)
    if any(not s.get("beats_interpolation", True) for s in summaries):
        errors.print("A stage does not beat interpolation: train longer, or on more days.")
        raise typer.Exit(2)


def _table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the stages against interpolation on their validation days."""
    from rich.table import Table

    table = Table("stage", "factor", "steps", "best at", "RMSE", "interpolation", "", title="Validation days, mm day-1")
    for s in summaries:
        errors, verdict = ("", ""), "not validated"
        if "rmse" in s:
            errors = f"{s['rmse']:.4g}", f"{s['rmse_interpolation']:.4g}"
            verdict = "[green]better[/]" if s["beats_interpolation"] else "[red]NOT BETTER[/]"
        table.add_row(*(str(s[k]) for k in ("stage", "factor", "steps", "best_step")), *errors, verdict)
    return table
