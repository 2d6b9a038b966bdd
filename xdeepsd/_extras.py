"""Parts of xdeepsd that may be missing: which packages each needs, and what to type."""

from importlib.util import find_spec

PACKAGES = {
    "cli": ("typer", "pydantic", "distributed"),
    "fast": ("numba",),
    "plot": ("matplotlib",),
    "prism": ("filelock", "h5netcdf", "httpx", "rasterio", "rioxarray", "tenacity"),
    "regrid": ("spherely",),
}


def require(extra: str, what: str) -> None:
    """Raise ImportError with the line to type where a package of the ``extra`` is missing; ``what`` needs it."""
    missing = [name for name in PACKAGES[extra] if not _there(name)]
    if missing:
        raise ImportError(f"{what} needs {', '.join(missing)}. Type pip install 'xdeepsd[{extra}]'.", name=missing[0])


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # sys.modules says None: it is blocked
        return False
