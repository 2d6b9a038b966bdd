"""What was begun and shall be continued: how its saved description differs from the current one.

For levels, checkpoints and sweeps; `layout.differences` compares whole Zarr groups.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def changed_fields(
    then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = (), of: str = ""
) -> list[str]:
    """The differences between a saved and a current description, except for the ``free`` keys, each as text.

    >>> changed_fields({"batch": 8, "seed": 0}, {"batch": 4, "seed": 0}, of=" of stage 1")
    ['batch of stage 1 was 8, is 4']
    """
    return [
        f"{key}{of} was {then.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if key not in free and now.get(key) != then.get(key)
    ]
