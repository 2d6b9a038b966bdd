"""What is known about a model, in words: a few lines of text, tables in a notebook, a model card in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xdeepsd.grids.axes import spacing
from xdeepsd.models import html
from xdeepsd.models.srcnn import HEADS
from xdeepsd.models.static import COARSE_PRODUCT, REGRESSION

if TYPE_CHECKING:
    from xdeepsd.models.stack import StackedSRCNN

STAGE_COLUMNS = ("stage", "network", "trained on", "error")


def level_grids(model: StackedSRCNN) -> list[dict[str, Any]]:
    """Shape, first centre and step of every level, coarsest first, for humans to read."""
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


def title(model: StackedSRCNN) -> str:
    """Factors, variable and units."""
    factors = " x ".join(map(str, model.factors))
    return f"StackedSRCNN of factor {factors} = {model.scale}, {model.variable or model.kind.name} in {model.units}"


def facts(model: StackedSRCNN) -> dict[str, str]:
    """Grids, input and static fields of the whole stack. Reads no maps."""
    found = {}
    grids = level_grids(model)
    for name, grid in (("coarse", grids[0]), ("fine", grids[-1])) if grids else ():
        ends = {dim: (axis["first"], axis["first"] + axis["step"] * (axis["size"] - 1)) for dim, axis in grid.items()}
        spans = (f"{grid[dim]['size']} {dim} from {first:.6g} to {last:.6g}" for dim, (first, last) in ends.items())
        found[f"{name} grid"] = ", ".join(spans)
    if COARSE_PRODUCT in model.training:
        found["input"] = f"an independent product, {model.training[COARSE_PRODUCT]}"
    mask = "no mask" if model.mask is None else "a mask of where values are wanted"
    fields = [*model.static_names, *[REGRESSION] * bool(model.learned_names)]
    return found | {"static fields": f"{', '.join(fields) or 'none'}; {mask}"}


def stage_facts(model: StackedSRCNN) -> Iterator[tuple[str, str, str, str]]:
    """Of each stage: its number, its network, the days it was trained on and its error, "" where unknown."""
    for i, (stage, summary) in enumerate(zip(model.stages, _summaries(model), strict=True)):
        config = stage.config
        words = [
            "-".join(map(str, config.kernels)) + " kernels",
            "-".join(map(str, (*config.channels, HEADS[config.head]))) + " channels",
        ]
        words += ["residual"] * config.residual + ([stage.transform] if stage.transform else [])
        words += [f"coarse means kept ({config.conserve})"] if config.conserve else []
        words += [f"{config.noise} channels of noise"] if config.noise else []
        words += ["Bernoulli-gamma distribution"] if config.head == "bernoulli_gamma" else []
        days = error = ""
        if "first_day" in summary:
            days = f"{summary['days']['train']} training days, {summary['first_day']} to {summary['last_day']}"
        if "rmse" in summary:
            error = f"validation RMSE {summary['rmse']:.4g} ({summary['rmse_interpolation']:.4g} by interpolation)"
        yield f"stage {i}", ", ".join(words), days, error


def _summaries(model: StackedSRCNN) -> list[Mapping[str, Any]]:
    """What each stage's training left; nothing for stages of unknown origin."""
    known: Sequence[Mapping[str, Any]] = tuple(model.training.get("stages", ()))
    return [*known, *[{}] * len(model.stages)][: len(model.stages)]


def as_text(model: StackedSRCNN) -> str:
    """A few lines, for ``repr``."""
    lines = [title(model), *(f"  {name}: {fact}" for name, fact in facts(model).items())]
    lines += [f"  {name}: {', '.join(filter(None, words))}" for name, *words in stage_facts(model)]
    return "\n".join(lines)


def as_html(model: StackedSRCNN) -> str:
    """Two small tables, for a notebook."""
    return html.heading(title(model)) + html.table(facts(model).items()) + html.table(stage_facts(model), STAGE_COLUMNS)
