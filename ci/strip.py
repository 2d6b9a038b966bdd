"""Notebooks as git keeps them, without outputs: .venv/bin/python ci/strip.py examples/*.ipynb"""

import json
import sys
from pathlib import Path


def stripped(text: str) -> str:
    """The text of a notebook without what comes from a run or from the editor."""
    notebook = json.loads(text)
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(stripped(path.read_text(encoding="utf-8")), encoding="utf-8")
