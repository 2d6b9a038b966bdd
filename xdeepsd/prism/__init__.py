"""PRISM: names of its files, reading them, the store that ``fetch`` fills, and the web service.

Knows nothing about networks or grids; from the rest of the package it imports only ``_version``, ``_extras`` and
``stores``.
"""

from xdeepsd._extras import require

require("prism", "Reading and fetching PRISM")
