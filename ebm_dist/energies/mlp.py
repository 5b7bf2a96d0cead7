"""A multilayer perceptron with SiLU units, for vectors and small images."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Count, section
from ebm_dist.energies import EnergyModel, linear_energy, spectral_norm


@section
class Config:
    hidden: tuple[Count, ...] = (256, 256, 256, 64)
    """Width of each hidden layer."""
    spectral_norm: bool = False
    """Divide each hidden layer's weight by its largest singular value (Miyato et al. 2018)."""


class MLP(EnergyModel):
    """``h <- silu(W h + b + c_y)`` for each layer, then ``E = w.h``; the class bias ``c_y`` only where there are classes."""

    def __init__(self, config: Config, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        widths = (num_inputs, *config.hidden)
        wrap = spectral_norm if config.spectral_norm else nn.Identity()
        self.layers = nn.ModuleList(wrap(nn.Linear(i, o)) for i, o in pairwise(widths))
        self.classes = nn.ModuleList(nn.Embedding(num_classes, o) for o in widths[1:] if num_classes)
        for embedding in self.classes:
            # small initial biases are ignored in training: hit rates stay at chance
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            h = F.silu(h + self.classes[i](y) if self.classes else h)
        return linear_energy(self.last, h)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    return MLP(config, math.prod(shape), num_classes)
