"""Parallel tempering of any kernel (Swendsen & Wang 1986; Geyer 1991; pairs: Okabe et al. 2001).

    each replica r:  a step of the kernel on E / T_r,    1 = T_0 < T_1 < ...
    even steps: pairs (0, 1), (2, 3), ...; odd steps: (1, 2), (3, 4), ...
    a pair swaps positions with probability min(1, exp((1 / T_r - 1 / T_r+1) (E_r - E_r+1) / T))

T is the temperature of the kernel itself, so replica r samples ``exp(-E / (T T_r))``.

Hot replicas cross between modes, and cold replicas stay exact. Only the coldest is the state's
``position``. The other replicas have other distributions: leave them out of averages and
diagnostics.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.chains.exchange import Journey, swap
from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import (
    AdjustedState,
    Bounds,
    Info,
    Kernel,
    Randomness,
    StepSize,
    accept_mask,
    log_uniform,
)
from ebm_dist.samplers._gradient_state import State as GradientState


class State(NamedTuple):
    """Replicas of ``B`` chains at ``R`` temperatures."""

    position: Tensor
    """``(B, *shape)`` of the coldest replica"""
    replicas: Tensor
    """``(R, B, *shape)`` of all replicas, coldest first"""
    inner: Any
    """State of the inner kernel, of ``R * B`` chains"""
    journey: Journey

    @property
    def is_finite(self) -> Tensor:
        """``(R * B,)``: whether energy and score of each replica are finite."""
        if isinstance(self.inner, AdjustedState):
            return self.inner.is_finite
        return torch.ones(self.replicas.shape[:2], dtype=torch.bool).flatten()


def geometric(num_temperatures: int, hottest: float) -> list[float]:
    """Return ``num_temperatures`` temperatures from 1 to ``hottest`` with a constant ratio."""
    return [hottest ** (r / max(num_temperatures - 1, 1)) for r in range(num_temperatures)]


def tempered(
    kernel: Kernel,
    temperatures: Sequence[float],
    *,
    bounds: Bounds,
    temperature: float = 1.0,
    replicas: Tensor | None = None,
    num_done: int = 0,
) -> Kernel:
    """Return a kernel of chains with a replica at each temperature.

    A step is one step of ``kernel`` for each replica and one possible swap. ``temperatures`` start
    at 1 and grow; they are multiples of ``temperature``, that of ``kernel``. The result is exact if
    ``kernel`` is. Chains start with all replicas at their position, or at ``replicas (R, B,
    *shape)``.
    All replicas are one batch: a step costs ``len(temperatures)`` times a step of ``kernel``, and a
    second evaluation of energy and score after the swap. Info has the coldest replica's energy
    after the swap.

    ``bounds`` are those of ``kernel``. Without bounds, a replica moves in the coordinates ``x /
    sqrt(T_r)``, so its steps are longer as its distribution is wider. With bounds, which these
    coordinates would shift, and for discrete positions all replicas use the same step.
    ``num_done``: steps of earlier calls, which decide the pairs of the first step. Raise ValueError
    if the temperatures do not start at 1 or do not grow, or if the kernel has no ``move``.
    """
    draw_inner, move_inner, step_size = kernel.draw, kernel.move, kernel.step_size
    if draw_inner is None or move_inner is None or step_size is None:
        raise ValueError("this kernel cannot be tempered: it has no move")
    num_replicas = len(temperatures)
    if not num_replicas or temperatures[0] != 1 or any(a >= b for a, b in pairwise(temperatures)):
        raise ValueError(f"temperatures must start at 1 and grow, not {list(temperatures)}")

    def scaled(z: Tensor, power: float) -> Tensor:
        """Convert between the kernel's coordinates and ``x``, both ``(R * B, *shape)``."""
        scale = torch.tensor(temperatures, device=z.device, dtype=z.dtype) ** (
            power if bounds is None and not kernel.is_discrete else 0
        )
        return z * scale.repeat_interleave(len(z) // num_replicas).view(-1, *[1] * (z.ndim - 1))

    def heated(target: EnergyFn) -> EnergyFn:
        def energy(z: Tensor) -> Tensor:
            value = target(scaled(z, 0.5)).view(num_replicas, -1)
            return (
                value / torch.tensor(temperatures, device=z.device, dtype=value.dtype)[:, None]
            ).flatten()

        return energy

    def init(target: EnergyFn, position: Tensor) -> State:
        x = position.expand(num_replicas, *position.shape) if replicas is None else replicas
        inner = kernel.init(heated(target), scaled(x.flatten(0, 1), -0.5))
        journey = Journey.start(num_replicas, len(position), position.device)
        journey = journey._replace(is_odd=num_done % 2 == 1)
        return State(x[0], x.clone(), inner, journey)

    def draw(
        n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        size = (num_replicas * len(position), *position.shape[1:])
        like_all = position.new_empty(size)  # only its shape and type count
        inner_out, swaps_out = (out[:-1], out[-1]) if out else (None, None)
        swaps = log_uniform((n, num_replicas // 2, len(position)), generator, swaps_out)
        return *draw_inner(n, like_all, generator, inner_out), swaps

    def move(
        target: EnergyFn, state: State, randomness: Randomness, step_size: StepSize
    ) -> tuple[State, Info]:
        n, heated_target = len(state.position), heated(target)
        *inner_randomness, log_u = randomness
        inner, info = move_inner(heated_target, state.inner, (*inner_randomness,), step_size)
        flat = scaled(inner.position, 0.5)
        energy, x = target(flat).view(num_replicas, n), flat.unflatten(0, (num_replicas, n))
        beta = 1 / (temperature * torch.tensor(temperatures, device=x.device, dtype=energy.dtype))
        source, swapped = (
            list(torch.arange(num_replicas, device=x.device)[:, None].repeat(1, n)),
            [],
        )
        for pair, r in enumerate(state.journey.pairs):
            log_ratio = (beta[r] - beta[r + 1]) * (energy[r] - energy[r + 1])
            swapped.append(accept_mask(log_ratio, log_ratio.isfinite(), log_u[pair]))
            source[r], source[r + 1] = swap(swapped[-1], source[r], source[r + 1])
        chains, order = torch.arange(n, device=x.device), torch.stack(source)
        x, energy = x[order, chains], energy[order, chains]
        inner = kernel.init(heated_target, scaled(x.flatten(0, 1), -0.5))
        is_finite = None if info.is_finite is None else info.is_finite[:n]
        score_norm = info.score_norm
        if isinstance(inner, GradientState):
            score_norm = inner.score.flatten(1).norm(dim=1)
        cold = Info(energy[0], score_norm[:n], info.is_accepted[:n], is_finite)
        return State(x[0], x, inner, state.journey.after(swapped)), cold

    return Kernel.of_move(init, draw, move, step_size, kernel.num_gradients + 1)
