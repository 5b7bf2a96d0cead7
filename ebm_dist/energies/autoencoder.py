"""What a convolutional autoencoder f leaves of an image (Zhao et al. 2017; Salimans & Ho 2021).

    E(x, y) = |f(x, y)|^2 / 2 - a_y <x, f(x, y)> + c |x|^2 / 2

With a = c = 1 this is |x - f(x)|^2 / 2. Its score a f(x) + J^T (a x - f(x)) - c x has an output for
each pixel, while the gradient of a network with one output has to pass all pixels through one
number. So it learns denoising (``objective: score_matching``) much faster. f is a small U-Net
(Ronneberger et al. 2015) on cells of 2x2 pixels, with a layer over the whole image at its bottom.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Mismatch, NonNegative, Params, PositiveInt, section
from ebm_dist.energies import EnergyModel
from ebm_dist.energies._layers import check_images, silu
from ebm_dist.errors import ConfigError

_WAVES, _CODE = 8, 64  # sines of a label, and the width of its code
_START = 0.1  # of the weights that end a block or the network, so that f starts small


@section
class Config:
    channels: tuple[PositiveInt, ...] = (24, 48)
    """Channels at half the resolution, at a quarter, and so on."""
    num_blocks: PositiveInt = 1
    """Residual blocks of two 3x3 convolutions on the way down, and on the way up, at each
    resolution."""
    hidden: PositiveInt = 256
    """Width of the layer over the whole image."""
    confinement: NonNegative = 1.0
    """c, the weight of ``|x|^2 / 2``. Energies of noise levels can have it from the level."""

    def check(self, params: Params) -> None:
        if not self.channels:
            raise Mismatch("energy.channels", "at least one resolution is needed")


class Block(nn.Module):
    """``h + conv(silu((1 + g_y) conv(silu(h)) + b_y))``, at first nearly ``h``."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.classes = nn.Linear(_CODE, 2 * channels) if num_classes else None
        _shrink(self.second)

    def forward(self, h: Tensor, code: Tensor | None) -> Tensor:
        inner = self.first(silu(h))
        if self.classes is not None and code is not None:
            gain, bias = self.classes(code)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + gain) + bias
        return h + self.second(silu(inner))  # type: ignore[no-any-return]


@torch.no_grad()
def _shrink(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        parameter.mul_(_START)


class Code(nn.Module):
    """A code ``(B, 64)`` of labels ``(B,)``: alike for neighbours, such as two noise levels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(2 * _WAVES, _CODE), nn.SiLU(), nn.Linear(_CODE, _CODE), nn.SiLU()
        )

    def forward(self, y: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        waves = torch.arange(1, _WAVES + 1, device=y.device, dtype=dtype) * (math.pi / 2)
        angles = ((y + 0.5) / self.num_classes)[:, None].to(dtype) * waves
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))  # type: ignore[no-any-return]


class Autoencoder(EnergyModel):
    """The energy; the code of ``y`` gives the gains and biases of the blocks, and a."""

    def __init__(self, config: Config, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        widths, lowest = config.channels, [side >> len(config.channels) for side in shape[1:]]

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(Block(width, num_classes) for _ in range(config.num_blocks))
                for width in widths
            )

        self.confinement = config.confinement
        self.first = nn.Conv2d(4 * shape[0], widths[0], 3, padding=1)
        self.down, self.up = blocks(), blocks()
        self.shrink = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(widths)
        )
        self.grow = nn.ModuleList(nn.Conv2d(o, 4 * i, 1) for i, o in pairwise(widths))
        size = widths[-1] * lowest[0] * lowest[1]
        self.inward, self.outward = nn.Linear(size, config.hidden), nn.Linear(config.hidden, size)
        self.code = Code(num_classes) if num_classes else None
        self.bottom = nn.Linear(_CODE, config.hidden) if num_classes else None
        self.gain = nn.Linear(_CODE, 1) if num_classes else None
        self.last = nn.Conv2d(widths[0], 4 * shape[0], 3, padding=1)
        _shrink(self.last)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def reconstruct(self, x: Tensor, code: Tensor | None) -> Tensor:
        """Return ``f(x, y)`` of images ``(B, C, H, W)``, of their shape, for the code of ``y``."""
        h, skipped = self.first(F.pixel_unshuffle(x, 2)), list[Tensor]()
        for i, blocks in enumerate(self.down):
            h = self.shrink[i - 1](h) if i else h
            for block in blocks:  # type: ignore[union-attr,attr-defined]
                h = block(h, code)
            skipped.append(h)
        whole = self.inward(silu(h).flatten(1))
        if self.bottom is not None and code is not None:
            whole = whole + self.bottom(code)
        h = h + self.outward(silu(whole)).view_as(h)
        for i in reversed(range(len(self.up))):
            if i < len(self.grow):
                h = skipped[i] + F.pixel_shuffle(self.grow[i](h), 2)
            for block in self.up[i]:  # type: ignore[union-attr,attr-defined]
                h = block(h, code)
        return F.pixel_shuffle(self.last(silu(h)), 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        code = None if self.code is None or y is None else self.code(y)
        f = self.reconstruct(x, code).to(x.dtype)
        a = 1.0
        if self.gain is not None and code is not None:
            a = 1 + self.gain(code).to(x.dtype)[:, :, None, None]
        terms: Tensor = f * (f / 2 - a * x) + self.confinement * x**2 / 2
        return terms.flatten(1).sum(dim=1)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    check_images("autoencoder", shape, 2 ** len(config.channels))
    if any(side % 2 ** len(config.channels) for side in shape[1:]):
        raise ConfigError(
            f"energy: autoencoder halves images {len(config.channels)} times, and"
            f" {shape[1]}x{shape[2]} pixels cannot be",
            "change the number of energy.channels, or set energy.name: convnet",
        )
    return Autoencoder(config, shape, num_classes)
