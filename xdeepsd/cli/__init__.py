"""The command line: one file a command; what commands share is in ``terminal`` and ``inputs``.

``toml`` and ``ini`` read configuration files, ``demo_run`` is the demo itself. Flags are named here and nowhere else in
the package. May import everything; commands import inside their functions, so that ``xdeepsd --help`` is quick.
"""

from xdeepsd._extras import require

require("cli", "The command line")

import typer  # noqa: E402

from xdeepsd.cli import config, demo, downscale, fetch, prepare, sweep, train  # noqa: E402

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Statistical downscaling with stacked SRCNNs (DeepSD).",
)


@app.callback()
def main() -> None:
    """Statistical downscaling with stacked SRCNNs (DeepSD)."""


for _command in (demo.demo, fetch.fetch, downscale.downscale, prepare.prepare, train.train, sweep.sweep):
    app.command()(_command)
app.add_typer(config.app, name="config")
