"""The training data of a logical shard: the samples of a step are a function of the step."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ebm_dist.data import shards
from ebm_dist.errors import DataError
from ebm_dist.rng import numpy_stream


class LogicalShard:
    """The training data of one logical shard: tars ``shard, shard + num_shards, ...``.

    Samples are kept in memory as stored. The samples of a step are a function of the step: each
    epoch has its own random order, and a batch may span two epochs.
    """

    def __init__(
        self,
        index: shards.Index,
        split: str,
        shard: int,
        num_shards: int,
        batch_size: int,
        seed: int,
    ) -> None:
        if shards.NUM_TARS % num_shards:
            raise DataError(
                f"{index.folder}: {shards.NUM_TARS} tars cannot be dealt evenly to {num_shards}"
                " logical shards; set train.num_shards to 1, 2, 4, 8 or 16"
            )
        x, y = shards.read_raw(index, split, range(shard, shards.NUM_TARS, num_shards))
        if not len(x):
            raise DataError(
                f"{index.folder}: logical shard {shard} of {num_shards} has no {split} samples;"
                " lower train.num_shards"
            )
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.scale, self.shard, self.batch_size, self.seed = index.scale, shard, batch_size, seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def only(self, classes: range) -> "LogicalShard":
        """Return a copy with only the samples of some classes.

        Raise :class:`DataError` if there are none.
        """
        part = copy.copy(self)
        rows = ((self.y >= classes.start) & (self.y < classes.stop)).nonzero().flatten()
        if not len(rows):
            raise DataError(
                f"logical shard {self.shard} has no sample of the classes {[*classes]}; lower"
                " train.num_shards"
            )
        part.x, part.y, part._order = self.x[rows], self.y[rows], (-1, torch.empty(0))
        return part

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return samples ``(batch_size, *shape)`` and labels ``(batch_size,)`` of a step from 0."""
        epoch, offset = divmod(step * self.batch_size, len(self.x))
        parts: list[Tensor] = []
        missing = self.batch_size
        while missing:
            parts.append(self._epoch_order(epoch)[offset : offset + missing])
            missing -= len(parts[-1])
            epoch, offset = epoch + 1, 0
        rows = torch.cat(parts)
        return shards.to_model(self.x.index_select(0, rows), self.scale), self.y[rows]

    def sum(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum a function ``(B, *shape) -> (B, ...)`` of float64 samples over all samples."""
        return torch.stack(
            [of(part.double() / self.scale).sum(dim=0) for part in self.x.split(1000)]
        ).sum(dim=0)

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            order = numpy_stream(self.seed, "order", self.shard, epoch).permutation(len(self.x))
            self._order = (epoch, torch.from_numpy(order))
        return self._order[1]
