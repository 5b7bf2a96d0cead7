"""Restricted Boltzmann machine with binary units (Smolensky 1986; Hinton 2002).

    E(v, h) = -b.v - c.h - v'W h                   b: visible bias, c: hidden bias
    F(v) = -b.v - sum_j softplus(c_j + v'W_j)      h summed out; the energy of ``forward``
    p(h_j = 1 | v) = sigmoid(c_j + v'W_j)
    p(v_i = 1 | h) = sigmoid(b_i + W_i h)

The machine is centred (Melchior, Fischer & Wiskott 2016): the parameters are ``W`` and the biases
``b' = b + W m``, ``c' = c + n'W`` in the units ``v - n``, ``h - m``. The distributions are the same
and the gradients are less correlated. A label adds ``U_y`` to ``c``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import Average, EnergyModel
from ebm_dist.rng import bernoulli


@section
class Config:
    num_hidden: PositiveInt = 500
    """Number of hidden units."""
    weight_sd: Positive = 0.01
    """Standard deviation of the initial weights."""
    centred: bool = True
    """Learn in the units ``v - mean of the data`` and ``h - 1/2``."""

    has_conditionals = True
    is_binary = True


class Weights(NamedTuple):
    """A machine in uncentred units, an energy with conditionals."""

    weight: Tensor
    """W ``(num_visible, num_hidden)``"""
    visible_bias: Tensor
    """b ``(num_visible,)``"""
    hidden_bias: Tensor
    """c ``(num_hidden,)``, or ``(B, num_hidden)`` for rows with labels"""

    def hidden_input(self, v: Tensor) -> Tensor:
        """Return logits ``c + v'W (B, num_hidden)`` of hidden units for ``v (B, num_visible)``."""
        return self.hidden_bias + v @ self.weight

    def visible_input(self, h: Tensor) -> Tensor:
        """Return logits ``b + W h (B, num_visible)`` of visible units for ``h (B, num_hidden)``."""
        return self.visible_bias + h @ self.weight.T

    def free_energy(self, v: Tensor) -> Tensor:
        """Return ``F(v) (B,)`` of ``v (B, num_visible)``."""
        return -(v @ self.visible_bias) - F.softplus(self.hidden_input(v)).sum(1)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.free_energy(x)

    @property
    def num_blocks(self) -> int:
        return 1

    def resample(self, block: int, x: Tensor, generator: Generator) -> Tensor:
        """Return :meth:`sweep` of ``x``: hidden and visible units are drawn together."""
        return self.sweep(x, generator)

    def annealed(self, base: Tensor, beta: float) -> "Weights":
        """Return the machine at ``beta`` of the path of AIS from independent units.

        At 0 the visible units have the logits ``base (num_visible,)``; at 1 it is this machine.
        """
        return Weights(
            beta * self.weight,
            base + beta * (self.visible_bias - base),
            beta * self.hidden_bias,
        )

    def sweep(self, v: Tensor, generator: Generator) -> Tensor:
        """Draw ``h ~ p(h | v)``, then return ``v ~ p(v | h) (B, num_visible)``."""
        h = bernoulli(self.hidden_input(v).sigmoid(), generator)
        return bernoulli(self.visible_input(h).sigmoid(), generator)


class RBM(EnergyModel):
    """Visible units of any shape; they are flattened."""

    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(self, config: Config, num_visible: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(config.weight_sd * torch.randn(num_visible, config.num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(config.num_hidden))
        self.classes = nn.Embedding(num_classes, config.num_hidden) if num_classes else None
        self.centred = config.centred
        self.register_buffer("visible_offset", torch.zeros(num_visible))
        self.register_buffer(
            "hidden_offset", torch.full((config.num_hidden,), 0.5 if config.centred else 0.0)
        )

    def weights(self, y: Tensor | None = None) -> Weights:
        """Return the machine in uncentred units, for labels ``y (B,)`` if there are classes.

        Gradients flow to the parameters.
        """
        hidden_bias = self.hidden_bias - self.visible_offset @ self.weight
        if self.classes is not None:
            hidden_bias = hidden_bias + self.classes(y)
        return Weights(
            self.weight, self.visible_bias - self.weight @ self.hidden_offset, hidden_bias
        )

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.weights(y).free_energy(x.flatten(1))

    @property
    def num_blocks(self) -> int:
        """One: a sweep draws hidden and then visible units, and keeps ``exp(-F)``."""
        return 1

    @torch.no_grad()
    def resample(
        self, block: int, x: Tensor, generator: Generator, y: Tensor | None = None
    ) -> Tensor:
        """Return ``x (B, *shape)`` after a sweep, zeros and ones."""
        return self.weights(y).sweep(x.flatten(1), generator).view_as(x)

    @torch.no_grad()
    def initialise(self, average: Average) -> None:
        """Set the centre to the data's mean and the biases to its logits.

        The mean is clipped to 0.01 ... 0.99.
        """
        mean = average(lambda x: x).float().flatten().clamp(0.01, 0.99)
        self.visible_bias.copy_(mean.logit())
        if self.centred:
            self.visible_offset.copy_(mean)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    return RBM(config, math.prod(shape), num_classes)
