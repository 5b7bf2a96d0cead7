"""A multilayer perceptron from latent to sample, with ReLU units.

Kumar et al. (2019), appendix: the toy densities and KDD99.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.generators import GeneratorModel


@section
class Config:
    latent_size: PositiveInt = 2
    """Dimensions of ``z ~ N(0, I)``."""
    hidden: tuple[PositiveInt, ...] = (128, 128, 128)
    """Width of each hidden layer."""


class MLP(GeneratorModel):
    """``x = W relu(... relu(z))``, ``(B, latent_size)`` to ``(B, *shape)``."""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_size, self.shape = config.latent_size, shape
        widths = (config.latent_size, *config.hidden)
        hidden = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], math.prod(shape)))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                # samples spread out from the start (He et al. 2015); with torch's default
                # initialisation they would all be at one point
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).view(-1, *self.shape)  # type: ignore[no-any-return]


def build(config: Config, *, shape: tuple[int, ...]) -> GeneratorModel:
    return MLP(config, shape)
