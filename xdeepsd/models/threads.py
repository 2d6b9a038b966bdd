"""Torch threads: a process-wide setting, which concurrent runs must not overwrite for each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_mine = threading.local()
_inside = 0
_outside = 0  # the number while nothing is running


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use ``number`` threads here; None changes nothing.

    torch keeps one number per thread and one for the process, which new threads start with. Setting it sets both, so
    overlapping runs would leave their number behind. Therefore the last run to finish restores the process's number.
    """
    global _inside, _outside
    if number is None:
        yield
        return
    outer = getattr(_mine, "number", None)  # the number of an enclosing run in this thread
    with _lock:
        if not _inside:
            _outside = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(number)
        # A new thread copies the process's number when it first asks: do so now, not while another run restores it.
        torch.get_num_threads()
        _mine.number = number
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            _mine.number = outer
            torch.set_num_threads(outer or _outside)
            if _inside and outer is None:  # other runs go on: set the process's number again, in a short-lived thread
                other = threading.Thread(target=torch.set_num_threads, args=(number,))
                other.start()
                other.join()
