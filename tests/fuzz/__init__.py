"""Endless random cases: what xdeepsd computes and reads, what it leaves behind when killed, and what it leaves alone.

A kind of case is a module with ``case(seed, folder)``: everything in it follows from the seed, and it may use the empty
folder as it likes. It raises `Wrong` or `Lost` if the promise of its docstring does not hold; any other exception is a
traceback that a user might see. ``python -m tests.fuzz --kind stacks --seed 123`` repeats a case.
"""

import hashlib
import importlib
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # builders, oracle, prism_server

# And how many of 20 cases are of this kind; quick kinds are frequent.
KINDS = {"stacks": 4, "regridding": 4, "damage": 9, "folders": 2, "kills": 1, "faults": 1}


class Wrong(Exception):
    """Numbers, labels or attributes that are not what they should be."""


class Lost(Exception):
    """A user's file is missing or changed."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: "ok", "wrong", "lost" or "traceback", the details, and which faults happened."""

    kind: str
    seed: int
    verdict: str = "ok"
    text: str = ""
    faults: tuple[tuple[str, str], ...] = ()  # kind and details

    def __str__(self) -> str:
        return f"{self.verdict}: {self.text}\n  repeat: python -m tests.fuzz --kind {self.kind} --seed {self.seed}"


def chance(rng, share):
    """True with a probability of ``share``."""
    return bool(rng.random() < share)


def pick(rng, options):
    """A random element of a sequence."""
    return options[rng.integers(len(options))]


def listing(folder):
    """Every file, folder and symbolic link below a folder, with its contents; links are not followed."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            found[name] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(kind: str, seed: int) -> Outcome:
    """Run one case in its own folder."""
    case = importlib.import_module(f"{__name__}.{kind}").case
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-fuzz-"))
    verdict, text = "ok", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case(seed, folder)
    except (Wrong, Lost) as error:
        verdict, text = type(error).__name__.lower(), str(error)
    except Exception:
        verdict, text = "traceback", traceback.format_exc()
    faults = folder / "faults"
    lines = faults.read_text().splitlines() if faults.exists() else ()
    happened = tuple((kind, details) for kind, _, details in (line.partition(": ") for line in lines))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(kind, seed, verdict, text, happened)
