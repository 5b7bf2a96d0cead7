"""Unadjusted Langevin dynamics (Welling & Teh 2011, eq. 4; Du & Mordatch 2019, eq. 2).

    x <- clamp(x + step_size * clip(-dE/dx) + noise_scale * N(0, I))

The noise corresponds to a temperature ``T = noise_scale^2 / (2 step_size)``: without clip and
clamp, and for small steps, it samples ``exp(-E / T)``. Published settings have T of about 1e-6, so
their energy differences are not in nats.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import NonNegative, Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import Bounds, Info, Kernel, Randomness, StepSize, normal


@section
class Config:
    num_steps: PositiveInt = 60
    """Steps of the chains per training step (K of Algorithm 1)."""
    step_size: Positive = 10.0
    """Factor of the score."""
    noise_scale: NonNegative = 0.005
    """Standard deviation of the noise that is added in each step."""
    score_clip: Positive | None = None
    """Clamp each component of the score to plus or minus this value; no clamp if absent."""

    @property
    def temperature(self) -> float:
        """``noise_scale^2 / (2 step_size)``: T of the sampled density ``exp(-E / T)``."""
        return self.noise_scale**2 / (2 * self.step_size)


class State(NamedTuple):
    position: Tensor


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel. Positions are clamped to ``bounds`` after each step; None for no bounds."""

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position)

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        return (normal(n, position, generator, *(out or ())),)

    def move(
        target: EnergyFn, state: State, randomness: Randomness, step_size: StepSize
    ) -> tuple[State, Info]:
        (noise,) = randomness
        energy, drift = score(target, state.position)
        score_norm = drift.flatten(1).norm(dim=1)
        if config.score_clip is not None:
            drift.clamp_(-config.score_clip, config.score_clip)
        x = torch.add(state.position, drift, alpha=float(step_size))
        x.add_(noise, alpha=config.noise_scale)
        if bounds is not None:
            x.clamp_(*bounds)
        return State(x), Info(energy, score_norm, torch.ones_like(energy, dtype=torch.bool))

    def differentiable_step(target: EnergyFn, x: Tensor, noise: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(target(x).sum(), x, create_graph=True)
        if config.score_clip is not None:
            slope = slope.clamp(-config.score_clip, config.score_clip)
        moved = x.detach() - config.step_size * slope + config.noise_scale * noise
        return moved if bounds is None else moved.clamp(*bounds)

    return Kernel.of_move(init, draw, move, config.step_size, 1, differentiable_step)
