"""One TOML file that configures a whole training."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import TypeAdapter, ValidationError

from xdeepsd.cli.inputs import open_file
from xdeepsd.levels.coarse import in_chunks, with_coarse
from xdeepsd.levels.disk import open_levels
from xdeepsd.levels.pairs import factor_between
from xdeepsd.stores.remote import is_url
from xdeepsd.training.config import TrainConfig

PRESETS = ("paper",)


@dataclass(frozen=True)
class Paths:
    """``[paths]``: relative paths are taken from the folder of the TOML file."""

    levels: str | Path = Path("levels.zarr")
    """The resolution ladder that training reads (``xdeepsd prepare``), or the URL of a copy of it."""
    checkpoints: Path = Path("checkpoints")
    model: Path = Path("model")
    sweep: Path = Path("sweep")


@dataclass(frozen=True)
class Data:
    """``[data]``: what the ladder holds, and how much of it is used."""

    years: tuple[int, int] | None = None
    """First and last year, both included. None: all days of the levels."""
    factors: tuple[int, ...] | None = None
    """Factor of each stage, the coarsest first; must be those of the levels. None: whatever they are. With ``coarse`` a
    1 may come first: a stage that corrects the product on its own grid."""
    coarse: str | Path | None = None
    """NetCDF file or Zarr store of an independent coarse product, which the first stage learns from."""
    coarse_variable: str | None = None
    """Name of its precipitation."""


@dataclass(frozen=True)
class Config:
    """A whole TOML file, validated.

    ``training`` is the configuration of every stage; ``stages`` are those of single stages if the file has
    ``[[stages]]``, otherwise None.
    """

    paths: Paths
    data: Data
    training: TrainConfig
    stages: tuple[TrainConfig, ...] | None = None

    def stage_configs(self, count: int, stage: int | None = None) -> list[TrainConfig]:
        """One `TrainConfig` for each of ``count`` stages.

        Raises ValueError if the file describes a different number of stages, or there is no such ``stage``.
        """
        if stage is not None and stage >= count:
            raise ValueError(f"There is no stage {stage}: the levels give stages 0 to {count - 1}.")
        if self.stages is None:
            return [self.training] * count
        if len(self.stages) != count:
            raise ValueError(
                f"The file has {len(self.stages)} [[stages]], but the levels at {self.paths.levels} give {count}. "
                "Needed: one for each, coarsest first. Leave [[stages]] out to train all stages alike."
            )
        return list(self.stages)


# The old files' names of our keys, for the message about an unknown key.
_OLD_NAMES = {
    "layer_sizes": "channels", "kernel_sizes": "kernels", "training_iters": "steps", "batch_size": "batch",
    "training_input_size": "patch", "save_step": "checkpoint_every", "test_step": "validate_every",
    "weighted_loss": "loss", "aux_depth": "static", "lr": "learning_rate", "min_year": "years", "max_year": "years",
    "max_train_year": "train", "upscale_factor": "factors", "scratch": "levels",
}  # fmt: skip


def load_config(path: str | Path) -> Config:
    """Read and check a TOML file (docs/howto/config.md lists all keys).

    ``[training]`` takes the fields of `TrainConfig`; any left out get its defaults, or those of ``preset = "paper"``.
    It is one flat table, like `TrainConfig`: a table of ``[[stages]]`` may repeat any of its fields, and a field has
    the same name in messages and in Python.

    Raises
    ------
    ValueError
        The file is not TOML, has an unknown key (the nearest known key is suggested) or a value that makes no sense.
    FileNotFoundError
        The file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Needed: a TOML file such as docs/howto/config.md shows. Type xdeepsd config "
            "from-ini config.ini to make one from an old config.ini."
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = " An old config.ini? Type xdeepsd config from-ini " + str(path) if path.suffix == ".ini" else ""
        raise ValueError(f"{path} is not valid TOML: {error}.{hint}") from error
    return parse_config(content, path)


def parse_config(content: Mapping[str, Any], path: Path = Path("config.toml")) -> Config:
    """Check the content of a TOML file; ``path`` is named in errors, and relative paths are taken from its folder."""
    _known(content, ("preset", "paths", "data", "training", "stages"), f"{path}")
    preset = content.get("preset")
    if preset not in (None, *PRESETS):
        raise ValueError(
            f"{path}: preset is {preset!r}. Needed: {' or '.join(map(repr, PRESETS))}. Leave it out for the "
            "recommended settings."
        )
    for name, kind in (("paths", dict), ("data", dict), ("training", dict), ("stages", list)):
        if not isinstance(content.get(name, kind()), kind):
            wanted = "[[stages]]" if name == "stages" else f"[{name}]"
            raise ValueError(f"{path}: {name} is {content[name]!r}. Needed: a table, {wanted}.")
    paths = _checked(Paths, content.get("paths", {}), f"{path}, [paths]")
    folder = path.absolute().parent  # a worker may run elsewhere
    absolute = Paths(_from(folder, paths.levels), **{k: folder / v for k, v in vars(paths).items() if k != "levels"})
    data = _checked(Data, content.get("data", {}), f"{path}, [data]")
    if data.coarse is not None:
        data = dataclasses.replace(data, coarse=_from(folder, data.coarse))
    if data.years is not None and data.years[0] > data.years[1]:
        raise ValueError(f"{path}, [data]: years is {list(data.years)}. Needed: the first and the last year.")
    training = _training(content.get("training", {}), preset, f"{path}, [training]")
    stages: list[TrainConfig] = []
    if content.get("stages"):
        for i, table in enumerate(content["stages"]):
            where = f"{path}, [[stages]] number {i + 1}"
            if not isinstance(table, dict):
                raise ValueError(f"{where} is {table!r}. Needed: a table.")
            stages.append(_training({**content.get("training", {}), **table}, preset, where))
        if data.factors is not None and len(data.factors) != len(stages):
            raise ValueError(f"{path}: {len(stages)} [[stages]], but factors {list(data.factors)}. Needed: as many.")
    return Config(absolute, data, training, tuple(stages) or None)


def _from(folder: Path, place: str | Path) -> str | Path:
    """A path of a TOML file, taken from the file's folder; a URL as it is."""
    return place if is_url(place) else folder / place


def _training(given: Mapping[str, Any], preset: str | None, where: str) -> TrainConfig:
    """`TrainConfig`, or its preset, with a table's values: pydantic checks the types, the dataclass the meaning."""
    start = TrainConfig() if preset is None else getattr(TrainConfig, preset)()
    plain = {name: _plain(value) for name, value in given.items()}
    return _checked(TrainConfig, plain, where, vars(start))


def _plain(value: Any) -> Any:
    """TOML dates as text, as `TrainConfig` takes them; "none" as None, which TOML cannot express."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value == "none":
        return None
    return value.isoformat()[:10] if isinstance(value, datetime.date) else value


def _known(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        best = _OLD_NAMES[key] if _OLD_NAMES.get(key) in known else near[0] if near else None
        hint = f" Did you mean {best!r}?" if best else ""
        raise ValueError(f"{where}: unknown key {key!r}.{hint} Known: {', '.join(known)}.")


def _checked(kind: type[Any], given: Mapping[str, Any], where: str, start: Mapping[str, Any] | None = None) -> Any:
    """A dataclass with the values ``given`` in a table, and those of ``start`` for the rest."""
    _known(given, tuple(field.name for field in dataclasses.fields(kind)), where)
    try:
        return TypeAdapter(kind).validate_python({**(start or {}), **given})
    except ValidationError as error:
        raise ValueError(_message(error, where)) from error


def _message(error: ValidationError, where: str) -> str:
    """What pydantic found, with one line per key."""
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        key = str(item["loc"][0]) if item["loc"] else ""
        text = item["msg"].removeprefix("Value error, ")
        found.setdefault(key, []).append(text[0].lower() + text[1:] if key else text)
        values.setdefault(key, item["input"])
    lines = [
        f"{where}: {key} is {values[key]!r}; {' or '.join(dict.fromkeys(texts))}." if key else f"{where}: {texts[0]}"
        for key, texts in found.items()
    ]
    return "\n".join(lines)


def read_levels(config: Config) -> list[xr.Dataset]:
    """The levels that a file names, lazily, cut to its years, coarsest first; with its coarse product, if any.

    Raises ValueError if there are no levels, if their factors differ from the file's, if no day is left, or if the
    product does not fit (see `with_coarse`).
    """
    levels = open_levels(config.paths.levels)
    if config.data.coarse is not None:
        if config.data.factors is not None and config.data.factors[0] == 1:
            levels = [levels[0], *levels]
        coarse = in_chunks(open_file(str(config.data.coarse)), config.data.coarse_variable)
        levels = with_coarse(levels, coarse, config.data.coarse_variable)
    factors = tuple(factor_between(coarse, fine) for coarse, fine in pairwise(levels))
    if config.data.factors is not None and config.data.factors != factors:
        raise ValueError(
            f"[data] factors is {list(config.data.factors)}, but the levels at {config.paths.levels} have "
            f"{list(factors)}. Needed: the same. Correct the file, or make the levels again with xdeepsd prepare."
        )
    if config.data.years is None:
        return levels
    first, last = config.data.years
    cut = [level.sel(time=slice(f"{first:04d}", f"{last:04d}")) for level in levels]
    if not cut[-1].sizes["time"]:
        days = levels[-1]["time"].values
        raise ValueError(
            f"[data] years is {[first, last]}, but the levels at {config.paths.levels} go from {str(days[0])[:10]} to "
            f"{str(days[-1])[:10]}. Needed: years in that period."
        )
    return cut
