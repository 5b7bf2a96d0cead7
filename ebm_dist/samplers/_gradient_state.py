"""State of exact samplers that use the gradient: position, energy and score."""

from typing import NamedTuple

from torch import Tensor

from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import where_accepted


class State(NamedTuple):
    """Positions of the chains, and the target's energy and score there."""

    position: Tensor
    """``(B, *shape)``"""
    energy: Tensor
    """``(B,)`` at the positions"""
    score: Tensor
    """``(B, *shape)`` at the positions"""

    @property
    def is_finite(self) -> Tensor:
        """``(B,)``: whether energy and score are finite."""
        return self.energy.isfinite() & self.score.isfinite().flatten(1).all(1)


def init(target: EnergyFn, position: Tensor) -> State:
    """Evaluate the target at positions ``(B, *shape)``."""
    return State(position, *score(target, position))


def select(is_accepted: Tensor, proposal: State, state: State) -> State:
    """Take the proposal where ``is_accepted (B,)``, else keep the state ``(B, *shape)``."""
    return State(
        *(where_accepted(is_accepted, new, old) for new, old in zip(proposal, state, strict=True))
    )
