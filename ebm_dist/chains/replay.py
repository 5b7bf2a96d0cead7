"""Replay buffer: chains that persist from one training step to the next.

Tieleman (2008); Du & Mordatch (2019), section 3.2. The buffer is divided into a fixed number of
*logical shards*, which does not depend on the number of workers. The shards are dealt to the
available workers. A run can therefore continue with a different number of workers, without losing
or duplicating a chain.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.chains.build import check_temperatures
from ebm_dist.config import Mismatch, Params, Positive, PositiveInt, Probability, section
from ebm_dist.samplers import Bounds, noise

Policy = Literal["persistent", "fifo", "reservoir"]
_PART = 1024  # chains made at once on a GPU for the memory of the host


@section
class Config:
    capacity: PositiveInt = 8192
    """Number of chains in the buffer, over all shards."""
    reinit_prob: Probability = 0.05
    """Probability that a drawn chain restarts from noise."""
    max_age: PositiveInt | None = None
    """Number of draws after which a chain restarts from noise; no limit if absent. It keeps the
    chains of training no longer than the chains that sample the trained model."""
    policy: Policy = "persistent"
    """Slot that a chain is returned to. ``persistent``: the slot it was drawn from (Tieleman 2008).
    ``fifo``: the slot of the chain that was returned longest ago (code of Du & Mordatch 2019).
    ``reservoir``: a random slot, with probability capacity / n for the n-th chain, so that the
    buffer keeps samples of the whole training (Vitter 1985; Du et al. 2021)."""

    temperatures: tuple[Positive, ...] = ()
    """Tempered chains (Desjardins et al. 2010): a replica of each chain at each temperature, from 1
    up, in units of the sampler's. Neighbours exchange positions, all replicas persist, and the
    coldest are the negatives. Chains take as many times longer as there are temperatures. Plain
    chains if empty."""

    on_host: bool = False
    """Keep chains in the memory of the host, page-locked, for a buffer larger than the memory of a
    GPU. Those drawn are on the GPU during the step."""

    added_keys = ("temperatures", "on_host")

    def check(self, params: Params) -> None:
        if self.capacity % params.train.num_shards or self.capacity < params.train.batch_size:
            raise Mismatch(
                "replay.capacity",
                f"must be a multiple of train.num_shards = {params.train.num_shards} and at least"
                f" train.batch_size = {params.train.batch_size}, found {self.capacity}",
                "change one of these three values",
            )
        if not self.temperatures:
            return
        if not params.objective.keeps_chains:
            raise Mismatch(
                "replay.temperatures",
                "needs an objective with persistent chains, such as contrastive_divergence",
            )
        if params.train.compile or params.train.precision != "float32":
            raise Mismatch(
                "replay.temperatures",
                "tempered chains are neither compiled nor in bfloat16; leave one of the two out",
            )
        check_temperatures("replay.temperatures", self.temperatures, params)


class Draw(NamedTuple):
    """Chains drawn from a shard, to be returned with :meth:`ReplayShard.put`."""

    position: Tensor
    """``(n, *shape)``"""
    label: Tensor
    """``(n,)`` class that each chain samples"""
    age: Tensor
    """``(n,)`` draws since each chain started from noise; 0 for a new one"""
    kept: Tensor
    """``(m,)`` indices of the chains to return"""
    slots: Tensor
    """``(m,)`` their slots, all different"""


class ReplayShard:
    """The chains of one logical shard, ``(capacity, *shape)``.

    All start from noise (:func:`ebm_dist.samplers.noise`) with labels of ``classes``, in the shares
    of ``class_counts``, the number of samples of each class of the data: the negatives of a class
    then weigh as much as its data. They are uniform without; labels are 0 for data without labels.
    Chains start at age 0. With a ``max_age``, they start at random ages, uniform below ``max_age``,
    so that they do not all restart at once.
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
        on_host: bool = False,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        self.size, self.bounds, self.max_age, self.policy, self.on_host = (
            (capacity, *shape),
            bounds,
            max_age,
            policy,
            on_host,
        )
        self.class_counts = class_counts
        self.restart(classes or range(1), generator)

    def restart(self, classes: range, generator: Generator) -> None:
        """Restart all chains from noise, with labels of these classes."""
        self.classes = classes
        self.position = self._noise(generator)
        self.label = self._labels(len(self.position), generator)
        self.age = torch.randint(
            self.max_age or 1, self.label.shape, generator=generator, device=generator.device
        )
        self.count = torch.full(
            (1,), len(self.position), device=generator.device
        )  # number of chains ever returned to this shard

    def draw(self, n: int, reinit_prob: float, generator: Generator) -> Draw:
        """Draw ``n`` different chains, with positions ``(n, *shape)``.

        Each restarts from noise, with a new label, with probability ``reinit_prob`` or at
        ``max_age``.
        """
        device = self.age.device
        drawn = torch.randperm(len(self.age), generator=generator, device=device)[:n]
        restart = torch.rand(n, generator=generator, device=device) < reinit_prob
        if self.max_age is not None:
            restart |= self.age[drawn] >= self.max_age
        label = torch.where(restart, self._labels(n, generator), self.label[drawn])
        position = self.position.index_select(0, drawn.to(self.position.device)).to(device)
        restarted = restart.nonzero().flatten()
        position[restarted] = noise((len(restarted), *position.shape[1:]), self.bounds, generator)
        return Draw(
            position,
            label,
            torch.where(restart, 0, self.age[drawn]),
            *self._places(drawn, generator),
        )

    def put(self, draw: Draw, position: Tensor) -> None:
        """Store the new positions ``(n, *shape)`` of the drawn chains; their age grows by 1."""
        held = self.position.device
        self.position[draw.slots.to(held)] = position.detach()[draw.kept].to(held)
        self.label[draw.slots] = draw.label[draw.kept]
        self.age[draw.slots] = draw.age[draw.kept] + 1
        self.count += len(position)

    def _noise(self, generator: Generator) -> Tensor:
        """Return noise for all chains, where they are kept."""
        if not self.on_host:
            return noise(self.size, self.bounds, generator)
        position = torch.empty(self.size, pin_memory=generator.device.type == "cuda")
        for part in position.split(_PART):
            part.copy_(noise(tuple(part.shape), self.bounds, generator))
        return position

    def _labels(self, n: int, generator: Generator) -> Tensor:
        if self.class_counts is not None:
            counts = self.class_counts[self.classes.start : self.classes.stop]
            weights = torch.tensor(counts, dtype=torch.float32, device=generator.device)
            drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
            return self.classes.start + drawn
        return torch.randint(
            self.classes.start,
            self.classes.stop,
            (n,),
            generator=generator,
            device=generator.device,
        )

    def _places(self, drawn: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return the indices of the drawn chains to put back, and the slots to put them in."""
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
        """Return the complete state of the shard for a checkpoint: tensors by name."""
        return {
            "position": self.position,
            "label": self.label,
            "age": self.age,
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of a checkpoint, given by name.

        Raise :class:`ValueError` if a shape or type differs.
        """
        for name, tensor in self.state_dict().items():
            if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
                raise ValueError(
                    f"chains.{name} must be {tuple(tensor.shape)} {tensor.dtype},"
                    f" found {tuple(state[name].shape)} {state[name].dtype}"
                )
            tensor.copy_(state[name])


class JoinedShards:
    """Several shards that chains are drawn from together, the same number from each."""

    def __init__(self, shards: Sequence[ReplayShard]) -> None:
        self.shards, self.classes = shards, shards[0].classes

    def draw(self, n: int, reinit_prob: float, generator: Generator) -> Draw:
        """Draw ``n`` chains as :meth:`ReplayShard.draw` does; slots are those of each shard."""
        size = n // len(self.shards)
        draws = [shard.draw(size, reinit_prob, generator) for shard in self.shards]
        draws = [draw._replace(kept=draw.kept + i * size) for i, draw in enumerate(draws)]
        return Draw(*map(torch.cat, zip(*draws, strict=True)))

    def put(self, draw: Draw, position: Tensor) -> None:
        """Store the new positions ``(n, *shape)`` of the drawn chains, each in its shard."""
        size = len(position) // len(self.shards)
        for i, shard in enumerate(self.shards):
            part, is_own = slice(i * size, (i + 1) * size), draw.kept // size == i
            own = draw._replace(
                label=draw.label[part],
                age=draw.age[part],
                kept=draw.kept[is_own] - i * size,
                slots=draw.slots[is_own],
            )
            shard.put(own, position[part])


def deal(num_shards: int, world_size: int, rank: int) -> range:
    """Return the logical shards of this rank.

    They are consecutive. Each shard belongs to exactly one rank, and the ranks' numbers of shards
    differ by at most 1.
    """
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)
