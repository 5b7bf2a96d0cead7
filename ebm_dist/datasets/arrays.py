"""The user's own data: ``.npz``, ``.npy``, ``.csv`` or ``.parquet``, or a folder of images.

Unsigned integers are scaled by the largest value of their type: 255, or 65535 for 16 bits. Bytes of
only 0 and 1 are binary data and stay so. Floats are not scaled; tables of floats are standardised,
see ``standardise``. Labels become classes from 0, and their names are kept. What is converted or
skipped is logged and kept in the index. Results on such data have the mark "own files" and the
digest of the index.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.config import Mismatch, Params, Positive, PositiveInt, Probability, section
from ebm_dist.datasets import (
    Arrays,
    Dataset,
    Standardisation,
    _paths,
    _tables,
    hold_out,
    in_parts,
    split_off,
)
from ebm_dist.datasets._paths import natural_order
from ebm_dist.datasets._pictures import read_folder
from ebm_dist.errors import DataError, reason

log = logging.getLogger(__name__)
_MAX_CHANNELS = 4
_SPLITS = ("train", "val", "test")
_SAMPLES, _LABELS = ("images", "x", "X", "data"), ("labels", "y")
_LARGEST = 255.0, 65535.0  # integers of 8 and 16 bits, by which they are divided
"""Names of the samples and labels in an ``.npz``."""
_LABEL_COLUMNS = ("labels", "label", "y", "class", "target")
_MAX_SHOWN = 10  # names in a message
_FAR, _NARROW = 10.0, 0.1  # from N(0, 1): means and standard deviations of columns


@section
class Config:
    path: str
    """File or folder, relative to the working directory or else to EBM_DATA_DIR. An ``.npz`` has
    ``images``, ``x``, ``X`` or ``data``, and optionally ``labels`` or ``y`` (integers from 0, or
    strings), or both with the prefixes ``train_``, ``val_`` and ``test_``. Rows of a ``.csv`` or
    ``.parquet`` are samples. In a folder, each sub-folder of images is a class; or ``train``,
    ``val`` and ``test`` are the only folders in it, with the classes inside."""
    val_fraction: Probability = 0.1
    """Fraction of the training samples held out for choosing settings, by a fixed random choice, if
    the data have no val part."""
    test_fraction: Probability = 0.2
    """Fraction of all samples held out for reporting, if the data have no test part; 1 for a set
    used only for comparison."""
    max_samples: PositiveInt | None = None
    """Maximum number of samples of each part, drawn at random; all samples if absent."""
    layout: Literal["auto", "image", "table", "channels_first", "channels_last"] = "auto"
    """What an array is. ``auto``: ``(n, columns)`` is a table, ``(n, h, w)``,
    ``(n, h, w, channels)`` and ``(n, channels, h, w)`` are images, with at most 4 channels;
    ``image``: the same without tables; ``table``: each sample is one row of numbers, of any shape;
    ``channels_first`` and ``channels_last``: images of a shape that fits both."""
    scale: Positive | None = None
    """Divisor of the values; if absent, 255 or 65535 for integers, 1 for binary data and floats."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value after scaling, to which chains are clamped. If absent, 0 and 1 for
    integers, and none for floats."""
    standardise: bool | None = None
    """Shift and scale each column to mean 0 and standard deviation 1 of the training samples, where
    chains start; samples are converted back. If absent, done for tables of floats without
    bounds."""

    labels: str | None = None
    """Name of the labels: an array of an ``.npz``, or a column. If absent, the first that exists of
    ``labels`` and ``y``, in a table also ``label``, ``class`` and ``target``."""
    anomalies: tuple[str, ...] = ()
    """Classes that are anomalies. No model learns them: all their samples are test samples, of one
    last class."""
    columns: tuple[str, ...] = ()
    """Columns of a ``.csv`` or ``.parquet`` that are the numbers, in this order; also of files to
    score. If absent, all columns but that of the labels, in their order."""

    added_keys = ("layout", "scale", "bounds", "standardise", "labels", "anomalies", "columns")

    def check(self, params: Params) -> None:
        if self.val_fraction + self.test_fraction > 1:
            raise Mismatch(
                "dataset.val_fraction",
                "val_fraction and test_fraction add up to more than 1; lower one of them",
            )
        if self.bounds and not -np.inf < self.bounds[0] < self.bounds[1] < np.inf:
            raise Mismatch("dataset.bounds", "must be two finite numbers, the lower one first")
        if self.bounds and self.standardise:
            raise Mismatch(
                "dataset.standardise",
                "columns of different scale have no common bounds; drop bounds or standardise",
            )


class _Part(NamedTuple):
    """Samples ``(n, ...)`` and the names of their classes ``(n,)``, integers or strings."""

    x: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None


def locate(config: Config) -> Path:
    """Return the file or folder. Raise :class:`DataError` where it does not exist."""
    return _paths.locate(config.path)


def load(config: Config) -> Dataset:
    path = locate(config)
    parts, notes, layout = _read(path, config)
    if config.labels is not None and (path.is_dir() or parts["train"].labels is None):
        raise DataError(
            f"{path}: has no labels {config.labels!r}",
            "set dataset.labels to an array of the .npz or a column of the table",
        )
    _check_alike(path, parts)
    arranged = {name: _arrange(part.x, layout, path) for name, part in parts.items()}
    is_float = arranged["train"].dtype.kind == "f"
    if is_float and arranged["train"].ndim == 4 and layout == "auto":
        shape = parts["train"].x.shape
        notes.append(f"floats of shape {shape} are images; set layout: table if they are not")
    arranged, scale, scale_notes = _scaled(config, arranged)
    bounds = config.bounds or (None if is_float else (0.0, 1.0))
    _check_values(path, arranged, scale, bounds)
    names, numbered = _number_labels({name: part.labels for name, part in parts.items()})
    samples = {name: Arrays(x, numbered[name]) for name, x in arranged.items()}
    anomalous = Arrays(arranged["train"][:0], None)
    if config.anomalies:
        samples, names, anomalous = _without_anomalies(config, samples, names, path)
    splits = _split(config, samples, path)
    if config.anomalies:
        splits["test"] = _joined(splits.get("test"), anomalous)
    splits, names, num_classes = _known_first(splits, names)
    first = next(iter(splits))
    if anomalies := names[num_classes:]:
        notes.append(f"classes without {first} samples, so anomalies: {_listed(anomalies)}")
    standardise = config.standardise
    if standardise is None:
        standardise = is_float and arranged["train"].ndim == 2 and bounds is None
    standardisation, x = None, splits[first].x
    if standardise or is_float:
        x = x if is_float and scale == 1 else x / scale
    if standardise:
        standardisation = Standardisation.of(x)
    notes += scale_notes
    if is_float:
        notes += _column_notes(x, standardisation is None and bounds is None)
    return Dataset(
        splits=splits,
        scale=scale,
        bounds=None if standardisation else bounds,
        num_classes=num_classes,
        source=f"own files: {path.name}",
        is_official=False,
        class_names=names,
        standardisation=standardisation,
        notes=tuple(notes),
    )


def read_samples(config: Config, path: Path, divisor: float | None = None) -> npt.NDArray[Any]:
    """Return all samples ``(n, *shape)`` of a file or folder in their order, divided by the scale.

    Layout and columns are those of ``config``, and ``divisor`` is that of the training data; if
    None, as of models before 0.2, the types of the file decide. Labels are left out. What is
    skipped is logged. Raise :class:`DataError` for data in parts, and for what :func:`load`
    refuses.
    """
    parts, notes, layout = _read(path, config, with_labels=False)
    if list(parts) != ["train"]:
        raise DataError(f"{path}: has the parts {_listed(parts)}", "provide one array of samples")
    _check_alike(path, parts)
    arranged = {"train": _arrange(parts["train"].x, layout, path)}
    is_float = arranged["train"].dtype.kind == "f"
    arranged, scale, scale_notes = _scaled(config, arranged)
    if divisor is not None:
        scale, scale_notes = divisor, []
    for note in notes + scale_notes:
        log.warning("%s: %s", path, note)
    _check_values(path, arranged, scale, None)
    if is_float and scale in _LARGEST and arranged["train"].max() <= 1:
        raise DataError(
            f"{path}: has floats up to {arranged['train'].max():g}, and the model's samples are"
            f" divided by {scale:g}",
            f"multiply them by {scale:g}, if they were divided already",
        )
    x: npt.NDArray[Any] = arranged["train"] / scale
    return x


def likely_labels(config: Config) -> str | None:
    """Return the column of a table that is likely to have the labels, if none has a usual name."""
    path = locate(config)
    if not _is_table(path) or set(_LABEL_COLUMNS) & set(_tables.column_names(path, ())):
        return None
    return _tables.only_text_column(path)


def column_names(config: Config) -> tuple[str, ...]:
    """Return the names of the columns of numbers; () where the data are no table with names."""
    path = locate(config)
    if not _is_table(path):
        return ()
    named = () if config.labels is None else (config.labels,)
    return _tables.column_names(path, named or _LABEL_COLUMNS)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in _tables.SUFFIXES and not path.is_dir()


def _read(
    path: Path, config: Config, *, with_labels: bool = True
) -> tuple[dict[str, _Part], list[str], str]:
    """Return the parts as they are stored, what is to be said about them, and their layout."""
    if path.is_dir():
        pictures = read_folder(path)
        parts = {split: _Part(*pair) for split, pair in pictures.splits.items()}
        return parts, pictures.notes, "table" if config.layout == "table" else "channels_last"
    named = () if config.labels is None else (config.labels,)
    if _is_table(path):
        label_names = named or _LABEL_COLUMNS if with_labels or not config.columns else ()
        table = _tables.read(path, label_names, config.columns)
        labels = table.labels
        if labels is not None:
            labels = _checked_labels(path, "the column of labels", labels, table.x.shape[:1])
        return {"train": _Part(table.x, labels)}, table.notes, "table"
    parts, notes = _read_arrays(path, named or _LABELS)
    return parts, notes, config.layout


def _without_anomalies(
    config: Config, parts: Mapping[str, Arrays], names: tuple[str, ...], path: Path
) -> tuple[dict[str, Arrays], tuple[str, ...], Arrays]:
    """Return the parts without anomalies, the names of classes, and the anomalies as one class."""
    unknown = [name for name in config.anomalies if name not in names]
    if unknown or len(config.anomalies) == len(names):
        raise DataError(
            f"{path}: dataset.anomalies names {_listed(config.anomalies)}; the classes are"
            f" {_listed(names) or 'none, because the data have no labels'}",
            "name some of the classes, but not all",
        )
    known = [i for i, name in enumerate(names) if name not in config.anomalies]
    inliers, anomalies = dict[str, Arrays](), []
    for split, (x, y) in parts.items():
        assert y is not None  # some class has a name
        is_known = np.isin(y, known)
        inliers[split] = Arrays(x[is_known], np.searchsorted(known, y[is_known]))
        anomalies.append(x[~is_known])
    x = np.concatenate(anomalies)
    names = (*(names[i] for i in known), "/".join(config.anomalies))
    return inliers, names, Arrays(x, np.full(len(x), len(known)))


def _joined(first: Arrays | None, second: Arrays) -> Arrays:
    if first is None or first.y is None or second.y is None:
        return second
    return Arrays(np.concatenate([first.x, second.x]), np.concatenate([first.y, second.y]))


def _split(config: Config, parts: Mapping[str, Arrays], path: Path) -> dict[str, Arrays]:
    """Return the splits with samples; those that the data lack are held out from ``train``."""
    parts = {name: _limit(part, config.max_samples, name) for name, part in parts.items()}
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if len(train.x) < 2:
        raise DataError(f"{path}: has {len(train.x)} samples; provide at least 2")
    if test is None:
        train, test = _hold_out(train, config.test_fraction, "arrays/test")
    if val is None:
        train, val = _hold_out(train, config.val_fraction, "arrays/val")
    splits = {"train": train, "val": val, "test": test}
    return {name: part for name, part in splits.items() if len(part.x)}


def _hold_out(data: Arrays, fraction: float, purpose: str) -> tuple[Arrays, Arrays]:
    """Return ``(rest, held out)``; samples of classes that the rest lacks stay in the rest."""
    rest, held = split_off(data, round(fraction * len(data.x)), purpose)
    if rest.y is None or held.y is None or not len(rest.x):
        return rest, held
    is_known = np.isin(held.y, rest.y)
    if is_known.all():
        return rest, held
    x = np.concatenate([rest.x, held.x[~is_known]])
    y = np.concatenate([rest.y, held.y[~is_known]])
    return Arrays(x, y), Arrays(held.x[is_known], held.y[is_known])


def _limit(part: Arrays, count: int | None, name: str) -> Arrays:
    return (
        hold_out(part, count, f"arrays/limit/{name}")[1] if count and len(part.x) > count else part
    )


def _read_arrays(path: Path, label_names: tuple[str, ...]) -> tuple[dict[str, _Part], list[str]]:
    try:
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                content = {"images": content}
            arrays: dict[str, npt.NDArray[Any]] = {
                name: np.asarray(array) for name, array in content.items()
            }
    # damaged archives raise errors of zip, deflate, numpy's header, memory and more
    except Exception as failed:  # noqa: BLE001
        if path.suffix.lower() not in (".npy", ".npz"):
            raise DataError(
                f"{path}: not a .npy, .npz, .csv or .parquet, nor a folder of pictures",
                "write it as one of these",
            ) from None
        raise DataError(
            f"{path}: not a plain .npy or .npz of numbers ({reason(failed)});"
            " write it with numpy.savez"
        ) from None
    samples = next((n for n in _SAMPLES if n in arrays or f"train_{n}" in arrays), None)
    if samples is None:
        raise DataError(
            f"{path}: has {_listed(arrays)}; expected the samples under {', '.join(_SAMPLES)}, or"
            " with the prefixes train_, val_ and test_",
            "rename them",
        )
    has_parts = f"train_{samples}" in arrays
    prefixes = {split: f"{split}_" for split in _SPLITS} if has_parts else {"train": ""}
    used, parts = set(), {}
    for split, prefix in prefixes.items():
        if f"{prefix}{samples}" in arrays:
            x = arrays[f"{prefix}{samples}"]
            name = next((prefix + n for n in label_names if prefix + n in arrays), None)
            labels = (
                None if name is None else _checked_labels(path, name, arrays[name], x.shape[:1])
            )
            used |= {f"{prefix}{samples}", name}
            parts[split] = _Part(x.astype(x.dtype.newbyteorder("="), copy=False), labels)
    unused = [name for name in arrays if name not in used]
    return parts, [f"arrays that are not used: {_listed(unused)}"] if unused else []


def _checked_labels(
    path: Path, name: str, labels: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return labels as int64 or strings."""
    is_integer = labels.dtype.kind in "iu"
    is_usable = is_integer and 0 <= labels.min(initial=0) <= labels.max(initial=0) < 1 << 63
    if labels.shape != shape or not (is_usable or labels.dtype.kind == "U"):
        ends = f" from {labels.min()} to {labels.max()}" if is_integer and labels.size else ""
        raise DataError(
            f"{path}: {name} must be {shape[0] if shape else 0} integers from 0 or strings, found"
            f" {labels.dtype} {labels.shape}{ends}",
            "write one class per sample, such as np.unique(labels, return_inverse=True)[1]",
        )
    return labels.astype(np.int64) if is_integer else labels


def _check_alike(path: Path, parts: Mapping[str, _Part]) -> None:
    """Raise :class:`DataError` where a part is unusable or differs from the training part."""
    train = parts["train"].x
    for split, (x, labels) in parts.items():
        is_number = x.dtype.kind in "bf" or x.dtype in (np.uint8, np.uint16)
        if not is_number or x.ndim < 2:
            raise DataError(
                f"{path}: expected samples (n, ...) of unsigned bytes, 16-bit unsigned integers,"
                f" bool or floats, found {x.dtype} {x.shape} in {split}",
                "convert them, for example with astype(numpy.float32)",
            )
        if not x.size:
            raise DataError(
                f"{path}: the {split} part has the shape {x.shape}, which has no values",
                "provide samples, or leave the part out",
            )
        if x.dtype != train.dtype or x.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{path}: {split} samples are {x.dtype} {x.shape[1:]}, train samples"
                f" {train.dtype} {train.shape[1:]}",
                "convert both to one type and shape",
            )
        first_labels = parts["train"].labels
        if (labels is None) != (first_labels is None):
            raise DataError(
                f"{path}: only one of train and {split} has labels; provide labels for both or"
                " neither"
            )
        if (
            labels is not None
            and first_labels is not None
            and labels.dtype.kind != first_labels.dtype.kind
        ):
            raise DataError(
                f"{path}: labels are {first_labels.dtype} in train and {labels.dtype} in {split}",
                "use integers or strings in both",
            )


def _arrange(x: npt.NDArray[Any], layout: str, path: Path) -> npt.NDArray[Any]:
    """Return images ``(n, channels, h, w)`` or a table ``(n, columns)``."""
    if layout == "table" or (layout == "auto" and x.ndim == 2):
        return x.reshape(len(x), -1)
    if x.ndim == 3 and layout != "channels_first":
        return x[:, None]
    if x.ndim == 4:
        first, last = (x.shape[axis] <= _MAX_CHANNELS for axis in (1, 3))
        if first and last and layout in ("auto", "image"):
            raise DataError(
                f"{path}: images of shape {x.shape} fit (n, channels, h, w) and"
                " (n, h, w, channels)",
                "set dataset.layout: channels_first or channels_last",
            )
        if layout == "channels_last" or (last and layout != "channels_first"):
            return _channels_first(x)
        if layout == "channels_first" or first:
            return x
    raise DataError(
        f"{path}: samples of shape {x.shape} are no images; expected (n, h, w),"
        f" (n, h, w, channels) or (n, channels, h, w), with at most {_MAX_CHANNELS} channels",
        "set dataset.layout: table if each sample is a row of numbers",
    )


def _channels_first(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return images ``(n, h, w, c)`` as ``(n, c, h, w)``, in their memory if it can be written."""
    n, height, width, channels = x.shape
    flat = np.require(x, requirements=["C", "W"]).reshape(n, -1)
    for part in in_parts(n):
        images = flat[part].reshape(-1, height, width, channels)
        flat[part] = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return flat.reshape(n, channels, height, width)


def _scaled(
    config: Config, arrays: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, npt.NDArray[Any]], float, list[str]]:
    """Return the arrays in a type that shards store, their divisor, and what is to be said."""
    dtype = arrays["train"].dtype
    if dtype.kind == "b":
        arrays = {name: x.astype(np.uint8) for name, x in arrays.items()}
    if config.scale:
        return arrays, config.scale, []
    if dtype.kind == "f":
        return arrays, 1.0, []
    if dtype == np.uint16:
        return arrays, _LARGEST[1], ["16-bit values are divided by 65535"]
    if all(x.max() <= 1 for x in arrays.values()):
        note = "only 0 and 1: binary data, not divided by 255 (set scale: 255 if they are grey)"
        return arrays, 1.0, [note]
    return arrays, _LARGEST[0], []


def _check_values(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    scale: float,
    bounds: tuple[float, float] | None,
) -> None:
    for split, x in arrays.items():
        low, high = float(x.min()) / scale, float(x.max()) / scale
        if not np.isfinite([low, high]).all():
            raise DataError(f"{path}: has NaN or infinite values; remove them first")
        if bounds and not bounds[0] <= low <= high <= bounds[1]:
            raise DataError(
                f"{path}: {split} samples lie in {low:g} to {high:g} after division by {scale:g},"
                f" outside the bounds {bounds[0]:g} to {bounds[1]:g}",
                "correct dataset.bounds or dataset.scale",
            )


def _number_labels(
    labels: Mapping[str, npt.NDArray[Any] | None],
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64] | None]]:
    """Return the names of all labels in natural order, and the labels as numbers of names."""
    present = {split: values for split, values in labels.items() if values is not None}
    if not present:
        return (), dict.fromkeys(labels)
    distinct = np.unique(np.concatenate([*present.values()]))
    names = [str(name) for name in distinct]
    if distinct.dtype.kind == "U":
        names.sort(key=natural_order)
    rank = {name: i for i, name in enumerate(names)}
    to_number = np.array([rank[str(name)] for name in distinct], np.int64)
    return tuple(names), {
        split: to_number[np.searchsorted(distinct, values)] for split, values in present.items()
    }


def _known_first(
    splits: Mapping[str, Arrays], names: tuple[str, ...]
) -> tuple[dict[str, Arrays], tuple[str, ...], int]:
    """Number the classes of the first split from 0, then the others.

    Return the splits, the names by number, and the number of classes of the first split.
    """
    first = next(iter(splits.values())).y
    if first is None:
        return dict(splits), (), 0
    known = np.unique(first)
    order = np.concatenate([known, np.setdiff1d(np.arange(len(names)), known)])
    rank = np.argsort(order)
    numbered = {
        name: part._replace(y=None if part.y is None else rank[part.y])
        for name, part in splits.items()
    }
    return numbered, tuple(names[i] for i in order), len(known)


def _column_notes(x: npt.NDArray[Any], is_start_of_chains: bool) -> Iterator[str]:
    """Yield what is to be said about training samples ``x (n, *shape)`` of floats.

    ``is_start_of_chains``: whether chains from N(0, 1) start in the units of x.
    """
    constant = np.flatnonzero(x.min(axis=0) == x.max(axis=0))
    if x.ndim == 2 and len(constant):
        yield f"constant columns: {_listed(constant)}"
    with np.errstate(over="ignore"):
        mean, sd = (float(np.abs(v).max()) for v in (x.mean(axis=0), x.std(axis=0)))
    if is_start_of_chains and (mean > _FAR or not _NARROW < sd < _FAR):
        yield (
            f"means up to {mean:g} and standard deviations up to {sd:g} are far from N(0, 1), where"
            " chains start; set dataset.standardise: true, or dataset.bounds"
        )


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
