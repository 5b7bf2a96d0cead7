"""States of binary or categorical variables, and single changes of them.

Binary variables are 0 or 1. Categorical ones are one-hot along the last axis. The energy is a
function of real numbers there, and its score estimates by how much ``f = -E`` changes with a change
of one variable (Grathwohl et al. 2021, section 3.1):

    binary        d_i = (1 - 2 x_i) s_i                     flip variable i              s = -dE/dx
    categorical   d_ik = s_ik - sum_j x_ij s_ij             set variable i to category k
"""

import torch
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import _gradient_state
from ebm_dist.samplers._gradient_state import State

_TINY = torch.finfo(torch.float32).tiny


def init(target: EnergyFn, position: Tensor, are_categories: bool) -> State:
    """Evaluate the target at the nearest states to positions ``(B, *shape)``.

    Chains of the training start from noise within bounds, so a start need not be a state.
    """
    if are_categories:
        k = position.argmax(dim=-1)
        nearest = torch.nn.functional.one_hot(k, position.shape[-1]).to(position.dtype)
    else:
        nearest = (position >= 0.5).to(position.dtype)
    return _gradient_state.init(target, nearest)


def changes(state: State, are_categories: bool) -> Tensor:
    """Return the estimated changes of ``-E``, ``(B, *shape)``; 0 for the present category."""
    x, s = state.position, state.score
    return s - (x * s).sum(dim=-1, keepdim=True) if are_categories else (1 - 2 * x) * s


def gumbel(n: int, x: Tensor, generator: Generator, out: Tensor | None = None) -> Tensor:
    """Draw Gumbel numbers ``(n, *x.shape)``: the argmax of logits + them is a softmax draw."""
    drawn = x.new_empty((n, *x.shape)) if out is None else out
    return drawn.exponential_(generator=generator).clamp_(min=_TINY).log_().neg_()


def logistic(n: int, x: Tensor, generator: Generator, out: Tensor | None = None) -> Tensor:
    """Draw logistic numbers ``(n, *x.shape)``: log odds + them is positive with these odds."""
    drawn = x.new_empty((n, *x.shape)) if out is None else out
    return drawn.uniform_(generator=generator).logit_(eps=_TINY)
