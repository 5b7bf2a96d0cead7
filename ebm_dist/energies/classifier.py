"""A classifier used as an energy, with one output per class: ``E(x, k) = -f_k(x)``.

Grathwohl et al. (2020); Gao et al. (2020), section 3.4.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.energies import EnergyModel
from ebm_dist.energies._layers import check_images

IS_CLASSIFIER = True


@section
class Config:
    channels: tuple[PositiveInt, ...] = ()
    """Channels of each 3x3 convolution, for images; each convolution halves the image."""
    hidden: tuple[PositiveInt, ...] = (128, 128, 128)
    """Width of each hidden layer after the convolutions."""


class Classifier(EnergyModel):
    """``f = W silu(... silu(x))``, ``(B, num_classes)``.

    With labels ``y (B,)`` or ``(B, n)``: ``E(x, y) = -f_y(x)``, of the same shape as ``y``. Without
    labels: ``E(x) = -log mean_k exp f_k(x)``, the energy of ``p(x)`` for equally likely classes.
    """

    has_heads = True

    def __init__(self, config: Config, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        trunk: list[nn.Module] = []
        for i, o in pairwise((shape[0], *config.channels)):
            trunk += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.SiLU()]
        trunk.append(nn.Flatten())
        widths = (nn.Sequential(*trunk)(torch.zeros(1, *shape)).shape[1], *config.hidden)
        trunk += [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*trunk, nn.Linear(widths[-1], max(num_classes, 1)))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = self.layers(x)
        if y is None:
            return math.log(f.shape[1]) - f.logsumexp(dim=1)  # type: ignore[no-any-return]
        return -f.gather(1, y.view(len(x), -1)).view(y.shape)  # type: ignore[no-any-return]


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    if config.channels:
        check_images("classifier with channels", shape)
    return Classifier(config, shape, num_classes)
