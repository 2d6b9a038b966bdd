"""The command line: one file per command; ``terminal`` and ``inputs`` hold what commands share.

``toml`` and ``ini`` read configuration files, ``demo_run`` is the demo itself. Flags are named only in this part of the
package. It may import everything; commands import inside their functions, so that ``xdeepsd --help`` is quick.
"""

import sys
from pathlib import Path

from xdeepsd._extras import require

try:
    require("cli", "The command line")
except ImportError as error:
    if Path(sys.argv[0]).stem == "xdeepsd":  # typed in a terminal: one sentence, no traceback
        raise SystemExit(str(error)) from None
    raise

import typer

from xdeepsd.cli import card, config, demo, downscale, evaluate, fetch, kubernetes, prepare, report, sweep, train

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Statistical downscaling with stacked SRCNNs (DeepSD)."
)
for _command in (demo.demo, fetch.fetch, downscale.downscale, prepare.prepare, train.train, sweep.sweep,
                 evaluate.evaluate, report.report, card.card):  # fmt: skip
    app.command()(_command)
app.add_typer(config.app, name="config")
app.add_typer(kubernetes.app, name="kubernetes")
