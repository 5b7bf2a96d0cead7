"""Energies of labels learnt by their order alone (LeCun et al. 2006, table 1).

E(x, y) need not be a density of x: a sample takes the label of least energy. Each loss lowers the
energy of the right label y and raises others, most of all the *most offending* wrong label,

    y' = argmin over k != y of E(x, k).

    energy              E(x, y)                                         eq. 6
    perceptron          E(x, y) - min_k E(x, k)                         eq. 7
    hinge               max(0, m + E(x, y) - E(x, y'))                  eq. 11
    log                 softplus(E(x, y) - E(x, y'))                    eq. 12
    lvq2                min(M, max(0, E(x, y) - E(x, y')))              eq. 13
    mce                 sigmoid(E(x, y) - E(x, y'))                     eq. 15
    square_square       E(x, y)^2 + max(0, m - E(x, y'))^2              eq. 16
    square_exponential  E(x, y)^2 + g exp(-E(x, y'))                    eq. 17
    nll                 E(x, y) + T log sum_k exp(-E(x, k) / T)         eq. 23
    mee                 1 - exp(-E(x, y) / T) / sum_k exp(-E(x, k) / T) eq. 26

``energy`` and ``perceptron`` have no margin: energies that are all equal minimise them too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Params, Positive, section
from ebm_dist.energies._by_class import by_class
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel

Loss = Literal[
    "energy",
    "perceptron",
    "hinge",
    "log",
    "lvq2",
    "mce",
    "square_square",
    "square_exponential",
    "nll",
    "mee",
]


@section
class Config(ObjectiveConfig):
    loss: Loss = "hinge"
    """The loss of a sample; see the top of the file."""
    margin: Positive = 1.0
    """m of ``hinge`` and ``square_square``, M of ``lvq2``, g of ``square_exponential``."""
    label_temperature: Positive = 1.0  # type: ignore[assignment]
    """T of ``nll`` and ``mee``, and of ``p(y | x) = softmax(-E(x, y) / T)``, a density of labels
    only after ``nll``."""

    @property
    def conditional(self) -> bool:
        return True

    @property
    def compares_energies(self) -> bool:
        return True


class Energies(NamedTuple):
    """Energies of ``B`` samples under the labels."""

    right: Tensor
    """``(B,)`` under the right label"""
    offending: Tensor
    """``(B,)`` least energy under another label"""
    all: Tensor
    """``(B, num_classes)``"""

    def free(self, temperature: float) -> Tensor:
        """``(B,)``: ``-T log sum_k exp(-E(x, k) / T)``"""
        return -temperature * (-self.all / temperature).logsumexp(dim=1)


LOSSES: dict[Loss, Callable[[Energies, float, float], Tensor]] = {
    "energy": lambda e, m, t: e.right,
    "perceptron": lambda e, m, t: e.right - e.all.amin(dim=1),
    "hinge": lambda e, m, t: F.relu(m + e.right - e.offending),
    "log": lambda e, m, t: F.softplus(e.right - e.offending),
    "lvq2": lambda e, m, t: (e.right - e.offending).clamp(0, m),
    "mce": lambda e, m, t: (e.right - e.offending).sigmoid(),
    "square_square": lambda e, m, t: e.right**2 + F.relu(m - e.offending) ** 2,
    "square_exponential": lambda e, m, t: e.right**2 + m * (-e.offending).exp(),
    "nll": lambda e, m, t: e.right - e.free(t),
    "mee": lambda e, m, t: 1 - ((e.free(t) - e.right) / t).exp(),
}
"""The losses ``(B,)`` of energies, margin and temperature."""


class Discriminative(Objective):
    """The energy is the only player. No chains."""

    def __init__(self, config: Config, energy: nn.Module) -> None:
        self.config, self.players = config, {"energy": energy}

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Yield the mean loss of the batch."""
        energies = self._energies(batch, context)
        loss = LOSSES[self.config.loss]
        losses = loss(energies, self.config.margin, self.config.label_temperature)
        right, offending = energies.right, energies.offending
        metrics = {"label_accuracy": (right < offending).float().mean()}
        means = {"energy_pos": right.mean(), "energy_neg": offending.mean()}
        yield Turn("energy", losses.mean(), metrics, means)

    def _energies(self, batch: Batch, context: StepContext) -> Energies:
        classes = context.replay.classes
        labels = torch.arange(classes.start, classes.stop, device=batch.x.device)
        every = by_class(context.players["energy"], batch.x, labels)
        is_right = labels == batch.y[:, None]
        wrong = every.masked_fill(is_right, torch.inf)
        return Energies((every * is_right).sum(dim=1), wrong.amin(dim=1), every)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return Discriminative(params.objective, networks["energy"])
