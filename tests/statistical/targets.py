"""Distributions with known moments: energies, exact draws, and a map to what they look like when they are right."""

import itertools
import math

import torch
from scipy import stats

Z = stats.norm.isf(1e-4 / 2)
"""Two-sided, at 1e-4; seeds are fixed."""


def assert_moments(sample, mean, variance, kurtosis=3.0):
    """Mean and variance of independent rows of ``sample (n, d)`` against the exact ones; ``kurtosis`` of the exact distribution."""
    n = len(sample)
    z_mean = (sample.mean(0) - mean) / (variance / n) ** 0.5
    z_variance = (((sample - mean) ** 2).mean(0) / variance - 1) / ((kurtosis - 1) / n) ** 0.5
    worst = torch.stack([z_mean, z_variance]).abs().max()
    assert worst < Z, f"z of the means {z_mean.tolist()}, of the variances {z_variance.tolist()}"


def assert_standard_normal(u):
    """Means, variances, correlations."""
    assert_moments(u, torch.zeros(u.shape[1]), torch.ones(u.shape[1]))
    products = [u[:, i] * u[:, j] for i, j in itertools.combinations(range(u.shape[1]), 2)]
    if products:
        assert_moments(
            torch.stack(products, 1),
            torch.zeros(len(products)),
            torch.ones(len(products)),
            kurtosis=9.0,
        )


def assert_counts(index, probabilities):
    """Chi-squared of the counts of ``index``; cells expected fewer than 5 times are taken together."""
    n = len(index)
    counts, expected = (
        torch.bincount(index, minlength=len(probabilities)).double(),
        probabilities.double() * n,
    )
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert ((counts > 0) & (expected == 0)).sum() == 0
    p = stats.chisquare(counts.numpy(), (expected / expected.sum() * n).numpy()).pvalue
    assert p > 1e-4, f"p = {p:.1e}"


class Gaussian:
    """Condition number 100 in four dimensions, not along the axes, not centred."""

    def __init__(self):
        self.deviation = torch.tensor([1.0, 0.5, 0.2, 0.1])
        self.axes, _ = torch.linalg.qr(
            torch.tensor([[1.0, 2, 0, 1], [0, 1, 1, -1], [2, 0, 1, 0], [1, -1, 0, 3]])
        )
        self.mean = torch.tensor([0.5, -0.3, 0.1, 0.2])

    def __call__(self, x):
        return (self.whiten(x) ** 2).sum(1) / 2

    def whiten(self, x):
        return (x - self.mean) @ self.axes / self.deviation

    def draw(self, n, generator):
        return (torch.randn(n, 4, generator=generator) * self.deviation) @ self.axes.T + self.mean


class Banana:
    """x1 ~ N(0, 1), x2 | x1 ~ N((x1^2 - 1) / 2, 1/4) (Haario et al. 1999)."""

    def __call__(self, x):
        return (self.whiten(x) ** 2).sum(1) / 2

    def whiten(self, x):
        return torch.stack([x[:, 0], 2 * x[:, 1] - x[:, 0] ** 2 + 1], dim=1)

    def draw(self, n, generator):
        u = torch.randn(n, 2, generator=generator)
        return torch.stack([u[:, 0], (u[:, 0] ** 2 - 1 + u[:, 1]) / 2], dim=1)


class EightGaussians:
    """Equal modes on a circle of ``radius``, each with ``deviation``."""

    def __init__(self, radius=2.0, deviation=0.5, num_modes=8):
        angle = torch.arange(num_modes) * 2 * math.pi / num_modes
        self.centres = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        self.radius, self.deviation, self.num_modes = radius, deviation, num_modes

    def __call__(self, x):
        return -torch.logsumexp(
            -((x[:, None] - self.centres) ** 2).sum(2) / (2 * self.deviation**2), dim=1
        )

    def modes(self, x):
        return torch.cdist(x, self.centres).argmin(dim=1)

    def draw(self, n, generator):
        mode = torch.randint(self.num_modes, (n,), generator=generator)
        return self.centres[mode] + self.deviation * torch.randn(n, 2, generator=generator)


class Ising:
    """A 4x4 lattice on a torus in a field: E = -J sum_<ij> s_i s_j - h sum_i s_i, s = 2x - 1; blocks of a checkerboard, or sites."""

    def __init__(self, coupling=0.3, field=0.1, sites=False):
        self.coupling, self.field = coupling, field
        colour = (torch.arange(4)[:, None] + torch.arange(4)) % 2
        self.blocks = (
            torch.eye(16, dtype=torch.bool).view(16, 4, 4)
            if sites
            else torch.stack([colour == 0, colour == 1])
        )

    @property
    def num_blocks(self):
        return len(self.blocks)

    def __call__(self, x):
        s = 2 * x - 1
        pairs = s * (s.roll(1, 1) + s.roll(1, 2))
        return -self.coupling * pairs.sum((1, 2)) - self.field * s.sum((1, 2))

    def resample(self, block, x, generator):
        s = 2 * x - 1
        around = s.roll(1, 1) + s.roll(-1, 1) + s.roll(1, 2) + s.roll(-1, 2)
        p = torch.sigmoid(2 * (self.coupling * around + self.field))
        return torch.where(
            self.blocks[block], (torch.rand(x.shape, generator=generator) < p).float(), x
        )

    @staticmethod
    def states():
        """``(65536, 4, 4)``"""
        return (torch.arange(1 << 16)[:, None] >> torch.arange(16) & 1).float().view(-1, 4, 4)
