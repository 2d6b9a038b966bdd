"""Fixtures shared by all tests."""

import os
from pathlib import Path

import dask
import pytest
from hypothesis import HealthCheck, settings

# Test machines can be slow; the time an example takes says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def _data_folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("XDEEPSD_DATA", default))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data; the test is skipped if it is absent."""
    folder = _data_folder()
    if not (folder / "README.md").exists():
        pytest.skip(f"no real data at {folder}: set XDEEPSD_DATA to the folder that holds prism/ and regrid/")
    return folder


@pytest.fixture
def no_compute():
    """A context in which any Dask computation raises."""

    def scheduler(dsk, keys, **kwargs):
        raise AssertionError(f"Dask computed {len(dsk)} tasks where nothing may be computed")

    return lambda: dask.config.set(scheduler=scheduler)
