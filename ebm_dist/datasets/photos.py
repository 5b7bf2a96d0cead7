"""Patches of the two photographs that scikit-learn carries (a Chinese temple, a flower): real images far from any digit.

An out-of-distribution set that needs no network. Patches are grey, on a regular grid, each photograph first reduced by averaging.
"""

import numpy as np
from sklearn.datasets import load_sample_images

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset


@section
class Config:
    size: PositiveInt = 8
    """Pixels a side of each patch."""
    reduction: PositiveInt = 4
    """Each photograph is first averaged over squares of so many pixels a side."""


def load(config: Config) -> Dataset:
    patches = []
    for photo in load_sample_images().images:
        grey = photo.mean(axis=-1)
        r, s = config.reduction, config.size
        height, width = (side // (r * s) for side in grey.shape)
        small = (
            grey[: height * r * s, : width * r * s]
            .reshape(height * s, r, width * s, r)
            .mean(axis=(1, 3))
        )
        patches.append(
            small.reshape(height, s, width, s).transpose(0, 2, 1, 3).reshape(-1, 1, s, s)
        )
    return Dataset(
        splits={"test": Arrays(np.concatenate(patches).round().astype(np.uint8), None)},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=0,
        source="patches of the sample photographs china.jpg and flower.jpg carried by scikit-learn (CC BY)",
        is_official=True,
    )
