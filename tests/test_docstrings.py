"""numpydoc's checks of every public name and of the public methods of classes.

Those that hold it to our style: no parameter that is not there, sections known, in order and underlined, a summary of
one line that begins with a capital and ends with a full stop. Types are in the annotations, so PR04 is not among them.
"""

import inspect

import pytest

import xdeepsd

numpydoc = pytest.importorskip("numpydoc.validate", reason="numpydoc (of the extra test) is missing")

CHECKS = {
    "GL06",
    "GL07",
    "GL08",
    "GL10",
    "PR02",
    "PR05",
    "PR06",
    "PR10",
    "RT02",
    "SS01",
    "SS02",
    "SS03",
    "SS04",
    "SS06",
}


def names():
    for name in xdeepsd.__all__:
        thing = getattr(xdeepsd, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        yield name
        own = vars(thing).items() if inspect.isclass(thing) else ()
        yield from (f"{name}.{key}" for key, value in own if inspect.isfunction(value) and not key.startswith("_"))


@pytest.mark.parametrize("name", list(names()))
def test_docstrings_follow_numpydoc(name):
    errors = [f"{code} {text}" for code, text in numpydoc.validate(f"xdeepsd.{name}")["errors"] if code in CHECKS]
    assert not errors, "\n".join(errors)
