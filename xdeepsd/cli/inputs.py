"""Open the files and stores that commands read."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdeepsd import StackedSRCNN


def open_coarse(
    sources: list[str], group: str | None, model: StackedSRCNN, variable: str | None, chunk_days: int | None
) -> tuple[Any, str]:
    """The coarse Dataset of one file or store, or of several that follow one another; the name of its precipitation.

    Its precipitation is chunked along time only.
    """
    from xdeepsd.grids import axes
    from xdeepsd.inference.inputs import choose_variable, steps_in_chunk
    from xdeepsd.stores.layout import INCOMPLETE, STATUS

    parts = []
    for source in sources:
        ds = axes.settle(open_file(source, group=group))
        if ds.attrs.get(STATUS) == INCOMPLETE:
            raise ValueError(f"{source} is not complete: first finish the command that began it.")
        try:
            rain = choose_variable(ds, model, variable)
            if rain.dtype.kind == "f":
                ds[rain.name] = axes.chunk_unread(rain, days=steps_in_chunk(rain, ds, model, chunk_days))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        parts.append(ds)
    return parts[0] if len(parts) == 1 else _joined(parts, str(rain.name), sources), str(rain.name)


def _joined(parts: list[Any], name: str, sources: list[str]) -> Any:
    """Files that follow one another in time as one Dataset, with the coordinates of the first.

    Coordinates that differ by rounding are the same; with xarray's outer join every latitude would be there twice.
    """
    import numpy as np
    import xarray as xr

    from xdeepsd.grids import align, axes

    time = axes.find_time(parts[0][name])
    if time is None:
        raise ValueError(f"{sources[0]} has no time. Needed: days that follow one another, or one file.")
    order = sorted(range(len(parts)), key=lambda i: parts[i].indexes[time][0])
    parts, sources = [parts[i] for i in order], [sources[i] for i in order]
    for i in range(1, len(parts)):
        for dim, place in zip(("lat", "lon"), axes.map_dims(parts[0][name]), strict=True):
            one, other = (part[name][place] if place in part.indexes else np.arange(part.sizes[place]) for part in
                          (parts[0], parts[i]))  # fmt: skip
            if one.size != other.size or not align.same(one, other, dim):
                raise ValueError(f"{sources[i]} lies on another grid than {sources[0]}: their {place} differs.")
        if parts[i].indexes[time][0] <= parts[i - 1].indexes[time][-1]:
            raise ValueError(
                f"{sources[i]} begins at {parts[i].indexes[time][0]}, before {sources[i - 1]} ends at "
                f"{parts[i - 1].indexes[time][-1]}. Needed: files that follow one another."
            )
    return xr.concat(parts, time, data_vars="minimal", coords="minimal", compat="override", join="override")


def open_file(path: str, **options: Any) -> Any:
    """Open a file or store as a Dataset, by its absolute path, because resuming an output compares the path."""
    import xarray as xr

    from xdeepsd.stores.remote import is_url, local_path, meaning, without_secrets

    if not is_url(path):
        path = local_path(path)
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist.")
        path = str(Path(path).resolve())
    if is_url(path) or Path(path).is_dir():
        options["engine"] = "zarr"
    elif _is_grib(path):
        if find_spec("cfgrib") is None:
            raise ImportError(f"{path} is a GRIB file, which needs cfgrib. Type pip install 'xdeepsd[grib]'.")
        options |= {"engine": "cfgrib", "backend_kwargs": {"indexpath": ""}}  # no index file beside the input
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
            known = meaning(error, without_secrets(path))
            if known is not None:
                raise known from error
            if options.get("group") is not None and isinstance(error, KeyError | FileNotFoundError):
                raise ValueError(f"{path} has no group {options['group']!r} ({error}). Type --group NAME.") from error
            why = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} cannot be read: {why}") from error


def open_models(model: str) -> StackedSRCNN | list[StackedSRCNN]:
    """The model in a folder, or all of an ensemble in it; "demo": see `xdeepsd.load_model`."""
    from xdeepsd.models.files import DEMO_NAME, load_model, load_models, model_folders

    return load_models(model) if model != DEMO_NAME and model_folders(model) else load_model(model)


def _is_grib(path: str) -> bool:
    with Path(path).open("rb") as file:
        return b"GRIB" in file.read(64)  # some have a telegram's header before it


def open_correction(path: str, history: Any, name: str, units: str | None, day_ends: float | None) -> Any:
    """A saved correction, or one fitted to the observations in a file or store on the days that ``history`` has too."""
    from xdeepsd.climate.correction import fit_correction
    from xdeepsd.inference.correction import Correction, is_correction, load_correction

    if is_correction(path):
        return load_correction(path)
    observed = open_file(path, chunks={})
    try:
        fitted = fit_correction(history, observed, variable=name, units=units, day_ends=day_ends)
    except ValueError as error:
        raise ValueError(f"--bias-correct {path}: {error}") from error
    return Correction(fitted.data.compute(), fitted.options)  # small, and needed more than once


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
