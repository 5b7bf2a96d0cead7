"""Gibbs with gradients, for binary and categorical variables (Grathwohl et al. 2021, algorithm 1).

    j ~ softmax(d(x) / 2T);  x' = x with change j                        d: samplers/_discrete.py
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(j' | x') / q(j | x))

``d`` estimates all changes of ``-E`` from one gradient, and ``j'`` is the change back. One variable
changes per step. It samples ``exp(-E / T)`` exactly.
"""

import torch
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, Info, Kernel, Randomness, StepSize, accept_mask, log_uniform
from ebm_dist.samplers import _discrete as discrete
from ebm_dist.samplers._gradient_state import State, select


@section
class Config:
    num_steps: PositiveInt = 40
    """Steps of the chains per training step; each changes at most one variable."""
    categories: bool = False
    """The last axis of a sample has a variable's categories, one-hot; else variables are binary."""
    temperature: Positive = 1.0
    """T of the sampled density ``exp(-E / T)``."""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel. ``bounds`` have no effect: chains start at the states nearest to the start.

    Info has energy and score after the step.
    """
    temperature = config.temperature

    def init(target: EnergyFn, position: Tensor) -> State:
        return discrete.init(target, position, config.categories)

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        gumbel, log_u = out or (None, None)
        size = (n, len(position))
        return (
            discrete.gumbel(n, position, generator, gumbel),
            log_uniform(size, generator, log_u),
        )

    def logits(state: State) -> Tensor:
        """``(B, changes)``; the present category is no change."""
        d = discrete.changes(state, config.categories) / (2 * temperature)
        return (d.masked_fill(state.position == 1, -torch.inf) if config.categories else d).flatten(
            1
        )

    def move(
        target: EnergyFn, state: State, randomness: Randomness, _: StepSize
    ) -> tuple[State, Info]:
        gumbel, log_u = randomness
        x, log_q = state.position, logits(state).log_softmax(dim=1)
        j = (log_q + gumbel.flatten(1)).argmax(dim=1, keepdim=True)
        chosen = torch.zeros_like(log_q).scatter(1, j, 1).view_as(x)
        if config.categories:
            of_variable = chosen.sum(dim=-1, keepdim=True)
            moved = chosen + (1 - of_variable) * x
            back = (x * of_variable).flatten(1).argmax(dim=1, keepdim=True)
        else:
            moved, back = x + (1 - 2 * x) * chosen, j
        new = discrete.init(target, moved, config.categories)
        log_ratio = (state.energy - new.energy) / temperature
        log_ratio = (
            log_ratio
            + logits(new).log_softmax(dim=1).gather(1, back).squeeze(1)
            - log_q.gather(1, j).squeeze(1)
        )
        is_finite = new.is_finite
        is_accepted = accept_mask(log_ratio, is_finite, log_u)
        state = select(is_accepted, new, state)
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), is_accepted, is_finite)

    return Kernel.of_move(init, draw, move, 1.0)._replace(is_discrete=True)
