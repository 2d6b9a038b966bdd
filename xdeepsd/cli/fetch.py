"""``xdeepsd fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdeepsd.cli.terminal import consoles, told


def fetch(
    out: Annotated[Path, typer.Option(help="Zarr store (a folder) to create or to resume.")],
    variable: Annotated[
        str, typer.Option(help="ppt, tmin, tmax, tmean, tdmean, vpdmin, vpdmax, or elevation (needs no period).")
    ] = "ppt",
    start: Annotated[str | None, typer.Option(help="First day, such as 2014-01-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Last day, such as 2015-12-31.")] = None,
    resolution: Annotated[str, typer.Option(help="4km, 800m or 400m.")] = "4km",
    region: Annotated[str, typer.Option(help="us, ak, hi or pr.")] = "us",
    pace: Annotated[float, typer.Option(help="Seconds to wait between requests.", min=0)] = 2.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer before giving up on a request.")] = 60.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Do not fail if days are not published yet.")
    ] = False,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fetch PRISM days into a Zarr store; run it again to resume, or for newer releases.

    Data: PRISM Climate Group, Oregon State University. Exit status 1 if days are missing; they are listed.
    """
    import logging

    import httpx

    from xdeepsd.prism.fetch import fetch_prism
    from xdeepsd.prism.names import ATTRIBUTION, SERVICE, days_text

    logging.getLogger("xdeepsd.prism.fetch").setLevel(logging.ERROR)  # its warnings are listed below
    console, errors = consoles()
    with told(errors, (ValueError, OSError, httpx.HTTPError), "What was fetched is kept: the same command continues."):
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
        text = "elevation is in the store" if report.complete else "no elevation"
    else:
        text = f"{len(report.fetched)} days of {variable} fetched, {len(report.held)} held before"
    console.print(f"{out}: {text} ({report.megabytes:.1f} MB). Data: {ATTRIBUTION}", markup=False)
    missing = report.failed or report.not_tried or report.stopped or (report.unpublished and not allow_missing)
    if missing:
        errors.print("What was fetched is kept. Run the same command again to fetch what is missing.")
        raise typer.Exit(1)
