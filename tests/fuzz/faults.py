"""Everything that goes wrong around a run, and then its result, bit for bit, against the same work without faults.

One operation of `kills` meets one to three faults, one after another; after each, what it left is checked, and at the
end the same call must finish the work. What a person sees on the way is a result or an error in a sentence, and no file
beside the work is touched. The faults of a case are listed in the file ``faults`` of its folder as they happen.
"""

import asyncio
import errno
import functools
import os
import re
import resource
import signal
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import xarray as xr
from builders import make_coarse, make_static

import xdeepsd

from . import Lost, Wrong, chance, kills, listing, pick
from .kills import OPERATIONS, Nursery, reference, same

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CODES = {"disk full": errno.ENOSPC, "quota": errno.EDQUOT, "read-only": errno.EROFS, "no permission": errno.EACCES,
         "input/output error": errno.EIO}  # fmt: skip
PATIENCE = 60  # seconds after which a run on a cluster counts as hanging


def note(folder, kind, details=""):
    """A fault has happened: of all processes of a case, each adds a line."""
    with (Path(folder).parent / "faults").open("a") as file:
        file.write(f"{kind}: {details}\n")


# --- faults in the process itself, at its action number ``at`` --------------------------------------------------------


def refused(folder, code, at, until, number, event, arguments):
    """Writing fails with an error of the system, from one action to another."""
    reads = event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING)
    if at <= number < until and not reads:
        if not (Path(folder).parent / "faults.struck").exists():
            (Path(folder).parent / "faults.struck").touch()
            note(folder, os.strerror(code), arguments[0])
        raise OSError(code, os.strerror(code), str(arguments[0]))


def cramped(folder, size, at, number, event, arguments):
    """From one action on, no file can grow beyond ``size`` bytes: writing stops in the middle."""
    if number == at:
        note(folder, "File too large", f"{size} bytes")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def signalled(folder, number_of, at, number, event, arguments):
    """Ctrl-C, or what a batch system sends before it kills."""
    if number == at:
        note(folder, signal.Signals(number_of).name, arguments[0])
        os.kill(os.getpid(), number_of)


def back(folder, hours, at, number, event, arguments):
    """The clock is set back, or forth."""
    if number == at:
        note(folder, "clock set", f"{hours:+} h")
        clock, fine = time.time, time.time_ns
        time.time, time.time_ns = lambda: clock() + hours * 3600, lambda: fine() + hours * 3600 * 10**9


def alone(name, folder, variant, strike):
    """`kills.victim`, with the signal handlers that a program in a terminal has and room for its last words."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        kills.victim(name, folder, variant, strike)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def together(name, folder, variant, pause):
    """Two processes do the same work in the same place."""
    child = os.fork()
    if not child:
        try:
            time.sleep(pause)
            OPERATIONS[name].run(folder, variant)
        except BaseException as error:
            Path(f"{folder}.second").write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        os._exit(0)
    note(folder, "a second writer")
    try:
        OPERATIONS[name].run(folder, variant)
    finally:
        os.waitpid(child, 0)


# --- faults of a cluster ----------------------------------------------------------------------------------------------


def serve(what, folder, address=None):
    """A scheduler or a worker in a process of its own; returns its process id."""
    child = os.fork()
    if child:
        return child
    from distributed import Scheduler, Worker

    async def run():
        if what == "scheduler":
            async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
                (folder / "address.new").write_text(scheduler.address)
                (folder / "address.new").replace(folder / "address")
                await scheduler.finished()
        else:
            async with Worker(address, nthreads=1, dashboard=False, local_directory=str(folder)) as worker:
                await worker.finished()

    try:
        asyncio.run(run())
    finally:
        os._exit(0)


def on_cluster(name, folder, variant, victims, at):
    """An operation on three workers; at its action number ``at``, one or two of them die, or the scheduler does."""
    import dask
    from distributed import Client

    desk = folder.parent / f"cluster-{time.time_ns()}"
    desk.mkdir()
    pids = {"scheduler": serve("scheduler", desk)}
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": 20, "distributed.comm.timeouts.connect": "5s"}):
            while not (desk / "address").exists():
                time.sleep(0.02)
            address = (desk / "address").read_text()
            pids |= {f"worker {i}": serve("worker", desk, address) for i in range(3)}
            with Client(address, timeout=30) as client:
                client.wait_for_workers(3, timeout=30)
                # What the client does to files says little of how far the workers are, so the time does.
                threading.Timer(at, functools.partial(strike_down, folder, pids, victims)).start()
                OPERATIONS[name].run(folder, variant)
    finally:
        for pid in pids.values():
            stop(pid)


def strike_down(folder, pids, victims):
    note(folder, "scheduler killed" if "scheduler" in victims else "workers killed", ", ".join(victims))
    for who in victims:
        stop(pids[who])


def stop(pid):
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def patiently(name, folder, call, *arguments):
    """Ends a run that hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE)
    call(name, folder, *arguments)
    signal.alarm(0)


# --- faults between two runs ------------------------------------------------------------------------------------------


def turn_back(place, name):
    """What the operation wrote comes from the future: the clock was set back meanwhile."""
    inputs = {"inference": ("coarse.zarr", "model"), "chain": ("levels.zarr",)}.get(name, ())
    then = time.time() + 86400
    for path in place.rglob("*"):
        if path.is_file() and path.relative_to(place).parts[0] not in inputs:
            os.utime(path, (then, then))


def cut(rng, place):
    """Cut a file of the work's own output; returns its path and what it was, or None if there is none yet."""
    mine = place / "coarse.zarr"  # read by whoever calls
    files = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size and mine not in p.parents)
    if not files:
        return None
    path = pick(rng, files)
    content = path.read_bytes()
    # Zarr's chunks have no checksum; an empty one, which a power failure may leave, is told from a whole one.
    chunk = re.fullmatch(r"[\d.]+", path.name)
    path.write_bytes(b"" if chunk else content[: rng.integers(len(content))])
    return path, content


# --- a case -----------------------------------------------------------------------------------------------------------


SENTENCES = ("ValueError", "TypeError", "OSError", "FileExistsError", "FileNotFoundError", "PermissionError")
# The person's own Ctrl-C, and what Dask says of a cluster that is gone: the command line puts those into a sentence.
OTHERS = ("KeyboardInterrupt", "CancelledError", "FutureCancelledError", "CommClosedError", "KilledWorker")


def check_told(file, place, story):
    """The error in a file, "" without one; raises unless it is a sentence for the user, about a path of the work."""
    text = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    kind, _, rest = text.partition(": ")
    if "decompression error" in text:  # a lazy value that the user computes: the codec's error comes through unchanged
        kind = OTHERS[0]
    if "Timed out trying to connect to " in text.partition("\n")[0]:  # a scheduler that is gone, in Dask's words
        kind = OTHERS[0]
    if text and kind not in OTHERS and not (kind in SENTENCES and str(place) in rest.partition("\nTraceback")[0]):
        raise RuntimeError(f"{story}: {text}")
    return text.partition("\n")[0]


def attempt(rng, name, place, variant, count):
    """One run under one fault; returns what happened. It may end well, by a signal, or with an error in a sentence."""
    at = int(rng.integers(1, count + 1))
    kind = pick(rng, ["killed", "signal", *CODES, "cramped", "clock", "second writer", "cut", "cluster", "cluster"])
    if kind == "cluster" and name not in ("levels", "store", "inference"):
        kind = "killed"
    if kind == "cut" and name == "model" and not variant["overwrite"]:  # the same call does not look at what is there
        kind = "killed"
    story, code, undo = kind, 0, None
    (place.parent / "faults.struck").unlink(missing_ok=True)
    run = functools.partial(Nursery.run, alone, name, place, variant)
    if kind == "killed":
        code = run(functools.partial(signalled, place, signal.SIGKILL, at))
    elif kind == "signal":
        code = run(functools.partial(signalled, place, pick(rng, [signal.SIGINT, signal.SIGTERM]), at))
    elif kind in CODES:
        until = pick(rng, [at + 1, at + 5, 10**9])
        story = f"{kind} at {at} to {until} of {count}"
        code = run(functools.partial(refused, place, CODES[kind], at, until))
    elif kind == "cramped":
        size = int(2 ** rng.uniform(0, 15))
        story = f"files end at {size} bytes from {at} of {count}"
        code = run(functools.partial(cramped, place, size, at))
    elif kind == "clock":
        turn_back(place, name)
        code = run(functools.partial(back, place, pick(rng, [-24, -1, 24 * 400]), at))
    elif kind == "second writer":
        code = Nursery.run(patiently, name, place, together, variant, float(rng.uniform(0, 0.1)))
    elif kind == "cluster":
        victims = pick(rng, [["worker 0"], ["worker 1", "worker 2"], ["scheduler"]])
        after = float(rng.uniform(0, 0.5))
        story = f"{', '.join(victims)} killed after {after:.2f} s"
        code = Nursery.run(patiently, name, place, on_cluster, variant, victims, after)
    elif (undo := cut(rng, place)) is not None:
        path, content = undo
        story = f"{path.relative_to(place)} cut from {len(content)} to {path.stat().st_size} bytes"
        note(place, "file cut", story)
        code = run(kills.nothing)
    story = f"{name} {variant}, {story}"
    if code == -signal.SIGALRM:
        raise RuntimeError(f"{story}: no end after {PATIENCE} s")
    second = check_told(Path(f"{place}.second"), place, story)
    text = check_told(Path(f"{place}.error"), place, story) or (f"signal {-code}" if code else "done")
    if undo is not None and code:
        if path.exists():
            path.write_bytes(content)
        else:
            raise Lost(f"{story}: refused, and the file is gone")
    return f"{story}: {text}; {second}" if second else f"{story}: {text}"


def interrupted(rng, folder):
    """An operation under one to three faults, and then without."""
    name = pick(rng, list(OPERATIONS))
    operation, variant = OPERATIONS[name], OPERATIONS[name].variants(rng)
    whole, count = reference(name, tuple(variant.items()))
    place = folder / "whole"  # the same name as the reference's, since the output may contain it
    place.mkdir()
    beside = folder / "beside"
    beside.mkdir()
    (beside / "thesis.txt").write_text("mine")
    untouched = listing(beside)
    operation.prepare(place, variant)
    story = ""
    for _ in range(rng.integers(1, 4)):
        try:
            story += f"{attempt(rng, name, place, variant, count)}\n"
            operation.check(place, variant)
        except Exception as error:
            error.add_note(story)
            raise (type(error)(f"{story}{error}") if isinstance(error, Wrong | Lost) else error) from None
    try:
        operation.run(place, variant)
    except Exception as error:
        raise Wrong(f"{story}cannot be finished: {type(error).__name__}: {error}") from error
    same(operation.result(place), operation.result(whole), story)
    if listing(beside) != untouched:
        raise Lost(f"{story}: a file beside the work")


def gaps(rng, folder):
    """Days of nothing but NaN in the input: the other days are the same to the bit, and so are all once these come."""
    days = 6
    lost = np.sort(rng.choice(np.arange(1, days - 1), rng.integers(1, 3), replace=False))
    note(folder / "x", "NaN days", lost.tolist())
    seen = np.setdiff1d(np.arange(days), lost)
    if chance(rng, 0.5):
        fine = make_coarse(days=days, nlat=8, nlon=8, seed=int(rng.integers(1000)))
        static = make_static(fine, 1)
        hole = fine.where(~fine.time.isin(fine.time[lost]))
        options = {"chunk_mb": pick(rng, [0.0003, 0.001, 1])}
        whole = xdeepsd.build_levels(fine.chunk(time=2), static, (2, 2), folder / "whole.zarr", **options)
        some = xdeepsd.build_levels(
            hole.chunk(time=2), static, (2, 2), folder / "a.zarr", allow_missing=True, **options
        )
        same([level.load() for level in some], [level.isel(time=seen).load() for level in whole], "levels with gaps")
        later = xdeepsd.build_levels(fine.chunk(time=2), static, (2, 2), folder / "a.zarr", **options)
        same([level.load() for level in later], [level.load() for level in whole], "levels whose gaps were filled")
        return
    OPERATIONS["inference"].prepare(folder, {})
    coarse = OPERATIONS["inference"].input(days)
    model = xdeepsd.load_model(folder / "model")
    hole = coarse.where(~coarse.time.isin(coarse.time[lost]))
    xdeepsd.to_zarr(coarse.chunk(time=1).deepsd.downscale(model), folder / "whole.zarr")
    xdeepsd.to_zarr(hole.chunk(time=pick(rng, [1, 2, 6])).deepsd.downscale(model), folder / "a.zarr")
    some, whole = (xr.open_zarr(folder / name).pr.load().values for name in ("a.zarr", "whole.zarr"))
    if not np.isnan(some[lost]).all():
        raise Wrong(f"days {lost} were missing, and are not in the output")
    same(some[seen], whole[seen], "downscaled with gaps")


def case(seed, folder):
    """Faults in a run, or in its input."""
    rng = np.random.default_rng(seed)
    (gaps if chance(rng, 0.15) else interrupted)(rng, folder)
