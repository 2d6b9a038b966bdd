"""``xdeepsd demo``: the whole workflow on a small generated climate, in a minute or so on a laptop."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

from xdeepsd.cli.report import write_report
from xdeepsd.cli.terminal import bar
from xdeepsd.cli.toml import load_config
from xdeepsd.clusters.local import local_client
from xdeepsd.evaluation.baselines import baselines
from xdeepsd.evaluation.errors import compare
from xdeepsd.evaluation.plot.panels import compare as compare_maps
from xdeepsd.inference.downscale import downscale
from xdeepsd.levels.climate import make_climate
from xdeepsd.levels.disk import build_levels, open_levels
from xdeepsd.models.files import load_model, save_model
from xdeepsd.stores.replace import not_ours
from xdeepsd.stores.whole import partial_of
from xdeepsd.stores.write import to_zarr
from xdeepsd.training.checkpoints import is_checkpoint
from xdeepsd.training.stack import train_stack

FACTORS = (2, 2, 2)
# Everything the demo writes, the arrays in its Zarr stores, and the file that marks a folder as made by the demo.
_FILES = ("maps.png", "config.toml", "report.html")
_MADE = ("fine.zarr", "levels.zarr", "model", "coarse.zarr", "downscaled.zarr", "checkpoints", *_FILES)
_ARRAYS = (
    "precipitation", "elevation", "mask", "land_fraction", "climatology", "lat", "lon", "time", "done", "releases",
)  # fmt: skip
_MARK = ".made-by-xdeepsd-demo"
# The folder is that of a training: xdeepsd train and xdeepsd report go on with it.
_CONFIG = """\
# What xdeepsd demo trains.
[training]
steps = {steps}
seed = {seed}
validation = ["{last}-10-20/{last}-12-31"]
test = [{held_out}]
"""
COLUMNS = {"rmse": "RMSE", "mae": "MAE", "bias": "bias", "correlation": "correlation"}


def run_demo(out: Path, console: Console, seed: int = 0, steps: int = 400) -> pd.DataFrame:
    """Generate, write, coarsen, train, downscale and compare; everything goes into the folder ``out``.

    Returns the table of errors on the held-out year (rows: xdeepsd and every baseline).
    """
    started = time.perf_counter()
    _make_room(out, console)

    console.print("[bold]1[/] A generated climate: terrain, an ocean, three years of daily rain")
    climate = make_climate(seed)
    years = sorted({int(y) for y in climate["time"].dt.year})
    to_zarr(climate.chunk(time=180), out / "fine.zarr")

    console.print("[bold]2[/] The resolution ladder: three coarser levels, each at half the resolution")
    fine = xr.open_zarr(out / "fine.zarr")
    static = fine[["elevation"]].compute()
    build_levels(fine["precipitation"], static, FACTORS, out / "levels.zarr")
    levels = open_levels(out / "levels.zarr")

    console.print(f"[bold]3[/] Training three stages on {years[0]} and {years[1]}; {years[2]} is held out")
    seen = [level.sel(time=slice(None, str(years[-2]))) for level in levels]
    text = _CONFIG.format(steps=steps, seed=seed, last=years[1], held_out=years[2])
    (out / "config.toml").write_text(text, encoding="utf-8")
    config = load_config(out / "config.toml")
    model = train_stack(levels, config.training, checkpoint_dir=config.paths.checkpoints)
    save_model(model, out / "model")

    console.print(f"[bold]4[/] Downscaling {years[2]}, Zarr to Zarr, on a local Dask cluster")
    held_out = levels[0][["precipitation"]].sel(time=str(years[-1]))
    to_zarr(held_out.drop_encoding().chunk(time=30), out / "coarse.zarr")
    downscaled = downscale(xr.open_zarr(out / "coarse.zarr"), load_model(out / "model"))
    cluster = local_client(None, 2, processes=False, dashboard_address="127.0.0.1:0")
    with cluster, bar(console, "chunks") as progress:
        to_zarr(downscaled, out / "downscaled.zarr", progress=progress)

    console.print("[bold]5[/] Comparison with the truth")
    means = tuple(level["precipitation"].mean("time").compute() for level in (seen[-1], seen[0]))
    table = _evaluate(out, years[-1], means, console)

    console.print("[bold]6[/] The report: tables and pictures of the held-out year on one page")
    write_report(out, out / "report.html")
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. Everything is in {out}/; look at {out}/maps.png and at"
    )
    console.print((out / "report.html").absolute().as_uri(), markup=False, soft_wrap=True)
    return table


def _make_room(out: Path, console: Console) -> None:
    """Create the folder, or clear one that an earlier demo made: only what the demo wrote is removed."""
    mark = out / _MARK
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file. Needed: a folder. Type --out NAME.")
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise FileExistsError(
            f"{out} was not made by the demo: it holds {sorted(file.name for file in out.iterdir())[:5]}. It is left "
            "alone. Type --out NAME for a new folder."
        )
    old = [path for path in (out / name for name in _MADE) if path.exists() or path.is_symlink()]
    others = [path for path in old if path.is_symlink() or path.is_dir() != (path.name not in _FILES)]
    levels = [f"level_{k}" for k in range(len(FACTORS) + 1)]
    stores = [path for path in old if path.suffix == ".zarr" and path not in others]
    others += [file for path in stores for file in not_ours(path, _ARRAYS, levels)]
    files = ("model.json", "model.safetensors", "model.safetensors.new")
    others += [file for file in out.glob("model/*") if (partial_of(file.name) or file.name) not in files]
    others += [file for file in out.glob("checkpoints/**/*") if file.is_file() and not is_checkpoint(file)]
    if others:
        raise FileExistsError(
            f"{others[0]} was not made by the demo. It is left alone. Move it, or type --out NAME for a new folder."
        )
    if old:
        console.print(f"Replacing what an earlier demo made: {', '.join(path.name for path in old)} in {out}/")
    for path in old:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(
        "Made by xdeepsd demo, which replaces " + ", ".join(_MADE) + " here when it runs again.\n", encoding="utf-8"
    )


def _evaluate(out: Path, year: int, means: tuple[xr.DataArray, ...], console: Console) -> pd.DataFrame:
    """Table and maps of the held-out year; ``means`` are the training years' means, fine and coarse."""
    truth = xr.open_zarr(out / "fine.zarr")["precipitation"].sel(time=str(year)).chunk(time=30)
    coarse = xr.open_zarr(out / "coarse.zarr")["precipitation"]
    model = xr.open_zarr(out / "downscaled.zarr")["precipitation"].assign_coords(lat=truth.lat, lon=truth.lon)
    fields = baselines(coarse, truth, *means)
    table = compare({"xdeepsd": model, **fields}, truth)
    console.print(_as_table(table, f"{year}, land, {truth.sizes['time']} days, scale {math.prod(FACTORS)}"))
    rmse = table["rmse"].astype(float)
    best = str(rmse.drop("xdeepsd").idxmin())
    better = 1 - float(rmse["xdeepsd"]) / float(rmse[best])
    if better > 0:
        console.print(f"The model's RMSE is [bold]{better:.0%} lower[/] than the best baseline's ({best}).")
    else:
        console.print(
            f"[bold red]The model does not beat the best baseline[/] ({best}): its RMSE is {-better:.0%} higher."
        )

    day = int(truth.mean(("lat", "lon")).compute().argsort()[-8])
    date = str(truth["time"][day].dt.strftime("%Y-%m-%d").item())
    title = f"Daily precipitation, {date} (generated climate)"
    figure = compare_maps(model, truth, coarse=coarse, day=date, mask=truth.isel(time=day).notnull(), title=title)
    figure.savefig(out / "maps.png", dpi=110)
    return table


def _as_table(errors: pd.DataFrame, title: str) -> Table:
    table = Table(title=title)
    table.add_column("mm day-1")
    for name in errors.columns:
        table.add_column(COLUMNS[str(name)], justify="right")
    for row, values in errors.iterrows():
        table.add_row(str(row), *(f"{value:.3f}" for value in values))
    return table
