"""Energy discrepancy (Schroeder et al. 2023): no chains, no gradient by x, no Z.

A datum is disturbed, and M points are drawn that could have been disturbed to the same place:

    x_j = x + s xi + s xi_j,                                     xi, xi_j ~ N(0, I),  j = 1..M
    loss = mean log( w / M + 1 / M sum_j exp(E(x) - E(x_j)) )

It lies between score matching (small s) and maximum likelihood (large s). ``w`` keeps the
logarithm bounded below, which M alone does not (section 4 of the paper).
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ebm_dist.config import Params, Positive, PositiveInt, section
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    sigma: Positive = 0.25
    """Standard deviation of the disturbance (s)."""
    num_negatives: PositiveInt = 4
    """Points per datum (M)."""
    stabiliser: Positive = 1.0
    """The constant w in the logarithm, which bounds the loss below."""
    conditional: bool = False
    """Learn E(x, y): data come with their labels."""

    @property
    def compares_energies(self) -> bool:
        return True


class EnergyDiscrepancy(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: nn.Module) -> None:
        self.config, self.players = config, {"energy": energy}

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        config, (x, y), m = self.config, batch, self.config.num_negatives
        generator = context.stream("noise")
        centre = x + config.sigma * torch.randn(x.shape, generator=generator, device=x.device)
        xi = torch.randn(m, *x.shape, generator=generator, device=x.device)
        negatives = (centre + config.sigma * xi).flatten(0, 1)
        labels = y.repeat(1 + m) if config.conditional else None
        energy = context.players["energy"](torch.cat([x, negatives]), labels)
        energy_pos, energy_neg = energy[: len(x)], energy[len(x) :].view(m, -1)
        loss = discrepancy(energy_pos, energy_neg, config.stabiliser)
        energies = {
            "energy_pos": energy_pos.mean(),
            "energy_neg": energy_neg.mean(),
            "energy_gap": energy_pos.mean() - energy_neg.mean(),
        }
        yield Turn("energy", loss, {}, energies)


def discrepancy(energy_pos: Tensor, energy_neg: Tensor, stabiliser: float) -> Tensor:
    """Return the loss of energies ``(B,)`` of data and ``(M, B)`` of their negatives.

    Computed in logarithms, so that differences of a hundred still count.
    """
    m = len(energy_neg)
    constant = torch.full_like(energy_pos, math.log(stabiliser))[None]
    terms = torch.cat([constant, energy_pos - energy_neg])
    return terms.logsumexp(dim=0).mean() - math.log(m)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return EnergyDiscrepancy(params.objective, networks["energy"])
