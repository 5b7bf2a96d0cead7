"""The classifier in an energy, ``p(k | x) = softmax(-E(x, k) / T)``, learnt from few labels (Gao et al. 2020, section 5.4).

Accuracy, likelihood and calibration on the test split. Beside it: the same network taught by the labels alone, the nearest labelled
sample, and labels spread over a graph of neighbours, which use the same samples and have no energy.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from torch import Tensor

from ebm_dist.config import Mismatch, Params, Positive, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import build_energy, is_classifier
from ebm_dist.errors import DataError
from ebm_dist.evaluation import Report, Subject
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]

_BINS = 15
_SIDE = 200  # of the pictures of a plane


@section
class Config:
    supervised_steps: PositiveInt = 500
    """Updates of the network that the labels alone teach, with all of them in each."""
    supervised_lr: Positive = 1e-3
    """Learning rate of its Adam."""
    num_neighbours: PositiveInt = 7
    """Of the graph on which labels spread."""
    max_graph: PositiveInt = 5000
    """Samples without a label in that graph, at random."""
    extent: Positive = 4.0
    """Of data in the plane, the picture shows the square from minus this to plus this."""
    split: str = "test"
    """The samples to judge: ``val`` to choose settings by, ``test`` to report."""

    def check(self, params: Params) -> None:
        if not is_classifier(params):
            raise Mismatch(
                "evaluation.classification",
                "needs an energy with one output for each class; use energy classifier",
            )


def evaluate(config: Config, subject: Subject) -> Report:
    model, num_classes = subject.model, subject.data.num_classes
    x, y = shards.read_split(subject.data, config.split)
    known = shards.read_labelled(subject.data, model.params.seed)
    if known is None:
        raise DataError(
            f"{subject.data.folder}: no labels are missing here; use dataset few_labels"
        )
    labelled, labels = known
    truth = y.numpy()
    probabilities = model.classify(x).double().numpy()
    supervised = _supervised(config, model.params, labelled, labels, num_classes)
    with torch.no_grad():
        of_supervised = (
            torch.cat([supervised(part, _every(part, num_classes)) for part in x.split(1000)])
            .neg()
            .softmax(dim=1)
        )
    rows: dict[str, dict[str, float]] = {
        "p(k | x) of the energy": score_predictions(truth, probabilities),
        "same network, labels alone": score_predictions(truth, of_supervised.double().numpy()),
        **{
            name: score_predictions(truth, p)
            for name, p in _baselines(config, subject, x, labelled, labels).items()
        },
        "chance": score_predictions(truth, np.full((len(truth), num_classes), 1 / num_classes))
        | {"accuracy": 1 / num_classes},
    }
    own, alone = rows["p(k | x) of the energy"], rows["same network, labels alone"]
    keys = ("model", "supervised", "nearest", "spreading", "propagation", "chance")
    metrics: dict[str, Any] = {
        **own,
        "gain": own["accuracy"] - alone["accuracy"],
        "num_labelled": float(len(labels)),
        "num_unlabelled": float(subject.data.num_samples("train")),
        "scores": dict(zip(keys, rows.values(), strict=True)),
    }
    pictures = {
        "calibration.png": _calibration(
            truth, {"energy": probabilities, "labels alone": of_supervised.double().numpy()}
        )
    }
    if subject.data.shape == (2,):
        pictures["regions.png"] = _regions(config, subject, labelled, labels)
    return Report(
        metrics, {"scores": [{"by": name, **row} for name, row in rows.items()]}, pictures
    )


def score_predictions(truth: npt.NDArray[np.int64], probabilities: Array) -> dict[str, float]:
    """Accuracy, mean negative log likelihood in nats, and the expected calibration error over 15 bins (Guo et al. 2017, eq. 3)."""
    chosen = probabilities.argmax(axis=1)
    right, confidence = chosen == truth, probabilities.max(axis=1)
    error = sum(share * abs(accuracy - mean) for share, accuracy, mean in _bins(right, confidence))
    nll = -np.log(probabilities[np.arange(len(truth)), truth].clip(min=1e-12)).mean()
    return {"accuracy": float(right.mean()), "nll": float(nll), "calibration_error": float(error)}


def _bins(right: npt.NDArray[np.bool_], confidence: Array) -> list[tuple[float, float, float]]:
    """Of each bin of confidence that is not empty: its share, accuracy and mean confidence."""
    which = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    each = [which == i for i in range(_BINS)]
    return [
        (float(one.mean()), float(right[one].mean()), float(confidence[one].mean()))
        for one in each
        if one.any()
    ]


def _every(x: Tensor, num_classes: int) -> Tensor:
    return torch.arange(num_classes).expand(len(x), num_classes)


def _supervised(
    config: Config, params: Params, x: Tensor, y: Tensor, num_classes: int
) -> torch.nn.Module:
    """The model's own network, with its initial weights, taught by the labelled samples alone."""
    network = build_energy(params, tuple(x.shape[1:]), num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.supervised_lr)
    for _ in range(config.supervised_steps):
        optimizer.zero_grad()
        F.cross_entropy(-network(x, _every(x, num_classes)), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)


def _baselines(
    config: Config, subject: Subject, x: Tensor, labelled: Tensor, labels: Tensor
) -> dict[str, Array]:
    """Class probabilities by the nearest label, and by two ways in which labels spread over a graph of neighbours."""
    known, names, asked = labelled.flatten(1).numpy(), labels.numpy(), x.flatten(1).numpy()
    train = shards.read_split(subject.data, "train")[0].flatten(1).numpy()
    unlabelled = train[
        numpy_stream(0, "classification/graph").permutation(len(train))[: config.max_graph]
    ]
    every, marks = (
        np.concatenate([known, unlabelled]),
        np.concatenate([names, np.full(len(unlabelled), -1)]),
    )
    with (
        warnings.catch_warnings(),
        np.errstate(invalid="ignore"),
    ):  # a part of the graph without a label has no probabilities: NaN
        warnings.simplefilter("ignore", ConvergenceWarning)  # cut off after many rounds is as well
        spread = {
            "label spreading": LabelSpreading(
                kernel="knn", n_neighbors=config.num_neighbours, alpha=0.99, max_iter=1000
            ),
            "label propagation": LabelPropagation(
                kernel="knn", n_neighbors=config.num_neighbours, max_iter=5000
            ),
        }  # alpha as in Zhou et al. 2004
        found = {
            name: method.fit(every, marks).predict_proba(asked) for name, method in spread.items()
        }
    nearest = KNeighborsClassifier(1).fit(known, names).predict_proba(asked)
    return {"nearest labelled sample": nearest} | {
        name: np.nan_to_num(p, nan=1 / p.shape[1]) for name, p in found.items()
    }


def _calibration(truth: npt.NDArray[np.int64], of: dict[str, Array]) -> bytes:
    shown = {}
    for name, p in of.items():
        bins = _bins(p.argmax(axis=1) == truth, p.max(axis=1))
        shown[name] = ([mean for _, _, mean in bins], [accuracy for _, accuracy, _ in bins])
    return figures.calibration(shown, f"Calibration on {len(truth):,} samples")


def _regions(config: Config, subject: Subject, labelled: Tensor, labels: Tensor) -> bytes:
    """``p(k | x)`` and the densities of each class, as in Figure 5 of Gao et al. 2020."""
    side = torch.linspace(-config.extent, config.extent, _SIDE)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    model, num_classes = subject.model, subject.data.num_classes
    with torch.no_grad():
        log_joint = -torch.cat(
            [model.energy(part, _every(part, num_classes)) for part in points.split(10000)]
        )
    density = (log_joint - log_joint.max()).exp()
    maps = {
        "p(0 | x)": log_joint.softmax(dim=1)[:, 0],
        **{f"p(x, {k}) over its largest": density[:, k] for k in range(num_classes)},
    }
    shown = {name: values.view(_SIDE, _SIDE).numpy() for name, values in maps.items()}
    known = {f"labelled {k}": labelled[labels == k].numpy() for k in range(num_classes)}
    return figures.regions(
        shown, known, config.extent, "Probability of a class, and joint densities"
    )
