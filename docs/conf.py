"""The site: `make docs`. Its source is the repository itself, so that the same links work here and on GitHub.

`docs/index.md` is the contents: its sections and links become the side bar. `docs/api.md` lists the public names; each
of its rows becomes a page of `docs/reference/`, made from the docstrings.
"""

import re
from pathlib import Path
from types import ModuleType

from docutils import nodes
from latex2mathml.converter import convert

import xdeepsd

ROOT = Path(__file__).resolve().parents[1]

project, author, copyright = "xdeepsd", "The xdeepsd developers", "The xdeepsd developers"
version = release = xdeepsd.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "examples/*.ipynb", "examples/*.md", "*.md"]
exclude_patterns = [".*", "build", "demo", "tests", "xdeepsd", "benchmarks", "**/.ipynb_checkpoints", "docs/_*"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]

# Markdown as GitHub reads it; notebooks are run anew in each build, and an error in a cell is an error of the build.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
suppress_warnings = ["toc.not_included"]  # the rules of the project, which README and CONTRIBUTING lead to

# Names in single backticks are links where they are public, code elsewhere.
default_role = "py:obj"
numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "xdeepsd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_extra_path = ["_extra"]
html_sidebars = {"**": ["contents.html"]}
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "navigation_with_keys": False,
}


def contents(text: str) -> str:
    """The side bar: a hidden table of contents for each section of the index, of the pages that it links to."""
    trees = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        caption, _, body = section.partition("\n")
        pages = re.findall(r"\[([^\]]+)\]\(([\w./-]+)\.(?:md|ipynb)\)", body)
        lines = (f"{text[0].upper()}{text[1:]} <{page}>" for text, page in pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(lines) + "\n```")
    return text + "\n\n" + "\n\n".join(trees) + "\n"


def rows(text: str) -> list[list[str]]:
    """The public names in each row of the tables of `docs/api.md`."""
    return [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`.*?) \|", text, re.M)]


def reference(text: str) -> dict[str, str]:
    """Name and source of the pages that say everything about the names of a row."""
    pages = {}
    for names in rows(text):
        lines = [", ".join(names), "=" * len(", ".join(names))]
        for name in names:
            found = getattr(xdeepsd, name)
            if isinstance(found, ModuleType):
                lines += ["", f".. automodule:: {found.__name__}", "   :members:", "   :imported-members:"]
            elif isinstance(found, type):
                lines += ["", f".. autoclass:: xdeepsd.{name}", "   :members:", "   :inherited-members: Module, tuple"]
            elif isinstance(found, str):
                lines += ["", f".. py:data:: xdeepsd.{name}", "", "   The version of xdeepsd."]
            else:
                lines += ["", f".. autofunction:: xdeepsd.{name}"]
        pages[names[0].strip("_")] = "\n".join(lines) + "\n"
    return pages


def write_reference(_: object) -> None:
    """Write these pages where they changed."""
    folder = ROOT / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    pages = reference((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, source in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            path.write_text(source, encoding="utf-8")


def linked(text: str) -> str:
    """`docs/api.md` with its names as links."""
    for names in rows(text):
        plain = ", ".join(f"`{name}`" for name in names)
        links = ", ".join(f"{{py:obj}}`{name} <xdeepsd.{name}>`" for name in names)
        text = text.replace(f"| {plain} |", f"| {links} |")
    return text


def on_source_read(_: object, page: str, source: list[str]) -> None:
    """Add what only the site needs."""
    if page == root_doc:
        source[0] = contents(source[0])
    if page == "docs/api":
        pages = "\n".join(f"reference/{name}" for name in reference(source[0]))
        source[0] = f"{linked(source[0])}\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def show_math(writer, node):
    """Formulas as MathML, which browsers show without a script from elsewhere."""
    is_block = isinstance(node, nodes.math_block)
    found = convert(node.astext(), display="block" if is_block else "inline")
    writer.body.append(f"<div class='formula'>{found}</div>" if is_block else found)
    raise nodes.SkipNode


def shorter(_app, _what, _name, _obj, _options, signature, returned):
    """A signature without the inside of the default of `StackedSRCNN.kind`."""
    return re.sub(r"=Variable\(.*\)\)$", "=PRECIPITATION)", signature or "") or None, returned


def skipped(_app, _what, _name, found, skip, _options):
    """Leave out the fields of named tuples, of which nothing is said but their number."""
    return skip or str(getattr(found, "__doc__", "")).startswith("Alias for field number") or None


def setup(app):
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-signature", shorter)
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
    app.connect("builder-inited", write_reference)
    app.connect("source-read", on_source_read)
