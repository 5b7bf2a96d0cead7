"""Another data set with few of its labels, for semi-supervised learning.

The split ``train`` has no labels. Results depend on which labels are kept, so there are several
draws of them, in the splits ``labelled-0``, ``labelled-1``, ...: the training with seed ``s`` uses
the draw ``s % num_draws``.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ebm_dist.config import PositiveInt, module_of, plugin, section
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.errors import DataError
from ebm_dist.rng import numpy_stream


@section
class Config:
    of: Any = plugin("datasets")
    """Data set with labels."""
    per_class: PositiveInt = 10
    """Labelled samples per class."""
    num_draws: PositiveInt = 1
    """Number of random choices of the labelled samples."""
    placement: Literal["random", "even"] = "random"
    """``random``, or ``even``: in each class at equally spaced quantiles of the distance from the
    origin, from a random offset, which spreads the labels along the arm of a spiral."""


def load(config: Config) -> Dataset:
    whole: Dataset = module_of(config.of).load(config.of)
    x, y = whole.splits["train"]
    if y is None:
        raise DataError(
            "dataset.of: has no labels, so none can be kept; choose a data set with labels"
        )
    splits = whole.splits | {"train": Arrays(x, None)}
    for draw in range(config.num_draws):
        labelled = np.concatenate(
            [_choose(config, x, np.flatnonzero(y == k), k, draw) for k in range(whole.num_classes)]
        )
        splits[f"labelled-{draw}"] = Arrays(x[labelled], y[labelled])
    placed = "evenly placed " if config.placement == "even" else ""
    source = f"{whole.source}; {config.per_class} {placed}labels a class"
    return whole._replace(splits=splits, source=source)


def _choose(
    config: Config, x: npt.NDArray[Any], rows: npt.NDArray[np.int64], label: int, draw: int
) -> npt.NDArray[np.int64]:
    count = config.per_class
    generator = numpy_stream(draw, f"few_labels/{config.placement}/{label}")
    if len(rows) < count:
        raise DataError(
            f"dataset.per_class: class {label} has {len(rows)} samples, fewer than {count}; lower"
            " per_class"
        )
    if config.placement == "random":
        return np.sort(generator.choice(rows, count, replace=False))
    by_distance = rows[
        np.linalg.norm(x[rows].reshape(len(rows), -1).astype(float), axis=1).argsort()
    ]
    evenly_placed: npt.NDArray[np.int64] = by_distance[
        ((np.arange(count) + generator.random()) * len(rows) / count).astype(int)
    ]
    return evenly_placed
