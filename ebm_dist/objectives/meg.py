"""Maximum entropy generators for energy-based models (Kumar et al. 2019, Algorithm 1).

Three players: the energy E; a generator G that draws the negatives in place of a Markov chain; and
a statistics network T that estimates the mutual information of G(z) and z, which stands for the
entropy of the generator's samples (section 3.1):

    E:    E(x+) - E(G(z)) + gradient_penalty * |dE/dx (x+)|^2                          (eq. 3)
    G:    E(G(z)) - mi_weight * I(G(z); z)                                             (eq. 6)
    T:    -I(G(z); z),   I = -mean softplus(-T(G(z), z)) - mean softplus(T(G(z), z'))

where z' is the latent of another sample in the batch (Hjelm et al. 2019, eq. 4). At the optimal T,
I is twice the Jensen-Shannon divergence between p(x, z) and p(x) p(z), minus 2 log 2. It is
-2 log 2 if G(z) is independent of z, and at most 0. With ``information: kullback_leibler`` it is
the bound of Donsker & Varadhan (1983; Belghazi et al. 2018, eq. 10) of the mutual information
itself, which has no upper end, and which Kumar et al. found to work worse:

    I = mean T(G(z), z) - log mean exp T(G(z), z')

The authors' code takes the mean over both halves, so its weight of 1 is ``mi_weight`` 0.5 here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Mismatch, NonNegative, Params, PositiveInt, module_of, plugin, section
from ebm_dist.energies import frozen
from ebm_dist.errors import ConfigError
from ebm_dist.generators import GeneratorModel
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    generator: Any = plugin("generators")
    """The network that draws the negatives."""
    num_energy_steps: PositiveInt = 5
    """Updates of the energy for each update of the generator and the statistics network."""
    loss: Literal["linear", "logistic", "relativistic"] = "linear"
    """``linear``: ``E(x+) - E(x-)`` as published; ``logistic``: ``softplus(E(x+)) +
    softplus(-E(x-))``, which saturates for samples that the energy already separates;
    ``relativistic``: ``softplus(E(x+) - E(x-))`` over pairs. The generator's loss then has
    ``softplus(E(x-) - E(x+))`` in place of the energy, so that the generator does not forget a mode
    (Jolicoeur-Martineau 2019; Huang et al. 2024)."""
    gradient_penalty: NonNegative = 0.1
    """Weight of the squared norm of the energy's gradient at the data."""
    negative_penalty: NonNegative = 0.0
    """Weight of the squared norm of the energy's gradient at the generator's samples (Huang et al.
    2024). Kumar et al. do not have this term."""
    lipschitz_weight: NonNegative = 0.0
    """Weight of ``(|dE/dx| - 1)^2`` at a random point between each row of the data and a sample
    (Gulrajani et al. 2017). With ``loss: linear``, ``mi_weight: 0`` and no other penalty this is
    their WGAN-GP."""
    mi_weight: NonNegative = 0.5
    """Weight of the mutual information in the generator's loss."""
    information: Literal["jensen_shannon", "kullback_leibler"] = "jensen_shannon"
    """The estimate of the information, by the divergence between p(x, z) and p(x) p(z)."""
    final_mi_weight: NonNegative | None = None
    """Weight of the mutual information at the end of training; ``mi_weight`` if absent. The weight
    changes linearly during training."""
    statistics_channels: tuple[PositiveInt, ...] = ()
    """Channels of the 4x4 convolutions with stride 2 in the statistics network of images; if
    empty, there are no convolutions and the first hidden layer takes all pixels."""
    statistics_hidden: tuple[PositiveInt, ...] = (128, 128, 128)
    """Width of each hidden layer of the statistics network; the first also gets the latent."""

    added_keys = ("information", "lipschitz_weight")

    @property
    def follows_length(self) -> bool:
        return self.final_mi_weight is not None

    @property
    def other_players(self) -> tuple[str, ...]:
        return "generator", "statistics"

    def networks(self, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        if self.statistics_channels and len(shape) != 3:
            raise ConfigError(
                f"objective.statistics_channels: need images, found samples of shape {shape}",
                "set statistics_channels: []",
            )
        return {
            "generator": module_of(self.generator).build(self.generator, shape=shape),
            "statistics": Statistics(self, shape),
        }

    def check(self, params: Params) -> None:
        if params.train.log_every % self.num_energy_steps:
            raise Mismatch(
                "train.log_every",
                f"must be a multiple of objective.num_energy_steps = {self.num_energy_steps}, found"
                f" {params.train.log_every}: rows of metrics would lack the generator; set"
                f" train.log_every to a multiple of {self.num_energy_steps}",
            )


class Statistics(nn.Module):
    """``T: x (B, *shape), z (B, latent_size) -> (B,)``"""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        trunk: list[nn.Module] = []
        for size_in, size_out in pairwise((shape[0], *config.statistics_channels)):
            trunk += [nn.Conv2d(size_in, size_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*trunk, nn.Flatten())
        widths = (
            self.trunk(torch.zeros(1, *shape)).shape[1] + config.generator.latent_size,
            *config.statistics_hidden,
        )
        hidden = [
            layer
            for size_in, size_out in pairwise(widths)
            for layer in (nn.Linear(size_in, size_out), nn.LeakyReLU(0.2))
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk(x), z], dim=1))[:, 0]  # type: ignore[no-any-return]


def mutual_information(
    statistics: Callable[..., Any],
    x: Tensor,
    z: Tensor,
    by: Literal["jensen_shannon", "kullback_leibler"] = "jensen_shannon",
) -> Tensor:
    """Estimate ``I(x; z)``, one number, from samples ``(B, *shape)`` and their latents ``(B, k)``.

    Each sample is paired with its own latent, for p(x, z), and with the next one, for p(x) p(z).
    """
    joint, product = statistics(torch.cat([x, x]), torch.cat([z, z.roll(1, dims=0)])).chunk(2)
    if by == "kullback_leibler":
        return joint.mean() - (product.logsumexp(dim=0) - math.log(len(x)))  # type: ignore[no-any-return]
    return -F.softplus(-joint).mean() - F.softplus(product).mean()


class MaximumEntropyGenerator(Objective):
    """Three players: energy, generator and statistics network."""

    def __init__(self, config: Config, networks: Mapping[str, nn.Module], num_steps: int) -> None:
        self.players, self.config, self.num_steps = networks, config, num_steps
        self.generator = cast(GeneratorModel, networks["generator"])

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Yield the turns of Algorithm 1 of Kumar et al. 2019; each step updates the energy."""
        with torch.no_grad():
            negative = self.generator(self._latents(batch, context, "energy"))
        yield self._energy_turn(batch.x, negative, context)
        if (context.step + 1) % self.config.num_energy_steps:
            return
        z = self._latents(batch, context, "generator")
        x = context.players["generator"](z)
        with frozen(self.players["energy"]), frozen(self.players["statistics"]):
            loss = energy = self.players["energy"](x)
            if self.config.loss == "relativistic":
                loss = F.softplus(energy - self.players["energy"](batch.x))
            information = self._information(self.players["statistics"], x, z)
        metrics = {"mutual_information": information}
        yield Turn("generator", loss.mean() - self._mi_weight(context.step) * information, metrics)
        of_fixed = self._information(context.players["statistics"], x.detach(), z)
        yield Turn("statistics", -of_fixed, {})

    def _information(self, statistics: Callable[..., Any], x: Tensor, z: Tensor) -> Tensor:
        return mutual_information(statistics, x, z, self.config.information)

    def _energy_turn(self, positive: Tensor, negative: Tensor, context: StepContext) -> Turn:
        parts = [positive, negative]
        if self.config.lipschitz_weight:
            generator = context.stream("lipschitz")
            size = (len(positive), *(1,) * (positive.ndim - 1))
            share = torch.rand(size, generator=generator, device=positive.device)
            parts.append(share * positive + (1 - share) * negative)
        x = torch.cat(parts).requires_grad_()
        energy = context.players["energy"](x)
        (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        squared = (gradient**2).flatten(1).sum(dim=1).split(len(positive))
        squared_norm_pos, squared_norm_neg = squared[0].mean(), squared[1].mean()
        energy_pos, energy_neg = energy.split(len(positive))[:2]
        if self.config.loss == "linear":
            loss = energy_pos.mean() - energy_neg.mean()
        elif self.config.loss == "logistic":
            loss = F.softplus(energy_pos).mean() + F.softplus(-energy_neg).mean()
        else:
            loss = F.softplus(energy_pos - energy_neg).mean()
        loss = loss + self.config.gradient_penalty * squared_norm_pos
        if self.config.negative_penalty:
            loss = loss + self.config.negative_penalty * squared_norm_neg
        for between in squared[2:]:
            norm = (between + 1e-12).sqrt()  # has a gradient where the energy is flat
            loss = loss + self.config.lipschitz_weight * ((norm - 1) ** 2).mean()
        energies = {
            "energy_pos": energy_pos.mean(),
            "energy_neg": energy_neg.mean(),
            "energy_gap": energy_pos.mean() - energy_neg.mean(),
            "energy_pos_sd": energy_pos.std(correction=0),
            "energy_neg_sd": energy_neg.std(correction=0),
        }
        return Turn("energy", loss, {"score_norm_pos": squared_norm_pos.sqrt()}, energies)

    def _latents(self, batch: Batch, context: StepContext, purpose: str) -> Tensor:
        stream = context.stream(f"latents/{purpose}")
        return torch.randn(
            len(batch.x), self.generator.latent_size, generator=stream, device=batch.x.device
        )

    def _mi_weight(self, step: int) -> float:
        first, last = self.config.mi_weight, self.config.final_mi_weight
        return first if last is None else first + (last - first) * step / self.num_steps


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return MaximumEntropyGenerator(params.objective, networks, params.train.num_steps)
