"""The TF32 setting of torch holds while a run needs it, and the user's setting is restored afterwards."""

import threading

import pytest
import torch
from builders import make_coarse, make_stack, make_static

from xdeepsd.models import stage
from xdeepsd.models.tf32 import no_tf32


@pytest.mark.parametrize("users", [True, False])
def test_runs_that_overlap(users, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", users)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with no_tf32():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with no_tf32():
        thread.start()
        inside.wait()
    assert torch.backends.cudnn.allow_tf32 is False, "the other one still runs"
    leave.set()
    thread.join()
    assert torch.backends.cudnn.allow_tf32 is users


def test_the_plain_forward_asks_for_it(monkeypatch):
    seen = []
    forward = stage.Stage.__call__

    def spied(self, *arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, *arguments)

    monkeypatch.setattr(stage.Stage, "__call__", spied)
    model, coarse = make_stack(1), make_coarse(days=2)
    coarse.deepsd.downscale(model, make_static(coarse, model.scale), batch_size=1)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 is True
