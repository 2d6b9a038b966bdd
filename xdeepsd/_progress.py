"""Progress bars: a line of rich on a terminal; in a notebook a line of HTML, which needs no widgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from types import TracebackType
from typing import Any

_EVERY = 0.2  # seconds between updates in a notebook


class Bar:
    """A progress bar, shown inside a ``with`` statement.

    Parameters
    ----------
    name
        What is being done, in front of the bar.
    done, total
        Things that are done at the start, and all of them; a ``total`` that is not known yet is 0.
    """

    def __init__(self, name: str, done: int = 0, total: int = 0) -> None:
        self._name, self._done, self._total, self._text, self._below = name, done, total, "", ""
        self._first, self._began, self._shown = done, time.perf_counter(), 0.0
        self._terminal: Any = None
        self._notebook: Any = None

    def __enter__(self) -> Bar:
        from rich import get_console

        if get_console().is_jupyter:
            from IPython.display import display

            self._notebook = display(self._line(), display_id=True)
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"), TimeRemainingColumn(), TextColumn("left"),
            )  # fmt: skip
            self._terminal = Progress(*columns, refresh_per_second=4)
            self._task = self._terminal.add_task(self._name, total=self._total or None, completed=self._done, text="")
            self._terminal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal is not None:
            self._terminal.stop()
        else:
            self._notebook.update(self._line())

    def update(self, done: int, total: int, text: str = "", below: str = "") -> None:
        """Show these numbers, ``text`` beside them and, in a notebook, the HTML ``below`` them (if "": as before)."""
        self._done, self._total, self._text, self._below = done, total, text, below or self._below
        if self._terminal is not None:
            self._terminal.update(self._task, completed=done, total=total, text=text)
        elif below or time.perf_counter() - self._shown > _EVERY:
            self._shown = time.perf_counter()
            self._notebook.update(self._line())

    def _line(self) -> _Line:
        text, done = f"{self._done}/{self._total} {self._text}", self._done
        spent = time.perf_counter() - self._began
        if self._first < done < self._total:
            left = int(spent * (self._total - done) / (done - self._first))
            text += f" {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return _Line(self._name, done, self._total, text, self._below)


@dataclass(frozen=True)
class _Line:
    """What a notebook shows; what has no HTML shows the text alone."""

    name: str
    done: int
    total: int
    text: str
    below: str

    def _repr_html_(self) -> str:
        bar = f"<progress value='{self.done}' max='{max(self.total, 1)}'></progress>"
        return f"<div>{escape(self.name)} {bar} {escape(self.text)}</div>{self.below}"

    def __repr__(self) -> str:
        return f"{self.name} {self.text}"


@contextmanager
def reporting(progress: bool | Callable[[int, int], None] | None, name: str) -> Iterator[Callable[[int, int], None]]:
    """What to call with the number of things done and their total: ``progress`` itself, or True: a bar."""
    if progress is True:
        with Bar(name) as bar:
            yield bar.update
    else:
        yield progress or (lambda done, total: None)
