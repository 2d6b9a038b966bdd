"""Where things lie: axes, units, cells and their bounds, alignment, missing cells, blocks, interpolation, regridding.

Plain functions on arrays and xarray objects. May import ``stores`` (for the sources of lazy arrays), never anything
that knows of networks.
"""
