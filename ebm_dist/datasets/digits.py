"""The 8x8 handwritten digits that scikit-learn carries: 1,797 real images, no network needed (Alpaydin & Kaynak 1998).

Pixels are counts from 0 to 16. There is no published split of this copy, so 360 test images are drawn at random, always the same.
"""

import numpy as np
from sklearn.datasets import load_digits

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset, hold_out


@section
class Config:
    num_test: PositiveInt = 360
    """Images to report on."""
    num_val: PositiveInt = 180
    """Images to choose settings by; the rest are for training."""


def load(config: Config) -> Dataset:
    images, labels = load_digits(return_X_y=True)
    everything = Arrays(images.reshape(-1, 1, 8, 8).astype(np.uint8), labels.astype(np.int64))
    rest, test = hold_out(everything, config.num_test, "digits/test")
    train, val = hold_out(rest, config.num_val, "digits/val")
    return Dataset(
        splits={"train": train, "val": val, "test": test},
        scale=16.0,
        bounds=(0.0, 1.0),
        num_classes=10,
        source="Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998, UCI), as carried by scikit-learn",
        is_official=True,
    )
