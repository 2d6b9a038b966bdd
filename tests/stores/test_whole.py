"""Files that are whole or absent, and errors that name them."""

import errno
import io
import os

import pytest

from xdeepsd.stores.whole import alone, write_whole, writing


class Full(io.FileIO):
    """A file on a disk that is full: the error of a write, unlike that of opening, names no file."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_for_which_there_is_no_room_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.open", lambda self, mode: Full(self, mode.replace("b", "")))
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'") as told:
        write_whole(path, b"new")
    assert told.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"


def test_an_error_that_names_its_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), writing(tmp_path / "store"):
        (tmp_path / "other").read_bytes()
    with pytest.raises(OSError, match=r"store could not be written to the end \(Input"), writing(tmp_path / "store"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_one_at_a_time(tmp_path):
    path = tmp_path / "there" / "a.zarr"
    with alone(path, "fetch", "out"):
        with (
            pytest.raises(ValueError, match=r"Another fetch is .*a\.zarr\. Wait for"),
            alone(path, "fetch", "out"),
        ):
            pass
        with alone(path.with_name("b.zarr"), "fetch", "out"):
            pass
    with alone(path, "fetch", "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written: "), alone(tmp_path / "file" / "a", "fetch", "out"):
        pass


def test_a_leftover_that_is_in_use_does_not_matter(tmp_path, monkeypatch):
    """Windows does not remove a file that another process holds open."""
    held = tmp_path / f".a.json.{32 * '0'}.partial"
    held.touch()

    def in_use(self, missing_ok=False):
        raise PermissionError(errno.EACCES, "in use", str(self))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", in_use)
        write_whole(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert held.exists()
    write_whole(tmp_path / "a.json", b"newer")
    assert not held.exists()
