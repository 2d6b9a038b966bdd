"""Imports go one way, even inside functions: no cycle, no arrow upwards, nothing heavy before it is used."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutation

PACKAGE = Path(__file__).resolve().parents[1] / "xdeepsd"
# Each folder may import earlier ones and, within itself, anything that makes no cycle. Members of a set do not import
# each other.
ORDER = [
    {"_version", "_extras", "_progress"}, {"stores", "clusters"}, {"prism", "grids"}, {"models"},
    {"inference", "levels", "losses"},
    {"training", "climate"}, {"evaluation"}, {"accessor"}, {""}, {"cli"}, {"__main__"},
]  # fmt: skip
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}


def modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package: "grids.axes", "inference.fast.fused", "" for the package."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path], name: str) -> set[str]:
    """Modules of the package that a file imports anywhere, except for type checking only."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            add(*(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                module = ".".join(["xdeepsd", *base[: len(base) - node.level + 1], *module.split(".")]).strip(".")
            add(*(f"{module}.{alias.name}" for alias in node.names))
        for child in ast.iter_child_nodes(node):
            visit(child)

    def add(*wanted: str) -> None:
        for full in wanted:
            first, _, rest = full.partition(".")
            if first != "xdeepsd":
                continue
            while rest not in known:  # a name in a module: the module
                rest = rest.rpartition(".")[0]
            found.add(rest)

    visit(ast.parse(path.read_text()))
    return found - {name}


def graph(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {name: imports(path, known, name) for name, path in known.items()}


def wrong_arrows(arrows: dict[str, set[str]]) -> list[str]:
    """Imports upwards or across, and cycles, in words."""
    found = []
    for name, wanted in arrows.items():
        room = name.split(".")[0]
        for other in wanted:
            there = other.split(".")[0]
            if there != room and PLACE[there] >= PLACE[room]:
                found.append(f"{name or 'xdeepsd'} imports {other or 'xdeepsd'}")
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            round_ = way[way.index(name) :]
            first = round_.index(min(round_))
            found.append("cycle: " + " -> ".join((*round_[first:], *round_[:first], round_[first])))
        elif name not in done:
            for other in sorted(arrows[name]):
                follow(other, (*way, name))
            done.add(name)

    for name in sorted(arrows):
        follow(name, ())
    return found


def test_imports_go_one_way():
    arrows = graph(PACKAGE)
    assert {name.split(".")[0] for name in arrows} == set(PLACE)
    assert wrong_arrows(arrows) == []


PLANTED = [
    ("grids/axes.py", "from xdeepsd.models import stack", "grids.axes imports models.stack"),
    ("grids/axes.py", "def f():\n    import xdeepsd.training.stage", "grids.axes imports training.stage"),
    ("levels/disk.py", "from xdeepsd.losses.density import Histogram", "levels.disk imports losses.density"),
    ("models/stack.py", "def f():\n    import xdeepsd", "models.stack imports xdeepsd"),
    ("models/stack.py", "from xdeepsd import downscale", "models.stack imports xdeepsd"),
    ("models/stack.py", "from ..training import stage", "models.stack imports training.stage"),
    ("stores/write.py", "from xdeepsd.grids.axes import find", "stores.write imports grids.axes"),
    ("prism/files.py", "import xdeepsd.models.stack as s", "prism.files imports models.stack"),
    ("prism/files.py", "from xdeepsd.grids import axes", "prism.files imports grids.axes"),
    (
        "grids/missing.py", "def f():\n    from xdeepsd.grids.interpolate import upsample",
        "cycle: grids.interpolate -> grids.missing -> grids.interpolate",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "code", "wrong"), PLANTED)
def test_planted_arrows_are_found(tmp_path, file, code, wrong):
    package = shutil.copytree(PACKAGE, tmp_path / "xdeepsd", ignore=shutil.ignore_patterns("__pycache__"))
    with (package / file).open("a") as module:
        module.write(f"\n{code}\n")
    assert wrong in wrong_arrows(graph(package))


def test_only_networks_see_torch():
    """No module below the networks imports torch, and compiled code imports neither torch nor xarray."""
    for room, foreign in (("stores", {"torch"}), ("clusters", {"torch"}), ("prism", {"torch"}), ("grids", {"torch"}),
                          ("inference/fast", {"torch", "xarray"})):  # fmt: skip
        for path in (PACKAGE / room).glob("*.py"):
            tree = ast.parse(path.read_text())
            outer = {
                alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
            }
            outer |= {str(node.module).split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
            assert not outer & foreign, f"{path.name} imports {outer & foreign}"


def test_each_room_says_what_lives_there():
    for folder in [path for path in PACKAGE.rglob("*") if (path / "__init__.py").exists()]:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert len(text) > 80, f"{folder.name}/__init__.py says too little"
        assert "mport" in text, f"{folder.name}/__init__.py does not say what it may import"


HEAVY = ("torch", "dask.array", "scipy", "numba", "rasterio", "pint", "spherely", "distributed", "matplotlib", "zarr")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import xdeepsd", HEAVY),
        ("import sys; sys.argv = ['xdeepsd']; import xdeepsd.cli", (*HEAVY, "xarray", "pandas", "numpy")),
        ("from xdeepsd import make_levels", ("torch", "numba", "rasterio", "spherely")),
        ("from xdeepsd import train_stack", ("numba", "rasterio", "spherely", "distributed", "httpx")),
        ("from xdeepsd import downscale", ("numba", "rasterio", "spherely", "distributed", "httpx", "cf_xarray.units")),
    ],
)
def test_what_an_import_costs(code, absent):
    """Each part imports what it needs when it is used."""
    check = f"{code}; import sys; print([m for m in {absent!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_every_mutant_is_a_change_of_the_code_as_it_is():
    """Not in a file that the mutants run: it would fail for each of them."""
    for mutant in mutation.MUTANTS:
        mutation.find(mutation.ROOT, mutant)
        assert "test_layering" not in mutant.tests
