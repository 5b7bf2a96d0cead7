"""Samples that stay where they are, in WebDataset tars of the user's own.

One pass reads every sample: it finds the statistics and the SHA-256 of each *pack*, some
consecutive samples of a tar. Packs are dealt at random to as many shards as the training may ask
for. Their places are in a side file, because there may be millions. Samples of a pack follow each
other in their tar, so a tar in the order of the classes gives batches of few classes: write tars in
a random order, as WebDataset asks, or let them be rewritten.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebm_dist.data import streamed
from ebm_dist.datasets._lazy import Placed
from ebm_dist.datasets._members import stack
from ebm_dist.rng import numpy_stream
from ebm_dist.storage import location, read_range

_MOST_SHARDS = 1024
_FEWEST_PACKS = 8  # of a shard, where there are more shards than the fewest

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


def write(
    folder: Path,
    split: str,
    placed: Placed,
    fewest: int,
    scale: float,
    progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]:
    """Return the shards of a split for the index, the statistics, and the entry of its side file.

    ``progress(samples, bytes)`` is called after each pack. Raise ValueError for unreadable samples.
    """
    statistics, packs, done = streamed.Statistics(scale), list[dict[str, Any]](), 0
    for number, first, count in placed.packs.tolist():
        file, at = placed.files[number], placed.places[first : first + count]
        parts = list(contents(location(file), at))
        x = stack(parts, placed.kind)
        with np.errstate(over="ignore"):
            if not np.isfinite(x.astype(np.float32)).all():
                raise ValueError(f"{file}: has NaN, infinite or too large values for float32")
        statistics.add(x, at[:, 2] if at[:, 2].min(initial=0) >= 0 else None)
        packs.append(
            {
                "file": file,
                "first": first,
                "num_samples": count,
                "x": [0, x.nbytes],
                "y": [0, 8 * count],
                "sha256": hashlib.sha256(b"".join(parts)).hexdigest(),
            }
        )
        done += count
        progress(done, sum(map(len, parts)))
    name = f"{split}.places.npy"
    np.save(folder / name, placed.places)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    num_shards = fewest
    while 2 * num_shards <= min(_MOST_SHARDS, len(packs) // _FEWEST_PACKS):
        num_shards *= 2
    order = numpy_stream(0, f"placed/{split}").permutation(len(packs))
    dealt = [[packs[i] for i in order[shard::num_shards]] for shard in range(num_shards)]
    entries = [
        {
            "file": "",
            "num_samples": sum(pack["num_samples"] for pack in of_shard),
            "bytes": 0,
            "sha256": "",
            "packs": of_shard,
        }
        for of_shard in dealt
    ]
    side = {"file": name, "sha256": digest, "kind": placed.kind}
    return entries, statistics.result(), side


def contents(path: Path, places: Places) -> Iterator[bytes]:
    """Yield the bytes of consecutive samples of a tar, ``places (n, 3)``, from one read."""
    start = int(places[0, 0])
    whole = read_range(path, start, int(places[-1, 0] + places[-1, 1]) - start)
    for offset, size, _ in places.tolist():
        yield whole[offset - start : offset - start + size]


def read(
    path: Path, places: Places, kind: str, sha256: str, shape: tuple[int, ...]
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return samples ``(n, *shape)`` and labels ``(n,)`` of a pack.

    Raise ValueError where the tar is not the one that the index describes.
    """
    parts = list(contents(path, places))
    if hashlib.sha256(b"".join(parts)).hexdigest() != sha256:
        raise ValueError(f"SHA-256 of {len(parts)} samples differs from the index: altered")
    x = stack(parts, kind)
    if x.shape[1:] != shape:
        raise ValueError(f"samples of shape {x.shape[1:]}, expected {shape}")
    return x, places[:, 2].clip(min=0)
