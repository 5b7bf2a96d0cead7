"""Small tables with outliers (ODDS, Rayana 2016; from UCI).

``thyroid`` has 3,772 rows, 6 columns and 93 outliers; ``arrhythmia`` has 452 rows, 274 columns and
66 outliers. Training uses the inliers of a random half of the rows (Zong et al. 2018, section 4.3).
The other half is the test split, with the label 1 for outliers. Columns are scaled to mean 0 and
standard deviation 1 of the training rows.
"""

from typing import Literal

import numpy as np

from ebm_dist.config import NonNegativeInt, section
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.datasets._download import RawFile, fetch
from ebm_dist.errors import DataError, reason
from ebm_dist.rng import numpy_stream

_FILES = {
    "thyroid": RawFile(
        "thyroid.npz",
        "https://github.com/Minqi824/ADBench/raw/main/adbench/datasets/Classical/38_thyroid.npz",
        "8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87",
    ),
    "arrhythmia": RawFile(
        "arrhythmia.mat",
        "https://github.com/yzhao062/pyod/raw/master/notebooks/data/arrhythmia.mat",
        "e4d47e499591ae31e5d7f0cd983367092353eac240f48e14c9b36457edb3460d",
    ),
}


@section
class Config:
    table: Literal["thyroid", "arrhythmia"] = "thyroid"
    """Table to load."""
    split_seed: NonNegativeInt = 0
    """Seed of the random halves."""


def load(config: Config) -> Dataset:
    from scipy.io import loadmat  # slow to import

    path = fetch(_FILES[config.table])
    try:
        raw = np.load(path, allow_pickle=False) if path.suffix == ".npz" else loadmat(path)
        x, y = np.asarray(raw["X"], np.float64), np.asarray(raw["y"]).ravel().astype(np.int64)
    except Exception as error:  # noqa: BLE001 (a broken archive or MATLAB file can raise any error)
        raise DataError(
            f"{path}: not the table {config.table} ({reason(error)}); remove it to fetch it again"
        ) from None
    order = numpy_stream(config.split_seed, f"odds/{config.table}").permutation(len(x))
    train_half, test = order[: len(x) // 2], order[len(x) // 2 :]
    train = train_half[y[train_half] == 0]
    mean, sd = x[train].mean(axis=0), x[train].std(axis=0)
    x = (x - mean) / np.where(sd > 0, sd, 1)
    return Dataset(
        splits={
            name: Arrays(x[rows].astype(np.float32), y[rows])
            for name, rows in {"train": train, "test": test}.items()
        },
        scale=1.0,
        bounds=None,
        num_classes=2,
        source=f"ODDS {config.table} (Rayana 2016, from the UCI Machine Learning Repository)",
        is_official=True,
    )
