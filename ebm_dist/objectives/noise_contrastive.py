"""Noise contrastive estimation (Gutmann & Hyvarinen 2010), and flow contrastive estimation.

The density ``p(x) = exp(-E(x) - c)`` learns to tell data from noise of a known density q, with
``nu`` noise samples per data sample. The log partition function c is a parameter:

    u(x) = -E(x) - c - log q(x) - log nu
    V    = mean_data log sigmoid(u(x)) + nu mean_noise log sigmoid(-u(x))

Energy and c ascend V. The noise is first fitted to the data by maximum likelihood. Then it stays
(NCE), or is a flow that descends V, through its samples and its densities (FCE, eq. 10 of Gao et
al. 2020): at the best E, V is twice the Jensen-Shannon divergence of q and the data less 2 log 2.
Either the energy or the noise learns in a step: the noise while the two are told apart well.
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
    Positive,
    PositiveInt,
    Probability,
    module_of,
    plugin,
    section,
)
from ebm_dist.energies import frozen
from ebm_dist.generators import FlowModel
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    generator: Any = plugin("generators")
    """The noise, of known density: ``gaussian``, ``mixture``, ``histogram`` or a flow."""
    data_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise added to the data: grey levels alone have no density."""
    noise_ratio: PositiveInt = 1
    """Noise samples per data sample (nu)."""
    pretraining: NonNegativeInt = 300
    """Steps in which the noise is fitted to the data by maximum likelihood, before the energy
    learns."""
    noise_learns: Literal["never", "value", "likelihood"] = "never"
    """How the noise learns after the pretraining. ``never``: NCE; ``value``: it descends V, FCE;
    ``likelihood``: maximum likelihood goes on, for comparison."""
    noise_rate: Positive = 1.0
    """Factor of the noise's learning rate after the pretraining: in high dimensions a step that
    suits the likelihood moves its densities by many nats."""
    energy_lead: NonNegativeInt = 200
    """Steps after the pretraining in which only the energy learns."""
    turn_accuracy: Probability = 0.6
    """The energy's turn ends when the moving average of the share of data and noise told apart is
    above this; the noise's turn ends when it is not."""
    accuracy_decay: Probability = 0.9
    """Decay of that moving average."""
    min_turn: PositiveInt = 1
    """Minimum number of steps of a turn."""
    max_turn: PositiveInt = 20
    """Maximum number of steps of a turn."""

    added_keys = ("noise_rate",)

    @property
    def compares_energies(self) -> bool:
        return self.noise_learns == "never"

    def first_step(self, player: str) -> int:
        return 0 if player == "generator" else self.pretraining

    @property
    def other_players(self) -> tuple[str, ...]:
        return "log_z", "generator"

    def networks(self, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        return {
            "log_z": LogPartition(),
            "generator": module_of(self.generator).build(self.generator, shape=shape),
        }

    def check(self, params: Params) -> None:
        if self.min_turn > self.max_turn:
            raise Mismatch(
                "objective.max_turn",
                f"must be at least objective.min_turn = {self.min_turn}, found {self.max_turn}",
            )
        generator = module_of(self.generator)
        if not hasattr(generator, "HAS_DENSITY"):
            raise Mismatch(
                "objective.generator",
                "noise needs a density: use gaussian, mixture, histogram, flow, glow or pixelcnn",
            )
        if not getattr(generator, "LEARNS", True) and (
            self.pretraining or self.noise_learns != "never"
        ):
            raise Mismatch(
                "objective.pretraining",
                "this noise is known from the data and does not learn; set pretraining: 0 and"
                " noise_learns: never",
            )


class LogPartition(nn.Module):
    """The parameter c, and the state of the turns, as buffers so that checkpoints save it."""

    start: Tensor
    """Where c starts: odds that are even at an energy of 0"""
    accuracy: Tensor
    """Moving average of the share of data and noise told apart"""
    is_noises: Tensor
    """Whether the turn is the noise's, else the energy's"""
    turn_steps: Tensor
    """Steps of this turn so far"""
    noise_updates: Tensor
    """Updates of the noise since the pretraining"""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.register_buffer("start", torch.tensor(0.0))
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("is_noises", torch.tensor(False))
        self.register_buffer("turn_steps", torch.tensor(0))
        self.register_buffer("noise_updates", torch.tensor(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}start", torch.tensor(0.0))  # weights of before 0.2
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]

    def forward(self) -> Tensor:
        return self.start + self.value


def value(u_data: Tensor, u_noise: Tensor, ratio: int) -> Tensor:
    """Return V of log odds ``(B,)`` of data and ``(ratio * B,)`` of noise.

    Computed in logarithms, so that odds of exp(-50) still count.
    """
    return -F.softplus(-u_data).mean() - ratio * F.softplus(u_noise).mean()


class NoiseContrastive(Objective):
    """Three players: the energy, c and the noise."""

    observes = True

    def __init__(self, config: Config, networks: Mapping[str, nn.Module]) -> None:
        self.players, self.config = networks, config
        self.energy, self.log_z = networks["energy"], cast(LogPartition, networks["log_z"])
        self.generator = cast(FlowModel, networks["generator"])

    def prepared(self, batch: Batch, context: StepContext) -> Batch:
        """Return the data with noise."""
        if not self.config.data_noise:
            return batch
        data_noise = torch.randn(
            batch.x.shape, generator=context.stream("data_noise"), device=batch.x.device
        )
        return batch._replace(x=batch.x + self.config.data_noise * data_noise)

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """Algorithm 1 of Gao et al. 2020."""
        batch = self.prepared(batch, context)
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
        """Set where c starts; update the moving average of the accuracy, and decide which turn the
        next step has."""
        config, state = self.config, self.log_z
        # data beyond the range of the noise have no likelihood, and leave c at its start
        if step == max(config.pretraining - 1, 0) and math.isfinite(means["nll_generator"]):
            state.start.fill_(means["nll_generator"])
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

    def _likelihood(self, x: Tensor, context: StepContext) -> Turn:
        """The noise learns by maximum likelihood."""
        nll = -context.players["generator"](x=x).mean()
        return Turn("generator", nll, {"nll_generator": nll})

    def _energy_turn(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        """The energy learns, and c from the same log odds."""
        with torch.no_grad():
            x, log_q_noise, log_q_data = self.generator(self._latents(batch, context), batch.x)
        energy = context.players["energy"](torch.cat([batch.x, x]))
        log_q = torch.cat([log_q_data, log_q_noise])
        loss, metrics, energies = self._contrast(energy, self.log_z().detach(), log_q, len(batch.x))
        yield Turn("energy", loss, metrics, energies)
        loss, _, _ = self._contrast(
            energy.detach(), context.players["log_z"](), log_q, len(batch.x)
        )
        yield Turn("log_z", loss, {})

    def _noise_turn(self, batch: Batch, context: StepContext) -> Turn:
        """The noise descends V, or ascends its likelihood."""
        x, log_q_noise, log_q_data = context.players["generator"](
            self._latents(batch, context), batch.x
        )
        with frozen(self.energy):
            energy = self.energy(torch.cat([batch.x, x]))
        minus_value, metrics, energies = self._contrast(
            energy, self.log_z().detach(), torch.cat([log_q_data, log_q_noise]), len(batch.x)
        )
        return Turn(
            "generator",
            -minus_value if self.config.noise_learns == "value" else -log_q_data.mean(),
            metrics,
            energies,
            rate=self.config.noise_rate,
        )

    def _contrast(
        self, energy: Tensor, log_z: Tensor, log_q: Tensor, num_data: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """-V, metrics of how well data and noise are told apart, and mean energies."""
        ratio = self.config.noise_ratio
        log_ratio = -energy - log_z - log_q
        log_ratio_data, log_ratio_noise = log_ratio.split([num_data, len(energy) - num_data])
        energy_pos, energy_neg = energy.split([num_data, len(energy) - num_data])
        energies = {
            "energy_pos": energy_pos.mean(),
            "energy_neg": energy_neg.mean(),
            "energy_gap": energy_pos.mean() - energy_neg.mean(),
        }
        metrics = {
            "accuracy": ((log_ratio_data > 0).float().mean() + (log_ratio_noise < 0).float().mean())
            / 2,
            "log_z": log_z,
            "noise_updates": self.log_z.noise_updates.float(),
            "nll_generator": -log_q[:num_data].mean(),
        }
        log_nu = math.log(ratio)
        loss = -value(log_ratio_data - log_nu, log_ratio_noise - log_nu, ratio)
        return loss, metrics, energies

    def _latents(self, batch: Batch, context: StepContext) -> Tensor:
        size = (self.config.noise_ratio * len(batch.x), self.generator.latent_size)
        return torch.randn(size, generator=context.stream("latents"), device=batch.x.device)


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return NoiseContrastive(params.objective, networks)
