"""Adam or gradient descent, the learning rate of each step, and the moving average of weights.

The only state is the moments and averages, which checkpoints save.
"""

import copy
from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    Params,
    Positive,
    Probability,
    section,
)


@section
class Config:
    method: Literal["adam", "sgd"] = "adam"
    """``adam`` (Kingma & Ba 2015), or ``sgd``: gradient descent with momentum."""
    lr: Positive = 1e-4
    """Learning rate on the plateau."""
    lr_factors: dict[str, Positive] = field(default_factory=dict)
    """Factors of the learning rate by player: ``{generator: 0.5}``."""
    momentum: Probability = 0.0
    """Momentum of ``sgd``, the share of the velocity kept per step; ``adam`` has ``betas``."""
    betas: tuple[Probability, Probability] = (0.0, 0.999)
    """Decay of Adam's two moments. Du & Mordatch 2019 use no momentum (0.0): persistent chains
    oscillate with momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on the weights, added to the gradient."""
    anchor_weight: NonNegative = 0.0
    """L2 penalty on the distance of a player's weights to those after the previous task, added to
    the gradient; with ``train.num_tasks``."""
    warmup: Probability = 0.0
    """Share of the training over which the learning rate rises linearly from 0."""
    decay: Probability = 0.5
    """Share of the training, at its end, over which the learning rate falls linearly to 0."""
    max_grad_norm: Positive | None = None
    """Maximum Euclidean norm of a gradient, over all weights of a player; null: no clipping."""
    ema_decay: Probability = 0.99
    """Decay of the moving average of the weights, which samples and evaluations use; 0: the last
    weights."""

    added_keys = ("anchor_weight",)

    def check(self, params: Params) -> None:
        players = ["energy", *params.objective.other_players]
        if unknown := set(self.lr_factors) - set(players):
            raise Mismatch(
                "optimizer.lr_factors",
                f"no player {', '.join(sorted(unknown))}; players: {', '.join(players)}",
            )
        if self.anchor_weight and params.train.num_tasks == 1:
            raise Mismatch(
                "optimizer.anchor_weight",
                "holds the weights of the previous task, and train.num_tasks is 1; set it to 0",
            )
        if self.momentum and self.method == "adam":
            raise Mismatch("optimizer.momentum", "adam has betas; set method: sgd, or momentum: 0")


def learning_rate(config: Config, step: int, num_steps: int) -> float:
    """Return the rate of a step: linear warm-up, plateau, linear decay to 0 at ``num_steps``."""
    done = (step + 0.5) / num_steps
    rise = done / config.warmup if config.warmup else 1.0
    fall = (1.0 - done) / config.decay if config.decay else 1.0
    return config.lr * min(1.0, rise, fall)


def optimizer(config: Config, player: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a player. The trainer sets its learning rate in each step."""
    if config.method == "sgd":
        return torch.optim.SGD(
            player.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.Adam(
        player.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def assign_gradient(player: nn.Module, gradient: Tensor) -> None:
    """Assign each parameter its slice of a flat gradient ``(num_parameters,)``."""
    parameters = list(player.parameters())
    for parameter, piece in zip(
        parameters, gradient.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = laid_out_as(parameter, piece.view_as(parameter))


def laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a value, of the parameter's shape, with its strides.

    Fused Adam iterates over the memory of both, and on a CPU it does not check their strides.
    """
    return (
        value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)
    )


def average_of(player: nn.Module) -> nn.Module:
    """Copy a player, to hold the moving average of its weights."""
    return copy.deepcopy(player).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, player: nn.Module, decay: float, step: int) -> None:
    """Update ``average <- d average + (1 - d) weights``.

    ``d`` rises to ``decay`` over the first steps, so that the initial weights lose influence fast.
    """
    d = min(decay, (1 + step) / (10 + step))
    average_weights: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(player.parameters())
    torch._foreach_lerp_(average_weights, weights, 1.0 - d)
    for average_buffer, buffer in zip(average.buffers(), player.buffers(), strict=True):
        average_buffer.copy_(buffer)
