"""Classification by an energy, ``p(k | x) = softmax(-E(x, k) / T)`` (Gao et al. 2020, section 5.4).

The suite reports accuracy, likelihood and calibration on the test split. Baselines without an
energy use the same samples: the same network trained on the labels alone, the nearest labelled
sample, and, where few have labels, labels spread over a graph of neighbours.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_dist.config import Mismatch, Params, Positive, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import build_energy
from ebm_dist.energies._by_class import by_class
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]

_BINS = 15
_SIDE = 200  # pixels per side of the maps of a plane


@section
class Config:
    supervised_steps: PositiveInt = 500
    """Updates of the network trained on the labels alone."""
    supervised_batch: PositiveInt = 256
    """Labelled samples of an update; all where there are no more."""
    supervised_lr: Positive = 1e-3
    """Learning rate of Adam for that network."""
    num_neighbours: PositiveInt = 7
    """Neighbours of a sample in the graph on which labels spread."""
    max_graph: PositiveInt = 5000
    """Random samples without a label in that graph."""
    extent: Positive = 4.0
    """Half the side of the square that figures of data in the plane show."""
    split: str = "test"
    """The split to classify: ``val`` to choose settings, ``test`` to report."""

    def check(self, params: Params) -> None:
        if params.objective.label_temperature is None:
            raise Mismatch(
                "evaluation.classification",
                "needs an objective that learns labels, such as semi_supervised or discriminative;"
                " choose one, or set objective.label_temperature",
            )


def check(config: Config, needs: Needs) -> None:
    needs.split("train")
    needs.split(config.split)
    needs.classes(config.split)


def evaluate(config: Config, subject: Subject) -> Report:
    model, num_classes = subject.model, subject.data.num_classes
    x, y = shards.read_split(subject.data, config.split)
    few = shards.read_labelled(subject.data, model.params.seed)
    labelled, labels = few or shards.read_split(subject.data, "train")
    truth = y.numpy()
    probabilities = model.classify(x).double().numpy()
    check_finite(probabilities, "evaluation.classification: p(k | x) of the energy")
    supervised = _supervised(config, model.params, labelled, labels, num_classes)
    with torch.no_grad():
        parts = [by_class(supervised, part, torch.arange(num_classes)) for part in x.split(1000)]
    of_supervised = (-torch.cat(parts)).softmax(dim=1)
    rows: dict[str, dict[str, float]] = {
        "p(k | x) of the energy": score_predictions(truth, probabilities),
        "same network, labels alone": score_predictions(truth, of_supervised.double().numpy()),
        **{
            name: score_predictions(truth, p)
            for name, p in _baselines(config, subject, x, labelled, labels, few is not None).items()
        },
        "chance": score_predictions(truth, np.full((len(truth), num_classes), 1 / num_classes))
        | {"accuracy": 1 / num_classes},
    }
    model_row, alone = rows["p(k | x) of the energy"], rows["same network, labels alone"]
    spread = ("spreading", "propagation") if few else ()
    keys = ("model", "supervised", "nearest", *spread, "chance")
    metrics: dict[str, Any] = {
        **model_row,
        "gain": model_row["accuracy"] - alone["accuracy"],
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
    """Return accuracy, mean negative log-likelihood in nats and expected calibration error.

    The calibration error is over 15 bins of confidence (Guo et al. 2017, eq. 3).
    """
    predicted = probabilities.argmax(axis=1)
    right, confidence = predicted == truth, probabilities.max(axis=1)
    error = sum(share * abs(accuracy - mean) for share, accuracy, mean in _bins(right, confidence))
    nll = -np.log(probabilities[np.arange(len(truth)), truth].clip(min=1e-12)).mean()
    return {"accuracy": float(right.mean()), "nll": float(nll), "calibration_error": float(error)}


def _bins(right: npt.NDArray[np.bool_], confidence: Array) -> list[tuple[float, float, float]]:
    """Return share, accuracy and mean confidence of each non-empty bin of confidence."""
    index = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    masks = [index == i for i in range(_BINS)]
    return [
        (float(mask.mean()), float(right[mask].mean()), float(confidence[mask].mean()))
        for mask in masks
        if mask.any()
    ]


def _supervised(
    config: Config, params: Params, x: Tensor, y: Tensor, num_classes: int
) -> torch.nn.Module:
    """Train the model's network from its initial weights on the labelled samples alone."""
    network = build_energy(params, tuple(x.shape[1:]), num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.supervised_lr)
    rng, every = numpy_stream(0, "classification/supervised"), torch.arange(len(x))
    classes = torch.arange(num_classes)
    for _ in range(config.supervised_steps):
        rows = every
        if len(x) > config.supervised_batch:
            rows = torch.from_numpy(rng.choice(len(x), config.supervised_batch, replace=False))
        optimizer.zero_grad()
        logits = -by_class(network, x[rows], classes)
        F.cross_entropy(logits, y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)


def _baselines(
    config: Config, subject: Subject, x: Tensor, labelled: Tensor, labels: Tensor, are_few: bool
) -> dict[str, Array]:
    """Return class probabilities by the nearest label and, of few, by spreading over a graph."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.semi_supervised import LabelPropagation, LabelSpreading  # slow to import

    flat, targets, queries = labelled.flatten(1).numpy(), labels.numpy(), x.flatten(1).numpy()
    nearest = KNeighborsClassifier(1).fit(flat, targets).predict_proba(queries)
    if not are_few:
        return {"nearest labelled sample": nearest}
    train = shards.read_split(subject.data, "train")[0].flatten(1).numpy()
    unlabelled = train[
        numpy_stream(0, "classification/graph").permutation(len(train))[: config.max_graph]
    ]
    nodes = np.concatenate([flat, unlabelled])
    node_labels = np.concatenate([targets, np.full(len(unlabelled), -1)])
    # a component of the graph without a label has no probabilities: NaN
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is good enough
        methods = {
            "label spreading": LabelSpreading(
                kernel="knn", n_neighbors=config.num_neighbours, alpha=0.99, max_iter=1000
            ),
            "label propagation": LabelPropagation(
                kernel="knn", n_neighbors=config.num_neighbours, max_iter=5000
            ),
        }  # alpha as in Zhou et al. 2004
        spread = {
            name: method.fit(nodes, node_labels).predict_proba(queries)
            for name, method in methods.items()
        }
    return {"nearest labelled sample": nearest} | {
        name: np.nan_to_num(p, nan=1 / p.shape[1]) for name, p in spread.items()
    }


def _calibration(truth: npt.NDArray[np.int64], probabilities: dict[str, Array]) -> bytes:
    shown = {}
    for name, p in probabilities.items():
        bins = _bins(p.argmax(axis=1) == truth, p.max(axis=1))
        shown[name] = ([mean for _, _, mean in bins], [accuracy for _, accuracy, _ in bins])
    return figures.calibration(shown, f"Calibration on {len(truth):,} samples")


def _regions(config: Config, subject: Subject, labelled: Tensor, labels: Tensor) -> bytes:
    """Draw ``p(k | x)`` and the densities of each class, as in Figure 5 of Gao et al. 2020."""
    side = torch.linspace(-config.extent, config.extent, _SIDE)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    model, num_classes = subject.model, subject.data.num_classes
    classes = torch.arange(num_classes)
    with torch.no_grad():
        log_joint = -torch.cat(
            [by_class(model.energy, part, classes) for part in points.split(10000)]
        )
    names = subject.data.class_names
    density = (log_joint - log_joint.max()).exp()
    maps = {
        f"p({names[0]} | x)": log_joint.softmax(dim=1)[:, 0],
        **{f"p(x, {names[k]}) over its largest": density[:, k] for k in range(num_classes)},
    }
    shown = {name: values.view(_SIDE, _SIDE).numpy() for name, values in maps.items()}
    points_of = {f"labelled {names[k]}": labelled[labels == k].numpy() for k in range(num_classes)}
    return figures.regions(
        shown, points_of, config.extent, "Probability of a class, and joint densities"
    )
