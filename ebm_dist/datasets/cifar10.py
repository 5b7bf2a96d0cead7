"""CIFAR-10: 50,000 + 10,000 colour photographs of 32x32 pixels in ten classes (Krizhevsky 2009).

Reads the binary archive, because the Python archive contains pickles.
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.datasets._download import RawFile, fetch
from ebm_dist.errors import DataError

_FILE = RawFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_SHAPE = (3, 32, 32)
_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
NUM_CLASSES = len(_CLASSES)


@section
class Config:
    num_val: PositiveInt = 5000
    """Training images held out for choosing settings."""


def load(config: Config) -> Dataset:
    path = fetch(_FILE)
    train, val = hold_out(
        read(path, [f"data_batch_{i}.bin" for i in range(1, 6)]), config.num_val, "cifar10/val"
    )
    return Dataset(
        splits={"train": train, "val": val, "test": read(path, ["test_batch.bin"])},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=NUM_CLASSES,
        source="CIFAR-10 (Krizhevsky 2009)",
        is_official=True,
        class_names=_CLASSES,
    )


def read(path: Path, names: list[str]) -> Arrays:
    """Return images ``(n, 3, 32, 32)`` and labels ``(n,)`` of the files ``names`` in the archive.

    A record is a label and the red, green and blue planes. Raise :class:`DataError` for any other
    archive.
    """
    records = []
    try:
        with tarfile.open(path) as archive:
            for name in names:
                member = archive.extractfile(f"cifar-10-batches-bin/{name}")
                content = member.read() if member else b""
                records.append(
                    np.frombuffer(content, np.uint8).reshape(-1, 1 + int(np.prod(_SHAPE)))
                )
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path}: not the archive of CIFAR-10 in bytes ({error}); remove it to fetch it again"
        ) from None
    rows = np.concatenate(records)
    if rows[:, 0].max(initial=0) >= NUM_CLASSES:
        raise DataError(
            f"{path}: has the label {rows[:, 0].max()}, but CIFAR-10 has labels 0 to 9; remove it"
            " to fetch it again"
        )
    return Arrays(rows[:, 1:].reshape(-1, *_SHAPE), rows[:, 0].astype(np.int64))
