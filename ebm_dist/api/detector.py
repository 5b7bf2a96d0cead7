"""Anomaly detection in tables by a product of energies, as a scikit-learn estimator.

The energies and their sum are in :mod:`ebm_dist.api.experts`: by default two distances to training
rows, and two networks, of which one learns the density of smoothed rows by denoising score
matching, and one the density of each column given the others.
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

from ebm_dist.api import experts
from ebm_dist.api._plain import plain
from ebm_dist.api._surroundings import usual
from ebm_dist.datasets import Standardisation
from ebm_dist.errors import ConfigError, DataError, InputError, reason
from ebm_dist.files import encode, read_json, read_tensors, sha256, write_json
from ebm_dist.storage import write_whole

Array = npt.NDArray[np.float64]
_FENCE = 3.0
_SETTINGS, _TENSORS = "detector.json", "detector.safetensors"
_ATTRIBUTES = ("mean_", "scale_", "decision_scores_")


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

    ``experts``: the energies, of ``neighbours``, ``whitened``, ``denoising``, ``conditionals``,
    ``contrastive``, ``discrepancy`` and ``meg``; see :mod:`ebm_dist.api.experts`.
    ``smoothing``: standard deviation of the noise that ``denoising`` takes away, in standard
    deviations of a column. A larger value ignores finer structure.
    ``hidden``: width of each hidden layer of the networks.
    ``num_steps``, ``batch_size``, ``lr``: steps of training of each network, rows per step,
    learning rate of Adam, which falls to 0.
    ``leaves_out_copies``: score a row that equals a training row by the other rows, so that
    training rows have scores beside those of new ones.
    ``contamination``: share of outliers among the training rows, in (0, 0.5], which sets the
    threshold. ``"auto"``: rows with an energy more than three standard deviations above the median
    are outliers; the standard deviation is estimated by the median absolute deviation.
    ``random_state``: seed of the initial weights, noise and order of the rows. Equal seeds and rows
    give equal scores on one machine.
    """

    def __init__(
        self,
        experts: tuple[str, ...] = ("neighbours", "whitened", "denoising", "conditionals"),
        *,
        smoothing: float = 0.25,
        hidden: tuple[int, ...] = (128, 128),
        num_steps: int = 1200,
        batch_size: int = 256,
        lr: float = 2e-3,
        leaves_out_copies: bool = True,
        contamination: float | Literal["auto"] = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.experts = experts
        self.smoothing = smoothing
        self.hidden = hidden
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.lr = lr
        self.leaves_out_copies = leaves_out_copies
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train on rows ``(n, columns)`` or images, most of which are inliers; ``y`` is not used.

        Raise :class:`InputError`, a ValueError, for values that are not finite, ValueError for
        other arrays that scikit-learn refuses, :class:`ConfigError` for wrong parameters, and
        :class:`DivergedError` where training diverges.
        """
        before = self.__dict__.copy()
        try:
            return self._fitted(X)
        except BaseException:  # as it was, not half of each
            self.__dict__ = before
            raise

    @usual()
    def _fitted(self, X: Any) -> Self:  # noqa: N803
        rows = self._rows(X, reset=True)
        self._check_parameters()
        self.mean_, self.scale_ = Standardisation.of(rows)
        if not (np.isfinite(self.scale_) & (self.scale_ > 0)).all():
            raise InputError(
                "X: values of a column are too large, or differ too little, to be squared",
                "rescale the columns",
            )
        u, seed = self._standardised(rows), check_random_state(self.random_state)
        # those of this fit, whatever set_params changes before the next one
        self.options_, self.experts_ = self._options(), tuple(self.experts)
        fitted = {
            name: experts.EXPERTS[name].fit(u, self.options_, int(seed.randint(2**31 - 1)))
            for name in self.experts_
        }
        self.states_ = {name: state for name, (state, _) in fitted.items()}
        of_training = {name: energies for name, (_, energies) in fitted.items()}
        self.references_ = {name: np.sort(energies) for name, energies in of_training.items()}
        self.decision_scores_ = (
            self._summed(of_training) if self.leaves_out_copies else self._energies(rows)
        )
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
        tensors |= {f"reference/{k}": torch.from_numpy(v) for k, v in self.references_.items()}
        for name, state in self.states_.items():
            tensors |= {f"state/{name}/{k}": torch.from_numpy(v) for k, v in state.items()}
        write_whole(folder / _TENSORS, encode(tensors))
        parameters = {name: plain(value) for name, value in self.get_params().items()}
        parameters |= {**self.options_._asdict(), "experts": self.experts_}
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
            parameters = content["parameters"]
            detector = cls(
                **parameters | {key: tuple(parameters[key]) for key in ("experts", "hidden")}
            )
            detector._check_parameters()
            detector.options_, detector.experts_ = detector._options(), detector.experts
            for name in _ATTRIBUTES:
                setattr(detector, name, tensors.pop(name).numpy())
            detector.n_features_in_ = len(detector.mean_)
            if names := content["feature_names"]:
                detector.feature_names_in_ = np.array(names, dtype=object).reshape(-1)
            read = {name: value.numpy() for name, value in tensors.items()}
            detector.references_ = {k: read[f"reference/{k}"] for k in detector.experts_}
            detector.states_ = {
                name: {
                    key.removeprefix(start): value
                    for key, value in read.items()
                    if key.startswith(start)
                }
                for name in detector.experts_
                for start in [f"state/{name}/"]
            }
            detector._energies(detector.mean_[None])
            detector.offset_ = float(content["offset"])
            if len(getattr(detector, "feature_names_in_", detector.mean_)) != len(detector.mean_):
                raise DataError(f"{folder / _SETTINGS}: expected {len(detector.mean_)} names")
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
            ConfigError,
        ) as failed:
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
        if self.smoothing == 0 and "denoising" in self.experts:
            raise InputError("smoothing: denoising needs noise, found 0", "set it above 0")
        if np.ndim(self.hidden) != 1:
            raise InputError(
                f"hidden: expected the widths of the layers, such as (128, 128), found"
                f" {self.hidden!r}"
            )
        if not self.experts or (unknown := [n for n in self.experts if n not in experts.EXPERTS]):
            raise ConfigError(
                f"experts: no {unknown[0]!r}" if self.experts else "experts: none",
                f"use some of {', '.join(experts.EXPERTS)}",
            )
        share = self.contamination
        if share != "auto" and not (isinstance(share, Real) and 0 < share <= 0.5):
            raise InputError(
                f"contamination: expected a share in (0, 0.5] or 'auto', found {share!r}"
            )

    def _options(self) -> experts.Options:
        return experts.Options(*(plain(getattr(self, name)) for name in experts.Options._fields))

    def _standardised(self, rows: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            standardised: Array = (rows - self.mean_) / self.scale_ + 0.0  # no -0: copies are bytes
        return standardised

    @usual()
    def _energies(self, rows: Array) -> Array:
        u = self._standardised(rows)
        return self._summed(
            {
                name: experts.EXPERTS[name].energies(self.states_[name], u, self.options_)
                for name in self.experts_
            }
        )

    def _summed(self, energies: dict[str, Array]) -> Array:
        """Return E(x) ``(n,)`` from the energies of each expert."""
        surprises = [experts.surprise(v, self.references_[name]) for name, v in energies.items()]
        total: Array = np.sum(surprises, axis=0)
        return total

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
