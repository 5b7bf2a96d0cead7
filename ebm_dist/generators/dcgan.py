"""Transposed convolutions from latent to image (DCGAN, Radford et al. 2016).

Layer normalisation replaces batch normalisation. With batch statistics a sample would depend on the
other samples and on how the batch is divided among workers.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.errors import ConfigError
from ebm_dist.generators import GeneratorModel


@section
class Config:
    latent_size: PositiveInt = 128
    """Dimensions of ``z ~ N(0, I)``."""
    channels: tuple[PositiveInt, ...] = (256, 128, 64)
    """Channels of each layer before the image. Each layer doubles height and width; the first
    starts at those of the image divided by 2 per layer."""


class DCGAN(GeneratorModel):
    """``z -> channels[0] x s x s -> ... -> image``; a sigmoid keeps the pixels in [0, 1]."""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        self.latent_size, self.shape = config.latent_size, shape
        first, num_layers = config.channels[0], len(config.channels)
        self.start = (first, *(math.ceil(side / 2**num_layers) for side in (height, width)))
        layers: list[nn.Module] = [
            nn.Linear(config.latent_size, math.prod(self.start)),
            nn.Unflatten(1, self.start),
        ]
        for i, o in pairwise((*config.channels, channels)):
            layers += [
                nn.GroupNorm(1, i),
                nn.ReLU(),
                nn.ConvTranspose2d(i, o, 4, stride=2, padding=1),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        _, height, width = self.shape
        return torch.sigmoid(self.layers(z)[:, :, :height, :width])


def build(config: Config, *, shape: tuple[int, ...]) -> GeneratorModel:
    if len(shape) != 3:
        raise ConfigError(
            f"objective.generator: dcgan draws images, the data have shape {shape}", "use mlp"
        )
    return DCGAN(config, shape)
