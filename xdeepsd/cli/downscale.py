"""``xdeepsd downscale``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdeepsd.cli import clusters
from xdeepsd.cli.terminal import check_writable, consoles, logged, told

if TYPE_CHECKING:
    from xdeepsd import Audit


def downscale(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            default_factory=list,  # checked by _arguments, since OUTPUT may be left out
            show_default=False,
            help="Coarse precipitation: Zarr store or NetCDF files, one after another.",
        ),
    ],
    model: Annotated[
        str, typer.Argument(help="Folder of a model, or of an ensemble, that xdeepsd train wrote; demo: one to try.")
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            show_default=False,
            help="Zarr store to write: a path, or a URL such as s3://.... Left out with --check.",
        ),
    ] = "",
    variable: Annotated[
        str | None, typer.Option(help="Name of the precipitation. Found automatically if left out.")
    ] = None,
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
        str, typer.Option(help="float32, bfloat16 (faster, relative error under 6e-3) or float64.")
    ] = "float32",
    device: Annotated[str | None, typer.Option(help="cuda to compute on a GPU. Default: the CPU.")] = None,
    conserve: Annotated[
        str | None,
        typer.Option(help="multiplicative or additive: keep the mean of each coarse cell. Default: as trained."),
    ] = None,
    members: Annotated[int | None, typer.Option(min=1, help="Members of a model that was trained with noise.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the members' noise.")] = 0,
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="Write the mean and standard deviation of all members, not the members."),
    ] = False,
    units: Annotated[
        str | None, typer.Option(help="Units of INPUT, where it lacks them or they are wrong, such as mm/3h.")
    ] = None,
    day_ends: Annotated[
        float | None,
        typer.Option(help="For steps of hours: the hour (UTC) at which a day ends; 12 as PRISM. Default: midnight."),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="NaN where INPUT does not cover the model's domain. Default: an error."),
    ] = False,
    bias_correct: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Correct the bias of INPUT. Either a correction saved in Python, correction.save(FILE), or a file or "
            "store of observed precipitation on the model's coarse grid: it is fitted on the days that both have.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read INPUT and show what was found in it; write nothing.")
    ] = False,
    audit: Annotated[
        bool, typer.Option(help="Show what was found in INPUT before the work begins, which reads it once more.")
    ] = True,
    observed: Annotated[
        str | None,
        typer.Option(help="With --check: observed precipitation, to find out whether its days are shifted."),
    ] = None,
    scale_factor: Annotated[
        float | None,
        typer.Option(help="Pack as uint16 in steps of this, in the units of the data: 0.02 holds 0 to 1310 mm."),
    ] = None,
    chunks: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS,ROWS,COLUMNS",
            help="Zarr chunks of OUTPUT, such as 30,100,100; those of --chunk-days share a file (shard). Default: one.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Resume an output that the same command began.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    same_input: Annotated[
        bool, typer.Option("--same-input", help="Resume even if the input was moved or touched, its data unchanged.")
    ] = False,
    workers: clusters.Workers = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (of each worker). Default: all cores.")] = None,
    scheduler: clusters.Scheduler = None,
    cluster: clusters.Kind = None,
    image: clusters.Image = None,
    gpus: clusters.Gpus = 0,
    cluster_options: clusters.Options = None,
) -> None:
    """Downscale a store with a trained model, Zarr to Zarr. After any interruption, the same command resumes."""
    import xdeepsd
    from xdeepsd.cli.inputs import open_coarse, open_correction, open_file, open_mask, open_models, open_static
    from xdeepsd.grids.axes import find_time
    from xdeepsd.stores.remote import is_url

    source, model, out = _arguments(source, model, out, check)
    console, errors = consoles()
    stops = (ValueError, TypeError, OSError, RuntimeError, ImportError)
    with (
        logged(console),
        told(errors, stops, "What has been written is kept: the same command continues from there.",
             "fewer --threads or --chunk-days"),
    ):  # fmt: skip
        if observed is not None and not check:
            raise ValueError("--observed is looked at by --check only.")
        if scale_factor is not None and not scale_factor > 0:
            raise ValueError(f"--scale-factor is {scale_factor:g}. Needed: a number above 0, such as 0.02.")
        if scheduler is not None and cluster is None and clusters.local_processes(workers, 0):
            raise ValueError("--scheduler and --workers cannot be combined: --scheduler connects to a running cluster.")
        if out and not is_url(out):
            check_writable(Path(out.removeprefix("file://")))
        trained = open_models(model)
        models = trained if isinstance(trained, list) else [trained]
        coarse, name = open_coarse(source, group, models[0], variable, chunk_days)
        fields = None if static is None else open_static(static, models[0].static_names)
        land = None if mask is None else open_mask(mask)
        given: dict[str, Any] = {"variable": name, "mask": land, "units": units, "day_ends": day_ends}
        if bias_correct is not None:
            given["bias_correct"] = open_correction(bias_correct, coarse, name, units, day_ends)
        computing = functools.partial(_computing, threads, cluster, workers, scheduler, image, gpus, cluster_options)
        if check:
            seen = None if observed is None else open_file(observed, chunks={})
            with computing(), _naming(source[0]):
                _show(xdeepsd.audit(coarse, models[0], fields, observed=seen, allow_partial=True, **given), console)
            return
        fine = xdeepsd.downscale(
            coarse, trained, fields, precision=precision, device=device,
            conserve=conserve, members=members, seed=seed, statistics=statistics, allow_partial=allow_partial, **given,
        )  # fmt: skip
        time = find_time(fine[name])
        days = 1 if time is None else fine.sizes[time]
        stored = {} if chunks is None else {"chunks": _chunks(chunks, fine[name].ndim), "shards": True}
        if scale_factor is not None:
            stored |= {"dtype": "uint16", "scale_factor": scale_factor, "_FillValue": 65535}
        written = [name, f"{name}_std"] if statistics else [name]

        def before() -> None:
            if audit:
                _show(xdeepsd.audit(coarse, models[0], fields, allow_partial=allow_partial, **given), console)

        with computing(), _bar(console, days, before) as progress, _naming(source[0]):
            xdeepsd.to_zarr(
                fine, out, group=out_group, resume=resume, overwrite=overwrite, same_input=same_input,
                encoding=dict.fromkeys(written, stored) if stored else None, progress=progress,
            )  # fmt: skip
        count = (
            f"{days} days"
            if not members and len(models) == 1
            else f"{days} days, {(members or 1) * len(models)} members"
        )
        console.print(f"{out} is complete: {count}.", markup=False)


def _arguments(source: list[str], model: str, out: str, check: bool) -> tuple[list[str], str, str]:
    """INPUT, MODEL and OUTPUT, each in its place: with --check the last of them may be left out."""
    from xdeepsd.models.files import DEMO_NAME, is_model, model_folders

    if check and out and not (model == DEMO_NAME or is_model(model) or model_folders(model)):
        source, model, out = [*source, model], out, ""
    if not source:
        raise typer.BadParameter("INPUT, MODEL or OUTPUT is missing. Only with --check OUTPUT may be left out.")
    return source, model, out


def _chunks(text: str, ndim: int) -> tuple[int, ...]:
    """Chunks of days, rows and columns; of one member where there are several."""
    sizes = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(sizes) != 3 or min(sizes) < 1 or text.count(",") != 2:
        raise ValueError(f"--chunks is {text!r}. Needed: days, rows and columns. Type --chunks 30,100,100.")
    return (*(1,) * (ndim - 3), *sizes)


def _show(found: Audit, console: Any) -> None:
    """The audit as a table, and below it what deserves a look."""
    from rich.table import Table

    table = Table("", "found", show_header=False)
    for what, text in found.rows():
        table.add_row(what, text)
    console.print(table)
    for note in found.notes():
        console.print(note, markup=False)


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Add the input's name to errors about damaged bytes: libraries notice them only now, and do not name the file."""
    try:
        yield
    except (PermissionError, ConnectionError, FileNotFoundError):  # they say themselves what they are about
        raise
    except (RuntimeError, OSError) as error:
        if source not in str(error) and not getattr(error, "filename", None) and not getattr(error, "errno", None):
            raise type(error)(f"While reading {source}: {error}") from error
        raise


@contextlib.contextmanager
def _computing(threads: int | None, cluster: str | None, workers: str | None, *where: Any) -> Iterator[None]:
    """Compute on a cluster, or on threads of this process."""
    import dask
    from dask.system import CPU_COUNT

    processes = 0 if cluster is not None else clusters.local_processes(workers, 0)
    each = threads or max(1, CPU_COUNT // max(processes, 1))
    with clusters.connected(cluster, workers, *where, threads=each) as client:
        how: dict[str, Any] = {} if client is not None else {"scheduler": "threads", "num_workers": each}
        with dask.config.set(**how):
            yield


@contextlib.contextmanager
def _bar(console: Any, days: int, before: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
    """A bar of days done and time left, shown once work begins: the output may be refused, or complete, before that.

    ``before`` is called when that is settled and something is left to do.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[days]}"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=console)
    task = bar.add_task("Downscaling", total=None, days="")

    def progress(done: int, total: int) -> None:
        if not bar.live.is_started and done < total:
            before()
        bar.start()
        text = f"{days * done // max(total, 1)} of {days} days"
        bar.update(task, completed=done, total=total, days=text)

    try:
        yield progress
    finally:
        bar.stop()
