"""Maximum composite likelihood (Lindsay 1988): p(x), and p(hidden pixels | visible pixels).

Another objective learns p(x). For a random half of each image as the hidden pixels h, and the other
half as the visible pixels v, this one adds to the loss of its energy

    grad -log p(x_h | x_v) = grad E(x_h, x_v) - E_{x_h' ~ p(. | x_v)}[grad E(x_h', x_v)].

The negatives are completions: chains from noise that move the hidden half and keep the visible one,
as in the suite ``completion``. They visit what chains of p(x) never do: images of which one half is
right and the other wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ebm_dist.config import Mismatch, NonNegative, Params, PositiveInt, module_of, plugin, section
from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.errors import ConfigError
from ebm_dist.objectives import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepContext,
    Turn,
    Wrapped,
    WrappedConfig,
)
from ebm_dist.samplers import Bounds, Kernel, noise, run_chain


@section
class Config(WrappedConfig):
    joint: Any = plugin("objectives")
    """The objective that learns p(x)."""
    weight: NonNegative = 1.0
    """Weight of the conditionals in the loss of the energy."""
    num_completions: PositiveInt = 64
    """Images of each logical shard to complete in a step; at most its whole batch."""
    num_steps: PositiveInt = 40
    """Steps of the chains that complete images."""
    energy_penalty: NonNegative = 0.1
    """Weight of ``E(x)^2`` of the images and their completions."""

    @property
    def inner(self) -> ObjectiveConfig:
        return cast(ObjectiveConfig, self.joint)

    def check(self, params: Params) -> None:
        WrappedConfig.check(self, params)
        if module_of(params.sampler).build(params.sampler, bounds=None).move is None:
            raise Mismatch(
                "sampler.name", "cannot hold half of an image fixed; use langevin or another"
            )


class CompositeLikelihood(Wrapped):
    """The players are those of the objective that learns p(x)."""

    def __init__(self, config: Config, inner: Objective, kernel: Kernel, bounds: Bounds) -> None:
        super().__init__(inner)
        self.config, self.kernel, self.bounds = config, kernel, bounds

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        if batch.x.ndim != 4:
            raise ConfigError(
                "objective: composite_likelihood hides halves of images, found samples of shape"
                f" {tuple(batch.x.shape[1:])}; use the objective under joint alone"
            )
        yield from super().turns(batch, context)

    def with_more(self, turn: Turn, batch: Batch, context: StepContext) -> Turn:
        """Add the loss of the conditionals."""
        n = min(self.config.num_completions, len(batch.x))
        x = self.prepared(batch, context).x[:n]
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
        """Return images ``x (n, C, H, W)`` with a random half of each replaced.

        The half is drawn from p(hidden | visible), or p(hidden | visible, y) with labels ``(n,)``.
        """
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
                checks_start=False,  # all ranks stop together at the loss
            )
        return torch.where(hidden, end, x)


def halves(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the upper, lower, left or right half of each image ``(n, C, H, W)``.

    Return masks ``(n, 1, H, W)`` bool.
    """
    (height, width), device = x.shape[2:], x.device
    above = (torch.arange(height, device=device) < height // 2)[:, None].expand(height, width)
    left = (torch.arange(width, device=device) < width // 2).expand(height, width)
    return torch.stack([above, ~above, left, ~left])[
        torch.randint(4, (len(x), 1), generator=generator, device=device)
    ]


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    config: Config = params.objective
    inner = module_of(config.inner).build(
        config.inner_params(params), networks=networks, kernel=kernel, bounds=bounds
    )
    return CompositeLikelihood(config, inner, kernel, bounds)
