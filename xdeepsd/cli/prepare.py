"""``xdeepsd prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xdeepsd.cli import clusters
from xdeepsd.cli.terminal import bar, consoles, logged, told

if TYPE_CHECKING:
    import xarray as xr

_NETCDF = (".nc", ".nc4", ".h5")


def prepare(
    fine: Annotated[
        list[str],
        typer.Argument(
            help="Daily precipitation: a Zarr store (such as fetch writes; a path or a URL), NetCDF files, or PRISM "
            "files or folders."
        ),
    ],
    out: Annotated[str, typer.Option(help="Zarr store of levels to create, resume or append days to.")],
    elevation: Annotated[
        str | None, typer.Option(help="Elevation (m) on the fine grid or a larger one. Default: that in FINE, if any.")
    ] = None,
    static: Annotated[str | None, typer.Option(help="Further static maps on the fine grid (NetCDF or Zarr).")] = None,
    variable: Annotated[
        str | None, typer.Option(help="Name of the precipitation, if several variables could be meant.")
    ] = None,
    factors: Annotated[str, typer.Option(help="Fine cells per coarse cell of each stage, coarsest first.")] = "2,2,2",
    climatology: Annotated[str | None, typer.Option(help="Mean precipitation on the fine grid, as a file.")] = None,
    climatology_years: Annotated[
        tuple[str, str] | None,
        typer.Option(help="First and last training year: their mean precipitation is the climatology."),
    ] = None,
    edges: Annotated[str, typer.Option(help="If the factors do not divide the grid: pad, crop or error.")] = "pad",
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Accept missing days.")] = False,
    chunk_mb: Annotated[float, typer.Option(help="Size of a chunk of the finest level, MB.", min=0.01)] = 64.0,
    coarse: Annotated[
        list[str] | None,
        typer.Option(
            help="Independent coarse product of the same days (reanalysis): the first stage's input. NetCDF "
            "(may be repeated) or a Zarr store."
        ),
    ] = None,
    coarse_variable: Annotated[str | None, typer.Option(help="Name of the precipitation in it.")] = None,
    workers: clusters.Workers = None,
    scheduler: clusters.Scheduler = None,
    cluster: clusters.Kind = None,
    image: clusters.Image = None,
    gpus: clusters.Gpus = 0,
    cluster_options: clusters.Options = None,
) -> None:
    """Write the resolution ladder that training reads; run it again to resume, or with later days to append."""
    import xarray as xr

    from xdeepsd.levels.disk import build_levels

    console, errors = consoles()
    with (
        logged(console),
        told(errors, (ValueError, OSError, ImportError), "What was written is kept: the same command continues."),
    ):
        numbers = _numbers(factors)
        if climatology is not None and climatology_years is not None:
            raise ValueError("Both --climatology and --climatology-years were given. Needed: only one of them.")
        ds = _open_days(fine, variable, chunk_mb)
        maps = xr.Dataset() if static is None else _open(static)
        if elevation is not None:
            maps["elevation"] = _only_elevation(_open(elevation), elevation)
        elif "elevation" not in maps and "elevation" in ds:
            maps["elevation"] = ds["elevation"]
        given = None if climatology is None else _open(climatology)
        product = _open_days(coarse, coarse_variable, chunk_mb) if coarse else None
        where = cluster, workers, scheduler, image, gpus, cluster_options
        with clusters.connected(*where), bar(console, "days") as progress:
            levels = build_levels(
                ds, maps if maps.data_vars else None, numbers, out, variable=variable,
                climatology=slice(*climatology_years) if climatology_years else given,
                edges=edges,  # type: ignore[arg-type]
                allow_missing=allow_missing, chunk_mb=chunk_mb, progress=progress,
                coarse=product, coarse_variable=coarse_variable,
            )  # fmt: skip
    sizes = ", ".join(f"{level.sizes['lat']} x {level.sizes['lon']}" for level in levels)
    console.print(f"{out}: {levels[0].sizes['time']} days in {len(levels)} levels of {sizes} cells.", markup=False)


def _numbers(factors: str) -> list[int]:
    try:
        return [int(number) for number in factors.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"--factors is {factors!r}. Needed: whole numbers. Type --factors 2,2,2.") from None


def _open(given: str) -> xr.Dataset:
    """A Zarr store, a NetCDF file, or PRISM files."""
    import xarray as xr

    from xdeepsd.cli.inputs import open_file
    from xdeepsd.prism.files import open_prism
    from xdeepsd.stores.remote import is_url

    if is_url(given):
        return open_file(given, chunks={})
    path = Path(given)
    if (path / "zarr.json").exists() or (path / ".zgroup").exists():
        store = xr.open_zarr(path)
        # The axis of a store written by fetch begins in 1981, whichever days were fetched.
        return open_prism(path, allow_missing=True) if "prism_region" in store.attrs else store
    return xr.open_dataset(path) if path.suffix in _NETCDF else open_prism(path, allow_missing=True)


def _open_days(given: list[str], variable: str | None, chunk_mb: float) -> xr.Dataset:
    """Open one store or folder, NetCDF files combined in chunks of about ``chunk_mb``, or PRISM files."""
    import xarray as xr

    from xdeepsd.grids.axes import find
    from xdeepsd.models.variable import find_variable
    from xdeepsd.prism.files import open_prism
    from xdeepsd.stores.remote import is_url

    if any(map(is_url, given)):
        if len(given) > 1:
            raise ValueError(f"{len(given)} inputs, with a URL among them. Needed: one Zarr store, or files on a disk.")
        return _open(given[0])
    paths = [Path(path) for path in given]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise ValueError(f"Not found: {', '.join(absent)}. Needed: files or folders that exist.")
    if paths[0].suffix not in _NETCDF:
        return _open(given[0]) if len(paths) == 1 else open_prism(paths, allow_missing=True)
    with xr.open_dataset(paths[0]) as first:
        da = find_variable(first, variable)
        found = find(da)
        days = max(1, int(chunk_mb * 1e6 // (4 * da[found.lat].size * da[found.lon].size)))
    chunks = {found.lat_dim: -1, found.lon_dim: -1, found.time: days}
    return xr.open_mfdataset(paths, combine="by_coords", chunks=chunks)


def _only_elevation(ds: xr.Dataset, path: str) -> xr.DataArray:
    """The variable ``elevation``, or the only variable there is."""
    if len(ds.data_vars) != 1 and "elevation" not in ds:
        raise ValueError(f"{path} holds {sorted(map(str, ds.data_vars))}. Needed: only the elevation.")
    return ds["elevation" if "elevation" in ds else next(iter(ds.data_vars))]
