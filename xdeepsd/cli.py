"""The command line: ``xdeepsd --help``."""

from __future__ import annotations

import contextlib
import logging
import warnings
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
    import logging

    import httpx
    from rich.console import Console

    from xdeepsd.fetch import fetch_prism
    from xdeepsd.prism_names import ATTRIBUTION, SERVICE, days_text

    logging.getLogger("xdeepsd.fetch").setLevel(logging.ERROR)  # its warnings are listed below
    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    try:
        report = fetch_prism(
            out, variable, start, end, resolution=resolution, region=region, pace=pace, timeout=timeout,
            base_url=base_url or SERVICE, progress=console.is_terminal,
        )  # fmt: skip
    except (ValueError, OSError, httpx.HTTPError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    if report.failed:
        errors.print(f"Failed ({len(report.failed)}):")
        for day, cause in report.failed.items():
            errors.print(f"  {day:%Y-%m-%d}  {cause}", markup=False)
    if report.unpublished:
        errors.print(f"Not published ({len(report.unpublished)}): {days_text(report.unpublished)}.")
    if report.stopped:
        errors.print(f"Stopped. {report.stopped}", markup=False)
    if report.not_tried:
        errors.print(f"Not tried ({len(report.not_tried)}): {days_text(report.not_tried)}.")
    if variable == "elevation":
        text = "the elevation is there" if report.complete else "no elevation"
    else:
        text = f"{len(report.fetched)} days of {variable} fetched, {len(report.held)} held before"
    console.print(f"{out}: {text} ({report.megabytes:.1f} MB). Data: {ATTRIBUTION}", markup=False)
    missing = report.failed or report.not_tried or report.stopped or (report.unpublished and not allow_missing)
    if missing:
        errors.print("What is fetched is kept. Run the same command again to fetch what is missing.")
        raise typer.Exit(1)


@app.command()
def downscale(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Coarse precipitation: Zarr store or NetCDF file.")],
    model: Annotated[Path, typer.Argument(help="Folder of a model, as xdeepsd train writes it.")],
    out: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Zarr store to write: a path, or a URL such as s3://...")
    ],
    variable: Annotated[str | None, typer.Option(help="Name of precipitation. Found by itself if left out.")] = None,
    static: Annotated[
        str | None,
        typer.Option(help="File or store of the static fields on the target grid. Default: the model's."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="File or store of a bool map, True where values are wanted. Default: the model's."),
    ] = None,
    chunk_days: Annotated[
        int | None, typer.Option(min=1, help="Days in a chunk of the output. Default: 30, fewer on large maps.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 (sooner, relative error under 6e-3) or float64.")
    ] = "float32",
    device: Annotated[str | None, typer.Option(help="cuda to compute on a GPU. Default: the CPU.")] = None,
    scale_factor: Annotated[
        float | None,
        typer.Option(help="Pack as uint16 in steps of this, in the units of the data: 0.02 holds 0 to 1310 mm."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an output that the same command began.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    same_input: Annotated[
        bool, typer.Option("--same-input", help="Resume although the input was moved or touched: it is the same data.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes of a local Dask cluster. 0: threads of this process.")
    ] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (of each worker). Default: all cores.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")] = None,
) -> None:
    """Downscale a store with a trained model, Zarr to Zarr. Stopped, killed, disk full: give the same command again."""

    from concurrent.futures import CancelledError

    import dask
    import rich.progress
    from dask.system import CPU_COUNT
    from distributed import Client, KilledWorker, LocalCluster
    from rich.console import Console

    import xdeepsd
    from xdeepsd import axes, inputs, store

    def open_input(trained: xdeepsd.StackedSRCNN) -> tuple[Any, int]:
        """The coarse Dataset, chunked along time only, and its days."""
        ds = _open(source)
        if ds.attrs.get(store.STATUS) == store.INCOMPLETE:
            raise ValueError(f"{source} is not complete: finish the command that began it first.")
        _, rain = inputs.choose_variable(ds, trained, variable)
        found = axes.find(rain)
        time = str(rain[found.time].dims[0]) if found.time else None
        cells = rain.sizes[found.lat_dim] * rain.sizes[found.lon_dim] * trained.scale**2
        days = chunk_days or max(1, min(30, 2**27 // (4 * cells)))  # chunks of up to 128 MiB
        chunks = {str(d): days if d == time else -1 if d in (found.lat_dim, found.lon_dim) else 1 for d in rain.dims}
        return _open(source, chunks=chunks), rain.sizes[time] if time else 1

    def cluster(stack: contextlib.ExitStack) -> None:
        if scheduler is not None:
            stack.enter_context(Client(scheduler, timeout=30))
        elif workers:
            each = threads or max(1, CPU_COUNT // workers)
            local = LocalCluster(
                n_workers=workers, threads_per_worker=each, dashboard_address=":0", silence_logs=logging.ERROR
            )
            stack.enter_context(Client(stack.enter_context(local)))
        else:
            stack.enter_context(dask.config.set(scheduler="threads", num_workers=threads or CPU_COUNT))

    console = Console(highlight=False, soft_wrap=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[days]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    try:
        if scale_factor is not None and not scale_factor > 0:
            raise ValueError(f"--scale-factor is {scale_factor:g}. Needed: a number above 0, such as 0.02.")
        if scheduler is not None and workers:
            raise ValueError("--scheduler and --workers exclude each other: the address is that of a running cluster.")
        trained = xdeepsd.load_model(model)
        coarse, days = open_input(trained)
        fields = None if static is None else _open_maps(static, trained.static_names, "fiu")
        land = None if mask is None else _open_mask(mask)
        fine = xdeepsd.downscale(
            coarse, trained, fields, variable=variable, mask=land, precision=precision, device=device
        )
        name, _ = inputs.choose_variable(coarse, trained, variable)
        packing = {"dtype": "uint16", "scale_factor": scale_factor, "_FillValue": 65535}
        encoding = None if scale_factor is None else {name: packing}
        with contextlib.ExitStack() as stack:
            cluster(stack)
            bar = rich.progress.Progress(*columns, console=console)
            stack.callback(bar.stop)
            task = bar.add_task("Downscaling", total=None, days="")

            def progress(done: int, total: int) -> None:
                bar.start()  # only now: before, the output may be refused
                text = f"{days * done // max(total, 1)} of {days} days"
                bar.update(task, completed=done, total=total, days=text)

            xdeepsd.to_zarr(
                fine, out, resume=resume, overwrite=overwrite, same_input=same_input, encoding=encoding,
                progress=progress,
            )  # fmt: skip
        console.print(f"{out} is complete: {days} days.", markup=False)
    except KeyboardInterrupt:
        console.print("Stopped. What is written is kept: the same command goes on from there.")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, RuntimeError, KilledWorker, CancelledError) as error:
        text = str(error)
        for argument in ("resume", "overwrite", "same_input"):
            text = text.replace(f"{argument}=True", f"--{argument.replace('_', '-')}")
        if isinstance(error, KilledWorker):
            text = f"A worker died again and again, mostly of memory: fewer --threads or --chunk-days. {text}"
        elif isinstance(error, CancelledError):
            text = f"The scheduler is lost. What is written is kept: the same command goes on from there. {text}"
        Console(stderr=True, style="red", soft_wrap=True).print(text, markup=False, highlight=False)
        raise typer.Exit(1) from None


def _open(path: str, **options: Any) -> Any:
    """A Dataset of a file or store; by absolute path, which is part of what a resumed output is compared by."""
    import xarray as xr

    if "://" not in path:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist.")
        path = str(Path(path).resolve())
    if "://" in path or Path(path).is_dir():
        options["engine"] = "zarr"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
        # A coarse chunk that several tasks read costs little.
        warnings.filterwarnings("ignore", "The specified chunks separate the stored chunks", UserWarning)
        return xr.open_dataset(path, **options)


def _open_maps(path: str, names: tuple[str, ...], kinds: str) -> Any:
    """The named maps as a Dataset, or the only map with a dtype of ``kinds`` as a DataArray; in memory."""
    ds = _open(path).load()
    if names and set(names) <= set(ds.data_vars):
        return ds[list(names)]
    maps = {name: str(v.dtype) for name, v in ds.data_vars.items() if v.squeeze().ndim == 2}
    fitting = [name for name in maps if ds[name].dtype.kind in kinds]
    if len(fitting) != 1 or len(names) > 1:
        single = "bool, or of 0 and 1" if "b" in kinds else "numbers"
        raise ValueError(f"{path} has the maps {maps}; needed: {' and '.join(names)}, or a single one of {single}.")
    return ds[fitting[0]].squeeze()


def _open_mask(path: str) -> Any:
    import xarray as xr

    mask = _open_maps(path, ("mask",), "biu")  # NetCDF has no bool
    if isinstance(mask, xr.Dataset):
        mask = mask["mask"].squeeze()
    if mask.dtype.kind not in "biu":
        raise ValueError(f"{path} has {mask.name!r} of {mask.dtype}; needed: a mask of bool, or of 0 and 1.")
    return mask.astype(bool)


@app.command()
def prepare(
    fine: Annotated[
        list[Path],
        typer.Argument(
            help="Daily precipitation: a Zarr store (of fetch, say), NetCDF files, or PRISM files or folders."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Zarr store of levels to make, to go on with or to append days to.")],
    elevation: Annotated[
        Path | None, typer.Option(help="Elevation (m) on the fine grid or more; default: that in FINE, if any.")
    ] = None,
    static: Annotated[Path | None, typer.Option(help="Further static maps on the fine grid (NetCDF or Zarr).")] = None,
    variable: Annotated[str | None, typer.Option(help="Name of the precipitation, where there are several.")] = None,
    factors: Annotated[str, typer.Option(help="Fine cells per coarse cell of each stage, coarsest first.")] = "2,2,2",
    climatology: Annotated[Path | None, typer.Option(help="Mean precipitation on the fine grid, given.")] = None,
    climatology_years: Annotated[
        tuple[str, str] | None,
        typer.Option(help="First and last training year: their mean precipitation is the climatology."),
    ] = None,
    edges: Annotated[str, typer.Option(help="Sizes that do not divide: pad, crop or error.")] = "pad",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without days that are missing.")
    ] = False,
    chunk_mb: Annotated[float, typer.Option(help="Size of a chunk of the finest level, MB.", min=0.01)] = 64.0,
) -> None:
    """Write the resolution ladder that training reads; run it again to go on, or with later days to append them."""
    import logging

    import xarray as xr
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from xdeepsd.axes import find
    from xdeepsd.ladder import find_precipitation
    from xdeepsd.levels import build_levels
    from xdeepsd.prism import open_prism

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, style="red")
    log, handler = logging.getLogger("xdeepsd"), RichHandler(console=console, show_path=False, show_time=False)
    log.setLevel(logging.INFO)
    log.addHandler(handler)

    def open_maps(path: Path) -> xr.Dataset:
        if (path / "zarr.json").exists() or (path / ".zgroup").exists():
            return xr.open_zarr(path)
        return xr.open_dataset(path) if path.suffix in (".nc", ".nc4", ".h5") else open_prism(path, allow_missing=True)

    def open_days(paths: list[Path]) -> xr.Dataset:
        absent = [str(path) for path in paths if not path.exists()]
        if absent:
            raise ValueError(f"Not there: {', '.join(absent)}. Needed: files or folders that exist.")
        if paths[0].suffix not in (".nc", ".nc4", ".h5"):
            return open_maps(paths[0]) if len(paths) == 1 else open_prism(paths, allow_missing=True)
        with xr.open_dataset(paths[0]) as first:
            da = find_precipitation(first, variable)
            found = find(da)
            days = max(1, int(chunk_mb * 1e6 // (4 * da[found.lat].size * da[found.lon].size)))
        chunks = {found.lat_dim: -1, found.lon_dim: -1, found.time: days}
        return xr.open_mfdataset(paths, combine="by_coords", chunks=chunks)

    try:
        try:
            numbers = [int(number) for number in factors.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"--factors is {factors!r}. Needed: whole numbers. Type --factors 2,2,2.") from None
        if climatology is not None and climatology_years is not None:
            raise ValueError("--climatology and --climatology-years arrived. Needed: one of them.")
        ds = open_days(fine)
        maps = xr.Dataset() if static is None else open_maps(static)
        if elevation is not None:
            height = open_maps(elevation)
            if len(height.data_vars) != 1 and "elevation" not in height:
                raise ValueError(f"{elevation} holds {sorted(map(str, height.data_vars))}. Needed: elevation alone.")
            name = "elevation" if "elevation" in height else next(iter(height.data_vars))
            maps["elevation"] = height[name]
        elif "elevation" not in maps and "elevation" in ds:
            maps["elevation"] = ds["elevation"]
        given = None if climatology is None else open_maps(climatology)
        with Progress(
            TextColumn("days"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task("days", total=None)
            levels = build_levels(
                ds, maps if maps.data_vars else None, numbers, out, variable=variable,
                climatology=slice(*climatology_years) if climatology_years else given,
                edges=edges,  # type: ignore[arg-type]
                allow_missing=allow_missing, chunk_mb=chunk_mb,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    except (ValueError, OSError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    finally:
        log.removeHandler(handler)
    sizes = ", ".join(f"{level.sizes['lat']} x {level.sizes['lon']}" for level in levels)
    console.print(f"{out}: {levels[0].sizes['time']} days in {len(levels)} levels of {sizes} cells.", markup=False)


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
    from xdeepsd.stack_training import stage_levels, static_fields, train_stack
    from xdeepsd.train import train_stage

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
    except _stops() as error:
        errors.print(_why(error), markup=False)
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
            "A worker died again and again, mostly of memory: fewer --workers, or a smaller buffer under [training]. "
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
    from rich.console import Console

    from xdeepsd.config_ini import convert_ini

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
    except _stops() as error:
        errors.print(_why(error), markup=False)
        raise typer.Exit(1) from None
    report(table, settings.paths.sweep, choose, console)
