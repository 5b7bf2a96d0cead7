"""Raw files of published data sets, downloaded once and checked by SHA-256."""

import gzip
import os
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.errors import DataError
from ebm_dist.files import sha256

_IDX_UINT8 = 0x08
_TIMEOUT_S = 60  # for connecting, and between two packets


class RawFile(NamedTuple):
    """A published file that never changes."""

    name: str
    """Path within the data folder"""
    url: str
    sha256: str


def fetch(file: RawFile, cache: Path = Path("data/raw")) -> Path:
    """Return the local path of a published file, and download the file if necessary.

    The folder in ``EBM_DATA_DIR`` comes first, then ``cache``, then a download into ``cache``. A
    download with a wrong hash (cut off, an error page, another file) is removed. A wrong file in
    the user's own folder stays there.

    Raise :class:`DataError` if the user's file is wrong or the download fails.
    """
    user_folder = os.environ.get("EBM_DATA_DIR")
    if user_folder and (path := Path(user_folder) / file.name).exists():
        if sha256(path) != file.sha256:
            raise DataError(
                f"{path}: not the published file (SHA-256 differs from {file.sha256[:12]}...);"
                " replace or remove it"
            )
        return path
    path = cache / file.name
    if not path.exists() or sha256(path) != file.sha256:
        _download(file, path)
    return path


def _download(file: RawFile, path: Path) -> None:
    """Download to ``path`` through a temporary file, which pooch removes on any failure."""
    import pooch

    fetch_http = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=1 << 20,
        timeout=_TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},  # the hash is that of the compressed file
    )
    size = 0

    def download(url: str, temporary: str, _: object) -> None:
        nonlocal size
        fetch_http(url, temporary, None)
        size = Path(temporary).stat().st_size

    fix = f"put {file.name} into a folder and set EBM_DATA_DIR to that folder"
    try:
        pooch.retrieve(file.url, file.sha256, path.name, path.parent, downloader=download)
        umask = os.umask(0o077)
        os.umask(umask)
        path.chmod(0o666 & ~umask)  # pooch keeps the private mode of its temporary file
    except OSError as error:
        # requests wraps the reason into urllib3's text about retries
        reason = getattr(error.args[0] if error.args else error, "reason", error)
        raise DataError(f"{file.url}: download failed ({reason}); {fix}") from None
    except ValueError:  # from the comparison of hashes
        raise DataError(
            f"{file.url}: the download ({size} bytes) is not the published file (SHA-256 differs"
            f" from {file.sha256[:12]}...) and was removed; {fix}"
        ) from None


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes, the format of MNIST, into an array of the file's shape.

    Raise :class:`DataError` for any other file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        num_axes = content[3]
        shape = np.frombuffer(content, ">u4", num_axes, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes)
        if content[:2] != b"\0\0" or content[2] != _IDX_UINT8:
            raise ValueError("wrong magic number")
        return values.reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: not a gzipped IDX file of bytes ({error}); remove it to fetch it again"
        ) from None


def load_idx(files: dict[str, RawFile], num_val: int, purpose: str, source: str) -> Dataset:
    """Load grey images from the four IDX files ``{train,test}_{images,labels}``."""
    raw = {part: read_idx(fetch(file)) for part, file in files.items()}
    published = {
        name: Arrays(raw[f"{name}_images"][:, None], raw[f"{name}_labels"].astype(np.int64))
        for name in ("train", "test")
    }
    train, val = hold_out(published["train"], num_val, purpose)
    return Dataset(
        splits={"train": train, "val": val, "test": published["test"]},
        scale=255.0,
        bounds=(0.0, 1.0),
        num_classes=int(train.y.max()) + 1 if train.y is not None else 0,
        source=source,
        is_official=True,
    )
