"""Maximum composite likelihood (Lindsay 1988): beside p(x), learn the conditionals p(hidden pixels | the others).

Another objective learns p(x); to the loss of its energy this one adds, for a random half of each image as the hidden pixels,

    grad -log p(x_h | x_k) = grad E(x_h, x_k) - E_{x_h' ~ p(. | x_k)}[grad E(x_h', x_k)].

The negatives are completions: chains from noise that move the hidden half and keep the other, as those of the suite ``completion``.
What the chains of p(x) never visit, half an image that is right beside one that is not, is learnt by them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ebm_dist.config import NonNegative, Params, PositiveInt, module_of, plugin, section
from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.errors import ConfigError
from ebm_dist.objectives import Batch, Objective, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel, noise, run_chain


@section
class Config:
    joint: Any = plugin("objectives")
    """What learns p(x)."""
    weight: NonNegative = 1.0
    """Of the conditionals in the loss."""
    num_completions: PositiveInt = 64
    """Images of each logical shard that are completed in a step; at most all of its batch."""
    num_steps: PositiveInt = 40
    """Steps of their chains."""
    energy_penalty: NonNegative = 0.1
    """Weight of their ``E(x)^2``."""

    @property
    def conditional(self) -> bool:
        """Whether the energy takes labels, and completions are of the images' own."""
        return bool(getattr(self.joint, "conditional", False))

    @property
    def label_temperature(self) -> float | None:
        """Of p(y | x), if that is learnt."""
        temperature: float | None = getattr(self.joint, "label_temperature", None)
        return temperature

    def check(self, params: Params) -> None:
        if check := getattr(self.joint, "check", None):
            check(dataclasses.replace(params, objective=self.joint))


class CompositeLikelihood:
    """The players of the objective that learns p(x)."""

    def __init__(self, config: Config, inner: Objective, kernel: Kernel, bounds: Bounds) -> None:
        self.players, self.config, self.inner, self.kernel, self.bounds = (
            inner.players,
            config,
            inner,
            kernel,
            bounds,
        )
        if observe := getattr(inner, "observe", None):
            self.observe: Callable[[int, Mapping[str, float]], None] = observe

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        if batch.x.ndim != 4:
            shape = tuple(batch.x.shape[1:])
            raise ConfigError(
                f"objective: samples of shape {shape} are no images, of which a half could be hidden"
            )
        for turn in self.inner.turns(batch, context):
            yield self._with_conditionals(turn, batch, context) if turn.player == "energy" else turn

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        return self.inner.export(players)

    def _with_conditionals(self, turn: Turn, batch: Batch, context: StepContext) -> Turn:
        x, n = (
            batch.x[: self.config.num_completions],
            min(self.config.num_completions, len(batch.x)),
        )
        y = batch.y[:n] if self.config.conditional else None
        completed = self.complete(x, y, context)
        energy = context.players["energy"](
            torch.cat([x, completed]), None if y is None else torch.cat([y, y])
        )
        energy_pos, energy_neg = energy.chunk(2)
        gap = energy_pos.mean() - energy_neg.mean()
        loss = gap + self.config.energy_penalty * (energy**2).mean() * 2
        metrics = {"completion_gap": gap, "completion_error": ((completed - x) ** 2).mean()}
        return turn._replace(
            loss=turn.loss + self.config.weight * loss, metrics=turn.metrics | metrics
        )

    def complete(self, x: Tensor, y: Tensor | None, context: StepContext) -> Tensor:
        """``x (n, C, H, W)`` with one of its four halves, which is random, drawn anew given the other and the labels ``(n,)``."""
        generator, energy = context.stream("completion"), cast(EnergyModel, self.players["energy"])
        hidden, target = halves(x, generator), given(energy, y)
        start = noise(tuple(x.shape), self.bounds, generator)
        with frozen(energy):
            end, _ = run_chain(
                self.kernel,
                lambda z: target(torch.where(hidden, z, x)),
                start,
                self.config.num_steps,
                generator,
            )
        return torch.where(hidden, end, x)


def halves(x: Tensor, generator: torch.Generator) -> Tensor:
    """For each image ``(n, C, H, W)`` one of its upper, lower, left and right halves, at random: ``(n, 1, H, W)`` bool."""
    (height, width), device = x.shape[2:], x.device
    above = (torch.arange(height, device=device) < height // 2)[:, None].expand(height, width)
    left = (torch.arange(width, device=device) < width // 2).expand(height, width)
    return torch.stack([above, ~above, left, ~left])[
        torch.randint(4, (len(x), 1), generator=generator, device=device)
    ]


def networks(config: Config, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
    make = getattr(module_of(config.joint), "networks", None)
    made: dict[str, nn.Module] = make(config.joint, shape=shape) if make else {}
    return made


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    config: Config = params.objective
    inner = dataclasses.replace(params, objective=config.joint)
    objective = module_of(inner.objective).build(
        inner, networks=networks, kernel=kernel, bounds=bounds
    )
    return CompositeLikelihood(config, objective, kernel, bounds)
