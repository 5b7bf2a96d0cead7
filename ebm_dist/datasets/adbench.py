"""Tables with anomalies of ADBench (Han et al. 2022), in three protocols.

In two of them a random half of the normal rows is for training, columns are scaled to mean 0 and
standard deviation 1 of these rows, and the rest with all anomalies is the test split, label 1 for
anomalies. Of more than 10,000 rows 10,000 are drawn.

``published`` (Livernoche et al. 2024) draws 1,000 rows *with replacement* from a smaller table
before it is split, so copies of test rows are among the training rows: a look-up of the nearest one
does well. ``leak_free`` draws none twice, and leaves out test rows that equal a training row.

``contaminated`` trains on all rows, anomalies too, and scores the same ones.
"""

import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.config import NonNegativeInt, section
from ebm_dist.datasets import Arrays, Dataset, Standardisation
from ebm_dist.datasets._download import RawFile, fetch
from ebm_dist.errors import DataError, reason
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]
Protocol = Literal["leak_free", "published", "contaminated"]

_URL = "https://github.com/Minqi824/ADBench/raw/main/adbench/datasets/Classical/"
_FEWEST, _MOST = 1000, 10_000  # rows
SHA256 = {
    "1_ALOI": "792d0b5bd1147bfc9574a1974f157b39fbd4cbed8ecd04cf983fd554498ed477",
    "2_annthyroid": "e738f7c58a8740d2c4aac4c71ff49ce5e1d1aa16f44178135fc9c09df05fad1b",
    "4_breastw": "4f37ce07dbc25ddad8178fdc6d664ab46d2d0000ee28c2787c3c7ff3c03ef9f6",
    "5_campaign": "74dd4d0072d6c6f1aabab63bc102f9633454f32bb936fa9bcfbd38f9f2386bcd",
    "7_Cardiotocography": "5ae84910430f05923e11b6f537243263977c9136949dabd891e3570aeec51e29",
    "8_celeba": "1cadfdea14cd8d240eca715a70c09c88af8621d086a7478c63f602d97adef0b5",
    "10_cover": "945a097c3542ae81a551bf1c06dcad78a755d94f84fcaf1d60687e42d1a656df",
    "11_donors": "5824ec854465f2763b4bfe3da1ae9f25ed5433b5c6e265d42e37da4f82a58679",
    "14_glass": "aa7a8db1d475ba01a10488af454bc15220a3d5951b010b03b7020567d8152cdc",
    "15_Hepatitis": "4a87a2f7d8013e5bfde63294fae61ec7a612322de72f338a7f9491749025ad98",
    "16_http": "9d98710091551587f4740cfc851a6b064fff6319a337c2dc77ee6da4bcc2e02c",
    "17_InternetAds": "bdd8ad5cf5bf2cb96cba53dde30d522d0f6a279083a8e2bc7efbac5981b04385",
    "18_Ionosphere": "bca46cb0cfd1bf9ddef6cde5ad2215d54fb0189508d0d4c4eb98e788cad69001",
    "20_letter": "f986d3da80cf1fa2aea83a5ebe73b7d4800e0d4c01fdd1ae074b58d20f10d039",
    "21_Lymphography": "dad977b04f4ea65b78ccd0e9f76b45175bad605165b37e63f3cc177845e67037",
    "23_mammography": "a0308ac9712d78321073b1c2dc98dc37665c0f35c1cc33019416fe8f8d7de7ea",
    "24_mnist": "be7706272325fdd3592c1be555ae1a82f916a2f8545f4f8cbaa548ab102cc44c",
    "25_musk": "2ed3f4392197b76a1e59116ff880c7720a4b026cf4842073a53b56fdea265017",
    "26_optdigits": "60de17a375a278ba220a7849727d998aa02b5e2f9fd17732a004bba28de4656e",
    "28_pendigits": "c4936b89dcdad59d303020e492f763a0f54170080d787c77497609acbb9c2d79",
    "29_Pima": "215454bb263a2f040945c9ea7bd7f06f1e89a61a3143bdb6f196e3887e801a7d",
    "32_shuttle": "26900b0f6be45d9ddb7a402c9b2f956ceda42d23a8ca4cf4406b8bc1352823d1",
    "33_skin": "d02aa01ffc1b6bf2b8b1ac250c90e8a8eacd0cefc962940ed5cc4bf5deac9c95",
    "34_smtp": "d2569fc9bc12115419e3f5b37d19921e10e6c26e5ad1e61064cfb0fbc402dfdd",
    "35_SpamBase": "d0c46c7928e43f6496bcd06e09de0b70f6bc8143792dfa0a43f450263d254e9b",
    "38_thyroid": "8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87",
    "39_vertebral": "0816286f92b96fe6867664a41a031ac7228dcfbf1a5feefe50ca3883b2e9073d",
    "41_Waveform": "6c9d867337ad1a2f8372c1d27f4c032f0401237e2041b7c45f00de8d319ff30f",
    "42_WBC": "650f9dcb129248f67a291be0974f533ef259fcbde50fce5c8ad2a1cb2652d03b",
    "44_Wilt": "c70b72aa611ec87b20efb400943ef3ce4f8bf7aa58fcef825fbd28cc5cee3cc9",
    "47_yeast": "bbb15c873d78a4f6a589f46d0f75814595e2282d2ae7ce7779c750f276c3770d",
}
"""Digest of each table, by its name."""


@section
class Config:
    table: str = "38_thyroid"
    """Name of the table, such as ``38_thyroid``."""
    protocol: Protocol = "leak_free"
    """``leak_free``, ``published`` or ``contaminated``."""
    split_seed: NonNegativeInt = 0
    """Seed of the drawn rows and of the halves."""


class Split(NamedTuple):
    """Rows of a table, standardised."""

    train: Array
    """``(n, columns)``"""
    test: Array
    """``(m, columns)``"""
    truth: npt.NDArray[np.int64]
    """``(m,)``, 1 for anomalies"""
    num_copies: int
    """test rows that equal a training row: left out of ``leak_free``, within ``published``"""


def path_of(table: str) -> Path:
    """Return the file of a table by its name, downloaded where it is not at hand."""
    file = f"{table}.npz"
    return fetch(RawFile(f"adbench/{file}", _URL + file, SHA256[table]))


def load(config: Config) -> Dataset:
    if config.table not in SHA256:
        raise DataError(f"dataset.table: no {config.table!r}", f"use one of {', '.join(SHA256)}")
    found = split(*read(path_of(config.table)), config.protocol, config.split_seed)
    return Dataset(
        splits={
            "train": Arrays(found.train.astype(np.float32), np.zeros(len(found.train), np.int64)),
            "test": Arrays(found.test.astype(np.float32), found.truth),
        },
        scale=1.0,
        bounds=None,
        num_classes=2,
        source=f"ADBench {config.table} (Han et al. 2022)",
        is_official=True,
    )


def read(path: Path) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return rows ``(n, columns)`` and labels ``(n,)`` of an ``.npz`` with ``X`` and ``y``.

    Raise :class:`DataError` for other content.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is no .npz", "write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as raw:
            x, y = np.asarray(raw["X"], np.float64), np.asarray(raw["y"]).ravel().astype(np.int64)
    except Exception as failed:  # noqa: BLE001 (a broken archive can raise any error)
        raise DataError(
            f"{path}: not a table with X and y ({reason(failed)})", "write it with numpy.savez"
        ) from None
    classes = set(y.tolist())
    if x.ndim != 2 or y.shape != x.shape[:1] or classes != {0, 1}:
        raise DataError(
            f"{path}: X of shape {x.shape}, y of shape {y.shape} with {len(classes)} values",
            "give X (n, columns) and y (n,), 1 for anomalies and 0 for the others",
        )
    if not np.isfinite(x).all():
        raise DataError(f"{path}: X has values that are not finite", "impute or leave out rows")
    return x, y


def split(x: Array, y: npt.NDArray[np.int64], protocol: Protocol, seed: int) -> Split:
    """Return training and test rows of a table."""
    rng = numpy_stream(seed, "adbench")
    if protocol == "published" and len(x) < _FEWEST:
        drawn = rng.choice(len(x), _FEWEST, replace=True)
        x, y = x[drawn], y[drawn]
    elif len(x) > _MOST:
        drawn = rng.choice(len(x), _MOST, replace=False)
        x, y = x[drawn], y[drawn]
    normal, anomalous = rng.permutation(np.flatnonzero(y == 0)), np.flatnonzero(y == 1)
    half = len(normal) // 2
    train, test = normal[:half], np.concatenate([normal[half:], anomalous])
    if protocol == "contaminated":
        train = test = np.arange(len(x))
    known = {row.tobytes() for row in x[train]}
    are_copies = np.array([row.tobytes() in known for row in x[test]])
    if protocol == "leak_free":
        test = test[~are_copies]
    mean, sd = Standardisation.of(x[train])
    rows = (x - mean) / sd
    return Split(rows[train], rows[test], y[test], int(are_copies.sum()))
