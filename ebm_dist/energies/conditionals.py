"""The energies of each value given all others, summed: the pseudo-likelihood of Besag (1975).

    E(x) = -sum_j log p(x_j | x_-j)

p is a mixture of logistic distributions. One network gives weights, means and scales of the values
that are hidden from it, for any choice of them (Uria, Murray & Larochelle 2014). A pass hides one
value, or of long samples ``1 / max_passes`` of them, in two fixed random divisions. Learnt by
``objective: masked_likelihood``. exp(-E) is not the density of which p are the conditionals.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.energies import EnergyModel
from ebm_dist.energies._layers import logistic_mixture
from ebm_dist.errors import ConfigError

_LEAST_LOG_SCALE, _MOST_LOG_SCALE, _REACH = -5.0, 3.0, 1.5
_DIVISIONS = 2


@section
class Config:
    hidden: tuple[PositiveInt, ...] = (256, 256)
    """Width of each hidden layer."""
    num_logistics: PositiveInt = 5
    """Logistic distributions in the mixture of each value."""
    max_passes: PositiveInt = 40
    """Passes of the network for an energy, where a sample has more values than this."""


class Conditionals(EnergyModel):
    """The sum in nats, ``(B,)``."""

    start: Tensor
    passes: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.num_logistics = math.prod(shape), config.num_logistics
        widths = (2 * self.size, *config.hidden)
        layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.SiLU())]
        last = nn.Linear(widths[-1], 3 * self.num_logistics * self.size)
        with torch.no_grad():
            last.weight.mul_(0.1)
        self.layers = nn.Sequential(*layers, last)
        start = torch.linspace(-_REACH, _REACH, self.num_logistics)
        self.register_buffer("start", start if self.num_logistics > 1 else torch.zeros(1))
        self.register_buffer("passes", _divided(self.size, config.max_passes))

    def nll(self, x: Tensor, is_hidden: Tensor) -> Tensor:
        """Return ``-log p`` of each value of ``x (B, n)``, of the same shape, where it is hidden.

        Elsewhere the result has no meaning.
        """
        seen = torch.cat([torch.where(is_hidden, 0.0, x), is_hidden.to(x)], dim=1)
        out = self.layers(seen).view(len(x), self.size, 3, self.num_logistics)
        logits, means, log_scales = out.unbind(dim=2)
        log_scales = log_scales.clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE)
        log_weights, means = logits.log_softmax(dim=2), means + self.start
        return -logistic_mixture(x, log_weights, means, log_scales, dim=2)

    def forward(
        self, x: Tensor, y: Tensor | None = None, is_hidden: Tensor | None = None
    ) -> Tensor:
        """Return E(x), or with ``is_hidden (B, n)`` the mean ``-log p`` of the hidden values."""
        x = x.flatten(1)
        if is_hidden is not None:
            count = is_hidden.sum(dim=1).clamp(min=1)
            return torch.where(is_hidden, self.nll(x, is_hidden), 0.0).sum(dim=1) / count
        total = torch.zeros_like(x[:, 0])
        for hidden in self.passes:
            values = self.nll(x, hidden.expand_as(x))
            total = total + torch.where(hidden, values, 0.0).sum(dim=1)
        energy: Tensor = total * (self.size / self.passes.sum())
        return energy


def _divided(size: int, max_passes: int) -> Tensor:
    """Return which values each pass hides, ``(passes, size)``: each value equally often."""
    if size <= max_passes:
        return torch.eye(size, dtype=torch.bool)
    rows = []
    for _ in range(_DIVISIONS):
        for part in torch.randperm(size).chunk(max_passes // _DIVISIONS or 1):
            rows.append(torch.zeros(size, dtype=torch.bool).index_fill(0, part, True))
    return torch.stack(rows)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    if num_classes:
        raise ConfigError(
            "energy: conditionals has no labels",
            "choose another energy, or an objective without them",
        )
    return Conditionals(config, shape)
