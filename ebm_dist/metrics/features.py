"""A small classifier trained in the pipeline, and scores computed from its features.

The features replace those of Inception, because the weights behind published FID and IS are not
available everywhere. The scores are named **FID-clf** and **IS-clf** and are not comparable with
published FID or IS. Read each against the same score of real images (the floor) and of plain
baselines.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import Mismatch, Params, Positive, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.errors import DataError
from ebm_dist.files import encode, read_json, read_tensors, sha256, write_json
from ebm_dist.rng import numpy_stream, seeded
from ebm_dist.storage import write_whole

WEIGHTS, CARD = "classifier.safetensors", "classifier.json"

Array = npt.NDArray[np.float64]


@section
class Config:
    num_steps: PositiveInt = 600
    """Updates of the classifier."""
    batch_size: PositiveInt = 128
    """Images per update."""
    lr: Positive = 2e-3
    """Initial learning rate of Adam; it decreases linearly to 0."""
    dataset: str | None = None
    """Name of the comparison data set to learn; the data set itself if absent."""
    dim: PositiveInt = 64
    """Width of the penultimate layer, which gives the features."""
    seed: int = 0
    """Seed of the classifier. It differs from that of the file: replicates share the features."""
    num_threads: PositiveInt = 2
    """CPU threads; a different number gives slightly different weights."""

    def check(self, params: Params) -> None:
        if self.dataset is not None and self.dataset not in params.comparison_datasets:
            raise Mismatch(
                "features.dataset",
                f"no comparison data set {self.dataset!r}, only "
                f"{', '.join(params.comparison_datasets) or 'none'}; choose one of them",
            )


class Classifier(nn.Module):
    """3x3 convolutions, then a layer of features, then classes.

    Each convolution except the first halves the side of the image, until it is at most 4.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, dim: int) -> None:
        super().__init__()
        channels, side = [shape[0], 32], max(shape[1:])
        layers: list[nn.Module] = [nn.Conv2d(channels[0], channels[1], 3, padding=1)]
        while side > 4:
            channels.append(64)
            layers.append(nn.Conv2d(channels[-2], channels[-1], 3, stride=2, padding=1))
            side = (side + 1) // 2
        self.convolutions = nn.ModuleList(layers)
        self.features_layer = nn.LazyLinear(dim)
        self.classes = nn.Linear(dim, num_classes)
        self(torch.zeros(1, *shape))

    def features(self, x: Tensor) -> Tensor:
        """Return the features ``(B, dim)`` of images ``(B, *shape)``."""
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
        return F.silu(self.features_layer(x.flatten(1)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x))  # type: ignore[no-any-return]


def is_possible(index: shards.Index) -> bool:
    """Return whether the data can train a classifier: images of more than one class."""
    counts = index.statistics["train"]["class_counts"] or []
    return sum(count > 0 for count in counts) > 1 and len(index.shape) == 3


def is_measurable(index: shards.Index) -> bool:
    """Return whether the data can train a classifier and measure its accuracy on a test split."""
    return "test" in index.splits and is_possible(index)


def train(
    config: Config,
    index: shards.Index,
    folder: Path,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train on the training split, write weights and card to ``folder``, and return the card.

    The card has the accuracy on the test split and digests of data and weights. ``progress`` is
    called with the number of updates after each.
    """
    x, y = map(torch.from_numpy, shards.read_raw(index, "train", None))
    with seeded(config.seed, "classifier"):
        model = Classifier(index.shape, index.num_classes, config.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    for step, rows in enumerate(_batches(len(x), config)):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.num_steps)
        loss = F.cross_entropy(model(shards.to_model(x[rows], index.scale)), y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1)
    test_x, test_y = shards.read_split(index, "test")
    correct = (classify(model, test_x)[1].argmax(axis=1) == test_y.numpy()).sum()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, encode(model.state_dict()))
    card = {
        "shape": index.shape,
        "num_classes": index.num_classes,
        "dim": config.dim,
        "accuracy": float(correct / len(test_y)),
        "num_test": len(test_y),
        "data_digest": index.digest,
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    write_json(folder / CARD, card)
    return card


def _batches(count: int, config: Config) -> Iterator[Tensor]:
    rows = numpy_stream(config.seed, "classifier/order")
    for _ in range(config.num_steps):
        yield torch.from_numpy(rows.choice(count, min(config.batch_size, count), replace=False))


def load(folder: Path) -> Classifier | None:
    """Load the classifier of a folder; return None where the data had no labelled images.

    Raise :class:`DataError` if the weights do not match the card.
    """
    card = read_json(folder / CARD, "classifier")
    if card is None:
        return None
    model = Classifier(tuple(card["shape"]), card["num_classes"], card["dim"])
    if sha256(folder / WEIGHTS) != card["weights_sha256"]:
        raise DataError(
            f"{folder / WEIGHTS}: differs from {CARD}: altered; run 'dvc repro -f classifier'"
        )
    model.load_state_dict(read_tensors(folder / WEIGHTS, "classifier"))
    return model.requires_grad_(False)


class Scored(NamedTuple):
    """Output of the classifier for a set of images, in float64."""

    features: Array
    """``(n, dim)``"""
    probabilities: Array
    """``(n, num_classes)``"""


@torch.no_grad()
def classify(model: Classifier, x: Tensor) -> Scored:
    """Return features and class probabilities of images ``(n, *shape)``."""
    pieces = [model.features(part) for part in x.split(1000)]
    features = torch.cat(pieces)
    return Scored(
        features.double().numpy(), model.classes(features).double().softmax(dim=1).numpy()
    )


def frechet_distance(a: Array, b: Array) -> float:
    """Return the squared Frechet distance of Gaussians fitted to two sets of features.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`` (Heusel et al. 2017, eq. 6).
    It decreases with the number of samples, so compare equal numbers only. Raises
    :class:`DataError` for fewer than two rows, which have no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise DataError(
            f"FID-clf compares at least 2 images with 2, found {len(a)} and {len(b)}",
            "use a data set with more images",
        )
    covariances = [np.atleast_2d(np.cov(part, rowvar=False)) for part in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    squared = shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return max(float(squared), 0.0)  # rounding may go below


def inception_score(probabilities: Array) -> float:
    """Return ``exp(mean KL(p(y|x) || p(y)))`` (Salimans et al. 2016), over one split.

    It is between 1 and the number of classes.
    """
    p = probabilities.clip(min=1e-12)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def class_shares(probabilities: Array) -> Array:
    """Return the share of the samples in each class, ``(num_classes,)``."""
    return np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1]) / len(
        probabilities
    )
