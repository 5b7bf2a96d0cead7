"""The training data of a logical shard: the samples of a step are a function of the step.

A logical shard has the tars ``shard, shard + num_shards, ...`` of a split; where there are more
shards than tars, several share the samples of a tar in turn. Each epoch takes its packs in a random
order, and shuffles the samples within each *window* of consecutive packs. A window of all packs,
the default for data that fit in memory, is a random order of all samples.

The order depends on the data, the seed and the window, and not on where the samples are: data in
memory, and packs read as they are needed, give the same bits for any number of workers.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebm_dist.data import shards
from ebm_dist.errors import DataError
from ebm_dist.rng import numpy_stream

Cache = Literal["auto", "memory", "stream"]
Rows = npt.NDArray[np.int64]

_WINDOW = 64  # packs, of data written to be streamed
_PART = 1000  # samples of a sum
_READERS = 4  # threads that read ahead: a store answers several requests at once


def default_window(index: shards.Index, split: str) -> int | None:
    """Return the packs of a window; None for all, of data that fit in memory."""
    return _WINDOW if shards.is_streamed(index, split) else None


class Samples(NamedTuple):
    """Samples as stored ``(n, *shape)`` and labels ``(n,)``."""

    x: Tensor
    y: Tensor


class Memory:
    """The samples of a shard, read at once: every ``step``-th from ``first``."""

    def __init__(self, reader: shards.Packs, first: int, step: int) -> None:
        x, y = (part[first::step] for part in reader.read_all())
        self.first, self.step = first, step
        self.samples = Samples(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (x, y)))

    def labels(self, rows: Rows) -> Tensor:
        """Return the labels of some rows ``(m,)``."""
        return self.samples.y[torch.from_numpy((rows - self.first) // self.step)]

    @property
    def bytes_held(self) -> int:
        """Bytes of samples and labels in memory."""
        return sum(part.numel() * part.element_size() for part in self.samples)

    def take(self, rows: Rows) -> Samples:
        """Return the samples of some rows ``(m,)``."""
        order = torch.from_numpy((rows - self.first) // self.step)
        return Samples(self.samples.x.index_select(0, order), self.samples.y[order])

    def expect(self, packs: Iterable[int]) -> None:
        """Prepare for these packs, which are needed next."""


class Stream:
    """Packs that are read as they are needed; threads read another window of them ahead.

    Packs of two windows are held, side by side in one buffer, which forgets those unused longest.
    """

    def __init__(self, reader: shards.Packs, window: int) -> None:
        self.reader, self.window = reader, window
        self.num_slots = min(2 * window, len(reader))
        self.slot_size = max(pack.num_samples for _, pack in reader.packs)
        self.held: OrderedDict[int, int] = OrderedDict()
        """slot of each pack in the buffer, in the order of their use"""
        self.places = np.zeros(len(reader), np.int64)
        """``(len(reader),)`` row of the buffer where a pack that is held begins"""
        self.buffer: tuple[Tensor, ...] = ()
        """samples and labels"""
        self.ahead: dict[int, Future[Samples]] = {}
        self.threads = ThreadPoolExecutor(_READERS, "packs")

    def labels(self, rows: Rows) -> Tensor:
        """Return the labels of some rows ``(m,)``, in a pass over the packs."""
        return torch.cat([self._read(pack).y for pack in range(len(self.reader))])[rows]

    @property
    def bytes_held(self) -> int:
        """Bytes of packs in memory, at most."""
        largest = max(pack.x[1] + pack.y[1] for _, pack in self.reader.packs)
        return largest * min(3 * self.window, len(self.reader))

    def take(self, rows: Rows) -> Samples:
        """Return the samples of some rows ``(m,)``."""
        packs = np.searchsorted(self.reader.starts, rows, side="right") - 1
        needed = np.unique(packs)
        if len(needed) > self.num_slots:
            halves = zip(*map(self.take, np.array_split(rows, 2)), strict=True)
            return Samples(*map(torch.cat, halves))
        for pack in needed:
            self._hold(int(pack))
        at = torch.from_numpy(self.places[packs] + rows - self.reader.starts[packs])
        return Samples(*(whole.index_select(0, at) for whole in self.buffer))

    def expect(self, packs: Iterable[int]) -> None:
        """Read these packs ahead, in threads, and forget what else was read ahead."""
        self.ahead = {
            pack: self.ahead.get(pack) or self.threads.submit(self._read, pack)
            for pack in map(int, packs)
            if pack not in self.held
        }

    def _hold(self, pack: int) -> None:
        """Have a pack in the buffer."""
        if pack in self.held:
            self.held.move_to_end(pack)
            return
        waited = self.ahead.pop(pack, None)
        part = waited.result() if waited else self._read(pack)
        if not self.buffer:
            size = self.num_slots * self.slot_size
            self.buffer = tuple(new.new_empty((size, *new.shape[1:])) for new in part)
        full = len(self.held) == self.num_slots
        slot = self.held.popitem(last=False)[1] if full else len(self.held)
        self.held[pack], self.places[pack] = slot, slot * self.slot_size
        for whole, new in zip(self.buffer, part, strict=True):
            whole[slot * self.slot_size :][: len(new)] = new

    def _read(self, pack: int) -> Samples:
        x, y = self.reader.read(pack)
        return Samples(torch.from_numpy(x), torch.from_numpy(y))


class LogicalShard:
    """The training data of one logical shard.

    ``window``: packs within which samples are shuffled; :func:`default_window` if None.
    ``cache``: ``memory``, ``stream``, or ``auto``, which streams data written to be streamed.
    """

    def __init__(
        self,
        index: shards.Index,
        split: str,
        shard: int,
        num_shards: int,
        batch_size: int,
        seed: int,
        *,
        window: int | None = None,
        cache: Cache = "auto",
    ) -> None:
        num_tars = len(index.splits[split])
        if num_tars % num_shards and num_shards % num_tars:
            raise DataError(
                f"{index.folder}: {num_tars} tars cannot be dealt evenly to {num_shards}"
                " logical shards; set train.num_shards to a power of 2"
            )
        first, step = shard // num_tars, max(1, num_shards // num_tars)
        tars = range(shard % num_tars, num_tars, min(num_shards, num_tars))
        reader = shards.Packs(index, split, tars)
        if reader.num_samples <= first:
            raise DataError(
                f"{index.folder}: logical shard {shard} of {num_shards} has no {split} samples;"
                " lower train.num_shards"
            )
        default = default_window(index, split)
        self.window = window or default
        streams = cache == "stream" or (cache == "auto" and default is not None)
        self.store: Memory | Stream = (
            Stream(reader, self.window or len(reader)) if streams else Memory(reader, first, step)
        )
        self.starts, self.scale = reader.starts, index.scale
        self.shard, self.batch_size, self.seed = shard, batch_size, seed
        self._choose(np.arange(first, reader.num_samples, step))

    def _choose(self, rows: Rows) -> None:
        """Restrict the shard to some rows, in growing order."""
        self.rows = rows
        ends = np.append(self.starts[1:], np.iinfo(np.int64).max)
        self.bounds = np.stack([np.searchsorted(rows, self.starts), np.searchsorted(rows, ends)])
        self._order: tuple[tuple[int, int], Rows] = ((-1, -1), rows[:0])
        self._plan: tuple[int, list[Rows], Rows] = (-1, [], rows[:0])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bytes_held(self) -> int:
        """Bytes of data in memory, at most."""
        return self.store.bytes_held

    def only(self, classes: range) -> "LogicalShard":
        """Return a copy with only the samples of some classes.

        Raise :class:`DataError` if there are none.
        """
        part, y = copy.copy(self), self.store.labels(self.rows).numpy()
        rows = self.rows[(y >= classes.start) & (y < classes.stop)]
        if not len(rows):
            raise DataError(
                f"logical shard {self.shard} has no sample of the classes {[*classes]}; lower"
                " train.num_shards"
            )
        part._choose(rows)
        return part

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return samples ``(batch_size, *shape)`` and labels ``(batch_size,)`` of a step from 0.

        A batch may span two windows and two epochs.
        """
        epoch, offset = divmod(step * self.batch_size, len(self))
        parts, missing = list[Rows](), self.batch_size
        while missing:
            parts.append(self._ordered(epoch, offset)[:missing])
            missing -= len(parts[-1])
            epoch, offset = divmod(epoch * len(self) + offset + len(parts[-1]), len(self))
        samples = self.store.take(np.concatenate(parts))
        return shards.to_model(samples.x, self.scale), samples.y

    def sum(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum a function ``(B, *shape) -> (B, ...)`` of float64 samples over all samples."""
        parts = (self.store.take(self.rows[i : i + _PART]).x for i in range(0, len(self), _PART))
        return reduce(torch.add, (of(part.double() / self.scale).sum(dim=0) for part in parts))

    def _ordered(self, epoch: int, offset: int) -> Rows:
        """Return the rows from a place in an epoch to the end of its window."""
        if self.window is None:
            return self._shuffled((epoch, 0), "order", lambda: self.rows)[offset:]
        windows, ends = self._windows(epoch)
        number = int(np.searchsorted(ends, offset, side="right"))
        if self._order[0] != (epoch, number):
            self.store.expect(pack for w in windows[number + 1 : number + 2] for pack in w)
        rows = self._shuffled(
            (epoch, number), f"window/{number}", lambda: self._rows_of(windows[number])
        )
        return rows[len(rows) + offset - ends[number] :]

    def _windows(self, epoch: int) -> tuple[list[Rows], Rows]:
        """Return the packs of each window of an epoch, and the places where windows end."""
        if self._plan[0] != epoch:
            assert self.window is not None
            sizes = self.bounds[1] - self.bounds[0]
            order = numpy_stream(self.seed, "packs", self.shard, epoch).permutation(
                np.flatnonzero(sizes)
            )
            windows = [order[i : i + self.window] for i in range(0, len(order), self.window)]
            self._plan = (epoch, windows, np.cumsum([sizes[packs].sum() for packs in windows]))
        return self._plan[1:]

    def _rows_of(self, packs: Rows) -> Rows:
        return np.concatenate([self.rows[slice(*self.bounds[:, pack])] for pack in packs])

    def _shuffled(self, place: tuple[int, int], purpose: str, rows_of: Callable[[], Rows]) -> Rows:
        if self._order[0] != place:
            rows = rows_of()
            stream = numpy_stream(self.seed, purpose, self.shard, place[0])
            self._order = (place, rows[stream.permutation(len(rows))])
        return self._order[1]
