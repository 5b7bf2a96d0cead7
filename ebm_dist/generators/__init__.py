"""Networks that draw samples. One file, one architecture.

Each has a ``Config`` and a ``build(config, *, shape)``. A module with ``HAS_DENSITY = True`` builds
a :class:`FlowModel`, a generator with a known density, such as the noise of noise contrastive
estimation. One with ``LEARNS = False`` has no parameters.

Chains may run in a generator's latent space (Kumar et al. 2019, section 3.3). Their target is
:class:`LatentEnergy`.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ebm_dist.energies import Average, EnergyFn


class GeneratorModel(nn.Module):
    """``G: (B, latent_size) -> (B, *shape)``.

    A row does not depend on the other rows. This excludes batch normalisation.
    """

    latent_size: int

    def forward(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def initialise(self, average: Average) -> None:
        """Set what averages over the training data give, before training.

        The default does nothing.
        """


class FlowModel(GeneratorModel):
    """A generator ``x = g(z)`` with a known density.

    That of an invertible one is ``log q(x) = log N(z; 0, I) - log |det dg/dz|``, and its
    ``latent_size`` is the number of dimensions of a sample.
    """

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x = g(z) (B, *shape)`` and ``log q(x) (B,)``, in nats."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``log q(x)``: ``(B, *shape) -> (B,)``, in nats."""
        raise NotImplementedError

    def forward(self, z: Tensor | None = None, x: Tensor | None = None) -> Any:
        """Return ``g(z)`` for latents ``z``, or ``log q(x)`` for data ``x``.

        For both, return all terms of a loss from one call: ``(g(z), log q(g(z)), log q(x))``.
        """
        if z is None or x is None:
            return self.log_prob(cast(Tensor, x)) if z is None else self.draw(z)[0]
        return *self.draw(z), self.log_prob(x)


class ImageFlow(FlowModel):
    """A flow for images ``(B, C, H, W)`` in units of each channel's mean and standard deviation.

    These are 0 and 1 before :meth:`initialise`.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.latent_size = shape, math.prod(shape)
        self.register_buffer("centre", torch.zeros(shape[0], 1, 1))
        self.register_buffer("spread", torch.ones(shape[0], 1, 1))

    @torch.no_grad()
    def initialise(self, average: Average) -> None:
        self.centre.copy_(average(lambda x: x).mean(dim=(1, 2), keepdim=True))
        variance = average(lambda x: (x - self.centre.to(x)) ** 2).mean(dim=(1, 2), keepdim=True)
        self.spread.copy_(variance.sqrt().clamp(min=1e-6))

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u = (x - centre) / spread`` and ``log |det du/dx|``, a scalar."""
        log_det = -math.prod(self.shape[1:]) * self.spread.log().sum()
        return (x - self.centre) / self.spread, log_det

    def unscaled(self, u: Tensor) -> Tensor:
        """Return ``x (B, C, H, W)`` of values in these units, of the same shape."""
        return self.centre + self.spread * u


def standard_normal(z: Tensor) -> Tensor:
    """Return ``log N(z; 0, I)``: ``(B, n) -> (B,)``, in nats."""
    return -(z**2).sum(dim=1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


class LatentEnergy:
    """``E(G(z)) + prior_weight |z|^2 / 2`` as a function of ``z (B, latent_size)``.

    The generator was trained at ``|z|^2`` of about ``latent_size``. Without the prior, chains may
    leave that region. For chains of ``exp(-E / T)``, a weight of ``T`` gives the prior N(0, I).
    """

    def __init__(self, energy: EnergyFn, generator: nn.Module, prior_weight: float = 0.0) -> None:
        self.energy, self.generator, self.prior_weight = energy, generator, prior_weight

    def __call__(self, z: Tensor) -> Tensor:
        return self.energy(self.generator(z)) + self.prior_weight / 2 * (z**2).sum(dim=1)
