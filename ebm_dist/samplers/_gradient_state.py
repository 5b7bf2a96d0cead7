"""The state of exact samplers that use the gradient: energy and score are kept with the position."""

from typing import NamedTuple

from torch import Tensor

from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import where_accepted


class State(NamedTuple):
    """Chains, and what the next step needs of the target at their positions."""

    position: Tensor
    """``(B, *shape)``"""
    energy: Tensor
    """``(B,)`` at the position"""
    score: Tensor
    """``(B, *shape)`` at the position"""

    @property
    def is_finite(self) -> Tensor:
        """Whether energy and score are finite, ``(B,)``."""
        return self.energy.isfinite() & self.score.isfinite().flatten(1).all(1)


def init(target: EnergyFn, position: Tensor) -> State:
    """Evaluate the target at positions ``(B, *shape)``."""
    return State(position, *score(target, position))


def select(is_accepted: Tensor, proposal: State, state: State) -> State:
    """Take the proposal where ``is_accepted (B,)``, else keep the state ``(B, *shape)``."""
    return State(
        *(where_accepted(is_accepted, new, old) for new, old in zip(proposal, state, strict=True))
    )
