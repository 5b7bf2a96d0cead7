"""Diffusion recovery likelihood (Gao et al. 2021): chains that need to cross no barrier.

Of a datum x and a ladder sigma_0 < ... < sigma_L of noise, with s_k^2 = sigma_k+1^2 - sigma_k^2:

    x_k = x + sigma_k z,  x_k+1 = x_k + s_k z'
    y: from x_k+1, some steps of the sampler on  E(y, k) + |x_k+1 - y|^2 / 2 s_k^2
    loss = mean E(x_k, k) - mean E(y, k)

The conditional of x_k given x_k+1 is near to a Gaussian for small s_k, so a few steps from x_k+1
suffice, and nothing needs to persist. This is maximum likelihood of the conditionals. Samples come
from the ladder, from much noise to none (chains/ladder.py). The sampler moves in the coordinates
y / s_k: one step size suits all levels.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import nn

from ebm_dist.chains.ladder import conditional, steps_of
from ebm_dist.config import Mismatch, NonNegative, Params, module_of, section
from ebm_dist.energies import EnergyModel, frozen
from ebm_dist.objectives import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepContext,
    Turn,
    check_levels,
    levels_in_turn,
)
from ebm_dist.samplers import Bounds, Kernel, run_chain


@section
class Config(ObjectiveConfig):
    sigmas: tuple[NonNegative, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
    """Standard deviations sigma_0 to sigma_L of the noise, growing; there are L energies."""
    energy_penalty: NonNegative = 0.0
    """Weight of ``E(x_k)^2 + E(y)^2``, against a drift of the energies."""

    @property
    def levels(self) -> tuple[float, ...]:
        return self.sigmas[:-1]

    @property
    def ladder(self) -> tuple[float, ...]:
        return self.sigmas

    def check(self, params: Params) -> None:
        check_levels(self.sigmas)
        if params.train.compile or params.train.precision != "float32":
            raise Mismatch(
                "train.compile" if params.train.compile else "train.precision",
                "chains of this objective are not compiled; set compile: false and precision:"
                " float32",
            )


class RecoveryLikelihood(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: EnergyModel, kernel: Kernel, num_steps: int) -> None:
        self.config, self.players, self.energy = config, {"energy": energy}, energy
        self.kernel, self.num_steps = kernel, num_steps

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        x, generator = batch.x, context.stream("noise")
        n, ones = len(x), (1,) * (x.ndim - 1)
        widths = torch.tensor(steps_of(self.config.sigmas), device=x.device)
        level = levels_in_turn(x, len(widths), context)
        sigma = torch.tensor(self.config.sigmas, device=x.device)[level].view(-1, *ones)
        s = widths[level].view(-1, *ones)
        z, z_above = (torch.randn(x.shape, generator=generator, device=x.device) for _ in range(2))
        positive = x + sigma * z
        above = positive + s * z_above
        with frozen(self.energy):
            target = conditional(self.energy, level, above, s)
            # a start that is not finite shows in the loss, where all ranks stop together
            u, chains = run_chain(
                self.kernel,
                target,
                above / s,
                self.num_steps,
                context.stream("chain"),
                checks_start=False,
            )
        energy = context.players["energy"](torch.cat([positive, s * u]), level.repeat(2))
        energy_pos, energy_neg = energy.split(n)
        penalty = (energy_pos**2).mean() + (energy_neg**2).mean()
        loss = energy_pos.mean() - energy_neg.mean() + self.config.energy_penalty * penalty
        energies = {
            "energy_pos": energy_pos.mean(),
            "energy_neg": energy_neg.mean(),
            "energy_gap": energy_pos.mean() - energy_neg.mean(),
        }
        metrics = {
            "chain_score_norm": chains.score_norm,
            "chain_distance": chains.distance,
            "chain_acceptance": chains.acceptance_rate,
        }
        yield Turn("energy", loss, metrics, energies)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    inner = module_of(params.sampler).build(params.sampler, bounds=None)
    energy = cast(EnergyModel, networks["energy"])
    return RecoveryLikelihood(params.objective, energy, inner, params.sampler.num_steps)
