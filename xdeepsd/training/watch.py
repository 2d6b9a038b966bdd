"""Watch a training: progress bar, curve of the errors, TensorBoard events and the table of validations."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from xdeepsd._progress import Bar
from xdeepsd.training.checkpoints import METRICS, write_beside

_EVERY = 0.2  # seconds between updates of the bar


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write ``metrics.parquet``, one row per validation."""
    content = io.BytesIO()
    pd.DataFrame(history).to_parquet(content, index=False)
    write_beside(folder / METRICS, content.getvalue(), METRICS)


class Watch:
    """Shows the progress of a stage in training; to be used in a ``with`` statement.

    Parameters
    ----------
    index, first, steps, batch
        Number of the stage, first step, total number of steps, patches in a batch.
    bar
        Show a progress bar; in a notebook also the errors so far, as a curve.
    events
        Folder for TensorBoard events, or None.
    """

    def __init__(self, index: int, first: int, steps: int, batch: int, bar: bool, events: Path | None) -> None:
        self._batch, self._first, self._steps = batch, first, steps
        self._began = self._shown = time.perf_counter()
        self._errors = ""
        self._rows: list[dict[str, Any]] = []
        self._bar = Bar(f"stage {index}", first, steps) if bar else None
        self._events = _writer(events, first) if events is not None else None

    @property
    def wants_maps(self) -> bool:
        """Whether `validated` has any use for maps."""
        return self._events is not None

    def __enter__(self) -> Watch:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        if self._events is not None:
            self._events.close()

    def step(self, step: int, loss: float) -> None:
        """Call after each step; updates the bar now and then."""
        now = time.perf_counter()
        if self._bar is not None and now - self._shown > _EVERY:
            self._shown = now
            rate = (step - self._first) * self._batch / (now - self._began)
            self._bar.update(step, self._steps, f"loss {loss:.4f}{self._errors}, {rate:,.0f} patches/s")

    def validated(self, row: dict[str, Any], net: nn.Module, maps: np.ndarray | None) -> None:
        """Call after each validation with its row of the history, the network, and maps ``(3, lat, lon)`` to show."""
        if "rmse" in row:
            self._errors = f", RMSE {row['rmse']:.4g} (interpolation {row['rmse_interpolation']:.4g})"
        if self._bar is not None:
            self._rows.append(row)
            text = f"loss {row['loss']:.4f}{self._errors}"
            self._bar.update(row["step"], self._steps, text, curve(self._rows, self._steps))
        if self._events is None:
            return
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])
        for name, parameter in net.named_parameters():
            self._events.add_histogram(name, parameter.detach().cpu(), row["step"])
        if maps is not None:
            self._events.add_image("interpolation, model, truth", _side_by_side(maps), row["step"], dataformats="HW")


def curve(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """SVG of the RMSE of model and interpolation on the validation days over the steps; without such days, of the loss.

    ``rows`` are validations, at least one.
    """
    lines = {"rmse": "model", "rmse_interpolation": "interpolation"} if "rmse" in rows[0] else {"loss": "loss"}
    shown = {name: [float(row[name]) for row in rows] for name in lines}
    low, high = (pick(value for values in shown.values() for value in values) for pick in (min, max))
    width, height, scale = 420, 130, 110 / ((high - low) or 1.0)
    drawn = []
    for (name, text), dashes in zip(lines.items(), ("", "4 3"), strict=False):
        points = [
            (width * row["step"] / steps, 120 - scale * (value - low))
            for row, value in zip(rows, shown[name], strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f"fill='none' stroke='currentColor' stroke-width='1.5' stroke-dasharray='{dashes}'"
        drawn += [
            f"<polyline points='{path}' {style}/>",
            *(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>" for x, y in points),
        ]
        drawn.append(
            f"<text x='{points[-1][0] + 6:.1f}' y='{points[-1][1] + 4:.1f}'>{text} {shown[name][-1]:.3g}</text>"
        )
    axis = (
        f"<path d='M0 {height}H{width}' stroke='currentColor' opacity='.4'/><text x='0' y='{height + 14}'>step 0</text>"
    )
    axis += f"<text x='{width}' y='{height + 14}' text-anchor='end'>{steps}</text>"
    size = f"viewBox='-8 -4 {width + 140} {height + 24}' style='max-width: {width + 140}px; width: 100%'"
    return f"<svg {size} font-size='12' fill='currentColor' role='img'>{''.join(drawn)}{axis}</svg>"


def _side_by_side(maps: np.ndarray) -> np.ndarray:
    """Three maps side by side as one picture (0 to 1), the ocean black; square roots, so that drizzle shows."""
    top = max(float(np.nanmax(maps[2], initial=0.0)), 1e-6)
    picture = np.sqrt(np.clip(np.nan_to_num(maps) / top, 0, 1))
    return np.concatenate([np.pad(part, 2, constant_values=1.0) for part in picture], axis=1)


def _writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard events need tensorboard. Type pip install xdeepsd[tensorboard].") from error
    # Events later than the checkpoint belong to steps that the resumed run repeats.
    return SummaryWriter(str(folder), purge_step=first or None)
