"""SVHN, cropped: 73,257 + 26,032 colour house numbers of 32x32 pixels (Netzer et al. 2011).

The label is the middle digit.
"""

from pathlib import Path

import numpy as np

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
    """Training images held out for choosing settings."""


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
    """Return the images ``(n, 3, 32, 32)`` and labels ``(n,)`` of a MATLAB 5 file.

    The file has ``X (32, 32, 3, n)`` and ``y (n, 1)``, in which the digit 0 has the label 10.
    Raise :class:`DataError` for any other file.
    """
    from scipy.io import loadmat  # slow to import

    try:
        arrays = loadmat(path, variable_names=["X", "y"])
        x, y = np.asarray(arrays["X"], np.uint8), np.asarray(arrays["y"], np.int64).ravel() % 10
        return Arrays(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y)
    except Exception as error:  # noqa: BLE001 (a broken MATLAB file can raise any error)
        raise DataError(
            f"{path}: not a file of SVHN ({type(error).__name__}: {error}); remove it to fetch it"
            " again"
        ) from None
