"""Replay buffer: chains that persist from one training step to the next (Tieleman 2008; Du & Mordatch 2019, section 3.2).

The buffer is divided into *logical shards*, a fixed number that has nothing to do with how many workers there are: they are dealt
out to whatever workers exist, so a run may go on with fewer or more of them and no chain is lost or doubled.
"""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Mismatch, Params, PositiveInt, Probability, section
from ebm_dist.samplers import Bounds, noise

Policy = Literal["persistent", "fifo", "reservoir"]


@section
class Config:
    capacity: PositiveInt = 8192
    """Chains in the whole buffer, over all shards."""
    reinit_prob: Probability = 0.05
    """Probability that a drawn chain starts afresh from noise."""
    max_age: PositiveInt | None = None
    """Draws after which a chain starts afresh, so that none is longer than those drawn from the model; no limit if absent."""
    policy: Policy = "persistent"
    """Where a chain is put back: ``persistent``: in the place that it was drawn from (Tieleman 2008); ``fifo``: in that of the
    chain put back longest ago (the code of Du & Mordatch 2019); ``reservoir``: in a random place, the n-th with probability
    capacity / n, so that the buffer keeps samples of the whole training (Vitter 1985; Du et al. 2021)."""

    def check(self, params: Params) -> None:
        if self.capacity % params.train.num_shards or self.capacity < params.train.batch_size:
            raise Mismatch(
                "replay.capacity",
                f"{self.capacity} chains cannot be dealt to train.num_shards = {params.train.num_shards} shards of equal size"
                f" with at least train.batch_size = {params.train.batch_size} chains in all; choose a multiple",
            )


class Draw(NamedTuple):
    """Chains taken from a shard, to be put back with :meth:`ReplayShard.put`."""

    position: Tensor
    """``(n, *shape)``"""
    label: Tensor
    """``(n,)`` the class that each chain samples"""
    age: Tensor
    """``(n,)`` draws since each chain started from noise; 0 for a new one"""
    kept: Tensor
    """which of them are to be put back"""
    slots: Tensor
    """and where, all different"""


class ReplayShard:
    """The chains of one logical shard, ``(capacity, *shape)``.

    All start from noise (:func:`ebm_dist.samplers.noise`) with labels uniform over ``classes`` (those of data without labels are
    0), and at age 0; with a ``max_age`` at ages uniform below it, or else all would end together.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        bounds: Bounds,
        classes: range,
        generator: Generator,
        max_age: int | None = None,
        policy: Policy = "persistent",
    ) -> None:
        self.size, self.bounds, self.max_age, self.policy = (
            (capacity, *shape),
            bounds,
            max_age,
            policy,
        )
        self.restart(classes or range(1), generator)

    def restart(self, classes: range, generator: Generator) -> None:
        """All chains afresh, of these classes."""
        self.classes = classes
        self.position = noise(self.size, self.bounds, generator)
        self.label = self._labels(len(self.position), generator)
        self.age = torch.randint(
            self.max_age or 1, self.label.shape, generator=generator, device=generator.device
        )
        self.count = torch.full(
            (1,), len(self.position), device=generator.device
        )  # of chains ever put here

    def draw(self, n: int, reinit_prob: float, generator: Generator) -> Draw:
        """``n`` different chains, each started afresh (noise, new label) with probability ``reinit_prob`` or at ``max_age``."""
        device = self.position.device
        drawn = torch.randperm(len(self.age), generator=generator, device=device)[:n]
        restart = torch.rand(n, generator=generator, device=device) < reinit_prob
        if self.max_age is not None:
            restart |= self.age[drawn] >= self.max_age
        label = torch.where(restart, self._labels(n, generator), self.label[drawn])
        position, fresh = self.position.index_select(0, drawn), restart.nonzero().flatten()
        position[fresh] = noise((len(fresh), *position.shape[1:]), self.bounds, generator)
        return Draw(
            position,
            label,
            torch.where(restart, 0, self.age[drawn]),
            *self._places(drawn, generator),
        )

    def put(self, draw: Draw, position: Tensor) -> None:
        """Store where the drawn chains have come to, one draw older."""
        self.position[draw.slots] = position.detach()[draw.kept]
        self.label[draw.slots] = draw.label[draw.kept]
        self.age[draw.slots] = draw.age[draw.kept] + 1
        self.count += len(position)

    def _labels(self, n: int, generator: Generator) -> Tensor:
        return torch.randint(
            self.classes.start,
            self.classes.stop,
            (n,),
            generator=generator,
            device=generator.device,
        )

    def _places(self, drawn: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Which of the chains drawn from these slots to put back, and where."""
        capacity, order = len(self.age), torch.arange(len(drawn), device=drawn.device)
        if self.policy == "fifo":
            return order, (self.count + order) % capacity
        if self.policy == "reservoir":
            prob = capacity / (self.count + order + 1)
            kept = (
                (torch.rand(len(drawn), generator=generator, device=drawn.device) < prob)
                .nonzero()
                .flatten()
            )
            return kept, torch.randperm(capacity, generator=generator, device=drawn.device)[
                : len(kept)
            ]
        return order, drawn

    def state_dict(self) -> dict[str, Tensor]:
        """All there is to a shard, as a checkpoint keeps it: tensors by name."""
        return {
            "position": self.position,
            "label": self.label,
            "age": self.age,
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what a checkpoint kept. Raises :class:`ValueError` for another shape or type."""
        for name, own in self.state_dict().items():
            if own.shape != state[name].shape or own.dtype != state[name].dtype:
                raise ValueError(
                    f"chains.{name} is {tuple(state[name].shape)}, not {tuple(own.shape)}"
                )
            own.copy_(state[name])


def deal(num_shards: int, world_size: int, rank: int) -> range:
    """The logical shards of this rank: consecutive, as even as can be, each shard to exactly one rank."""
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)
