"""A small strided convolutional network with SiLU units, for grey or colour images of 16 to 64 pixels a side."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Count, Mismatch, Params, section
from ebm_dist.energies import EnergyModel, spectral_norm


@section
class Config:
    channels: tuple[Count, ...] = (16, 32, 64, 64)
    """Channels of each convolution; every one halves the image. The first is 5x5 with padding 4, the rest 3x3."""
    hidden: Count = 64
    """Width of the fully connected layer before the energy."""
    spectral_norm: bool = False
    """Divide each layer's weight but the last's by its largest singular value (Miyato et al. 2018)."""

    def check(self, params: Params) -> None:
        if not self.channels:
            raise Mismatch("energy.channels", "at least one convolution is needed")


class ConvNet(EnergyModel):
    """``h <- silu(conv(h) + c_y)``, flattened, one hidden layer, ``E = w.h``; the class bias ``c_y`` where there are classes."""

    def __init__(self, config: Config, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        wrap = spectral_norm if config.spectral_norm else nn.Identity()
        widths = (shape[0], *config.channels)
        self.convolutions = nn.ModuleList(
            wrap(nn.Conv2d(i, o, 5, stride=2, padding=4) if n == 0 else nn.Conv2d(i, o, 3, stride=2, padding=1))
            for n, (i, o) in enumerate(pairwise(widths))
        )
        self.classes = nn.ModuleList(nn.Embedding(num_classes, o) for o in config.channels if num_classes)
        for embedding in self.classes:
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        with torch.no_grad():
            num_features = self._features(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)).shape[1]
        self.hidden = wrap(nn.Linear(num_features, config.hidden))
        self.last = nn.Linear(config.hidden, 1)

    def _features(self, h: Tensor, y: Tensor | None) -> Tensor:
        for i, convolution in enumerate(self.convolutions):
            h = convolution(h)
            h = F.silu(h + self.classes[i](y)[:, :, None, None] if self.classes else h)
        return h.flatten(1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.last(F.silu(self.hidden(self._features(x, y)))).squeeze(1)  # type: ignore[no-any-return]


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    return ConvNet(config, shape, num_classes)
