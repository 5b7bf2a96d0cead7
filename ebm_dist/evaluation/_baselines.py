"""Scores of a Gaussian fitted to the training data: baselines of several suites."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


def rows(x: Tensor) -> Array:
    """Flatten samples ``(n, *shape)`` to float64 rows ``(n, num_features)``."""
    flat: Array = x.flatten(1).double().numpy()
    return flat


class FittedGaussian:
    """Gaussian fitted to training samples ``(n, *shape)``; its scores are high far from them."""

    def __init__(self, train: Tensor) -> None:
        flat = rows(train)
        self.mean, self.covariance = flat.mean(axis=0), np.atleast_2d(np.cov(flat, rowvar=False))
        _, self.directions = np.linalg.eigh(self.covariance)

    def mahalanobis(self, x: Tensor, ridge: float) -> Array:
        """Return the squared Mahalanobis distance ``(n,)``.

        ``ridge`` is added to the diagonal of the covariance.
        """
        precision = np.linalg.inv(self.covariance + ridge * np.eye(len(self.mean)))
        d = rows(x) - self.mean
        distance: Array = ((d @ precision) * d).sum(axis=1)
        return distance

    def residual(self, x: Tensor, count: int) -> Array:
        """Return the squared distance ``(n,)`` to the span of the ``count`` leading components."""
        d, leading = rows(x) - self.mean, self.directions[:, -count:]
        squared: Array = (d**2).sum(axis=1) - ((d @ leading) ** 2).sum(axis=1)
        return squared.clip(min=0)  # rounding may go below
