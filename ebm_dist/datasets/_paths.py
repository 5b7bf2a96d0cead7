"""Where the user's own files are, and their order."""

import os
import re
from pathlib import Path

from ebm_dist.errors import DataError
from ebm_dist.storage import location


def locate(name: str) -> Path:
    """Return a file or folder, in EBM_DATA_DIR if it is not here, or in an object store.

    Raise :class:`DataError`.
    """
    if "://" in name:
        folder = location(name, in_ranges=True)
        if not folder.is_dir():
            raise DataError(f"{name}: has nothing", "give the prefix of a folder in the store")
        return folder
    path = Path(name)
    if not path.exists():
        path = Path(os.environ.get("EBM_DATA_DIR", ".")) / name
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; set dataset.path to an .npz, .npy, .csv or .parquet,"
            " or a folder of images"
        )
    return path


def natural_order(name: str) -> list[str | int]:
    """Return a sort key in which numbers inside a name count as numbers: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
