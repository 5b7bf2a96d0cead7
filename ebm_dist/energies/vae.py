"""A variational autoencoder (Kingma & Welling 2014), whose energy bounds ``-log q(x)`` from above.

Images are Gaussian around the decoded one, with one standard deviation for each channel (Rybkin,
Daniilidis & Levine 2021); the bound is that of K draws of a code (Burda, Grosse & Salakhutdinov
2016):

    E(x) = -log 1/K sum_j q(x | z_j) q(z_j) / r(z_j | x),    z_j = m(x) + t(x) n_j,  n_j ~ N(0, I)

Training draws ``n``. Without, it has fixed values, so that an energy is a function of x. Learnt by
``objective: maximum_likelihood``.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.energies import Average, EnergyModel
from ebm_dist.energies._layers import check_images
from ebm_dist.errors import ConfigError

IS_NORMALISED = True


@section
class Config:
    latent_size: PositiveInt = 64
    """Numbers of a code."""
    channels: tuple[PositiveInt, ...] = (32, 64)
    """Channels at half the resolution, at a quarter, and so on; none for vectors."""
    hidden: PositiveInt = 256
    """Width of the layer between the image and the code."""
    num_draws: PositiveInt = 16
    """Draws of the code for an energy (K); training has one."""


class VariationalAutoencoder(EnergyModel):
    """The bound in nats, ``(B,)``."""

    centre: Tensor
    draws: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.latent_size = shape, config.latent_size
        widths = (shape[0], *config.channels)
        lowest = tuple(side >> len(config.channels) for side in shape[1:])
        bottom = (widths[-1], *lowest)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for i, o in pairwise(widths):
            down += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.SiLU()]
            up = [nn.SiLU(), nn.ConvTranspose2d(o, i, 4, stride=2, padding=1), *up]
        size = math.prod(bottom)
        self.encoder = nn.Sequential(
            *down,
            nn.Flatten(),
            nn.Linear(size, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 2 * config.latent_size),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_size, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, size),
            nn.Unflatten(1, bottom),
            *up,
        )
        self.log_sd = nn.Parameter(torch.zeros(shape[0], *[1] * len(shape[1:])))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("draws", torch.randn(config.num_draws, config.latent_size))

    def forward(self, x: Tensor, y: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Return the bound for ``noise (K, B, latent_size)``, or the fixed draws."""
        d = x - self.centre
        mean, log_sd = self.encoder(d).chunk(2, dim=1)
        n = self.draws[:, None].expand(-1, len(x), -1) if noise is None else noise
        z = mean + log_sd.exp() * n
        image = self.decoder(z.flatten(0, 1)).unflatten(0, n.shape[:2])
        # log q(x | z) + log q(z) - log r(z | x); the constants of the last two cancel
        terms = _log_normal((d - image) * (-self.log_sd).exp(), self.log_sd)
        terms = terms + ((n**2 - z**2) / 2 + log_sd).sum(dim=2)
        bound: Tensor = math.log(len(n)) - terms.logsumexp(dim=0)
        return bound

    @torch.no_grad()
    def initialise(self, average: Average) -> None:
        """Start at the mean image, with the standard deviation around it."""
        self.centre.copy_(average(lambda x: x))
        variance = average(lambda x: (x - self.centre.to(x)) ** 2)
        by_channel = variance.reshape(len(variance), -1).mean(dim=1).clamp(min=1e-6)
        self.log_sd.copy_(by_channel.view_as(self.log_sd).log() / 2)


def _log_normal(u: Tensor, log_sd: Tensor) -> Tensor:
    """Return the log density ``(K, B)`` of values with residuals ``u (K, B, *shape)``."""
    each = -(u**2) / 2 - log_sd - math.log(2 * math.pi) / 2
    return each.flatten(2).sum(dim=2)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    if num_classes:
        raise ConfigError(
            "energy: vae has no labels", "choose another energy, or an objective without them"
        )
    if config.channels:
        parts = 2 ** len(config.channels)
        check_images("vae with channels", shape, parts)
        if any(side % parts for side in shape[1:]):
            raise ConfigError(
                f"energy: vae halves images {len(config.channels)} times, and"
                f" {shape[1]}x{shape[2]} pixels cannot be",
                "change the number of energy.channels",
            )
    elif len(shape) > 1:
        raise ConfigError(f"energy: vae of samples of shape {shape}", "set energy.channels")
    return VariationalAutoencoder(config, shape)
