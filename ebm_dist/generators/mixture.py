"""A mixture of Gaussians fitted to the data: noise near data of many dimensions.

Of x = m + P z + r, with z along the R leading principal directions P and r across them,

    q_sigma(x) = N(r; 0, (t^2 + sigma^2) I) sum_j w_j N(z; mu_j, C_j + sigma^2 I)

is also the density of ``x + sigma n``, exactly, for all sigma at once: with large noise nearly that
of the data. So an energy of noise levels may start from it (``objective.base`` of score matching).
C_j has A principal axes of its own, and the same variance along all others (Tipping & Bishop 1999).

The fit needs averages over the training data only. Means are those of a vector quantiser, each
split along the direction of its largest variance (Linde, Buzo & Gray 1980), and covariances those
around the nearest mean, which shrink towards what they have in common.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebm_dist.config import NonNegative, PositiveInt, section
from ebm_dist.energies import Average
from ebm_dist.errors import ConfigError
from ebm_dist.generators import FlowModel

HAS_DENSITY, LEARNS, IS_KNOWN_UNDER_NOISE = True, False, True
_SWEEPS = 5  # over the data after each splitting
_FEW = 1e-12  # no share of samples is less
_LEAST = 1e-6  # of a variance, in units of the largest


@section
class Config:
    num_components: PositiveInt = 256
    """Gaussians K, a power of 2."""
    num_directions: PositiveInt = 150
    """Principal directions R in which they differ, or the size of a sample if that is less."""
    num_axes: PositiveInt = 20
    """Principal axes A of each Gaussian, or R if that is less."""
    shrinkage: NonNegative = 0.1
    """Weight of the common covariance, in units of the mean number of samples of a Gaussian."""


class Mixture(FlowModel):
    """The density; N(0, I) before :meth:`initialise`. A latent is a choice, and noise."""

    centre: Tensor
    directions: Tensor
    rest: Tensor
    weights: Tensor
    means: Tensor
    axes: Tensor
    shifts: Tensor
    variances: Tensor
    others: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        n, k = math.prod(shape), config.num_components
        if k & (k - 1):
            raise ConfigError(f"generator: {k} Gaussians", "set num_components to a power of 2")
        r = min(config.num_directions, n)
        a = min(config.num_axes, r)
        self.shape, self.latent_size, self.shrinkage = shape, 1 + n, config.shrinkage
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("directions", torch.eye(n, r))
        self.register_buffer("rest", torch.ones(()))  # t^2
        self.register_buffer("weights", torch.full((k,), 1 / k))
        self.register_buffer("means", torch.zeros(k, r))
        self.register_buffer("axes", torch.eye(r, a)[:, None].repeat(1, k, 1))
        self.register_buffer("shifts", torch.zeros(k, a))  # of the means, along the axes
        self.register_buffer("variances", torch.ones(k, a))  # along the axes
        self.register_buffer("others", torch.ones(k))  # across them

    def smoothed(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return ``log q_sigma(x)`` in nats for ``x (B, *shape)`` and ``sigma (B,)``."""
        d, noise = x.flatten(1) - self.centre, sigma[:, None] ** 2
        z = d @ self.directions
        (r, k, a), n = self.axes.shape, d.shape[1]
        along = (z @ self.axes.flatten(1)).view(-1, k, a) - self.shifts
        terms = _terms(along**2, self.variances + noise[:, None], 1).sum(dim=2)
        if r > a:
            distance = (z**2).sum(dim=1, keepdim=True) - 2 * z @ self.means.T
            other = distance + (self.means**2).sum(dim=1) - (along**2).sum(dim=2)
            terms = terms + _terms(other, self.others + noise, r - a)
        if n > r:
            across = ((d - z @ self.directions.T) ** 2).sum(dim=1, keepdim=True)
            terms = terms + _terms(across, self.rest + noise, n - r)
        return (self.weights.log() - terms / 2).logsumexp(dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.smoothed(x, torch.zeros_like(x.flatten(1)[:, 0]))

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        share, n = torch.special.ndtr(z[:, 0].double()), z[:, 1:]
        total = self.weights.double().cumsum(0)
        j = torch.searchsorted(total, share * total[-1]).clamp(max=len(total) - 1)
        inside, axes = n @ self.directions, self.axes[:, j]
        along = torch.einsum("br,rba->ba", inside, axes)
        other = self.others[j, None].sqrt()
        change = along * (self.variances[j].sqrt() - other)
        moved = self.means[j] + other * inside + torch.einsum("rba,ba->br", axes, change)
        x = self.centre + self.rest.sqrt() * n
        x = x + (moved - self.rest.sqrt() * inside) @ self.directions.T
        x = x.view(-1, *self.shape)
        return x, self.log_prob(x)

    @torch.no_grad()
    def initialise(self, average: Average) -> None:
        n, r = self.directions.shape
        centre = average(lambda x: x.flatten(1))

        def products(x: Tensor) -> Tensor:
            d = x.flatten(1) - centre
            return (d.T @ d)[None]

        values, vectors = torch.linalg.eigh(average(products))
        least = _LEAST * values[-1]
        self.centre.copy_(centre)
        self.directions.copy_(vectors[:, -r:].flip(1))
        self.rest.copy_((values[: n - r].sum() / max(n - r, 1)).clamp(min=least))
        means = self._quantised(average, values[-r:].flip(0))
        self._fill(means, average, least)

    def _quantised(self, average: Average, variances: Tensor) -> Tensor:
        """Return means ``(K, R)``, to one of which each sample is near."""
        means, variances = torch.zeros_like(variances)[None], variances[None]
        while len(means) < len(self.weights):
            largest, at = variances.max(dim=1, keepdim=True)
            half = torch.zeros_like(means).scatter(1, at, largest.clamp(min=0).sqrt() / 2)
            means = torch.cat([means - half, means + half])
            for _ in range(_SWEEPS):
                counts, first, second = self._moments(average, means, lambda z: z**2)
                mean = first / counts.clamp(min=_FEW)
                means = torch.where(counts > 0, mean, means)
                variances = second / counts.clamp(min=_FEW) - mean**2
        return means

    def _fill(self, means: Tensor, average: Average, least: Tensor) -> None:
        """Set the Gaussians around the means."""
        r, k, a = self.axes.shape
        counts, first, second = self._moments(average, means, lambda z: z[:, :, None] * z[:, None])
        means = torch.where(counts > 0, first / counts.clamp(min=_FEW), means)
        products = (means[:, :, None] * means[:, None]).flatten(1)
        spread, few = second - counts * products, max(self.shrinkage / k, _FEW)
        covariances = (spread + few * spread.sum(dim=0)) / (counts + few)
        values, vectors = torch.linalg.eigh(covariances.view(k, r, r))
        values = values.clamp(min=least)
        self.weights.copy_(counts[:, 0])
        self.means.copy_(means)
        self.axes.copy_(vectors[:, :, r - a :].transpose(0, 1))
        self.shifts.copy_(torch.einsum("kr,rka->ka", self.means, self.axes))
        self.variances.copy_(values[:, r - a :])
        self.others.copy_(values[:, : r - a].sum(dim=1) / max(r - a, 1))

    def _moments(
        self, average: Average, means: Tensor, second: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the share of the samples nearest to each mean, ``(K, 1)``, and sums over them.

        These are of ``z``, ``(K, R)``, and of ``second(z)``, in parts of the mean over all samples.
        """
        means, centre, directions = (v.float().cpu() for v in (means, self.centre, self.directions))

        def sums(x: Tensor) -> Tensor:
            z = (x.flatten(1).float() - centre) @ directions
            nearest = ((means**2).sum(dim=1) - 2 * z @ means.T).argmin(dim=1)
            rows = torch.cat([z.new_ones(len(z), 1), z, second(z).flatten(1)], dim=1).double()
            return rows.new_zeros(len(means), rows.shape[1]).index_add(0, nearest, rows)[None]

        every = average(sums)
        return every[:, :1], every[:, 1 : 1 + means.shape[1]], every[:, 1 + means.shape[1] :]


def _terms(square: Tensor, variance: Tensor, count: int) -> Tensor:
    """Return ``|x|^2 / v + count log 2 pi v``."""
    return square / variance + count * (2 * math.pi * variance).log()


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    return Mixture(config, shape)
