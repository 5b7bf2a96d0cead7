"""Read a table, ``.csv`` or ``.parquet``, as an array of numbers and a column of labels.

No value is guessed: columns of text, missing values and integers that a float cannot hold are
refused by name.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.errors import DataError, reason

SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = ",;\t"
_MAX_BLOCK = (1 << 31) - 1  # bytes from which Arrow infers the types of columns
_MAX_SHOWN = 10  # names in a message


class Table(NamedTuple):
    """The columns of a table."""

    x: npt.NDArray[np.float64]
    """Numbers ``(n, columns)``"""
    labels: npt.NDArray[Any] | None
    """``(n,)`` integers, floats or strings; None without a column of labels"""
    notes: list[str]


def read(path: Path, label_names: tuple[str, ...]) -> Table:
    """Read a table. The first of ``label_names`` that is a column has the labels.

    Raise :class:`DataError` with the names of columns that are no numbers or have gaps.
    """
    import pyarrow as pa  # slow to import

    try:
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (pa.ArrowException, OSError, ValueError, csv.Error, StopIteration) as failed:
        raise DataError(f"{path}: not a readable table ({reason(failed)})", "write it again") from (
            None
        )
    columns = list(zip(table.column_names, table.columns, strict=True))
    _refuse(path, "are named twice", [n for n, _ in columns if table.column_names.count(n) > 1])
    _refuse(path, "have missing values", [n for n, c in columns if c.null_count])
    label_name = next((name for name in label_names if name in table.column_names), None)
    is_number = {name: _is_number(column.type) for name, column in columns}
    features = [name for name in is_number if name != label_name]
    _refuse(
        path,
        "are not numbers",
        [name for name in features if not is_number[name]],
        "drop or encode them; dataset.labels names the column of classes",
    )
    if not features:
        raise DataError(f"{path}: has no column of numbers", "provide at least one")
    try:
        x = np.stack([np.asarray(table[n].cast(pa.float64())) for n in features], axis=1)
    except pa.ArrowInvalid as failed:
        raise DataError(
            f"{path}: has integers that a float cannot hold ({reason(failed)})",
            "drop the column if it is a key, or rescale it",
        ) from None
    counts = np.arange(len(x))[:, None]
    is_counter = ((x == counts) | (x == counts + 1)).reshape(len(x), -1)
    notes = [f"labels are in column {label_name}"] if label_name is not None else []
    notes += [
        f"column {name!r} numbers the rows; drop it if it is an index"
        for name, counter in zip(features, is_counter.T, strict=True)
        if len(x) > 2 and counter.all()
    ]
    return Table(x, None if label_name is None else _labels(table[label_name]), notes)


def _read_parquet(path: Path) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read()


def _read_csv(path: Path) -> Any:
    """Return a table. A first line of numbers alone is data, and columns are then f0, f1, ..."""
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", newline="") as stream:
        line = stream.readline()
    delimiter = max(_DELIMITERS, key=line.count)
    has_names = not all(_is_numeral(word) for word in next(csv.reader([line], delimiter=delimiter)))
    return arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            autogenerate_column_names=not has_names,
            block_size=min(path.stat().st_size + 1, _MAX_BLOCK),
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=arrow_csv.ConvertOptions(strings_can_be_null=True),
    )


def _is_numeral(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def _labels(column: Any) -> npt.NDArray[Any]:
    from pyarrow import types

    if types.is_boolean(column.type):
        return np.asarray(column).astype(np.int64)
    if types.is_integer(column.type) or types.is_floating(column.type):
        return np.asarray(column)
    return np.array([str(value) for value in column.to_pylist()])


def _refuse(path: Path, what: str, names: list[str], fix: str = "correct or drop them") -> None:
    if names := list(dict.fromkeys(names)):
        more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        shown = ", ".join(map(repr, names[:_MAX_SHOWN])) + more
        raise DataError(f"{path}: {len(names)} columns {what}: {shown}", fix)
