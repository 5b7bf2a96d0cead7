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


def column_names(path: Path, label_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns of numbers; () for a table without a line of names.

    Raise :class:`DataError` for a table that cannot be read.
    """
    table, has_names = _read(path)
    label_name = _label_name(table, label_names, ())
    return tuple(n for n in _columns(table) if n != label_name) if has_names else ()


def only_text_column(path: Path) -> str | None:
    """Return the name of the only column of text, if its values recur; None otherwise.

    Raise :class:`DataError` for a table that cannot be read.
    """
    from pyarrow import types

    table, _ = _read(path)
    text = [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name in _columns(table)
        and (types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind))
    ]
    is_alone = len(text) == 1 and len(table[text[0]].unique()) <= len(table) // 2
    return text[0] if is_alone else None


def read(path: Path, label_names: tuple[str, ...], columns: tuple[str, ...] = ()) -> Table:
    """Read a table. The first of ``label_names`` that is a column has the labels.

    The numbers are ``columns``, in that order, or else all other columns. A column of numbers is
    none of labels, and nothing is asked of columns that are not used. Raise :class:`DataError`
    with the names of columns that are absent, are no numbers or have gaps.
    """
    import pyarrow as pa  # slow to import

    table, _ = _read(path)
    names = table.column_names
    _refuse(
        path,
        "are missing",
        [name for name in columns if name not in names],
        f"the file has {_listed(names)}; name them in the first line as in the training data",
    )
    label_name = _label_name(table, label_names, columns)
    features = list(columns) or [name for name in _columns(table) if name != label_name]
    used = features if label_name is None else [*features, label_name]
    _refuse(path, "are named twice", [name for name in used if names.count(name) > 1])
    _refuse(path, "have missing values", [name for name in used if table[name].null_count])
    _refuse(
        path,
        "are not numbers",
        [name for name in features if not _is_number(table[name].type)],
        "drop or encode them; dataset.labels, or --labels of init, names the column of classes",
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
    are_bad = ~np.isfinite(x).all(axis=0)
    bad = [name for name, is_bad in zip(features, are_bad, strict=True) if is_bad]
    _refuse(path, "have NaN or infinite values", bad, "leave out these rows, or impute the values")
    counts = np.arange(len(x))[:, None]
    is_counter = ((x == counts) | (x == counts + 1)).reshape(len(x), -1)
    notes = [f"labels are in column {label_name}"] if label_name is not None else []
    if unused := [name for name in names if name not in used]:
        notes.append(f"columns that are not used: {_listed(unused)}")
    notes += [
        f"column {name!r} numbers the rows; drop it if it is an index"
        for name, counter in zip(features, is_counter.T, strict=True)
        if len(x) > 2 and counter.all()
    ]
    return Table(x, None if label_name is None else _labels(table[label_name]), notes)


def _label_name(table: Any, label_names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    """Return the column of labels. Of several usual names, one with fractions is no class."""
    names = [n for n in label_names if n in table.column_names and n not in columns]
    if len(label_names) > 1:
        names = [n for n in names if not _has_fractions(table[n])]
    return names[0] if names else None


def _has_fractions(column: Any) -> bool:
    from pyarrow import types

    if not types.is_floating(column.type):
        return False
    values = np.asarray(column.drop_null())
    return bool((values != np.floor(values)).any())


def _columns(table: Any) -> list[str]:
    """Return the names of the columns, without the unnamed row numbers of a pandas frame."""
    return [name for name in table.column_names if not name.startswith("__index_level_")]


def _read(path: Path) -> tuple[Any, bool]:
    """Return a table of Arrow, and whether the file names its columns."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() != ".parquet":
            return _read_csv(path)
        with parquet.ParquetFile(path) as file:
            return file.read(), True
    except (pa.ArrowException, OSError, ValueError, csv.Error, StopIteration) as failed:
        raise DataError(f"{path}: not a readable table ({reason(failed)})", "write it again") from (
            None
        )


def _read_csv(path: Path) -> tuple[Any, bool]:
    """A first line of numbers alone is data, and columns are then f0, f1, ..."""
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", newline="") as stream:
        line = stream.readline()
    delimiter = max(_DELIMITERS, key=line.count)
    convert = arrow_csv.ConvertOptions(strings_can_be_null=True)
    words = next(csv.reader([line], delimiter=delimiter))
    has_names = not all(_is_numeral(word) or word in convert.null_values for word in words)
    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            autogenerate_column_names=not has_names,
            block_size=min(path.stat().st_size + 1, _MAX_BLOCK),
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=convert,
    )
    return table, has_names


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
        raise DataError(f"{path}: {len(names)} columns {what}: {_listed(names)}", fix)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(repr, names[:_MAX_SHOWN])) + more
