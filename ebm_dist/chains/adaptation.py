"""Step size of a sampler by dual averaging in a warm-up.

Nesterov (2009); Hoffman & Gelman (2014), section 3.2.1, equation 6:

    log e_t+1 = mu - sqrt(t) / gamma / (t + t0) * sum_i (delta - alpha_i)
    log ebar_t+1 = t^-kappa log e_t+1 + (1 - t^-kappa) log ebar_t

with ``alpha`` the share of chains that accepted, ``delta`` the target acceptance rate, ``mu =
log(10 e_1)``, gamma = 0.05, t0 = 10, kappa = 0.75. The result is a new ``Config``; the sampler
itself does not change.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from ebm_dist.config import module_of
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, check_start

_GAMMA, _T0, _KAPPA = 0.05, 10, 0.75


@torch.no_grad()
def adapt(
    config: Any,
    target: EnergyFn,
    position: Tensor,
    num_steps: int,
    generator: Generator,
    *,
    bounds: Bounds,
    acceptance: float | None = None,
    move: Callable[..., Any] | None = None,
) -> tuple[Any, Tensor]:
    """Return ``config`` with the ``step_size`` that reaches ``acceptance``, and the positions.

    ``acceptance`` is the target acceptance rate; None stands for the sampler's optimum. ``move``
    makes a step of this sampler on this target, for example compiled: ``Kernel.move`` without its
    first argument. Positions are ``(B, *shape)``. They are not samples of the target, because the
    kernel changes while they are drawn. Raises ValueError for less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a warm-up needs at least one step, found {num_steps}")
    module = module_of(config)
    target_rate = module.ACCEPTANCE if acceptance is None else acceptance
    kernel = module.build(config, bounds=bounds)
    move = move or functools.partial(kernel.move, target)
    state = kernel.init(target, position)
    check_start(state)
    mu, deficit, averaged, step_size = math.log(10 * config.step_size), 0.0, 0.0, config.step_size
    for t in range(1, num_steps + 1):
        (randomness,) = zip(*kernel.draw(1, position, generator), strict=True)
        state, info = move(state, randomness, step_size)
        deficit += target_rate - info.is_accepted.float().mean().item()
        log_size = mu - math.sqrt(t) / _GAMMA / (t + _T0) * deficit
        weight = t**-_KAPPA
        averaged, step_size = weight * log_size + (1 - weight) * averaged, math.exp(log_size)
    return dataclasses.replace(config, step_size=math.exp(averaged)), state.position
