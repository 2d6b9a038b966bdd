"""Optional parts of xdeepsd: the packages each needs, and what to type to install them."""

from importlib.util import find_spec

PACKAGES = {
    "bias": ("xsdba",),
    "cli": ("typer", "pydantic", "distributed"),
    "evaluate": ("scores",),
    "fast": ("numba",),
    "gateway": ("dask_gateway", "distributed"),
    "hub": ("pooch",),
    "kubernetes": ("dask_kubernetes", "distributed"),
    "plot": ("matplotlib",),
    "prism": ("h5netcdf", "httpx", "rasterio", "rioxarray", "tenacity"),
    "regrid": ("spherely",),
    "report": ("jinja2", "matplotlib", "scores"),
}


def require(extra: str, what: str) -> None:
    """Raise ImportError, with the command to type, if a package of the ``extra`` that ``what`` needs is missing."""
    missing = lacking(extra)
    if missing:
        raise ImportError(f"{what} needs {', '.join(missing)}. Type pip install 'xdeepsd[{extra}]'.", name=missing[0])


def lacking(extra: str) -> list[str]:
    """Packages of the ``extra`` that are not installed."""
    return [name for name in PACKAGES[extra] if not _there(name)]


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # sys.modules holds None: the import is blocked
        return False
