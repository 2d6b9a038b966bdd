"""The command line."""

from xdeepsd.cli.commands import app as app
