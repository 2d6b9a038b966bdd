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

UNKNOWN = "not recorded"
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


def as_markdown(model: StackedSRCNN) -> str:
    """The model card, see `StackedSRCNN.card`."""
    splits = [
        (name, summary.get("days", {}))
        for (name, *_), summary in zip(stage_facts(model), _summaries(model), strict=True)
    ]
    numbers = {
        f"days, {name}": ", ".join(f"{number} {part}" for part, number in days.items()) for name, days in splits if days
    }
    noted = {
        str(name).replace("_", " "): str(fact)
        for name, fact in model.training.items()
        if isinstance(fact, str | int | float) and name != "errors_on"
    }
    unknown = dict.fromkeys(("data", "licence", "day boundary"), UNKNOWN)
    stages = [tuple(cell or UNKNOWN for cell in row) for row in stage_facts(model)]
    parts = [
        f"# Model card: {_escaped(title(model))}",
        _table([("", ""), *facts(model).items(), ("fingerprint", model.fingerprint())]),
        "## Stages",
        _table([STAGE_COLUMNS, *stages]),
        "## Data",
        _table([("", ""), *(unknown | noted | numbers).items()]),
        "## Errors",
        *_errors(model),
        "## Limits",
        "\n".join(f"* {limit}" for limit in limits(model)),
    ]
    return "\n\n".join(parts) + "\n"


def _errors(model: StackedSRCNN) -> Iterator[str]:
    """Paragraphs and a table: what is known of the errors of the whole stack."""
    errors = model.training.get("errors")
    if not errors:
        yield f"Of the stack: {UNKNOWN}."
    else:
        on = model.training.get("errors_on", UNKNOWN)
        yield f"Of the stack, in {_escaped(model.units)}. Days: {_escaped(str(on))}."
        columns = list(next(iter(errors.values())))
        rows = [(name, *(f"{float(row[column]):.3f}" for column in columns)) for name, row in errors.items()]
        yield _table([("", *columns), *rows])
    yield "Those of the stages (above) are for observed input of each stage, one by one, on the validation days."


def limits(model: StackedSRCNN) -> Iterator[str]:
    """What the model cannot do, as far as it follows from what it is."""
    if model.learned_names:
        yield "Serves its own grid, or a part of it: the regression was fitted at each cell."
    elif model.static is not None:
        yield "Trained on this grid; other regions need their static fields and a test of their own."
    if not all("first_day" in summary for summary in _summaries(model)):
        yield f"Training days of some stages: {UNKNOWN}."
    for (name, *_), summary in zip(stage_facts(model), _summaries(model), strict=True):
        if "rmse" not in summary:
            yield f"The error of {name}: {UNKNOWN}."
        elif not summary["rmse"] < summary["rmse_interpolation"]:
            yield f"**{name.capitalize()} does not beat interpolation** on its validation days."
    if all(stage.config.conserve for stage in model.stages) and COARSE_PRODUCT not in model.training:
        yield "Coarse means are kept, so a bias of the coarse input goes through to the output."
    if not model.noise and all(stage.config.head == "value" for stage in model.stages):
        yield "Gives one field, near the mean of what is possible: extremes are damped, its uncertainty is not known."
    yield "Learned from the days named above: a climate unlike theirs is extrapolation."
    yield "Days of the input have to end at the hour at which the days of the training data end."


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _escaped(text: str) -> str:
    """``text`` on one line, without what Markdown would take for a cell's end or for HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
