"""Learning algorithms. One file, one paper; each has a ``Config`` and a ``build(config, ...) -> Objective``.

One whose energy does not learn alone also has ``PLAYERS``, the names of the others, and ``networks(config, *, shape)``, which makes
them by name. One in which a step decides about the next has ``observe(step, means)``: the trainer calls it after each step with the
means over all shards of what the turns reported, equal on all ranks; what it decides it keeps in buffers of its players, which
checkpoints have.

The objective says *what*: which player's loss comes next. The trainer says *when*: it takes the gradient of each turn's loss,
reduces it over the logical shards, guards it and updates that player, and then lets the objective go on.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Generator, Tensor, nn

from ebm_dist.chains.replay import ReplayShard
from ebm_dist.config import Params, module_of
from ebm_dist.energies import EnergyModel, build_energy
from ebm_dist.rng import seeded


class Batch(NamedTuple):
    """Training data of one logical shard for one step."""

    x: Tensor
    """``(B, *shape)`` float32"""
    y: Tensor
    """``(B,)`` int64 labels; zeros where the data has none"""


class StepContext(NamedTuple):
    """What a step of one logical shard may use."""

    step: int
    replay: ReplayShard
    players: Mapping[str, Callable[..., Any]]
    """The networks to call in a loss: under DDP they are wrapped. Sampling uses the objective's own, unwrapped ones."""
    stream: Callable[[str], Generator]
    """``stream(purpose)``: the random stream of this purpose, shard and step."""
    labelled: Batch | None = None
    """The few samples whose labels are known, whole, where the data are for semi-supervised learning."""


class Turn(NamedTuple):
    """One player's loss on one logical shard, a mean over its batch."""

    player: str
    loss: Tensor
    metrics: dict[str, Tensor]
    """Scalars; reported as means over the shards."""


class Objective(Protocol):
    """A learning algorithm."""

    players: Mapping[str, nn.Module]
    """The networks that learn; each has its optimizer and its moving average."""

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """The turns of one training step; reads like the algorithm box of its paper."""

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        """The energy that evaluation and serving load, of these weights (the averages, as a rule)."""


def build_players(params: Params, shape: tuple[int, ...], num_classes: int) -> dict[str, nn.Module]:
    """Every network that a parameter file's objective trains, with the initial weights of its seed; one is the ``energy``."""
    networks = getattr(module_of(params.objective), "networks", None)
    with seeded(params.seed, "players"):
        others: dict[str, nn.Module] = networks(params.objective, shape=shape) if networks else {}
    return {"energy": build_energy(params, shape, num_classes), **others}
