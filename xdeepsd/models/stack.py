"""A trained model: stages in order, what they were trained on, and how they lie on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
import xarray as xr
from torch import Tensor

from xdeepsd.grids.axes import spacing
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig, pad_edges, upsample
from xdeepsd.stores.whole import partial_of, write_whole

FORMAT = 1  # of the files; raised when an older xdeepsd could not read them any more
TRANSFORMS = (None, "sqrt", "log1p")
_JSON, _TENSORS, _NEW_TENSORS = "model.json", "model.safetensors", "model.safetensors.new"


def transform(x: Tensor, name: str | None) -> Tensor:
    """Precipitation (at least 0; below counts as 0) to the space in which a network works. NaN stays NaN."""
    if name is None:
        return x
    return x.clamp_min(0.0).sqrt() if name == "sqrt" else x.clamp_min(0.0).log1p()


def invert_transform(x: Tensor, name: str | None) -> Tensor:
    """The inverse of `transform` for values of at least 0."""
    if name is None:
        return x
    return x.square() if name == "sqrt" else x.expm1()


def interpolated_input(coarse: Tensor, config: SRCNNConfig) -> Tensor:
    """What the network of a stage reaches of the interpolated precipitation: the fine map and `radius` cells around it.

    ``(batch, channel, lat, lon)`` to ``(batch, channel, factor * lat + 2 radius, factor * lon + 2 radius)``, edges
    replicated before the interpolation. The same in training and at inference.
    """
    fine = upsample(pad_edges(coarse, config.halo), config.factor)
    margin = config.halo * config.factor - config.radius
    return fine[..., margin:-margin, margin:-margin] if margin else fine


@dataclass(frozen=True, eq=False)
class Stage:
    """One network with its normalisers.

    Parameters
    ----------
    net
        The trained `SRCNN`.
    precipitation
        Normaliser of the interpolated input, units of the model.
    static
        Normaliser of each static field by name, exactly those of ``net.config.static``.
    target
        Normaliser of the fine precipitation; of its difference to the interpolated input if ``residual``.
    transform
        "sqrt" or "log1p": the coarse precipitation is transformed first, and the output back at last; what lies in
        between (interpolation, normalisers, residual) is of the transformed values. None: precipitation as it is.
    """

    net: SRCNN
    precipitation: Normalizer
    static: Mapping[str, Normalizer]
    target: Normalizer
    transform: str | None = None

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(f"transform {self.transform!r}; needed: one of {', '.join(map(repr, TRANSFORMS))}.")
        wanted, given = self.net.config.static, tuple(self.static)
        if sorted(wanted) != sorted(given):
            raise ValueError(
                f"The network takes the static fields {wanted}, the normalisers given are for {given}. "
                "Needed: one Normalizer for each, Stage(net, precipitation, {name: Normalizer(mean, std)}, target)."
            )
        object.__setattr__(self, "static", {name: self.static[name] for name in wanted})

    @property
    def config(self) -> SRCNNConfig:
        """Configuration of the network."""
        return self.net.config

    def __call__(self, coarse: Tensor, static: Tensor) -> Tensor:
        """Fine precipitation of a batch of days: the plain forward, the definition that the fast path must meet.

        Parameters
        ----------
        coarse
            ``(batch, lat, lon)``, units of the model, no NaN.
        static
            ``(static, factor * lat, factor * lon)`` from `xdeepsd.models.static.stage_channels`, not normalised.

        Returns
        -------
        ``(batch, factor * lat, factor * lon)``, same units, at least 0 (SPEC 1: edges replicated, clipped at 0).
        """
        config, radius = self.config, self.config.radius
        fine = interpolated_input(transform(coarse[:, None], self.transform), config)
        channels = [self.precipitation.apply(fine)]
        if config.static:
            normalized = torch.stack([n.apply(static[i]) for i, n in enumerate(self.static.values())])
            channels.append(pad_edges(normalized[None], radius).expand(len(coarse), -1, -1, -1))
        result = self.target.invert(self.net(torch.cat(channels, dim=1)))
        if config.residual:
            result = result + (fine[..., radius:-radius, radius:-radius] if radius else fine)
        return invert_transform(result[:, 0].clamp_min(0.0), self.transform)


def copied(stage: Stage) -> Stage:
    """The same stage with its own network, on the CPU, which later changes of the first one's weights do not reach."""
    net = SRCNN(stage.config)
    net.load_state_dict(stage.net.state_dict())
    return replace(stage, net=net.eval())


@dataclass(frozen=True, eq=False, repr=False)
class StackedSRCNN:
    """Stages applied one after the other, each on the last one's output (DeepSD, KDD 2017, section 3.2).

    Parameters
    ----------
    stages
        From the coarsest level to the finest.
    units
        Units of precipitation that the stages were trained in.
    variable
        Name of the variable that the model was trained on; None: not known.
    static
        Static fields on the finest grid, a Dataset of dims ``lat, lon`` whose coordinates are the target grid. None:
        the grid is taken from the ``static`` given to `xdeepsd.downscale`.
    mask
        ``(lat, lon)`` bool on the same grid, True where values are wanted; None: everywhere.
    training
        What is worth knowing of the training: years, errors, seed.
    """

    stages: Sequence[Stage]
    units: str = "mm day-1"
    variable: str | None = None
    static: xr.Dataset | None = None
    mask: xr.DataArray | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("A stack of no stages. Needed: StackedSRCNN([stage, ...]), coarsest first.")
        for part in (self.static, self.mask):
            if part is not None and not {"lat", "lon"} <= set(part.coords):
                raise ValueError(
                    f"The model's static fields and mask need the coordinates lat and lon; got {list(part.coords)}."
                )

    @property
    def factors(self) -> tuple[int, ...]:
        """Factor of each stage."""
        return tuple(stage.config.factor for stage in self.stages)

    @property
    def scale(self) -> int:
        """Fine cells per coarse cell along an axis, over all stages."""
        return math.prod(self.factors)

    @property
    def halo(self) -> int:
        """Coarsest cells needed around a cell to compute the finest cells inside it."""
        halo = 0
        for stage in reversed(self.stages):
            halo = stage.config.halo + math.ceil(halo / stage.config.factor)
        return halo

    @property
    def static_names(self) -> tuple[str, ...]:
        """Static fields that any stage needs, in order of first use."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.config.static))

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Size of the coarsest cells in latitude and longitude, degrees; None while the grid is not known."""
        if self.static is None:
            return None
        steps = (abs(spacing(self.static[name], name)) for name in ("lat", "lon"))
        lat, lon = (step * self.scale for step in steps)
        return lat, lon

    def __repr__(self) -> str:
        """A few lines: stages, grids, units, and what is known of the training."""
        return "\n".join(_lines(self))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any weight or normaliser, the units and the variable.

        The static fields and the mask are left out: they may be lazy.
        """
        digest = hashlib.sha256(json.dumps(_describe(self), sort_keys=True, default=str).encode())
        for name, array in sorted(_weights(self).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]


def _describe(model: StackedSRCNN) -> dict[str, Any]:
    return {
        "units": model.units,
        "variable": model.variable,
        "stages": [
            {
                "config": asdict(stage.config),
                "precipitation": asdict(stage.precipitation),
                "static": {name: asdict(n) for name, n in stage.static.items()},
                "target": asdict(stage.target),
                "transform": stage.transform,
            }
            for stage in model.stages
        ],
    }


def _grids(model: StackedSRCNN) -> list[dict[str, Any]]:
    """Shape, first centre and step of every level, coarsest first: to be read by people."""
    if model.static is None:
        return []
    grids, scale = [], model.scale
    for factor in (1, *model.factors):
        scale //= factor
        grid: dict[str, Any] = {}
        for name in ("lat", "lon"):
            values = np.asarray(model.static[name], np.float64)
            step = spacing(values, name)
            first = values[0] + (scale - 1) / 2 * step
            grid[name] = {
                "size": values.size // scale,
                "first": round(first, 9),
                "step": round(step * scale, 9),
            }
        grids.append(grid)
    return grids


def _lines(model: StackedSRCNN) -> Iterator[str]:
    """The model in words. Reads no map."""
    factors = " x ".join(map(str, model.factors))
    yield f"StackedSRCNN of factor {factors} = {model.scale}, {model.variable or 'precipitation'} in {model.units}"
    grids = _grids(model)
    for name, grid in (("coarse", grids[0]), ("fine", grids[-1])) if grids else ():
        ends = {dim: (axis["first"], axis["first"] + axis["step"] * (axis["size"] - 1)) for dim, axis in grid.items()}
        spans = (f"{grid[dim]['size']} {dim} from {first:.6g} to {last:.6g}" for dim, (first, last) in ends.items())
        yield f"  {name} grid: {', '.join(spans)}"
    mask = "no mask" if model.mask is None else "a mask of where values are wanted"
    yield f"  static fields: {', '.join(model.static_names) or 'none'}; {mask}"
    summaries = [*model.training.get("stages", ()), *[{}] * len(model.stages)]
    for i, (stage, summary) in enumerate(zip(model.stages, summaries, strict=False)):
        config = stage.config
        words = [
            "-".join(map(str, config.kernels)) + " kernels",
            "-".join(map(str, (*config.channels, 1))) + " channels",
        ]
        words += ["residual"] * config.residual + ([stage.transform] if stage.transform else [])
        if "first_day" in summary:
            words.append(f"{summary['days']['train']} training days, {summary['first_day']} to {summary['last_day']}")
        if "rmse" in summary:
            words.append(
                f"validation RMSE {summary['rmse']:.4g} ({summary['rmse_interpolation']:.4g} by interpolation)"
            )
        yield f"  stage {i}: {', '.join(words)}"


def _weights(model: StackedSRCNN) -> dict[str, np.ndarray]:
    return {
        f"stages.{i}.{name}": tensor.detach().cpu().numpy()
        for i, stage in enumerate(model.stages)
        for name, tensor in stage.net.state_dict().items()
    }


def _arrays(model: StackedSRCNN) -> dict[str, np.ndarray]:
    arrays = _weights(model)
    for kind, data in (("static", model.static), ("mask", model.mask)):
        if data is None:
            continue
        for name in ("lat", "lon"):
            arrays[f"{kind}.{name}"] = np.asarray(data[name], np.float64)
        if isinstance(data, xr.DataArray):
            arrays["mask.mask"] = np.asarray(data.transpose("lat", "lon"), bool)
        else:
            for variable in data.data_vars:
                arrays[f"static.{variable}"] = np.asarray(data[variable].transpose("lat", "lon"))
    return arrays


def _static_attrs(model: StackedSRCNN) -> dict[str, dict[str, Any]]:
    fields = {} if model.static is None else model.static.data_vars
    return {str(name): dict(variable.attrs) for name, variable in fields.items()}


def check_model_folder(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise FileExistsError where `save_model` would not write: before a training, not after it."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Type save_model(model, path, overwrite=True) to replace it.")
    begun = path.is_dir() and all(_NEW_TENSORS in (file.name, partial_of(file.name)) for file in path.iterdir())
    if not path.exists() or begun:  # empty, or what a first call left that was stopped
        return
    try:
        ours = "tensors_sha256" in json.loads((path / _JSON).read_text())
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{path} exists and is no model of xdeepsd. It is left alone: type another path.")


def save_model(model: StackedSRCNN, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a model to the folder ``path``: ``model.safetensors`` and a ``model.json`` that describes it.

    Raises FileExistsError where ``path`` exists and ``overwrite`` is False, or where it is anything but a model. Of a
    model, these two files are replaced and nothing else; stopped at any moment, the old or the new one is there, whole.
    Static fields that are lazy are computed.
    """
    from xdeepsd import __version__

    path = Path(path)
    check_model_folder(path, overwrite)
    tensors = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in _arrays(model).items()})
    description = {
        "format": FORMAT,
        "xdeepsd_version": __version__,
        **_describe(model),
        "grids": _grids(model),
        "has_mask": model.mask is not None,
        "static_fields": _static_attrs(model),
        "training": dict(model.training),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    path.mkdir(parents=True, exist_ok=True)
    # The new tensors beside the old ones; then the description, which from then on is theirs; then their name.
    write_whole(path / _NEW_TENSORS, tensors)
    write_whole(path / _JSON, (json.dumps(description, indent=2, default=str) + "\n").encode())
    (path / _NEW_TENSORS).replace(path / _TENSORS)


def load_model(path: str | os.PathLike[str]) -> StackedSRCNN:
    """Read a model written by `save_model`.

    Raises FileNotFoundError where the folder or one of its two files is missing, and ValueError where a file is
    truncated or changed, or comes from a newer version of xdeepsd.
    """
    from xdeepsd import __version__

    path = Path(path)
    new = path / _NEW_TENSORS  # where `save_model` was stopped: before its description was written, or after
    tensors = next((file for file in (path / _TENSORS, new) if file.exists()), path / _TENSORS)
    for file in (path, path / _JSON, tensors):
        if not file.exists():
            raise FileNotFoundError(
                f"No model at {path}: {file.name} is missing. Needed: a folder with {_JSON} and {_TENSORS}, "
                "as xdeepsd.save_model(model, path) writes it."
            )
    again = "Copy the model again, or save it again with xdeepsd.save_model(model, path)."
    try:
        description = json.loads((path / _JSON).read_text())
        found = int(description["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / _JSON} is truncated or not a model's description ({error}). {again}") from error
    if found > FORMAT:
        raise ValueError(
            f"{path} has format {found}, written by a newer xdeepsd {description.get('xdeepsd_version')}; this "
            f"xdeepsd {__version__} reads up to format {FORMAT}. Type pip install -U xdeepsd."
        )
    content, wanted = tensors.read_bytes(), description.get("tensors_sha256")
    if hashlib.sha256(content).hexdigest() != wanted and new.exists():
        content = new.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError(
            f"{path / _TENSORS} is truncated or changed ({len(content)} bytes): its checksum is not the one in "
            f"{_JSON}. {again}"
        )
    try:
        arrays = safetensors.numpy.load(content)
        return _build(description, arrays)
    except (KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is not a whole model: {error}. {again}") from error


def _build(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> StackedSRCNN:
    stages = []
    for i, entry in enumerate(description["stages"]):
        net = SRCNN(SRCNNConfig(**entry["config"]))
        prefix = f"stages.{i}."
        net.load_state_dict(
            {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
        )
        stages.append(
            Stage(
                net.eval(),
                Normalizer(**entry["precipitation"]),
                {name: Normalizer(**n) for name, n in entry["static"].items()},
                Normalizer(**entry["target"]),
                entry.get("transform"),
            )
        )
    static = mask = None
    if "static.lat" in arrays:
        coords = {"lat": arrays["static.lat"], "lon": arrays["static.lon"]}
        fields = {
            name: (("lat", "lon"), arrays[f"static.{name}"], attrs)
            for name, attrs in description["static_fields"].items()
        }
        static = xr.Dataset(fields, coords)
    if description.get("has_mask"):
        coords = {"lat": arrays["mask.lat"], "lon": arrays["mask.lon"]}
        mask = xr.DataArray(arrays["mask.mask"], coords, ("lat", "lon"), name="mask")
    return StackedSRCNN(
        stages, description["units"], description["variable"], static, mask, description.get("training", {})
    )
