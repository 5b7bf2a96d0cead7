"""Blocks of steps of a kernel: one call makes several steps and keeps the positions.

The random numbers of a block are drawn before it, so plain and compiled blocks run the same
trajectories: positions and energies differ in the last bits, and a decision to accept only where
the log ratio is that near to the log of the uniform number.
"""

import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist import faults
from ebm_dist.chains import compile_error
from ebm_dist.energies import EnergyFn
from ebm_dist.errors import ConfigError
from ebm_dist.samplers import Info, Kernel, Randomness, StepSize

_MOST_STEPS, _MOST_GRADIENTS = 20, 60  # of a block: more take longer to compile
_MOST_VALUES = 2**24  # of the positions of a block; they and their noise take 128 MiB


class Block(NamedTuple):
    """The end of a block of ``n`` steps of ``B`` chains, and facts about each step."""

    state: Any
    """of the kernel, after the last step"""
    acceptance: Tensor
    """``(n,)`` share of accepted proposals"""
    num_not_finite: Tensor
    """``(n,)`` number of proposals with an energy or score that was not finite"""
    is_finite: Tensor
    """``(n, B)`` whether energy and position after the step are finite"""


class Blocks:
    """Blocks of steps of chains of ``target``, with ``compiles`` each as one compiled function.

    Compiling takes some seconds to a minute at the first call. Torch keeps the machine code on
    disk, so other processes need less. Raise :class:`ConfigError` for a kernel or an energy that
    cannot be compiled.
    """

    def __init__(self, kernel: Kernel, target: EnergyFn, *, compiles: bool = False) -> None:
        if kernel.draw is None or kernel.move is None:
            if compiles:
                raise ConfigError("compile: this sampler cannot be compiled", "leave compile out")
            kernel = _by_generator(kernel)
        assert kernel.draw is not None
        assert kernel.move is not None
        self.draw, self.move, self.num_gradients = kernel.draw, kernel.move, kernel.num_gradients
        self.target, self.compiles = target, compiles
        self.compile_seconds = 0.0
        """Seconds of the first calls of compiled functions"""
        self._several, self._single = self._steps, self._step
        if compiles:
            self._several, self._single = self._compiled(self._steps), self._compiled(self._step)

    @torch.no_grad()
    def step(self, state: Any, randomness: Randomness, step_size: float) -> tuple[Any, Info]:
        """Make one step with random numbers ``(B, ...)``, of a sampler with adapted steps."""
        size = torch.tensor(step_size, dtype=torch.float64)  # a number would be compiled in
        return self._single(state, randomness, size)  # type: ignore[no-any-return]

    @torch.no_grad()
    def run(
        self,
        state: Any,
        generator: Generator,
        step_size: StepSize | None,
        draws: Tensor,
        thin: int = 1,
    ) -> Iterator[Block]:
        """Fill ``draws (num_draws, B, *shape)`` with every ``thin``-th position.

        ``step_size``: None for a kernel without ``move``. Yield each block.
        """
        position, num_steps = state.position, thin * len(draws)
        gradients, values = _MOST_GRADIENTS // self.num_gradients, _MOST_VALUES // position.numel()
        block = max(1, min(_MOST_STEPS, gradients, values))
        buffer, numbers = position.new_empty((block, *position.shape)), None
        for start in range(0, num_steps, block):
            faults.point("chain.step")
            n = min(block, num_steps - start)
            numbers = self.draw(block, position, generator, numbers)
            is_direct = thin == 1 and n == block
            positions = draws[start : start + n] if is_direct else buffer
            randomness = numbers
            if not self.compiles:  # a compiled block always makes all its steps
                randomness, positions = tuple(part[:n] for part in numbers), positions[:n]
            state, facts = self._several(state, randomness, step_size, positions)
            if not is_direct:
                kept = positions[:n][-(start + 1) % thin :: thin]
                draws[start // thin : start // thin + len(kept)] = kept
            yield Block(state, *(facts if n == block else [fact[:n] for fact in facts]))

    def _step(self, state: Any, randomness: Randomness, step_size: StepSize) -> tuple[Any, Info]:
        return self.move(self.target, state, randomness, step_size)

    def _steps(
        self, state: Any, randomness: Randomness, step_size: Any, positions: Tensor
    ) -> tuple[Any, list[Tensor]]:
        visited, facts = [], []
        for row in zip(*randomness, strict=True):
            state, info = self.move(self.target, state, row, step_size)
            visited.append(state.position)
            is_finite = info.energy.isfinite() & state.position.isfinite().flatten(1).all(1)
            proposals = is_finite if info.is_finite is None else info.is_finite
            facts.append((info.is_accepted.double().mean(), (~proposals).sum(), is_finite))
        positions.copy_(torch.stack(visited))
        return state, [torch.stack(fact) for fact in zip(*facts, strict=True)]

    def _compiled(self, method: Callable[..., Any]) -> Callable[..., Any]:
        function = method.__func__  # type: ignore[attr-defined]
        # torch keeps compiled code by code object; that of a copy is freed with it
        code = function.__code__.replace()
        copied = types.FunctionType(code, function.__globals__, function.__name__)
        compiled = torch.compile(
            types.MethodType(copied, self),
            fullgraph=True,
            dynamic=False,
            options={"cpp_wrapper": True},
        )
        is_first = True

        def explained(*arguments: Any) -> Any:
            nonlocal is_first
            began = time.perf_counter()
            try:
                return compiled(*arguments)
            except compile_error() as failed:
                raise ConfigError(
                    "compile: torch cannot compile this energy as one function:"
                    f" {str(failed).strip().splitlines()[0]}",
                    "write it with functions of torch alone, or leave compile out",
                ) from failed
            finally:
                self.compile_seconds += is_first * (time.perf_counter() - began)
                is_first = False

        return explained


def _by_generator(kernel: Kernel) -> Kernel:
    """Return a kernel whose random numbers are the generator that draws them."""

    def draw(n: int, position: Tensor, generator: Generator, out: Any = None) -> Any:
        return ((generator,) * n,)

    def move(target: EnergyFn, state: Any, randomness: Any, step_size: Any) -> tuple[Any, Info]:
        return kernel.step(target, state, *randomness)

    return kernel._replace(draw=draw, move=move)
