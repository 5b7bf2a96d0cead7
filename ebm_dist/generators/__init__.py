"""Networks that draw samples. One file, one architecture; each has a ``Config`` and a ``build(config, *, shape)``.

Those that are one to one also know the density of what they draw (:class:`FlowModel`): noise to contrast data with.

Chains may run in a generator's latent space (Kumar et al. 2019, section 3.3): :class:`LatentEnergy` is their target.
"""

import math
from typing import Any, cast

from torch import Tensor, nn

from ebm_dist.energies import EnergyFn


class GeneratorModel(nn.Module):
    """``G: (B, latent_size) -> (B, *shape)``; a row depends on no other row (so no batch norm)."""

    latent_size: int

    def forward(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class FlowModel(GeneratorModel):
    """A generator that is one to one: ``x = g(z)`` has the density ``log q(x) = log N(z; 0, I) - log |det dg/dz|``.

    ``latent_size`` is the number of numbers of a sample.
    """

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``g(z) (B, *shape)`` and ``log q`` there ``(B,)``, in nats."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """``log q(x)``: ``(B, *shape) -> (B,)``"""
        raise NotImplementedError

    def forward(self, z: Tensor | None = None, x: Tensor | None = None) -> Any:
        """``g(z)``; for data ``x``, ``log q(x)``; for both, all of a loss in one call: ``(g(z), log q(g(z)), log q(x))``."""
        if z is None or x is None:
            return self.log_prob(cast(Tensor, x)) if z is None else self.draw(z)[0]
        return *self.draw(z), self.log_prob(x)


def standard_normal(z: Tensor) -> Tensor:
    """``log N(z; 0, I)``: ``(B, n) -> (B,)``"""
    return -(z**2).sum(dim=1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


class LatentEnergy:
    """``E(G(z)) + prior_weight |z|^2 / 2`` as a function of ``z (B, latent_size)``.

    Without the prior nothing keeps chains where the generator learnt to draw, at ``|z|^2`` about ``latent_size``. Chains of
    ``exp(-E / T)`` have the prior itself where its weight is ``T``.
    """

    def __init__(self, energy: EnergyFn, generator: nn.Module, prior_weight: float = 0.0) -> None:
        self.energy, self.generator, self.prior_weight = energy, generator, prior_weight

    def __call__(self, z: Tensor) -> Tensor:
        return self.energy(self.generator(z)) + self.prior_weight / 2 * (z**2).sum(dim=1)
