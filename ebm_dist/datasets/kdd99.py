"""KDD Cup 1999, 10 percent: 494,021 network connections with 41 features (Stolfo et al. 1999; UCI, CC BY 4.0).

As an anomaly detection task (Zong et al. 2018, section 4.3; Kumar et al. 2019, section 4.3) the *normal* connections are the
anomalies, because floods of equal attacks outnumber them; among distinct rows they do not. Half of the rows, drawn at random, are
for training, of which only the inliers are kept; the test has all inliers of the other half, and anomalies as a fifth. A tenth of
the inliers for training is kept to choose settings by, again with a fifth of anomalies, those of the same half.
"""

import gzip
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
_SHARE = 0.2  # of anomalies in the test
_LEAST_VARIANCE = 1e-8


@section
class Config:
    scaling: Literal["raw", "minmax", "log", "white"] = "minmax"
    """``raw``: numbers up to 1e9, on which the published code trains; ``minmax``: each column from 0 to 1 over all rows; ``log``:
    that of log(1 + x); ``white``: of ``log``, the principal components of the training rows in units of their deviations, and of
    these asinh, which leaves what is usual nearly as it is and of the rest takes the logarithm."""
    switches: Literal["numbers", "one-hot"] = "one-hot"
    """Four columns of 0 and 1 as they are (118 features), or as two columns each but for those that never change (121)."""
    distinct: bool = False
    """Each different row once: 145,586 remain."""
    inliers: Literal["attacks", "normals"] = "attacks"
    """What is learnt, and what is not anomalous."""
    split_seed: NonNegativeInt = 42
    """Of the halves."""


def load(config: Config) -> Dataset:
    x, is_attack = _read(config)
    if config.distinct:
        _, first = np.unique(np.column_stack([x, is_attack]), axis=0, return_index=True)
        x, is_attack = x[np.sort(first)], is_attack[np.sort(first)]
    is_anomaly = is_attack == (config.inliers == "normals")
    order = numpy_stream(config.split_seed, "kdd99/halves").permutation(len(x))
    half, other = order[: len(x) // 2], order[len(x) // 2 :]
    train, inliers = half[~is_anomaly[half]], other[~is_anomaly[other]]
    val, train = train[: len(train) // 10], train[len(train) // 10 :]
    chosen = {
        "train": train,
        "val": _mixed(val, half[is_anomaly[half]]),
        "test": _mixed(inliers, other[is_anomaly[other]]),
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
            for name, rows in chosen.items()
        },
        scale=1.0,
        bounds=(0.0, 1.0) if config.scaling in ("minmax", "log") else None,
        num_classes=2,
        source="KDD Cup 1999, 10 percent (Stolfo et al. 1999, UCI)",
        is_official=True,
    )


def _whiten(x: npt.NDArray[np.float64], known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows ``(n, columns)`` along the principal components of the known ones; a component that never varied there counts most."""
    variances, directions = np.linalg.eigh(np.cov(known, rowvar=False))
    white: npt.NDArray[np.float64] = (
        (x - known.mean(axis=0)) @ directions / np.sqrt(variances.clip(min=0) + _LEAST_VARIANCE)
    )
    return np.arcsinh(white)


def _mixed(
    inliers: npt.NDArray[np.int64], anomalies: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    return np.concatenate([inliers, anomalies[: int(len(inliers) * _SHARE / (1 - _SHARE))]])


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
    except (OSError, EOFError, UnicodeError, ValueError) as failed:
        raise DataError(f"{path}: not the KDD Cup 1999 data ({failed}); fetch it again") from None
