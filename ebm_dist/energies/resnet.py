"""The residual network of Du & Mordatch (2019), appendix A.4, for images of 16 to 64 pixels a side.

Differences from the paper: each class has a bias at both convolutions of a block and a gain at its
end. They start at random values, because training ignores gains of 1 and biases of 0. Every weight
is normalised, even if its largest singular value is below 1.

A convolution followed by average pooling equals one convolution with a larger kernel and stride 2,
and average pooling commutes with the 1x1 convolution of the shortcut. Both are computed in that
form, which saves a quarter of the work.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.energies import EnergyModel
from ebm_dist.energies._layers import check_images, linear_energy, spectral_norm

_SLOPE = 0.2


@section
class Config:
    channels: tuple[PositiveInt, ...] = (128, 128, 256, 256, 256, 256)
    """Channels of each residual block. The first, third, fifth, ... block halves the image."""
    spectral_norm: bool = True
    """Divide the weight of each layer except the last by its largest singular value
    (Miyato et al. 2018)."""

    def check(self, params: Params) -> None:
        if not self.channels:
            raise Mismatch("energy.channels", "at least one residual block is needed")


class Pooled(nn.Module):
    """Merge 2x2 average pooling into a kernel: ``(o, i, 3, 3)`` to ``(o, i, 4, 4)`` of stride 2."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(weight, (1, 1, 1, 1)), 2, stride=1).contiguous(
            memory_format=torch.channels_last
        )


class Block(nn.Module):
    """``h <- lrelu(shortcut(h) + g_y * conv(lrelu(conv(h) + b_y)) + c_y)``.

    ``halves``: the output has half the height and width.
    """

    def __init__(self, i: int, o: int, num_classes: int, halves: bool, normalised: bool) -> None:
        super().__init__()
        wrap = spectral_norm if normalised else nn.Identity()
        self.halves = halves
        self.first, self.second = (
            wrap(nn.Conv2d(i, o, 3, padding=1)),
            wrap(nn.Conv2d(o, o, 3, stride=1 + halves, padding=1)),
        )
        if halves:
            parametrize.register_parametrization(self.second, "weight", Pooled(), unsafe=True)
        self.shortcut = wrap(nn.Conv2d(i, o, 1, bias=False)) if i != o else nn.Identity()
        self.classes = nn.ModuleList(
            nn.Embedding(num_classes, o) for _ in range(3 * bool(num_classes))
        )
        for embedding, mean in zip(self.classes, (0.0, 1.0, 0.0), strict=False):
            nn.init.normal_(embedding.weight, mean, std=0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.first(x)
        if self.classes:
            first_bias, gain, second_bias = (
                embedding(y)[:, :, None, None] for embedding in self.classes
            )
            h = gain * self.second(F.leaky_relu(h + first_bias, _SLOPE)) + second_bias
        else:
            h = self.second(F.leaky_relu(h, _SLOPE))
        x = F.avg_pool2d(x, 2) if self.halves else x
        return F.leaky_relu(h + self.shortcut(x), _SLOPE)


class ResNet(EnergyModel):
    """A 3x3 convolution, residual blocks, the sum over pixels, then ``E = w.h``."""

    def __init__(self, config: Config, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        first = nn.Conv2d(shape[0], config.channels[0], 3, padding=1)
        self.first = spectral_norm(first) if config.spectral_norm else first
        widths = (config.channels[0], *config.channels)
        self.blocks = nn.ModuleList(
            Block(i, o, num_classes, halves=n % 2 == 0, normalised=config.spectral_norm)
            for n, (i, o) in enumerate(pairwise(widths))
        )
        self.last = nn.Linear(widths[-1], 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        # else the compiled gradient with respect to x is copied between layouts on a GPU
        h = F.leaky_relu(self.first(x.contiguous(memory_format=torch.channels_last)), _SLOPE)
        for block in self.blocks:
            h = block(h, y)
        return linear_energy(self.last, h.sum(dim=(2, 3)))


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    num_halvings = (len(config.channels) + 1) // 2
    check_images("resnet", shape, min_side=2**num_halvings)
    return ResNet(config, shape, num_classes)
