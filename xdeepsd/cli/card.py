"""``xdeepsd card``."""

from __future__ import annotations

from typing import Annotated

import typer

from xdeepsd.cli.terminal import consoles, told


def card(
    model: Annotated[str, typer.Argument(help="Folder of a model, or of an ensemble; demo: the one that comes along.")],
) -> None:
    """Print what a model is, its data, errors and limits, as Markdown: xdeepsd card MODEL > README.md."""
    from xdeepsd.cli.inputs import open_models

    _, errors = consoles()
    with told(errors, (ValueError, OSError), ""):
        trained = open_models(model)
        models = trained if isinstance(trained, list) else [trained]
        text = "\n".join(one.card() for one in models)
        typer.echo(text.encode(), nl=False)  # UTF-8 in a file, whatever the system's code page
