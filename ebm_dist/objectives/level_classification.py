"""Noise levels told apart: normalised energies ``E(x, k)`` of the data under growing noise.

Data under noise of level k have the density p_k, k = 0..L-1, and the last class is noise of a known
density q. A sample of class k is classified by

    p(k | x) = softmax_k( -E(x, 0) - c_0, ..., -E(x, L-1) - c_L-1, log q(x) ) + log shares

and energies and the log partition functions c_k learn by the cross-entropy. At its minimum
exp(-E(x, k) - c_k) = p_k(x): the known class fixes all constants, and neighbouring levels overlap,
so c_0 is learnt although q is far from the data. This is contrastive estimation with many classes
(Gutmann & Hyvarinen 2010, with the ladder of Rhodes et al. 2020), and the classification of levels
of Yadin et al. 2024. The levels are a ladder to sample over, from much noise to none.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    NonNegativeInt,
    Params,
    Share,
    module_of,
    plugin,
    section,
)
from ebm_dist.generators import FlowModel
from ebm_dist.objectives import Batch, Objective, ObjectiveConfig, StepContext, Turn, check_levels
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    generator: Any = plugin("generators")
    """The known noise: ``gaussian`` (fitted to the data first), ``histogram`` or ``mixture``."""
    sigmas: tuple[NonNegative, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Standard deviations of the levels, growing; the first is the one that is evaluated."""
    first_share: Share = 0.4
    """Share of the first level in the batch; the other levels and the noise have equal shares."""
    pretraining: NonNegativeInt = 0
    """Steps in which the noise is fitted to the data by maximum likelihood."""

    @property
    def levels(self) -> tuple[float, ...]:
        return self.sigmas

    @property
    def compares_energies(self) -> bool:
        return True

    def first_step(self, player: str) -> int:
        return 0 if player == "generator" else self.pretraining

    @property
    def other_players(self) -> tuple[str, ...]:
        return "log_z", "generator"

    def networks(self, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        generator = module_of(self.generator).build(self.generator, shape=shape)
        return {"log_z": LogPartitions(len(self.sigmas)), "generator": generator}

    def check(self, params: Params) -> None:
        check_levels(self.sigmas)
        size = params.train.batch_size // params.train.num_shards
        if size <= len(self.sigmas):
            raise Mismatch(
                "train.batch_size",
                f"{size} samples of a logical shard are not enough for {len(self.sigmas)} levels"
                " and the noise",
                f"use at least {(len(self.sigmas) + 1) * params.train.num_shards}, or fewer levels",
            )
        if self.first_share == 1:
            raise Mismatch("objective.first_share", "leaves no sample for the other levels")
        generator = module_of(self.generator)
        if not hasattr(generator, "HAS_DENSITY"):
            raise Mismatch(
                "objective.generator", "noise needs a density: use gaussian, mixture or histogram"
            )
        if getattr(generator, "LEARNS", True) != bool(self.pretraining):
            raise Mismatch(
                "objective.pretraining",
                "must be above 0 for noise that learns, and 0 for histogram and mixture",
            )


class LogPartitions(nn.Module):
    """The parameters ``c_k``."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(num_levels))

    def forward(self) -> Tensor:
        return self.value


class LevelClassification(Objective):
    """Three players: the energy, the ``c_k`` and the noise."""

    def __init__(self, config: Config, networks: Mapping[str, nn.Module]) -> None:
        self.config, self.players = config, networks
        self.generator, self.log_z = cast(FlowModel, networks["generator"]), networks["log_z"]

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        if context.step < self.config.pretraining:
            nll = -context.players["generator"](x=batch.x).mean()
            yield Turn("generator", nll, {"nll_generator": nll})
            return
        sigmas = torch.tensor(self.config.sigmas, device=batch.x.device)
        counts = class_counts(len(batch.x), len(sigmas) + 1, self.config.first_share)
        label = torch.arange(len(counts), device=batch.x.device).repeat_interleave(
            torch.tensor(counts, device=batch.x.device)
        )
        z = torch.randn(batch.x.shape, generator=context.stream("noise"), device=batch.x.device)
        sigma = torch.cat([sigmas, sigmas[:1]])[label].view(-1, *[1] * (batch.x.ndim - 1))
        latents = torch.randn(
            counts[-1],
            self.generator.latent_size,
            generator=context.stream("latents"),
            device=batch.x.device,
        )
        with torch.no_grad():
            x = torch.cat([(batch.x + sigma * z)[label < len(sigmas)], self.generator(latents)])
            log_q = self.generator(x=x)
        log_shares = torch.tensor(counts, device=x.device).log()

        levels = torch.arange(len(sigmas), device=x.device).expand(len(x), -1)
        energy = context.players["energy"](x, levels)  # (B, L)

        def loss(energy: Tensor, c: Tensor) -> Tensor:
            logits = torch.cat([-energy - c, log_q[:, None]], dim=1) + log_shares
            return F.cross_entropy(logits, label)

        is_data = label == 0
        energies = {
            "energy_pos": energy[is_data, 0].mean(),
            "energy_neg": energy[-counts[-1] :, 0].mean(),
        }
        metrics = {"log_z": self.log_z()[0].detach()}
        yield Turn("energy", loss(energy, self.log_z().detach()), metrics, energies)
        yield Turn("log_z", loss(energy.detach(), context.players["log_z"]()), {})


def class_counts(batch_size: int, num_classes: int, first_share: float) -> list[int]:
    """Return the numbers of samples of each class, at least one each."""
    first = max(1, min(round(first_share * batch_size), batch_size - num_classes + 1))
    others, more = divmod(batch_size - first, num_classes - 1)
    return [first, *(others + (k < more) for k in range(num_classes - 1))]


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return LevelClassification(params.objective, networks)
