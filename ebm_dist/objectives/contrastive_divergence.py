"""Maximum likelihood with negatives from a chain: Algorithm 1 of Du & Mordatch 2019, persistent and k-step contrastive divergence.

They are one gradient (Hinton 2002; Tieleman 2008),

    grad  E_data[E(x+)] - E_model[E(x-)],

and differ in where the chains of the negatives start: at replayed chains, at the data or at noise. The energy penalty
``energy_penalty * (E(x+)^2 + E(x-)^2)`` (Du & Mordatch 2019, section 3.3) keeps energies, which are known only up to a constant,
from drifting away.

A conditional energy E(x, y) may learn the labels too, as the factor p(y | x) of p(x, y) (Grathwohl et al. 2020, section 3): chains
that keep their labels never compare the energies of one image under two labels, so without it they are arbitrary.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.augmentation import augmented
from ebm_dist.config import Fraction, Index, Mismatch, NonNegative, Params, Positive, section
from ebm_dist.energies import EnergyModel
from ebm_dist.objectives import Batch, Objective, StepContext, Turn
from ebm_dist.replay import Draw
from ebm_dist.rng import bernoulli
from ebm_dist.samplers import Bounds, Kernel, noise
from ebm_dist.sampling import Chains, chains_of


@section
class Config:
    energy_penalty: NonNegative = 0.1
    """Weight of ``E(x+)^2 + E(x-)^2`` (alpha of Algorithm 1). Energies can differ by about 1 / (2 alpha) at most."""
    start: Literal["replay", "data", "noise"] = "replay"
    """Where chains start: ``replay`` is persistent (PCD, Algorithm 1), ``data`` is CD-k, ``noise`` is short-run."""
    binarise: bool = False
    """Data are drawn anew at each visit, 1 with the grey level as probability, else 0 (Salakhutdinov & Murray 2008)."""
    data_noise: NonNegative = 0.0
    """Standard deviation of the noise added to the data, clamped like a chain's positions."""
    augment_prob: Fraction = 0.0
    """Probability that an image from the buffer is turned, mirrored, scaled and sheared at random before its chain goes on."""
    burn_in: Index = 0
    """Draws for which a chain that started afresh only runs; after them it counts as a negative."""
    conditional: bool = False
    """Learn E(x, y): data come with their labels, and each chain keeps the label that it was started with."""
    label_temperature: Positive | None = None
    """Of a conditional energy, learn ``p(y | x) = softmax(-E(x, y) / T)`` too, at this T; the cross-entropy's weight is T."""

    def check(self, params: Params) -> None:
        if self.label_temperature and not self.conditional:
            raise Mismatch("objective.label_temperature", "only a conditional energy has labels; set conditional: true")
        if self.conditional and self.start == "data" and params.replay.reinit_prob:
            raise Mismatch("objective.start", "chains that start at the data do not use replay; set replay.reinit_prob to 0")
        if self.augment_prob and self.start != "replay":
            raise Mismatch("objective.augment_prob", f"only replayed chains are turned; these start at {self.start}; set it to 0")
        if self.binarise and self.data_noise:
            raise Mismatch("objective.data_noise", "binary data take no Gaussian noise; set binarise: false, or data_noise: 0")
        if self.burn_in and self.start != "replay":
            raise Mismatch("objective.burn_in", f"chains that start at {self.start} have no age; use start: replay, or burn_in: 0")
        if params.replay.max_age is not None and self.burn_in >= params.replay.max_age:
            raise Mismatch("objective.burn_in", f"no chain would ever count: they end at replay.max_age = {params.replay.max_age}")


class ContrastiveDivergence:
    """One player, the energy."""

    def __init__(self, config: Config, energy: EnergyModel, chains: Chains, reinit_prob: float, bounds: Bounds) -> None:
        self.players: Mapping[str, nn.Module] = {"energy": energy}
        self.config, self.chains, self.reinit_prob, self.bounds = config, chains, reinit_prob, bounds

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Algorithm 1 of Du & Mordatch 2019."""
        if self.config.binarise:
            batch = batch._replace(x=bernoulli(batch.x, context.stream("binarise")))
        n = len(batch.x)
        draw = self._start(batch, context)  # x~0 from the buffer with probability 1 - reinit_prob, else from noise
        labels = draw.label if self.config.conditional else None
        negative, chains = self.chains(draw.position, labels, context.stream("chain"))
        if self.config.start == "replay":
            context.replay.put(draw, negative)
        positive = self._perturb(batch.x, context)

        # one forward pass for all: DDP allows one a backward pass. The data come under their own labels, then under each other
        num_classes = context.replay.num_classes
        shifts = range(num_classes if self.config.label_temperature else 1)
        x = torch.cat([*[positive] * len(shifts), negative])
        y = torch.cat([*((batch.y + k) % num_classes for k in shifts), draw.label]) if self.config.conditional else None
        energy_data, energy_neg = context.players["energy"](x, y).split([len(shifts) * n, n])
        energy_pos = energy_data[:n]
        counts = (draw.age >= self.config.burn_in).float()
        weight = counts / counts.sum().clamp(min=1)
        mean_pos, mean_neg = energy_pos.mean(), weight @ energy_neg
        penalty = (energy_pos**2).mean() + weight @ energy_neg**2
        loss = mean_pos - mean_neg + self.config.energy_penalty * penalty
        if temperature := self.config.label_temperature:
            logits = -energy_data.view(len(shifts), n).T / temperature  # the first is that of the right label
            loss = loss + temperature * F.cross_entropy(logits, torch.zeros_like(batch.y))

        metrics = {
            "energy_pos": mean_pos,
            "energy_neg": mean_neg,
            "energy_gap": mean_pos - mean_neg,
            "energy_pos_sd": energy_pos.std(correction=0),
            "energy_neg_sd": (weight @ (energy_neg - mean_neg) ** 2).sqrt(),
            "chain_score_norm": chains.score_norm,
            "chain_distance": chains.distance,
            "chain_acceptance": chains.acceptance_rate,
            "chain_age_mean": draw.age.float().mean(),
            "chain_age_max": draw.age.float().max(),
        }
        if self.bounds is not None:
            low, high = self.bounds
            metrics["chain_at_bounds"] = ((negative <= low) | (negative >= high)).float().mean()
        yield Turn("energy", loss, metrics)

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        return cast(EnergyModel, players["energy"])

    def _start(self, batch: Batch, context: StepContext) -> Draw:
        n = len(batch.x)
        if self.config.start == "replay":
            draw = context.replay.draw(n, self.reinit_prob, context.stream("replay"))
            if not self.config.augment_prob:
                return draw
            moved = augmented(draw.position, self.config.augment_prob, self.bounds, context.stream("augment"))
            return draw._replace(position=moved)
        position = batch.x if self.config.start == "data" else noise(tuple(batch.x.shape), self.bounds, context.stream("noise"))
        slots = torch.arange(n, device=position.device)
        return Draw(slots, position, batch.y, torch.zeros_like(slots))

    def _perturb(self, x: Tensor, context: StepContext) -> Tensor:
        if not self.config.data_noise:
            return x
        generator = context.stream("data_noise")
        x = x + self.config.data_noise * torch.randn(x.shape, generator=generator, device=x.device)
        return x if self.bounds is None else x.clamp(*self.bounds)


def build(params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds) -> Objective:
    energy = cast(EnergyModel, networks["energy"])
    chains = chains_of(params.train, energy, kernel, params.sampler.num_steps)
    return ContrastiveDivergence(params.objective, energy, chains, params.replay.reinit_prob, bounds)
