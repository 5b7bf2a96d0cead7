"""Patches of the two sample photographs in scikit-learn (a Chinese temple, a flower).

An out-of-distribution set for digits that needs no network. Each photograph is converted to grey,
reduced by averaging, and cut into a regular grid of patches.
"""

import numpy as np

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset


@section
class Config:
    size: PositiveInt = 8
    """Side of a patch, in pixels."""
    reduction: PositiveInt = 4
    """Side of the squares, in pixels, over which each photograph is averaged first."""


def load(config: Config) -> Dataset:
    from sklearn.datasets import load_sample_images  # slow to import

    patches = []
    for photo in load_sample_images().images:
        grey = photo.mean(axis=-1)
        r, s = config.reduction, config.size
        num_rows, num_columns = (side // (r * s) for side in grey.shape)
        reduced = (
            grey[: num_rows * r * s, : num_columns * r * s]
            .reshape(num_rows * s, r, num_columns * s, r)
            .mean(axis=(1, 3))
        )
        patches.append(
            reduced.reshape(num_rows, s, num_columns, s).transpose(0, 2, 1, 3).reshape(-1, 1, s, s)
        )
    return Dataset(
        splits={"test": Arrays(np.concatenate(patches).round().astype(np.uint8), None)},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=0,
        source="patches of the sample photographs china.jpg and flower.jpg carried by scikit-learn"
        " (CC BY)",
        is_official=True,
    )
