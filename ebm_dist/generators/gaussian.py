"""A Gaussian with a learnt mean and covariance: the simplest flow.

It is the simplest noise for noise contrastive estimation (Gutmann & Hyvarinen 2010).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ebm_dist.config import section
from ebm_dist.generators import FlowModel, standard_normal

HAS_DENSITY = True


@section
class Config:
    covariance: Literal["full", "diagonal"] = "full"
    """``full``, or ``diagonal`` for many dimensions: independent variables."""


class Gaussian(FlowModel):
    """``x = mean + L z``, ``L`` lower triangular; ``log_diagonal`` is the log of its diagonal.

    Below the diagonal ``L`` is 0 if the covariance is diagonal.
    """

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        n = math.prod(shape)
        self.shape, self.latent_size = shape, n
        self.mean, self.log_diagonal = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
        self.below: nn.Parameter | None = None
        if config.covariance == "full":
            self.below = nn.Parameter(torch.zeros(n, n))

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        below = self.below
        moved = z * self.log_diagonal.exp() if below is None else z @ self._root(below).T
        log_prob = standard_normal(z) - self.log_diagonal.sum()
        return (self.mean + moved).view(-1, *self.shape), log_prob

    def log_prob(self, x: Tensor) -> Tensor:
        d = x.flatten(1) - self.mean
        if self.below is None:
            z = d * (-self.log_diagonal).exp()
        else:
            z = torch.linalg.solve_triangular(self._root(self.below), d.T, upper=False).T
        return standard_normal(z) - self.log_diagonal.sum()

    def _root(self, below: Tensor) -> Tensor:
        return below.tril(-1) + torch.diag(self.log_diagonal.exp())


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    return Gaussian(config, shape)
