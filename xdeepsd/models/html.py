"""Small tables for notebooks: what ``_repr_html_`` returns. All text is escaped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """An HTML table; the first cell of each row is its heading."""
    above = f"<thead><tr>{_cells('th', head)}</tr></thead>" if head else ""
    lines = (f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<table>{above}<tbody>{''.join(lines)}</tbody></table>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag} style='text-align:left'>{escape(text)}</{tag}>" for text in texts)


def heading(text: str) -> str:
    """The line above the tables."""
    return f"<div><b>{escape(text)}</b></div>"


def settings(config: Any, facts: Mapping[str, str] | None = None) -> str:
    """A dataclass: the fields that its ``repr`` shows, and ``facts`` that follow from them.

    Fields at their default are folded away where others differ from it or where there are many.
    """
    shown = [field for field in dataclasses.fields(config) if field.repr]
    rows = {f.name: repr(getattr(config, f.name)) for f in shown}
    changed = {f.name: rows[f.name] for f in shown if getattr(config, f.name) != f.default}
    default = {name: value for name, value in rows.items() if name not in changed}
    above = table((changed | dict(facts or {})).items()) if changed or facts else ""
    is_open = " open" if not changed and len(default) <= 10 else ""
    below = f"<details{is_open}><summary>{len(default)} at their defaults</summary>{table(default.items())}</details>"
    return heading(type(config).__name__) + above + (below if default else "")
