"""Anomaly detection (Zong et al. 2018; Kumar et al. 2019, section 4.3).

The model is trained on inliers and scores a test set with anomalies, which have the highest class
label. The score is E; high means anomalous. Precision, recall and F1 classify the known share of
anomalies as anomalous, by the highest scores. Average precision and the area under the ROC curve
need no threshold.

Baselines are the norm of the energy's gradient, chance, and detectors without a network that learn
from the same rows. Where the inliers have labels, two more kinds of detectors use them: the same
network trained on the labels alone (Hendrycks & Gimpel 2017; Liu et al. 2020), and the distance to
the nearest class (Lee et al. 2018). If the model also learnt p(y | x), its energy is combined with
the entropy of the class. If it has a generator, a score is what that cannot make of a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import Tensor

from ebm_dist.config import (
    Mismatch,
    NonNegativeInt,
    Params,
    Positive,
    PositiveInt,
    Probability,
    section,
)
from ebm_dist.data import shards
from ebm_dist.energies import build_energy, score
from ebm_dist.energies._by_class import by_class
from ebm_dist.errors import DataError
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.metrics import inversion
from ebm_dist.metrics.detectors import Array, Gaussian, rows
from ebm_dist.models import TrainedModel
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

_BATCH = 128  # labelled rows per update
_NUM_NEIGHBOURS = 5
_MAX_KERNEL, _NUM_KERNEL, _PART = 2000, 50, 10_000  # rows and components of a kernel; rows at once
_ENERGY, _GIVEN_INK, _WITH_DOUBT, _REMADE, _CHANCE = (
    "E (model)",
    "E given ink (model)",
    "E and doubt (model)",
    "error of the generator (model)",
    "chance",
)


@section
class Config:
    contamination: Probability | None = None
    """Share of highest scores to classify as anomalies; default: their share in the test set."""
    num_components: tuple[PositiveInt, ...] = (2, 50)
    """Numbers of principal components of the residual baselines."""
    max_train: PositiveInt = 5000
    """Random training rows of the baselines that compare with every training row."""
    max_test: PositiveInt = 200000
    """Random test rows to score."""
    supervised_steps: PositiveInt = 1000
    """Updates of the network trained on the inliers' labels alone."""
    supervised_lr: Positive = 1e-3
    """Learning rate of Adam for that network, and for the encoder of a generator."""
    inversion_steps: NonNegativeInt = 1000
    """Updates of the encoder that gives a generator the code of a row; 0 for no such score."""
    split: str = "test"
    """The split to score: ``val`` to choose settings, ``test`` to report."""

    def check(self, params: Params) -> None:
        if self.contamination == 0:
            raise Mismatch(
                "evaluation.anomaly.contamination",
                "classifies no row as anomalous; use a share above 0, or leave it out",
            )


def check(config: Config, needs: Needs) -> None:
    needs.split("train", _NUM_NEIGHBOURS)
    needs.split("test")
    needs.split(config.split)
    label = len(needs.label_counts("test")) - 1  # of anomalies
    counts = needs.label_counts(config.split)
    if not sum(counts[:label]) or not sum(counts[label:]):
        raise needs.error(
            f"needs anomalies, under the highest label, and others in the {config.split} split of"
            f" {needs.data.dataset}"
        )


def evaluate(config: Config, subject: Subject) -> Report:
    train, _ = shards.read_split(subject.data, "train")
    test, labels = shards.read_split(subject.data, config.split)
    rows = torch.from_numpy(
        numpy_stream(0, "anomaly/test").permutation(len(test))[: config.max_test]
    )
    anomalous = shards.read_split(subject.data, "test")[1].max()
    test, truth = test[rows], (labels[rows] == anomalous).long().numpy()
    if set(truth.tolist()) != {0, 1}:
        raise DataError(
            f"{subject.data.folder}: the {config.split} split needs anomalies and others; "
            "use another data set"
        )
    contamination = float(truth.mean()) if config.contamination is None else config.contamination
    scorers: dict[str, Callable[[Tensor], Array]] = {
        _ENERGY: lambda x: subject.model.energies(x).double().numpy(),
        "|dE/dx| (model)": lambda x: np.concatenate(
            [_score_norm(subject, part) for part in x.split(1000)]
        ),
    }
    if train.ndim == 4 and np.ptp(_ink(train)):
        scorers[_GIVEN_INK] = _given_ink(scorers[_ENERGY], train)
    if "generator" in subject.model.other_players and config.inversion_steps:
        scorers[_REMADE] = _remade(config, subject.model, train)
    scorers |= _baselines(config, subject, train) | _with_labels(config, subject)
    by_scorer = {name: scorer(test) for name, scorer in scorers.items()}
    for name, values in by_scorer.items():
        check_finite(values, f"evaluation.anomaly: scores {name!r}")
    scores = {
        name: score_detector(truth, values, contamination) for name, values in by_scorer.items()
    }
    prevalence = float(truth.mean())
    chance = dict.fromkeys(("precision", "recall", "f1", "auprc"), prevalence)
    chance |= {"recall": contamination, "auroc": 0.5}
    chance["f1"] = 2 * prevalence * contamination / (prevalence + contamination)
    scores[_CHANCE] = chance
    best = {
        key: max(score[key] for name, score in scores.items() if "(model)" not in name)
        for key in scores[_ENERGY]
    }
    metrics: dict[str, Any] = {
        "prevalence": prevalence,
        "num_test": float(len(truth)),
        **scores[_ENERGY],
        "best_baseline": best,
    }
    metrics["scores"] = {name.replace(".", ""): score for name, score in scores.items()}
    shown = {
        name: {key.upper(): (score[key],) * 3 for key in ("auprc", "auroc", "f1")}
        for name, score in scores.items()
    }
    title = f"{subject.data.dataset}: {len(truth):,} test rows, {prevalence:.1%} anomalies"
    picture = figures.intervals(
        shown, "score (dashed: prevalence, chance of AUPRC)", title, prevalence
    )
    return Report(
        metrics,
        {"scores": [{"score": name, **score} for name, score in scores.items()]},
        {"scores.png": picture},
    )


def score_detector(
    truth: npt.NDArray[np.int64], scores: Array, contamination: float
) -> dict[str, float]:
    """Return precision, recall, F1, average precision and the area under the ROC curve.

    The share ``contamination`` with the highest scores, at least one row, is classified as
    anomalous. Among equal scores at its end, rows are drawn at random: the values are the
    expectations. Average precision is the step-wise sum, because a trapezoid between the ends of
    a tie promises more than a detector that cannot tell its rows apart.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import

    count = max(round(contamination * len(scores)), 1)
    lowest = np.partition(scores, -count)[-count]
    above, tied = scores > lowest, scores == lowest
    share = (count - above.sum()) / tied.sum()
    hits = truth[above].sum() + share * truth[tied].sum()
    return {
        "precision": float(hits / count),
        "recall": float(hits / truth.sum()),
        "f1": float(2 * hits / (count + truth.sum())),
        "auprc": float(average_precision_score(truth, scores)),
        "auroc": float(roc_auc_score(truth, scores)),
    }


def _score_norm(subject: Subject, x: Tensor) -> Array:
    norm: Array = score(subject.model.energy, x)[1].flatten(1).norm(dim=1).double().numpy()
    return norm


def _ink(x: Tensor) -> Array:
    return x.flatten(1).double().sum(dim=1).numpy()


def _given_ink(energy: Callable[[Tensor], Array], train: Tensor) -> Callable[[Tensor], Array]:
    """Return the energy minus its expectation given the ink, a parabola fitted to training images.

    The energy of an image with few strokes is low for that reason alone.
    """
    expected = np.polynomial.Polynomial.fit(_ink(train), energy(train), deg=2)
    return lambda x: energy(x) - expected(_ink(x))


def _remade(config: Config, model: TrainedModel, train: Tensor) -> Callable[[Tensor], Array]:
    """Return the error of what the generator makes of a row (BiGAN's and AnoGAN's score)."""
    generator = model.generator
    error = inversion.error(
        generator, generator.latent_size, train, config.inversion_steps, config.supervised_lr
    )
    return lambda x: error(x).double().numpy()


def _baselines(
    config: Config, subject: Subject, train: Tensor
) -> dict[str, Callable[[Tensor], Array]]:
    """Return detectors without a network; high scores mean anomalous.

    All learn from the training rows. The slow ones use a random part of them.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors
    from sklearn.svm import OneClassSVM  # slow to import

    flat = rows(train)
    gaussian = Gaussian(flat)
    subset = flat[numpy_stream(0, "anomaly/train").permutation(len(flat))[: config.max_train]]
    forest = IsolationForest(random_state=0).fit(subset)
    machine = OneClassSVM(nu=0.1, gamma="scale").fit(subset)
    neighbours = NearestNeighbors(n_neighbors=_NUM_NEIGHBOURS).fit(subset)

    def residual(count: int) -> Callable[[Tensor], Array]:
        return lambda x: gaussian.residual(rows(x), count)

    of_kernel = KernelResidual(subset[:_MAX_KERNEL])

    def nearest(x: Tensor) -> Array:
        return neighbours.kneighbors(rows(x))[0].mean(axis=1)  # type: ignore[no-any-return]

    scorers: dict[str, Callable[[Tensor], Array]] = {
        "Mahalanobis": lambda x: gaussian.mahalanobis(rows(x)),
        **{
            f"PCA residual, {count} components": residual(count)
            for count in config.num_components
            if count < len(gaussian.mean)
        },
        "kernel PCA residual": lambda x: of_kernel.residual(rows(x)),
        "isolation forest": lambda x: -forest.score_samples(rows(x)),
        "one-class SVM": lambda x: -machine.score_samples(rows(x)),
        "distance to 5 nearest": nearest,
    }
    if subject.data.bounds is None:
        scorers["distance from the mean"] = lambda x: np.linalg.norm(
            rows(x) - gaussian.mean, axis=1
        )
    if train.ndim == 4:
        scorers["little ink"] = lambda x: -_ink(x)
        scorers["distance to 5 nearest, over norm"] = lambda x: (
            nearest(x) / np.linalg.norm(rows(x), axis=1).clip(min=1e-6)
        )
        by_angle = NearestNeighbors(n_neighbors=_NUM_NEIGHBOURS, metric="cosine").fit(subset)
        scorers["angle to 5 nearest"] = lambda x: by_angle.kneighbors(rows(x))[0].mean(axis=1)
    return scorers


class KernelResidual:
    """What the leading components of an RBF kernel leave of a row (Hoffmann 2007).

    In the space of the kernel, ``|phi(x) - mean|^2`` less the squares of its components.
    """

    def __init__(self, train: Array) -> None:
        from sklearn.decomposition import KernelPCA
        from sklearn.metrics.pairwise import rbf_kernel  # slow to import

        gamma = 1 / (train.shape[1] * (train.var() or 1.0))
        self.kernel: Callable[[Array], Array] = lambda x: rbf_kernel(x, train, gamma)
        among = self.kernel(train)
        self.mean = among.mean()
        self.components = KernelPCA(
            min(_NUM_KERNEL, len(train) - 1),
            kernel="precomputed",
            eigen_solver="randomized",
            random_state=0,
        ).fit(among)

    def residual(self, x: Array) -> Array:
        """Return the squared distance ``(n,)``."""
        parts = []
        for start in range(0, len(x), _PART):
            k = self.kernel(x[start : start + _PART])
            along = (self.components.transform(k) ** 2).sum(axis=1)
            parts.append(1 - 2 * k.mean(axis=1) + self.mean - along)
        return np.concatenate(parts)


def _with_labels(config: Config, subject: Subject) -> dict[str, Callable[[Tensor], Array]]:
    """Return detectors that use the inliers' labels; none where the data have no labels."""
    labelled = shards.read_labelled(subject.data, subject.model.params.seed)
    if labelled is None:
        return {}
    x, y = labelled
    num_classes, model = subject.data.num_classes, subject.model
    flat, labels = x.flatten(1).double().numpy(), y.numpy()
    means = np.stack([flat[labels == k].mean(axis=0) for k in range(num_classes)])
    within = np.atleast_2d(np.cov(flat - means[labels], rowvar=False))
    root = np.linalg.cholesky(np.linalg.inv(within + 1e-6 * np.eye(len(within))))
    network = _supervised(config, subject, x, y)

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        classes = torch.arange(num_classes)
        return -torch.cat([by_class(network, part, classes) for part in x.split(1000)]).double()

    def distance_to_classes(x: Tensor) -> Array:
        return cdist(rows(x) @ root, means @ root).min(axis=1)  # type: ignore[no-any-return]

    def rarity(x: Tensor) -> Array:
        return -logits(x).logsumexp(dim=1).numpy()  # type: ignore[no-any-return]

    scorers: dict[str, Callable[[Tensor], Array]] = {
        "energy (labels alone)": rarity,
        "least probability (labels alone)": lambda x: -logits(x).softmax(dim=1).amax(dim=1).numpy(),
        "energy and doubt (labels alone)": _both(
            rarity, lambda x: _entropy(logits(x).softmax(dim=1)), x
        ),
        "Mahalanobis by class (labels)": distance_to_classes,
    }
    if model.knows_labels:
        scorers[_WITH_DOUBT] = _both(
            lambda x: model.energies(x).double().numpy(),
            lambda x: _entropy(model.classify(x).double()),
            x,
        )
    return scorers


def _entropy(p: Tensor) -> Array:
    entropy: Array = torch.special.entr(p).sum(dim=1).numpy()
    return entropy


def _both(
    first: Callable[[Tensor], Array], second: Callable[[Tensor], Array], train: Tensor
) -> Callable[[Tensor], Array]:
    """Return the score ``-log p_1 - log p_2`` (Fisher 1932, section 21.1).

    ``p_i`` is the share of training samples with a score at least as high.
    """
    sorted_scores = [(score, np.sort(score(train))) for score in (first, second)]

    def combined(x: Tensor) -> Array:
        above = [
            1 + len(scores) - np.searchsorted(scores, score(x)) for score, scores in sorted_scores
        ]
        return -np.log(np.array(above) / (1 + len(train))).sum(axis=0)  # type: ignore[no-any-return]

    return combined


def _supervised(config: Config, subject: Subject, x: Tensor, y: Tensor) -> torch.nn.Module:
    """Train the model's network from its initial weights on the labels alone."""
    num_classes = subject.data.num_classes
    network = build_energy(subject.model.params, tuple(x.shape[1:]), num_classes)
    classes = torch.arange(num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.supervised_lr)
    generator = numpy_stream(0, "anomaly/labels")
    for _ in range(config.supervised_steps):
        batch = torch.from_numpy(generator.choice(len(x), min(_BATCH, len(x)), replace=False))
        optimizer.zero_grad()
        logits = -by_class(network, x[batch], classes)
        F.cross_entropy(logits, y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)
