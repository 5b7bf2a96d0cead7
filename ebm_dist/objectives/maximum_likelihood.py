"""Maximum likelihood of a normalised model: ``loss = mean E(x)``, for energies with Z = 1.

The control of methods that do without Z: energies ``density`` and ``vae``. Grey levels have no
density, so uniform noise as wide as their distance is added (Theis, van den Oord & Bethge 2016).
``bits_per_dim`` is the loss in bits for each number.
Energies are nats of the whole sample, so ``train.max_energy`` has to allow some for each number.
"""

import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ebm_dist.config import Mismatch, NonNegative, Params, module_of, section
from ebm_dist.energies import EnergyModel
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    grey_step: NonNegative = 0.0
    """Distance of two grey levels: uniform noise between minus and plus half of it is added."""

    @property
    def compares_energies(self) -> bool:
        return True

    def check(self, params: Params) -> None:
        if not getattr(module_of(params.energy), "IS_NORMALISED", False):
            raise Mismatch("energy.name", "its Z is unknown; use density or vae")


class MaximumLikelihood(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: EnergyModel) -> None:
        self.config, self.energy, self.players = config, energy, {"energy": energy}

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        x = batch.x
        if self.config.grey_step:
            share = torch.rand(x.shape, generator=context.stream("grey"), device=x.device)
            x = x + self.config.grey_step * (share - 0.5)
        inputs: list[Tensor | None] = [x, None]
        if self.energy.latent_size:
            size = (1, len(x), self.energy.latent_size)
            inputs.append(torch.randn(size, generator=context.stream("code"), device=x.device))
        loss = context.players["energy"](*inputs).mean()
        # where values are grey levels, bits of the levels
        bits = loss.detach() / (math.log(2) * x[0].numel())
        bits = bits - math.log2(self.config.grey_step) if self.config.grey_step else bits
        yield Turn("energy", loss, {"bits_per_dim": bits}, {"energy_pos": loss})


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return MaximumLikelihood(params.objective, cast(EnergyModel, networks["energy"]))
