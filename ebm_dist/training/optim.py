"""Adam or gradient descent, its learning rate as a function of the step, and the moving average of the weights.

Nothing here has a state besides the moments, so nothing else is in a checkpoint.
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
    """Learning rate."""
    lr_factors: dict[str, Positive] = field(default_factory=dict)
    """Of players that learn at another: ``{generator: 0.5}``."""
    momentum: Probability = 0.0
    """Of ``sgd``: the velocity that is kept from one step to the next; ``adam`` has ``betas``."""
    betas: tuple[Probability, Probability] = (0.0, 0.999)
    """Decay of Adam's two moments. Du & Mordatch use no momentum (0.0): persistent chains and momentum oscillate."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on the weights, added to the gradient."""
    warmup: Probability = 0.0
    """Share of the training over which the learning rate rises linearly from 0."""
    decay: Probability = 0.5
    """Share of the training, at its end, over which the learning rate falls linearly to 0."""
    max_grad_norm: Positive | None = None
    """Gradients of a larger Euclidean norm, over all weights of a player, are scaled down to it."""
    ema_decay: Probability = 0.99
    """Decay of the moving average of the weights, which samples and evaluations use; 0 to use the last weights."""

    def check(self, params: Params) -> None:
        players = ["energy", *params.objective.other_players]
        if unknown := set(self.lr_factors) - set(players):
            raise Mismatch(
                "optimizer.lr_factors",
                f"no player {', '.join(sorted(unknown))}; there: {', '.join(players)}",
            )
        if self.momentum and self.method == "adam":
            raise Mismatch("optimizer.momentum", "adam has betas; set method: sgd, or momentum: 0")


def learning_rate(config: Config, step: int, num_steps: int) -> float:
    """Trapezium: linear warm-up, plateau, linear decay to 0 at ``num_steps``."""
    done = (step + 0.5) / num_steps
    rise = done / config.warmup if config.warmup else 1.0
    fall = (1.0 - done) / config.decay if config.decay else 1.0
    return config.lr * min(1.0, rise, fall)


def optimizer(config: Config, player: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a player; its rate is set anew in each step, by :func:`learning_rate`."""
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
    """Give each parameter its slice of a flat gradient. ``(num_parameters,)``."""
    parameters = list(player.parameters())
    for parameter, piece in zip(
        parameters, gradient.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = laid_out_as(parameter, piece.view_as(parameter))


def laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value of the parameter's shape with its strides: fused Adam goes through the memory of both, on a CPU without a look."""
    return (
        value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)
    )


def average_of(player: nn.Module) -> nn.Module:
    """A copy of the player to hold the moving average of its weights."""
    return copy.deepcopy(player).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, player: nn.Module, decay: float, step: int) -> None:
    """``average <- d average + (1 - d) weights``; ``d`` rises to ``decay``, so that the first weights are soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(player.parameters())
    torch._foreach_lerp_(ours, theirs, 1.0 - d)
    for own, new in zip(average.buffers(), player.buffers(), strict=True):
        own.copy_(new)
