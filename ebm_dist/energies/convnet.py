"""A small strided convolutional network with SiLU units, for images of 16 to 64 pixels a side."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.energies import EnergyModel
from ebm_dist.energies._layers import check_images, linear_energy, silu, spectral_norm


@section
class Config:
    channels: tuple[PositiveInt, ...] = (16, 32, 64, 64)
    """Channels of each convolution; each halves the image. The first is 5x5 with padding 4, the
    others are 3x3."""
    hidden: PositiveInt = 64
    """Width of the fully connected layer before the energy."""
    spectral_norm: bool = False
    """Divide the weight of each layer except the last by its largest singular value
    (Miyato et al. 2018)."""

    def check(self, params: Params) -> None:
        if not self.channels:
            raise Mismatch("energy.channels", "at least one convolution is needed")


class Cells(nn.Module):
    """Rewrite a kernel ``(o, i, 5, 5)`` of stride 2 as ``(4 o, 16 i, 2, 2)`` of stride 1.

    The new kernel maps cells of 4x4 pixels to cells of 2x2.
    """

    def forward(self, weight: Tensor) -> Tensor:
        shifted = [
            F.pad(weight, (2 * b, 3 - 2 * b, 2 * a, 3 - 2 * a)) for a in (0, 1) for b in (0, 1)
        ]
        return F.pixel_unshuffle(torch.cat(shifted), 4).contiguous(
            memory_format=torch.channels_last
        )


class FirstConv(nn.Conv2d):
    """A 5x5 convolution with stride 2 and padding 4, computed on cells of pixels.

    For a single input channel this makes the gradient with respect to the image much faster.
    """

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o, 5, stride=2, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = ((n + 3) // 2 + 1 for n in x.shape[2:])  # of the output
        below, right = (
            4 * ((m + 1) // 2) - n for m, n in zip((height, width), x.shape[2:], strict=True)
        )
        cells = F.pixel_unshuffle(F.pad(x, (4, right, 4, below)), 4)
        bias = None if self.bias is None else self.bias.repeat(4)
        h = F.conv2d(
            cells, self.weight, bias
        )  # channels are (2, 2, o): each output pixel is contiguous in memory
        h = (
            h.permute(0, 2, 3, 1)
            .unflatten(3, (2, 2, -1))
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(1, 2)
            .flatten(2, 3)
        )
        return h[:, :height, :width].permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNet(EnergyModel):
    """``h <- silu(conv(h) + c_y)`` for each convolution, one hidden layer, then ``E = w.h``.

    The class bias ``c_y`` is there only if the energy takes labels.
    """

    def __init__(self, config: Config, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        wrap = spectral_norm if config.spectral_norm else nn.Identity()
        widths = (shape[0], *config.channels)
        self.convolutions = nn.ModuleList(
            wrap(FirstConv(i, o) if n == 0 else nn.Conv2d(i, o, 3, stride=2, padding=1))
            for n, (i, o) in enumerate(pairwise(widths))
        )
        parametrize.register_parametrization(self.convolutions[0], "weight", Cells(), unsafe=True)
        self.classes = nn.ModuleList(
            nn.Embedding(num_classes, o) for o in config.channels if num_classes
        )
        for embedding in self.classes:
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        with torch.no_grad():
            num_features = self._features(
                torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)
            ).shape[1]
        self.hidden = wrap(nn.Linear(num_features, config.hidden))
        self.last = nn.Linear(config.hidden, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _features(self, h: Tensor, y: Tensor | None) -> Tensor:
        for i, convolution in enumerate(self.convolutions):
            h = convolution(h)
            h = silu(h + self.classes[i](y)[:, :, None, None] if self.classes else h)
        return h.flatten(1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return linear_energy(self.last, silu(self.hidden(self._features(x, y))))


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    check_images("convnet", shape)
    return ConvNet(config, shape, num_classes)
