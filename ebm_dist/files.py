"""Tensors, JSON and tables as bytes and back, and the hash of a file."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ebm_dist.errors import DataError
from ebm_dist.storage import read_bytes, write_whole


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
        out |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return out


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header; empty where a row lacks what another has."""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, dict.fromkeys(key for row in rows for key in row), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue().encode())


def encode(content: Mapping[str, Tensor] | dict[str, Any] | list[Any]) -> bytes:
    """Tensors by name, or none at all, as safetensors; anything else as JSON."""
    if isinstance(content, Mapping) and all(
        isinstance(value, Tensor) for value in content.values()
    ):
        return safetensors.torch.save(
            {name: value.detach().cpu().contiguous() for name, value in content.items()}
        )
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
        raise DataError(
            f"{path}: not readable as safetensors ({failed}); run 'dvc repro -f {made_by}'"
        ) from None


def read_json(path: Path, made_by: str) -> Any:
    """Parse a JSON file of ours; ``made_by`` is the stage to run where it is missing or broken. Raises :class:`DataError`."""
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run 'dvc repro {made_by}'") from None
    except (OSError, ValueError, RecursionError) as failed:
        raise DataError(
            f"{path}: not readable as JSON ({failed}); delete it and run 'dvc repro {made_by}'"
        ) from None
