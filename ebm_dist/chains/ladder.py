"""Chains over a ladder of noise levels: up by noise, and down by nearly unimodal conditionals.

An energy of levels, ``exp(-E(x, k))`` proportional to the density p_k of the data under noise
sigma_k, gives the density of a sample x_k before the noise between two levels was added to it
(Gao et al. 2021, eq. 6):

    p(x_k | x_k+1) ~ exp( -E(x_k, k) - |x_k+1 - x_k|^2 / 2 s_k^2 )
    s_k^2 = sigma_k+1^2 - sigma_k^2

A step adds noise up to sigma_L and then draws x_L-1, ..., x_0 in turn, each by some steps of an
inner kernel in the coordinates x_k / s_k. It keeps p_0 if the inner kernel draws exactly. With a
large sigma_L nothing of the start is left, so the chains mix, whatever separates the modes of p_0.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, Info, Kernel


class State(NamedTuple):
    position: Tensor


def steps_of(sigmas: Sequence[float]) -> list[float]:
    """Return ``s_k`` of the growing standard deviations ``sigma_0, ..., sigma_L``."""
    return [(upper**2 - lower**2) ** 0.5 for lower, upper in pairwise(sigmas)]


def conditional(
    energy: Callable[[Tensor, Tensor], Tensor], level: Tensor, above: Tensor, s: Tensor
) -> EnergyFn:
    """Return the energy of ``u = x_k / s_k`` given ``x_k+1``: a function ``(B, *shape) -> (B,)``.

    ``level`` is ``(B,)``, ``above`` the noisier samples ``(B, *shape)``, ``s`` is ``(B, 1, ...)``.
    """

    def target(u: Tensor) -> Tensor:
        return energy(s * u, level) + ((above / s - u) ** 2).flatten(1).sum(dim=1) / 2

    return target


def ladder(inner: Kernel, sigmas: Sequence[float], num_inner: int, *, bounds: Bounds) -> Kernel:
    """Return the kernel, for targets ``(x, levels (B,)) -> (B,)`` such as ``energies.Levels``.

    ``sigmas`` are sigma_0 to sigma_L. The inner kernel has no bounds; the ends of a step are
    clamped to ``bounds``. Info has the energy at the end, at level 0, and whether any proposal was
    accepted.
    """
    widths = steps_of(sigmas)
    up = (sigmas[-1] ** 2 - sigmas[0] ** 2) ** 0.5

    def init(target: EnergyFn, position: Tensor) -> State:
        return State(position)

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        energy, x = cast(Callable[[Tensor, Tensor], Tensor], target), state.position
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x, accepted = x + up * z, x.new_zeros(len(x))
        for k in reversed(range(len(widths))):
            level = torch.full((len(x),), k, device=x.device)
            s = x.new_full((1,) * x.ndim, widths[k])
            below = conditional(energy, level, x, s)
            inner_state: Any = inner.init(below, x / s)
            for _ in range(num_inner):
                inner_state, info = inner.step(below, inner_state, generator)
                accepted = accepted + info.is_accepted
            x = s * inner_state.position
        if bounds is not None:
            x = x.clamp(*bounds)
        is_accepted = accepted > 0
        return State(x), Info(energy(x, torch.zeros_like(level)), info.score_norm, is_accepted)

    return Kernel(init, step)
