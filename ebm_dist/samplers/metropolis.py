"""Metropolis-Hastings with a random walk or with independent proposals (Metropolis et al. 1953; Hastings 1970, section 2).

    walk:   x' = reflect(x + step_size * N(0, I))
    noise:  x' ~ q, which is N(0, step_size^2 I), or uniform within bounds
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(x) / q(x'));  a walk's q cancels

It samples ``exp(-E / T)`` exactly, also within bounds: a walk that is mirrored there is symmetric still.
"""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, Info, Kernel, accept_mask, noise, reflect, where_accepted

ACCEPTANCE = 0.234
"""The best for a walk in many dimensions (Roberts, Gelman & Gilks 1997)."""


@section
class Config:
    num_steps: PositiveInt = 60
    """Steps of the chains for each training step."""
    step_size: Positive = 0.1
    """Standard deviation of the walk, or of the noise if there are no bounds."""
    proposal: Literal["walk", "noise"] = "walk"
    """``walk``: from where the chain is. ``noise``: from where chains start; it must have heavier tails than the target."""
    temperature: Positive = 1.0
    """T of the ``exp(-E / T)`` that is sampled."""


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    """``(B,)`` at the position"""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """``bounds``: the target is restricted to this interval; a walk is mirrored there. Info's energy is that after the step."""

    def propose(x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """``x'`` and ``log q(x) - log q(x')``."""
        symmetric = x.new_zeros(len(x))
        if config.proposal == "walk":
            moved = x + config.step_size * torch.randn(
                x.shape, generator=generator, device=x.device, dtype=x.dtype
            )
            return (moved if bounds is None else reflect(moved, bounds)[0]), symmetric
        drawn = noise(tuple(x.shape), bounds, generator).to(x.dtype)
        if bounds is not None:
            return drawn, symmetric
        drawn = config.step_size * drawn
        return drawn, (drawn**2 - x**2).flatten(1).sum(1) / (2 * config.step_size**2)

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position, target(position))

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        x, log_q_ratio = propose(state.position, generator)
        energy = target(x)
        is_finite = energy.isfinite()
        is_accepted = accept_mask(
            (state.energy - energy) / config.temperature + log_q_ratio, is_finite, generator
        )
        state = State(
            where_accepted(is_accepted, x, state.position),
            where_accepted(is_accepted, energy, state.energy),
        )
        no_score = torch.zeros_like(energy)
        return state, Info(state.energy, no_score, is_accepted, is_finite)

    return Kernel(init, step)
