"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels (LeCun, Bottou, Bengio & Haffner 1998).

Two variants. Stacked: random digits are the channels of one image, and its class is the number that
they spell, 1,000 classes with three channels (Metz et al. 2017, section 3.3.2; Kumar et al. 2019,
section 4.2). Held out: one digit is the anomaly, only in the test split (Kumar et al. 2019,
section 4.3).
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.datasets._download import RawFile, load_idx
from ebm_dist.rng import numpy_stream

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FILES = {
    "train_images": RawFile(
        "train-images-idx3-ubyte.gz",
        _URL + "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train_labels": RawFile(
        "train-labels-idx1-ubyte.gz",
        _URL + "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "test_images": RawFile(
        "t10k-images-idx3-ubyte.gz",
        _URL + "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "test_labels": RawFile(
        "t10k-labels-idx1-ubyte.gz",
        _URL + "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}

Digit = Annotated[int, Field(ge=0, le=9)]


@section
class Config:
    num_val: PositiveInt = 5000
    """Training images held out for choosing settings."""
    num_channels: PositiveInt = 1
    """Digits per image, one per channel."""
    num_stacked: PositiveInt = 100000
    """Training images if ``num_channels > 1``; validation and test have a quarter as many each."""
    held_out: Digit | None = None
    """Digit that is only in the test split, as class 1. The test split also has a fifth of the
    other digits of all 70,000 images. No image is in two splits."""
    known_classes: bool = False
    """Label the other digits with classes 0 to 8 and the held-out digit with 9."""

    def check(self, params: Params) -> None:
        if self.held_out is not None and self.num_channels > 1:
            raise Mismatch(
                "dataset.held_out",
                "cannot be set for images of several digits; set num_channels: 1",
            )
        if self.known_classes and self.held_out is None:
            raise Mismatch(
                "dataset.known_classes",
                "has no effect without a held-out digit; set held_out or drop known_classes",
            )


def load(config: Config) -> Dataset:
    whole = load_idx(
        _FILES, config.num_val, "mnist/val", "MNIST (LeCun, Bottou, Bengio & Haffner 1998)"
    )
    if config.num_channels > 1:
        counts = {
            "train": config.num_stacked,
            "val": config.num_stacked // 4,
            "test": config.num_stacked // 4,
        }
        splits = {
            split: _stack(whole.splits[split], config.num_channels, counts[split], split)
            for split in whole.splits
        }
        return whole._replace(splits=splits, num_classes=10**config.num_channels)
    if config.held_out is None:
        return whole
    x = np.concatenate([arrays.x for arrays in whole.splits.values()])
    digit = np.concatenate([arrays.y for arrays in whole.splits.values() if arrays.y is not None])
    is_inlier, num_inlier_classes = digit != config.held_out, 9 if config.known_classes else 1
    y = np.where(
        is_inlier, (digit - (digit > config.held_out)) % num_inlier_classes, num_inlier_classes
    )
    inliers = Arrays(x[is_inlier], y[is_inlier])
    train, test = hold_out(inliers, len(inliers.x) // 5, f"mnist/without-{config.held_out}")
    train, val = hold_out(train, config.num_val, f"mnist/without-{config.held_out}/val")
    assert test.y is not None
    test = Arrays(np.concatenate([test.x, x[~is_inlier]]), np.concatenate([test.y, y[~is_inlier]]))
    return whole._replace(
        splits={"train": train, "val": val, "test": test},
        num_classes=9 if config.known_classes else 2,
    )


def _stack(digits: Arrays, num_channels: int, count: int, split: str) -> Arrays:
    assert digits.y is not None
    rows = numpy_stream(0, f"mnist/stacked/{num_channels}/{split}").integers(
        len(digits.x), size=(count, num_channels)
    )
    return Arrays(digits.x[rows, 0], (digits.y[rows] * 10 ** np.arange(num_channels)).sum(axis=1))
