"""The user's own data in parts, of any size: arrays on a disk and WebDataset tars, read as needed.

A folder has parts of one kind, in the order of their names, or the folders ``train``, ``val`` and
``test`` with parts inside:

- ``.npy`` and uncompressed ``.npz``, which are mapped and not read. An ``.npz`` has ``images`` or
  ``x``, and optionally ``labels`` or ``y``, integers from 0.
- ``.tar`` as WebDataset writes them, a sample of files with one key: a picture or ``.npy``, and
  optionally the class as a number in ``.cls``. They stay where they are, and training reads them
  (data/placed.py), unless ``rewrite`` is true. A split is held out in packs of such tars.

Nothing is converted but pictures to arrays. Unsigned bytes are divided by 255 and lie in 0 to 1;
floats are taken as they are. Smaller data in a single file or in folders of pictures are for
``arrays``, which converts and checks more.
"""

import hashlib
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.config import Mismatch, Params, Positive, Probability, section
from ebm_dist.datasets import Arrays, Dataset, _paths
from ebm_dist.datasets._lazy import Lazy, Placed, Rows, rows_of
from ebm_dist.datasets._members import PICTURES, stack
from ebm_dist.datasets._paths import files_below, natural_order
from ebm_dist.errors import DataError, reason
from ebm_dist.rng import numpy_stream
from ebm_dist.storage import is_local, read_range

_SPLITS = ("train", "val", "test")
_SAMPLES, _LABELS = ("images", "x", "X", "data"), ("labels", "y")
_PACK, _FEWEST_PACKS = 256, 64  # samples of a pack of a tar, and packs of a data set
_NUM_ZIP_HEADER = 30  # bytes before the name of a member


@section
class Config:
    path: str
    """Folder of parts, relative to the working directory or else to EBM_DATA_DIR, or
    ``s3://bucket/prefix``."""
    val_fraction: Probability = 0.1
    """Fraction of the training samples held out for choosing settings, by a fixed random choice, if
    there is no folder ``val``."""
    test_fraction: Probability = 0.1
    """Fraction of all samples held out for reporting, if there is no folder ``test``."""
    scale: Positive | None = None
    """Divisor of the values; if absent, 255 or 65535 for integers and 1 for floats."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value after scaling, to which chains are clamped. If absent, 0 and 1 for
    integers, and none for floats."""

    rewrite: bool = False
    """Write the samples of tars as shards, in a random order; others always are."""

    added_keys = ("rewrite",)

    def check(self, params: Params) -> None:
        if self.val_fraction + self.test_fraction >= 1:
            raise Mismatch(
                "dataset.val_fraction",
                "val_fraction and test_fraction leave no training samples; lower one of them",
            )
        if self.bounds and not -np.inf < self.bounds[0] < self.bounds[1] < np.inf:
            raise Mismatch("dataset.bounds", "must be two finite numbers, the lower one first")


class Part(NamedTuple):
    """A file of samples."""

    path: Path
    shape: tuple[int, ...]
    """``(n, *shape)``"""
    dtype: np.dtype[Any]
    read: Callable[[Rows], npt.NDArray[Any]]
    labels: npt.NDArray[np.int64] | None
    places: npt.NDArray[np.int64] | None = None
    """``(n, 2)`` offset and bytes of each sample in a tar"""
    kind: str = ""
    """of the samples of a tar"""


def locate(config: Config) -> Path:
    """Return the folder of the parts. Raise :class:`DataError` where it is missing."""
    return _paths.locate(config.path)


def stamp(config: Config) -> str:
    """Return a digest of names, sizes and times of the parts, which may be too many to be read.

    Raise :class:`DataError` where they are missing.
    """
    folder, lines = locate(config), list[str]()
    for path in files_below(folder):
        facts = path.stat()
        when = getattr(facts, "st_mtime_ns", None) or facts.st_mtime
        lines.append(f"{path.relative_to(folder)} {facts.st_size} {when}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load(config: Config) -> Dataset:
    folder = locate(config)
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file", "give a folder of parts, or use dataset arrays")
    has_splits = (folder / "train").is_dir()
    parts = {
        split: _parts(folder / split if has_splits else folder)
        for split in (_SPLITS if has_splits else ("train",))
        if not has_splits or (folder / split).is_dir()
    }
    whole = {split: _joined(of_split) for split, of_split in parts.items()}
    first = whole["train"]
    for split, arrays in whole.items():
        if (arrays.x.shape[1:], arrays.x.dtype) != (first.x.shape[1:], first.x.dtype):
            raise DataError(
                f"{folder}: {split} samples are {arrays.x.dtype} {arrays.x.shape[1:]}, train"
                f" samples {first.x.dtype} {first.x.shape[1:]}",
                "write both with one type and shape",
            )
    placed = None
    if not config.rewrite and all(part.kind for of in parts.values() for part in of):
        placed = _held_out_packs(config, {split: _placed(of) for split, of in parts.items()})
        splits = {split: _where(whole, split, of) for split, of in placed.items()}
        placed = {split: of.of_packs(np.arange(len(of.packs))) for split, of in placed.items()}
    else:
        splits = _held_out(config, whole)
    kind = first.x.dtype.kind
    if kind == "u" and first.x.dtype.itemsize > 2 and config.scale is None:
        raise DataError(
            f"{folder}: has {first.x.dtype}, which has no usual largest value",
            "set dataset.scale, or convert the values to floats",
        )
    largest = {"u": float(np.iinfo(first.x.dtype).max)} if kind == "u" else {}
    labels = [arrays.y for arrays in whole.values() if arrays.y is not None]
    return Dataset(
        splits=splits,
        scale=config.scale or largest.get(kind, 1.0),
        bounds=config.bounds or ((0.0, 1.0) if kind == "u" else None),
        num_classes=1 + max(int(y.max()) for y in labels) if labels else 0,
        source=f"own files: {folder.name}",
        is_official=False,
        placed=placed,
    )


def _placed(parts: list[Part]) -> Placed:
    """Return where the samples of some tars are, in packs."""
    rows, packs, count = list[npt.NDArray[np.int64]](), list[tuple[int, int, int]](), 0
    num_samples = sum(part.shape[0] for part in parts)
    size = max(1, min(_PACK, num_samples // _FEWEST_PACKS))
    for number, part in enumerate(parts):
        assert part.places is not None
        labels = np.full(part.shape[0], -1) if part.labels is None else part.labels
        rows.append(np.column_stack([part.places, labels]))
        for start in range(0, part.shape[0], size):
            packs.append((number, count + start, min(size, part.shape[0] - start)))
        count += part.shape[0]
    files = tuple(str(p.path.resolve() if is_local(p.path) else p.path) for p in parts)
    return Placed(files, parts[0].kind, np.concatenate(rows), np.array(packs, np.int64))


def _held_out_packs(config: Config, whole: dict[str, Placed]) -> dict[str, Placed]:
    """Return the packs of each split; those without a folder are held out from ``train``."""
    train, splits, used = whole["train"], dict[str, Placed](), 0
    order = numpy_stream(0, "parts").permutation(len(train.packs))
    for split, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        count = 0 if split in whole else round(len(order) * fraction)
        if count:
            chosen = np.sort(order[used : used + count])
            splits[split], used = train._replace(packs=train.packs[chosen]), used + count
    rest = train._replace(packs=train.packs[np.sort(order[used:])])
    return {"train": rest, **{k: v for k, v in whole.items() if k != "train"}, **splits}


def _where(whole: dict[str, Arrays], split: str, placed: Placed) -> Arrays:
    return _select(whole.get(split, whole["train"]), rows_of(placed.packs))


def _held_out(config: Config, whole: dict[str, Arrays]) -> dict[str, Arrays]:
    """Return the splits; those that have no folder are held out from ``train``."""
    train, num = whole["train"], len(whole["train"].x)
    order = numpy_stream(0, "parts").permutation(num)
    counts = {
        split: 0 if split in whole else round(num * fraction)
        for split, fraction in (("test", config.test_fraction), ("val", config.val_fraction))
    }
    splits, used = dict[str, Arrays](), 0
    for split, count in counts.items():
        if count:
            splits[split] = _select(train, np.sort(order[used : used + count]))
            used += count
    rest = _select(train, np.sort(order[used:])) if used else train
    return {"train": rest, **{k: v for k, v in whole.items() if k != "train"}, **splits}


def _select(arrays: Arrays, rows: Rows) -> Arrays:
    return Arrays(arrays.x.select(rows), None if arrays.y is None else arrays.y[rows])


def _joined(parts: list[Part]) -> Arrays:
    """Return the samples of some parts as one array."""
    first = parts[0]
    for part in parts:
        if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
            raise DataError(
                f"{part.path}: samples are {part.dtype} {part.shape[1:]}, those of"
                f" {first.path.name} {first.dtype} {first.shape[1:]}",
                "write all parts with one type and shape",
            )
        if (part.labels is None) != (first.labels is None):
            raise DataError(
                f"{part.path}: only some parts have labels", "provide labels for all or none"
            )
    starts = np.concatenate([[0], np.cumsum([part.shape[0] for part in parts])])

    def read(rows: Rows) -> npt.NDArray[Any]:
        of = np.searchsorted(starts, rows, side="right") - 1
        x = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number in np.unique(of):
            at = np.flatnonzero(of == number)
            found = parts[number].read(rows[at] - starts[number])
            if (found.dtype, found.shape[1:]) != (first.dtype, first.shape[1:]):
                raise DataError(
                    f"{parts[number].path}: has samples {found.dtype} {found.shape[1:]} beside"
                    f" {first.dtype} {first.shape[1:]}",
                    "write all with one type and shape",
                )
            x[at] = found
        return x

    x = Lazy(read, (int(starts[-1]), *first.shape[1:]), first.dtype)
    y = None if first.labels is None else np.concatenate([part.labels for part in parts])
    return Arrays(x, y)


def _parts(folder: Path) -> list[Part]:
    found = sorted(
        (path for path in folder.iterdir() if path.suffix in _READERS),
        key=lambda path: natural_order(path.name),
    )
    kinds = {path.suffix for path in found}
    if len(kinds) != 1:
        raise DataError(
            f"{folder}: has {', '.join(sorted(kinds)) or 'no'} parts; expected files of one of"
            f" {', '.join(_READERS)}",
            "write the samples as such files",
        )
    parts = [_READERS[path.suffix](path) for path in found]
    for part in parts:
        if part.dtype.kind not in "uf" or len(part.shape) < 2 or 0 in part.shape:
            raise DataError(
                f"{part.path}: expected samples (n, ...) of unsigned integers or floats, found"
                f" {part.dtype} {part.shape}",
                "convert them, for example with astype(numpy.float32)",
            )
        if part.labels is not None and (
            part.labels.shape != part.shape[:1] or part.labels.min(initial=0) < 0
        ):
            raise DataError(
                f"{part.path}: labels must be {part.shape[0]} integers from 0, found"
                f" {part.labels.shape}",
                "write one class per sample",
            )
    return parts


def _npy(path: Path) -> Part:
    try:
        with path.open("rb") as stream:
            array = _array_at(path, stream)
    # numpy reads the header as a Python literal: errors of the tokenizer, parser and memory
    except Exception as failed:  # noqa: BLE001
        raise DataError(
            f"{path}: not a plain .npy of numbers ({reason(failed)})", "write it with numpy.save"
        ) from None
    return _of_array(path, array, None)


def _npz(path: Path) -> Part:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            name = next((n for n in _SAMPLES if n in members), None)
            if name is None:
                raise DataError(
                    f"{path}: has {', '.join(members)}; expected the samples under one of"
                    f" {', '.join(_SAMPLES)}",
                    "rename them",
                )
            if members[name].compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: {name} is compressed and cannot be mapped",
                    "write it with numpy.savez, which does not compress",
                )
            of_labels = next((n for n in _LABELS if n in members), None)
            labels = None
            if of_labels is not None:
                with archive.open(members[of_labels]) as stream:
                    labels = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
            array = _mapped(path, members[name])
    except DataError:
        raise
    # damaged archives raise errors of zip, numpy's header, memory and more
    except Exception as failed:  # noqa: BLE001
        raise DataError(
            f"{path}: not a plain .npz of numbers ({reason(failed)})", "write it with numpy.savez"
        ) from None
    return _of_array(path, array, labels)


def _mapped(path: Path, member: zipfile.ZipInfo) -> Any:
    """Map an array that is stored in a zip file."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(_NUM_ZIP_HEADER)
        lengths = [int.from_bytes(header[i : i + 2], "little") for i in (26, 28)]
        stream.seek(member.header_offset + _NUM_ZIP_HEADER + sum(lengths))
        return _array_at(path, stream)


def _array_at(path: Path, stream: Any) -> Any:
    """Return the array whose ``.npy`` begins here in a file: mapped, or read from a store.

    Raise ValueError for what cannot be read row by row.
    """
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("has Python objects")
    start = stream.tell()
    if is_local(path):
        return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")
    if is_fortran:
        raise ValueError("is in Fortran's order")
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def rows(chosen: Rows) -> npt.NDArray[Any]:
        """Read each run of consecutive rows by a request of its own."""
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1) if len(chosen) else []
        content = b"".join(
            read_range(path, start + int(run[0]) * size, len(run) * size) for run in runs
        )
        return np.frombuffer(content, dtype).reshape(len(chosen), *shape[1:])

    return Lazy(rows, shape, dtype)


def _of_array(path: Path, array: Any, labels: npt.NDArray[Any] | None) -> Part:
    if labels is not None and labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype}", "use integers from 0")
    native = array.dtype.newbyteorder("=")
    return Part(
        path,
        array.shape,
        native,
        lambda rows: np.asarray(array[rows], native),
        None if labels is None else labels.astype(np.int64),
    )


def _tar(path: Path) -> Part:
    """Return the samples of a WebDataset tar, after a pass over its headers."""
    places, labels, kind = [], dict[str, int](), ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                above, _, name = member.name.rpartition("/")
                name, _, suffix = name.partition(".")
                key, suffix = f"{above}/{name}", suffix.lower()
                if not name:  # a hidden file
                    continue
                if suffix == "cls":
                    stream = archive.extractfile(member)
                    assert stream is not None
                    labels[key] = int(stream.read())
                elif suffix == "npy" or suffix in PICTURES:
                    kind = kind or suffix
                    places.append((key, member.offset_data, member.size))
    except (tarfile.TarError, OSError, ValueError) as failed:
        raise DataError(
            f"{path}: not a WebDataset tar ({reason(failed)})",
            "write samples as <key>.png or <key>.npy, and classes as numbers in <key>.cls",
        ) from None
    keys = [key for key, _, _ in places]
    if not places or len(set(keys)) != len(keys) or (labels and set(keys) != set(labels)):
        raise DataError(
            f"{path}: has {len(places)} pictures or arrays of {len(set(keys))} keys, and"
            f" {len(labels)} classes",
            "write one picture or .npy for each key, and a .cls for all or none",
        )
    at = np.array([(offset, size) for _, offset, size in places], np.int64)

    def read(rows: Rows) -> npt.NDArray[Any]:
        contents = []
        with path.open("rb") as stream:
            for offset, size in at[rows].tolist():
                stream.seek(offset)
                contents.append(stream.read(size))
        try:
            return stack(contents, kind)
        except ValueError as failed:
            raise DataError(f"{path}: cannot be read ({failed})", "write it again") from None

    example = read(np.arange(1))
    y = np.array([labels[key] for key in keys], np.int64) if labels else None
    return Part(path, (len(places), *example.shape[1:]), example.dtype, read, y, at, kind)


_READERS: dict[str, Callable[[Path], Part]] = {".npy": _npy, ".npz": _npz, ".tar": _tar}
