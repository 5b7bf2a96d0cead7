"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011, section 5.3.2).

    p ~ N(0, I);  num_leapfrog times:  p <- p + e/2 s(x) / T;  x <- reflect(x + e p);  p <- p + e/2 s(x) / T      s = -dE/dx
    x <- x' with probability min(1, exp(H(x, p) - H(x', p'))),  H = E / T + ||p||^2 / 2

It samples ``exp(-E / T)`` exactly. Each chain draws its own ``e`` in each step, so the length ``num_leapfrog * e`` of its
trajectory varies and none is caught in a period of the target.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Count, Fraction, Positive, section
from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import Bounds, Info, Kernel, accept, choose, reflect

ACCEPTANCE = 0.8
"""Somewhat more than the best for a known length, 0.651 (Beskos et al. 2013), since too large a step costs more than too small."""


@section
class Config:
    num_steps: Count = 10
    """Trajectories of the chains for each training step."""
    step_size: Positive = 0.1
    """Length of the longest leapfrog step."""
    num_leapfrog: Count = 10
    """Leapfrog steps, hence gradients, of a trajectory."""
    jitter: Fraction = 0.5
    """``e`` is uniform in ``step_size * (1 - jitter, 1)``."""
    temperature: Positive = 1.0
    """T of the ``exp(-E / T)`` that is sampled."""


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    """``(B,)`` at the position"""
    score: Tensor
    """``(B, *shape)`` there"""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """``bounds``: the target is restricted to this interval; trajectories are mirrored there. Info is of the end of the step."""
    temperature = config.temperature

    def kinetic(momentum: Tensor) -> Tensor:
        return (momentum**2).flatten(1).sum(1) / 2

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position, *score(target, position))

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        x, energy, drift = state
        momentum = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))
        e = config.step_size * (1 - config.jitter * uniform)
        half = e / (2 * temperature)
        before = energy / temperature + kinetic(momentum)
        for _ in range(config.num_leapfrog):
            momentum = torch.addcmul(momentum, half, drift)
            x = torch.addcmul(x, e, momentum)
            if bounds is not None:
                x, turned = reflect(x, bounds)
                momentum = torch.where(turned, -momentum, momentum)
            energy, drift = score(target, x)
            momentum = torch.addcmul(momentum, half, drift)
        is_finite = energy.isfinite() & drift.isfinite().flatten(1).all(1)
        taken = accept(before - energy / temperature - kinetic(momentum), is_finite, generator)
        state = State(choose(taken, x, state.position), choose(taken, energy, state.energy), choose(taken, drift, state.score))
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), taken, is_finite)

    return Kernel(init, step)
