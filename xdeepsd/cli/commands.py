"""The command line: ``xdeepsd --help``."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from xdeepsd.cli import training as cli_training
from xdeepsd.cli.terminal import check_writable, connected, consoles, logged, told

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

    from xdeepsd.cli.demo import run_demo

    _, errors = consoles()
    with told(errors, (ValueError, OSError), "Give the same command again: it begins anew."):
        check_writable(out)
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

    from xdeepsd.prism.fetch import fetch_prism
    from xdeepsd.prism.names import ATTRIBUTION, SERVICE, days_text

    logging.getLogger("xdeepsd.prism.fetch").setLevel(logging.ERROR)  # its warnings are listed below
    console, errors = consoles()
    with told(errors, (ValueError, OSError, httpx.HTTPError), "What is fetched is kept: the same command goes on."):
        report = fetch_prism(
            out, variable, start, end, resolution=resolution, region=region, pace=pace, timeout=timeout,
            base_url=base_url or SERVICE, progress=console.is_terminal,
        )  # fmt: skip
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
    group: Annotated[
        str | None, typer.Option(help="Group of INPUT to read, such as level_0. Default: its root.")
    ] = None,
    out_group: Annotated[str | None, typer.Option(help="Group of OUTPUT. Default: its root.")] = None,
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
    from distributed import KilledWorker

    import xdeepsd
    from xdeepsd.grids import axes
    from xdeepsd.inference import inputs
    from xdeepsd.stores import write as store

    def open_input(trained: xdeepsd.StackedSRCNN) -> tuple[Any, str, int]:
        """The coarse Dataset, chunked along time only, the name of its precipitation, and its days."""
        ds = _open(source, group=group)
        if ds.attrs.get(store.STATUS) == store.INCOMPLETE:
            raise ValueError(f"{source} is not complete: finish the command that began it first.")
        rain = inputs.choose_variable(ds, trained, variable)
        found = axes.find(rain)
        time = str(rain[found.time].dims[0]) if found.time else None
        cells = rain.sizes[found.lat_dim] * rain.sizes[found.lon_dim] * trained.scale**2
        days = chunk_days or axes.days_in_chunk(cells)
        chunks = {str(d): days if d == time else -1 if d in (found.lat_dim, found.lon_dim) else 1 for d in rain.dims}
        return _open(source, group=group, chunks=chunks), str(rain.name), rain.sizes[time] if time else 1

    def why(error: BaseException) -> str:
        text = str(error)
        if isinstance(error, KilledWorker):
            return f"Workers kept dying, probably out of memory: fewer --threads or --chunk-days. {text}"
        if isinstance(error, CancelledError):
            return f"The scheduler is lost. What is written is kept: the same command goes on from there. {text}"
        return text

    console, errors = consoles()
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[days]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    stops = (ValueError, TypeError, OSError, RuntimeError, ImportError, KilledWorker, CancelledError)
    with told(errors, stops, "What is written is kept: the same command goes on from there.", why):
        if scale_factor is not None and not scale_factor > 0:
            raise ValueError(f"--scale-factor is {scale_factor:g}. Needed: a number above 0, such as 0.02.")
        if scheduler is not None and workers:
            raise ValueError("--scheduler and --workers exclude each other: the address is that of a running cluster.")
        trained = xdeepsd.load_model(model)
        coarse, name, days = open_input(trained)
        fields = None if static is None else _open_maps(static, trained.static_names, "fiu")
        land = None if mask is None else _open_mask(mask)
        fine = xdeepsd.downscale(
            coarse, trained, fields, variable=variable, mask=land, precision=precision, device=device
        )
        if "://" not in out:
            check_writable(Path(out))
        if overwrite and Path(out).exists():
            console.print(f"{out}{f'/{out_group}' if out_group else ''} is replaced.", markup=False)
        packing = {"dtype": "uint16", "scale_factor": scale_factor, "_FillValue": 65535}
        encoding = None if scale_factor is None else {name: packing}
        with contextlib.ExitStack() as stack:
            each = threads or max(1, CPU_COUNT // max(workers, 1))
            if stack.enter_context(connected(workers, scheduler, each)) is None:
                stack.enter_context(dask.config.set(scheduler="threads", num_workers=each))
            bar = rich.progress.Progress(*columns, console=console)
            stack.callback(bar.stop)
            task = bar.add_task("Downscaling", total=None, days="")

            def progress(done: int, total: int) -> None:
                bar.start()  # only now: before, the output may be refused
                text = f"{days * done // max(total, 1)} of {days} days"
                bar.update(task, completed=done, total=total, days=text)

            xdeepsd.to_zarr(
                fine, out, group=out_group, resume=resume, overwrite=overwrite, same_input=same_input,
                encoding=encoding, progress=progress,
            )  # fmt: skip
        console.print(f"{out} is complete: {days} days.", markup=False)


def _open(path: str, **options: Any) -> Any:
    """A Dataset of a file or store; by absolute path, which is part of what a resumed output is compared by."""
    import xarray as xr

    if "://" not in path:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist.")
        path = str(Path(path).resolve())
    if "://" in path or Path(path).is_dir():
        options["engine"] = "zarr"
    if options.get("group") is None:
        options.pop("group", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
        # A coarse chunk that several tasks read costs little.
        warnings.filterwarnings("ignore", "The specified chunks separate the stored chunks", UserWarning)
        try:
            return xr.open_dataset(path, **options)
        except ImportError as error:
            raise ImportError(
                f"{path} needs a package that is not installed ({error}). Type pip install s3fs for s3://, gcsfs for "
                "gs://, adlfs for az://."
            ) from error
        except (KeyError, FileNotFoundError) as error:
            if options.get("group") is None:
                raise
            raise ValueError(f"{path} has no group {options['group']!r} ({error}). Type --group NAME.") from error


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
    import xarray as xr
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from xdeepsd.grids.axes import find
    from xdeepsd.levels.disk import build_levels
    from xdeepsd.models.variable import find_precipitation
    from xdeepsd.prism.files import open_prism

    console, errors = consoles()

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

    with logged(console), told(errors, (ValueError, OSError), "What is written is kept: the same command goes on."):
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
    sizes = ", ".join(f"{level.sizes['lat']} x {level.sizes['lon']}" for level in levels)
    console.print(f"{out}: {levels[0].sizes['time']} days in {len(levels)} levels of {sizes} cells.", markup=False)


app.add_typer(cli_training.app)
