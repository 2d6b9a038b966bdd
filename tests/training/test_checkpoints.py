"""Checkpoints are complete or not there at all."""

import errno
import multiprocessing
import os
import resource

import pytest
import torch

from xdeepsd.training.checkpoints import (
    METRICS,
    checkpoints,
    read_checkpoint,
    remove_checkpoints,
    write_beside,
    write_checkpoint,
)


def state(value):
    return {"net": {"weight": torch.full((1000,), float(value))}, "history": [{"step": value, "loss": 0.1}]}


def test_newest_and_the_one_before_are_kept(tmp_path):
    for step in (1, 20, 300):
        write_checkpoint(tmp_path, step, state(step))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000000020.pt", "step-000000300.pt"]
    found = read_checkpoint(tmp_path)
    assert found["step"] == 300
    assert torch.equal(found["net"]["weight"], state(300)["net"]["weight"])
    assert found["history"] == [{"step": 300, "loss": 0.1}]


def test_no_folder_no_checkpoint(tmp_path):
    assert read_checkpoint(tmp_path / "none") is None
    assert checkpoints(tmp_path / "none") == []


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path, caplog):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, state(step))
    newest = checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[content.index(torch.full((9,), 2.0).numpy().tobytes())] ^= 1
    newest.write_bytes(content)
    assert read_checkpoint(tmp_path)["step"] == 1
    assert "is damaged" in caplog.text


def test_removing_checkpoints_leaves_what_is_the_users(tmp_path):
    write_checkpoint(tmp_path / "stage_0", 1, state(1))
    write_checkpoint(tmp_path / "stage_1", 1, state(1))
    write_beside(tmp_path / "stage_1" / METRICS, b"ours", METRICS)
    (tmp_path / "stage_1" / "notes.txt").write_text("mine")
    remove_checkpoints(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["stage_1", "stage_1/notes.txt"]
    (tmp_path / "stage_1" / "notes.txt").unlink()
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, damage):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, state(step))
    checkpoints(tmp_path)[-1].write_bytes(damage)
    assert read_checkpoint(tmp_path)["step"] == 1
    assert "step-000000002.pt cannot be read" in caplog.text
    checkpoints(tmp_path)[0].write_bytes(damage)
    with pytest.raises(ValueError, match=r"None of .* can be read. Remove them to start again"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_a_newer_xdeepsd(tmp_path):
    write_checkpoint(tmp_path, 1, {"format": 99})
    with pytest.raises(ValueError, match="newer xdeepsd"):
        read_checkpoint(tmp_path)


def test_reading_runs_no_code(tmp_path):
    class Surprise:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "surprise"),)

    torch.save(Surprise(), tmp_path / "step-000000001.pt")
    with pytest.raises(ValueError, match="can be read"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "surprise").exists()


def test_left_overs_of_a_killed_writer_are_removed(tmp_path):
    for name in ("step-000000001.pt", "metrics.parquet"):
        (tmp_path / f".{name}.{'0' * 32}.partial").write_bytes(b"half")
    (tmp_path / ".step-000000001.pt.notes").write_text("the user's")
    write_checkpoint(tmp_path, 2, state(2))
    write_beside(tmp_path / "metrics.parquet", b"whole", "The table")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [".step-000000001.pt.notes", "metrics.parquet", "step-000000002.pt"]


def test_disk_full_keeps_the_one_before(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, state(1))

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"after 2 steps could not be written \(No space left.*is intact"):
            write_checkpoint(tmp_path, 2, state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert read_checkpoint(tmp_path)["step"] == 1
    write_checkpoint(tmp_path, 2, state(2))  # there is space again
    assert read_checkpoint(tmp_path)["step"] == 2


def _write_with_little_room(folder, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        write_checkpoint(folder, 2, state(2))
    except OSError as error:
        queue.put(str(error))


def test_a_write_that_really_fails(tmp_path):
    """The system stops the write in the middle of the file."""
    write_checkpoint(tmp_path, 1, state(1))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_write_with_little_room, args=(tmp_path, queue))
    process.start()
    assert "is intact" in queue.get(timeout=60)
    process.join()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert read_checkpoint(tmp_path)["step"] == 1
