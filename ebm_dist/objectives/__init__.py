"""Learning algorithms. One file, one paper: a ``Config`` and ``build(params, ...) -> Objective``.

``Config`` derives from :class:`ObjectiveConfig`, which makes the networks of the players besides
the energy. ``build(params, *, networks, kernel, bounds)`` gets the networks of all players by name.

The objective says *what*: which player's loss comes next. The trainer says *when*: it takes the
gradient of each turn's loss, reduces it over the logical shards, checks that nothing diverges,
updates that player and asks for the next turn.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from ebm_dist.chains.replay import JoinedShards, ReplayShard
from ebm_dist.config import Mismatch, Params
from ebm_dist.energies import EnergyModel, build_energy
from ebm_dist.rng import seeded


class Batch(NamedTuple):
    """Training data for one step of a logical shard, or of several processed together."""

    x: Tensor
    """``(B, *shape)`` float32"""
    y: Tensor
    """``(B,)`` int64 labels; zeros where the data have none"""


class StepContext(NamedTuple):
    """What a step may use besides its batch."""

    step: int
    replay: ReplayShard | JoinedShards
    players: Mapping[str, Callable[..., Any]]
    """Networks to call in a loss; wrapped under DDP. Sampling uses the objective's own ones."""
    stream: Callable[[str], Generator]
    """``stream(purpose)``: the random stream of this purpose, step and (first) shard."""
    labelled: Batch | None = None
    """All labelled samples, where the data are for semi-supervised learning."""


class Turn(NamedTuple):
    """One player's loss on one batch, a mean over its samples.

    Energies and metrics are scalars, reported as means over the shards.
    """

    player: str
    loss: Tensor
    metrics: dict[str, Tensor]
    energies: Mapping[str, Tensor] = MappingProxyType({})
    """Training diverges where one exceeds ``train.max_energy``; without any, where the loss does"""
    rate: float = 1.0
    """Factor of the player's learning rate in this turn"""


class Objective(ABC):
    """A learning algorithm."""

    players: Mapping[str, nn.Module]
    """The networks that learn; each has its optimizer and its moving average."""
    observes: bool = False
    """Whether the trainer calls :meth:`observe`: it costs a collective operation in each step."""

    @abstractmethod
    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Yield the turns of one training step; reads like the algorithm box of its paper."""

    def prepared(self, batch: Batch, context: StepContext) -> Batch:
        """Return the data as the objective learns them, such as with noise, equal in each call."""
        return batch

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        """Return the energy that evaluation and serving load, of these weights (the averages)."""
        return cast(EnergyModel, players["energy"])

    def observe(self, step: int, means: Mapping[str, float]) -> None:  # noqa: B027 (a default)
        """Decide about the next step, after a step with these means over all shards.

        The means are equal on all ranks. Keep decisions in buffers of the players: checkpoints
        save them.
        """


class Wrapped(Objective):
    """An objective that adds terms to the loss of the energy in another objective, ``inner``."""

    def __init__(self, inner: Objective) -> None:
        self.inner, self.players, self.observes = inner, inner.players, inner.observes

    @abstractmethod
    def with_more(self, turn: Turn, batch: Batch, context: StepContext) -> Turn:
        """Return a turn of the energy with the terms added."""

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        for turn in self.inner.turns(batch, context):
            yield self.with_more(turn, batch, context) if turn.player == "energy" else turn

    def prepared(self, batch: Batch, context: StepContext) -> Batch:
        return self.inner.prepared(batch, context)

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        return self.inner.export(players)

    def observe(self, step: int, means: Mapping[str, float]) -> None:
        self.inner.observe(step, means)


class ObjectiveConfig:
    """Base of each ``Config``. The defaults are those of an energy of x that learns alone."""

    __slots__ = ()

    @property
    def conditional(self) -> bool:
        """Whether the energy takes labels, E(x, y)."""
        return False

    @property
    def label_temperature(self) -> float | None:
        """T of ``p(y | x) = softmax(-E(x, y) / T)``; None where that is not learnt."""
        return None

    @property
    def levels(self) -> tuple[float, ...]:
        """Standard deviations of the noise levels of ``E(x, k)``, growing; () for ``E(x)``."""
        return ()

    @property
    def data_sd(self) -> float | None:
        """Standard deviation of the data, to scale the energies of the levels with; or None."""
        return None

    @property
    def base(self) -> Any:
        """``Config`` of the density that energies of the levels start from; or None."""
        return None

    @property
    def base_from(self) -> float:
        """Standard deviation of the noise from which on this density has most of the weight."""
        return 0.0

    @property
    def ladder(self) -> tuple[float, ...]:
        """Those of the ladder that chains of the trained energy go over; () for plain chains."""
        return ()

    @property
    def keeps_chains(self) -> bool:
        """Whether chains persist in the replay buffer, so that they may be tempered."""
        return False

    @property
    def follows_length(self) -> bool:
        """Whether a step depends on ``train.num_steps``, as with a weight that changes linearly."""
        return False

    def first_step(self, player: str) -> int:
        """Return the step from which a player learns; before it others are pretrained."""
        return 0

    @property
    def compares_energies(self) -> bool:
        """Whether the first loss of the energy is an estimate of one criterion at all steps."""
        return False

    @property
    def other_players(self) -> tuple[str, ...]:
        """Names of the players besides the energy."""
        return ()

    def networks(self, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        """Make the networks of the other players, by name, for samples of this shape."""
        return {}

    def check(self, params: Params) -> None:
        """Raise :class:`Mismatch` where the values do not fit each other or another section."""


def check_levels(sigmas: tuple[float, ...]) -> None:
    """Check that ``objective.sigmas`` are a ladder. Raise :class:`Mismatch`."""
    if len(sigmas) < 2 or sorted(set(sigmas)) != list(sigmas):
        raise Mismatch("objective.sigmas", "needs two or more levels, in growing order")


def levels_in_turn(x: Tensor, num_levels: int, context: StepContext) -> Tensor:
    """Return levels ``(B,)`` of samples ``(B, *shape)``, one after the other from a random one on.

    So a shard with fewer samples than levels visits all of them.
    """
    generator, order = context.stream("levels"), torch.arange(len(x), device=x.device)
    first = torch.randint(num_levels, (1,), generator=generator, device=x.device)
    return (first + order) % num_levels


class WrappedConfig(ObjectiveConfig):
    """Base of the ``Config`` of a :class:`Wrapped` objective. Defaults are those of ``inner``."""

    __slots__ = ()

    @property
    def inner(self) -> ObjectiveConfig:
        """Settings of the inner objective."""
        raise NotImplementedError

    @property
    def conditional(self) -> bool:
        return self.inner.conditional

    @property
    def label_temperature(self) -> float | None:
        return self.inner.label_temperature

    @property
    def keeps_chains(self) -> bool:
        return self.inner.keeps_chains

    @property
    def follows_length(self) -> bool:
        return self.inner.follows_length

    def first_step(self, player: str) -> int:
        return self.inner.first_step(player)

    @property
    def other_players(self) -> tuple[str, ...]:
        return self.inner.other_players

    def networks(self, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        return self.inner.networks(shape=shape)

    def check(self, params: Params) -> None:
        if self.inner.levels:
            raise Mismatch(
                "objective",
                "adds terms to an energy E(x), and the inner objective learns noise levels",
                "choose another inner objective",
            )
        self.inner.check(self.inner_params(params))

    def inner_params(self, params: Params) -> Params:
        """Return the parameters with the inner objective in place of this one."""
        return dataclasses.replace(params, objective=self.inner)


def build_players(params: Params, shape: tuple[int, ...], num_classes: int) -> dict[str, nn.Module]:
    """Build the networks that an objective trains, with the initial weights of the seed.

    One of them is the ``energy``.
    """
    with seeded(params.seed, "players"):
        others: dict[str, nn.Module] = params.objective.networks(shape=shape)
    return {"energy": build_energy(params, shape, num_classes), **others}
