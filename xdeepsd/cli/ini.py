"""Convert a config.ini of deepsd or DenseLoss to a TOML file, with notes on what was repaired and what is not kept."""

from __future__ import annotations

import configparser
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdeepsd.cli.toml import parse_config

_OLD_KEYS = {
    "Paths": ("elevation", "scratch", "prism"),
    "DataOptions": ("variable", "min_year", "max_year", "max_train_year"),
    "SRCNN": (
        "scratch", "layer_sizes", "kernel_sizes", "learning_rate", "training_iters", "batch_size",
        "training_input_size", "training_lr_input_size", "training_input_depth", "aux_depth", "save_step", "test_step",
        "dropout_prob", "weighted_loss", "alpha",
    ),
    "Model": ("data_dir", "model_name"),
    "DeepSD": ("model_name", "low_resolution", "high_resolution", "upscale_factor"),
}  # fmt: skip


def convert_ini(path: str | Path) -> tuple[str, list[str]]:
    """Convert an old config.ini (deepsd, DenseLoss) to TOML, with notes on what was repaired, added or not kept.

    A repeated section and a section header without its ``[`` (deepsd-large.ini has both) are repaired: the models are
    taken in the order of the file.

    Returns
    -------
    The text of the TOML file (it passes `parse_config`), and the notes, one sentence each.

    Raises
    ------
    ValueError
        The file is not such a config.ini, or a value in it cannot be used.
    FileNotFoundError
        The file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Needed: an old config.ini of deepsd or DenseLoss.")
    notes: list[str] = []
    sections = _read_ini(path, notes)
    known = {name for name, _ in sections}
    if "SRCNN" not in known or "DataOptions" not in known:
        raise ValueError(
            f"{path} has the sections {sorted(known)}. Needed: a config.ini of deepsd or DenseLoss, with [DataOptions] "
            "and [SRCNN]."
        )
    old = _Old(path, dict(sections), notes)
    models = [values for name, values in sections if name.startswith("Model")]

    scratch = old.text("Paths", "scratch", old.text("SRCNN", "scratch", "scratch")).rstrip("/")
    own = old.text("SRCNN", "scratch", scratch).rstrip("/")
    if own != scratch:
        notes.append(f"[SRCNN] scratch {own!r} is not kept: everything goes to [Paths] scratch {scratch!r}.")
    name = old.text("DeepSD", "model_name", "model")
    paths = {
        "levels": f"{scratch}/levels.zarr",
        "checkpoints": f"{scratch}/checkpoints/{name}",
        "model": f"{scratch}/{name}",
        "sweep": f"{scratch}/sweep",
    }
    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    data["years"] = _years(old, training)
    data["factors"] = factors = _factors(old, models)
    _network(old, training)
    levels = (
        f"xdeepsd prepare {old.text('Paths', 'prism', 'PRISM')} --elevation {old.text('Paths', 'elevation', 'FILE')} "
        f"--variable {old.text('DataOptions', 'variable', 'ppt')} --factors {','.join(map(str, factors))} "
        f"--out {paths['levels']}"
    )
    text = _toml(path.name, levels, paths, data, training)
    parse_config(tomllib.loads(text), path.with_suffix(".toml"))
    return text, notes


def _read_ini(path: Path, notes: list[str]) -> list[tuple[str, dict[str, str]]]:
    """Sections in the order of the file, repaired so that configparser accepts them."""
    lines, names = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error}). Needed: a config.ini.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.fullmatch(r"\s*(\[?)\s*([^\[\]=:#;]+?)\s*(\]?)\s*", line)
        whole = header and header[1] and header[3]
        if header and (whole or header[1] or header[3]):
            if not whole:
                notes.append(f"Line {number}, {line.strip()!r}, is a broken section header: read as [{header[2]}].")
            elif header[2] in names:
                notes.append(f"Line {number}: another section [{header[2]}].")
            names.append(header[2])
            line = f"[{len(names)}]"
        lines.append(line)
    reader = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        reader.read_string("\n".join(lines))
    except configparser.Error as error:
        raise ValueError(f"{path} is not a config.ini: {error}") from error
    sections: list[tuple[str, dict[str, str]]] = []
    for number, name in enumerate(names, start=1):
        values = dict(reader[str(number)])
        if name.startswith("Model"):
            sections.append((name, values))
            continue
        earlier = [held for other, held in sections if other == name]
        if earlier:
            notes.append(f"[{name}] appears twice: its keys are merged, and the later values are used.")
            earlier[0].update(values)
        else:
            sections.append((name, values))
    for name, values in sections:
        kind = "Model" if name.startswith("Model") else name
        for key, value in values.items():
            if key not in _OLD_KEYS.get(kind, ()):
                notes.append(f"[{name}] {key} = {value} is not kept: xdeepsd has no such setting.")
    doubled = sorted({n for n in names if n.startswith("Model") and names.count(n) > 1})
    if doubled:
        notes.append(
            f"The {sum(n.startswith('Model') for n in names)} models are kept, in the order of the file (an ordinary "
            f"reader of ini files rejects a repeated {', '.join(f'[{n}]' for n in doubled)} or keeps only the last)."
        )
    return sections


@dataclass(frozen=True)
class _Old:
    """Values of the old file by section and key."""

    path: Path
    sections: Mapping[str, Mapping[str, str]]
    notes: list[str]

    def text(self, section: str, key: str, otherwise: Any) -> Any:
        return self.sections.get(section, {}).get(key, otherwise)

    def number(self, section: str, key: str, otherwise: Any = None) -> Any:
        value = self.text(section, key, None)
        if value is None:
            return otherwise
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{self.path}: [{section}] {key} is {value!r}. Needed: a number.") from None
        return int(number) if number.is_integer() and "." not in value and "e" not in value.lower() else number

    def numbers(self, section: str, key: str) -> list[int] | None:
        value = self.text(section, key, None)
        if value is None:
            return None
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"{self.path}: [{section}] {key} is {value!r}. Needed: numbers, as in 9,1,5.") from None


def _years(old: _Old, training: dict[str, Any]) -> list[int]:
    first, last, split = (old.number("DataOptions", key) for key in ("min_year", "max_year", "max_train_year"))
    if None in (first, last, split) or not first <= split <= last:
        raise ValueError(
            f"{old.path}: [DataOptions] has min_year {first}, max_train_year {split}, max_year {last}. Needed: three "
            "years in this order."
        )
    years = split - first + 1
    if years >= 3:
        held = max(1, round(0.1 * years))
        training["train"] = [f"{first}/{split - held}"]
        training["validation"] = [f"{split - held + 1}/{split}"]
    else:
        training["train"] = [f"{first}-01/{split}-10"]
        training["validation"] = [f"{split}-11/{split}-12"]
    if split < last:
        training["test"] = [f"{split + 1}/{last}"]
    else:
        old.notes.append(f"There are no years after max_train_year {split}, so there are no test days.")
    years_text = f"the training years {first} to {split}" if first < split else f"the training year {first}"
    old.notes.append(
        "The old code had no validation days and monitored its test error while training: "
        f"{training['validation'][0]} is taken from {years_text} for validation."
    )
    return [first, last]


def _factors(old: _Old, models: Sequence[Mapping[str, str]]) -> list[int]:
    factor = old.number("DeepSD", "upscale_factor", 2)
    low, high = old.number("DeepSD", "low_resolution"), old.number("DeepSD", "high_resolution")
    if low is None or high is None or factor < 2 or low <= high:
        raise ValueError(
            f"{old.path}: [DeepSD] has low_resolution {low}, high_resolution {high}, upscale_factor {factor}. Needed: "
            "a lower and a higher resolution in km and a factor of 2 or more."
        )
    count = round(math.log(low / high, factor))
    if high * factor**count != low:
        raise ValueError(
            f"{old.path}: {low} km is not {high} km times a power of {factor}. Needed: whole stages of factor {factor}."
        )
    expected = [f"{high * factor ** (count - 1 - i):03d}_{high * factor ** (count - i):03d}" for i in range(count)]
    names = [str(model.get("model_name", f"stage {i}")) for i, model in enumerate(models)]
    if len(models) != count:
        old.notes.append(
            f"{low} km to {high} km in steps of {factor} are {count} stages, but {len(models)} models are listed: "
            f"{', '.join(names) or 'none'}. The stages follow from the resolutions; the models' names are not kept."
        )
    elif any(want not in name.replace("-", "_") for want, name in zip(expected, names, strict=True)):
        old.notes.append(f"The models {', '.join(names)} are not named after {', '.join(expected)}: check their order.")
    folders = [str(model["data_dir"]) for model in models if "data_dir" in model]
    if folders:
        old.notes.append(
            f"The folders of patch files ({', '.join(folders)}) are not kept: patches are cut from the levels while "
            "training. Make the levels with xdeepsd prepare."
        )
    old.notes.append(
        f"The resolutions of {low} and {high} km are kept only as the factors {[factor] * count}: the cell size is "
        "that of the levels."
    )
    if high % 4 == 0 and high > 4:
        old.notes.append(
            f"The finest level is {high} km: coarsen PRISM's 4 km by {high // 4} before making the levels "
            f"(xdeepsd.coarsen(fine, {high // 4}))."
        )
    return [factor] * count


def _network(old: _Old, training: dict[str, Any]) -> None:
    """``[SRCNN]``: architecture, loss and training loop."""
    notes = old.notes
    sizes, kernels = old.numbers("SRCNN", "layer_sizes"), old.numbers("SRCNN", "kernel_sizes")
    if sizes:
        if sizes[-1] != 1:
            raise ValueError(f"{old.path}: [SRCNN] layer_sizes is {sizes}. Needed: 1 as the last, for precipitation.")
        training["channels"] = sizes[:-1]
    if kernels:
        training["kernels"] = kernels
    depth = old.number("SRCNN", "aux_depth", 1)
    training["static"] = ["elevation"] if depth else []
    if depth > 1:
        notes.append(f"aux_depth {depth}: only elevation is kept. Add the other static fields to static.")
    if old.number("SRCNN", "training_input_depth", 1) != 1:
        notes.append("training_input_depth other than 1 is not kept: the input is precipitation only.")
    for key, field in (
        ("training_input_size", "patch"), ("batch_size", "batch"), ("training_iters", "steps"),
        ("learning_rate", "learning_rate"), ("save_step", "checkpoint_every"), ("test_step", "validate_every"),
    ):  # fmt: skip
        value = old.number("SRCNN", key)
        if value is not None:
            training[field] = value
    small, patch, factor = (
        old.number("SRCNN", "training_lr_input_size"), training.get("patch"), old.number("DeepSD", "upscale_factor", 2)
    )  # fmt: skip
    if small is not None and patch is not None:
        follows = "it is patch / factor" if small * factor == patch else "a coarse patch has no size of its own"
        notes.append(f"training_lr_input_size {small} is not kept: {follows}.")
    if old.number("SRCNN", "dropout_prob", 0) > 0:
        notes.append(f"dropout_prob {old.number('SRCNN', 'dropout_prob')} is not kept: xdeepsd has no dropout.")
    weighted = str(old.text("SRCNN", "weighted_loss", "false")).strip().lower() in ("true", "1", "yes", "on")
    training["loss"] = "denseloss" if weighted else "mse"
    alpha = old.number("SRCNN", "alpha")
    if weighted:
        training["alpha"] = float(alpha if alpha is not None else 1.0)
        if not training["alpha"]:
            notes.append("alpha 0 makes all weights 1, so DenseLoss is the MSE, as before.")
    elif alpha is not None:
        notes.append(f"alpha {alpha} is not kept: weighted_loss is off.")
    training["schedule"] = "exponential"
    notes.append(
        "The learning rate's decay (times 0.96 every 100,000 steps), the stride of 20 and the least share of land "
        "(half) were set in the old code, not in this file: here they are schedule, stride and min_land."
    )


def _toml(
    source: str, levels: str, paths: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]
) -> str:
    # Comments may not hold control characters, which a damaged file may.
    source, levels = (
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in t) for t in (source, levels)
    )
    lines = [f"# Converted from {source} by xdeepsd config from-ini. Paths are relative to this file.", ""]
    lines += ["# Make the levels first:", f"# {levels}", "", 'preset = "paper"', ""]
    for name, table in (("paths", paths), ("data", data), ("training", training)):
        # Strings, numbers and lists of them look the same in TOML and JSON, but for DEL and escaped surrogates.
        values = {k: json.dumps(v, ensure_ascii=False) for k, v in table.items() if v is not None}
        lines += [f"[{name}]", *(f"{k} = {v}".replace("\x7f", "\\u007f") for k, v in values.items()), ""]
    return "\n".join(lines)
