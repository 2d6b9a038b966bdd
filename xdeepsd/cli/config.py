"""``xdeepsd config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdeepsd.cli.terminal import consoles, told

app = typer.Typer(no_args_is_help=True)


@app.callback()
def config_main() -> None:
    """Configuration files."""


@app.command("from-ini")
def config_from_ini(
    ini: Annotated[Path, typer.Argument(help="Old config.ini of deepsd or DenseLoss.")],
    out: Annotated[Path | None, typer.Option(help="TOML file to write. Default: next to the old file.")] = None,
) -> None:
    """Convert an old config.ini to a TOML file and say what was repaired, added or dropped."""
    from xdeepsd.cli.ini import convert_ini
    from xdeepsd.stores.whole import write_whole

    console, errors = consoles()
    target = out or ini.with_suffix(".toml")
    with told(errors, (ValueError, OSError), "Nothing was written."):
        text, notes = convert_ini(ini)
        if target.exists():
            raise FileExistsError(f"{target} exists. Remove it, or type --out NAME.")
        write_whole(target, text.encode())
    for note in notes:
        console.print(f"* {note}", markup=False)
    console.print(f"{target}: look through it, then type xdeepsd train {target}", markup=False)
