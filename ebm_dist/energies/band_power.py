"""A network plus a heavy-tailed model of an image's power in each frequency band.

Natural images have similar powers in the bands of a Laplacian pyramid (Burt & Adelson 1983; Field
1987). Filters and marginals are those of FRAME (Zhu, Wu & Mumford 1998), as a Student-t expert that
is multiplied with the network's density (Hinton 2002):

    E(x) = E_network(x) + weight * log(1 + d(x)^2 / K),    d^2 = (s(x) - m)^T C^-1 (s(x) - m),

with ``s`` the logarithms of ``K`` band powers of brightness and colour, and ``m`` and ``C`` their
mean and covariance over the training data. Chains seldom visit images that are too smooth or too
rough, so a network alone learns little about them. The second term is high for both.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_dist.config import Mismatch, Params, Positive, module_of, plugin, section
from ebm_dist.energies import Average, EnergyModel
from ebm_dist.energies._layers import check_images

_RIDGE = 1e-3  # added to the variances of the log powers, which are about 1


@section
class Config:
    network: Any = plugin("energies")
    """Energy to which the model of band powers is added: its name and settings."""
    weight: Positive = 0.3
    """Weight of the model of band powers."""
    floor: Positive = 1e-5
    """Added to each power, in squared units of the data. Powers far below it count as equal. The
    square of one 8-bit step is 1.5e-5."""

    def check(self, params: Params) -> None:
        if getattr(module_of(self.network), "IS_CLASSIFIER", False):
            raise Mismatch(
                "energy.network",
                "a classifier has one energy per class, to which no term can be added",
                "use mlp, convnet or resnet",
            )
        if check := getattr(self.network, "check", None):
            check(dataclasses.replace(params, energy=self.network))


class BandPower(EnergyModel):
    """``E_network(x) + weight * log(1 + d^2 / K)``; before :meth:`initialise`, ``d`` is 0."""

    mean: Tensor
    precision: Tensor

    def __init__(self, config: Config, network: EnergyModel, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.weight, self.floor = network, config.weight, config.floor
        num_powers = log_powers(torch.zeros(1, *shape), config.floor).shape[1]
        self.register_buffer("mean", torch.zeros(num_powers))
        self.register_buffer("precision", torch.zeros(num_powers, num_powers))

    def initialise(self, average: Average) -> None:
        """Compute mean and precision of the log powers from the training data."""
        self.network.initialise(average)
        mean = average(lambda x: log_powers(x, self.floor))

        def products(x: Tensor) -> Tensor:
            deviation = log_powers(x, self.floor) - mean
            return deviation[:, :, None] * deviation[:, None, :]

        covariance = average(products)
        self.mean.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance + _RIDGE * torch.eye(len(mean))))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        deviation = log_powers(x, self.floor) - self.mean
        distance = ((deviation @ self.precision) * deviation).mean(dim=1)
        energy: Tensor = self.network(x, y)
        return energy + self.weight * torch.log1p(distance)


def log_powers(x: Tensor, floor: float) -> Tensor:
    """Return the logarithms ``(B, K)`` of the band powers of images ``(B, C, H, W)``.

    The bands are the octaves of the mean of the channels and of their ``C - 1`` contrasts. The last
    band is the variance of the rest, which has 2 or 3 pixels a side.
    """
    colours, powers = contrasts(x), []
    while min(colours.shape[2:]) > 3:
        coarse = F.avg_pool2d(colours, 2)
        smooth = F.interpolate(coarse, size=colours.shape[2:], mode="bilinear")
        powers.append((colours - smooth).square().mean(dim=(2, 3)))
        colours = coarse
    powers.append(colours.var(dim=(2, 3), correction=0))
    return (torch.cat(powers, dim=1) + floor).log()


def contrasts(x: Tensor) -> Tensor:
    """Return brightness and colour contrasts ``(B, C, H, W)`` of images of the same shape.

    The first is the mean of all channels. The others are the mean of the first ``k`` channels minus
    the next channel. For red, green and blue: brightness, red - green, yellow - blue.
    """
    means = [x[:, :k].mean(dim=1) for k in range(1, x.shape[1] + 1)]
    return torch.stack(
        [means[-1], *(mean - x[:, k + 1] for k, mean in enumerate(means[:-1]))], dim=1
    )


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    check_images("band_power", shape)
    network = module_of(config.network).build(config.network, shape=shape, num_classes=num_classes)
    return BandPower(config, network, shape)
