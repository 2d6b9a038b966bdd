"""Open the files and stores that commands read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdeepsd import StackedSRCNN


def open_coarse(
    source: str, group: str | None, model: StackedSRCNN, variable: str | None, chunk_days: int | None
) -> tuple[Any, str, int]:
    """The coarse Dataset, chunked only along time, the name of its precipitation, and its number of days."""
    from xdeepsd.grids import axes
    from xdeepsd.inference.inputs import choose_variable
    from xdeepsd.stores.layout import INCOMPLETE, STATUS

    ds = open_file(source, group=group)
    if ds.attrs.get(STATUS) == INCOMPLETE:
        raise ValueError(f"{source} is not complete: first finish the command that began it.")
    try:
        rain = choose_variable(ds, model, variable)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    time = axes.find(rain).time
    ds[rain.name] = axes.chunk_unread(rain, model.scale, chunk_days)
    return ds, str(rain.name), rain.sizes[rain[time].dims[0]] if time else 1


def open_file(path: str, **options: Any) -> Any:
    """Open a file or store as a Dataset, by its absolute path, because resuming an output compares the path."""
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
        # It costs little if several tasks read the same coarse chunk.
        warnings.filterwarnings("ignore", "The specified chunks separate the stored chunks", UserWarning)
        try:
            return xr.open_dataset(path, **options)
        except ImportError as error:
            raise ImportError(
                f"{path} needs a package that is not installed ({error}). Type pip install s3fs for s3://, gcsfs for "
                "gs://, adlfs for az://."
            ) from error
        except Exception as error:  # libraries raise all kinds of errors on damaged bytes
            if options.get("group") is not None and isinstance(error, KeyError | FileNotFoundError):
                raise ValueError(f"{path} has no group {options['group']!r} ({error}). Type --group NAME.") from error
            why = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} cannot be read: {why}") from error


def open_static(path: str, names: tuple[str, ...], kinds: str = "fiu") -> Any:
    """The named maps as a Dataset, or the only map whose dtype is of ``kinds`` as a DataArray; in memory."""
    ds = open_file(path).load()
    if names and set(names) <= set(ds.data_vars):
        return ds[list(names)]
    maps = {name: str(v.dtype) for name, v in ds.data_vars.items() if v.squeeze().ndim == 2}
    fitting = [name for name in maps if ds[name].dtype.kind in kinds]
    if len(fitting) != 1 or len(names) > 1:
        single = "bool, or of 0 and 1" if "b" in kinds else "numbers"
        raise ValueError(f"{path} has the maps {maps}; needed: {' and '.join(names)}, or a single one of {single}.")
    return ds[fitting[0]].squeeze()


def open_mask(path: str) -> Any:
    """A bool map from a file or store, in memory."""
    import xarray as xr

    mask = open_static(path, ("mask",), "biu")  # NetCDF has no bool
    if isinstance(mask, xr.Dataset):
        mask = mask["mask"].squeeze()
    if mask.dtype.kind not in "biu":
        raise ValueError(f"{path} has {mask.name!r} of {mask.dtype}; needed: a mask of bool, or of 0 and 1.")
    return mask.astype(bool)
