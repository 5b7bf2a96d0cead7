"""Step size of a sampler by dual averaging in a warm-up.

Nesterov (2009); Hoffman & Gelman (2014), section 3.2.1, equation 6:

    log e_t+1 = mu - sqrt(t) / gamma / (t + t0) * sum_i (delta - alpha_i)
    log ebar_t+1 = t^-kappa log e_t+1 + (1 - t^-kappa) log ebar_t

with ``alpha`` the share of chains that accepted, ``delta`` the target acceptance rate, ``mu =
log(10 e_1)``, gamma = 0.05, t0 = 10, kappa = 0.75. The result is a new ``Config``; the sampler
itself does not change.
"""

import dataclasses
import math
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
) -> tuple[Any, Tensor]:
    """Return ``config`` with the ``step_size`` that reaches ``acceptance``, and the positions.

    ``acceptance`` is the target acceptance rate; None stands for the sampler's optimum. Positions
    are ``(B, *shape)``. They are not samples of the target, because the kernel changes while they
    are drawn. Raises ValueError for less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a warm-up needs at least one step, found {num_steps}")
    module = module_of(config)
    target_rate = module.ACCEPTANCE if acceptance is None else acceptance
    state = module.build(config, bounds=bounds).init(target, position)
    check_start(state)
    mu, deficit, averaged, step_size = math.log(10 * config.step_size), 0.0, 0.0, config.step_size
    for t in range(1, num_steps + 1):
        kernel = module.build(dataclasses.replace(config, step_size=step_size), bounds=bounds)
        state, info = kernel.step(target, state, generator)
        deficit += target_rate - info.is_accepted.float().mean().item()
        log_size = mu - math.sqrt(t) / _GAMMA / (t + _T0) * deficit
        weight = t**-_KAPPA
        averaged, step_size = weight * log_size + (1 - weight) * averaged, math.exp(log_size)
    return dataclasses.replace(config, step_size=math.exp(averaged)), state.position
