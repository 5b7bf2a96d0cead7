"""Look at the user's own data: what they are, and the section ``dataset`` that reads them."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebm_dist.data import shards
from ebm_dist.datasets import Dataset, arrays
from ebm_dist.errors import DataError
from ebm_dist.files import read_json

_LARGE = 64  # pixels a side
_FEW = 30  # test samples
_MAX_SHOWN = 8  # classes in a line


class Seen(NamedTuple):
    """What the data are."""

    dataset: dict[str, Any]
    """the section ``dataset``, without few labels"""
    data: Dataset
    prepared: shards.Index
    """what stage prepare would write; its files are deleted"""
    notes: tuple[str, ...]


def inspect(
    data: Path, task: str, labels: str | None = None, anomalies: tuple[str, ...] = ()
) -> Seen:
    """Read the data. Raise :class:`DataError` for data that cannot be read or do not fit the task.

    For the task ``anomaly`` the rarer one of two classes is the anomaly if none is named.
    """
    folder = Path.cwd()
    path = data.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{data!r}: the name is no UTF-8", "rename the file or folder") from None
    section: dict[str, Any] = {
        "name": "arrays",
        "path": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
    }
    labels = labels or arrays.likely_labels(config_of(section))
    section |= {} if labels is None else {"labels": labels}
    seen = _look(section)
    section = section | _explicit(seen.data)
    if columns := arrays.column_names(config_of(section)):
        section |= {"columns": list(columns)}  # files to score may have another order
    counts = _class_counts(seen.data)
    if task == "anomaly" and counts and not anomalies:
        names = seen.data.class_names
        anomalies = names[seen.data.num_classes :]  # that only the test part has
        if not anomalies and len(counts) == 2:
            anomalies = (min(names, key=counts.__getitem__),)
        if not anomalies and len(counts) > 2:
            raise DataError(
                f"{data}: has {len(counts)} classes: {_listed(names)}",
                "name those that are anomalies, such as --anomalies " + names[-1],
            )
    if anomalies and task != "anomaly":
        raise DataError("--anomalies: is for --task anomaly", "set that too, or leave it out")
    if anomalies and task == "anomaly":
        section |= {"anomalies": list(anomalies)}
    if task == "classify" and len(counts) < 2:
        raise DataError(
            f"{data}: the task classify needs labels of at least two classes,"
            f" found {len(counts) or 'none'}",
            "add labels, name them with --labels, or choose another task",
        )
    return _look(section) if section != seen.dataset else seen


def _look(section: dict[str, Any]) -> Seen:
    data = arrays.load(config_of(section))
    index, notes = write_index(data)
    return Seen(section, data, index, notes)


def config_of(section: dict[str, Any]) -> arrays.Config:
    """Return the settings of a section ``dataset``."""
    keys: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
        if key != "name"
    }
    return arrays.Config(**keys)


def write_index(data: Dataset) -> tuple[shards.Index, tuple[str, ...]]:
    """Return the index that stage prepare would write, and its notes."""
    log = logging.getLogger(shards.__name__)
    level = log.level
    log.setLevel(logging.ERROR)  # describe shows the notes
    try:
        with tempfile.TemporaryDirectory() as folder:
            index = shards.write(Path(folder), "data", data)
            content = read_json(Path(folder) / shards.INDEX, shards.STAGE)
    finally:
        log.setLevel(level)
    return index, tuple(content.get("notes", ()))


def _explicit(data: Dataset) -> dict[str, Any]:
    """Return settings that do not depend on which values a file happens to have."""
    x = data.splits["train"].x
    if x.dtype.kind in "ui":
        return {"scale": data.scale}
    if x.ndim == 4 and data.bounds is None:
        for bounds in ([0.0, 1.0], [-1.0, 1.0]):
            if all(
                bounds[0] <= part.x.min() and part.x.max() <= bounds[1]
                for part in data.splits.values()
            ):
                return {"bounds": bounds}
        return {"standardise": True}
    return {}


def _class_counts(data: Dataset) -> dict[str, int]:
    counts = Counter[int]()
    for part in data.splits.values():
        counts.update([] if part.y is None else part.y.tolist())
    return {data.class_names[k]: counts[k] for k in sorted(counts)}


def describe(seen: Seen) -> Iterator[str]:
    """Yield a line per fact about the data."""
    data, shape = seen.data, seen.prepared.shape
    x = data.splits["train"].x
    count = sum(len(part.x) for part in data.splits.values())
    size = sum(part.x.nbytes for part in data.splits.values())
    kind = {"u": f"{8 * x.dtype.itemsize}-bit integers", "f": "floats"}[x.dtype.kind]
    if len(shape) == 3:
        channels, height, width = shape
        what = f"images of {height}x{width} pixels, {channels} channel{'s' * (channels > 1)}"
    else:
        what = f"rows of {shape[0]} column{'s' * (shape[0] > 1)}"
    low = min(part.x.min() for part in data.splits.values())
    high = max(part.x.max() for part in data.splits.values())
    yield f"data        {seen.dataset['path']}: {count:,} {what}, {size / 2**20:.1f} MiB"
    yield f"values      {kind} from {low:g} to {high:g}; a model sees {_transformation(data)}"
    if counts := _class_counts(data):
        shown = _listed(f"{name} ({number:,})" for name, number in counts.items())
        yield f"classes     {len(counts)}: {shown}"
    else:
        yield "classes     no labels"
    if anomalies := data.class_names[data.num_classes :]:
        yield f"anomalies   {_listed(anomalies)}: test samples only"
    yield "splits      " + ", ".join(f"{len(p.x):,} {name}" for name, p in data.splits.items())
    digests = np.concatenate([shards.sample_digests(part.x) for part in data.splits.values()])
    yield f"duplicates  {count - len(np.unique(digests)) or 'none'}"
    flat = x.reshape(len(x), -1)
    constant = int((flat.min(axis=0) == flat.max(axis=0)).sum())
    yield f"constant    {constant or 'no'} of {flat.shape[1]:,} values per sample"
    for note in seen.notes:
        yield f"note        {note}"
    num_test = len(data.splits["test"].x) if "test" in data.splits else 0
    if num_test < _FEW:
        yield f"note        {num_test} test samples: figures of the suites say little"
    if len(shape) == 3 and max(shape[1:]) > _LARGE:
        yield (
            f"note        in ten minutes a model of images above {_LARGE} pixels a side learns"
            " little: resize them, or raise train.num_steps and use a GPU"
        )


def _transformation(data: Dataset) -> str:
    if data.standardisation:
        return "columns of mean 0 and standard deviation 1"
    return f"values / {data.scale:g}" if data.scale != 1 else "the values"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
