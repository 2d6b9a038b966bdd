"""Downscale a coarse Dataset with a stack, lazily: check the input, compute it in blocks, label the result."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cf_xarray  # noqa: F401  (registers the .cf accessor)
import numpy as np
import torch
import xarray as xr

from xdeepsd._version import __version__
from xdeepsd.grids import axes
from xdeepsd.inference.correction import Correction, as_correction
from xdeepsd.inference.digests import digest
from xdeepsd.inference.fast import NO_BFLOAT16, why_not
from xdeepsd.inference.forward import Options, has_bfloat16
from xdeepsd.inference.found import found, lines
from xdeepsd.inference.inputs import Prepared, prepare
from xdeepsd.inference.members import MEMBER, check_alike, check_count, check_no_members, days_of, origin_of
from xdeepsd.inference.windows import Job, apply
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.conserve import check as check_conserve
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.stage import copied
from xdeepsd.models.static import COARSE_PRODUCT
from xdeepsd.models.variable import FILL_ATTRIBUTES

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "float64")


def downscale(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN | Sequence[StackedSRCNN],
    static: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str | None = None,
    mask: xr.DataArray | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    conserve: str | None = None,
    members: int | None = None,
    seed: int = 0,
    statistics: bool = False,
    units: str | None = None,
    day_ends: float | None = None,
    allow_partial: bool = False,
    bias_correct: Correction | str | os.PathLike[str] | None = None,
) -> xr.Dataset | xr.DataArray:
    """Downscale coarse precipitation with a trained stack, or with an ensemble of them.

    Parameters
    ----------
    ds
        Coarse precipitation, daily or in steps of hours, with 1-D or 2-D latitude and longitude (found by CF metadata,
        in any order and under any names), perhaps with other dims too; its units in the attributes; NaN = missing.
        Dask or numpy. On another grid than the model's coarse one it is regridded conservatively.
    model
        A `StackedSRCNN` from `train_stack` or `load_model`. A list of them, such as the seeds of one training
        (`load_models`): one member for each. They must share factors, grid, variable, units, static fields and mask.
    static
        Elevation (DataArray, m) or a Dataset of the model's static fields on the finest grid. Its grid is the target
        grid: ``model.scale`` times finer than the coarse one. None: the fields saved with the model; for a model
        without a grid and static fields, the grid of the input.
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
    members
        Number of members from each model that takes noise (``TrainConfig(loss="crps", noise=2)``), needed for these
        and for these only.
    seed
        Of the noise. Member ``m`` has the same noise for a cell of the model's grid and a date, whatever the chunks,
        the days, the part of the domain, the computer and the number of members. Only dates count: other dims of the
        input, and other times of the day, get the same noise.
    statistics
        True: in place of the members a Dataset of their mean, under the input's name, and of their standard deviation
        (``count - 1`` in the denominator), ``NAME_std``, chunk by chunk without keeping the members.
    units
        Units of the input, where its attributes lack them or are wrong: ``"mm day-1"``, ``"mm/3h"``, ``"inch"``.
    day_ends
        For steps of hours: the hour (UTC) at which a day ends, of the date that it gets; 12 for the days of PRISM.
        None: midnight. Rates are averaged, amounts added up; a day that lacks a step is NaN, or left out at either end.
    allow_partial
        True: NaN where the input does not cover the model's domain. False: an error.
    bias_correct
        A `Correction` from `fit_correction` or `load_correction`, or the path of a saved one. The input is regridded,
        corrected on the model's coarse grid, and downscaled. The quantiles of a cell are those of all days of the
        input, so all of them are read before the first is downscaled.

    Returns
    -------
    The same type as ``ds``, float32 (float64 with ``precision="float64"``), on the target grid, with the user's names,
    order, units and attributes. Lazy if the input is: building the graph computes nothing, and chunks keep their
    days and become ``scale`` times larger along latitude and longitude. NaN outside the mask, and inside missing coarse
    cells on that day only (docs/conventions.md). Never below 0. A list of models, or ``members``, adds the dim
    ``member`` in front, with the coordinates 0 to n - 1 (the members of the first model first), in chunks of one.

    Raises
    ------
    ValueError, TypeError
        Before any graph is built, saying what arrived, what is needed and what to type.

    Notes
    -----
    Vandal et al., DeepSD (KDD 2017), section 3.2; edges, upsampling and clipping as docs/conventions.md defines.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1).isel(time=slice(3))
    >>> coarse = xdeepsd.coarsen(climate["precipitation"], 8)
    >>> fine = xdeepsd.downscale(coarse, xdeepsd.load_model("demo"))
    >>> dict(coarse.sizes), dict(fine.sizes)
    ({'time': 3, 'lat': 12, 'lon': 16}, {'time': 3, 'lat': 96, 'lon': 128})
    """
    options: dict[str, Any] = {
        "device": device, "precision": precision, "batch_size": batch_size, "conserve": conserve,
    }  # fmt: skip
    options |= {"members": members, "seed": seed, "statistics": statistics}
    options |= {"units": units, "day_ends": day_ends, "allow_partial": allow_partial, "bias_correct": bias_correct}
    made = lay_out(ds, model, static, variable, mask, **options)
    fields = _mean_and_std(made) if statistics else [label(made.data, made.prepared, made.has_members)]
    for fine in fields:
        fine.attrs |= provenance(made, fine.attrs)
    if isinstance(ds, xr.DataArray):
        return fields[0] if len(fields) == 1 else xr.Dataset({fine.name: fine for fine in fields})
    return _into_dataset(ds, fields, made.prepared, made.made_with)


@dataclass(frozen=True)
class LaidOut:
    """What a call computes, not yet computed where the input is lazy."""

    data: Any  # (..., lat, lon); before these dims member, mean and standard deviation, or a distribution's parameters
    prepared: Prepared
    scale: int
    made_with: Mapping[str, str]
    has_members: bool


def lay_out(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN | Sequence[StackedSRCNN],
    static: xr.Dataset | xr.DataArray | None,
    variable: str | None,
    mask: xr.DataArray | None,
    *,
    device: str | torch.device | None,
    precision: str,
    batch_size: int | None,
    conserve: str | None,
    units: str | None,
    day_ends: float | None,
    allow_partial: bool,
    members: int | None = None,
    seed: int = 0,
    statistics: bool = False,
    distribution: bool = False,
    bias_correct: Any = None,
) -> LaidOut:
    """`downscale` without labels; ``distribution``: the parameters that the last stage gives, and not their mean."""
    models = _models(model)
    _check_options(ds, models, device, precision, batch_size)
    for one in models:
        _check_conserve(one, conserve)
    check_alike(models, fields=static is None, mask=mask is None)
    which = _members(models, isinstance(model, StackedSRCNN), members, statistics)
    correction = None if bias_correct is None else as_correction(bias_correct)
    prepared = prepare(ds, models[0], static, variable, mask, units, day_ends, allow_partial, correction)
    logger.info("%s", "; ".join(f"{what}: {text}" for what, text in lines(found(prepared))))
    if which is not None:
        check_no_members(prepared.given.dims, "input", "ds")
    lat = np.asarray(prepared.grid["lat"], np.float64)
    if isinstance(prepared.mask, np.ndarray) and any(s.config.conserve for one in models for s in one.stages):
        cell_weights(lat, prepared.mask.shape[1], prepared.mask)  # raises now if the mask is wrong, not in a task
    keys = days_of(prepared.coarse) if models[0].noise else None
    origin = (0, 0) if keys is None else origin_of(prepared.coarse, models[0])
    options = Options(str(device or "cpu"), precision, batch_size)
    jobs = [Job(_copied(one, conserve), prepared.values, options, lat, seed, origin, distribution) for one in models]
    made_with = _made_with(jobs, prepared, members, correction)
    token = digest((made_with, origin, prepared.values, prepared.coarse.shape[-2:], digest(lat)))
    token = f"distribution-{token}" if distribution else token
    data = apply(prepared.coarse.data, jobs, prepared.maps, prepared.mask, token, which, keys, statistics)
    return LaidOut(data, prepared, models[0].scale, made_with, which is not None)


def _models(model: Any) -> list[StackedSRCNN]:
    """The models as a list, which holds one or more."""
    models = list(model) if isinstance(model, list | tuple) else [model]
    for one in models or [None]:
        if not isinstance(one, StackedSRCNN):
            kind = f"a {type(one).__name__}" if models else "an empty list"
            raise TypeError(
                f"model is {kind}; needed: a StackedSRCNN, or a list of them. Type xdeepsd.load_model('model/')."
            )
    return models


def _members(
    models: Sequence[StackedSRCNN], alone: bool, members: int | None, statistics: bool
) -> list[tuple[int, int]] | None:
    """Of each member the position of its model and its number, for its noise; None for a single field."""
    if members is not None:
        check_count(members)
    if models[0].noise and members is None:
        raise ValueError(
            "The model takes noise, and gives one field for each noise: members is missing. Needed: how many. Type "
            "members=10; for their mean and spread members=10, statistics=True."
        )
    if members is not None and not models[0].noise:
        raise ValueError(
            f"members={members}, and the model takes no noise: it gives one field. Needed: a model trained with noise, "
            "by TrainConfig(loss='crps', noise=2), or a list of models. Leave members out."
        )
    count = len(models) * (members or 1)
    if statistics and count == 1:
        raise ValueError(
            "statistics=True with a single member, which has no spread. Needed: members of 2 or more, or a list of "
            "models. Type statistics=False."
        )
    if alone and members is None:
        return None
    return [(number // (members or 1), number) for number in range(count)]


def _copied(model: StackedSRCNN, conserve: str | None) -> StackedSRCNN:
    """The model to compute with, without static fields and mask, which go separately.

    A copy: the user may continue training before the graph is computed.
    """
    product = {key: model.training[key] for key in (COARSE_PRODUCT,) if key in model.training}
    # The means of an independent product may be biased: its stage does not keep them.
    stages = [copied(stage, None if product and i == 0 else conserve) for i, stage in enumerate(model.stages)]
    return replace(model, stages=stages, static=None, mask=None, training=product)


def _check_options(
    ds: Any, models: Sequence[StackedSRCNN], device: str | torch.device | None, precision: str, batch_size: int | None
) -> None:
    if not isinstance(ds, xr.Dataset | xr.DataArray):
        raise TypeError(f"downscale got a {type(ds).__name__}; needed: an xarray Dataset or DataArray.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; needed: one of {', '.join(map(repr, PRECISIONS))}.")
    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda", "mps", "xpu"):  # "meta", say, holds no numbers
        raise ValueError(
            f"device {device!r}; needed: a device that can compute, such as 'cuda'. Leave device out for the CPU."
        )
    if precision == "bfloat16" and kind == "cpu":
        if not has_bfloat16():
            raise ValueError(NO_BFLOAT16)
        if batch_size is not None:
            raise ValueError(
                f"precision='bfloat16' with batch_size={batch_size}: a batch_size selects the plain torch forward, "
                "which on a CPU computes only in float32 or float64. Leave batch_size out, or type "
                "precision='float32'."
            )
        for reason in (why_not(stage.config) for model in models for stage in model.stages):
            if reason:
                raise ValueError(
                    f"precision='bfloat16' with a stage that {reason}: on a CPU such a stage is computed only in "
                    "float32 or float64. Type precision='float32'."
                )
    if batch_size is not None and (int(batch_size) != batch_size or batch_size < 1):
        raise ValueError(f"batch_size {batch_size}; needed: a whole number of at least 1, or None.")


def _check_conserve(model: StackedSRCNN, conserve: str | None) -> None:
    check_conserve(conserve)
    trained = {stage.config.conserve for stage in model.stages} - {conserve}
    if conserve is not None and "softmax" in trained | {conserve} and trained:
        raise ValueError(
            f"conserve={conserve!r}, but the model was trained with {sorted(map(str, trained))}. Needed: the same in "
            "both if either is 'softmax', whose networks give exponents. Leave conserve out."
        )


# --- the output -------------------------------------------------------------------------------------------------------


def label(data: Any, prepared: Prepared, members: bool = False) -> xr.DataArray:
    """Label the result with the target grid, in the user's names, order and longitude convention; members first."""
    coarse, given, names = prepared.coarse, prepared.given, prepared.names
    coords: dict[Any, Any] = {
        name: coord for name, coord in coarse.coords.items() if not {"lat", "lon"} & set(coord.dims)
    }
    lon = axes.wrap_longitude(np.asarray(prepared.grid["lon"], np.float64), near=np.asarray(coarse["lon"], np.float64))
    coords |= {"lat": ("lat", np.asarray(prepared.grid["lat"], np.float64)), "lon": ("lon", lon)}
    dims = coarse.dims
    if members:
        dims, names = (MEMBER, *dims), replace(names, dims=(MEMBER, *names.dims))
        coords[MEMBER] = (MEMBER, np.arange(len(data)), {"standard_name": "realization"})
    fine = axes.restore(xr.DataArray(data, coords, dims).isel(prepared.turn), names)
    for name in (names.lat, names.lon):  # their bounds belong to the coarse cells
        fine[name].attrs = {k: v for k, v in given[name].attrs.items() if k not in {"bounds", "actual_range"}}
    fine.name = given.name
    fine.attrs = {k: v for k, v in given.attrs.items() if k not in FILL_ATTRIBUTES}  # missing is now NaN
    return fine


def _mean_and_std(made: LaidOut) -> list[xr.DataArray]:
    """Label the two maps of `apply` with ``statistics``; their ``cell_methods`` say what they are."""
    fields = []
    for part, suffix, method in ((made.data[0], "", "mean"), (made.data[1], "_std", "standard_deviation")):
        fine = label(part, made.prepared)
        fine.name = f"{fine.name or made.prepared.values.name}{suffix}"
        fine.attrs["cell_methods"] = f"{fine.attrs.get('cell_methods', '')} realization: {method}".strip()
        fields.append(fine)
    fields[1].attrs.pop("standard_name", None)  # so that the mean is found as the precipitation
    return fields


def _made_with(
    jobs: Sequence[Job], prepared: Prepared, members: int | None, correction: Correction | None
) -> dict[str, str]:
    """Attributes that change with everything the numbers depend on, except the input."""
    maps = {name: digest(field) for name, field in prepared.maps.items()}
    job = jobs[0]
    noise = {} if members is None else {"xdeepsd_noise": f"members={members} seed={job.seed}"}
    return (
        noise
        | {
            "xdeepsd_model": " ".join(job.model.fingerprint() for job in jobs),
            "xdeepsd_static": digest(maps) if maps else "none",
            "xdeepsd_mask": "none" if prepared.mask is None else digest(prepared.mask),
            "xdeepsd_options": " ".join(f"{name}={value}" for name, value in vars(job.options).items()),
        }
        | ({"xdeepsd_adapted": "; ".join(prepared.adapted.done)} if prepared.adapted.done else {})
        | ({} if correction is None else {"xdeepsd_correction": correction.fingerprint()})
    )


def provenance(made: LaidOut, attrs: Mapping[str, Any], function: str = "downscale") -> dict[str, Any]:
    """Attributes that say how the output was made; ``attrs`` are those of the input."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    model = made.made_with["xdeepsd_model"]
    line = f"{now}: xdeepsd {__version__} {function}, scale {made.scale}, model {model}"
    history = f"{attrs['history']}\n{line}" if attrs.get("history") else line
    return {"history": history, "xdeepsd_version": __version__, **made.made_with}


def _into_dataset(
    ds: xr.Dataset, made: Sequence[xr.DataArray], prepared: Prepared, made_with: Mapping[str, str]
) -> xr.Dataset:
    """The user's Dataset with the fine variables; all other variables on the coarse map are dropped."""
    names, adapted = prepared.names, prepared.adapted
    on_map = {names.lat_dim, names.lon_dim, names.lat, names.lon} | adapted.gone
    kept = ds.drop_vars([k for k, v in ds.variables.items() if set(v.dims) & on_map or k in on_map])
    fine = made[0]
    out = kept.assign({one.name: one for one in made} | adapted.bounds)
    out.attrs = {**ds.attrs, **{k: fine.attrs[k] for k in ("xdeepsd_version", *made_with)}}
    line = str(fine.attrs["history"]).splitlines()[-1]
    out.attrs["history"] = f"{ds.attrs['history']}\n{line}" if ds.attrs.get("history") else line
    return out
