"""Maximum likelihood of hidden values given the others, for the energy ``conditionals``.

Each sample hides its own random share of values, from a tenth to nine tenths, so that one network
learns all conditionals (Uria, Murray & Larochelle 2014):

    loss = mean over samples, mean over its hidden values j, of -log p(x_j | seen values)
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ebm_dist.config import Mismatch, NonNegative, Params, plugin_name, section
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel

_LEAST, _MOST = 0.1, 0.9  # share of the values that are hidden


@section
class Config(ObjectiveConfig):
    data_noise: NonNegative = 0.05
    """Standard deviation of Gaussian noise added to the data, without which a value that is always
    the same has an infinite density."""

    @property
    def compares_energies(self) -> bool:
        return True

    def check(self, params: Params) -> None:
        if plugin_name(params.energy) != "conditionals":
            raise Mismatch("energy.name", "has no conditionals to learn; use conditionals")


class MaskedLikelihood(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: nn.Module) -> None:
        self.config, self.players = config, {"energy": energy}

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        x = batch.x.flatten(1)
        noise, hidden = context.stream("noise"), context.stream("hidden")
        x = x + self.config.data_noise * torch.randn(x.shape, generator=noise, device=x.device)
        share = torch.rand(len(x), 1, generator=hidden, device=x.device)
        share = _LEAST + (_MOST - _LEAST) * share
        is_hidden: Tensor = torch.rand(x.shape, generator=hidden, device=x.device) < share
        if x.shape[1] == 1:
            is_hidden = torch.ones_like(is_hidden)
        loss = context.players["energy"](x, None, is_hidden).mean()
        yield Turn("energy", loss, {}, {"energy_pos": loss})


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return MaskedLikelihood(params.objective, networks["energy"])
