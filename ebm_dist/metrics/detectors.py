"""Detectors without an energy model, which others are compared with: most are scikit-learn's.

A detector is fitted to rows ``(n, columns)``, most of them normal. It returns a function that gives
the scores ``(m,)`` of rows: high means anomalous. A row that is a training row finds itself there:
``OF_TRAINING`` has scores of the training rows that leave each row itself out, of the detectors for
which that is a difference.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
Score = Callable[[Array], Array]
Fit = Callable[[Array, int], Score]
"""``fit(train, seed)``"""
OfTraining = Callable[[Array], Array]
"""``scores(train)``: ``(n,)``, each as if its row had not been there"""

_BANDWIDTH = 0.2  # of the kernel density, in standard deviations of a column
_PART = 500  # rows at once


def rows(x: "Tensor") -> Array:
    """Flatten samples ``(n, *shape)`` to rows ``(n, num_features)``."""
    flat: Array = x.flatten(1).double().numpy()
    return flat


def neighbours(k: int) -> Fit:
    """Distance to the k-th nearest training row (Ramaswamy, Rastogi & Shim 2000)."""

    def fit(train: Array, seed: int) -> Score:
        from sklearn.neighbors import NearestNeighbors  # slow to import

        fitted = NearestNeighbors(n_neighbors=min(k, len(train))).fit(train)
        return lambda x: fitted.kneighbors(x)[0][:, -1]  # type: ignore[no-any-return]

    return fit


def neighbours_of_training(k: int) -> OfTraining:
    """Distance to the k-th nearest *other* training row."""

    def scores(train: Array) -> Array:
        from sklearn.neighbors import NearestNeighbors  # slow to import

        fitted = NearestNeighbors(n_neighbors=min(k, len(train) - 1)).fit(train)
        return fitted.kneighbors()[0][:, -1]  # type: ignore[no-any-return]

    return scores


def kernel_density(train: Array, seed: int) -> Score:
    """Minus the logarithm of a Gaussian kernel density (Parzen 1962), up to a constant."""
    return lambda x: _minus_log_density(x, train, leaves_out_itself=False)


def kernel_density_of_training(train: Array) -> Array:
    """Minus the logarithm of the kernel density of the *other* training rows."""
    return _minus_log_density(train, train, leaves_out_itself=True)


def _minus_log_density(x: Array, train: Array, *, leaves_out_itself: bool) -> Array:
    squares, parts = (train**2).sum(axis=1), []
    for start in range(0, len(x), _PART):
        part = x[start : start + _PART]
        distance = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ train.T
        exponent = -distance.clip(min=0) / (2 * _BANDWIDTH**2)
        if leaves_out_itself:
            np.fill_diagonal(exponent[:, start:], -np.inf)
        largest = exponent.max(axis=1)
        rest = np.log(np.exp(exponent - largest[:, None]).sum(axis=1))
        parts.append(-largest - rest)
    return np.concatenate(parts)


class Gaussian:
    """A Gaussian fitted to rows ``(n, columns)``; its scores are high far from them."""

    def __init__(self, train: Array) -> None:
        self.mean, self.covariance = train.mean(axis=0), np.atleast_2d(np.cov(train, rowvar=False))
        self.variances, self.directions = np.linalg.eigh(self.covariance)

    def mahalanobis(self, x: Array, ridge: float = 1e-6) -> Array:
        """Return the squared Mahalanobis distance ``(m,)`` (Mahalanobis 1936).

        ``ridge`` is added to the diagonal of the covariance.
        """
        ridged = self.covariance + ridge * np.eye(len(self.mean))
        d = x - self.mean
        distance: Array = ((d @ np.linalg.pinv(ridged, hermitian=True)) * d).sum(axis=1)
        return distance

    def residual(self, x: Array, count: int) -> Array:
        """Return the squared distance ``(m,)`` to the span of the ``count`` leading components."""
        d, leading = x - self.mean, self.directions[:, -count:]
        squared: Array = (d**2).sum(axis=1) - ((d @ leading) ** 2).sum(axis=1)
        return squared.clip(min=0)  # rounding may go below


def mahalanobis(train: Array, seed: int) -> Score:
    """Squared Mahalanobis distance from the mean."""
    return Gaussian(train).mahalanobis


def pca_residual(train: Array, seed: int) -> Score:
    """Squared distance from the principal components that have nine tenths of the variance."""
    gaussian = Gaussian(train)
    share = gaussian.variances[::-1].cumsum() / max(gaussian.variances.sum(), 1e-300)
    count = min(int((share < 0.9).sum()) + 1, max(1, train.shape[1] - 1))
    return lambda x: gaussian.residual(x, count)


def ecod(train: Array, seed: int) -> Score:
    """Tail probabilities of each column by its empirical distribution (Li et al. 2022).

    That of the training rows: PyOD's takes the scored rows into it, so its scores depend on them.
    """
    ordered, n = np.sort(train, axis=0), len(train)
    centred = train - train.mean(axis=0)
    is_left = (centred**3).mean(axis=0) < 0  # the tail that a skewed column has

    def score(x: Array) -> Array:
        left, right = np.empty_like(x), np.empty_like(x)
        for j, column in enumerate(ordered.T):
            left[:, j] = np.searchsorted(column, x[:, j], side="right")
            right[:, j] = n - np.searchsorted(column, x[:, j], side="left")
        tails = [-np.log(count.clip(min=1) / (n + 1)) for count in (left, right)]
        tails.append(np.where(is_left, *tails))
        sums: Array = np.stack([tail.sum(axis=1) for tail in tails])
        return sums.max(axis=0)  # type: ignore[no-any-return]

    return score


def isolation_forest(train: Array, seed: int) -> Score:
    """Isolation forest (Liu, Ting & Zhou 2008) with scikit-learn's defaults."""
    from sklearn.ensemble import IsolationForest

    fitted = IsolationForest(random_state=seed).fit(train)
    return lambda x: -fitted.score_samples(x)


def one_class_svm(train: Array, seed: int) -> Score:
    """One-class support vector machine (Schoelkopf et al. 2001) with scikit-learn's defaults."""
    from sklearn.svm import OneClassSVM

    fitted = OneClassSVM().fit(train)
    return lambda x: -fitted.score_samples(x)


def local_outlier_factor(train: Array, seed: int) -> Score:
    """Local outlier factor (Breunig et al. 2000) with scikit-learn's defaults."""
    from sklearn.neighbors import LocalOutlierFactor

    fitted = LocalOutlierFactor(n_neighbors=min(20, len(train) - 1), novelty=True).fit(train)
    return lambda x: -fitted.score_samples(x)


def local_outlier_factor_of_training(train: Array) -> Array:
    """Local outlier factor among the *other* training rows."""
    from sklearn.neighbors import LocalOutlierFactor

    fitted = LocalOutlierFactor(n_neighbors=min(20, len(train) - 1)).fit(train)
    return -fitted.negative_outlier_factor_  # type: ignore[no-any-return]


DETECTORS: dict[str, Fit] = {
    "1 neighbour": neighbours(1),
    "5 neighbours": neighbours(5),
    "kernel density": kernel_density,
    "isolation forest": isolation_forest,
    "one-class SVM": one_class_svm,
    "local outlier factor": local_outlier_factor,
    "ECOD": ecod,
    "Mahalanobis": mahalanobis,
    "PCA residual": pca_residual,
}

OF_TRAINING: dict[str, OfTraining] = {
    "1 neighbour": neighbours_of_training(1),
    "5 neighbours": neighbours_of_training(5),
    "kernel density": kernel_density_of_training,
    "local outlier factor": local_outlier_factor_of_training,
}
