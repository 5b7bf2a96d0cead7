"""WebDataset tar shards with an index: written once, verified by hash, read by logical shard.

A tar holds packs of samples, ``<key>.x.npy`` and ``<key>.y.npy`` (one sample per member reads fifty
times slower). ``index.json`` has the position and the SHA-256 of everything and is written last, so
a folder without it is not a data set.
"""

import hashlib
import io
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import webdataset
from torch import Tensor

from ebm_dist.data import placed, streamed
from ebm_dist.datasets import Arrays, Dataset, Standardisation, in_parts
from ebm_dist.datasets._lazy import Lazy
from ebm_dist.errors import DataError
from ebm_dist.files import read_json, write_json
from ebm_dist.rng import numpy_stream
from ebm_dist.storage import is_local, location, read_bytes, read_range, write_whole

SCHEMA = 1
NUM_TARS = 16
"""Tars of each split. Logical shards read whole tars, so their number must divide this."""
PACK_SIZE = 256
"""Samples of a pack."""
INDEX = "index.json"
_MOST_READ = 128 << 20  # bytes as floats of what is read at once of a streamed data set
_ROUNDING = 1e-6  # of float32, as a fraction of the interval of the bounds
_MAX_SIDE = 1 << 20  # maximum side of an image or number of classes of a valid index
STAGE = "prepare"
LABELLED = "labelled-"
"""Prefix of the splits that repeat samples of ``train`` with their labels."""

log = logging.getLogger(__name__)


class Pack(NamedTuple):
    """A pack of samples inside a tar, with the positions of its arrays."""

    num_samples: int
    x: tuple[int, int]
    """Offset and size of the samples, in bytes"""
    y: tuple[int, int]
    """Offset and size of the labels, in bytes"""
    sha256: str = ""
    """of both arrays, in sets that are streamed; "" in others"""
    file: str = ""
    """The user's own tar that has the samples, of data that stay in place; positions have the size
    in memory then"""
    first: int = 0
    """The first of its places"""


class Tar(NamedTuple):
    """A shard file."""

    file: str
    num_samples: int
    bytes: int
    sha256: str
    packs: tuple[Pack, ...]


class Index(NamedTuple):
    """The content of ``index.json``: a prepared data set."""

    folder: Path
    dataset: str
    source: str
    is_official: bool
    shape: tuple[int, ...]
    scale: float
    bounds: tuple[float, float] | None
    num_classes: int
    splits: dict[str, tuple[Tar, ...]]
    statistics: dict[str, dict[str, Any]]
    digest: str
    """SHA-256 of the index, which holds the SHA-256 of each shard: it identifies the data"""
    class_names: tuple[str, ...]
    """Name of each class, anomalies included; () without labels"""
    standardisation: Standardisation | None = None
    """Applied to the stored samples; undo it to get the units of the data"""
    placed: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """``file``, ``sha256`` and ``kind`` of the places of each split whose samples stay in place"""
    divisor: float = 1.0
    """Of the values that the data had, before they were standardised and stored"""

    def num_samples(self, split: str) -> int:
        """Return the number of samples of a split."""
        return sum(tar.num_samples for tar in self.splits[split])


def write(folder: Path, name: str, data: Dataset) -> Index:
    """Write a data set as shards, in a fixed random order. Equal data give equal bytes.

    What was converted or skipped, and samples that are in two splits, are logged. Raise
    :class:`DataError` for samples that cannot be read, stored or written.
    """
    divisor = data.scale
    if not data.placed:
        data = _stored(data)
    duplicates, notes = _duplicates(data.splits), [*data.notes]
    if data.standardisation:
        mean, sd = data.standardisation
        notes.append(
            f"columns are standardised: means {mean.min():g} to {mean.max():g}, standard deviations"
            f" {sd.min():g} to {sd.max():g}"
        )
    for split, counts in duplicates.items():
        notes += [
            f"{count:,} of {len(data.splits[split].x):,} {split} samples are in {other} too"
            for other, count in counts.items()
        ]
    for note in notes:
        log.warning("%s: %s: %s", folder, data.source, note)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # first: the old data are no longer valid
    splits, statistics, sides = {}, {}, {}
    large = streamed.large(data.splits)
    for split, arrays in data.splits.items():
        if data.placed:
            try:
                splits[split], statistics[split], sides[split] = placed.write(
                    folder,
                    split,
                    data.placed[split],
                    NUM_TARS,
                    data.scale,
                    _progress(folder, split, len(arrays.x)),
                )
            except ValueError as failed:
                raise DataError(f"{folder}: {split}: {failed}", "write that tar again") from None
            continue
        if split in large:
            chosen = streamed.layout(arrays, NUM_TARS)
            splits[split], statistics[split] = streamed.write_tars(
                folder, split, arrays, chosen, data.scale, _progress(folder, split, len(arrays.x))
            )
            continue
        arrays = arrays._replace(x=arrays.x[:])  # noqa: PLW2901 (a Lazy that float32 made small)
        order = numpy_stream(0, f"shards/{split}").permutation(len(arrays.x))
        tars = [order[i::NUM_TARS] for i in range(NUM_TARS)]
        splits[split] = [
            _write_tar(folder, f"{split}-{i:06d}.tar", arrays, rows) for i, rows in enumerate(tars)
        ]
        counted = streamed.Statistics(data.scale)
        counted.add(arrays.x, arrays.y)
        statistics[split] = counted.result()
    for split in splits:
        _check_bounds(data, split, statistics[split])
        if split in duplicates and not data.is_official:
            statistics[split]["duplicates"] = duplicates[split]
    example = next(iter(data.splits.values())).x
    write_json(
        folder / INDEX,
        {
            **described(data),
            **({} if data.is_official or not notes else {"notes": notes}),
            "schema": SCHEMA,
            "dataset": name,
            "source": data.source,
            "is_official": data.is_official,
            "shape": example.shape[1:],
            "scale": data.scale,
            **({} if divisor == data.scale else {"divisor": divisor}),
            "bounds": data.bounds,
            "num_classes": data.num_classes,
            "splits": splits,
            "statistics": statistics,
            **({"placed": sides} if sides else {}),
        },
    )
    return read_index(folder)


def _stored(data: Dataset) -> Dataset:
    """Return the data set with samples as they are stored: standardised, floats as float32.

    Raise :class:`DataError` for values that float32 cannot hold.
    """
    splits, large = {}, streamed.large(data.splits)
    for split, arrays in data.splits.items():
        x = arrays.x
        if isinstance(x, Lazy) and split not in large:
            x = x[:]
        if data.standardisation and x.shape[1:] != data.standardisation.mean.shape:
            raise DataError(
                f"{data.source}: samples of shape {x.shape[1:]} cannot be standardised as those of"
                f" the data set, of shape {data.standardisation.mean.shape}",
                "compare samples of one shape, or set dataset.standardise: false",
            )
        if isinstance(x, Lazy):
            splits[split] = arrays._replace(x=_converted(x, data, split))
            continue
        read = x
        if data.standardisation:
            standardised = np.empty(x.shape, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                for part in in_parts(len(x)):
                    standardised[part] = data.standardisation.apply(x[part] / data.scale)
            x = standardised
        elif x.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                x = x.astype(np.float32, copy=False)
        if x.dtype.kind == "f":
            _check_finite(x, read, data, split)
        splits[split] = arrays._replace(x=x)
    if not data.standardisation:
        return data._replace(splits=splits)
    return data._replace(splits=splits, scale=1.0, bounds=None)


def _converted(x: Lazy, data: Dataset, split: str) -> Lazy:
    """Return samples that are read later as they are stored."""
    if data.standardisation is None and x.dtype.kind != "f":
        return x

    def convert(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            stored: npt.NDArray[Any] = (
                data.standardisation.apply(part / data.scale)
                if data.standardisation
                else part.astype(np.float32, copy=False)
            )
        if len(part):
            _check_finite(stored, part, data, split)
        return stored

    return x.map(convert, np.float32)


def _check_finite(
    stored: npt.NDArray[Any], read: npt.NDArray[Any], data: Dataset, split: str
) -> None:
    if not np.isfinite([stored.min(), stored.max()]).all():
        raise DataError(
            f"{data.source}: {split} samples have NaN, infinite or too large values for"
            f" float32, from {read.min():g} to {read.max():g}",
            "remove or rescale them",
        )


def _check_bounds(data: Dataset, split: str, statistics: dict[str, Any]) -> None:
    """Raise :class:`DataError` for samples that chains within the bounds could not reach."""
    if data.bounds is None:
        return
    (low, high), ends = data.bounds, (statistics["min"], statistics["max"])
    margin = _ROUNDING * (high - low)
    if ends[0] < low - margin or ends[1] > high + margin:
        raise DataError(
            f"{data.source}: {split} samples are {ends[0]:g} to {ends[1]:g} after scaling, outside"
            f" the bounds {low:g} to {high:g}",
            "set dataset.scale or dataset.bounds",
        )


def _progress(folder: Path, split: str, num_samples: int) -> Callable[[int, int], None]:
    """Return a function that prints how far a split is, at most once a second."""
    began = shown = time.monotonic()
    written = 0

    def progress(done: int, num_bytes: int) -> None:
        nonlocal shown, written
        written += num_bytes
        now = time.monotonic()
        if now - shown < 1 and done < num_samples:
            return
        shown, seconds = now, max(now - began, 1e-9)
        left = round(seconds * (num_samples - done) / done)
        print(
            f"{folder}: {split}: {done:,} of {num_samples:,} samples"
            f"  {written / 2**20:,.0f} MiB  {written / 2**20 / seconds:,.0f} MiB/s"
            f"  {left // 60}:{left % 60:02d} left",
            flush=True,
        )

    return progress


def described(data: Dataset | Index) -> dict[str, Any]:
    """Return the keys of an index or a model's card that most data sets do not need."""
    keys: dict[str, Any] = {}
    if data.class_names not in ((), tuple(str(k) for k in range(data.num_classes))):
        keys["class_names"] = list(data.class_names)
    if data.standardisation:
        keys["standardisation"] = {
            name: values.ravel().tolist() for name, values in data.standardisation._asdict().items()
        }
    return keys


def _duplicates(splits: Mapping[str, Arrays]) -> dict[str, dict[str, int]]:
    """Return how many samples of each split are in each split before it, where there are any."""
    digests = {
        split: sample_digests(arrays.x)
        for split, arrays in splits.items()
        if not split.startswith(LABELLED)
    }
    duplicates: dict[str, dict[str, int]] = {}
    for first, second in itertools.combinations(digests, 2):
        if count := int(np.isin(digests[second], digests[first]).sum()):
            duplicates.setdefault(second, {})[first] = count
    return duplicates


def sample_digests(x: npt.NDArray[Any] | Lazy) -> npt.NDArray[np.uint64]:
    """Return a 64-bit digest ``(n,)`` of each of the samples ``x (n, *shape)``."""
    parts = (x[part] for part in in_parts(len(x)))
    digests = (
        hashlib.blake2b(sample.tobytes(), digest_size=8).digest()
        for part in parts
        for sample in part
    )
    return np.fromiter(map(int.from_bytes, digests), np.uint64, len(x))


def _write_tar(
    folder: Path, name: str, arrays: Arrays, rows: npt.NDArray[np.int64]
) -> dict[str, Any]:
    path, counts = folder / name, list[int]()
    labels = np.zeros(len(arrays.x), np.int64) if arrays.y is None else arrays.y
    try:
        with webdataset.TarWriter(str(path), user="ebm", group="ebm", mtime=0) as tar:
            for part in in_parts(len(rows), PACK_SIZE):
                pack, key = rows[part], f"{len(counts):06d}"
                tar.write({"__key__": key, "x.npy": arrays.x[pack], "y.npy": labels[pack]})
                counts.append(len(pack))
        return streamed.entry(path, counts, hashes_packs=False)
    except OSError as failed:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({failed.strerror}); free space and run"
            f" 'dvc repro {STAGE}' again"
        ) from None


def read_index(folder: Path) -> Index:
    """Read and check ``index.json``.

    Raise :class:`DataError` where it is missing, broken or of another schema.
    """
    path = folder / INDEX
    raw = read_json(path, STAGE)
    try:
        if raw["schema"] != SCHEMA:
            raise DataError(
                f"{path}: schema {raw['schema']}, this version reads {SCHEMA}; run"
                f" 'dvc repro -f {STAGE}'"
            )
        splits = {
            split: tuple(
                Tar(
                    _plain_name(tar["file"]) if tar["file"] else "",
                    int(tar["num_samples"]),
                    int(tar["bytes"]),
                    str(tar["sha256"]),
                    tuple(
                        Pack(
                            int(pack["num_samples"]),
                            _position(pack["x"]),
                            _position(pack["y"]),
                            str(pack.get("sha256", "")),
                            str(pack.get("file", "")),
                            int(pack.get("first", 0)),
                        )
                        for pack in tar["packs"]
                    ),
                )
                for tar in tars
            )
            for split, tars in raw["splits"].items()
        }
        bounds = (
            None if raw["bounds"] is None else (float(raw["bounds"][0]), float(raw["bounds"][1]))
        )
        _sound("a split without shards", all(splits.values()) and splits)
        for tar in (tar for tars in splits.values() for tar in tars):
            counts = [pack.num_samples for pack in tar.packs]
            _sound(
                f"{tar.num_samples} samples of {tar.file}, whose packs have {sum(counts)}",
                min([tar.num_samples, *counts]) >= 0 and sum(counts) == tar.num_samples,
            )
        _sound(f"bounds {bounds}", bounds is None or -math.inf < bounds[0] < bounds[1] < math.inf)
        for key in ("scale", "divisor"):
            value = raw.get(key, raw["scale"])
            _sound(f"{key} {value}", 0 < float(value) < math.inf)
        _sound(
            f"shape {raw['shape']}",
            raw["shape"] and all(isinstance(n, int) and 0 < n < _MAX_SIDE for n in raw["shape"]),
        )
        _sound(f"{raw['num_classes']} classes", 0 <= int(raw["num_classes"]) < _MAX_SIDE)
        shape, num_classes = tuple(int(n) for n in raw["shape"]), int(raw["num_classes"])
        return Index(
            folder=folder,
            dataset=str(raw["dataset"]),
            source=str(raw["source"]),
            is_official=bool(raw["is_official"]),
            shape=shape,
            scale=float(raw["scale"]),
            bounds=bounds,
            num_classes=num_classes,
            splits=splits,
            statistics=dict(raw["statistics"]),
            digest=hashlib.sha256(read_bytes(path)).hexdigest(),
            class_names=class_names(raw),
            standardisation=standardisation(raw),
            placed={
                split: {key: str(side[key]) for key in ("file", "sha256", "kind")}
                for split, side in raw.get("placed", {}).items()
            },
            divisor=float(raw.get("divisor", raw["scale"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as failed:
        raise DataError(
            f"{path}: is not an index of a prepared data set ({type(failed).__name__}: {failed});"
            f" run 'dvc repro -f {STAGE}'"
        ) from None


def class_names(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes of an index or a model's card; numbers where it has none.

    Raise :class:`ValueError`.
    """
    num_classes = int(described["num_classes"])
    names = described.get("class_names", [str(k) for k in range(num_classes)])
    _sound(f"{len(names)} class_names", len(names) >= num_classes)
    _sound("class_names", all(isinstance(name, str) for name in names))
    return tuple(names)


def standardisation(described: Mapping[str, Any]) -> Standardisation | None:
    """Return the standardisation of an index or a model's card. Raise :class:`ValueError`."""
    if "standardisation" not in described:
        return None
    values = (described["standardisation"][name] for name in Standardisation._fields)
    mean, sd = (np.array(value, np.float64).reshape(described["shape"]) for value in values)
    _sound("standardisation", np.isfinite(mean).all() and (np.isfinite(sd) & (sd > 0)).all())
    return Standardisation(mean, sd)


def _sound(what: str, is_sound: Any) -> None:
    if not is_sound:
        raise ValueError(what)


def _plain_name(name: str) -> str:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".tar"):
        raise ValueError(f"shard name {name!r}")
    return name


def _position(value: Any) -> tuple[int, int]:
    offset, size = int(value[0]), int(value[1])
    _sound(f"position {value}", offset >= 0 and size >= 0)
    return offset, size


def publish(index: Index, root: Path) -> Index:
    """Copy a data set to an object store, under its digest, and return the copy's index.

    An existing copy is kept, and a local root makes none. The index is written last. Workers of a
    cluster read the copy.
    """
    if is_local(root):
        return index
    folder = root / index.digest[:16]
    if not (folder / INDEX).exists():
        files = [tar.file for tars in index.splits.values() for tar in tars if tar.file]
        for file in files + [side["file"] for side in index.placed.values()]:
            write_whole(folder / file, (index.folder / file).read_bytes())
        write_whole(folder / INDEX, (index.folder / INDEX).read_bytes())
    return index._replace(folder=folder)


def verify(index: Index) -> None:
    """Read every shard and compare it with the index.

    Raise :class:`DataError` that names the first bad one.
    """
    for split, tars in index.splits.items():
        if is_streamed(index, split):
            packs = Packs(index, split, range(len(tars)))
            for number in range(len(packs)):
                packs.read(number)
            continue
        for tar in tars:
            _read_tar(index, tar)


def _read_tar(index: Index, tar: Tar) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Read the samples of a tar at the positions in the index; nothing is unpacked to disk."""
    path, fix = index.folder / tar.file, f"run 'dvc repro -f {STAGE}'"
    try:
        content = read_bytes(path)
    except OSError as failed:
        raise DataError(f"{path}: cannot be read ({failed.strerror or failed}); {fix}") from None
    if len(content) != tar.bytes:
        raise DataError(
            f"{path}: {len(content)} bytes, the index says {tar.bytes}: truncated or another file;"
            f" {fix}"
        )
    if hashlib.sha256(content).hexdigest() != tar.sha256:
        raise DataError(f"{path}: SHA-256 differs from the index: altered; {fix}")
    try:
        xs, ys = [], []
        for pack in tar.packs:
            x, y = _checked_pack(index, pack, *(_part(content, at) for at in (pack.x, pack.y)))
            xs.append(x)
            ys.append(y)
        if not xs:
            return np.empty((0, *index.shape), np.uint8), np.empty(0, np.int64)
        return np.concatenate(xs), np.concatenate(ys)
    except ValueError as failed:
        raise DataError(f"{path}: not a shard of this data set ({failed}); {fix}") from None


def _part(content: bytes, position: tuple[int, int]) -> bytes:
    offset, size = position
    return content[offset : offset + size]


def _checked_pack(
    index: Index, pack: Pack, x_bytes: bytes, y_bytes: bytes
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the arrays of a pack. Raise :class:`ValueError` where they are not those expected."""
    x, y = _read_npy(x_bytes), _read_npy(y_bytes)
    _sound(
        f"samples of type {x.dtype} with labels of type {y.dtype}",
        x.dtype.kind in "uf" and y.dtype == np.int64,
    )
    if x.shape != (pack.num_samples, *index.shape) or y.shape != (pack.num_samples,):
        raise ValueError(
            f"pack of shape {x.shape} with {y.shape} labels, expected {pack.num_samples}"
            f" of {index.shape}"
        )
    return x, y


def _read_npy(content: bytes) -> npt.NDArray[Any]:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-any-return,no-untyped-call]
    # numpy reads the header as a Python literal: errors of the tokenizer, parser and memory
    except Exception as failed:  # noqa: BLE001
        raise ValueError(f"{type(failed).__name__}: {failed}") from None


def _has_streams(index: Index) -> bool:
    return any(is_streamed(index, split) for split in index.splits)


def _some(index: Index, split: str, most: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Read random packs, the same each time."""
    packs = Packs(index, split, range(len(index.splits[split])))
    xs, ys, count = [], [], 0
    for number in numpy_stream(0, f"part/{split}").permutation(len(packs)):
        if count >= most:
            break
        x, y = packs.read(int(number))
        xs.append(x[: most - count])
        ys.append(y[: most - count])
        count += len(ys[-1])
    log.warning(
        "%s: %s: a random part of %s of %s samples is read",
        index.folder,
        split,
        f"{count:,}",
        f"{index.num_samples(split):,}",
    )
    return np.concatenate(xs), np.concatenate(ys)


def is_streamed(index: Index, split: str) -> bool:
    """Return whether a split was written to be read pack by pack, not into memory."""
    return any(pack.sha256 for tar in index.splits[split] for pack in tar.packs)


class Packs:
    """The packs of some tars of a split, each read where it lies: on a disk or in a store.

    A pack is verified by its own SHA-256 at each read, or, in data sets without these, by that of
    its tar, once.
    """

    def __init__(self, index: Index, split: str, tars: range) -> None:
        if split not in index.splits:
            raise _no_split(index, split)
        self.index, self.split, self.tars = index, split, tars
        self.packs = [
            (tar, pack)
            for i, tar in enumerate(index.splits[split])
            if i in tars
            for pack in tar.packs
        ]
        counts = [pack.num_samples for _, pack in self.packs]
        self.starts = np.concatenate([[0], np.cumsum(counts)])[:-1].astype(np.int64)
        """``(len,)`` row of the first sample of each pack"""
        self.num_samples = sum(counts)
        self._verified = set[str]()
        self._places = _places(index, split) if split in index.placed else None

    def __len__(self) -> int:
        return len(self.packs)

    def read_all(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return all samples ``(n, *shape)`` as stored, and labels ``(n,)``."""
        return read_raw(self.index, self.split, self.tars)

    def read(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return the samples and labels of a pack. Raise :class:`DataError`."""
        tar, pack = self.packs[number]
        if self._places is not None:
            return self._read_placed(pack, self._places)
        path = self.index.folder / tar.file
        if not pack.sha256 and tar.file not in self._verified:
            _read_tar(self.index, tar)
            self._verified.add(tar.file)
        try:
            parts = _read_members(path, pack.x, pack.y)
        except OSError as failed:
            raise _unread(path, f"cannot be read ({failed.strerror or failed})") from None
        if pack.sha256 and hashlib.sha256(b"".join(parts)).hexdigest() != pack.sha256:
            raise _unread(path, f"SHA-256 of pack {number} differs from the index: altered")
        try:
            x, y = _checked_pack(self.index, pack, *parts)
        except ValueError as failed:
            raise _unread(path, f"not a shard of this data set ({failed})") from None
        return x.astype(np.int32) if x.dtype == np.uint16 else x, y

    def _read_placed(
        self, pack: Pack, places: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        path, at = location(pack.file), places[pack.first : pack.first + pack.num_samples]
        kind, shape = self.index.placed[self.split]["kind"], self.index.shape
        try:
            x, y = placed.read(path, at, kind, pack.sha256, shape)
        except OSError as failed:
            raise _unread(path, f"cannot be read ({failed.strerror or failed})") from None
        except ValueError as failed:
            raise _unread(path, str(failed)) from None
        return x.astype(np.int32) if x.dtype == np.uint16 else x, y


def _read_members(path: Path, *members: tuple[int, int]) -> list[bytes]:
    """Return the bytes at some offsets and sizes, from one read: they lie side by side."""
    first = min(offset for offset, _ in members)
    whole = read_range(path, first, max(map(sum, members)) - first)
    return [whole[offset - first :][:size] for offset, size in members]


def _places(index: Index, split: str) -> npt.NDArray[np.int64]:
    """Return the places of the samples of a split."""
    side = index.placed[split]
    return _read_places(index.folder / side["file"], side["sha256"])


@lru_cache(maxsize=8)  # every logical shard of a process asks for the same
def _read_places(path: Path, sha256: str) -> npt.NDArray[np.int64]:
    try:
        content = read_bytes(path)
    except OSError as failed:
        raise _unread(path, f"cannot be read ({failed.strerror or failed})") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _unread(path, "SHA-256 differs from the index: altered")
    return _read_npy(content)


def read_split(index: Index, split: str, tars: range | None = None) -> tuple[Tensor, Tensor]:
    """Read samples of a split as model inputs ``(n, *shape)`` float32 and labels ``(n,)`` int64.

    ``tars``: only these; all by default. Of a data set that is streamed, a random part is read
    then, of at most 128 MiB as floats, and this is logged.
    """
    x, y = read_raw(index, split, tars)
    return to_model(torch.from_numpy(x), index.scale), torch.from_numpy(y)


def read_labelled(index: Index, seed: int) -> tuple[Tensor, Tensor] | None:
    """Read the few labelled samples ``(n, *shape)`` of this seed, and their labels ``(n,)``.

    Return None where the data are not for semi-supervised learning.
    """
    draws = sum(split.startswith(LABELLED) for split in index.splits)
    return read_split(index, f"{LABELLED}{seed % draws}") if draws else None


def read_raw(
    index: Index, split: str, tars: range | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Read samples ``(n, *shape)`` as stored and labels ``(n,)``, of some tars or all.

    16-bit integers are returned as int32, which torch can index. Without ``tars``, of a data set
    that is streamed, a random part as in :func:`read_split`. Raise :class:`DataError`.
    """
    if split not in index.splits:
        raise _no_split(index, split)
    most = _MOST_READ // (4 * math.prod(index.shape))
    if tars is None and index.num_samples(split) > most and _has_streams(index):
        return _some(index, split, most)
    if split in index.placed:
        packs = Packs(index, split, range(len(index.splits[split])) if tars is None else tars)
        parts = [packs.read(number) for number in range(len(packs))]
        if not parts:
            return np.empty((0, *index.shape), np.uint8), np.empty(0, np.int64)
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    chosen = [tar for i, tar in enumerate(index.splits[split]) if tars is None or i in tars]
    y = np.empty(sum(tar.num_samples for tar in chosen), np.int64)
    x, filled = np.empty((0, *index.shape), np.uint8), 0
    for tar in chosen:
        part_x, part_y = _read_tar(index, tar)
        if len(part_y) and not filled:
            x = np.empty((len(y), *index.shape), part_x.dtype)
        part = slice(filled, filled + tar.num_samples)
        x[part], y[part], filled = part_x, part_y, part.stop
    return x.astype(np.int32) if x.dtype == np.uint16 else x, y


def _unread(path: Path, why: str) -> DataError:
    return DataError(f"{path}: {why}; run 'dvc repro -f {STAGE}'")


def _no_split(index: Index, split: str) -> DataError:
    return DataError(
        f"{index.folder}: has no {split} split, only {', '.join(index.splits)}; choose another"
        " data set"
    )


def read_parts(
    index: Index, split: str, size: int, tars: range | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield samples ``(size, *shape)`` and labels ``(size,)`` as :func:`read_split` has them.

    The last part may be shorter. Only one tar is in memory, or one pack of a split that is
    streamed.
    """
    x, y = read_raw(index, split, range(0))
    chosen = range(len(index.splits[split])) if tars is None else tars
    packs = Packs(index, split, chosen) if is_streamed(index, split) else None
    for number in range(len(packs)) if packs else chosen:
        more_x, more_y = (
            packs.read(number) if packs else read_raw(index, split, range(number, number + 1))
        )
        x, y = np.concatenate([x, more_x]), np.concatenate([y, more_y])
        whole = len(x) // size * size
        for part in in_parts(whole, size):
            yield to_model(torch.from_numpy(x[part]), index.scale), torch.from_numpy(y[part])
        x, y = x[whole:], y[whole:]
    if len(x):
        yield to_model(torch.from_numpy(x), index.scale), torch.from_numpy(y)


def to_model(x: Tensor, scale: float) -> Tensor:
    """Convert stored samples ``(n, *shape)`` to model inputs."""
    return x.float() / scale
