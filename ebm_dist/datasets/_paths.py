"""Where the user's own files are, and their order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ebm_dist.errors import DataError
from ebm_dist.storage import is_local, location


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


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder and the folders that it links to, sorted.

    Raise :class:`DataError` for a link to nothing, one to a folder above it, and a folder that
    cannot be read.
    """
    if not is_local(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        return sorted(_files_below(folder, ()))
    except OSError as failed:
        raise DataError(
            f"{failed.filename or folder}: cannot be read ({failed.strerror})",
            "allow to read it, or remove it",
        ) from None


def _files_below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.is_file():
                yield path
            elif entry.is_dir():
                if os.path.realpath(path) in above:
                    raise DataError(f"{path}: is a link to a folder above it", "remove the link")
                yield from _files_below(path, above)
            elif entry.is_symlink() and entry.name[0] != ".":  # editors lock files by such links
                raise DataError(f"{path}: is a link to nothing", "mend or remove the link")


def natural_order(name: str) -> list[str | int]:
    """Return a sort key in which numbers inside a name count as numbers: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
