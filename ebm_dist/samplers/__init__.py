"""Markov chain kernels. One file, one algorithm.

Each has a ``Config`` and a ``build(config, *, bounds) -> Kernel``. A kernel is a pair of pure
functions on batches of chains. *State* is what the next step needs, *Info* what a person reads.
Random numbers come from a generator argument. There is no loop over chains.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from ebm_dist import faults
from ebm_dist.energies import EnergyFn
from ebm_dist.errors import DivergedError

Bounds = tuple[float, float] | None
StepSize = float | Tensor
"""A number, or a tensor () where compiled code is used for several step sizes."""


class State(Protocol):
    """What a kernel carries from step to step; each kernel's state has the chains' positions."""

    @property
    def position(self) -> Tensor:
        """Positions ``(B, *shape)``."""


@runtime_checkable
class AdjustedState(State, Protocol):
    """State of a kernel that accepts or rejects."""

    @property
    def is_finite(self) -> Tensor:
        """``(B,)``: whether the energy, and the score if the kernel uses it, are finite."""


class Info(NamedTuple):
    """Facts about one step of each chain; all ``(B,)``."""

    energy: Tensor
    """Energy at the position where the kernel took the gradient."""
    score_norm: Tensor
    """Euclidean norm of the score ``-dE/dx`` at that position, before any clamp."""
    is_accepted: Tensor
    """Whether the proposal was accepted; always true for unadjusted samplers."""
    is_finite: Tensor | None = None
    """Whether energy and score of the proposal were finite; otherwise it is rejected. None if the
    sampler does not check."""


Randomness = tuple[Tensor, ...]
"""All random numbers of ``n`` steps of ``B`` chains: tensors ``(n, B, ...)``."""


class Draw(Protocol):
    """How a kernel draws its random numbers."""

    def __call__(
        self, n: int, position: Tensor, generator: Generator, out: Randomness | None = None
    ) -> Randomness:
        """Draw those of ``n`` steps, into ``out`` if it is not None."""


class Kernel(NamedTuple):
    """How chains start and step: ``init(target, x) -> state``, ``step(target, state, generator)``.

    A kernel whose steps need a fixed number of random numbers has ``draw`` and ``move``.
    """

    init: Callable[[EnergyFn, Tensor], Any]
    step: Callable[[EnergyFn, Any, Generator], tuple[Any, Info]]
    """Return the next state and info."""
    draw: Draw | None = None
    """``draw(n, position, generator, out)``: the random numbers of ``n`` steps, in the memory of
    earlier ones if ``out`` has them."""
    move: Callable[[EnergyFn, Any, Randomness, StepSize], tuple[Any, Info]] | None = None
    """``move(target, state, randomness, step_size)``: a step with random numbers ``(B, ...)``. It
    is deterministic and does not branch on values, so it can be compiled."""
    step_size: float | None = None
    """That of ``step``, for kernels with ``move``."""
    num_gradients: int = 1
    """Gradients that a step computes."""
    differentiable_step: Callable[[EnergyFn, Tensor, Tensor], Tensor] | None = None
    """``differentiable_step(target, x, noise)``: position after one step, with the graph of its
    gradient with respect to the target's parameters."""
    is_discrete: bool = False
    """Whether positions are 0 and 1, or one-hot categories, which no change of unit keeps."""

    @classmethod
    def of_move(
        cls,
        init: Callable[[EnergyFn, Tensor], Any],
        draw: Draw,
        move: Callable[[EnergyFn, Any, Randomness, StepSize], tuple[Any, Info]],
        step_size: float,
        num_gradients: int = 1,
        differentiable_step: Callable[[EnergyFn, Tensor, Tensor], Tensor] | None = None,
    ) -> "Kernel":
        """Build a kernel that steps by ``draw`` and ``move``."""

        def step(target: EnergyFn, state: Any, generator: Generator) -> tuple[Any, Info]:
            (randomness,) = zip(*draw(1, state.position, generator), strict=True)
            return move(target, state, randomness, step_size)

        return cls(init, step, draw, move, step_size, num_gradients, differentiable_step)


class ChainStats(NamedTuple):
    """Statistics of a run of chains, averaged over chains: scalars."""

    energy: Tensor
    """Mean energy at the last step."""
    score_norm: Tensor
    """Mean norm of the score at the last step."""
    acceptance_rate: Tensor
    """Share of accepted proposals over all steps."""
    distance: Tensor
    """Mean Euclidean distance from start to end."""


def noise(size: tuple[int, ...], bounds: Bounds, generator: Generator) -> Tensor:
    """Draw initial positions ``(*size,)``: uniform within bounds, else standard normal."""
    if bounds is None:
        return torch.randn(size, generator=generator, device=generator.device)
    low, high = bounds
    return torch.rand(size, generator=generator, device=generator.device) * (high - low) + low


def normal(n: int, x: Tensor, generator: Generator, out: Tensor | None = None) -> Tensor:
    """Draw standard normal numbers ``(n, *x.shape)``."""
    size = (n, *x.shape)
    return torch.randn(size, generator=generator, device=x.device, dtype=x.dtype, out=out)


def log_uniform(size: tuple[int, ...], generator: Generator, out: Tensor | None = None) -> Tensor:
    """Draw numbers ``(*size,)``: logs of uniform numbers, for :func:`accept_mask`."""
    uniform = torch.rand(size, generator=generator, device=generator.device, out=out)
    # 0 would accept any proposal; the smallest other draw of torch.rand is eps / 2
    return uniform.clamp_(min=torch.finfo(uniform.dtype).eps / 2).log_()


def accept_mask(log_ratio: Tensor, is_finite: Tensor, log_u: Tensor) -> Tensor:
    """Return which chains ``(B,)`` accept: those with ``log_u < log_ratio``.

    With ``log_u`` of :func:`log_uniform`, the probability is ``min(1, exp(log_ratio))``. Proposals
    that are not finite are rejected.
    """
    return is_finite & (log_u < log_ratio)  # false if the ratio is NaN


def where_accepted(is_accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return ``(B, *shape)``: ``new`` for chains with ``is_accepted (B,)``, else ``old``."""
    return torch.where(is_accepted.view(-1, *[1] * (new.ndim - 1)), new, old)


def reflect(x: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Mirror a straight path to ``x (B, *shape)`` at the bounds.

    Return its end and whether its direction is reversed there, both ``(B, *shape)``. The map keeps
    lengths and volumes and is reversible, so symmetric proposals stay symmetric (Neal 2011, section
    5.5.1).
    """
    low, high = bounds
    width = high - low
    folded = (x - low) % (2 * width)
    turned = folded > width
    mirrored = (low + torch.where(turned, 2 * width - folded, folded)).clamp(
        low, high
    )  # rounding may exceed a bound by one bit
    return torch.where((x < low) | (x > high), mirrored, x), turned


STEPPED: ContextVar[Callable[[], None]] = ContextVar("stepped", default=lambda: None)
"""Called after each step of chains, for progress"""


def check_start(state: State) -> None:
    """Check that chains that accept or reject can leave their start.

    Raise :class:`DivergedError` if one cannot: from an energy or score that is not finite, every
    proposal is rejected.
    """
    if not isinstance(state, AdjustedState) or state.is_finite.all():
        return
    raise DivergedError(
        f"{(~state.is_finite).sum()} of {len(state.is_finite)} chains start where the energy or"
        " its gradient is not finite, and would never move",
        "start the chains where the energy is finite, or train the model again with a smaller"
        " optimizer.lr",
    )


Observer = Callable[[int, State, Info], None]


def run_chain(
    kernel: Kernel,
    target: EnergyFn,
    position: Tensor,
    num_steps: int,
    generator: Generator,
    *,
    observe: Observer | None = None,
    checks_start: bool = True,
) -> tuple[Tensor, ChainStats]:
    """Run a batch of chains ``(B, *shape)``; return their positions and statistics.

    ``observe(step, state, info)`` is called after each step. Raise :class:`DivergedError` for
    starts that fail :func:`check_start`, unless ``checks_start`` is false. Freeze the target's
    parameters (:func:`ebm_dist.energies.frozen`), otherwise each step also computes their
    gradients.
    """
    with torch.no_grad():
        start, state, accepted = position, kernel.init(target, position), torch.zeros(())
        if checks_start:
            check_start(state)
        for step in range(num_steps):
            faults.point("chain.step")
            state, info = kernel.step(target, state, generator)
            STEPPED.get()()
            accepted = accepted + info.is_accepted.float().mean()
            if observe is not None:
                observe(step, state, info)
        distance = (state.position - start).flatten(1).norm(dim=1).mean()
        return state.position, ChainStats(
            info.energy.mean(), info.score_norm.mean(), accepted / num_steps, distance
        )
