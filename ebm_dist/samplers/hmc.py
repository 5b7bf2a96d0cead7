"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011, section 5.3.2).

    p ~ N(0, I);  num_leapfrog times:
        p <- p + e/2 s(x) / T;  x <- reflect(x + e p);  p <- p + e/2 s(x) / T          s = -dE/dx
    x <- x' with probability min(1, exp(H(x, p) - H(x', p'))),  H = E / T + ||p||^2 / 2

It samples ``exp(-E / T)`` exactly. Each chain draws its own ``e`` in each step. The trajectory
length ``num_leapfrog * e`` then varies, so no chain is trapped by a period of the target.
"""

import torch
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, Probability, section
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import (
    Bounds,
    Info,
    Kernel,
    Randomness,
    StepSize,
    accept_mask,
    log_uniform,
    normal,
    reflect,
)
from ebm_dist.samplers._gradient_state import State, init, select

ACCEPTANCE = 0.8
"""Acceptance rate to adapt to. It is above the optimum for a known length, 0.651 (Beskos et al.
2013), because a step that is too large costs more than one that is too small."""


@section
class Config:
    num_steps: PositiveInt = 10
    """Trajectories of the chains per training step."""
    step_size: Positive = 0.1
    """Largest leapfrog step size ``e``."""
    num_leapfrog: PositiveInt = 10
    """Leapfrog steps per trajectory; each computes one gradient."""
    jitter: Probability = 0.5
    """Relative range of the step size: ``e`` is uniform in ``step_size * (1 - jitter, 1)``."""
    temperature: Positive = 1.0
    """T of the sampled density ``exp(-E / T)``."""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel of ``exp(-E / T)`` within ``bounds``, where trajectories are mirrored.

    Info describes the position after the step.
    """
    temperature = config.temperature

    def kinetic(momentum: Tensor) -> Tensor:
        return (momentum**2).flatten(1).sum(1) / 2

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        momentum, uniform, log_u = out or (None, None, None)
        size = (n, len(position))
        return (
            normal(n, position, generator, momentum),
            torch.rand(
                size,
                generator=generator,
                device=position.device,
                dtype=position.dtype,
                out=uniform,
            ),
            log_uniform(size, generator, log_u),
        )

    def move(
        target: EnergyFn, state: State, randomness: Randomness, step_size: StepSize
    ) -> tuple[State, Info]:
        momentum, uniform, log_u = randomness
        x = state.position
        e = step_size * (1 - config.jitter * uniform.view(-1, *[1] * (x.ndim - 1)))
        half = e / (2 * temperature)
        start = state.energy / temperature + kinetic(momentum)
        new = state
        for _ in range(config.num_leapfrog):
            momentum = torch.addcmul(momentum, half, new.score)
            x = torch.addcmul(new.position, e, momentum)
            if bounds is not None:
                x, reversed_ = reflect(x, bounds)
                momentum = torch.where(reversed_, -momentum, momentum)
            new = init(target, x)
            momentum = torch.addcmul(momentum, half, new.score)
        is_finite = new.is_finite
        is_accepted = accept_mask(
            start - new.energy / temperature - kinetic(momentum), is_finite, log_u
        )
        state = select(is_accepted, new, state)
        return state, Info(state.energy, state.score.flatten(1).norm(dim=1), is_accepted, is_finite)

    return Kernel.of_move(init, draw, move, config.step_size, config.num_leapfrog)
