"""Anomaly detection (Zong et al. 2018; Kumar et al. 2019, section 4.3): train on inliers, score a test set that has anomalies too.

The highest class of the test is that of the anomalies, and the score is E: high = anomalous. Precision, recall and F1 are those of
calling the known share of anomalies so, those of the highest scores; areas under the two curves need no threshold. Beside E stand
the norm of its gradient, chance, and baselines that learn from the same rows without a net. Where inliers have labels, there are
detectors that use these: the same network taught by them alone (Hendrycks & Gimpel 2017; Liu et al. 2020), and the distance to the
nearest class (Lee et al. 2018). A model that has learnt p(y | x) too is asked both how rare a sample is and how doubtful its class.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.ensemble import IsolationForest
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor

from ebm_dist.config import Positive, PositiveInt, Probability, section
from ebm_dist.data import shards
from ebm_dist.energies import build_energy, score
from ebm_dist.errors import DataError
from ebm_dist.evaluation import Report, Subject
from ebm_dist.evaluation._baselines import Array, FittedGaussian, rows
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

_BATCH = 128  # labelled rows of an update
_ENERGY, _GIVEN_INK, _WITH_DOUBT, _CHANCE = (
    "E (model)",
    "E given ink (model)",
    "E and doubt (model)",
    "chance",
)


@section
class Config:
    contamination: Probability | None = None
    """Share of the highest scores that are called anomalies; the test's own share of them if absent."""
    num_components: tuple[PositiveInt, ...] = (2, 50)
    """Of the principal components' residuals among the baselines."""
    max_train: PositiveInt = 5000
    """Training rows, at random, of the baselines that compare with each of them."""
    max_test: PositiveInt = 200000
    """Test rows, at random."""
    supervised_steps: PositiveInt = 1000
    """Updates of the network that the inliers' labels alone teach."""
    supervised_lr: Positive = 1e-3
    """Learning rate of its Adam."""
    split: str = "test"
    """The rows to judge: ``val`` to choose settings by, ``test`` to report."""


def evaluate(config: Config, subject: Subject) -> Report:
    train, _ = shards.read_split(subject.data, "train")
    test, labels = shards.read_split(subject.data, config.split)
    chosen = torch.from_numpy(
        numpy_stream(0, "anomaly/test").permutation(len(test))[: config.max_test]
    )
    anomalous = shards.read_split(subject.data, "test")[1].max()
    test, truth = test[chosen], (labels[chosen] == anomalous).long().numpy()
    if set(truth.tolist()) != {0, 1}:
        raise DataError(
            f"{subject.data.folder}: the {config.split} split needs anomalies and others; use another data set"
        )
    contamination = config.contamination or float(truth.mean())
    scorers: dict[str, Callable[[Tensor], Array]] = {
        _ENERGY: lambda x: subject.model.energies(x).double().numpy(),
        "|dE/dx| (model)": lambda x: np.concatenate(
            [_score_norm(subject, part) for part in x.split(1000)]
        ),
    }
    if train.ndim == 4:
        scorers[_GIVEN_INK] = _given_ink(scorers[_ENERGY], train)
    scorers |= _baselines(config, subject, train) | _by_class(config, subject)
    rows = {
        name: score_detector(truth, scorer(test), contamination) for name, scorer in scorers.items()
    }
    prevalence = float(truth.mean())
    rows[_CHANCE] = dict.fromkeys(("precision", "recall", "f1", "auprc"), prevalence) | {
        "recall": contamination,
        "auroc": 0.5,
    }
    rows[_CHANCE]["f1"] = 2 * prevalence * contamination / (prevalence + contamination)
    best = {
        key: max(row[key] for name, row in rows.items() if "(" not in name) for key in rows[_ENERGY]
    }
    metrics: dict[str, Any] = {
        "prevalence": prevalence,
        "num_test": float(len(truth)),
        **rows[_ENERGY],
        "best_baseline": best,
    }
    metrics["scores"] = {name.replace(".", ""): row for name, row in rows.items()}
    shown = {
        name: {"AUPRC": (row["auprc"],) * 3, "AUROC": (row["auroc"],) * 3, "F1": (row["f1"],) * 3}
        for name, row in rows.items()
    }
    title = f"{subject.data.dataset}: {len(truth):,} test rows, {prevalence:.1%} anomalies"
    picture = figures.intervals(
        shown, "score (dashed: prevalence, chance of AUPRC)", title, prevalence
    )
    return Report(
        metrics,
        {"scores": [{"score": name, **row} for name, row in rows.items()]},
        {"scores.png": picture},
    )


def score_detector(
    truth: npt.NDArray[np.int64], scores: Array, contamination: float
) -> dict[str, float]:
    """Precision, recall and F1 of the highest ``contamination`` of the scores; areas under both curves (trapezoid)."""
    called = scores > np.quantile(scores, 1 - contamination)
    hits = float((called & (truth == 1)).sum())
    precision, recall = hits / max(called.sum(), 1), hits / truth.sum()
    curve = precision_recall_curve(truth, scores)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * hits / (called.sum() + truth.sum())),
        "auprc": float(auc(curve[1], curve[0])),
        "auroc": float(roc_auc_score(truth, scores)),
    }


def _score_norm(subject: Subject, x: Tensor) -> Array:
    norm: Array = score(subject.model.energy, x)[1].flatten(1).norm(dim=1).double().numpy()
    return norm


def _ink(x: Tensor) -> Array:
    return x.flatten(1).double().sum(dim=1).numpy()


def _given_ink(energy: Callable[[Tensor], Array], train: Tensor) -> Callable[[Tensor], Array]:
    """The energy less its mean among training images with as much ink, a parabola: few strokes alone make an energy low."""
    expected = np.polynomial.Polynomial.fit(_ink(train), energy(train), deg=2)
    return lambda x: energy(x) - expected(_ink(x))


def _baselines(
    config: Config, subject: Subject, train: Tensor
) -> dict[str, Callable[[Tensor], Array]]:
    """Scores of plain detectors, high = anomalous; all learn from the training rows, those that are slow from a part of them."""
    gaussian, flat = FittedGaussian(train), rows(train)
    some = flat[numpy_stream(0, "anomaly/train").permutation(len(flat))[: config.max_train]]
    forest = IsolationForest(random_state=0).fit(some)
    machine = OneClassSVM(nu=0.1, gamma="scale").fit(some)
    neighbours = NearestNeighbors(n_neighbors=5).fit(some)

    def residual(count: int) -> Callable[[Tensor], Array]:
        return lambda x: gaussian.residual(x, count)

    def nearest(x: Tensor) -> Array:
        return neighbours.kneighbors(rows(x))[0].mean(axis=1)  # type: ignore[no-any-return]

    found: dict[str, Callable[[Tensor], Array]] = {
        "Mahalanobis": lambda x: gaussian.mahalanobis(x, 1e-6),
        **{
            f"PCA residual, {count} components": residual(count)
            for count in config.num_components
            if count < len(gaussian.mean)
        },
        "isolation forest": lambda x: -forest.score_samples(rows(x)),
        "one-class SVM": lambda x: -machine.score_samples(rows(x)),
        "distance to 5 nearest": nearest,
    }
    if subject.data.bounds is None:
        found["distance from the mean"] = lambda x: np.linalg.norm(rows(x) - gaussian.mean, axis=1)
    if train.ndim == 4:
        found["little ink"] = lambda x: -_ink(x)
        found["distance to 5 nearest, over norm"] = lambda x: (
            nearest(x) / np.linalg.norm(rows(x), axis=1).clip(min=1e-6)
        )
        turned = NearestNeighbors(n_neighbors=5, metric="cosine").fit(some)
        found["angle to 5 nearest"] = lambda x: turned.kneighbors(rows(x))[0].mean(axis=1)
    return found


def _by_class(config: Config, subject: Subject) -> dict[str, Callable[[Tensor], Array]]:
    """Scores of detectors that know the inliers' classes; none where these have no labels."""
    known = shards.read_labelled(subject.data, subject.model.params.seed)
    if known is None:
        return {}
    x, y = known
    num_classes, at, names, model = (
        subject.data.num_classes,
        x.flatten(1).double().numpy(),
        y.numpy(),
        subject.model,
    )
    means = np.stack([at[names == k].mean(axis=0) for k in range(num_classes)])
    within = np.cov(at - means[names], rowvar=False)
    root = np.linalg.cholesky(np.linalg.inv(within + 1e-6 * np.eye(len(within))))
    network = _supervised(config, subject, x, y)

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        every = torch.arange(num_classes)
        return -torch.cat(
            [network(part, every.expand(len(part), num_classes)) for part in x.split(1000)]
        ).double()

    def rarity(x: Tensor) -> Array:
        return -logits(x).logsumexp(dim=1).numpy()  # type: ignore[no-any-return]

    found: dict[str, Callable[[Tensor], Array]] = {
        "energy (labels alone)": rarity,
        "least probability (labels alone)": lambda x: -logits(x).softmax(dim=1).amax(dim=1).numpy(),
        "energy and doubt (labels alone)": _both(
            rarity, lambda x: _entropy(logits(x).softmax(dim=1)), x
        ),
        "Mahalanobis by class (labels)": lambda x: cdist(
            x.flatten(1).double().numpy() @ root, means @ root
        ).min(axis=1),
    }
    if model.knows_labels:
        found[_WITH_DOUBT] = _both(
            lambda x: model.energies(x).double().numpy(),
            lambda x: _entropy(model.classify(x).double()),
            x,
        )
    return found


def _entropy(p: Tensor) -> Array:
    entropy: Array = torch.special.entr(p).sum(dim=1).numpy()
    return entropy


def _both(
    first: Callable[[Tensor], Array], second: Callable[[Tensor], Array], train: Tensor
) -> Callable[[Tensor], Array]:
    """``-log p_1 - log p_2`` (Fisher 1932, section 21.1), with ``p`` the share of training samples that score as high or higher."""
    known = [(score, np.sort(score(train))) for score in (first, second)]

    def combined(x: Tensor) -> Array:
        above = [1 + len(scores) - np.searchsorted(scores, score(x)) for score, scores in known]
        return -np.log(np.array(above) / (1 + len(train))).sum(axis=0)  # type: ignore[no-any-return]

    return combined


def _supervised(config: Config, subject: Subject, x: Tensor, y: Tensor) -> torch.nn.Module:
    """The model's own network, with its initial weights, taught by the labels alone."""
    num_classes = subject.data.num_classes
    network, every = (
        build_energy(subject.model.params, tuple(x.shape[1:]), num_classes),
        torch.arange(num_classes),
    )
    optimizer, rows = (
        torch.optim.Adam(network.parameters(), lr=config.supervised_lr),
        numpy_stream(0, "anomaly/labels"),
    )
    for _ in range(config.supervised_steps):
        some = torch.from_numpy(rows.choice(len(x), min(_BATCH, len(x)), replace=False))
        optimizer.zero_grad()
        logits = -network(x[some], every.expand(len(some), num_classes))
        F.cross_entropy(logits, y[some]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)
