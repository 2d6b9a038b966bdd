"""Zarr stores that survive any interruption, and files that are written whole or not at all.

Knows nothing about networks or grids, and imports nothing else from the package.
"""
