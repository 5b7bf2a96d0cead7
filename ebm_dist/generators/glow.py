"""A normalising flow for images: Glow (Kingma & Dhariwal 2018).

Each level has half the height and width of the level before. zuko, which ``flow`` uses, has no flow
for images. The samples are unbounded: train it on data with added noise, not on grey levels.
"""

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.errors import ConfigError
from ebm_dist.generators import FlowModel, ImageFlow, standard_normal

HAS_DENSITY = True


@section
class Config:
    num_levels: PositiveInt = 2
    """Number of levels. Each halves the image; each except the last splits off half of its
    channels."""
    num_steps: PositiveInt = 4
    """Flow steps per level."""
    hidden: PositiveInt = 32
    """Channels of the hidden layers in each coupling's three convolutions."""


class Step(nn.Module):
    """One flow step on ``h (B, c, h, w)``.

    Scale and shift each channel (actnorm), mix the channels, then scale and shift one half of them
    by functions of the other half.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.log_scale, self.shift = (
            nn.Parameter(torch.zeros(channels, 1, 1)),
            nn.Parameter(torch.zeros(channels, 1, 1)),
        )
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0].contiguous())
        widths = (channels // 2, hidden, hidden, 2 * (channels - channels // 2))
        layers: list[nn.Module] = []
        for (i, o), kernel in zip(pairwise(widths), (3, 1, 3), strict=True):
            layers += [nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.SiLU()]
        self.coupling = nn.Sequential(*layers[:-1])
        for last in self.coupling[-1].parameters():
            nn.init.normal_(last, std=0.01)  # starts close to the identity

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``h (B, c, h, w)`` towards the latent; return it and ``log |det| (B,)``."""
        h = torch.einsum("ij,bjhw->bihw", self.mix, h * self.log_scale.exp() + self.shift)
        kept, changed = self._halves(h)
        log_scale, shift = self._coupling(kept)
        fixed = math.prod(h.shape[2:]) * (
            self.log_scale.sum() + torch.linalg.slogdet(self.mix).logabsdet
        )
        h = torch.cat([kept, changed * log_scale.exp() + shift], dim=1)
        return h, fixed + log_scale.flatten(1).sum(dim=1)

    def inverse(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Invert :meth:`forward` for ``h (B, c, h, w)``; return its ``log |det| (B,)`` too."""
        kept, changed = self._halves(h)
        log_scale, shift = self._coupling(kept)
        fixed = math.prod(h.shape[2:]) * (
            self.log_scale.sum() + torch.linalg.slogdet(self.mix).logabsdet
        )
        h = torch.einsum(
            "ij,bjhw->bihw",
            torch.linalg.inv(self.mix),
            torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1),
        )
        return (h - self.shift) * (-self.log_scale).exp(), fixed + log_scale.flatten(1).sum(dim=1)

    def _halves(self, h: Tensor) -> tuple[Tensor, Tensor]:
        count = h.shape[1] // 2
        return h[:, :count], h[:, count:]

    def _coupling(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.coupling(kept).chunk(2, dim=1)
        return torch.tanh(log_scale), shift


class Glow(ImageFlow):
    """``z`` is the halves that the levels split off, the largest first, and the rest."""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        channels, height, width = shape
        levels, self.latent_shapes = [], []
        for level in range(config.num_levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            levels.append(
                nn.ModuleList(Step(channels, config.hidden) for _ in range(config.num_steps))
            )
            if level < config.num_levels - 1:
                channels //= 2
            self.latent_shapes.append((channels, height, width))
        self.levels = nn.ModuleList(levels)

    def log_prob(self, x: Tensor) -> Tensor:
        h, log_det = self.scaled(x)
        latents = list[Tensor]()
        for level, steps in enumerate(self.levels):
            h = F.pixel_unshuffle(h, 2)
            for step in cast(nn.ModuleList, steps):
                h, step_log_det = step(h)
                log_det = log_det + step_log_det
            if level < len(self.levels) - 1:
                half, h = h.chunk(2, dim=1)
                latents.append(half.flatten(1))
        return standard_normal(torch.cat([*latents, h.flatten(1)], dim=1)) + log_det

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        parts = z.split([math.prod(shape) for shape in self.latent_shapes], dim=1)
        *halves, h = (
            part.view(-1, *shape) for part, shape in zip(parts, self.latent_shapes, strict=True)
        )
        log_det = self.spread.new_zeros(())
        for level in reversed(range(len(self.levels))):
            h = torch.cat([halves[level], h], dim=1) if level < len(halves) else h
            for step in reversed(list(cast(nn.ModuleList, self.levels[level]))):
                h, step_log_det = cast(Step, step).inverse(h)
                log_det = log_det + step_log_det
            h = F.pixel_shuffle(h, 2)
        x = self.unscaled(h)
        return x, standard_normal(z) + log_det + self.scaled(x)[1]


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    if len(shape) != 3 or any(side % 2**config.num_levels for side in shape[1:]):
        raise ConfigError(
            f"objective.generator: glow halves images {config.num_levels} times,"
            f" the data have shape {shape}",
            "use flow, or another num_levels",
        )
    return Glow(config, shape)
