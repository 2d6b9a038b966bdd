"""Write a file whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to disk and rename it: there is never half a file at ``path``.

    What killed calls for the same ``path`` left behind is taken away.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        for left in path.parent.iterdir() if path.parent.is_dir() else ():
            if partial_of(left.name) == path.name:
                left.unlink(missing_ok=True)


def partial_of(file_name: str) -> str | None:
    """The name of the file that ``file_name`` is a part of, where it is a temporary name of ours; else None."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.partial", file_name)
    return found and found[1]
