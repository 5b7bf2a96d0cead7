"""KDD Cup 1999, 10 percent: 494,021 network connections with 41 features (Stolfo et al. 1999).

Source: UCI Machine Learning Repository, CC BY 4.0.

In the anomaly detection task (Zong et al. 2018, section 4.3; Kumar et al. 2019, section 4.3) the
*normal* connections are the anomalies, because floods of equal attacks outnumber them. Among
distinct rows attacks are the minority. Training uses the inliers of a random half of the rows. The
test split has all inliers of the other half, and a fifth of it are anomalies of that half. The
validation split has a tenth of the training inliers, and a fifth of it are anomalies of the same
half.
"""

import gzip
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from ebm_dist.config import NonNegativeInt, section
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.datasets._download import RawFile, fetch
from ebm_dist.errors import DataError
from ebm_dist.rng import numpy_stream

_FILE = RawFile(
    "kddcup.data_10_percent.gz",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/kddcup99-mld/kddcup.data_10_percent.gz",
    "8045aca0d84e70e622d1148d7df782496f6333bf6eb979a1b0837c42a9fd9561",
)
_NUM_COLUMNS = 41
_WORDS = (1, 2, 3)  # protocol, service, flag
_SWITCHES = (6, 11, 20, 21)  # land, logged in, host login, guest login
_ANOMALY_FRACTION = 0.2  # in the validation and test splits
_MIN_VARIANCE = 1e-8


@section
class Config:
    scaling: Literal["raw", "minmax", "log", "white"] = "minmax"
    """``raw``: unscaled, up to 1e9, as in the published code; ``minmax``: each column scaled to
    [0, 1] over all rows; ``log``: ``minmax`` of log(1 + x); ``white``: asinh of the whitened
    principal components of ``log``, fitted to the training rows (asinh is almost linear near 0 and
    logarithmic for large values)."""
    switches: Literal["numbers", "one-hot"] = "one-hot"
    """Encoding of the four binary columns. ``numbers``: one column each (118 features);
    ``one-hot``: one column per value that occurs (121 features)."""
    distinct: bool = False
    """Drop repeated rows; 145,586 remain."""
    inliers: Literal["attacks", "normals"] = "attacks"
    """Class of connections to learn; the other class is the anomaly."""
    split_seed: NonNegativeInt = 42
    """Seed of the random halves."""


def load(config: Config) -> Dataset:
    x, is_attack = _read(config)
    if config.distinct:
        _, first_rows = np.unique(np.column_stack([x, is_attack]), axis=0, return_index=True)
        x, is_attack = x[np.sort(first_rows)], is_attack[np.sort(first_rows)]
    is_anomaly = is_attack == (config.inliers == "normals")
    order = numpy_stream(config.split_seed, "kdd99/halves").permutation(len(x))
    train_half, test_half = order[: len(x) // 2], order[len(x) // 2 :]
    train, test = train_half[~is_anomaly[train_half]], test_half[~is_anomaly[test_half]]
    val, train = train[: len(train) // 10], train[len(train) // 10 :]
    split_rows = {
        "train": train,
        "val": _add_anomalies(val, train_half[is_anomaly[train_half]]),
        "test": _add_anomalies(test, test_half[is_anomaly[test_half]]),
    }
    if config.scaling != "raw":
        x = x if config.scaling == "minmax" else np.log1p(x)
        low, high = x.min(axis=0), x.max(axis=0)
        x = (x - low) / np.where(high > low, high - low, 1)
    if config.scaling == "white":
        x = _whiten(x, x[train])
    return Dataset(
        splits={
            name: Arrays(x[rows].astype(np.float32), is_anomaly[rows].astype(np.int64))
            for name, rows in split_rows.items()
        },
        scale=1.0,
        bounds=(0.0, 1.0) if config.scaling in ("minmax", "log") else None,
        num_classes=2,
        source="KDD Cup 1999, 10 percent (Stolfo et al. 1999, UCI)",
        is_official=True,
    )


def _whiten(x: npt.NDArray[np.float64], train: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return asinh of ``x (n, columns)``, whitened by the principal components of ``train``.

    A component that is constant in ``train`` gets the largest weight. One thread: the last bits of
    products and eigenvectors depend on the number.
    """
    with threadpool_limits(1):
        variances, directions = np.linalg.eigh(np.cov(train, rowvar=False))
        white: npt.NDArray[np.float64] = (
            (x - train.mean(axis=0)) @ directions / np.sqrt(variances.clip(min=0) + _MIN_VARIANCE)
        )
    return np.arcsinh(white)


def _add_anomalies(
    inliers: npt.NDArray[np.int64], anomalies: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    count = int(len(inliers) * _ANOMALY_FRACTION / (1 - _ANOMALY_FRACTION))
    return np.concatenate([inliers, anomalies[:count]])


def _read(config: Config) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    path = fetch(_FILE)
    try:
        rows = [
            line.split(",")
            for line in gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
        ]
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        if len(columns) != _NUM_COLUMNS + 1:
            raise ValueError(f"{len(columns)} columns")
        one_hot = _WORDS + (_SWITCHES if config.switches == "one-hot" else ())
        parts: list[Any] = []
        for i, column in enumerate(columns[:-1]):
            parts += (
                [column == value for value in np.unique(column)]
                if i in one_hot
                else [column.astype(np.float64)]
            )
        return np.column_stack(parts).astype(np.float64), columns[-1] != "normal."
    except (OSError, EOFError, UnicodeError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: not the KDD Cup 1999 data ({error}); remove it to fetch it again"
        ) from None
