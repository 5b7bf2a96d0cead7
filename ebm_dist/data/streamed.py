"""Shards of data larger than memory, written in one pass over the samples in bounded memory.

A *block* of samples is read in the order of the source, shuffled, and dealt to all tars, a pack
each. So a pack is a random part of its block, and a tar has a part of each block. Packs have their
own SHA-256, because they are read one by one.
"""

import hashlib
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import webdataset

from ebm_dist.datasets import Arrays
from ebm_dist.errors import DataError
from ebm_dist.rng import numpy_stream

LARGE = 4 << 30
"""Bytes of a data set above which its splits are streamed, but those that would fill one tar."""
_TAR = 128 << 20  # bytes of a tar, about
_MOST_TARS = 512  # all are open at once
_PACK, _MOST_SAMPLES = 4 << 20, 256  # bytes and samples of a pack, at most
_BLOCK = 256 << 20  # bytes of a block, at most
_MOST_SQUARES = 1 << 20  # of one array of float64


class Layout(NamedTuple):
    """How a split is divided."""

    num_tars: int
    pack_size: int
    """samples"""


def large(splits: Mapping[str, Arrays]) -> list[str]:
    """Return the splits that are to be streamed."""
    sizes = {name: _sample_bytes(arrays) * len(arrays.x) for name, arrays in splits.items()}
    limit = min(_TAR, LARGE) if sum(sizes.values()) > LARGE else LARGE
    return [name for name, size in sizes.items() if size > limit]


def layout(arrays: Arrays, fewest_tars: int) -> Layout:
    """Return the number of tars, ``fewest_tars`` times a power of 2, and the size of a pack."""
    size, num_tars = _sample_bytes(arrays), fewest_tars
    most = min(_MOST_TARS, _BLOCK // size)  # a block has a sample for each
    while 2 * num_tars <= most and num_tars * _TAR < size * len(arrays.x):
        num_tars *= 2
    fitting = min(_PACK, _BLOCK // num_tars) // size
    return Layout(num_tars, max(1, min(_MOST_SAMPLES, fitting)))


def _sample_bytes(arrays: Arrays) -> int:
    size: int = math.prod(arrays.x.shape[1:]) * arrays.x.dtype.itemsize
    return size


def write_tars(
    folder: Path,
    split: str,
    arrays: Arrays,
    chosen: Layout,
    scale: float,
    progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the tars of a split; return their entries in the index, and the statistics.

    ``progress(samples, bytes)`` is called after each block. Raise :class:`DataError`.
    """
    names = [f"{split}-{i:06d}.tar" for i in range(chosen.num_tars)]
    counts: list[list[int]] = [[] for _ in names]
    statistics = Statistics(scale)
    try:
        with ExitStack() as stack:
            tars = [
                stack.enter_context(
                    webdataset.TarWriter(str(folder / n), user="ebm", group="ebm", mtime=0)
                )
                for n in names
            ]
            block = chosen.num_tars * chosen.pack_size
            for start in range(0, len(arrays.x), block):
                x = arrays.x[start : start + block]
                y = _labels(arrays, start, len(x))
                statistics.add(x, None if arrays.y is None else y)
                order = numpy_stream(0, f"shards/{split}/{start}").permutation(len(x))
                for tar, done, rows in zip(tars, counts, _dealt(order, len(tars)), strict=True):
                    if len(rows):
                        key = f"{len(done):06d}"
                        tar.write({"__key__": key, "x.npy": x[rows], "y.npy": y[rows]})
                        done.append(len(rows))
                progress(start + len(x), x.nbytes)
        entries = [
            entry(folder / n, c, hashes_packs=True) for n, c in zip(names, counts, strict=True)
        ]
    except OSError as failed:
        for name in names:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise DataError(
            f"{folder}: cannot be written ({failed.strerror}); free space and run"
            " 'dvc repro prepare' again"
        ) from None
    return entries, statistics.result()


def _labels(arrays: Arrays, start: int, count: int) -> npt.NDArray[np.int64]:
    return np.zeros(count, np.int64) if arrays.y is None else arrays.y[start : start + count]


def _dealt(order: npt.NDArray[np.int64], num_tars: int) -> Iterator[npt.NDArray[np.int64]]:
    return (order[i::num_tars] for i in range(num_tars))


def entry(path: Path, counts: list[int], *, hashes_packs: bool) -> dict[str, Any]:
    """Return a tar's entry in the index, in a pass over its members.

    ``counts``: samples of each pack. ``hashes_packs``: whether packs have their own SHA-256.
    """
    packs = []
    with tarfile.open(path) as tar:
        members = iter(tar)
        for x, y, count in zip(members, members, counts, strict=False):
            pack: dict[str, Any] = {
                "num_samples": count,
                "x": [x.offset_data, x.size],
                "y": [y.offset_data, y.size],
            }
            if hashes_packs:
                content = b"".join(_content(tar, member) for member in (x, y))
                pack["sha256"] = hashlib.sha256(content).hexdigest()
            packs.append(pack)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": path.name,
        "num_samples": sum(counts),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "packs": packs,
    }


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


class Statistics:
    """Statistics of samples that come in parts, as the index has them."""

    def __init__(self, scale: float) -> None:
        self.scale, self.count, self.size = scale, 0, 0
        self.total, self.squares, self.low, self.high = 0.0, 0.0, np.inf, -np.inf
        self.classes: npt.NDArray[np.int64] | None = None

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[np.int64] | None) -> None:
        """Count samples ``(n, *shape)`` and labels ``(n,)``."""
        self.count, self.size = self.count + len(x), self.size + x.size
        self.total += float(x.sum(dtype=np.float64))
        self.squares += _sum_of_squares(x.ravel())
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        if y is not None:
            more = np.bincount(y, minlength=0 if self.classes is None else len(self.classes))
            if self.classes is not None:
                more[: len(self.classes)] += self.classes
            self.classes = more

    def result(self) -> dict[str, Any]:
        """Return the statistics in units of ``scale``."""
        mean = self.total / self.size / self.scale
        variance = self.squares / self.size / self.scale**2 - mean**2
        return {
            "num_samples": self.count,
            "mean": mean,
            "sd": float(np.sqrt(max(variance, 0.0))),
            "min": self.low / self.scale,
            "max": self.high / self.scale,
            "class_counts": None if self.classes is None else self.classes.tolist(),
        }


def _sum_of_squares(x: npt.NDArray[Any]) -> float:
    """Return the sum of squares of ``x (n,)``, as numpy adds them in pairs but in little memory."""
    if len(x) <= _MOST_SQUARES:
        return float(np.square(x, dtype=np.float64).sum())
    half = len(x) // 2 - len(x) // 2 % 8
    return _sum_of_squares(x[:half]) + _sum_of_squares(x[half:])
