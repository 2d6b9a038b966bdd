"""Threads of torch: a setting of the whole process, so runs at the same time must not overwrite each other's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_mine = threading.local()
_inside = 0
_outside = 0  # the number while no run is going on


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use ``number`` threads here; None changes nothing.

    torch keeps one number for each thread, and one for the process, which new threads start with. Setting it sets both,
    so runs that overlap would leave theirs behind: the last run to finish restores the number of the process.
    """
    global _inside, _outside
    if number is None:
        yield
        return
    outer = getattr(_mine, "number", None)  # that of an enclosing run in this thread
    with _lock:
        if not _inside:
            _outside = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(number)
        # A new thread takes the process's number at its first look: now, not while another run puts it back.
        torch.get_num_threads()
        _mine.number = number
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            _mine.number = outer
            torch.set_num_threads(outer or _outside)
            if _inside and outer is None:  # others still run: set the process's number again, from a short-lived thread
                other = threading.Thread(target=torch.set_num_threads, args=(number,))
                other.start()
                other.join()
