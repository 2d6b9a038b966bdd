"""What benchmarks share: peak memory, the table on screen, and the JSON file with the machine and the versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def figure(name: str, value: float, unit: str, target: float | None, better: str) -> dict[str, Any]:
    """One figure; it holds if it is at its target or better (None: no target, for information only)."""
    if better not in ("higher", "lower"):
        raise ValueError(f"better is {better!r}; needed: 'higher' or 'lower'")
    holds = None if target is None else bool(value >= target if better == "higher" else value <= target)
    return {"name": name, "value": value, "unit": unit, "target": target, "better": better, "holds": holds}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    arguments.add_argument("--quick", action="store_true", help="small sizes, to see that it runs rather than how fast")
    return arguments


def peak(function: Callable[[], object], every: float = 0.002) -> float:
    """Peak memory of this process while ``function`` runs, above what it held before, GiB; looked at ``every`` s."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    samples, over = [before], threading.Event()

    def sample() -> None:
        while not over.wait(every):
            samples.append(process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        function()
    finally:
        over.set()
        sampler.join()
    return (max(samples) - before) / 2**30


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def report(
    figures: list[dict[str, Any]], path: Path | None, packages: Iterable[str], notes: dict[str, Any] | None = None
) -> None:
    """Print the figures as a table and write them as JSON."""
    table = Table("figure", "value", "unit", "target", "holds")
    for f in figures:
        target = "" if f["target"] is None else f"{'≥' if f['better'] == 'higher' else '≤'} {f['target']}"
        holds = {None: "", True: "yes", False: "NO"}[f["holds"]]
        table.add_row(f["name"], f"{f['value']:.4g}", f["unit"], target, holds)
    Console().print(table)
    if path is None:
        return
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    content = {"machine": machine, "versions": versions, "figures": figures, "notes": notes or {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
