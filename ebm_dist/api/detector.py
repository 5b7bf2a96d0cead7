"""Anomaly detection in tables by an energy model, as a scikit-learn estimator.

Columns are standardised to u and whitened to z. The energy of a row is

    z = (C + h^2 I)^(-1/2) u,    E(x) = |z|^2 / 2 + f(z)

where C is the covariance matrix of the training rows u, and h the smoothing. The first term is half
of a squared Mahalanobis distance, the energy of a Gaussian. The network f corrects it. By default f
learns to tell the training rows, smoothed by Gaussian noise of standard deviation h, from samples
of that Gaussian (noise contrastive estimation, Gutmann & Hyvarinen 2010). E is then the energy of
the smoothed density of the rows. Far from all rows f has learnt nothing: the first term decides.
"""

from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ebm_dist import config
from ebm_dist.api.training import train
from ebm_dist.datasets import Arrays, Dataset, Standardisation
from ebm_dist.energies import EnergyModel, build_energy
from ebm_dist.errors import ConfigError, DataError, InputError, reason
from ebm_dist.files import encode, read_json, read_tensors, sha256, write_json
from ebm_dist.rng import numpy_stream
from ebm_dist.storage import write_whole

Array = npt.NDArray[np.float64]
OBJECTIVES: dict[str, dict[str, Any]] = {
    # the noise needs no fit: smoothed and whitened rows have its mean and covariance
    "noise_contrastive": {"generator": {"name": "gaussian"}, "pretraining": 0},
    "meg": {"generator": {"name": "mlp", "latent_size": 16}, "num_energy_steps": 1},
}
"""Settings of each objective."""
_MAX_ROWS = 4096
"""Rows scored at a time."""
_MAX_VALUES = 2**23
"""Values of the smoothed copies of the training rows."""
_MIN_EIGENVALUE = 1e-6
_FENCE = 3.0
_SETTINGS, _TENSORS = "detector.json", "detector.safetensors"
_ATTRIBUTES = ("mean_", "scale_", "whitening_", "decision_scores_")


class EnergyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Outlier detector for tables ``(n, columns)``, with the interface of scikit-learn.

    Images ``(n, h, w)`` or ``(n, channels, h, w)`` are taken as rows of all their values.

    Methods follow scikit-learn, attributes of the training rows follow PyOD. The signs differ:

    | name | value |
    |---|---|
    | ``score_samples(X)`` | ``-E(x)``: larger is more normal |
    | ``decision_function(X)`` | ``-E(x) - offset_``: larger is more normal, outliers < 0 |
    | ``predict(X)`` | 1 for inliers, -1 for outliers (PyOD: 0 and 1) |
    | ``decision_scores_`` | ``E(x)`` of the training rows: larger is more abnormal |
    | ``threshold_`` | ``-offset_``: outliers have a larger ``E(x)`` |
    | ``labels_`` | 0 for inliers, 1 for outliers among the training rows |

    ``objective``: ``noise_contrastive`` or ``meg`` (maximum entropy generators).
    ``smoothing``: standard deviation h of the noise that smooths the rows, in standard deviations
    of a column. A larger value ignores finer structure.
    ``hidden``: width of each hidden layer of f.
    ``num_steps``, ``batch_size``, ``lr``: steps of training, rows per step, learning rate of Adam.
    ``contamination``: share of outliers among the training rows, in (0, 0.5], which sets the
    threshold. ``"auto"``: rows with an energy more than three standard deviations above the median
    are outliers; the standard deviation is estimated by the median absolute deviation.
    ``random_state``: seed of the initial weights, noise and order of the rows. Equal seeds and rows
    give equal scores on one machine.
    """

    def __init__(
        self,
        objective: Literal["noise_contrastive", "meg"] = "noise_contrastive",
        *,
        smoothing: float = 0.7,
        hidden: tuple[int, ...] = (128, 128),
        num_steps: int = 2000,
        batch_size: int = 256,
        lr: float = 1e-2,
        contamination: float | Literal["auto"] = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.objective = objective
        self.smoothing = smoothing
        self.hidden = hidden
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.lr = lr
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train on rows ``(n, columns)`` or images, most of which are inliers; ``y`` is not used.

        Raise :class:`InputError`, a ValueError, for values that are not finite, ValueError for
        other arrays that scikit-learn refuses, :class:`ConfigError` for wrong parameters, and
        :class:`DivergedError` where training diverges.
        """
        rows = self._rows(X, reset=True)
        self._check_parameters()
        self._fit_scale(rows)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        settings, self.energy_ = self._settings(seed), self._network()
        data = Dataset(
            splits={"train": Arrays(self._smoothed(rows, seed), None)},
            scale=1.0,
            bounds=None,
            num_classes=0,
            source="rows of a detector",
            is_official=True,
        )
        weights = train(settings, data).energy.state_dict()
        # the prefix is that of a network on a GPU
        self.energy_.load_state_dict({k.removeprefix("network."): v for k, v in weights.items()})
        self.decision_scores_ = self._energies(rows)
        self.offset_ = self._offset()
        self._label()
        return self

    def score_samples(self, X: Any) -> Array:  # noqa: N803
        """Return ``-E(x)`` of rows, ``(n,)`` float64: larger is more normal."""
        check_is_fitted(self)
        return -self._energies(self._rows(X, reset=False))

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return ``score_samples(X) - offset_``, ``(n,)``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:  # noqa: N803
        """Return 1 for inliers and -1 for outliers, ``(n,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def save(self, folder: str | Path) -> None:
        """Write weights and scores as safetensors, and settings as JSON, into a folder."""
        check_is_fitted(self)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in _ATTRIBUTES}
        tensors |= {f"energy.{name}": value for name, value in self.energy_.state_dict().items()}
        write_whole(folder / _TENSORS, encode(tensors))
        parameters = {name: _plain(value) for name, value in self.get_params().items()}
        if not isinstance(parameters["random_state"], int | None):
            parameters["random_state"] = None  # the state of a generator is not a setting
        write_json(
            folder / _SETTINGS,
            {
                "parameters": parameters,
                "feature_names": [*getattr(self, "feature_names_in_", [])],
                "offset": self.offset_,
                "sha256": sha256(folder / _TENSORS),
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a detector that :meth:`save` wrote: the same scores, bit for bit.

        Raise :class:`DataError` where a file is missing or altered.
        """
        folder = Path(folder)
        try:
            content, tensors = (
                read_json(folder / _SETTINGS, ""),
                read_tensors(folder / _TENSORS, ""),
            )
        except DataError as failed:
            raise DataError(failed.what, "save the detector again") from None
        try:
            if sha256(folder / _TENSORS) != content["sha256"]:
                raise DataError(f"{folder / _TENSORS}: differs from {_SETTINGS}: altered")
            detector = cls(
                **content["parameters"] | {"hidden": tuple(content["parameters"]["hidden"])}
            )
            for name in _ATTRIBUTES:
                setattr(detector, name, tensors.pop(name).numpy())
            detector.n_features_in_ = len(detector.mean_)
            if names := content["feature_names"]:
                detector.feature_names_in_ = np.array(names, dtype=object).reshape(-1)
            detector.energy_ = detector._network()
            detector.energy_.load_state_dict(
                {name.removeprefix("energy."): value for name, value in tensors.items()}
            )
            detector.offset_ = float(content["offset"])
            if len(getattr(detector, "feature_names_in_", detector.mean_)) != len(detector.mean_):
                raise DataError(f"{folder / _SETTINGS}: expected {len(detector.mean_)} names")
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as failed:
            raise DataError(f"{folder}: is not a saved detector ({reason(failed)})") from None
        detector._label()
        return detector

    def _rows(self, X: Any, *, reset: bool) -> Array:  # noqa: N803
        """Return rows ``(n, columns)`` float64; ``reset`` sets number and names of the columns."""
        if getattr(X, "ndim", 2) in (3, 4):
            X = np.asarray(X).reshape(len(X), -1)
        rows: Array = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        is_bad = ~np.isfinite(rows)
        if is_bad.any():
            column = int(is_bad.any(axis=0).argmax())
            name = getattr(self, "feature_names_in_", range(rows.shape[1]))[column]
            raise InputError(
                f"X: column {name!r} has {is_bad[:, column].sum()} NaN or inf, the first in row"
                f" {is_bad[:, column].argmax()}; {is_bad.any(axis=0).sum()} of {rows.shape[1]}"
                " columns have some",
                "leave out these rows, or impute the values first",
            )
        return rows

    def _check_parameters(self) -> None:
        if not (isinstance(self.smoothing, Real) and 0 <= self.smoothing < np.inf):
            raise InputError(
                f"smoothing: expected a number of at least 0, found {self.smoothing!r}"
            )
        share = self.contamination
        if share != "auto" and not (isinstance(share, Real) and 0 < share <= 0.5):
            raise InputError(
                f"contamination: expected a share in (0, 0.5] or 'auto', found {share!r}"
            )

    def _fit_scale(self, rows: Array) -> None:
        """Set mean, standard deviation and whitening matrix of the columns."""
        self.mean_, self.scale_ = Standardisation.of(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            standardised = (rows - self.mean_) / self.scale_
        if not np.isfinite(standardised).all():
            raise InputError("X: values are too large to be squared", "rescale the columns")
        covariance = standardised.T @ standardised / len(rows)
        covariance[np.diag_indices_from(covariance)] += self.smoothing**2
        eigenvalues, directions = np.linalg.eigh(covariance)
        roots = np.sqrt(eigenvalues.clip(min=_MIN_EIGENVALUE))
        self.whitening_ = (directions / roots) @ directions.T

    def _whiten(self, rows: Array) -> Array:
        whitened: Array = (rows - self.mean_) / self.scale_ @ self.whitening_
        return whitened

    def _smoothed(self, rows: Array, seed: int) -> npt.NDArray[np.float32]:
        """Return whitened copies of the rows with noise, ``(m, columns)``.

        There are as many as training draws, if they fit.
        """
        count = min(self.num_steps * self.batch_size, _MAX_VALUES // rows.shape[1])
        copies = np.resize(self._whiten(rows), (max(count, len(rows)), rows.shape[1]))
        noise = numpy_stream(seed, "detector/smoothing").normal(size=copies.shape)
        smoothed: npt.NDArray[np.float32] = copies + self.smoothing * noise @ self.whitening_
        return smoothed.astype(np.float32)

    def _settings(self, seed: int) -> dict[str, Any]:
        """Return the settings of :func:`ebm_dist.train`."""
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"objective: no {self.objective!r}", f"use one of {', '.join(OBJECTIVES)}"
            )
        num_steps, batch_size = _plain(self.num_steps), _plain(self.batch_size)
        return {
            "seed": seed,
            "energy": {"name": "mlp", "hidden": _plain(self.hidden), "confinement": 1.0},
            "sampler": {"name": "langevin"},
            "objective": {"name": self.objective, **OBJECTIVES[self.objective]},
            "replay": {"capacity": batch_size},
            "optimizer": {"lr": _plain(self.lr), "betas": [0.9, 0.999]},
            "train": {
                "num_steps": num_steps,
                "batch_size": batch_size,
                "num_shards": 1,
                "log_every": num_steps,
                "checkpoint_every": num_steps,
                # a Gaussian has a mean energy of half the number of columns
                "max_energy": 1e4 + 100.0 * self.n_features_in_,
            },
        }

    def _network(self) -> EnergyModel:
        """Return the network in float64: scores then do not depend on the rows of a batch."""
        params = config.from_values(
            {"dataset": {"name": "arrays", "path": ""}, "cluster": {"workers": 1}}
            | self._settings(0),
            Path("EnergyDetector"),
        )
        network = build_energy(params, (self.n_features_in_,), 0)
        return network.double().eval().requires_grad_(False)

    def _energies(self, rows: Array) -> Array:
        z = torch.from_numpy(self._whiten(rows))
        energies: Array = torch.cat([self.energy_(part) for part in z.split(_MAX_ROWS)]).numpy()
        return energies

    def _label(self) -> None:
        """Set PyOD's attributes that follow from the scores of the training rows and the offset."""
        self.threshold_ = -self.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)

    def _offset(self) -> float:
        energies = self.decision_scores_
        if self.contamination == "auto":
            median = np.median(energies)
            deviation = np.median(np.abs(energies - median)) / 0.6745  # of a normal distribution
            return float(-(median + _FENCE * deviation))
        return float(np.percentile(-energies, 100 * self.contamination))


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it: searches set numbers of NumPy."""
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
