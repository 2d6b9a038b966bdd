"""ci/images.py DIR: what localk8s takes for images, made of this environment; and the users of the tests.

test: this environment. bare: the same without xdeepsd. other: says that its distributed is another one. broken: its
`dask` fails. Folders of links: nothing is installed. least and viewer: the Roles of two users.
"""

import re
import shutil
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import yaml

from xdeepsd.clusters.manifests import role

ROOT = Path(__file__).resolve().parents[1]
_DASK = """#!{python}
import sys
from dask.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
_JOB = """#!{python}
from xdeepsd.cli import app
if __name__ == "__main__":
    app()
"""


def image(folder: Path, leave_out: str = r"(?!)") -> Path:
    """A virtual environment with links to all that is installed here but the names that match; its site-packages."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for there in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for path in there.iterdir():
            link = site / path.name
            if not re.search(leave_out, path.name) and not link.exists():
                link.symlink_to(path.resolve())
    command(folder, "dask", _DASK)
    return site


def command(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=folder / "bin" / "python"))
    path.chmod(0o755)


def main(folder: Path) -> None:
    site = image(folder / "test", r"^__editable__|^main\.pth$")
    (site / "xdeepsd.pth").write_text(f"{ROOT}\n")
    command(folder / "test", "xdeepsd", _JOB)
    image(folder / "bare", r"xdeepsd|^main\.pth$")
    site = image(folder / "other", r"^__editable__|^main\.pth$|^distributed-.*\.dist-info$")
    (site / "xdeepsd.pth").write_text(f"{ROOT}\n")
    about = Path(distribution("distributed")._path)  # type: ignore[attr-defined]
    other = shutil.copytree(about, site / "distributed-2025.1.0.dist-info") / "METADATA"
    other.write_text(re.sub(r"(?m)^Version: .*", "Version: 2025.1.0", other.read_text()))
    command(folder / "broken", "dask", "#!/bin/sh\necho 'libtorch.so: cannot open shared object file' >&2\nexit 1\n")
    (folder / "least.yaml").write_text(yaml.safe_dump_all(role()))
    (folder / "viewer.yaml").write_text(yaml.safe_dump_all([{"kind": "Role", "rules": role()[0]["rules"][1:]}]))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
