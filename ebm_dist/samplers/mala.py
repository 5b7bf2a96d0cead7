"""Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie 1996, section 1.4).

    x' = x + step_size * s(x) + sqrt(2 step_size T) * N(0, I)          s = -dE/dx
    log q(x' | x) = -||x' - x - step_size * s(x)||^2 / (4 step_size T)      the norm is squared
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(x | x') / q(x' | x))

It is the ``langevin`` sampler with ``noise_scale = sqrt(2 step_size T)``, made exact for ``exp(-E / T)``. Energy and score are kept
with the position, so a step takes one gradient.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Count, Positive, section
from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import Bounds, Info, Kernel, accept, choose

ACCEPTANCE = 0.574
"""The best in many dimensions (Roberts & Rosenthal 1998)."""


@section
class Config:
    num_steps: Count = 60
    """Steps of the chains for each training step."""
    step_size: Positive = 0.1
    """Factor of the score."""
    temperature: Positive = 1.0
    """T of the ``exp(-E / T)`` that is sampled."""


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    """``(B,)`` at the position"""
    score: Tensor
    """``(B, *shape)`` there"""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """``bounds``: the target is restricted to this interval, so proposals outside are rejected. Where most positions are near a
    bound nearly all would be; ``hmc`` with one leapfrog step of ``sqrt(2 step_size)`` is this sampler mirrored at the bounds.
    Info's energy and score are those after the step.
    """
    a, temperature = config.step_size, config.temperature

    def log_q(to: Tensor, start: Tensor, drift: Tensor) -> Tensor:
        distance: Tensor = (to - start - a * drift).flatten(1).norm(dim=1)
        return -(distance**2) / (4 * a * temperature)

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position, *score(target, position))

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        x = state.position
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        new = x + a * state.score + (2 * a * temperature) ** 0.5 * noise
        energy, drift = score(target, new)
        is_finite = energy.isfinite() & drift.isfinite().flatten(1).all(1)
        inside = torch.ones_like(is_finite) if bounds is None else ((new >= bounds[0]) & (new <= bounds[1])).flatten(1).all(1)
        log_ratio = (state.energy - energy) / temperature + log_q(x, new, drift) - log_q(new, x, state.score)
        taken = accept(log_ratio, is_finite & inside, generator)
        state = State(choose(taken, new, x), choose(taken, energy, state.energy), choose(taken, drift, state.score))
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), taken, is_finite)

    return Kernel(init, step)
