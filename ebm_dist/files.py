"""Read and write tensors, JSON and tables; hash files."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ebm_dist.errors import DataError
from ebm_dist.storage import read_bytes, write_whole

if TYPE_CHECKING:  # it takes a second to import, and few of the readers have tensors
    from torch import Tensor


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; the file is read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys and one value per line.

    Equal content then gives equal bytes, and differences are readable. Raise :class:`DataError`
    for NaN and infinity, which JSON does not have.
    """
    for key, number in _not_finite(value):
        raise DataError(
            f"{path}: {key} is {number}, which JSON does not have",
            "look for energies that diverged or too few samples, and run the stage again",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _not_finite(value: Any, *keys: str) -> Iterator[tuple[str, float]]:
    """Yield the dotted key and the value of each NaN or infinity in a JSON value."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ".".join(keys), value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _not_finite(child, *keys, str(key))
    elif isinstance(value, (list, tuple)):
        for i, child in enumerate(value):
            yield from _not_finite(child, *keys, str(i))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a flat dict with nested keys joined by dots."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        flattened |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flattened


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a header. Cells are empty where a row lacks a key of another row."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def encode(content: "Mapping[str, Tensor] | dict[str, Any] | list[Any]") -> bytes:
    """Encode tensors by name, or an empty mapping, as safetensors; anything else as JSON."""
    import safetensors.torch
    from torch import Tensor

    if isinstance(content, Mapping) and all(
        isinstance(value, Tensor) for value in content.values()
    ):
        return safetensors.torch.save(
            {name: value.detach().cpu().contiguous() for name, value in content.items()}
        )
    return (json.dumps(content, sort_keys=True) + "\n").encode()


def read_tensors(path: Path, made_by: str) -> "dict[str, Tensor]":
    """Return the tensors by name of a safetensors file that the stage ``made_by`` writes.

    Raise :class:`DataError` if the file is missing or broken.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: missing", f"run 'dvc repro {made_by}'") from None
    except (OSError, SafetensorError, ValueError, KeyError) as failed:
        raise DataError(
            f"{path}: not readable as safetensors ({failed})", f"run 'dvc repro -f {made_by}'"
        ) from None


def read_json(path: Path, made_by: str) -> Any:
    """Return the value of a JSON file that the stage ``made_by`` writes.

    Raise :class:`DataError` if the file is missing or broken.
    """
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: missing", f"run 'dvc repro {made_by}'") from None
    except (OSError, ValueError, RecursionError) as failed:
        raise DataError(
            f"{path}: not readable as JSON ({failed})",
            f"delete it and run 'dvc repro {made_by}'",
        ) from None
