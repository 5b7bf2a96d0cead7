"""Noise contrastive estimation (Gutmann & Hyvarinen 2010), and flow contrastive estimation, whose noise learns (Gao et al. 2020).

The density ``p(x) = exp(-E(x) - c)`` is learnt by telling data from noise of a known density q, ``nu`` of it for each sample. Its
logarithm of the partition function, c, is one of the parameters:

    u(x) = -E(x) - c - log q(x) - log nu
    V    = mean_data log sigmoid(u(x)) + nu mean_noise log sigmoid(-u(x))

The energy and c ascend V. The noise is first fitted to the data by maximum likelihood; then it stays (NCE) or, a flow, descends V
(FCE, eq. 10), through its samples as well as its densities: at the best E, V is twice the Jensen-Shannon divergence of q and data
less 2 log 2. Either the energy or the noise learns in a step: the noise while the two are told apart well.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    NonNegativeInt,
    Params,
    PositiveInt,
    Probability,
    module_of,
    plugin,
    section,
)
from ebm_dist.energies import EnergyModel, frozen
from ebm_dist.generators import FlowModel
from ebm_dist.objectives import Batch, Objective, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel

PLAYERS = ("log_z", "generator")


@section
class Config:
    generator: Any = plugin("generators")
    """What draws the noise: one whose density is known, ``gaussian`` or a flow."""
    data_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise added to the data: grey levels have no density otherwise."""
    noise_ratio: PositiveInt = 1
    """nu: samples of noise for each of the data."""
    pretraining: NonNegativeInt = 300
    """Steps in which the noise is fitted to the data by maximum likelihood, before the energy learns."""
    noise_learns: Literal["never", "value", "likelihood"] = "never"
    """And after that: ``never``: NCE; by ``value``, V: FCE; by ``likelihood`` still, to compare with."""
    energy_lead: NonNegativeInt = 200
    """Steps after the pretraining in which the energy learns alone."""
    turn_accuracy: Probability = 0.6
    """The energy's turn ends when the share of data and noise that are told apart, on average over the last steps, is above this;
    the noise's when it is not."""
    accuracy_decay: Probability = 0.9
    """Of that moving average."""
    min_turn: PositiveInt = 1
    """Steps that a turn has at least."""
    max_turn: PositiveInt = 20
    """And at most, so that neither starves."""

    def check(self, params: Params) -> None:
        if self.min_turn > self.max_turn:
            raise Mismatch(
                "objective.max_turn",
                f"{self.max_turn} is less than objective.min_turn = {self.min_turn}",
            )
        if not hasattr(module_of(self.generator), "HAS_DENSITY"):
            raise Mismatch(
                "objective.generator", "noise needs a density: use gaussian, flow or glow"
            )


class LogPartition(nn.Module):
    """The parameter c; and whose turn it is, as buffers: so that checkpoints have it."""

    accuracy: Tensor
    """Moving average of the share that is told apart"""
    is_noises: Tensor
    turn_steps: Tensor
    """of this turn so far"""
    noise_updates: Tensor
    """after the pretraining"""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("is_noises", torch.tensor(False))
        self.register_buffer("turn_steps", torch.tensor(0))
        self.register_buffer("noise_updates", torch.tensor(0))

    def forward(self) -> Tensor:
        return self.value


def value(u_data: Tensor, u_noise: Tensor, ratio: int) -> Tensor:
    """V of log odds ``(B,)`` and ``(ratio * B,)``; in logarithms, so that odds of exp(-50) still count."""
    return -F.softplus(-u_data).mean() - ratio * F.softplus(u_noise).mean()


class NoiseContrastive:
    """Three players: the energy, c, and the noise."""

    def __init__(self, config: Config, networks: Mapping[str, nn.Module]) -> None:
        self.players, self.config = networks, config
        self.energy, self.log_z = networks["energy"], cast(LogPartition, networks["log_z"])
        self.generator = cast(FlowModel, networks["generator"])

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Algorithm 1 of Gao et al. 2020."""
        if self.config.data_noise:
            added = torch.randn(
                batch.x.shape, generator=context.stream("data_noise"), device=batch.x.device
            )
            batch = batch._replace(x=batch.x + self.config.data_noise * added)
        if context.step < self.config.pretraining:
            yield self._likelihood(batch.x, context)
        elif (
            not self.log_z.is_noises
            or context.step < self.config.pretraining + self.config.energy_lead
        ):
            yield from self._energy_turn(batch, context)
        else:
            yield self._noise_turn(batch, context)

    def observe(self, step: int, means: Mapping[str, float]) -> None:
        """After a step, by means over all shards: whose turn is next."""
        config, state = self.config, self.log_z
        if config.noise_learns == "never" or step < config.pretraining + config.energy_lead:
            return
        state.accuracy.lerp_(
            torch.tensor(means["accuracy"]).to(state.accuracy), 1 - config.accuracy_decay
        )
        state.noise_updates += state.is_noises
        state.turn_steps += 1
        are_told_apart = bool(state.accuracy > config.turn_accuracy)
        is_over = are_told_apart != bool(state.is_noises) and state.turn_steps >= config.min_turn
        if is_over or state.turn_steps >= config.max_turn:
            state.is_noises.logical_not_()
            state.turn_steps.zero_()

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        return cast(EnergyModel, players["energy"])

    def _likelihood(self, x: Tensor, context: StepContext) -> Turn:
        """The noise by maximum likelihood."""
        nll = -context.players["generator"](x=x).mean()
        return Turn("generator", nll, {"nll_generator": nll})

    def _energy_turn(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """The energy, and c by the same log odds."""
        with torch.no_grad():
            x, log_q_noise, log_q_data = self.generator(self._latents(batch, context), batch.x)
        energy = context.players["energy"](torch.cat([batch.x, x]))
        log_q = torch.cat([log_q_data, log_q_noise])
        loss, metrics = self._contrast(energy, self.log_z().detach(), log_q, len(batch.x))
        yield Turn("energy", loss, metrics)
        loss, _ = self._contrast(energy.detach(), context.players["log_z"](), log_q, len(batch.x))
        yield Turn("log_z", loss, {})

    def _noise_turn(self, batch: Batch, context: StepContext) -> Turn:
        """The noise descends V, or ascends its likelihood."""
        x, log_q_noise, log_q_data = context.players["generator"](
            self._latents(batch, context), batch.x
        )
        with frozen(self.energy):
            energy = self.energy(torch.cat([batch.x, x]))
        minus_value, metrics = self._contrast(
            energy, self.log_z().detach(), torch.cat([log_q_data, log_q_noise]), len(batch.x)
        )
        return Turn(
            "generator",
            -minus_value if self.config.noise_learns == "value" else -log_q_data.mean(),
            metrics,
        )

    def _contrast(
        self, energy: Tensor, log_z: Tensor, log_q: Tensor, num_data: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-V, and how well data and noise are told apart."""
        ratio = self.config.noise_ratio
        log_ratio = -energy - log_z - log_q
        of_data, of_noise = log_ratio.split([num_data, len(energy) - num_data])
        energy_pos, energy_neg = energy.split([num_data, len(energy) - num_data])
        metrics = {
            "energy_pos": energy_pos.mean(),
            "energy_neg": energy_neg.mean(),
            "energy_gap": energy_pos.mean() - energy_neg.mean(),
            "accuracy": ((of_data > 0).float().mean() + (of_noise < 0).float().mean()) / 2,
            "log_z": log_z,
            "noise_updates": self.log_z.noise_updates.float(),
            "nll_generator": -log_q[:num_data].mean(),
        }
        return -value(of_data - math.log(ratio), of_noise - math.log(ratio), ratio), metrics

    def _latents(self, batch: Batch, context: StepContext) -> Tensor:
        size = (self.config.noise_ratio * len(batch.x), self.generator.latent_size)
        return torch.randn(size, generator=context.stream("latents"), device=batch.x.device)


def networks(config: Config, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return {
        "log_z": LogPartition(),
        "generator": module_of(config.generator).build(config.generator, shape=shape),
    }


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return NoiseContrastive(params.objective, networks)
