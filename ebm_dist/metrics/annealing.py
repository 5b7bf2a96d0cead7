"""Annealed importance sampling of any energy of binary variables, with any kernel (Neal 2001).

    E_beta(x) = -(1 - beta) a.x + beta E(x),   a: logits of independent units, the base
    log w = sum_t (beta_t+1 - beta_t) (-a.x_t - E(x_t)),   x_t+1 ~ one step that keeps E_beta_t+1
    log Z = log Z_0 + log mean w,   log Z_0 = sum_i softplus(a_i)

From the base w is too small on average in the logarithm; from draws of the energy, annealed to the
base (:func:`reverse`), log Z is too large. Restricted Boltzmann machines have a better path
(metrics/ais.py).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.metrics.ais import Estimate, check, estimate
from ebm_dist.rng import bernoulli
from ebm_dist.samplers import STEPPED, Info, Kernel, gibbs_with_gradients

Betas = Sequence[float]
"""Inverse temperatures"""


def forward(
    energy: EnergyFn, kernel: Kernel, base: Tensor, betas: Betas, count: int, generator: Generator
) -> Estimate:
    """Estimate log Z from ``count`` chains that start at draws of the base ``(*shape)``.

    ``betas`` grow from 0 to 1. Raises ValueError for others or fewer than two chains.
    """
    check(betas, count)
    x = bernoulli(base.sigmoid().expand(count, *base.shape), generator)
    return estimate(_anneal(energy, kernel, base, betas, x, generator), _log_z_of(base))


def reverse(
    energy: EnergyFn, kernel: Kernel, base: Tensor, betas: Betas, x: Tensor, generator: Generator
) -> Estimate:
    """Estimate log Z from chains that start at draws of the energy, ``x (num_chains, *shape)``.

    For draws of a long chain this requires that the chain has forgotten its start. Raises
    ValueError as :func:`forward`.
    """
    check(betas, len(x))
    log_w = _anneal(energy, kernel, base, betas[::-1], x, generator)
    return estimate(log_w, _log_z_of(base), is_reverse=True)


def _log_z_of(base: Tensor) -> float:
    return F.softplus(base.double()).sum().item()


def with_single_changes(kernel: Kernel) -> Kernel:
    """Return a kernel of binary states, each step followed by one of Gibbs with gradients.

    Where an energy is steep, DMALA proposes to change hundreds of variables at once, and may be
    refused for ever. Changes of one variable leave such states. Info has the acceptance of
    ``kernel``.
    """
    single = gibbs_with_gradients.build(gibbs_with_gradients.Config(), bounds=None)

    def step(target: EnergyFn, state: Any, generator: Generator) -> tuple[Any, Info]:
        state, info = kernel.step(target, state, generator)
        state, after = single.step(target, state, generator)
        return state, info._replace(energy=after.energy, score_norm=after.score_norm)

    return Kernel(kernel.init, step)


@torch.no_grad()
def _anneal(
    energy: EnergyFn, kernel: Kernel, base: Tensor, betas: Betas, x: Tensor, generator: Generator
) -> Tensor:
    """Return log w ``(num_chains,)`` in float64, from ``x``, which are draws at ``betas[0]``."""
    log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for old, new in pairwise(betas):
        target = Between(energy, base, new)
        state = kernel.init(target, x)
        # at x, the energy is (1 - new) base + new E, of which both parts are needed
        of_base = target.base_energy(x)
        of_energy = energy(x) if new == 0 else (state.energy - (1 - new) * of_base) / new
        log_w += (new - old) * (of_base - of_energy).double()
        state, _ = kernel.step(target, state, generator)
        x = state.position
        STEPPED.get()()
    return log_w


class Between:
    """The energy ``(1 - beta) E_0 + beta E``; ``base (*shape)`` has the logits of E_0."""

    def __init__(self, energy: EnergyFn, base: Tensor, beta: float) -> None:
        self.energy, self.base, self.beta = energy, base, beta

    def base_energy(self, x: Tensor) -> Tensor:
        """Return E_0 ``(B,)`` of ``x (B, *shape)``."""
        return -(x * self.base).flatten(1).sum(1)

    def __call__(self, x: Tensor) -> Tensor:
        return (1 - self.beta) * self.base_energy(x) + self.beta * self.energy(x)
