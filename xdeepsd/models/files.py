"""A model on disk: ``model.safetensors`` and a ``model.json`` that describes it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
import xarray as xr

from xdeepsd._version import __version__
from xdeepsd.models import hub
from xdeepsd.models.card import level_grids
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig
from xdeepsd.models.stack import StackedSRCNN, describe, weights
from xdeepsd.models.stage import Stage
from xdeepsd.models.variable import PRECIPITATION, VARIABLES
from xdeepsd.stores.whole import partial_of, write_whole

logger = logging.getLogger(__name__)

# Increase it when an older xdeepsd can no longer read the files. Format 1 had no checksum of the description.
FORMAT = 2
_JSON, _TENSORS, _NEW_TENSORS = "model.json", "model.safetensors", "model.safetensors.new"
# A model that comes with the package, made by ci/demo_model.py.
DEMO_NAME = "demo"
DEMO = Path(__file__).with_name("demo_model")


def _arrays(model: StackedSRCNN) -> dict[str, np.ndarray]:
    arrays = weights(model)
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


def _checksum(description: Mapping[str, Any]) -> str:
    """A digest of what ``model.json`` says, its own checksum apart, however the JSON is laid out."""
    said = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _static_attrs(model: StackedSRCNN) -> dict[str, dict[str, Any]]:
    fields = {} if model.static is None else model.static.data_vars
    return {str(name): dict(variable.attrs) for name, variable in fields.items()}


def check_model_folder(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise FileExistsError if `save_model` would refuse to write: before training rather than after it."""
    path = Path(path)
    names = {file.name for file in path.iterdir()} if path.is_dir() else {""}
    begun = all(name == _NEW_TENSORS or partial_of(name) in (_NEW_TENSORS, _JSON) for name in names)
    if not path.exists() or begun:  # empty, or left by a first call that was interrupted
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists. Type save_model(model, path, overwrite=True) to replace it.")
    try:
        links = [name for name in (_JSON, _TENSORS) if (path / name).is_symlink()]
        ours = not links and "tensors_sha256" in json.loads((path / _JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{path} exists, but is not a model of xdeepsd. It is left alone: type another path.")


def save_model(model: StackedSRCNN, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a model to the folder ``path``: ``model.safetensors`` and a ``model.json`` that describes it.

    Raises FileExistsError if ``path`` exists and ``overwrite`` is False, or if it is anything but a model. Only
    these two files of an existing model are replaced; whenever saving is interrupted, either the old or the new model
    is complete. Lazy static fields are computed.

    Examples
    --------
    >>> import xdeepsd
    >>> model = xdeepsd.load_model("demo")
    >>> xdeepsd.save_model(model, "my_model")
    >>> xdeepsd.load_model("my_model").fingerprint() == model.fingerprint()
    True
    """
    path = Path(path)
    check_model_folder(path, overwrite)
    tensors = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in _arrays(model).items()})
    description = {
        "format": FORMAT,
        "xdeepsd_version": __version__,
        "kind": model.kind.name,
        **describe(model),
        "grids": level_grids(model),
        "has_mask": model.mask is not None,
        "static_fields": _static_attrs(model),
        "training": dict(model.training),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    description = json.loads(json.dumps(description, default=str))  # as it will be read, keys as text
    text = json.dumps(description | {"sha256": _checksum(description)}, indent=2)
    path.mkdir(parents=True, exist_ok=True)
    if (path / _JSON).exists():
        logger.info("The model at %s is replaced.", path)
    # First write the new tensors beside the old ones; then the description, which from then on refers to the new ones;
    # then rename the new tensors over the old ones.
    write_whole(path / _NEW_TENSORS, tensors)
    write_whole(path / _JSON, f"{text}\n".encode())
    (path / _NEW_TENSORS).replace(path / _TENSORS)


def load_model(path: str | os.PathLike[str], *, sha256: str | None = None) -> StackedSRCNN:
    """Read a model written by `save_model`: from a folder, from an address, or "demo", which comes with xdeepsd.

    The demo model was trained on two years of `xdeepsd.make_climate` and downscales those maps by 8. A model of yours
    in a folder named ``demo`` comes first: "demo" is then that folder, as ``Path("demo")`` and "./demo" always are. The
    log says which of the two is loaded.

    An address, ``https://HOST/FOLDER``, ``hf://OWNER/NAME@REVISION/FOLDER`` (Hugging Face) or
    ``doi:10.5281/zenodo.NUMBER`` (a record on Zenodo, figshare or a Dataverse), holds the two files of a model;
    ``sha256`` is that of its ``model.json``, which pins the other file too. What was fetched stays in the user's cache
    (``pooch.os_cache("xdeepsd")``) and needs no connection again. Addresses need the extra ``hub``.

    Raises FileNotFoundError if the folder or one of its two files is missing, and ValueError if a file is truncated or
    changed, or comes from a newer version of xdeepsd. For an address also ValueError if a file is not the pinned one,
    and OSError if it cannot be fetched; neither leaves anything behind.

    Examples
    --------
    >>> import xdeepsd
    >>> model = xdeepsd.load_model("demo")
    >>> model.scale, model.units
    (8, 'mm day-1')
    """
    if isinstance(path, str) and path.startswith(hub.SCHEMES):
        path = hub.fetch(path, sha256)
    elif sha256 is not None:
        raise ValueError(f"{path} is a folder, but sha256 is given. Needed: sha256 for addresses only.")
    path = _demo_or_folder() if isinstance(path, str) and path == DEMO_NAME else Path(path)
    if (inside := len(model_folders(path))) and not is_model(path):
        raise FileNotFoundError(f"{path} holds {inside} models, an ensemble. Type xdeepsd.load_models(path).")
    new = path / _NEW_TENSORS  # left if `save_model` was interrupted, before or after it wrote the description
    tensors = next((file for file in (path / _TENSORS, new) if file.exists()), path / _TENSORS)
    for file in (path, path / _JSON, tensors):
        if not file.exists():
            raise FileNotFoundError(
                f"No model at {path}: {file.name} is missing. Needed: a folder with {_JSON} and {_TENSORS}, "
                "as xdeepsd.save_model(model, path) writes it."
            )
    again = "Copy the model again, or save it again with xdeepsd.save_model(model, path)."
    try:
        description = json.loads((path / _JSON).read_text(encoding="utf-8"))
        found = int(description["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / _JSON} is truncated or not a model's description ({error}). {again}") from error
    if found > FORMAT:
        raise ValueError(
            f"{path} has format {found}, written by a newer xdeepsd {description.get('xdeepsd_version')}; this "
            f"xdeepsd {__version__} reads up to format {FORMAT}. Type pip install -U xdeepsd."
        )
    if found < 1 or (found > 1 and description.get("sha256") != _checksum(description)):
        raise ValueError(f"{path / _JSON} is changed: its checksum does not match what it says. {again}")
    content, wanted = tensors.read_bytes(), description.get("tensors_sha256")
    if hashlib.sha256(content).hexdigest() != wanted and new.exists():
        content = new.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError(
            f"{path / _TENSORS} is truncated or changed ({len(content)} bytes): its checksum does not match "
            f"{_JSON}. {again}"
        )
    try:
        arrays = safetensors.numpy.load(content)
        return _build(description, arrays)
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is not a complete model: {error}. {again}") from error


def _demo_or_folder() -> Path:
    """Where the model named "demo" is. A folder counts that holds any file of a model, for one that is not whole."""
    folder = Path(DEMO_NAME)
    if any((folder / name).exists() for name in (_JSON, _TENSORS, _NEW_TENSORS)):
        logger.info("Loading your model in the folder %s, not the demo model of xdeepsd.", folder.absolute())
        return folder
    logger.info("Loading the demo model that comes with xdeepsd.")
    return DEMO


def load_models(path: str | os.PathLike[str]) -> list[StackedSRCNN]:
    """Read an ensemble: all models in the folders inside ``path``, such as ``seed_0``, ``seed_1``, ....

    In the order of their names, numbers by value; other folders and files are passed over. Raises FileNotFoundError if
    there is none, and errors as `load_model` for a model that cannot be read.

    Examples
    --------
    >>> import xdeepsd
    >>> model = xdeepsd.load_model("demo")
    >>> for seed in range(2):
    ...     xdeepsd.save_model(model, f"seeds/seed_{seed}")
    >>> len(xdeepsd.load_models("seeds"))
    2
    """
    folders = model_folders(path)
    if not folders:
        raise FileNotFoundError(
            f"No models in {path}. Needed: a folder with a folder for each model, as xdeepsd train --seeds 5 writes "
            "it. Type [xdeepsd.load_model('FOLDER'), ...] for models that lie elsewhere."
        )
    return [load_model(folder) for folder in folders]


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether the folder ``path`` itself holds a model."""
    return (Path(path) / _JSON).exists()


def model_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The folders inside ``path`` that hold a model, in the order of `load_models`; none if ``path`` is a model."""
    found = [] if is_model(path) else [file.parent for file in Path(path).glob(f"*/{_JSON}")]
    return sorted(found, key=lambda folder: [(int(d or 0), t) for d, t in re.findall(r"(\d+)|(\D+)", folder.name)])


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
        stages, description["units"], description["variable"], static, mask, description.get("training", {}),
        VARIABLES[description.get("kind", PRECIPITATION.name)],
    )  # fmt: skip
