"""Raw files, fetched once and checked by hash; tensors, JSON and tables as bytes and back."""

import csv
import gzip
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ebm_dist.errors import DataError
from ebm_dist.storage import read_bytes, write_whole

_IDX_UINT8 = 0x08


class RawFile(NamedTuple):
    """A published file that never changes."""

    name: str
    url: str
    sha256: str


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal; read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and one value a line, so that equal content is equal bytes and a difference is readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header; empty where a row lacks what another has."""
    out = io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue().encode())


def encode(content: Mapping[str, Tensor] | dict[str, Any] | list[Any]) -> bytes:
    """Tensors by name, or none at all, as safetensors; anything else as JSON."""
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in content.items()})
    return (json.dumps(content, sort_keys=True) + "\n").encode()


def read_tensors(path: Path, made_by: str) -> dict[str, Tensor]:
    """The tensors by name of a safetensors file of ours; ``made_by`` as in :func:`read_json`.

    Raises :class:`DataError` if it is missing or broken.
    """
    try:
        return safetensors.torch.load(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run 'dvc repro {made_by}'") from None
    except (OSError, SafetensorError, ValueError, KeyError) as failed:
        raise DataError(f"{path}: not readable as safetensors ({failed}); run 'dvc repro -f {made_by}'") from None


def read_json(path: Path, made_by: str) -> Any:
    """Parse a JSON file of ours; ``made_by`` is the stage to run where it is missing or broken. Raises :class:`DataError`."""
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run 'dvc repro {made_by}'") from None
    except (OSError, ValueError, RecursionError) as failed:
        raise DataError(f"{path}: not readable as JSON ({failed}); delete it and run 'dvc repro {made_by}'") from None


def fetch(file: RawFile, cache: Path = Path("data/raw")) -> Path:
    """The local path of a published file whose hash is right.

    Looked for in the folder that ``EBM_DATA_DIR`` names, then in ``cache``, else downloaded there. A download that is not what was
    published (cut off, an error page, another file) is refused and removed; a wrong file in the user's own folder is only refused.

    Raises :class:`DataError` where it cannot be had or is another.
    """
    own = os.environ.get("EBM_DATA_DIR")
    if own and (path := Path(own) / file.name).exists():
        if sha256(path) != file.sha256:
            raise DataError(f"{path}: not the published file (SHA-256 differs from {file.sha256[:12]}...); replace or remove it")
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
        raise DataError(f"{path}: not a gzipped IDX file of bytes ({failed}); fetch it again") from None
