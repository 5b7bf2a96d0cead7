"""Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie 1996, section 1.4).

    x' = x + step_size * s(x) + sqrt(2 step_size T) * N(0, I)          s = -dE/dx
    log q(x' | x) = -||x' - x - step_size * s(x)||^2 / (4 step_size T)      the norm is squared
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(x | x') / q(x' | x))

It is the ``langevin`` sampler with ``noise_scale = sqrt(2 step_size T)``, made exact for
``exp(-E / T)``. The state holds energy and score, so a step computes one gradient.
"""

import math

import torch
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import (
    Bounds,
    Info,
    Kernel,
    Randomness,
    StepSize,
    accept_mask,
    log_uniform,
    normal,
)
from ebm_dist.samplers._gradient_state import State, init, select

ACCEPTANCE = 0.574
"""Acceptance rate to adapt to, optimal in many dimensions (Roberts & Rosenthal 1998)."""
LARGEST = math.inf
"""Proposals beyond the bounds are refused, so none lets it grow without end."""


@section
class Config:
    num_steps: PositiveInt = 60
    """Steps of the chains per training step."""
    step_size: Positive = 0.1
    """Factor of the score."""
    temperature: Positive = 1.0
    """T of the sampled density ``exp(-E / T)``."""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel of ``exp(-E / T)`` restricted to ``bounds``: proposals outside are rejected.

    If most positions are near a bound, nearly all proposals are rejected. Use ``hmc`` with one
    leapfrog step of ``sqrt(2 step_size)`` then: it is this sampler with mirrored proposals. Info
    has energy and score after the step.
    """
    temperature = config.temperature

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        noise, log_u = out or (None, None)
        size = (n, len(position))
        return normal(n, position, generator, noise), log_uniform(size, generator, log_u)

    def move(
        target: EnergyFn, state: State, randomness: Randomness, a: StepSize
    ) -> tuple[State, Info]:
        def log_q(end: Tensor, start: Tensor, start_score: Tensor) -> Tensor:
            distance: Tensor = (end - start - a * start_score).flatten(1).norm(dim=1)
            return -(distance**2) / (4 * a * temperature)

        noise, log_u = randomness
        x = state.position
        new = init(target, x + a * state.score + (2 * a * temperature) ** 0.5 * noise)
        is_finite = new.is_finite
        inside = torch.ones_like(is_finite)
        if bounds is not None:
            inside = ((new.position >= bounds[0]) & (new.position <= bounds[1])).flatten(1).all(1)
        log_ratio = (state.energy - new.energy) / temperature
        log_ratio = (
            log_ratio + log_q(x, new.position, new.score) - log_q(new.position, x, state.score)
        )
        is_accepted = accept_mask(log_ratio, is_finite & inside, log_u)
        state = select(is_accepted, new, state)
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), is_accepted, is_finite)

    return Kernel.of_move(init, draw, move, config.step_size)
