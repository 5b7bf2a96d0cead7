"""Raw files of published data sets: downloaded once and checked by hash."""

import gzip
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.errors import DataError
from ebm_dist.files import sha256

_IDX_UINT8 = 0x08


class RawFile(NamedTuple):
    """A published file that never changes."""

    name: str
    url: str
    sha256: str


def fetch(file: RawFile, cache: Path = Path("data/raw")) -> Path:
    """The local path of a published file whose hash is right.

    Looked for in the folder that ``EBM_DATA_DIR`` names, then in ``cache``, else downloaded there. A download that is not what was
    published (cut off, an error page, another file) is refused and removed; a wrong file in the user's own folder is only refused.

    Raises :class:`DataError` where it cannot be had or is another.
    """
    own = os.environ.get("EBM_DATA_DIR")
    if own and (path := Path(own) / file.name).exists():
        if sha256(path) != file.sha256:
            raise DataError(
                f"{path}: not the published file (SHA-256 differs from {file.sha256[:12]}...); replace or remove it"
            )
        return path
    path = cache / file.name
    if path.exists() and sha256(path) == file.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(file.url, timeout=60) as response, part.open("wb") as out:  # noqa: S310 (fixed addresses)
            while block := response.read(1 << 20):
                out.write(block)
        if sha256(part) != file.sha256:
            raise DataError(
                f"{file.url}: what came ({part.stat().st_size} bytes) is not the published file (SHA-256 differs from"
                f" {file.sha256[:12]}...); it was removed. Fetch {file.name} by hand into a folder and name that in EBM_DATA_DIR"
            )
        part.replace(path)
    except (OSError, urllib.error.URLError) as failed:
        reason = getattr(failed, "reason", failed)
        raise DataError(
            f"{file.url}: download failed ({reason}); put {file.name} into a folder and name that folder in EBM_DATA_DIR"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """A gzipped IDX file of bytes (the format of MNIST) as an array of its own shape. Raises :class:`DataError`."""
    try:
        content = gzip.decompress(path.read_bytes())
        num_axes = content[3]
        shape = np.frombuffer(content, ">u4", num_axes, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes)
        if content[:2] != b"\0\0" or content[2] != _IDX_UINT8:
            raise ValueError("wrong magic number")
        return values.reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as failed:
        raise DataError(
            f"{path}: not a gzipped IDX file of bytes ({failed}); fetch it again"
        ) from None


def load_idx(files: dict[str, RawFile], num_val: int, purpose: str, source: str) -> Dataset:
    """A published set of grey images in four IDX files: ``{train,test}_{images,labels}``."""
    raw = {part: read_idx(fetch(file)) for part, file in files.items()}
    split = {
        name: Arrays(raw[f"{name}_images"][:, None], raw[f"{name}_labels"].astype(np.int64))
        for name in ("train", "test")
    }
    train, val = hold_out(split["train"], num_val, purpose)
    return Dataset(
        splits={"train": train, "val": val, "test": split["test"]},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=int(train.y.max()) + 1 if train.y is not None else 0,
        source=source,
        is_official=True,
    )
