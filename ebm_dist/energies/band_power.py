"""A network beside a heavy-tailed model of how much variation an image has on each scale, in brightness and in colour.

The powers of the bands of a Laplacian pyramid (Burt & Adelson 1983) are what natural images share (Field 1987); the filters and
marginals are those of FRAME (Zhu, Wu & Mumford 1998), made into a Student-t expert beside the network (Hinton 2002):

    E(x) = E_network(x) + weight * log(1 + d(x)^2 / K),    d^2 = (s(x) - m)^T C^-1 (s(x) - m),

with ``s`` the logarithms of ``K`` band powers, ``m`` and ``C`` their mean and covariance over the training data. Chains seldom see
what is too smooth or too rough, so a network alone learns little about it; there the second term rises on either side.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_dist.config import Mismatch, Params, Positive, module_of, plugin, section
from ebm_dist.energies import Average, EnergyModel
from ebm_dist.errors import ConfigError

_RIDGE = 1e-3  # added to the variances of the logarithms, which are about 1


@section
class Config:
    network: Any = plugin("energies")
    """The energy beside it."""
    weight: Positive = 0.3
    """Of the model of band powers."""
    floor: Positive = 1e-5
    """Added to each power, in squared units of the data: what is far below it counts alike. One 8-bit step squared is 1.5e-5."""

    def check(self, params: Params) -> None:
        if getattr(module_of(self.network), "IS_CLASSIFIER", False):
            raise Mismatch(
                "energy.network",
                "a classifier's energies of classes have no second term; use mlp, convnet or resnet",
            )
        if check := getattr(self.network, "check", None):
            check(dataclasses.replace(params, energy=self.network))


class BandPower(EnergyModel):
    """Before :meth:`initialise` the second term is constant."""

    mean: Tensor
    precision: Tensor

    def __init__(self, config: Config, network: EnergyModel, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.weight, self.floor = network, config.weight, config.floor
        num_powers = log_powers(torch.zeros(1, *shape), config.floor).shape[1]
        self.register_buffer("mean", torch.zeros(num_powers))
        self.register_buffer("precision", torch.zeros(num_powers, num_powers))

    def initialise(self, average: Average) -> None:
        """Mean and precision of the logarithms, from the training data."""
        self.network.initialise(average)
        mean = average(lambda x: log_powers(x, self.floor))

        def products(x: Tensor) -> Tensor:
            d = log_powers(x, self.floor) - mean
            return d[:, :, None] * d[:, None, :]

        covariance = average(products)
        self.mean.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance + _RIDGE * torch.eye(len(mean))))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        d = log_powers(x, self.floor) - self.mean
        distance = ((d @ self.precision) * d).mean(dim=1)
        energy: Tensor = self.network(x, y)
        return energy + self.weight * torch.log1p(distance)


def log_powers(x: Tensor, floor: float) -> Tensor:
    """``(B, K)`` of images ``(B, C, H, W)``: of the mean of the channels and their ``C - 1`` contrasts, those of each octave, and
    the variance of what is left at 2 to 3 pixels a side."""
    colours, powers = contrasts(x), []
    while min(colours.shape[2:]) > 3:
        coarse = F.avg_pool2d(colours, 2)
        smooth = F.interpolate(coarse, size=colours.shape[2:], mode="bilinear")
        powers.append((colours - smooth).square().mean(dim=(2, 3)))
        colours = coarse
    powers.append(colours.var(dim=(2, 3), correction=0))
    return (torch.cat(powers, dim=1) + floor).log()


def contrasts(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` to the same: the mean of the channels, then that of the first ``k`` less the next. Of red, green and blue:
    brightness, red against green, yellow against blue."""
    first = [x[:, :k].mean(dim=1) for k in range(1, x.shape[1] + 1)]
    return torch.stack(
        [first[-1], *(mean - x[:, k + 1] for k, mean in enumerate(first[:-1]))], dim=1
    )


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    if len(shape) != 3:
        raise ConfigError(
            f"energy: samples of shape {shape} are no images, which alone have octaves; set energy.name: mlp"
        )
    network = module_of(config.network).build(config.network, shape=shape, num_classes=num_classes)
    return BandPower(config, network, shape)
