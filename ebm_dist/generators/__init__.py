"""Networks that draw samples. One file, one architecture; each has a ``Config`` and a ``build(config, *, shape)``.

Chains may run in a generator's latent space (Kumar et al. 2019, section 3.3): :class:`LatentEnergy` is their target.
"""

from torch import Tensor, nn

from ebm_dist.energies import EnergyFn


class GeneratorModel(nn.Module):
    """``G: (B, latent_size) -> (B, *shape)``; a row depends on no other row (so no batch norm)."""

    latent_size: int

    def forward(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class LatentEnergy:
    """``E(G(z)) + prior_weight |z|^2 / 2`` as a function of ``z (B, latent_size)``.

    Without the prior nothing keeps chains where the generator learnt to draw, at ``|z|^2`` about ``latent_size``. Chains of
    ``exp(-E / T)`` have the prior itself where its weight is ``T``.
    """

    def __init__(self, energy: EnergyFn, generator: nn.Module, prior_weight: float = 0.0) -> None:
        self.energy, self.generator, self.prior_weight = energy, generator, prior_weight

    def __call__(self, z: Tensor) -> Tensor:
        return self.energy(self.generator(z)) + self.prior_weight / 2 * (z**2).sum(dim=1)
