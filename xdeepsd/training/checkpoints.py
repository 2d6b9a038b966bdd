"""Checkpoints of a stage in training: written whole or not at all, and read back bit for bit."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from xdeepsd.stores.whole import discard, partial_of, write_whole

logger = logging.getLogger(__name__)

FORMAT = 1
METRICS = "metrics.parquet"
KEEP = 2  # the newest, and its predecessor in case the newest is damaged later
_NAME = re.compile(r"step-(\d{9})\.pt")


def write_beside(path: Path, content: bytes, name: str) -> None:
    """`write_whole` in a folder of checkpoints; its OSError calls the file ``name`` and says what is kept."""
    try:
        write_whole(path, content)
    except OSError as error:
        last = checkpoints(path.parent)
        kept = f"{last[-1]} is intact" if last else "There is no checkpoint before it"
        raise OSError(
            error.errno,
            f"{name} could not be written ({error.strerror}). {kept}. Free some space ({len(content) / 2**20:.1f} MiB "
            "are needed) and train again with resume=True",
            str(path),
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first; none where the folder does not exist."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def is_checkpoint(file: Path) -> bool:
    """Whether a training run wrote a file of this name to the folder of a stage, whole or in part."""
    name = partial_of(file.name) or file.name
    return file.parent.name.startswith("stage_") and (name == METRICS or _NAME.fullmatch(name) is not None)


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps and remove all but the newest checkpoints.

    ``state`` holds only tensors, numbers, text, lists and dicts, so that reading it runs no code. Raises OSError
    where the disk is full or writing is not permitted; earlier checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if _NAME.fullmatch(partial_of(file.name) or ""):  # left by a process killed while writing
            discard(file)
    path = folder / f"step-{step:09d}.pt"
    content = io.BytesIO()
    torch.save({"format": FORMAT, "step": step} | state, content)
    write_beside(path, content.getvalue(), f"The checkpoint after {step} steps")
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove what training runs wrote to the stage folders in ``folder``, and the folders left empty; nothing else."""
    for stage in folder.glob("stage_*"):
        events = stage.glob("tensorboard/events.out.tfevents.*")
        partial = (file for file in stage.glob("*.partial") if partial_of(file.name))
        for file in (*checkpoints(stage), *partial, *events, *stage.glob(METRICS)):
            file.unlink(missing_ok=True)
        for empty in (stage / "tensorboard", stage):
            with contextlib.suppress(OSError):
                empty.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """State of the newest readable checkpoint; None where there are no checkpoints.

    Damaged checkpoints are skipped with a warning. Raises ValueError where all are damaged, or where the newest comes
    from a newer xdeepsd.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"{part} is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds of error for a damaged file
            logger.warning("%s cannot be read (%s): using the one before it.", path, error)
            continue
        if state["format"] > FORMAT:
            raise ValueError(f"{path} was written by a newer xdeepsd. Type pip install -U xdeepsd.")
        return state
    if paths:
        raise ValueError(f"None of {[p.name for p in paths]} in {folder} can be read. Remove them to start again.")
    return None
