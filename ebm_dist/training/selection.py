"""Early stopping: the averages with the lowest loss on the validation split (Prechelt 1998)."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ebm_dist.chains.replay import ReplayShard
from ebm_dist.objectives import Batch, Objective, StepContext
from ebm_dist.rng import stream
from ebm_dist.training import state
from ebm_dist.training.reporter import Row


class Selection:
    """The best averages so far.

    Noise and other random numbers of the loss are the same at each measurement, and every rank
    computes the same bits. ``build`` makes an objective with these networks as its players.
    """

    def __init__(
        self, build: Callable[[Mapping[str, nn.Module]], Objective], held_out: Batch, seed: int
    ) -> None:
        self.build, self.held_out, self.seed = build, held_out, seed
        self.loss, self.last, self.best = math.inf, math.nan, dict[str, Tensor]()

    def measure(self, step: int, averages: Mapping[str, nn.Module], replay: ReplayShard) -> None:
        """Measure the loss of the averages after ``step`` steps; keep them if it is the lowest.

        It is NaN while the energy does not learn yet.
        """
        context = StepContext(step, replay, averages, self._stream)
        turns = self.build(averages).turns(self.held_out, context)
        self.last = next((turn.loss.item() for turn in turns if turn.player == "energy"), math.nan)
        if self.last < self.loss:
            named = state.named(averages)
            self.loss, self.best = self.last, {name: value.clone() for name, value in named.items()}

    @property
    def row(self) -> Row:
        """Return the last loss as a metric; empty while there is none."""
        return {} if math.isnan(self.last) else {"loss_held_out": self.last}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint: tensors by name."""
        losses = torch.tensor([self.loss, self.last], dtype=torch.float64)
        return {"losses": losses} | {f"best.{name}": value for name, value in self.best.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state of a checkpoint."""
        self.loss, self.last = tensors["losses"].tolist()
        self.best = state.of_player(tensors, "best")

    def _stream(self, purpose: str) -> torch.Generator:
        return stream(self.seed, f"held-out/{purpose}", device=self.held_out.x.device)
