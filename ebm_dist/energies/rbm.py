"""Restricted Boltzmann machine of binary units (Smolensky 1986; Hinton 2002), centred (Melchior, Fischer & Wiskott 2016).

    E(v, h) = -b.v - c.h - v'W h                                     b: visible bias, c: hidden bias
    F(v) = -b.v - sum_j softplus(c_j + v'W_j)                        h summed out; this is the energy of ``forward``
    p(h_j = 1 | v) = sigmoid(c_j + v'W_j)      p(v_i = 1 | h) = sigmoid(b_i + W_i h)

What is learnt are ``W`` and the biases ``b' = b + W m``, ``c' = c + n'W`` of the same machine in the units ``v - n``, ``h - m``:
the same distributions, with gradients that are less alike. A label adds ``U_y`` to ``c``.
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
    """Hidden units."""
    weight_sd: Positive = 0.01
    """Standard deviation of the initial weights."""
    centred: bool = True
    """Learn in the units ``v - mean of the data`` (after :meth:`RBM.initialise`) and ``h - 1/2``."""

    has_conditionals = True


class Weights(NamedTuple):
    """A machine in plain units: what it is, however it was learnt."""

    weight: Tensor
    """W ``(num_visible, num_hidden)``"""
    visible_bias: Tensor
    """b ``(num_visible,)``"""
    hidden_bias: Tensor
    """c ``(num_hidden,)``, or ``(B, num_hidden)`` of rows with labels"""

    def hidden_input(self, v: Tensor) -> Tensor:
        """``c + v'W``: ``(B, num_visible) -> (B, num_hidden)``, the logits of the hidden units."""
        return self.hidden_bias + v @ self.weight

    def visible_input(self, h: Tensor) -> Tensor:
        """``b + W h``: ``(B, num_hidden) -> (B, num_visible)``, the logits of the visible units."""
        return self.visible_bias + h @ self.weight.T

    def free_energy(self, v: Tensor) -> Tensor:
        """F ``(B,)``"""
        return -(v @ self.visible_bias) - F.softplus(self.hidden_input(v)).sum(1)


class RBM(EnergyModel):
    """Visible units in any shape, which is flattened."""

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
        """In plain units, of the labels ``y (B,)`` if there are classes; gradients flow to the parameters."""
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
        """One: hidden and visible units are drawn together, so that a sweep leaves ``exp(-F)`` as it is."""
        return 1

    @torch.no_grad()
    def resample(
        self, block: int, x: Tensor, generator: Generator, y: Tensor | None = None
    ) -> Tensor:
        """``h ~ p(h | v)``, then ``v ~ p(v | h)``: the same shape, zeros and ones."""
        weights = self.weights(y)
        h = bernoulli(weights.hidden_input(x.flatten(1)).sigmoid(), generator)
        v: Tensor = bernoulli(weights.visible_input(h).sigmoid(), generator).view_as(x)
        return v

    @torch.no_grad()
    def initialise(self, average: Average) -> None:
        """Before training, of the data's mean (``shape``, clipped to 0.01 ... 0.99): the centre, and its logits as biases."""
        flat = average(lambda x: x).float().flatten().clamp(0.01, 0.99)
        self.visible_bias.copy_(flat.logit())
        if self.centred:
            self.visible_offset.copy_(flat)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    return RBM(config, math.prod(shape), num_classes)
