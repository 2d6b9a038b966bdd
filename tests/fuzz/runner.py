"""Run cases in separate processes, so that a crash or a hang is an outcome like any other."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from . import KINDS, Outcome, kills, run

# Seconds of CPU time, and by the clock (on a shared machine), after which a case counts as hanging.
LIMIT, PATIENCE = 120.0, 1200.0


def rounds(base: int, kinds: Iterable[str] = KINDS) -> Iterator[tuple[str, int]]:
    """Endless cases: all kinds in turn, as often as `KINDS` says, with seeds that follow from ``base``."""
    kinds = list(kinds)
    for turn in itertools.count():
        for kind in kinds:
            yield from ((kind, base + turn * KINDS[kind] + i) for i in range(KINDS[kind]))


def _work(pipe, folder: str) -> None:
    tempfile.tempdir = folder
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # messages of libraries about broken files
        os.dup2(null, stream)
    kills.Nursery.start()  # before there are threads
    while True:
        pipe.send(run(*pipe.recv()))


def _context():
    """A context for processes that start with everything imported."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # else the server cannot find tests
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([f"{__package__}.warm"])
    return made


class Worker:
    """A process, and the case it is working on."""

    def __init__(self, folder: str) -> None:
        self.pipe, there = _context().Pipe()
        self.process = _context().Process(target=_work, args=(there, folder))
        self.process.start()
        there.close()
        self.case: tuple[str, int] | None = None
        self.since = self.computed = 0.0

    def give(self, case: tuple[str, int]) -> None:
        self.case, self.since, self.computed = case, time.monotonic(), self.computing()
        self.pipe.send(case)

    def computing(self) -> float:
        """Seconds of CPU time the process has used."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def endless(self) -> bool:
        waited = time.monotonic() - self.since
        return waited > LIMIT and (waited > PATIENCE or self.computing() - self.computed > LIMIT)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def many(
    cases: Iterable[tuple[str, int]], processes: int | None = None, seconds: float = float("inf")
) -> Iterator[Outcome]:
    """Outcomes as they arrive; no case begins after ``seconds``."""
    folder = tempfile.mkdtemp(prefix="xdeepsd-fuzz-")
    cases, ends = iter(cases), time.monotonic() + seconds
    workers = [Worker(folder) for _ in range(processes or os.cpu_count() or 1)]
    try:
        while True:
            for worker in workers:
                if worker.case is None and time.monotonic() < ends and (case := next(cases, None)) is not None:
                    worker.give(case)
            busy = [worker for worker in workers if worker.case is not None]
            if not busy:
                return
            ready = multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=1)
            for i, worker in enumerate(workers):
                story = ""
                if worker.pipe in ready:
                    try:
                        yield worker.pipe.recv()
                        worker.case = None
                    except EOFError:
                        worker.process.join()
                        story = f"the process died ({worker.process.exitcode})"
                elif worker.case is not None and worker.endless():
                    story = f"no end after {time.monotonic() - worker.since:.0f} s"
                if story:
                    yield Outcome(*worker.case, "traceback", story)
                    worker.end()
                    workers[i] = Worker(folder)
    finally:
        for worker in workers:
            worker.end()
        shutil.rmtree(Path(folder), ignore_errors=True)
