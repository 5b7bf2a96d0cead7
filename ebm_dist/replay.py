"""Replay buffer: chains that persist from one training step to the next (Tieleman 2008; Du & Mordatch 2019, section 3.2).

The buffer is divided into *logical shards*, a fixed number that has nothing to do with how many workers there are: they are dealt
out to whatever workers exist, so a run may go on with fewer or more of them and no chain is lost or doubled.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Count, Fraction, Mismatch, Params, section
from ebm_dist.samplers import Bounds, noise


@section
class Config:
    capacity: Count = 8192
    """Chains in the whole buffer, over all shards."""
    reinit_prob: Fraction = 0.05
    """Probability that a drawn chain starts afresh from noise."""
    max_age: Count | None = None
    """Draws after which a chain starts afresh, so that none is longer than those drawn from the model; no limit if absent."""

    def check(self, params: Params) -> None:
        if self.capacity % params.train.num_shards or self.capacity < params.train.batch_size:
            raise Mismatch(
                "replay.capacity",
                f"{self.capacity} chains cannot be dealt to train.num_shards = {params.train.num_shards} shards of equal size"
                f" with at least train.batch_size = {params.train.batch_size} chains in all; choose a multiple",
            )


class Draw(NamedTuple):
    """Chains taken from a shard, to be put back with :meth:`ReplayShard.put`."""

    slots: Tensor
    """``(n,)`` where they are kept, all different"""
    position: Tensor
    """``(n, *shape)``"""
    label: Tensor
    """``(n,)`` the class that each chain samples"""
    age: Tensor
    """``(n,)`` draws since each chain started from noise; 0 for a new one"""


class ReplayShard:
    """The chains of one logical shard: position ``(capacity, *shape)``, label and age ``(capacity,)``.

    All start from noise (:func:`ebm_dist.samplers.noise`) with labels uniform over ``max(num_classes, 1)`` classes, and at age 0;
    with a ``max_age`` at ages uniform below it, or else all would end together.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        bounds: Bounds,
        num_classes: int,
        generator: Generator,
        max_age: int | None = None,
    ) -> None:
        self.bounds, self.num_classes, self.max_age = bounds, max(num_classes, 1), max_age
        device = generator.device
        self.position = noise((capacity, *shape), bounds, generator)
        self.label = torch.randint(self.num_classes, (capacity,), generator=generator, device=device)
        self.age = torch.randint(max_age or 1, (capacity,), generator=generator, device=device)

    def draw(self, n: int, reinit_prob: float, generator: Generator) -> Draw:
        """``n`` different chains, each started afresh (noise, new label) with probability ``reinit_prob`` or at ``max_age``."""
        device = self.position.device
        slots = torch.randperm(len(self.age), generator=generator, device=device)[:n]
        restart = torch.rand(n, generator=generator, device=device) < reinit_prob
        if self.max_age is not None:
            restart |= self.age[slots] >= self.max_age
        label = torch.randint(self.num_classes, (n,), generator=generator, device=device)
        position, fresh = self.position.index_select(0, slots), restart.nonzero().flatten()
        position[fresh] = noise((len(fresh), *position.shape[1:]), self.bounds, generator)
        return Draw(slots, position, torch.where(restart, label, self.label[slots]), torch.where(restart, 0, self.age[slots]))

    def put(self, draw: Draw, position: Tensor) -> None:
        """Store where the drawn chains have come to, one draw older."""
        self.position[draw.slots] = position.detach()
        self.label[draw.slots] = draw.label
        self.age[draw.slots] = draw.age + 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"position": self.position, "label": self.label, "age": self.age}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in self.state_dict().items():
            if own.shape != state[name].shape or own.dtype != state[name].dtype:
                raise ValueError(f"chains.{name} is {tuple(state[name].shape)}, not {tuple(own.shape)}")
            own.copy_(state[name])


def deal(num_shards: int, world_size: int, rank: int) -> range:
    """The logical shards of this rank: consecutive, as even as can be, each shard to exactly one rank."""
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)
