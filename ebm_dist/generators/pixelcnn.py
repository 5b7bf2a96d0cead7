"""An autoregressive network for images: PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016).

Each value, channel by channel and pixel by pixel in reading order, is a mixture of logistic
distributions (Salimans et al. 2017) given the values before it:

    log q(x) = sum_i log sum_j w_j logistic(x_i; m_j, s_j),    w, m, s functions of x_1 .. x_(i-1)

The values are continuous: train it on data with added noise, not on grey levels. Masked
convolutions do not see some of the pixels above on the right. A draw takes one pass of the network
for each value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.energies._layers import logistic_mixture
from ebm_dist.errors import ConfigError
from ebm_dist.generators import FlowModel, ImageFlow

HAS_DENSITY = True
_LEAST_LOG_SCALE, _START_LOG_SCALE = -7.0, -1.0  # of a logistic, in standard deviations
_HALVINGS = 40  # of the interval in which a drawn value lies
_FARTHEST = 20.0  # such a value, in scales from the nearest mean


@section
class Config:
    width: PositiveInt = 16
    """Channels of the hidden layers for each channel of the image."""
    num_blocks: PositiveInt = 4
    """Residual blocks of a 3x3 and a 1x1 convolution."""
    num_logistics: PositiveInt = 5
    """Logistic distributions in the mixture of each value."""


class MaskedConv(nn.Conv2d):
    """A convolution that sees the pixels before each pixel, and of the pixel itself some channels.

    Inputs and outputs are in equal parts of the image's channels: an output sees those of the
    channels before its own, and with ``sees_own`` its own.
    """

    mask: Tensor

    def __init__(
        self, inputs: int, outputs: int, side: int, num_channels: int, sees_own: bool
    ) -> None:
        super().__init__(inputs, outputs, side, padding=side // 2)
        of_input = torch.arange(inputs) * num_channels // inputs
        of_output = (torch.arange(outputs) * num_channels // outputs)[:, None]
        mask, middle = torch.zeros(outputs, inputs, side, side), side // 2
        mask[:, :, :middle] = 1
        mask[:, :, middle, :middle] = 1
        mask[:, :, middle, middle] = (
            (of_input < of_output) | (sees_own & (of_input == of_output))
        ).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Block(nn.Module):
    """``h + conv(silu(conv(silu(h))))``, both masked."""

    def __init__(self, width: int, num_channels: int) -> None:
        super().__init__()
        self.near = MaskedConv(width, width, 3, num_channels, sees_own=True)
        self.here = MaskedConv(width, width, 1, num_channels, sees_own=True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.here(F.silu(self.near(F.silu(h))))  # type: ignore[no-any-return]


class PixelCNN(ImageFlow):
    """``x_i = F_i^-1(Phi(z_i))``, with the distribution function F_i of each mixture."""

    start: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        channels = shape[0]
        width = config.width * channels
        self.layers = nn.Sequential(
            MaskedConv(channels, width, 7, channels, sees_own=False),
            *(Block(width, channels) for _ in range(config.num_blocks)),
            nn.SiLU(),
            MaskedConv(width, 3 * config.num_logistics * channels, 1, channels, sees_own=True),
        )
        start = torch.linspace(-1, 1, config.num_logistics) if config.num_logistics > 1 else 0.0
        self.register_buffer("start", start + torch.zeros(config.num_logistics), persistent=False)

    def mixtures(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log scales ``(B, C, J, H, W)`` for ``u (B, C, H, W)``."""
        out = self.layers(u).unflatten(1, (self.shape[0], 3, -1))
        logits, means, log_scales = out.unbind(dim=2)
        means = means + self.start[:, None, None]
        return (
            logits.log_softmax(dim=2),
            means,
            (log_scales + _START_LOG_SCALE).clamp(min=_LEAST_LOG_SCALE),
        )

    def log_prob(self, x: Tensor) -> Tensor:
        u, log_det = self.scaled(x)
        each = logistic_mixture(u, *self.mixtures(u), dim=2)
        return each.flatten(1).sum(dim=1) + log_det

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = self.shape
        goal = torch.special.ndtr(z.view(-1, *self.shape).double())
        u = z.new_zeros(len(z), *self.shape)
        for i in range(height * width * channels):
            (row, column), c = divmod(i // channels, width), i % channels
            w, m, s = (part[:, c, :, row, column].double() for part in self.mixtures(u))
            value = _quantile(goal[:, c, row, column], w.exp(), m, s.exp()).to(u)
            here = torch.zeros_like(u, dtype=torch.bool)
            here[:, c, row, column] = True
            u = torch.where(here, value[:, None, None, None], u)
        x = self.unscaled(u)
        return x, self.log_prob(x)


def _quantile(goal: Tensor, weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Return ``F^-1(goal)`` for ``goal (B,)`` of mixtures ``(B, J)``, with its gradient."""

    def below(u: Tensor) -> Tensor:
        return (weights * torch.sigmoid((u[:, None] - means) / scales)).sum(dim=1)

    with torch.no_grad():
        low = (means - _FARTHEST * scales).amin(dim=1)
        high = (means + _FARTHEST * scales).amax(dim=1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_above = below(middle) > goal
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        u = (low + high) / 2
        share = torch.sigmoid((u[:, None] - means) / scales)
        slope = (weights * share * (1 - share) / scales).sum(dim=1).clamp(min=1e-30)
    return u - (below(u) - goal) / slope  # one step of Newton, for the gradient too


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    if len(shape) != 3:
        raise ConfigError(
            f"pixelcnn is for images, the data have shape {shape}", "use flow instead"
        )
    return PixelCNN(config, shape)
