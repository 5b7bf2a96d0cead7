"""Markov chain kernels. One file, one algorithm; each has a ``Config`` and a ``build(config, *, bounds) -> Kernel``.

A kernel is a pair of pure functions on batches of chains. *State* is what the next step needs, *Info* what a human needs.
Randomness is an argument. There is no loop over chains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from ebm_dist import faults
from ebm_dist.energies import EnergyFn

Bounds = tuple[float, float] | None


class State(Protocol):
    """What a kernel carries from step to step; each kernel has its own, and all have the chains' positions."""

    @property
    def position(self) -> Tensor:
        """``(B, *shape)``"""


class Info(NamedTuple):
    """What one step did to each chain; all ``(B,)``."""

    energy: Tensor
    """Energy where the step's gradient was taken."""
    score_norm: Tensor
    """Euclidean norm of the score ``-dE/dx`` there, before any clamp."""
    is_accepted: Tensor
    """Whether the proposal was taken; always true for unadjusted samplers."""
    is_finite: Tensor | None = None
    """Whether energy and score of the proposal were finite, without which it is rejected; None if the sampler does not look."""


class Kernel(NamedTuple):
    """``init(target, x) -> state`` and ``step(target, state, generator) -> (state, info)``."""

    init: Callable[[EnergyFn, Tensor], State]
    step: Callable[[EnergyFn, Any, Generator], tuple[State, Info]]
    step_many: Callable[[EnergyFn, Any, Tensor], tuple[State, Info]] | None = None
    """``step_many(target, state, noise)``: one step for each of ``noise (n, B, *shape)``, standard normal, and the info of the last.
    For kernels that have no other randomness: such code can be compiled."""
    differentiable_step: Callable[[EnergyFn, Tensor, Tensor], Tensor] | None = None
    """``differentiable_step(target, x, noise)``: where one step leads, as a function of the target's parameters, with its graph."""


class ChainStats(NamedTuple):
    """What a run of chains did, averaged over chains: scalars."""

    energy: Tensor
    """Mean energy at the last step."""
    score_norm: Tensor
    """Mean norm of the score at the last step."""
    acceptance_rate: Tensor
    """Share of accepted proposals over all steps."""
    distance: Tensor
    """Mean Euclidean distance from start to end."""


def noise(size: tuple[int, ...], bounds: Bounds, generator: Generator) -> Tensor:
    """Positions ``(*size,)`` without knowledge, where fresh chains start: uniform within bounds, else standard normal."""
    if bounds is None:
        return torch.randn(size, generator=generator, device=generator.device)
    low, high = bounds
    return torch.rand(size, generator=generator, device=generator.device) * (high - low) + low


def accept_mask(log_ratio: Tensor, is_finite: Tensor, generator: Generator) -> Tensor:
    """Which chains take their proposals ``(B,)``: each with probability ``min(1, exp(log_ratio))``, none that is not finite."""
    uniform = torch.rand(log_ratio.shape, generator=generator, device=log_ratio.device)
    return is_finite & (uniform.log() < log_ratio)  # false if the ratio is NaN


def where_accepted(is_accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``(B, *shape)``: of each chain the new where ``is_accepted (B,)``, else the old."""
    return torch.where(is_accepted.view(-1, *[1] * (new.ndim - 1)), new, old)


def reflect(x: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Where a straight path to ``x (B, *shape)`` ends that is mirrored at the bounds, and whether it comes back reversed.

    Lengths and volumes are kept and the path can be gone backwards: symmetric proposals stay symmetric (Neal 2011, section 5.5.1).
    """
    low, high = bounds
    width = high - low
    folded = (x - low) % (2 * width)
    turned = folded > width
    mirrored = (low + torch.where(turned, 2 * width - folded, folded)).clamp(
        low, high
    )  # for the last bit of rounding
    return torch.where((x < low) | (x > high), mirrored, x), turned


Observer = Callable[[int, State, Info], None]


def run_chain(
    kernel: Kernel,
    target: EnergyFn,
    position: Tensor,
    num_steps: int,
    generator: Generator,
    *,
    observe: Observer | None = None,
) -> tuple[Tensor, ChainStats]:
    """Run a batch of chains ``(B, *shape)`` for ``num_steps`` steps; ``observe(step, state, info)`` sees each.

    Parameters of the target should be frozen (:func:`ebm_dist.energies.frozen`), else each step builds gradients for them in vain.
    """
    with torch.no_grad():
        start, state, accepted = position, kernel.init(target, position), torch.zeros(())
        for step in range(num_steps):
            faults.point("chain.step")
            state, info = kernel.step(target, state, generator)
            accepted = accepted + info.is_accepted.float().mean()
            if observe is not None:
                observe(step, state, info)
        moved = (state.position - start).flatten(1).norm(dim=1).mean()
        return state.position, ChainStats(
            info.energy.mean(), info.score_norm.mean(), accepted / num_steps, moved
        )
