"""Replica exchange over a path of energies, and its ladder (Geyer 1991; Syed et al. 2021).

    each replica r:  a step of the kernel on E_r;    E_0 is the energy to sample, E_R-1 mixes well
    even steps: pairs (0, 1), (2, 3), ...; odd steps: (1, 2), (3, 4), ...
    a pair swaps positions with probability
        min(1, exp( E_r(x_r) + E_r+1(x_r+1) - E_r(x_r+1) - E_r+1(x_r) ))

The path is given: an RBM from its biases alone to all of its weights, or the checkpoints of a
training (trajectory tempering, Bereux et al. 2025). For temperatures of any energy there is
chains/tempering.py. Alternating pairs make the exchange non-reversible: a replica keeps its
direction until a swap is refused. With the share rho_r of refused swaps of a pair, the
communication barrier is Lambda = sum rho_r, about the same for any fine enough ladder; equal rho_r
are best, and the most that adding replicas can reach is 1 / (2 + 2 Lambda) round trips a step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.samplers import Info, Kernel, accept_mask, log_uniform, run_chain, where_accepted


class Journey(NamedTuple):
    """Which swaps were refused, and how the copies travel between the ends of ``R`` energies."""

    is_odd: bool
    """Whether the number of steps is odd"""
    refused: Tensor
    """``(R - 1,)`` sum over attempts of the share of chains that did not swap"""
    attempts: Tensor
    """``(R - 1,)`` attempts of each pair"""
    comes_from_end: Tensor
    """``(R, B)``: whether the copy now at r was at E_R-1 after it was last at E_0"""
    round_trips: Tensor
    """``(B,)`` arrivals at E_0 of copies that come from E_R-1"""

    @classmethod
    def start(cls, num_replicas: int, num_chains: int, device: torch.device) -> "Journey":
        """Return a journey without swaps."""
        zeros = torch.zeros(num_replicas - 1, device=device)
        at_end = torch.zeros(num_replicas, num_chains, dtype=torch.bool, device=device)
        at_end[-1] = True
        return cls(False, zeros, zeros, at_end, torch.zeros(num_chains, device=device))

    @property
    def pairs(self) -> range:
        """The first replica of each pair that may swap in this step."""
        return range(int(self.is_odd), len(self.refused), 2)

    @property
    def refusal_rates(self) -> Tensor:
        """``(R - 1,)`` rho of each pair; NaN before its first attempt."""
        return self.refused / self.attempts

    @property
    def barrier(self) -> float:
        """The communication barrier Lambda."""
        return float(self.refusal_rates.nansum())

    def after(self, swapped: Sequence[Tensor]) -> "Journey":
        """Return the journey after a step in which chains ``(B,)`` of each pair swapped."""
        marks = list(self.comes_from_end)
        refused, attempts = self.refused.clone(), self.attempts.clone()
        for r, is_swapped in zip(self.pairs, swapped, strict=True):
            marks[r], marks[r + 1] = swap(is_swapped, marks[r], marks[r + 1])
            refused[r] += 1 - is_swapped.float().mean()
            attempts[r] += 1
        arrived = marks[0].clone()
        marks[0], marks[-1] = torch.zeros_like(arrived), torch.ones_like(arrived)
        trips = self.round_trips + (arrived if len(marks) > 1 else 0)
        return Journey(not self.is_odd, refused, attempts, torch.stack(marks), trips)


class State(NamedTuple):
    """Replicas of ``B`` chains on ``R`` energies."""

    position: Tensor
    """``(B, *shape)`` of the replica on E_0"""
    replicas: Tensor
    """``(R, B, *shape)`` of all replicas"""
    journey: Journey


def exchange(kernel: Kernel, path: Sequence[EnergyFn]) -> Kernel:
    """Return the kernel of chains with a replica on each energy of the path after the first.

    The first energy E_0 is the target that the kernel is given. The state of ``kernel`` is its
    position, as in Gibbs sampling. A step costs ``len(path) + 1`` steps of it, and two more
    evaluations of each energy that may swap. Info is that of E_0 after the swap.
    """
    num_replicas = len(path) + 1

    def init(target: EnergyFn, position: Tensor) -> State:
        replicas = position.expand(num_replicas, *position.shape).clone()
        return State(
            position, replicas, Journey.start(num_replicas, len(position), position.device)
        )

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        energies, x = [target, *path], list(state.replicas)
        for r, energy in enumerate(energies):
            inner, _ = kernel.step(energy, kernel.init(energy, x[r]), generator)
            x[r] = inner.position
        swapped, value = [], None
        for r in state.journey.pairs:
            near, far = energies[r], energies[r + 1]
            here, there = near(x[r]), near(x[r + 1])
            log_ratio = here + far(x[r + 1]) - there - far(x[r])
            log_u = log_uniform((len(log_ratio),), generator)
            swapped.append(accept_mask(log_ratio, log_ratio.isfinite(), log_u))
            x[r], x[r + 1] = swap(swapped[-1], x[r], x[r + 1])
            if r == 0:
                value = torch.where(swapped[-1], there, here)
        if value is None:
            value = target(x[0])
        state = State(x[0], torch.stack(x), state.journey.after(swapped))
        return state, Info(value, torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool))

    return Kernel(init, step)


def swap(where: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a`` and ``b (B, *shape)`` exchanged where ``(B,)`` is true."""
    return where_accepted(where, b, a), where_accepted(where, a, b)


def equalised(
    ladder: Sequence[float], refusal_rates: Sequence[float], num_levels: int
) -> list[float]:
    """Return a ladder with as many levels, between the same ends, of about equal refusal rates.

    The barrier up to a level is the sum of the rates (Syed et al. 2021, algorithm 4); it is
    interpolated between levels, and divided into equal parts.
    """
    rates = np.nan_to_num(refusal_rates) + 1e-9  # so that a ladder without refusals stays as it is
    barrier: npt.NDArray[Any] = np.concatenate([[0.0], np.cumsum(rates)])
    parts = np.linspace(0.0, barrier[-1], num_levels)
    return [float(v) for v in np.interp(parts, barrier, ladder)]


def final_state(
    kernel: Kernel, target: EnergyFn, position: Tensor, num_steps: int, generator: Generator
) -> Any:
    """Return the state of chains ``(B, *shape)`` after steps of a kernel of replicas.

    It has the :class:`Journey`, as that of :func:`exchange` and of chains/tempering.py.
    """
    last: Any = None

    def observe(step: int, state: Any, info: Info) -> None:
        nonlocal last
        last = state

    run_chain(kernel, target, position, num_steps, generator, observe=observe)
    return last


def adapt_ladder(
    run: Callable[[Sequence[float]], Journey], ladder: Sequence[float], num_rounds: int
) -> tuple[list[float], Journey]:
    """Run chains on ladders, each made from the refusal rates of the one before.

    ``run`` returns the journey of some steps on a ladder. Return the last ladder and its journey.
    """
    journey = run(ladder)
    for _ in range(num_rounds):
        ladder = equalised(ladder, journey.refusal_rates.tolist(), len(ladder))
        journey = run(ladder)
    return list(ladder), journey
