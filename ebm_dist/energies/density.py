"""The energy of a normalised model: ``E(x) = -log q(x)`` of a generator with a density, so Z = 1.

Flows and autoregressive networks are judged by the same suites as energies this way. They are what
Du & Mordatch 2019, Figures 10 and 11, compare with. Learnt by ``objective: maximum_likelihood``.
"""

from typing import Any

from torch import Tensor

from ebm_dist.config import Mismatch, Params, module_of, plugin, section
from ebm_dist.energies import Average, EnergyModel
from ebm_dist.errors import ConfigError

IS_NORMALISED = True


@section
class Config:
    generator: Any = plugin("generators")
    """Generator with a density: its name and settings."""

    def check(self, params: Params) -> None:
        generator = module_of(self.generator)
        if not hasattr(generator, "HAS_DENSITY") or not getattr(generator, "LEARNS", True):
            raise Mismatch(
                "energy.generator",
                "needs a density that learns: use gaussian, flow, glow, pixelcnn",
            )


class Density(EnergyModel):
    """``-log q(x)`` in nats."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        energy: Tensor = -self.generator.log_prob(x)
        return energy

    def initialise(self, average: Average) -> None:
        self.generator.initialise(average)


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    if num_classes:
        raise ConfigError(
            "energy: density has no labels", "choose another energy, or an objective without them"
        )
    return Density(module_of(config.generator).build(config.generator, shape=shape))
