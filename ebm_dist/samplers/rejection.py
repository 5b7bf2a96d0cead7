"""Rejection sampling with independent proposals: accept and reject (von Neumann 1951).

    x' ~ q,   u ~ U(0, 1);   accept x' if  u M q(x') < exp(-E(x') / T)

q is ``N(0, scale^2 I)``, or uniform within bounds. Accepted draws are independent, and exact if M
is a bound: ``exp(-E / T) <= M q`` everywhere. Where none is known, M is the largest ratio met so
far (empirical supremum rejection sampling; Caffo, Booth & Davis 2002): exact in the limit of many
proposals, so drop the first steps. The share of accepted proposals is Z / M. It falls exponentially
with the number of dimensions, so this is for a few; ``num_proposals`` and ``num_accepted`` of the
state tell it.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.energies import EnergyFn
from ebm_dist.errors import DivergedError
from ebm_dist.samplers import Bounds, Info, Kernel, accept_mask, log_uniform, noise, where_accepted


@section
class Config:
    num_steps: PositiveInt = 1
    """Steps of the chains per training step."""
    num_proposals: PositiveInt = 100
    """Most proposals of a chain in each step. If all are rejected, the chain stays where it is."""
    scale: Positive = 1.0
    """Standard deviation of the proposals without bounds. It must not be below the target's; with c
    times the target's, the share of accepted proposals falls by c for each dimension."""
    log_bound: float | None = None
    """log M. If absent, that of the largest ratio met so far."""
    temperature: Positive = 1.0
    """T of the sampled density ``exp(-E / T)``."""


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    """``(B,)`` at the positions"""
    log_bound: Tensor
    """``()`` log M, shared by all chains"""
    num_proposals: Tensor
    """``()`` proposals so far, of all chains"""
    num_accepted: Tensor
    """``()`` accepted ones"""


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel of ``exp(-E / T)`` restricted to ``bounds``.

    Info has the energy after the step. A step raises :class:`DivergedError` for a proposal above
    ``log_bound``, which then is no bound.
    """

    def propose(like: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return proposals ``(B, *shape)`` and their ``log q (B,)``."""
        x = noise(tuple(like.shape), bounds, generator).to(like.dtype)
        size = like[0].numel()
        if bounds is not None:
            return x, x.new_full((len(x),), -size * math.log(bounds[1] - bounds[0]))
        log_q = -(x**2).flatten(1).sum(1) / 2 - size * math.log(config.scale * math.sqrt(math.tau))
        return config.scale * x, log_q

    def init(target: EnergyFn, position: Tensor) -> State:
        zero = torch.zeros((), device=position.device)
        log_bound = zero + (-math.inf if config.log_bound is None else config.log_bound)
        return State(position, target(position), log_bound, zero, zero)

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        position, energy, log_bound, num_proposals, num_accepted = state
        waits = torch.ones(len(position), dtype=torch.bool, device=position.device)
        for _ in range(config.num_proposals):
            x, log_q = propose(position, generator)
            new = target(x)
            log_ratio = -new / config.temperature - log_q
            finite = new.isfinite()
            highest = log_ratio[finite].amax() if finite.any() else log_bound
            if config.log_bound is not None and highest > log_bound:
                raise DivergedError(
                    f"rejection: exp(-E / T) / q reaches e^{float(highest):.4g}, above log_bound"
                    f" {config.log_bound:.4g}",
                    "set a larger log_bound or scale, or leave log_bound out",
                )
            log_bound = torch.maximum(log_bound, highest)
            is_accepted = accept_mask(
                log_ratio - log_bound, finite, log_uniform((len(x),), generator)
            )
            num_proposals = num_proposals + len(x)
            num_accepted = num_accepted + is_accepted.sum()
            is_taken = waits & is_accepted
            position = where_accepted(is_taken, x, position)
            energy = where_accepted(is_taken, new, energy)
            waits = waits & ~is_accepted
            if not waits.any():
                break
        state = State(position, energy, log_bound, num_proposals, num_accepted)
        return state, Info(energy, torch.zeros_like(energy), ~waits)

    return Kernel(init, step)
