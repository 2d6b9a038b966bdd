"""Mutants of code that is easily changed unnoticed: tolerances, mask checks, threads. Each must make its tests fail.

    python -m tests.mutation [WORDS]      all mutants, or those whose text has one of the words

A mutant is a place (a file or folder of xdeepsd/), a text that occurs there once, its replacement, and tests. It is
applied to a copy of the tree. Survivors are listed; the exit status is 1 if there are any.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cf_xarray  # noqa: F401
import dask.array  # noqa: F401
import hypothesis  # noqa: F401
import pint  # noqa: F401
import pytest
import scipy.ndimage
import torch  # noqa: F401
import zarr  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    place: str
    old: str
    new: str
    tests: str  # arguments of pytest


ALIGN = "tests/grids/test_align.py"
AXES = "tests/grids/test_axes.py"
MASKS = "tests/test_masks.py"
KEPT = "tests/inference/test_kept_means.py tests/training/test_training_kept_means.py"
THREADS = "tests/test_masks.py -k threads or thread or runs or leaves"

TOLERANCES = {
    "SAME": "0.01", "LIES_ON": "0.05", "SAME_STEP": "0.01", "SAME_EDGE": "1e-3", "INFERRED": "1e-6",
    "ROUNDING": "1e-12",
    "WHOLE_TURN": "1e-3", "NEXT_COLUMN": "1.5", "OVERLAPS": "2.0",
}  # fmt: skip
MUTANTS = [
    Mutant("grids/align.py", f"\n{name} = {value}", f"\n{name} = {float(value) * by}", ALIGN)
    for name, value in TOLERANCES.items()
    for by in (0.5, 2.0)
]
MUTANTS += [
    # Regular coordinates
    Mutant("grids/axes.py", "> 0.01 * abs(step)", "> 0.02 * abs(step)", AXES),
    Mutant("grids/axes.py", "> 0.01 * abs(step)", "> 0.005 * abs(step)", AXES),
    # Does it lie there at all?
    Mutant("inference/adapt.py", "for way in ways) <= align.LIES_ON:", "for way in ways) <= 1.0:", ALIGN),
    Mutant("inference/inputs.py", "if not align.same_step(coarse, trained):", "if False:", ALIGN),
    Mutant("levels", "if (index < 0).any():", "if (index < 0).all():", MASKS),
    # The mask at inference
    Mutant("inference/inputs.py", "isinstance(mask, xr.DataArray) or mask.dtype != bool:",
           "isinstance(mask, xr.DataArray):", MASKS),
    Mutant("inference/inputs.py", "if any((index < 0).any()", "if any((index < 0).all()", MASKS),
    Mutant("inference/inputs.py", "(not given or dict(", "(True or dict(", MASKS),
    Mutant("inference/inputs.py", "(not given or dict(", "(given or dict(", MASKS),
    Mutant("inference/inputs.py", "            return da.isel(picked)", "            return da", MASKS),
    Mutant("inference/inputs.py", "    if given:\n        raise", "    if False:\n        raise", MASKS),
    Mutant("inference/inputs.py", "        mask = model.mask\n", "        mask = None\n", MASKS),
    Mutant("inference/windows.py", "np.copyto(fine, np.nan, where=~ready.mask)", "pass", MASKS),
    Mutant("inference/windows.py", "np.copyto(fine, np.nan, where=~ready.mask)",
           "np.copyto(fine, np.nan, where=ready.mask)", MASKS),
    Mutant("inference/windows.py", ".any(axis=(1, 3))", ".all(axis=(1, 3))", MASKS),
    Mutant("inference/windows.py", "        size = 2 * halo + 1\n", "        size = 2 * halo - 1\n", MASKS),
    Mutant("inference/windows.py", "    if missing.any():\n        np.", "    if False:\n        np.", MASKS),
    Mutant("inference/windows.py", "reach = 2 * max(job.model.halo for job in jobs)",
           "reach = 2 * max(job.model.halo for job in jobs) - 1", MASKS),
    # The mask of levels
    Mutant("levels", "_MASK_DAYS = 30", "_MASK_DAYS = 29", MASKS),
    Mutant("levels", "_MASK_DAYS = 30", "_MASK_DAYS = 31", MASKS),
    Mutant("levels", '.notnull().any("time") if given', '.notnull().all("time") if given', MASKS),
    Mutant("levels/memory.py", " > 0 if factor > 1 else", " > 0.5 if factor > 1 else", MASKS),
    Mutant("levels/memory.py", " > 0 if factor > 1 else", " >= 1 if factor > 1 else", MASKS),
    Mutant("levels", 'maps.pop("mask", None) if mask is None else', 'maps.pop("mask", None) if True else', MASKS),
    # The mask in training
    Mutant("levels", " | ~self.mask\n", "\n", MASKS),
    Mutant("levels", " | ~self.mask\n", " | self.mask\n", MASKS),
    Mutant("levels", "(channel[pair.mask])", "(channel)", MASKS),
    Mutant("levels/patches.py", "(share >= min_land) & (share > 0)", "(share > min_land) & (share > 0)", MASKS),
    Mutant("levels/patches.py", "(share >= min_land) & (share > 0)", "(share >= min_land)", MASKS),
    Mutant("levels/patches.py", "        target[~mask] = 0.0\n", "", MASKS),
    Mutant("levels/patches.py", "            values[~mask] = 0.0\n", "            pass\n", MASKS),
    Mutant("levels/patches.py", "mask = ~np.isnan(target)", "mask = np.ones(target.shape, bool)", MASKS),
    Mutant("training", '.where(xr.DataArray(pair.mask, dims=("lat", "lon")))', "", MASKS),
    Mutant("training", "for part in (pair.mask, ", "for part in (", MASKS),
    Mutant("training", 'maps["mask"].astype(bool), training', 'xr.ones_like(maps["mask"], bool), training',
           MASKS),
    Mutant("training/validation.py", "mask, known = ~values.isnan()", "mask, known = ~values.isinf()", MASKS),
    Mutant("training/validation.py", "if empty.size == self.days.size:", "if False:", MASKS),
    # Coarse means
    Mutant("inference/windows.py", "shape[1] * scale, None if mask is None else np.asarray(mask))",
           "shape[1] * scale, None)", KEPT),
    Mutant("levels/patches.py", "            weights *= mask\n", "            pass\n", KEPT),
    Mutant("training/loop.py", "return torch.stack(losses).mean()", "return losses[0]", KEPT),
    Mutant("models/conserve.py", "holds = mean > NOTHING * x", "holds = mean > 0", "tests/models/test_conserve.py"),
    # Threads
    Mutant("models/threads.py", "        if not _inside:\n", "        if _inside:\n", THREADS),
    Mutant("models/threads.py", "set_num_threads(outer or _outside)", "set_num_threads(_outside)", THREADS),
    Mutant("models/threads.py", "set_num_threads(outer or _outside)", "set_num_threads(outer or number)", THREADS),
    Mutant("models/threads.py", "_mine.number = outer\n", "_mine.number = number\n", THREADS),
    Mutant("models/threads.py", "if _inside and outer is None:", "if False:", THREADS),
    Mutant("models/threads.py", "if _inside and outer is None:", "if outer is None:", THREADS),
    Mutant("models/threads.py", "    if number is None:\n", "    if False:\n", THREADS),
    Mutant("models/threads.py", "            _inside -= 1\n", "", THREADS),
    Mutant("inference/forward.py", "with torch_threads(1), no_tf32()", "with torch_threads(None), no_tf32()", THREADS),
    Mutant("inference/forward.py", "torch_threads(1), no_tf32()", "torch_threads(1)", "tests/models/test_tf32.py"),
    Mutant("models/tf32.py", "            if not _inside:\n", "            if True:\n", "tests/models/test_tf32.py"),
    Mutant("training", "with torch_threads(config.threads):", "with torch_threads(None):", THREADS),
]  # fmt: skip


def find(root: Path, mutant: Mutant) -> Path:
    """The file that contains the text exactly once."""
    place = root / "xdeepsd" / mutant.place
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    found = [file for file in files if mutant.old in file.read_text()]
    if len(found) != 1 or found[0].read_text().count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.old!r} is not there once in {mutant.place}: {[f.name for f in found]}. Mend the list."
        )
    return found[0]


def fails(root: Path, tests: str) -> bool:
    """Whether pytest finds a failure, run in a child process that has numpy, torch and xarray imported already."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    os.chdir(root)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(root), str(root / "tests"), *(p for p in sys.path if p not in ("", str(ROOT)))]
    os.environ["PYTHONPATH"] = str(root)
    output = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    where, _, some = tests.partition(" -k ")
    words = [*where.split(), *(["-k", some] if some else [])]
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *words])
    os._exit(int(status))


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in " ".join(m) for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        for name in ("xdeepsd", "tests", "docs"):
            shutil.copytree(ROOT / name, root / name)
        shutil.copy2(ROOT / "pyproject.toml", root)
        for mutant in chosen:  # all of them before the first one runs
            find(root, mutant)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            if fails(root, tests):
                tail = (root / "output.txt").read_text()[-3000:]
                raise SystemExit(f"{tail}\n{tests} fails without any mutant.")
        for mutant in chosen:
            file, begin = find(root, mutant), time.monotonic()
            text, times = file.read_text(), file.stat()
            file.write_text(text.replace(mutant.old, mutant.new))
            killed = fails(root, mutant.tests)
            file.write_text(text)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            says = f"{file.relative_to(root)}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}"
            print(f"{'killed  ' if killed else 'SURVIVES'} {time.monotonic() - begin:5.0f} s  {says}", flush=True)
            if not killed:
                survivors.append(says)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants are killed.", *survivors, sep="\n")
    return int(bool(survivors))


if __name__ == "__main__":
    scipy.ndimage.label([0])  # imported for the children
    sys.exit(main())
