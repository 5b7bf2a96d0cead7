"""A Gaussian with a learnt mean and covariance: the simplest flow.

It is the simplest noise for noise contrastive estimation (Gutmann & Hyvarinen 2010).
"""

import math

import torch
from torch import Tensor, nn

from ebm_dist.config import section
from ebm_dist.generators import FlowModel, standard_normal

HAS_DENSITY = True


@section
class Config:
    pass


class Gaussian(FlowModel):
    """``x = mean + L z``, ``L`` lower triangular; ``log_diagonal`` is the log of its diagonal."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        n = math.prod(shape)
        self.shape, self.latent_size = shape, n
        self.mean, self.log_diagonal = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
        self.below = nn.Parameter(torch.zeros(n, n))

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (self.mean + z @ self._root().T).view(-1, *self.shape), standard_normal(
            z
        ) - self.log_diagonal.sum()

    def log_prob(self, x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(self._root(), (x.flatten(1) - self.mean).T, upper=False).T
        return standard_normal(z) - self.log_diagonal.sum()

    def _root(self) -> Tensor:
        return self.below.tril(-1) + torch.diag(self.log_diagonal.exp())


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    return Gaussian(shape)
