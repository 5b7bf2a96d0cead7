"""Densities in the plane that are known exactly (Kumar et al. 2019, Figure 2; Gao et al. 2020, section 5.1).

Each is an even mixture of round Gaussians of one width, whose centres are few points, or close together along a curve. Samples are
drawn anew for each split, always the same ones.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from ebm_dist.config import Count, section
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]

_SPIRAL = 500  # centres: at most the width apart, which leaves ripples of 1e-7


@section
class Config:
    density: Literal["25gaussians", "8gaussians", "swissroll"] = "25gaussians"
    """``25gaussians``: a grid; ``8gaussians``: a ring; ``swissroll``: a spiral of one and a half turns."""
    num_train: Count = 100000
    """Samples to learn from."""
    num_test: Count = 10000
    """Samples to report on; as many to choose settings by."""


class Density(NamedTuple):
    """``mean over centres of N(x; centre, sd^2 I)``"""

    centres: Array
    """``(k, 2)``"""
    sd: float
    mode: npt.NDArray[np.int64]
    """``(k,)`` which mode each centre belongs to: itself, or one of equal pieces of a curve"""

    def log_prob(self, x: Array) -> Array:
        """``(n,)`` natural logarithms of the density at ``x (n, 2)``."""
        parts: list[Array] = [
            logsumexp(-(self._distances(rows) ** 2) / (2 * self.sd**2), axis=1) for rows in np.array_split(x, len(x) // 5000 + 1)
        ]
        log_prob: Array = np.concatenate(parts) - np.log(len(self.centres)) - np.log(2 * np.pi * self.sd**2)
        return log_prob

    def nearest(self, x: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """``(n,)`` each: the mode of the centre that is nearest, and its distance in standard deviations."""
        rows = [(d.argmin(axis=1), d.min(axis=1)) for d in map(self._distances, np.array_split(x, len(x) // 5000 + 1))]
        return self.mode[np.concatenate([i for i, _ in rows])], np.concatenate([d for _, d in rows]) / self.sd

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """``(count, 2)``"""
        return self.centres[generator.integers(len(self.centres), size=count)] + self.sd * generator.normal(size=(count, 2))

    def _distances(self, x: Array) -> Array:
        squares = (x**2).sum(axis=1)[:, None] - 2 * x @ self.centres.T + (self.centres**2).sum(axis=1)
        distances: Array = np.sqrt(squares.clip(min=0))
        return distances


def density(config: Config) -> Density:
    """The settings are those of the code of Kumar et al. 2019, which divides each data set by a number of its own."""
    if config.density == "25gaussians":
        side = np.arange(-4.0, 5.0, 2.0) / 2.828
        centres, sd = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05 / 2.828
    elif config.density == "8gaussians":
        angle = np.arange(8) * np.pi / 4
        centres, sd = 2.0 / 1.414 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.02 / 1.414
    else:
        angle = 1.5 * np.pi * (1 + 2 * (np.arange(_SPIRAL) + 0.5) / _SPIRAL)
        centres, sd = angle[:, None] / 7.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.25 / 7.5
    num_modes = 25 if config.density == "swissroll" else len(centres)
    return Density(centres, sd, np.arange(len(centres)) * num_modes // len(centres))


def load(config: Config) -> Dataset:
    truth = density(config)
    counts = {"train": config.num_train, "val": config.num_test, "test": config.num_test}
    draws = {split: truth.draw(n, numpy_stream(0, f"toy2d/{config.density}/{split}")) for split, n in counts.items()}
    return Dataset(
        splits={split: Arrays(x.astype(np.float32), None) for split, x in draws.items()},
        scale=1.0,
        bounds=None,
        num_classes=0,
        source=f"random samples of the density {config.density} of Kumar et al. 2019, Figure 2",
        is_official=True,
    )
