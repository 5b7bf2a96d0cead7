"""Parallel tempering of any kernel (Swendsen & Wang 1986; Geyer 1991; alternating pairs: Okabe et al. 2001).

    each replica r:  a step of the kernel on E / T_r,    1 = T_0 < T_1 < ...
    even steps: pairs (0, 1), (2, 3), ...; odd steps: (1, 2), (3, 4), ...
    a pair swaps positions with probability min(1, exp((1 / T_r - 1 / T_r+1) (E_r - E_r+1)))

Hot replicas cross between modes, cold ones stay exact. Only the coldest is the state's ``position``: the others have another
distribution and belong in no average and no diagnostic of it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Bounds, Info, Kernel, accept_mask, where_accepted


class State(NamedTuple):
    """All replicas of ``B`` chains."""

    position: Tensor
    """``(B, *shape)`` of the coldest replica"""
    replicas: Tensor
    """``(R, B, *shape)`` of all, coldest first"""
    inner: Any
    """The kernel's own, of ``R * B`` chains"""
    num_steps: int
    swap_rates: Tensor
    """``(R - 1,)`` share of the chains in which each pair swapped when it last could; NaN before"""


def geometric(num_temperatures: int, hottest: float) -> list[float]:
    """``num_temperatures`` from 1 to ``hottest`` with a constant ratio."""
    return [hottest ** (r / max(num_temperatures - 1, 1)) for r in range(num_temperatures)]


def tempered(kernel: Kernel, temperatures: Sequence[float], *, bounds: Bounds) -> Kernel:
    """A kernel whose chains have a replica at each temperature; one step and one possible swap of each in a step.

    ``temperatures`` start at 1 and grow; the kernel's own must be 1. It is exact if ``kernel`` is. All replicas are one batch, so
    the cost is that of ``len(temperatures)`` times the chains, and a second evaluation of energy and score after the swap.
    ``bounds`` are those of the kernel. Without, a replica moves in the coordinates ``x / sqrt(T_r)``, which makes its steps longer
    as its distribution is wider; bounds would be moved by that, so within bounds all replicas move alike. Raises ValueError for
    other temperatures.
    """
    num = len(temperatures)
    if not num or temperatures[0] != 1 or any(a >= b for a, b in pairwise(temperatures)):
        raise ValueError(f"temperatures must start at 1 and grow, not {list(temperatures)}")

    def scaled(z: Tensor, power: float) -> Tensor:
        """Between the kernel's coordinates and ours, ``(R * B, *shape)`` both."""
        scale = torch.tensor(temperatures, device=z.device, dtype=z.dtype) ** (
            power if bounds is None else 0
        )
        return z * scale.repeat_interleave(len(z) // num).view(-1, *[1] * (z.ndim - 1))

    def heated(target: EnergyFn) -> EnergyFn:
        def energy(z: Tensor) -> Tensor:
            value = target(scaled(z, 0.5)).view(num, -1)
            return (
                value / torch.tensor(temperatures, device=z.device, dtype=value.dtype)[:, None]
            ).flatten()

        return energy

    def init(target: EnergyFn, position: Tensor) -> State:
        replicas = position.expand(num, *position.shape).clone()
        inner = kernel.init(heated(target), scaled(replicas.flatten(0, 1), -0.5))
        return State(
            position, replicas, inner, 0, torch.full((num - 1,), math.nan, device=position.device)
        )

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        n, hot = len(state.position), heated(target)
        inner, info = kernel.step(hot, state.inner, generator)
        moved = scaled(inner.position, 0.5)
        energy, x = target(moved).view(num, n), moved.unflatten(0, (num, n))
        beta = 1 / torch.tensor(temperatures, device=x.device, dtype=energy.dtype)
        swap_rates = state.swap_rates.clone()
        source = torch.arange(num, device=x.device)[:, None].repeat(1, n)
        for r in range(state.num_steps % 2, num - 1, 2):
            log_ratio = (beta[r] - beta[r + 1]) * (energy[r] - energy[r + 1])
            swapped = accept_mask(log_ratio, log_ratio.isfinite(), generator)
            source[r], source[r + 1] = (
                where_accepted(swapped, source[r + 1], source[r]),
                where_accepted(swapped, source[r], source[r + 1]),
            )
            swap_rates[r] = swapped.float().mean()
        x = x[source, torch.arange(n, device=x.device)]
        inner = kernel.init(hot, scaled(x.flatten(0, 1), -0.5))
        finite = None if info.is_finite is None else info.is_finite[:n]
        cold = Info(info.energy[:n], info.score_norm[:n], info.is_accepted[:n], finite)
        return State(x[0], x, inner, state.num_steps + 1, swap_rates), cold

    return Kernel(init, step)
