"""Step size of a sampler by dual averaging in a warm-up, and the scales of the coordinates.

Nesterov (2009); Hoffman & Gelman (2014), section 3.2.1, equation 6:

    log e_t+1 = mu - sqrt(t) / gamma / (t + t0) * sum_i (delta - alpha_i)
    log ebar_t+1 = t^-kappa log e_t+1 + (1 - t^-kappa) log ebar_t

with ``alpha`` the share of chains that accepted, ``delta`` the target acceptance rate, ``mu =
log(10 e_1)``, gamma = 0.05, t0 = 10, kappa = 0.75. The result is a new ``Config``; the sampler
itself does not change.

Scales are standard deviations of the coordinates over all chains, shrunk as in Stan (Stan
Development Team, Reference Manual, section 15.2): a diagonal mass matrix.
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
_SHRINK, _SHRUNK_TO = 5, 1e-3  # a variance counts as so many observations more of this one


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
    observe: Callable[[Tensor], None] = lambda position: None,
) -> tuple[Any, Tensor]:
    """Return ``config`` with the ``step_size`` that reaches ``acceptance``, and the positions.

    ``acceptance`` is the target acceptance rate; None stands for the sampler's optimum. ``move``
    makes a step of this sampler on this target, for example compiled: ``Kernel.move`` without its
    first argument. ``observe`` is called with the positions after each step. Positions are
    ``(B, *shape)``. They are not samples of the target, because the kernel changes while they are
    drawn. Raises ValueError for less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a warm-up needs at least one step, found {num_steps}")
    module = module_of(config)
    target_rate = module.ACCEPTANCE if acceptance is None else acceptance
    kernel = module.build(config, bounds=bounds)
    move = move or functools.partial(kernel.move, target)
    state = kernel.init(target, position)
    check_start(state)
    # steps as wide as the bounds, mirrored there, end anywhere: no wider ones lower the acceptance
    width = math.inf if bounds is None else bounds[1] - bounds[0]
    largest = math.log(getattr(module, "LARGEST", width))
    mu, deficit, averaged, step_size = math.log(10 * config.step_size), 0.0, 0.0, config.step_size
    for t in range(1, num_steps + 1):
        (randomness,) = zip(*kernel.draw(1, position, generator), strict=True)
        state, info = move(state, randomness, step_size)
        deficit += target_rate - info.is_accepted.float().mean().item()
        log_size = min(largest, mu - math.sqrt(t) / _GAMMA / (t + _T0) * deficit)
        weight = t**-_KAPPA
        averaged, step_size = weight * log_size + (1 - weight) * averaged, math.exp(log_size)
        observe(state.position)
    return dataclasses.replace(config, step_size=math.exp(averaged)), state.position


class Scales:
    """Standard deviations of coordinates over the positions of the second half of a warm-up."""

    def __init__(self, num_steps: int) -> None:
        self.wait, self.count = num_steps // 2, 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def observe(self, position: Tensor) -> None:
        """Add the positions ``(B, *shape)`` of a step (Chan et al. 1983, for parts of B rows)."""
        self.wait -= 1
        if self.wait >= 0:
            return
        x, n = position.double(), len(position)
        mean, total = x.mean(dim=0), self.count + n
        squares = ((x - mean) ** 2).sum(dim=0)
        self.squares = self.squares + squares + (mean - self.mean) ** 2 * self.count * n / total
        self.mean = self.mean + (mean - self.mean) * n / total
        self.count = total

    def estimate(self) -> Tensor:
        """Return the scales ``(*shape)``, float64."""
        n = self.count
        variance = torch.as_tensor(self.squares) / max(n - 1, 1)
        return ((n * variance + _SHRINK * _SHRUNK_TO) / (n + _SHRINK)).sqrt()
