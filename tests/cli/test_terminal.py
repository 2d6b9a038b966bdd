"""How a command ends with one sentence."""

import types
from concurrent.futures import CancelledError

import pytest
import typer
from distributed import KilledWorker
from distributed.comm import CommClosedError
from rich.console import Console

from xdeepsd.cli.terminal import told

LOST = "The connection to the scheduler was lost. What has been done is kept."


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("Type variable=pr."), 1, "Type --variable pr."),
        (KeyboardInterrupt(), 130, "Stopped. Run it again."),
        (CancelledError("out-of-date"), 1, LOST),
        (CommClosedError("in TCP"), 1, LOST),
        (OSError("Timed out trying to connect to tls://10.0.0.1:8786 after 30 s"), 1, LOST),
        (OSError("Timed out trying to connect to tcp://10.0.0.1:8786 after 30 s"), 1, LOST),
        (
            KilledWorker("task", types.SimpleNamespace(address="tcp://10.0.0.2:1"), 3),
            1,
            "Workers kept dying, probably out of memory: smaller --chunk.",
        ),
    ],
)
def test_errors_end_a_command_in_a_sentence(error, status, said, capsys):
    with (
        pytest.raises(typer.Exit) as ended,
        told(Console(width=1000), (ValueError, OSError), "Run it again.", "smaller --chunk"),
    ):
        raise error
    assert ended.value.exit_code == status
    assert said in capsys.readouterr().out


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), told(Console(), (ValueError,), "Run it again."):
        1 / 0  # noqa: B018
