"""``xdeepsd card``."""

from __future__ import annotations

from typing import Annotated

import typer

from xdeepsd.cli.terminal import consoles, told


def card(
    model: Annotated[str, typer.Argument(help="Folder of a model, or of an ensemble; demo: the one that comes along.")],
) -> None:
    """Print what a model is, its data, errors and limits, as Markdown: xdeepsd card MODEL > README.md."""
    from xdeepsd.models.files import DEMO_NAME, load_model, load_models, model_folders

    _, errors = consoles()
    with told(errors, (ValueError, OSError), ""):
        many = model != DEMO_NAME and model_folders(model)
        models = load_models(model) if many else [load_model(model)]
        typer.echo("\n".join(one.card() for one in models), nl=False)
