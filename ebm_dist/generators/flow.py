"""A normalising flow for vectors.

The transformations are affine couplings (RealNVP, Dinh et al. 2017) or rational splines (Durkan et
al. 2019).
"""

import math
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from ebm_dist.config import PositiveInt, section
from ebm_dist.generators import FlowModel, standard_normal

HAS_DENSITY = True


@section
class Config:
    kind: Literal["affine", "spline"] = "affine"
    """Kind of each transformation. ``affine``: one half of the dimensions is scaled and shifted by
    functions of the other half. ``spline``: monotone piecewise rational functions, one dimension
    after the other, which are more flexible and slower."""
    num_couplings: PositiveInt = 8
    """Number of transformations, applied in sequence."""
    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Width of each hidden layer in the network of each transformation."""


class Flow(FlowModel):
    """``z = f_n(... f_1(x))``; each ``f`` is invertible with a triangular Jacobian."""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        import zuko  # imported here, so that reading settings costs nothing

        self.shape, self.latent_size = shape, math.prod(shape)
        # scales are at most 5: unbounded ones give densities of exp(-10,000) between the modes
        affine = partial(zuko.transforms.MonotonicAffineTransform, slope=0.2)
        make_flow: Any = (
            partial(zuko.flows.RealNVP, univariate=affine)
            if config.kind == "affine"
            else zuko.flows.NSF
        )
        flow = make_flow(
            self.latent_size,
            transforms=config.num_couplings,
            hidden_features=config.hidden,
            activation=nn.SiLU,
        )
        self.transform = flow.transform

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.transform().inv.call_and_ladj(z)
        return x.view(-1, *self.shape), standard_normal(z) - log_det

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.transform().call_and_ladj(x.flatten(1))
        return standard_normal(z) + log_det  # type: ignore[no-any-return]


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    return Flow(config, shape)
