"""``xdeepsd train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdeepsd.cli import clusters
from xdeepsd.cli.terminal import check_writable, consoles, logged, told

if TYPE_CHECKING:
    from rich.table import Table

# Errors that may end training and are reported in one sentence.
STOPS = (ValueError, OSError, FloatingPointError, ImportError)
LESS_MEMORY = "fewer --workers, or a smaller buffer under [training]"


def train(
    config: Annotated[Path, typer.Argument(help="TOML file (docs/howto/config.md).")],
    stage: Annotated[int | None, typer.Option(min=0, help="Train only this stage; 0 is the coarsest.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train an ensemble: a model for each of N seeds, in folders of their own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoints.")] = False,
    workers: clusters.Workers = None,
    scheduler: clusters.Scheduler = None,
    cluster: clusters.Kind = None,
    image: clusters.Image = None,
    gpus: clusters.Gpus = 0,
    cluster_options: clusters.Options = None,
) -> None:
    """Train a stack, all stages or one, and save it as a model.

    With --stage no model is saved: once every stage has been trained, train with --resume puts them together. With
    --seeds N the model's folder holds seed_0, seed_1 and so on, from the seed of the file up. Exit status 2 if a stage
    does not beat interpolation on its validation days.
    """
    import dataclasses

    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.models.files import check_model_folder, save_model
    from xdeepsd.training.ladder import Ladder, check_levels, for_product
    from xdeepsd.training.stack import train_stacks
    from xdeepsd.training.stage import train_stage

    console, errors = consoles()
    with logged(console), told(errors, STOPS, "--resume continues from the last checkpoint.", LESS_MEMORY):
        if stage is not None and seeds is not None:
            raise ValueError("--stage and --seeds cannot be combined: an ensemble is trained with all its stages.")
        settings = load_config(config)
        levels = read_levels(settings)
        configs = settings.stage_configs(len(levels) - 1, stage)
        model_path, folder = settings.paths.model, settings.paths.checkpoints
        names = [""] if seeds is None else [f"seed_{configs[0].seed + i}" for i in range(seeds)]
        if stage is None and model_path.exists() and not resume:
            raise FileExistsError(
                f"{model_path} exists. Type --resume to continue training and replace it; or, to train anew, remove it "
                f"and the checkpoints in {folder}."
            )
        check_writable(folder)
        if stage is None:
            check_writable(model_path)
            check_apart(model_path, names)
            for name in names:
                check_model_folder(model_path / name, overwrite=True)  # now, not after the training
        if stage is not None:
            chosen = for_product(configs[stage], levels[stage], stage)
            pair = Ladder.of(check_levels(levels), [chosen]).stage_levels(stage, chosen)
            trained = train_stage(
                *pair, chosen, index=stage, checkpoint_dir=folder / f"stage_{stage}", resume=resume,
                progress=console.is_terminal,
            )  # fmt: skip
            summaries = [trained.summary]
        else:
            plans = [[dataclasses.replace(c, seed=c.seed + i) for c in configs] for i in range(len(names))]
            found: list[Any] = [None] * len(names)
            with clusters.connected(cluster, workers, scheduler, image, gpus, cluster_options) as client:
                for i, model in train_stacks(
                    levels, plans, client=client, checkpoint_dirs=[folder / name for name in names], resume=resume,
                    progress=console.is_terminal,
                ):  # fmt: skip
                    path = model_path / names[i]
                    if path.exists():
                        console.print(f"The model at {path} is replaced.", markup=False)
                    save_model(model, path, overwrite=True)
                    found[i] = model.training["stages"]
            summaries = [summary for stages in found for summary in stages]
    console.print(_table(summaries))
    console.print(f"{folder / f'stage_{stage}' if stage is not None else model_path}", markup=False)
    if any(not s.get("beats_interpolation", True) for s in summaries):
        errors.print("A stage does not beat interpolation: train longer, or on more days.")
        raise typer.Exit(2)


def check_apart(model_path: Path, names: Sequence[str]) -> None:
    """Raise FileExistsError where an ensemble would lie inside a model, or a model among those of an ensemble."""
    from xdeepsd.models.files import is_model, model_folders

    if names != [""] and is_model(model_path):
        raise FileExistsError(f"{model_path} is a single model. Type --seeds N with another model under [paths].")
    if names == [""] and model_folders(model_path):
        raise FileExistsError(f"{model_path} holds the models of an ensemble. Type --seeds N to go on with it.")


def _table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the stages against interpolation on their validation days."""
    from rich.table import Table

    table = Table(
        "seed", "stage", "factor", "steps", "best at", "RMSE", "interpolation", "", title="Validation days, mm day-1"
    )
    for s in summaries:
        errors, verdict = ("", ""), "not validated"
        if "rmse" in s:
            errors = f"{s['rmse']:.4g}", f"{s['rmse_interpolation']:.4g}"
            verdict = "[green]better[/]" if s["beats_interpolation"] else "[red]NOT BETTER[/]"
        table.add_row(*(str(s[k]) for k in ("seed", "stage", "factor", "steps", "best_step")), *errors, verdict)
    return table
