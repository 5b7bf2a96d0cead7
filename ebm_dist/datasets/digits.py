"""The 8x8 handwritten digits in scikit-learn: 1,797 images (Alpaydin & Kaynak 1998).

Needs no network. Pixels are counts from 0 to 16. This copy has no published split, so the test
images are a fixed random choice.
"""

import numpy as np

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset, hold_out


@section
class Config:
    num_test: PositiveInt = 360
    """Images for reporting."""
    num_val: PositiveInt = 180
    """Images for choosing settings; the rest are for training."""


def load(config: Config) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import

    images, labels = load_digits(return_X_y=True)
    all_digits = Arrays(images.reshape(-1, 1, 8, 8).astype(np.uint8), labels.astype(np.int64))
    rest, test = hold_out(all_digits, config.num_test, "digits/test")
    train, val = hold_out(rest, config.num_val, "digits/val")
    return Dataset(
        splits={"train": train, "val": val, "test": test},
        scale=16.0,
        bounds=(0.0, 1.0),
        num_classes=10,
        source="Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998, UCI),"
        " as carried by scikit-learn",
        is_official=True,
    )
