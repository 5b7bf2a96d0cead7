"""Exactly known densities in the plane (Kumar et al. 2019, Figure 2; Gao et al. 2020, section 5.1).

Each density but ``checkerboard`` is a uniform mixture of isotropic Gaussians of one standard
deviation. Their centres are a few points or are densely spaced along a curve. The samples of a
split are fixed.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]

_SPIRAL = 500  # centres: at most one standard deviation apart, so ripples are below 1e-7


@section
class Config:
    density: Literal[
        "25gaussians", "8gaussians", "swissroll", "checkerboard", "spirals", "pinwheel"
    ] = "25gaussians"
    """``25gaussians``: a grid; ``8gaussians``: a ring; ``swissroll``: a spiral of one and a half
    turns; ``checkerboard``: eight squares; ``spirals``: two arms, which are two classes;
    ``pinwheel``: five blades, which are five classes."""
    scale: Positive = 1.0
    """Factor on all coordinates."""
    sd: Positive | None = None
    """Standard deviation of each Gaussian, not scaled; the default of the density if absent."""
    num_train: PositiveInt = 100000
    """Samples for learning."""
    num_test: PositiveInt = 10000
    """Samples for reporting; the validation split has as many."""


class Density(NamedTuple):
    """Mixture of Gaussians: ``p(x) = mean over centres of N(x; centre, sd^2 I)``."""

    centres: Array
    """``(k, 2)``"""
    sd: float
    mode: npt.NDArray[np.int64]
    """``(k,)`` mode of each centre: the centre itself, or one of equal pieces of a curve"""

    def log_prob(self, x: Array) -> Array:
        """Return ``log p(x)``, ``(n,)``, natural logarithms at ``x (n, 2)``."""
        parts: list[Array] = [
            logsumexp(-(self._distances(part) ** 2) / (2 * self.sd**2), axis=1)
            for part in np.array_split(x, len(x) // 5000 + 1)
        ]
        log_prob: Array = (
            np.concatenate(parts) - np.log(len(self.centres)) - np.log(2 * np.pi * self.sd**2)
        )
        return log_prob

    def nearest(self, x: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the mode of the centre nearest to each of ``x (n, 2)``, and its distance.

        Both are ``(n,)``. Distances are in standard deviations.
        """
        parts = [
            (distances.argmin(axis=1), distances.min(axis=1))
            for distances in map(self._distances, np.array_split(x, len(x) // 5000 + 1))
        ]
        centre = np.concatenate([index for index, _ in parts])
        return self.mode[centre], np.concatenate([distance for _, distance in parts]) / self.sd

    def draw(
        self, count: int, generator: np.random.Generator
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Draw samples ``(count, 2)`` and return them with the mode of each, ``(count,)``."""
        index = generator.integers(len(self.centres), size=count)
        return self.centres[index] + self.sd * generator.normal(size=(count, 2)), self.mode[index]

    def _distances(self, x: Array) -> Array:
        squares = (
            (x**2).sum(axis=1)[:, None] - 2 * x @ self.centres.T + (self.centres**2).sum(axis=1)
        )
        distances: Array = np.sqrt(squares.clip(min=0))
        return distances


class Squares(NamedTuple):
    """Uniform density over disjoint squares, with the methods of :class:`Density`."""

    centres: Array
    """``(k, 2)``"""
    side: float

    @property
    def mode(self) -> npt.NDArray[np.int64]:
        """``(k,)`` mode of each centre: the centre itself."""
        return np.arange(len(self.centres))

    def log_prob(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            log_prob: Array = np.log(self._distances(x).min(axis=1) <= self.side / 2) - np.log(
                len(self.centres) * self.side**2
            )
        return log_prob

    def nearest(self, x: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """Return modes and distances as :class:`Density` does; 4 is the border of a square."""
        distances = self._distances(x)
        return distances.argmin(axis=1), 8 * distances.min(axis=1) / self.side

    def draw(
        self, count: int, generator: np.random.Generator
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        index = generator.integers(len(self.centres), size=count)
        return self.centres[index] + self.side * (generator.random((count, 2)) - 0.5), index

    def _distances(self, x: Array) -> Array:
        distances: Array = np.abs(x[:, None] - self.centres).max(axis=2)
        return distances


def density(config: Config) -> Density | Squares:
    """Return the density that ``config`` names.

    The constants of ``25gaussians``, ``8gaussians`` and ``swissroll`` are those in the code of
    Kumar et al. 2019, which divides the coordinates of each by another constant.
    """
    if config.density == "checkerboard":
        cells = [(a, b) for a in range(-2, 2) for b in range(-2, 2) if (a + b) % 2 == 0]
        return Squares(config.scale * (np.array(cells) + 0.5) * 2.0, config.scale * 2.0)
    centres, sd, num_modes = _mixture(config.density)
    mode = np.arange(len(centres)) * num_modes // len(centres)
    return Density(config.scale * centres, config.sd or config.scale * sd, mode)


def _mixture(name: str) -> tuple[Array, float, int]:
    """Return centres ``(k, 2)``, standard deviation and number of modes."""
    if name == "25gaussians":
        side = np.arange(-4.0, 5.0, 2.0) / 2.828
        return (
            np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2),
            0.05 / 2.828,
            25,
        )
    if name == "8gaussians":
        return 2.0 / 1.414 * _circle(np.arange(8) * np.pi / 4), 0.02 / 1.414, 8
    if name == "swissroll":
        angle = 1.5 * np.pi * (1 + 2 * (np.arange(_SPIRAL) + 0.5) / _SPIRAL)
        return angle[:, None] / 7.5 * _circle(angle), 0.25 / 7.5, 25
    if name == "spirals":  # as in Gao et al. 2020: uniform along the arm, one and a half turns
        angle = 3 * np.pi * np.sqrt((np.arange(_SPIRAL) + 0.5) / _SPIRAL)
        arm = angle[:, None] / 3 * _circle(-angle)
        return np.concatenate([arm, -arm]), 0.1, 2
    along = 0.2 + 1.6 * (np.arange(100) + 0.5) / 100  # pinwheel
    blade = 2 * along[:, None] * _circle(0.25 * np.exp(along))
    return np.concatenate([_rotate(blade, 2 * np.pi * k / 5) for k in range(5)]), 0.1, 5


def _circle(angle: Array) -> Array:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _rotate(x: Array, angle: float) -> Array:
    rotated: Array = x @ _circle(np.array([angle, angle + np.pi / 2]))
    return rotated


def load(config: Config) -> Dataset:
    truth = density(config)
    counts = {"train": config.num_train, "val": config.num_test, "test": config.num_test}
    draws = {
        split: truth.draw(n, numpy_stream(0, f"toy2d/{config.density}/{split}"))
        for split, n in counts.items()
    }
    num_classes = {"spirals": 2, "pinwheel": 5}.get(config.density, 0)
    paper = (
        "Kumar et al. 2019, Figure 2"
        if config.density in ("25gaussians", "8gaussians", "swissroll")
        else "this project"
    )
    return Dataset(
        splits={
            split: Arrays(x.astype(np.float32), mode if num_classes else None)
            for split, (x, mode) in draws.items()
        },
        scale=1.0,
        bounds=None,
        num_classes=num_classes,
        source=f"random samples of the density {config.density} of {paper}",
        is_official=True,
    )
