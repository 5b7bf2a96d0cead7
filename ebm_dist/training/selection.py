"""Early stopping: the averages with the lowest loss on the validation split (Prechelt 1998)."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ebm_dist.chains.replay import ReplayShard
from ebm_dist.objectives import Batch, Objective, StepContext
from ebm_dist.rng import stream
from ebm_dist.training import state
from ebm_dist.training.reporter import Row

_PART = 1000  # samples of a forward pass: more would need the memory of all activations


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
        objective, losses = self.build(averages), []
        x, y = self.held_out
        count = -(-len(x) // _PART)
        for number, part in enumerate(
            zip(x.tensor_split(count), y.tensor_split(count), strict=True)
        ):
            context = StepContext(step, replay, averages, partial(self._stream, number))
            turns = objective.turns(Batch(*part), context)
            loss = next((t.loss.item() for t in turns if t.player == "energy"), math.nan)
            losses.append(loss * len(part[0]) / len(x))
        self.last = sum(losses)
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

    def _stream(self, number: int, purpose: str) -> torch.Generator:
        return stream(self.seed, f"held-out/{purpose}", number, device=self.held_out.x.device)
