"""Another data set of which a few labels are known, for semi-supervised learning; the split ``train`` has none.

Which labels these are decides much, so there are several draws of them, in splits ``labelled-0``, ``labelled-1``, ...: each seed of
the parameter file learns from its own.
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
    """The data set."""
    per_class: PositiveInt = 10
    """Labelled samples of each class."""
    num_draws: PositiveInt = 1
    """Random choices of them."""
    placement: Literal["random", "even"] = "random"
    """``even``: in each class at equal shares of its samples by distance from the origin, from a random one on: along the arm of a
    spiral."""


def load(config: Config) -> Dataset:
    whole: Dataset = module_of(config.of).load(config.of)
    x, y = whole.splits["train"]
    if y is None:
        raise DataError(
            "dataset.of: has no labels, of which a few could be kept; choose another data set"
        )
    splits = whole.splits | {"train": Arrays(x, None)}
    for draw in range(config.num_draws):
        chosen = np.concatenate(
            [_choose(config, x, np.flatnonzero(y == k), k, draw) for k in range(whole.num_classes)]
        )
        splits[f"labelled-{draw}"] = Arrays(x[chosen], y[chosen])
    each = (
        f"{config.per_class} {'evenly placed ' if config.placement == 'even' else ''}labels a class"
    )
    return whole._replace(splits=splits, source=f"{whole.source}; {each}")


def _choose(
    config: Config, x: npt.NDArray[Any], rows: npt.NDArray[np.int64], label: int, draw: int
) -> npt.NDArray[np.int64]:
    count, random = config.per_class, numpy_stream(draw, f"few_labels/{config.placement}/{label}")
    if len(rows) < count:
        raise DataError(
            f"dataset.per_class: class {label} has {len(rows)} samples, fewer than {count}; lower it"
        )
    if config.placement == "random":
        return np.sort(random.choice(rows, count, replace=False))
    by_distance = rows[
        np.linalg.norm(x[rows].reshape(len(rows), -1).astype(float), axis=1).argsort()
    ]
    places: npt.NDArray[np.int64] = by_distance[
        ((np.arange(count) + random.random()) * len(rows) / count).astype(int)
    ]
    return places
