"""Metropolis-Hastings with a random walk or independent proposals.

Metropolis et al. (1953); Hastings (1970), section 2.

    walk:   x' = reflect(x + step_size * N(0, I))
    noise:  x' ~ q, which is N(0, step_size^2 I), or uniform within bounds
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(x) / q(x'));  a walk's q cancels

It samples ``exp(-E / T)`` exactly, also within bounds: a mirrored walk is still symmetric.
"""

from typing import Literal, NamedTuple

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
    noise,
    normal,
    reflect,
    where_accepted,
)

ACCEPTANCE = 0.234
"""Acceptance rate to adapt to, optimal for a walk in many dimensions (Roberts, Gelman & Gilks
1997)."""


@section
class Config:
    num_steps: PositiveInt = 60
    """Steps of the chains per training step."""
    step_size: Positive = 0.1
    """Standard deviation of the walk's step, or of independent proposals without bounds."""
    proposal: Literal["walk", "noise"] = "walk"
    """``walk``: a random step from the chain's position. ``noise``: a draw from the distribution of
    initial positions, independent of the chain; its tails must be heavier than the target's."""
    temperature: Positive = 1.0
    """T of the sampled density ``exp(-E / T)``."""


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    """``(B,)`` at the positions"""

    @property
    def is_finite(self) -> Tensor:
        """``(B,)``: whether the energy is finite."""
        return self.energy.isfinite()


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel of ``exp(-E / T)`` restricted to ``bounds``, where a walk is mirrored.

    Info has the energy after the step.
    """

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        drawn, log_u = out or (None, None)
        if config.proposal == "walk" or bounds is None:
            drawn = normal(n, position, generator, drawn)
        else:
            drawn = noise((n, *position.shape), bounds, generator).to(position.dtype)
        return drawn, log_uniform((n, len(position)), generator, log_u)

    def propose(x: Tensor, drawn: Tensor, step_size: StepSize) -> tuple[Tensor, Tensor]:
        """Return ``x' (B, *shape)`` and ``log q(x) - log q(x') (B,)``."""
        symmetric = x.new_zeros(len(x))
        if config.proposal == "walk":
            proposal = x + step_size * drawn
            return (proposal if bounds is None else reflect(proposal, bounds)[0]), symmetric
        if bounds is not None:
            return drawn, symmetric
        drawn = step_size * drawn
        return drawn, (drawn**2 - x**2).flatten(1).sum(1) / (2 * step_size**2)

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position, target(position))

    def move(
        target: EnergyFn, state: State, randomness: Randomness, step_size: StepSize
    ) -> tuple[State, Info]:
        drawn, log_u = randomness
        x, log_q_ratio = propose(state.position, drawn, step_size)
        energy = target(x)
        is_finite = energy.isfinite()
        is_accepted = accept_mask(
            (state.energy - energy) / config.temperature + log_q_ratio, is_finite, log_u
        )
        state = State(
            where_accepted(is_accepted, x, state.position),
            where_accepted(is_accepted, energy, state.energy),
        )
        no_score = torch.zeros_like(energy)
        return state, Info(state.energy, no_score, is_accepted, is_finite)

    return Kernel.of_move(init, draw, move, config.step_size)
