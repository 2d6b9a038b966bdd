"""The version of xdeepsd: what the tags of git said when it was built or installed; "0+unknown" where it never was."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("xdeepsd")
except PackageNotFoundError:  # a folder on the path
    __version__ = "0+unknown"
