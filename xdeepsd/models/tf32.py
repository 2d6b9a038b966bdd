"""float32 on NVIDIA GPUs: a process-wide setting, which concurrent runs must not overwrite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_outside = True  # the setting while nothing is running


@contextmanager
def no_tf32() -> Iterator[None]:
    """Compute convolutions in float32 here.

    By default cuDNN rounds their factors to 10 bits (TF32): errors of 1e-3 although float32 was asked for.
    """
    global _inside, _outside
    with _lock:
        if not _inside:
            _outside = torch.backends.cudnn.allow_tf32
        _inside += 1
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.backends.cudnn.allow_tf32 = _outside
