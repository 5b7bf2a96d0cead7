"""Energy matching (Balcerak et al. 2025): one energy that transports noise to data, then fits them.

With V = epsilon E, noise x0 ~ N(0, I) coupled to parts of the data x1 by optimal transport:

    transport     |grad V(x_t) + x1 - x0|^2,   x_t = (1 - t) x0 + t x1,  t uniform in (0, 1)
    contrastive   mean E(x1) - mean E(x-),     from the share ``warm_up`` of the training on

Far from the data -grad V is the velocity of the transport. Near to them the contrastive term makes
exp(-E) = exp(-V / epsilon) the density of the data. Half of the negatives x- start at noise and
half at data, and follow

    x <- x - h grad V(x) + sqrt(2 h epsilon(t)) N(0, I),     t from 0 to 1, for those at data t = 1

where epsilon(t) is 0 up to t = tau and rises linearly to epsilon at t = 1. In the contrastive phase
the weight of the transport falls linearly from 1 at t = tau to 0 at t = 1. For data of about unit
scale.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ebm_dist.config import NonNegative, Params, Positive, PositiveInt, Probability, section
from ebm_dist.energies import EnergyModel, frozen, score
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    epsilon: Positive = 0.15
    """Temperature of V at which its density is that of the data."""
    tau: Probability = 0.8
    """Time up to which negatives from noise move without noise."""
    warm_up: Probability = 0.9
    """Share of the training with the transport term alone."""
    weight: NonNegative = 0.3
    """Weight of the contrastive term, in units of E."""
    num_coupled: PositiveInt = 128
    """Samples that are coupled with as many of the noise; the cost grows with the third power."""
    num_langevin: PositiveInt = 40
    """Steps of the negatives; ``h`` is its inverse."""

    @property
    def follows_length(self) -> bool:
        return 0 < self.warm_up < 1


class EnergyMatching(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: EnergyModel, num_steps: int) -> None:
        self.config, self.energy, self.players = config, energy, {"energy": energy}
        self.warm_up = config.warm_up * num_steps

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        config, x1, ones = self.config, batch.x, (1,) * (batch.x.ndim - 1)
        generator, is_warm = context.stream("transport"), context.step >= self.warm_up
        x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
        n = config.num_coupled
        parts = zip(x0.split(n), x1.split(n), strict=True)
        x0 = torch.cat([noise[coupled(noise, data)] for noise, data in parts])
        t = torch.rand(len(x1), generator=generator, device=x1.device, dtype=x1.dtype)
        time = t.view(-1, *ones)
        x_t = ((1 - time) * x0 + time * x1).requires_grad_()
        negative = self._negatives(x1, context) if is_warm else x1[:0]

        # one forward pass: DDP allows one per backward pass
        energy = context.players["energy"](torch.cat([x_t, x1, negative]))
        energy_t, energy_pos, energy_neg = energy.split([len(x_t), len(x1), len(negative)])
        (gradient,) = torch.autograd.grad(energy_t.sum(), x_t, create_graph=True)
        error = (config.epsilon * gradient + x1 - x0).flatten(1).square().sum(dim=1)
        energies = {"energy_pos": energy_pos.mean()}
        if not is_warm:
            # a bias has no part in the transport, but each parameter needs a gradient
            loss = error.mean() + 0 * energy.mean()
        else:
            share = ((1 - t) / max(1 - config.tau, 1e-6)).clamp(max=1)
            gap = energy_pos.mean() - energy_neg.mean()
            loss = (share * error).mean() + config.weight * gap
            energies |= {"energy_neg": energy_neg.mean(), "energy_gap": gap}
        yield Turn("energy", loss, {"transport_error": error.mean()}, energies)

    def _negatives(self, x1: Tensor, context: StepContext) -> Tensor:
        """Return negatives ``(B, *shape)``, half of them from data."""
        config, generator = self.config, context.stream("chain")
        half, h = len(x1) // 2, 1 / config.num_langevin
        start = torch.randn(x1[half:].shape, generator=generator, device=x1.device, dtype=x1.dtype)
        x = torch.cat([x1[:half], start])
        with frozen(self.energy):
            for i in range(config.num_langevin):
                rise = max(0.0, ((i + 1) * h - config.tau) / max(1 - config.tau, 1e-6))
                epsilon = x.new_full((len(x),), config.epsilon)
                epsilon[half:] *= min(1.0, rise)
                noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                width = (2 * h * epsilon).sqrt().view(-1, *(1,) * (x.ndim - 1))
                x = x + h * config.epsilon * score(self.energy, x)[1] + width * noise
        return x


def coupled(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the rows of ``x0 (B, *shape)`` that optimal transport brings to each row of ``x1``.

    The cost is the squared distance; the assignment is exact.
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x1.flatten(1), x0.flatten(1)) ** 2
    _, rows = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(rows).to(x0.device)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    energy = cast(EnergyModel, networks["energy"])
    return EnergyMatching(params.objective, energy, params.train.num_steps)
