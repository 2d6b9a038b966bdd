"""``xdeepsd report``."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdeepsd.cli.terminal import check_writable, consoles, told

if TYPE_CHECKING:
    import pandas as pd

    from xdeepsd.cli.toml import Config

CONFIG = "config.toml"


def report(
    run: Annotated[Path, typer.Argument(help="Folder with the TOML file of a training, or that file.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Judge a trained model on its test days, beside every baseline, on one HTML page with tables and pictures.

    Reads what xdeepsd train wrote: the model, the metrics of its stages, the sweep if there was one, and the levels.
    """
    console, errors = consoles()
    stops = (ValueError, TypeError, OSError, RuntimeError, ImportError)
    with told(errors, stops, f"{out} was not written."):
        write_report(run, out)
    console.print(out.absolute().as_uri(), markup=False)


def write_report(run: Path, out: Path) -> None:
    """`make_report` of a run, written whole or not at all; errors before any work.

    Raises FileNotFoundError where ``run`` is not a run, or its model or levels are missing, FileExistsError where
    ``out`` is a file that no report wrote, ValueError as `make_report`.
    """
    from xdeepsd._extras import require
    from xdeepsd.cli.toml import load_config, read_levels
    from xdeepsd.stores.whole import write_whole

    require("report", "The report")
    file = find_config(run)
    settings = load_config(file)
    check_own(out)
    check_writable(out)
    folders = _models(settings)

    from xdeepsd.evaluation.judged import judged_days
    from xdeepsd.evaluation.report import make_report
    from xdeepsd.models.files import load_model
    from xdeepsd.training.config import TrainConfig

    models = [load_model(folder) for folder in folders]
    levels = read_levels(settings)
    recorded = models[0].training.get("config")
    configs = [TrainConfig(**stage) for stage in recorded] if recorded else settings.stage_configs(len(levels) - 1)
    judged_days(levels, models, configs[-1])
    folder, ladder = file.absolute().parent, PurePath(settings.paths.levels)
    source = {"configuration": file.name, "levels": ladder.name, "folder": folder.name}
    page = make_report(
        levels, models, configs, metrics=_metrics(settings, folders, len(configs)), sweep=_sweep(settings),
        source=source,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())


def find_config(run: Path) -> Path:
    """The TOML file of a run: the file itself, or the only one in the folder, or its ``config.toml``."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(
            f"There is no folder {run}. Needed: the folder with the TOML file of a training. Type xdeepsd report "
            "FOLDER."
        )
    found = sorted(run.glob("*.toml"))
    if (run / CONFIG) in found:
        return run / CONFIG
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no TOML file"
        raise FileNotFoundError(
            f"{run} is not a run: it holds {names}. Needed: the TOML file that xdeepsd train was given (its [paths] "
            "say where model and levels are). Type xdeepsd report FILE.toml."
        )
    return found[0]


def check_own(out: Path) -> None:
    """Raise FileExistsError where ``out`` is there and is not an earlier report."""
    from xdeepsd.evaluation.report import MADE_BY

    if out.is_dir():
        raise FileExistsError(f"{out} is a folder. Needed: an HTML file. Type --out report.html.")
    if out.is_symlink() or (out.exists() and MADE_BY.encode() not in out.open("rb").read(1000)):
        raise FileExistsError(f"{out} exists, and no report wrote it. It is left alone. Type --out OTHER.html.")


def _models(settings: Config) -> list[Path]:
    """The folders of the model, or of an ensemble's; FileNotFoundError where there is none."""
    from xdeepsd.models.files import is_model, model_folders

    path = settings.paths.model
    folders = [path] if is_model(path) else model_folders(path)
    if not folders:
        raise FileNotFoundError(
            f"There is no model at {path}: the training has not ended, or a single stage was trained. Needed: the "
            "model of a whole training. Type xdeepsd train CONFIG.toml --resume."
        )
    return folders


def _metrics(settings: Config, folders: list[Path], stages: int) -> pd.DataFrame | None:
    """The metrics of all stages, and seeds, that are still there."""
    import pandas as pd

    from xdeepsd.training.checkpoints import METRICS

    found = []
    for seed, folder in enumerate(folders):
        inside = settings.paths.checkpoints / folder.relative_to(settings.paths.model)
        for stage in range(stages):
            path = inside / f"stage_{stage}" / METRICS
            if path.exists():
                found.append(pd.read_parquet(path).assign(stage=stage, seed=seed))
    return pd.concat(found, ignore_index=True) if found else None


def _sweep(settings: Config) -> Any:
    import pandas as pd

    from xdeepsd.evaluation.sweep import TABLE

    path = settings.paths.sweep / TABLE
    return pd.read_parquet(path) if path.exists() else None
