"""Weights between grids of any kind, with cells bounded by great circles as in ESMF (numpy, scipy, spherely)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from xdeepsd._extras import require
from xdeepsd.grids.cells import Grid, unit_vectors

# Weights below this count as 0, and points closer to an edge than this fraction of a cell lie on it.
_ON_EDGE = 1e-9
# Target cells processed at a time: limits the pairs of cells in memory to some 100 MB.
_BLOCK = 1024


def csr(row: np.ndarray, col: np.ndarray, share: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Sum of the shares by row and column; zeros are left out so that NaN values there do not count."""
    matrix = sparse.coo_array((share, (row, col)), shape=shape).tocsr()
    matrix.eliminate_zeros()
    return matrix


def _polygons(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Spherical polygons from corners ``(n, 4)``; corners that coincide (at a pole) count once."""
    import spherely

    polygons = []
    for lats, lons in zip(lat, lon, strict=True):
        corners = [(x if abs(y) < 90.0 else 0.0, y) for x, y in zip(lons.tolist(), lats.tolist(), strict=True)]
        shell = [c for i, c in enumerate(corners) if c != corners[i - 1]]
        try:
            polygons.append(spherely.create_polygon(shell))
        except ValueError as error:
            raise ValueError(
                f"The corners {corners} (longitude, latitude) do not form a polygon on the sphere ({error}). "
                "Needed: cells narrower than half the earth, with corners in order around them. Correct the bounds, or "
                "type ds.drop_vars(NAMES_OF_THE_BOUNDS) to have them inferred from the centres."
            ) from error
    return np.array(polygons, dtype=object)


def _balls(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre ``(n, 3)`` and radius ``(n,)`` of a ball around the corners ``(n, 4, 3)`` of each cell."""
    middle = corners.mean(axis=1)
    with np.errstate(invalid="ignore"):
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    radius = np.linalg.norm(corners - middle[:, None], axis=-1).max(axis=1)
    # The ball of a cell as wide as a hemisphere need not contain its edges, which may go either way round the earth.
    wide = np.count_nonzero(~(radius < 1.4142))
    if wide:
        raise ValueError(
            f"{wide} of {len(radius)} cells, or quadrilaterals between centres, reach halfway round the earth. Needed: "
            "smaller ones, whose edges are great circles. Leave engine out between 1-D grids, or type method='nearest'."
        )
    return middle, radius


def _near(
    source: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of target and source cells whose balls overlap, (target index, source index), a block of targets at a time.

    Pairs whose balls share only a point are left out: their cells have no area in common.
    """
    (source_middle, source_radius), (target_middle, target_radius) = source, target
    tree = cKDTree(source_middle)
    for start in range(0, len(target_middle), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = tree.query_ball_point(target_middle[block], target_radius[block] + source_radius.max())
        row = np.repeat(np.arange(start, start + len(near)), [len(n) for n in near])
        col = np.concatenate([np.asarray(n, np.intp) for n in near])
        distance = np.linalg.norm(target_middle[row] - source_middle[col], axis=1)
        touching = distance < target_radius[row] + source_radius[col]
        if touching.any():
            yield row[touching], col[touching]


def intersections(source: Grid, target: Grid) -> sparse.csr_array:
    """Share of each target cell's area in each source cell; edges are great circles, as in ESMF.

    A tree of cell centres finds the candidates and S2 (spherely) computes areas, a block of target cells at a time.
    """
    require("regrid", "Conservative regridding between these grids")
    import spherely

    source_lat, source_lon = source.corners()
    target_lat, target_lon = target.corners()
    balls = (_balls(unit_vectors(lat, lon)) for lat, lon in ((source_lat, source_lon), (target_lat, target_lon)))
    rows, cols, shares = [], [], []
    for row, col in _near(*balls):
        (cells, row_in_block), (used, col_in_block) = (np.unique(n, return_inverse=True) for n in (row, col))
        polygons = _polygons(target_lat[cells], target_lon[cells])
        common = spherely.intersection(
            polygons[row_in_block], _polygons(source_lat[used], source_lon[used])[col_in_block]
        )
        rows.append(row)
        cols.append(col)
        shares.append(spherely.area(common, radius=1.0) / spherely.area(polygons, radius=1.0)[row_in_block])
    shape = (len(target_lat), len(source_lat))
    if not rows:
        return sparse.csr_array(shape)
    return csr(np.concatenate(rows), np.concatenate(cols), np.concatenate(shares), shape)


def bilinear(source: Grid, target: Grid) -> sparse.csr_array:
    """Bilinear weights within the quadrilaterals of four source centres, as ESMF computes them.

    A target point p lies in the quadrilateral a, b, c, d (unit vectors) where some u and v in [0, 1] put
    ``(1-u)(1-v) a + u(1-v) b + uv c + (1-u)v d`` on the line through p. On an edge between two quadrilaterals, the
    first is taken.
    """
    lat, lon, number = source.closed_centres()
    corner = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None)),
              (slice(1, None), slice(1, None)), (slice(1, None), slice(None, -1))]  # fmt: skip
    quads = np.stack([unit_vectors(lat[c], lon[c]) for c in corner], axis=2).reshape(-1, 4, 3)
    number = np.stack([number[c] for c in corner], axis=2).reshape(-1, 4)
    middle, radius = _balls(quads)
    radius = radius * (1 + _ON_EDGE)
    goal = unit_vectors(*target.centres()).reshape(-1, 3)
    rows, cols, shares = [np.empty(0, int)], [np.empty(0, int)], [np.empty(0)]
    for row, quad in _near((middle, radius), (goal, np.zeros(len(goal)))):
        u, v, miss = _place(goal[row], quads[quad])
        inside = np.flatnonzero(miss <= _ON_EDGE * radius[quad])
        inside = inside[np.unique(row[inside], return_index=True)[1]]
        u, v = u[inside], v[inside]
        share = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], axis=1)
        rows.append(np.repeat(row[inside], 4))
        cols.append(number[quad[inside]].ravel())
        shares.append(np.where(share < _ON_EDGE, 0.0, share).ravel())
    return csr(np.concatenate(rows), np.concatenate(cols), np.concatenate(shares), (len(goal), source.size))


def _place(goal: np.ndarray, quads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``u`` and ``v`` in [0, 1] of the place in each quadrilateral nearest to its point ``(n, 3)``, and the distance.

    Projected along the line from the centre of the sphere to the point, the quadrilateral is flat and v is the root of
    a quadratic.
    """
    flat = quads - (quads * goal[:, None]).sum(axis=-1, keepdims=True) * goal[:, None]
    a, b, c, d = np.moveaxis(flat, 1, 0)
    along_u, along_v, twist = b - a, d - a, a - b + c - d

    def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (np.cross(x, y) * goal).sum(axis=-1)

    second, first, none = cross(along_v, twist), cross(a, twist) + cross(along_v, along_u), cross(a, along_u)
    root = np.sqrt(np.maximum(first**2 - 4 * second * none, 0.0))
    half = -(first + np.where(first < 0, -root, root)) / 2
    found = [np.full(len(goal), value) for value in (0.0, 0.0, np.inf)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for v in (none / half, half / second):
            v = np.clip(np.nan_to_num(v), 0.0, 1.0)[:, None]
            across = along_u + v * twist
            # If an edge is a single point (at a pole), any u will do.
            u = np.clip(np.nan_to_num(-((a + v * along_v) * across).sum(axis=-1) / (across**2).sum(axis=-1)), 0.0, 1.0)
            miss = np.linalg.norm(a + u[:, None] * across + v * along_v, axis=-1)
            better = miss < found[2]
            found = [np.where(better, new, old) for new, old in zip((u, v[:, 0], miss), found, strict=True)]
    return found[0], found[1], found[2]
