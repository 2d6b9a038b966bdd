"""Imports go one way (STYLE): leaves know nothing of the rest, and only four modules see torch and xarray."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "xdeepsd"
LAYERS = [
    {"axes", "units", "normalize", "density", "evaluate", "store", "cluster", "datasets", "losses", "srcnn", "fused",
     "grid", "interpolate", "prism_names", "kernels", "missing", "plot", "static", "weights", "binning", "splits",
     "layout"},
    {"regrid", "stack"},
    {"inputs", "ladder", "trainconfig"},
    {"prism", "prism_files", "prism_store", "fetch", "levels", "pairs", "patches"},
    {"blocks", "train", "stack_training", "validate", "watch", "inference", "checkpoints", "sweep", "config",
     "config_ini"},
    {"accessor"},
    {"demo", "terminal"},
    {"cli_training"},
    {"cli"},
    {"__init__", "__main__"},
]  # fmt: skip
BOTH = {"pairs", "stack", "train", "inference", "sweep", "checkpoints", "__init__"}


def _imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of xdeepsd and outer packages imported at the top of a file."""
    ours, outer = set(), set()
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "xdeepsd" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "xdeepsd" and rest and not rest.startswith("__"):
                ours.add(rest.split(".")[0])
            else:
                outer.add(first)
    return ours, outer


def _layer(module: str) -> int:
    for i, layer in enumerate(LAYERS):
        if module in layer:
            return i
    raise AssertionError(f"{module} has no place in LAYERS")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    ours, outer = _imports(path)
    for module in ours:
        assert _layer(module) <= _layer(path.stem), f"{path.stem} imports {module} from a higher layer"
    if path.stem not in BOTH:
        assert not {"torch", "xarray"} <= outer, f"{path.stem} sees both torch and xarray"
