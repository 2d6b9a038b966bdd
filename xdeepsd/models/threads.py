"""Threads of torch: their number is one of the process, and several runs at once must not mix theirs up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_mine = threading.local()
_inside = 0
_outside = 0  # the number where no run is going on


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use ``number`` threads here; None changes nothing.

    torch keeps a number for each thread, and one of the process with which new threads begin. Setting one sets both, so
    that runs which overlap would leave theirs behind: the last one out puts the process's number back.
    """
    global _inside, _outside
    if number is None:
        yield
        return
    outer = getattr(_mine, "number", None)  # of a run around this one, in this thread
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
            if _inside and outer is None:  # the others go on: the process's number again, from a thread that then ends
                other = threading.Thread(target=torch.set_num_threads, args=(number,))
                other.start()
                other.join()
