"""Discrete Metropolis-adjusted Langevin, for binary and categorical variables (Zhang et al. 2022).

    q(x' | x) = prod_i softmax( d_i(x) / 2T - |x'_i - x_i|^2 / (2 step_size) )
    x <- x' with probability min(1, exp((E(x) - E(x')) / T) q(x | x') / q(x' | x))

``d`` estimates all changes of ``-E`` from one gradient (samplers/_discrete.py). All variables may
change in a step; ``step_size`` says how many do. It samples ``exp(-E / T)`` exactly.
"""

import torch.nn.functional as F
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, Info, Kernel, Randomness, StepSize, accept_mask, log_uniform
from ebm_dist.samplers import _discrete as discrete
from ebm_dist.samplers._gradient_state import State, select

ACCEPTANCE = 0.574
"""Acceptance rate to adapt to, optimal for many variables (Sun et al. 2022)."""
LARGEST = 100.0
"""From such a step size on, proposals do not depend on it."""


@section
class Config:
    num_steps: PositiveInt = 40
    """Steps of the chains per training step."""
    step_size: Positive = 0.2
    """Scale of the squared distance of a proposal."""
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
        noise, log_u = out or (None, None)
        of_choice = discrete.gumbel if config.categories else discrete.logistic
        size = (n, len(position))
        return of_choice(n, position, generator, noise), log_uniform(size, generator, log_u)

    def logits(state: State, step_size: StepSize) -> Tensor:
        """``(B, *shape)`` of the categories of a variable, or the log odds that it is flipped."""
        d = discrete.changes(state, config.categories) / (2 * temperature)
        if config.categories:
            return d - (1 - state.position) / step_size
        return d - 1 / (2 * step_size)

    def log_q(logits: Tensor, chosen: Tensor) -> Tensor:
        """``(B,)`` of the categories, or of the flips, that are 1 in ``chosen``."""
        if config.categories:
            return (chosen * logits.log_softmax(dim=-1)).flatten(1).sum(dim=1)
        return F.logsigmoid((2 * chosen - 1) * logits).flatten(1).sum(dim=1)

    def move(
        target: EnergyFn, state: State, randomness: Randomness, step_size: StepSize
    ) -> tuple[State, Info]:
        noise, log_u = randomness
        x, there = state.position, logits(state, step_size)
        if config.categories:
            moved = F.one_hot((there + noise).argmax(dim=-1), x.shape[-1]).to(x.dtype)
            chosen, undone = moved, x
        else:
            chosen = undone = (there + noise > 0).to(x.dtype)  # a flip is undone by a flip
            moved = x + (1 - 2 * x) * chosen
        new = discrete.init(target, moved, config.categories)
        log_ratio = (state.energy - new.energy) / temperature
        log_ratio = log_ratio + log_q(logits(new, step_size), undone) - log_q(there, chosen)
        is_finite = new.is_finite
        is_accepted = accept_mask(log_ratio, is_finite, log_u)
        state = select(is_accepted, new, state)
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), is_accepted, is_finite)

    return Kernel.of_move(init, draw, move, config.step_size)._replace(is_discrete=True)
