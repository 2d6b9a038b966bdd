"""Watch a training: progress bar, TensorBoard events and the table of validations."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

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
        Show a progress bar on the terminal.
    events
        Folder for TensorBoard events, or None.
    """

    def __init__(self, index: int, first: int, steps: int, batch: int, bar: bool, events: Path | None) -> None:
        self._batch, self._first = batch, first
        self._began = self._shown = time.perf_counter()
        self._errors = ""
        self._bar = None
        if bar:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, refresh_per_second=4)
            self._task = self._bar.add_task(f"stage {index}", total=steps, completed=first, text="")
        self._events = _writer(events, first) if events is not None else None

    @property
    def wants_maps(self) -> bool:
        """Whether `validated` has any use for maps."""
        return self._events is not None

    def __enter__(self) -> Watch:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()

    def step(self, step: int, loss: float) -> None:
        """Call after each step; updates the bar now and then."""
        now = time.perf_counter()
        if self._bar is not None and now - self._shown > _EVERY:
            self._shown = now
            rate = (step - self._first) * self._batch / (now - self._began)
            self._bar.update(self._task, completed=step, text=f"loss {loss:.4f}{self._errors}, {rate:,.0f} patches/s")

    def validated(self, row: dict[str, Any], net: nn.Module, maps: np.ndarray | None) -> None:
        """Call after each validation with its row of the history, the network, and maps ``(3, lat, lon)`` to show."""
        if "rmse" in row:
            self._errors = f", RMSE {row['rmse']:.4g} (interpolation {row['rmse_interpolation']:.4g})"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], text=f"loss {row['loss']:.4f}{self._errors}")
        if self._events is None:
            return
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])
        for name, parameter in net.named_parameters():
            self._events.add_histogram(name, parameter.detach().cpu(), row["step"])
        if maps is not None:
            self._events.add_image("interpolation, model, truth", _side_by_side(maps), row["step"], dataformats="HW")


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
