"""Samples of a model with a generator, with or without chains in its latent space.

The chains are those of Kumar et al. 2019, section 3.3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ebm_dist.config import module_of
from ebm_dist.generators import LatentEnergy
from ebm_dist.models.trained import TrainedModel
from ebm_dist.rng import stream
from ebm_dist.samplers import run_chain


class Draws(NamedTuple):
    """Samples, with statistics of their chains."""

    x: Tensor
    """``(n, *shape)``"""
    acceptance_rate: float
    """Acceptance rate of the proposals; 1 without chains"""
    squared_norm: float
    """Mean of ``|z|^2 / latent_size``; 1 under the prior"""


@torch.no_grad()
def draw(
    model: TrainedModel, count: int, purpose: str, *, num_steps: int = 0, with_prior: bool = False
) -> Draws:
    """Draw ``count`` samples: ``z ~ N(0, I)``, then ``num_steps`` of the sampler, then ``G(z)``.

    They are a function of the purpose. The target of the chains is ``exp(-E(G(z)) / T)``, times the
    prior if ``with_prior``, with the temperature of the sampler's settings.
    """
    generator, config = model.generator, model.params.sampler
    z = torch.randn(count, generator.latent_size, generator=stream(0, f"{purpose}/latents"))
    acceptance = 1.0
    if num_steps:
        target = LatentEnergy(
            model.energy, generator, getattr(config, "temperature", 1.0) if with_prior else 0.0
        )
        kernel = module_of(config).build(config, bounds=None)  # the latent space has none
        z, stats = run_chain(kernel, target, z, num_steps, stream(0, f"{purpose}/chain"))
        acceptance = stats.acceptance_rate.item()
    x = torch.cat([generator(part) for part in z.split(1000)])
    return Draws(x, acceptance, (z**2).mean().item())
