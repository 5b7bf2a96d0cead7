"""Maximum likelihood with negatives from chains: persistent, k-step and short-run.

Algorithm 1 of Du & Mordatch 2019 (persistent contrastive divergence), k-step contrastive divergence
and short-run chains follow one gradient (Hinton 2002; Tieleman 2008),

    grad  E_data[E(x+)] - E_model[E(x-)],

and differ in where the chains of the negatives start: at replayed chains, at the data or at noise.
The energy penalty ``energy_penalty * (E(x+)^2 + E(x-)^2)`` (Du & Mordatch 2019, section 3.3) keeps
energies, which are defined only up to a constant, from drifting.

A conditional energy E(x, y) can learn the labels too, as the factor p(y | x) of p(x, y) (Grathwohl
et al. 2020, section 3). Without it, the energies of an image under two labels are not comparable,
because chains keep their labels.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.chains.augmentation import AUGMENTATIONS, Augmentation
from ebm_dist.chains.build import build_chains
from ebm_dist.chains.eager import Chains
from ebm_dist.chains.replay import Draw
from ebm_dist.config import (
    Mismatch,
    NonNegative,
    NonNegativeInt,
    Params,
    Positive,
    Probability,
    module_of,
    section,
)
from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.rng import bernoulli
from ebm_dist.samplers import Bounds, Kernel, noise


@section
class Config(ObjectiveConfig):
    energy_penalty: NonNegative = 0.1
    """Weight of ``E(x+)^2 + E(x-)^2`` (alpha of Algorithm 1). Mean energies of data and negatives
    can differ by about 1 / (2 alpha) at most."""
    start: Literal["replay", "data", "noise"] = "replay"
    """Where chains start: ``replay`` is persistent (PCD, Algorithm 1), ``data`` is CD-k, ``noise``
    is short-run."""
    binarise: bool = False
    """Draw the data as 0 or 1 at each visit, 1 with the grey level as probability (Salakhutdinov &
    Murray 2008)."""
    data_noise: NonNegative = 0.0
    """Standard deviation of the noise added to the data, clamped like a chain's positions."""
    augment_prob: Probability = 0.0
    """Probability that the image at which a chain starts, from the buffer or the data, is augmented
    first."""
    augmentation: Augmentation = "affine"
    """``affine``: rotate, mirror, scale and shear; ``crop``: mirror, enlarge a part and change the
    colours."""
    burn_in: NonNegativeInt = 0
    """Draws for which a restarted chain only runs; after them it counts as a negative."""
    conditional: bool = False
    """Learn E(x, y): data come with their labels, and each chain keeps its first label."""
    chain_labels: Literal["own", "data"] = "own"
    """Labels of a conditional energy's chains. ``own``: each chain keeps its label; ``data``: the
    labels of other data, whatever the class of the chain or of the image at its start, as in the
    code of Du & Mordatch 2019."""
    label_temperature: Positive | None = None
    """Temperature T at which a conditional energy learns ``p(y | x) = softmax(-E(x, y) / T)`` too.
    The weight of the cross-entropy is T."""
    kl_weight: NonNegative = 0.0
    """Weight of the term that contrastive divergence leaves out, the gradient through the chains
    (Du et al. 2021, eq. 8), here through one more step of them."""
    entropy_weight: NonNegative = 0.0
    """Within that term, weight of ``-mean log`` of a chain's distance to the nearest other chain
    (Du et al. 2021, eq. 10)."""

    @property
    def keeps_chains(self) -> bool:
        return self.start == "replay"

    def check(self, params: Params) -> None:
        if self.label_temperature and not self.conditional:
            raise Mismatch(
                "objective.label_temperature",
                "only a conditional energy has labels; set conditional: true",
            )
        if self.chain_labels == "data" and not self.conditional:
            raise Mismatch(
                "objective.chain_labels",
                "only a conditional energy has labels; set conditional: true",
            )
        if (
            self.kl_weight
            and module_of(params.sampler).build(params.sampler, bounds=None).differentiable_step
            is None
        ):
            raise Mismatch(
                "objective.kl_weight",
                "this sampler's steps have no gradient by weights; use langevin, or set it to 0",
            )
        if self.entropy_weight and not self.kl_weight:
            raise Mismatch(
                "objective.entropy_weight",
                "is part of the term of objective.kl_weight; set that too",
            )
        if self.entropy_weight and params.train.batch_size == params.train.num_shards:
            raise Mismatch(
                "objective.entropy_weight",
                "needs two chains in a logical shard, for a distance between them; use a larger"
                " train.batch_size",
            )
        if self.conditional and self.start == "data" and params.replay.reinit_prob:
            raise Mismatch(
                "objective.start",
                "chains that start at the data do not use replay; set replay.reinit_prob to 0",
            )
        if self.augment_prob and self.start == "noise":
            raise Mismatch(
                "objective.augment_prob",
                "chains start at noise, which has nothing to augment; set it to 0",
            )
        if self.augment_prob and params.replay.temperatures:
            raise Mismatch(
                "objective.augment_prob",
                "tempered chains are not augmented; set it to 0, or leave replay.temperatures out",
            )
        if self.binarise and self.data_noise:
            raise Mismatch(
                "objective.data_noise",
                "binary data take no Gaussian noise; set binarise: false, or data_noise: 0",
            )
        if self.burn_in and self.start != "replay":
            raise Mismatch(
                "objective.burn_in",
                f"chains that start at {self.start} have no age; use start: replay, or burn_in: 0",
            )
        if params.replay.max_age is not None and self.burn_in >= params.replay.max_age:
            raise Mismatch(
                "objective.burn_in",
                f"must be below replay.max_age = {params.replay.max_age}, found {self.burn_in}: no"
                " chain would count as a negative",
            )


class ContrastiveDivergence(Objective):
    """The energy is the only player."""

    def __init__(
        self,
        config: Config,
        energy: EnergyModel,
        chains: Chains,
        reinit_prob: float,
        bounds: Bounds,
    ) -> None:
        self.players = {"energy": energy}
        self.config, self.chains = config, chains
        self.reinit_prob, self.bounds = reinit_prob, bounds

    def prepared(self, batch: Batch, context: StepContext) -> Batch:
        """Return the data drawn as 0 or 1, or with noise."""
        x = self._binary(batch, context).x
        return batch._replace(x=self._perturb(x, context))

    def _binary(self, batch: Batch, context: StepContext) -> Batch:
        if not self.config.binarise:
            return batch
        return batch._replace(x=bernoulli(batch.x, context.stream("binarise")))

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Algorithm 1 of Du & Mordatch 2019."""
        batch = self._binary(batch, context)
        n = len(batch.x)
        # x~0, from the buffer with probability 1 - reinit_prob, else from noise
        draw = self._start(batch, context)
        labels = draw.label if self.config.conditional else None
        ends, chains = self.chains(draw.position, labels, context.stream("chain"), context.step)
        if self.config.start == "replay":
            context.replay.put(draw, ends)
        negative = self.chains.coldest(ends)
        positive = self._perturb(batch.x, context)

        # One forward pass: DDP allows one per backward pass. The data come first under their own
        # labels, then under each other label.
        first, num_classes = context.replay.classes.start, len(context.replay.classes)
        shifts = range(num_classes if self.config.label_temperature else 1)
        x = torch.cat([*[positive] * len(shifts), negative])
        y = (
            torch.cat([*(first + (batch.y - first + k) % num_classes for k in shifts), draw.label])
            if self.config.conditional
            else None
        )
        energy_data, energy_neg = context.players["energy"](x, y).split([len(shifts) * n, n])
        energy_pos = energy_data[:n]
        counts = (draw.age >= self.config.burn_in).float()
        weight = counts / counts.sum().clamp(min=1)
        mean_pos, mean_neg = energy_pos.mean(), weight @ energy_neg
        penalty = (energy_pos**2).mean() + weight @ energy_neg**2
        # data without any negative beside them would only sink
        loss = counts.any() * (mean_pos - mean_neg) + self.config.energy_penalty * penalty
        if temperature := self.config.label_temperature:
            # the right label is the first
            logits = -energy_data.view(len(shifts), n).T / temperature
            loss = loss + temperature * F.cross_entropy(logits, torch.zeros_like(batch.y))
        if self.config.kl_weight:
            loss = loss + self.config.kl_weight * self._kl(negative, labels, context)

        energies = {
            "energy_pos": mean_pos,
            "energy_neg": mean_neg,
            "energy_gap": mean_pos - mean_neg,
            "energy_pos_sd": energy_pos.std(correction=0),
            "energy_neg_sd": (weight @ (energy_neg - mean_neg) ** 2).sqrt(),
        }
        metrics = {
            "chain_score_norm": chains.score_norm,
            "chain_distance": chains.distance,
            "chain_acceptance": chains.acceptance_rate,
            "chain_age_mean": draw.age.float().mean(),
            "chain_age_max": draw.age.float().max(),
            **self.chains.metrics,
        }
        if self.bounds is not None:
            low, high = self.bounds
            metrics["chain_at_bounds"] = ((negative <= low) | (negative >= high)).float().mean()
        yield Turn("energy", loss, metrics, energies)

    def _start(self, batch: Batch, context: StepContext) -> Draw:
        if self.config.start == "replay":
            draw = context.replay.draw(len(batch.x), self.reinit_prob, context.stream("replay"))
        else:
            x, order = batch.x, torch.arange(len(batch.x), device=batch.x.device)
            x = (
                x
                if self.config.start == "data"
                else noise(tuple(x.shape), self.bounds, context.stream("noise"))
            )
            draw = Draw(x, batch.y, torch.zeros_like(order), order, order)
        if self.config.chain_labels == "data":
            # of the next sample, where the chain starts at the data
            draw = draw._replace(label=batch.y.roll(1))
        if prob := self.config.augment_prob:
            generator = context.stream("augment")
            draw = draw._replace(
                position=AUGMENTATIONS[self.config.augmentation](
                    draw.position, prob, self.bounds, generator
                )
            )
        return draw

    def _kl(self, x: Tensor, labels: Tensor | None, context: StepContext) -> Tensor:
        """Mean of ``E(x') - entropy_weight * log(distance to the nearest other chain)``.

        Gradients reach the weights only through the step from ``x (B, *shape)`` to ``x'``.
        """
        energy = cast(EnergyModel, self.players["energy"])
        step = self.chains.kernel.differentiable_step
        assert step is not None
        step_noise = torch.randn(x.shape, generator=context.stream("kl"), device=x.device)
        moved = step(given(energy, labels), x, step_noise)
        with frozen(energy):
            term = given(energy, labels)(moved).mean()
        if not self.config.entropy_weight:
            return term
        distances = torch.cdist(moved.flatten(1), x.flatten(1)) + torch.diag(
            torch.full_like(x.flatten(1)[:, 0], float("inf"))
        )
        nearest = distances.amin(dim=1).clamp(min=torch.finfo(x.dtype).tiny)  # of equal chains: 0
        return term - self.config.entropy_weight * nearest.log().mean()

    def _perturb(self, x: Tensor, context: StepContext) -> Tensor:
        if not self.config.data_noise:
            return x
        generator = context.stream("data_noise")
        x = x + self.config.data_noise * torch.randn(x.shape, generator=generator, device=x.device)
        return x if self.bounds is None else x.clamp(*self.bounds)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    energy = cast(EnergyModel, networks["energy"])
    chains = build_chains(params, energy, kernel, bounds=bounds)
    return ContrastiveDivergence(
        params.objective, energy, chains, params.replay.reinit_prob, bounds
    )
