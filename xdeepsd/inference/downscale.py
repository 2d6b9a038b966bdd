"""Downscale a coarse Dataset with a stack, lazily: check the input, compute it in blocks, label the result."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cf_xarray  # noqa: F401  (registers the .cf accessor)
import numpy as np
import torch
import xarray as xr

from xdeepsd._version import __version__
from xdeepsd.grids import axes
from xdeepsd.inference.fast import NO_BFLOAT16
from xdeepsd.inference.inputs import Prepared, prepare
from xdeepsd.inference.windows import Job, Options, apply, digest, has_bfloat16
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.conserve import check as check_conserve
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.stage import copied
from xdeepsd.models.static import COARSE_PRODUCT
from xdeepsd.models.variable import FILL_ATTRIBUTES

PRECISIONS = ("float32", "bfloat16", "float64")


def downscale(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN,
    static: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str | None = None,
    mask: xr.DataArray | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    conserve: str | None = None,
) -> xr.Dataset | xr.DataArray:
    """Downscale coarse precipitation with a trained stack.

    Parameters
    ----------
    ds
        Coarse daily precipitation with latitude and longitude (found by CF metadata, in any order and under any
        names), perhaps with other dims too; its units in the attributes; NaN = missing. Dask or numpy.
    model
        A `StackedSRCNN` from `train_stack` or `load_model`.
    static
        Elevation (DataArray, m) or a Dataset of the model's static fields on the finest grid. Its grid is the target
        grid: ``model.scale`` times finer than the input. None: the fields saved with the model.
    variable
        Name of the precipitation variable in a Dataset. None: found by name and standard name.
    mask
        ``(lat, lon)`` bool on the target grid, True where values are wanted; elsewhere the output is NaN. None: the
        model's mask, if the target grid is the model's.
    device
        Torch device for the plain forward, such as ``"cuda"``. None: the CPU.
    precision
        ``"float32"``; ``"bfloat16"``: 8-bit products summed in float32, relative error under 6e-3, faster, if the
        processor or GPU supports it; ``"float64"``: plain forward in double precision, slow, for checking numbers.
    batch_size
        Days computed at a time inside a chunk by the plain torch forward; it limits the memory for the activations and
        has nothing to do with chunk sizes. None: the fast forward on a CPU, 16 days on a GPU.
    conserve
        "multiplicative" or "additive": after each stage the fine cells are adjusted so that their area-weighted mean,
        over the cells of the mask, is the value of their coarse cell, whether or not the model was trained that way.
        A bias of the input is passed on; so the first stage of a model that takes an independent product is left as it
        is. None: as the model was trained.

    Returns
    -------
    The same type as ``ds``, float32 (float64 with ``precision="float64"``), on the target grid, with the user's names,
    order, units and attributes. Lazy if the input is: building the graph computes nothing, and chunks keep their
    days and become ``scale`` times larger along latitude and longitude. NaN outside the mask, and inside missing coarse
    cells on that day only (docs/conventions.md). Never below 0.

    Raises
    ------
    ValueError, TypeError
        Before any graph is built, saying what arrived, what is needed and what to type.

    Notes
    -----
    Vandal et al., DeepSD (KDD 2017), section 3.2; edges, upsampling and clipping as docs/conventions.md defines.
    """
    _check_options(ds, model, device, precision, batch_size)
    _check_conserve(model, conserve)
    prepared = prepare(ds, model, static, variable, mask)
    # A copy: the user may continue training before the graph is computed. The static fields and mask go separately.
    product = {key: model.training[key] for key in (COARSE_PRODUCT,) if key in model.training}
    # The means of an independent product may be biased: its stage does not keep them.
    stages = [copied(stage, None if product and i == 0 else conserve) for i, stage in enumerate(model.stages)]
    model = replace(model, stages=stages, static=None, mask=None, training=product)
    lat = np.asarray(prepared.grid["lat"], np.float64)
    if isinstance(prepared.mask, np.ndarray) and any(stage.config.conserve for stage in stages):
        cell_weights(lat, prepared.mask.shape[1], prepared.mask)  # raises now if the mask is wrong, not in a task
    job = Job(model, prepared.values, Options(str(device or "cpu"), precision, batch_size), lat)
    made_with = _made_with(job, prepared)
    token = digest((made_with, prepared.values, prepared.coarse.shape[-2:], digest(lat)))
    data = apply(prepared.coarse.data, job, prepared.maps, prepared.mask, token)
    fine = _label(data, prepared)
    fine.attrs |= _provenance(model.scale, made_with["xdeepsd_model"], fine.attrs) | made_with
    return fine if isinstance(ds, xr.DataArray) else _into_dataset(ds, fine, prepared.names, made_with)


def _check_options(
    ds: Any, model: Any, device: str | torch.device | None, precision: str, batch_size: int | None
) -> None:
    if not isinstance(ds, xr.Dataset | xr.DataArray):
        raise TypeError(f"downscale got a {type(ds).__name__}; needed: an xarray Dataset or DataArray.")
    if not isinstance(model, StackedSRCNN):
        raise TypeError(
            f"model is a {type(model).__name__}; needed: a StackedSRCNN. Type xdeepsd.load_model('model/')."
        )
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; needed: one of {', '.join(map(repr, PRECISIONS))}.")
    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda", "mps", "xpu"):  # "meta", say, holds no numbers
        raise ValueError(f"device {device!r}; needed: one that computes, such as 'cuda'. Leave device out for the CPU.")
    if precision == "bfloat16" and kind == "cpu":
        if not has_bfloat16():
            raise ValueError(NO_BFLOAT16)
        if batch_size is not None:
            raise ValueError(
                f"precision='bfloat16' and batch_size={batch_size}: on a CPU the plain torch forward, which takes a "
                "batch_size, computes in float32 or float64. Leave batch_size out, or type precision='float32'."
            )
        if any(len(stage.config.kernels) < 2 for stage in model.stages):
            raise ValueError(
                "precision='bfloat16' and a stage without a hidden layer, which on a CPU is computed in float32 or "
                "float64. Type precision='float32'."
            )
    if batch_size is not None and (int(batch_size) != batch_size or batch_size < 1):
        raise ValueError(f"batch_size {batch_size}; needed: a whole number of at least 1, or None.")


def _check_conserve(model: StackedSRCNN, conserve: str | None) -> None:
    check_conserve(conserve)
    trained = {stage.config.conserve for stage in model.stages} - {conserve}
    if conserve is not None and "softmax" in trained | {conserve} and trained:
        raise ValueError(
            f"conserve={conserve!r}, and the model was trained with {sorted(map(str, trained))}. Needed for 'softmax', "
            "whose networks give exponents: the same in both. Leave conserve out."
        )


# --- the output -------------------------------------------------------------------------------------------------------


def _label(data: Any, prepared: Prepared) -> xr.DataArray:
    """Label the result with the target grid, in the user's names, order and longitude convention."""
    coarse, given, names = prepared.coarse, prepared.given, prepared.names
    coords: dict[Any, Any] = {
        name: coord for name, coord in coarse.coords.items() if not {"lat", "lon"} & set(coord.dims)
    }
    lon = axes.wrap_longitude(np.asarray(prepared.grid["lon"], np.float64), near=np.asarray(coarse["lon"], np.float64))
    coords |= {"lat": ("lat", np.asarray(prepared.grid["lat"], np.float64)), "lon": ("lon", lon)}
    fine = axes.restore(xr.DataArray(data, coords, coarse.dims).isel(prepared.turn), names)
    for name in (names.lat, names.lon):  # their bounds belong to the coarse cells
        fine[name].attrs = {k: v for k, v in given[name].attrs.items() if k not in {"bounds", "actual_range"}}
    fine.name = given.name
    fine.attrs = {k: v for k, v in given.attrs.items() if k not in FILL_ATTRIBUTES}  # missing is now NaN
    return fine


def _made_with(job: Job, prepared: Prepared) -> dict[str, str]:
    """Attributes that change with everything the numbers depend on, except the input."""
    maps = {name: digest(field) for name, field in prepared.maps.items()}
    return {
        "xdeepsd_model": job.model.fingerprint(),
        "xdeepsd_static": digest(maps) if maps else "none",
        "xdeepsd_mask": "none" if prepared.mask is None else digest(prepared.mask),
        "xdeepsd_options": " ".join(f"{name}={value}" for name, value in vars(job.options).items()),
    }


def _provenance(scale: int, fingerprint: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{now}: xdeepsd {__version__} downscale, scale {scale}, model {fingerprint}"
    history = f"{attrs['history']}\n{line}" if attrs.get("history") else line
    return {"history": history, "xdeepsd_version": __version__}


def _into_dataset(ds: xr.Dataset, fine: xr.DataArray, names: axes.Axes, made_with: Mapping[str, str]) -> xr.Dataset:
    """The user's Dataset with the fine variable; all other variables on the coarse map are dropped."""
    on_map = {names.lat_dim, names.lon_dim, names.lat, names.lon}
    kept = ds.drop_vars([k for k, v in ds.variables.items() if set(v.dims) & on_map or k in on_map])
    out = kept.assign({fine.name: fine})
    out.attrs = {**ds.attrs, **{k: fine.attrs[k] for k in ("xdeepsd_version", *made_with)}}
    line = str(fine.attrs["history"]).splitlines()[-1]
    out.attrs["history"] = f"{ds.attrs['history']}\n{line}" if ds.attrs.get("history") else line
    return out
