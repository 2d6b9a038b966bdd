"""Patches of a pair of levels: index arithmetic on lazy arrays, and the loader that cuts them.

A patch is three numbers: a day, and the row and column of its output window on the fine grid. Nothing is written to
disk and no list of patches is kept: once per epoch, whole chunks of days are read in random order into a bounded
buffer, and batches are cut from the buffer by index.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from xdeepsd.levels.normalizers import Normalizers
from xdeepsd.levels.pairs import Pair
from xdeepsd.models.transform import transform

logger = logging.getLogger(__name__)

MIB = 2**20


def origins_along(size: int, output: int, stride: int, unit: int = 1) -> np.ndarray:
    """First cells of windows of ``output`` cells along an axis of ``size``; the last window ends with the axis.

    The original DeepSD drops the remainder at the eastern and southern edges.

    >>> origins_along(86, 26, 20)
    array([ 0, 20, 40, 60])
    >>> origins_along(96, 26, 20)
    array([ 0, 20, 40, 60, 70])
    """
    last = size - min(output, size)
    return np.unique(np.append(np.arange(0, last + 1, stride), last) // unit * unit)


def patch_origins(mask: np.ndarray, output: tuple[int, int], stride: int, min_land: float, unit: int = 1) -> np.ndarray:
    """Origins of the output windows that hold enough land.

    Parameters
    ----------
    mask
        ``(lat, lon)`` bool on the fine grid, True where values are wanted.
    output
        Rows and columns, in fine cells, of the window in which the loss is taken.
    stride
        Step between windows in fine cells; the last window along each axis ends at the edge of the map.
    min_land
        Smallest share of wanted cells in a window, 0 to 1.
    unit
        All rows and columns are multiples of it: where coarse means are kept, windows hold whole coarse cells.

    Returns
    -------
    ``(n, 2)`` intp: row and column, in row order. Raises ValueError where no window has enough land.
    """
    rows, cols = (origins_along(n, o, stride, unit) for n, o in zip(mask.shape, output, strict=True))
    windows = sliding_window_view(mask, output)[np.ix_(rows, cols)]
    share = windows.mean(axis=(-2, -1))
    # A window of ocean alone teaches nothing, even if no land is required.
    keep = (share >= min_land) & (share > 0)
    if not keep.any():
        best = share.max()
        advice = "Look at the level's mask (True is land): no cell is True."
        if best:
            advice = (
                f"Type TrainConfig(min_land={np.floor(best * 100) / 100:g}), or a smaller patch, if the level's mask "
                "(True is land) is right."
            )
        raise ValueError(
            f"No patch with enough land: of {share.size} windows of {output[0]} x {output[1]} fine cells on a map of "
            f"{mask.shape[0]} x {mask.shape[1]}, the best has {best:.0%} wanted cells; needed: {min_land:.0%}. "
            f"{advice}"
        )
    i, j = np.nonzero(keep)
    return np.stack([rows[i], cols[j]], axis=1)


class Batch(NamedTuple):
    """Patches as tensors, normalised.

    ``inputs (batch, 1 + static, patch, patch)``; ``target``, ``mask`` and ``values (batch, output, output)``: the
    target is 0 where the mask is False; ``values`` is the fine precipitation in its units (0 there too), None unless
    asked for. Where coarse means are kept, ``coarse (batch, output / factor, output / factor)`` and ``weights (batch,
    output, output)``, which are 0 where the mask is False; else None.
    """

    inputs: Tensor
    target: Tensor
    mask: Tensor
    values: Tensor | None
    coarse: Tensor | None
    weights: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        inputs = self.inputs.to(device, memory_format=torch.channels_last, non_blocking=True)
        others = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self[1:])
        return Batch(inputs, *others)  # type: ignore[arg-type]


class _Buffer:
    """Some slabs in memory, normalised, read by threads."""

    def __init__(self, loader: PatchLoader, which: Sequence[int], pool: ThreadPoolExecutor) -> None:
        days = [loader.slabs[i] for i in which]
        count, radius = sum(map(len, days)), loader.pair.config.radius
        nlat, nlon = loader.pair.shape
        self.days = np.concatenate(days)
        self.inputs = np.empty((count, nlat + 2 * radius, nlon + 2 * radius), np.float32)
        self.target = np.empty((count, nlat, nlon), np.float32)
        self.values = np.empty((count, nlat, nlon), np.float32) if loader.with_values else None
        config = loader.pair.config
        low = (count, nlat // config.factor, nlon // config.factor)
        self.coarse = np.empty(low, np.float32) if config.conserve else None
        self._loader = loader
        starts = np.cumsum([0, *map(len, days)])
        self._filled = [pool.submit(self._fill, slab, int(at)) for slab, at in zip(days, starts[:-1], strict=True)]

    def _fill(self, slab: np.ndarray, at: int) -> None:
        pair, normalizers = self._loader.pair, self._loader.normalizers
        radius, place = pair.config.radius, slice(at, at + len(slab))
        coarse, interpolated, values = pair.read(slab)
        inputs, target = self.inputs[place], self.target[place]
        inputs[:] = interpolated
        target[:] = transform(torch.from_numpy(values), pair.transform).numpy()
        if pair.config.residual:
            target -= interpolated[:, radius:-radius, radius:-radius] if radius else interpolated
        for part, n in ((inputs, normalizers.precipitation), (target, normalizers.target)):
            part -= np.float32(n.mean)
            part /= np.float32(n.std)
        if self.values is not None:
            self.values[place] = values
        if self.coarse is not None:
            self.coarse[place] = coarse

    def wait(self) -> None:
        """Wait until all slabs are read; re-raises any error from reading them."""
        for future in self._filled:
            future.result()


class _Piece(NamedTuple):
    """The part of a batch that comes from one buffer: epoch, number of the buffer in it, slabs, patches."""

    epoch: int
    number: int
    slabs: tuple[int, ...]
    patches: np.ndarray


class PatchLoader:
    """An endless stream of batches of shuffled patches, the same for the same seed whatever the number of threads.

    An epoch goes through the slabs (chunks of days) in random order, a bufferful at a time; the patches of a
    bufferful come in random order. While one bufferful is cut, threads read the next. If all slabs fit into the
    buffer, they are read once for all epochs.

    Parameters
    ----------
    pair, normalizers
        What to read, and how to normalise it.
    days
        Slabs, from `slabs`.
    origins, output
        Output windows, from `patch_origins`, and their rows and columns.
    batch
        Patches in a batch.
    seed
        Whole numbers; every random choice follows from them and from the position in the stream.
    buffer
        Bytes that the buffers may take together. At least one slab is held, however large.
    workers
        Threads that read, and threads that cut; they affect only the speed.
    with_values
        Also give the fine precipitation in its units (for DenseLoss, and losses in mm).
    """

    def __init__(
        self,
        pair: Pair,
        normalizers: Normalizers,
        days: Sequence[np.ndarray],
        origins: np.ndarray,
        output: tuple[int, int],
        batch: int,
        seed: Sequence[int],
        buffer: int = 512 * MIB,
        workers: int = 2,
        with_values: bool = False,
    ) -> None:
        self.pair, self.normalizers, self.slabs = pair, normalizers, list(days)
        self.origins, self.output, self.batch = origins, output, batch
        self.seed, self.workers, self.with_values = tuple(seed), workers, with_values
        radius = pair.config.radius
        self.window = (output[0] + 2 * radius, output[1] + 2 * radius)
        largest = max(map(len, self.slabs)) * bytes_per_day(pair, with_values)
        if sum(map(len, self.slabs)) * bytes_per_day(pair, with_values) <= buffer:
            self._group_size = len(self.slabs)
        else:
            # Two at a time: one being cut and one being read.
            self._group_size = max(1, int(buffer // (2 * largest)))
        if largest > buffer:
            logger.warning(
                "A chunk of %d days takes %.0f MiB, more than the buffer of %.0f MiB. Chunks of fewer days take less "
                "memory and shuffle better.", max(map(len, self.slabs)), largest / MIB, buffer / MIB,
            )  # fmt: skip
        normalized = [n.apply(field) for n, field in zip(normalizers.static.values(), pair.static, strict=True)]
        nlat, nlon = pair.shape
        static = np.stack(normalized) if normalized else np.empty((0, nlat, nlon), np.float32)
        static = np.pad(static.astype(np.float32), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
        # (row, col, static, patch, patch): a view, cut by row and column
        self._static = sliding_window_view(static, self.window, axis=(1, 2)).transpose(1, 2, 0, 3, 4)

    def __len__(self) -> int:
        """Patches in an epoch."""
        return sum(map(len, self.slabs)) * len(self.origins)

    def epoch(self, step: int) -> float:
        """Epochs completed before batch ``step``."""
        return step * self.batch / len(self)

    def _groups(self, epoch: int) -> list[tuple[int, ...]]:
        """Slabs that are buffered together, in the order of one epoch."""
        order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.slabs))
        size = self._group_size
        return [tuple(sorted(order[i : i + size].tolist())) for i in range(0, len(order), size)]

    def _count(self, group: Sequence[int]) -> int:
        return sum(len(self.slabs[i]) for i in group) * len(self.origins)

    def _order_of_groups(self, step: int) -> Iterator[tuple[int, int, tuple[int, ...], int]]:
        """Epoch, number, slabs and first patch of each group that is buffered, in order, from batch ``step`` on."""
        epoch, offset = divmod(step * self.batch, len(self))
        while True:
            for number, group in enumerate(self._groups(epoch)):
                count = self._count(group)
                if offset < count:
                    yield epoch, number, group, offset
                offset = max(offset - count, 0)
            epoch += 1

    def _plan(self, step: int) -> Iterator[list[_Piece]]:
        """The pieces of every batch from ``step`` on: arithmetic only."""
        pieces: list[_Piece] = []
        wanted = self.batch
        for epoch, number, group, offset in self._order_of_groups(step):
            order = np.random.default_rng([*self.seed, epoch, number]).permutation(self._count(group))[offset:]
            while len(order):
                taken, order = order[:wanted], order[wanted:]
                pieces.append(_Piece(epoch, number, group, taken))
                wanted -= len(taken)
                if not wanted:
                    yield pieces
                    pieces, wanted = [], self.batch

    def days_of(self, step: int) -> np.ndarray:
        """Positions along time of the days that batch ``step`` is cut from."""
        pieces = next(self._plan(step))
        days = [
            np.concatenate([self.slabs[i] for i in piece.slabs])[piece.patches // len(self.origins)] for piece in pieces
        ]
        return np.unique(np.concatenate(days))

    def _cut(self, parts: Sequence[tuple[_Buffer, np.ndarray]]) -> Batch:
        size = sum(len(patches) for _, patches in parts)
        inputs = np.empty((size, 1 + self._static.shape[2], *self.window), np.float32)
        target = np.empty((size, *self.output), np.float32)
        values = np.empty((size, *self.output), np.float32) if self.with_values else None
        config = self.pair.config
        low = self.output[0] // config.factor, self.output[1] // config.factor
        coarse = np.empty((size, *low), np.float32) if config.conserve else None
        weights = np.empty((size, *self.output), np.float32) if config.conserve else None
        at = 0
        for buffer, patches in parts:
            place = slice(at, at + len(patches))
            at += len(patches)
            day, number = np.divmod(patches, len(self.origins))
            row, col = self.origins[number].T
            # The input window of output window (row, col) has the same index in the map padded by `radius` cells.
            inputs[place, 0] = sliding_window_view(buffer.inputs, self.window, axis=(1, 2))[day, row, col]
            inputs[place, 1:] = self._static[row, col]
            target[place] = sliding_window_view(buffer.target, self.output, axis=(1, 2))[day, row, col]
            if values is not None and buffer.values is not None:
                values[place] = sliding_window_view(buffer.values, self.output, axis=(1, 2))[day, row, col]
            if coarse is not None and weights is not None and buffer.coarse is not None:
                at_low = row // config.factor, col // config.factor
                coarse[place] = sliding_window_view(buffer.coarse, low, axis=(1, 2))[day, *at_low]
                weights[place] = sliding_window_view(self.pair.weights, self.output)[row, col]
        mask = ~np.isnan(target)
        target[~mask] = 0.0
        if values is not None:
            values[~mask] = 0.0
        if weights is not None:
            weights *= mask
        arrays = (inputs, target, mask, values, coarse, weights)
        return Batch(*(None if array is None else torch.from_numpy(array) for array in arrays))  # type: ignore[arg-type]

    def batches(self, step: int = 0) -> Generator[Batch, None, None]:
        """Batches from number ``step`` on, the same as when iterating from 0."""
        reading = ThreadPoolExecutor(self.workers, thread_name_prefix="read")
        cutting = ThreadPoolExecutor(self.workers, thread_name_prefix="cut")
        pending: deque[Future[Batch]] = deque()
        try:
            upcoming = (group for _, _, group, _ in self._order_of_groups(step))
            slabs = next(upcoming)
            current = following = _Buffer(self, slabs, reading)
            inside: tuple[int, int] | None = None
            for pieces in self._plan(step):
                parts = []
                for piece in pieces:
                    if inside != (piece.epoch, piece.number):
                        inside, current = (piece.epoch, piece.number), following
                        current.wait()
                        before, slabs = slabs, next(upcoming)
                        following = current if slabs == before else _Buffer(self, slabs, reading)
                    parts.append((current, piece.patches))
                pending.append(cutting.submit(self._cut, parts))
                del parts
                if len(pending) > 2 * self.workers:
                    yield pending.popleft().result()
        finally:
            reading.shutdown(wait=True, cancel_futures=True)
            cutting.shutdown(wait=True, cancel_futures=True)


def bytes_per_day(pair: Pair, with_values: bool = False) -> int:
    """Bytes that one day takes in a buffer."""
    (nlat, nlon), radius = pair.shape, pair.config.radius
    maps = 1 + with_values + (1 / pair.config.factor**2 if pair.config.conserve else 0)
    return int(4 * ((nlat + 2 * radius) * (nlon + 2 * radius) + maps * nlat * nlon))
