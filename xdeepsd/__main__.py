"""``python -m xdeepsd`` is the command line."""

from xdeepsd.cli import app

app()
