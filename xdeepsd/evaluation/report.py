"""The report on a trained model: one HTML page with tables and pictures, which needs nothing beside it."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from xdeepsd._extras import require
from xdeepsd._version import __version__
from xdeepsd.evaluation import plot
from xdeepsd.evaluation.judged import Judged, judged_days, measured, number, picture
from xdeepsd.evaluation.sweep import summarize
from xdeepsd.levels.coarse import product_of
from xdeepsd.levels.days import name_days
from xdeepsd.models import card
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.training.config import TrainConfig

MADE_BY = '<meta name="generator" content="xdeepsd report">'
_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_PACKAGES = ("torch", "numpy", "xarray", "dask", "zarr", "scipy", "scores", "matplotlib")


def make_report(
    levels: Sequence[xr.Dataset],
    models: Sequence[StackedSRCNN],
    configs: Sequence[TrainConfig],
    *,
    metrics: pd.DataFrame | None = None,
    sweep: pd.DataFrame | None = None,
    source: Mapping[str, str] | None = None,
) -> str:
    """Judge a model on its test days and put it all on one HTML page; computes.

    Parameters
    ----------
    levels
        The resolution ladder that the model was trained on, coarsest first, lazy.
    models
        The model, or those of an ensemble, whose mean and members are judged.
    configs
        `TrainConfig` of each stage; the last one says which days are for what.
    metrics
        As in `xdeepsd.plot.training`.
    sweep
        The table of `xdeepsd.run_sweep`, if there was one.
    source
        Facts about where all this came from, by name.

    Returns
    -------
    HTML, with every picture inside. The judged days are read and downscaled twice (once where the prediction takes less
    than 256 MiB), in chunks along time; nothing else depends on their number.

    Raises
    ------
    ImportError
        A package of the extra "report" is missing.
    ValueError
        As `judged_days`; no observed cell on these days.
    """
    require("report", "The report")
    import jinja2

    judged = judged_days(levels, models, configs[-1])
    content = measured(levels, models, judged)
    if metrics is not None and len(metrics):
        content["pictures"]["training"] = picture(
            "Training", plot.training(metrics), "RMSE on the validation days against training steps, one panel a "
            "stage, beside that of interpolation.", "The error on the validation days during the training. The circle "
            "is the step that was kept. Each stage gets the observed level below it, not what the one before it gives.",
            wide=True)  # fmt: skip
    if sweep is not None:
        chosen = float(sweep.loc[sweep["chosen"], "alpha"].iloc[0])
        content["pictures"]["sweep"] = picture(
            "Error against alpha", plot.sweep(summarize(sweep), chosen), "RMSE and MAE relative to alpha 0, by bins of "
            "the observed value, against alpha.", f"The sweep of DenseLoss on the validation days, on which alpha = "
            f"{chosen:g} was chosen.", wide=True)  # fmt: skip
    content |= {
        "title": f"Report: {card.title(models[0])}",
        "judged": judged,
        "data": _about_data(levels, models[0], judged),
        "stages": [dict(zip(("stage", "network"), row[:2], strict=True)) | dict(summary)
                   for row, summary in zip(card.stage_facts(models[0]), _summaries(models[0]), strict=True)],
        "chosen": list(_chosen(models, configs, judged, sweep)),
        "settings": _settings(configs),
        "limits": [limit.replace("**", "") for limit in card.limits(models[0])],
        "source": {**(source or {}), "model": ", ".join(f"fingerprint {model.fingerprint()}" for model in models)},
        "versions": _versions(),
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "made_by": MADE_BY,
        "version": __version__,
        "nan": float("nan"),
    }  # fmt: skip
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    environment.filters["number"] = number
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(**content)


def _about_data(levels: Sequence[xr.Dataset], model: StackedSRCNN, judged: Judged) -> dict[str, str]:
    fine, rain = levels[-1], levels[-1]["precipitation"]
    index = fine.indexes["time"]
    days = {
        f"{'training' if name == 'train' else name} days": f"{len(part)}: {name_days(index[part])}"
        if len(part)
        else "none"
        for name, part in judged.split._asdict().items()
    }
    facts = {name: fact for name, fact in card.facts(model).items() if name != "input"}
    cells = f"{fine.sizes['lat']} x {fine.sizes['lon']}"
    if "mask" in fine:
        cells += f", of which {int(fine['mask'].sum()):,} are wanted (the mask)"
    title = {"title": str(fine.attrs["title"])} if fine.attrs.get("title") else {}
    product = product_of(levels[0])
    given = {"coarse input": f"an independent product, {product}"} if product else {
        "coarse input": "means of the observations, weighted by area"}  # fmt: skip
    return {
        **title, "variable": f"{model.variable or model.kind.name}, {rain.attrs.get('units', '')}", **given, **facts,
        "fine cells": cells, "levels": " to ".join(f"{level.sizes['lat']} x {level.sizes['lon']}" for level in levels),
        **days,
    }  # fmt: skip


def _summaries(model: StackedSRCNN) -> list[Mapping[str, Any]]:
    known = list(model.training.get("stages", ()))
    return [*known, *[{}] * len(model.stages)][: len(model.stages)]


def _chosen(
    models: Sequence[StackedSRCNN], configs: Sequence[TrainConfig], judged: Judged, sweep: pd.DataFrame | None
) -> Iterable[str]:
    """What was chosen on which days, in sentences."""
    config, split = configs[-1], judged.split
    yield f"Weights, normalisers and climatology: on the {len(split.train)} training days."
    if len(split.validation):
        used = min(len(split.validation), config.validation_days)
        by = "RMSE" if config.loss in ("mse", "tweedie") else "loss"
        yield (
            f"The step that is kept of each stage: the one with the lowest {by} on {used} of the "
            f"{len(split.validation)} validation days, spread evenly."
        )
    else:
        yield "There are no validation days: the last step of each stage is kept."
    if models[0].noise:
        yield "The strength of the noise: on the validation days."
    if sweep is not None:
        yield "Alpha: on the validation days, by the sweep below."
    if judged.part == "test":
        yield (
            f"Nothing on the {len(split.test)} test days: training does not read them. The errors on this page are "
            "theirs."
        )
    else:
        yield (
            "There are no test days. The errors on this page are those of the validation days, on which the step was "
            "chosen: they are too small."
        )


def _settings(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """The configuration of each stage, or of all where they are alike: what is not the default, and the rest."""
    unique = [configs[0]] if all(config == configs[0] for config in configs) else list(configs)
    tables = []
    for k, config in enumerate(unique):
        rows = {f.name: (getattr(config, f.name), f.default) for f in dataclasses.fields(config)}
        tables.append({
            "title": "all stages" if len(unique) == 1 else f"stage {k}",
            "changed": {name: repr(value) for name, (value, default) in rows.items() if value != default},
            "default": {name: repr(value) for name, (value, default) in rows.items() if value == default},
        })  # fmt: skip
    return tables


def _versions() -> dict[str, str]:
    found = {
        "xdeepsd": __version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
