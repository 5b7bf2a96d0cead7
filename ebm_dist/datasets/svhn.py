"""SVHN, cropped: 73,257 + 26,032 colour house numbers of 32x32 pixels, labelled by their middle digit (Netzer et al. 2011)."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.datasets._download import RawFile, fetch
from ebm_dist.errors import DataError

_URL = "http://ufldl.stanford.edu/housenumbers/"
_TRAIN = RawFile(
    "train_32x32.mat",
    _URL + "train_32x32.mat",
    "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
)
_TEST = RawFile(
    "test_32x32.mat",
    _URL + "test_32x32.mat",
    "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
)


@section
class Config:
    num_val: PositiveInt = 5000
    """Images taken from the training split for choosing settings."""


def load(config: Config) -> Dataset:
    train, val = hold_out(read(fetch(_TRAIN)), config.num_val, "svhn/val")
    return Dataset(
        splits={"train": train, "val": val, "test": read(fetch(_TEST))},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=10,
        source="SVHN, cropped digits (Netzer et al. 2011)",
        is_official=True,
    )


def read(path: Path) -> Arrays:
    """Images and labels of a MATLAB 5 file, ``X (32, 32, 3, n)`` and ``y (n, 1)``, where the digit 0 has the label 10.

    Raises :class:`DataError` for any other file.
    """
    try:
        found = loadmat(path, variable_names=["X", "y"])
        x, y = np.asarray(found["X"], np.uint8), np.asarray(found["y"], np.int64).ravel() % 10
        return Arrays(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y)
    except Exception as failed:  # noqa: BLE001 (the reader of MATLAB files raises whatever a broken one leads it to)
        raise DataError(
            f"{path}: not a file of SVHN ({type(failed).__name__}: {failed}); fetch it again"
        ) from None
