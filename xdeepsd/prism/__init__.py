"""PRISM: the names of its files, reading them, the store that ``fetch`` fills, and the web service.

Knows nothing of networks and grids, and imports nothing of the package but its version, parts and ``stores``.
"""

from xdeepsd._extras import require

require("prism", "Reading and fetching PRISM")
