"""Data sets: one file per source, each with a ``Config`` and a ``load(config) -> Dataset``.

Images are ``(n, channels, height, width)`` bytes; own files may have 16-bit integers or floats.
Samples drawn or published as floats are float32.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.datasets._lazy import Placed
from ebm_dist.rng import numpy_stream


class Arrays(NamedTuple):
    """Samples and optional labels."""

    x: Any
    """``(n, *shape)`` uint8, uint16 or floats; a ``Lazy`` where they do not fit in memory"""
    y: npt.NDArray[np.int64] | None
    """``(n,)`` classes from 0, or None without labels"""


class Standardisation(NamedTuple):
    """Mean and standard deviation of each feature: a model sees ``(x - mean) / sd``."""

    mean: npt.NDArray[np.float64]
    """``(*shape,)``"""
    sd: npt.NDArray[np.float64]
    """``(*shape,)``; 1 for a feature that is constant up to rounding"""

    @classmethod
    def of(cls, x: npt.NDArray[Any]) -> "Standardisation":
        """Return that of samples ``(n, *shape)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        # values that differ by rounding alone, as sums in another order, are one value
        low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            rounding = 8 * np.finfo(np.float64).eps * np.maximum(np.abs(low), np.abs(high))
            is_constant = high - low <= rounding
        centre = np.where(is_constant, x[0], mean).astype(np.float64)
        return cls(centre, np.where(is_constant, 1.0, sd))

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return standardised samples ``(n, *shape)``."""
        with np.errstate(over="ignore", invalid="ignore"):  # callers check for infinity
            standardised: npt.NDArray[np.float32] = ((x - self.mean) / self.sd).astype(np.float32)
        return standardised

    def undo(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return samples ``(n, *shape)`` in the units of the data."""
        undone: npt.NDArray[np.float64] = x * self.sd + self.mean
        return undone


class Dataset(NamedTuple):
    """The arrays of a data set and the facts that the index of its shards records."""

    splits: dict[str, Arrays]
    """``train`` for learning, ``val`` for choosing settings, ``test`` for reporting; a comparison
    set may have only ``test``"""
    scale: float
    """Divisor of the arrays: a model sees ``x / scale``"""
    bounds: tuple[float, float] | None
    """Interval of ``x / scale`` to which chains are clamped; None for unbounded data"""
    num_classes: int
    """0 without labels; a test label of ``num_classes`` or more marks an anomaly"""
    source: str
    """Publication that the data come from; shown with every result"""
    is_official: bool
    """False for a user's own files; results on them are marked"""
    class_names: tuple[str, ...] = ()
    """Name of each class, anomalies included; the numbers where there are none"""
    standardisation: Standardisation | None = None
    """Applied to ``x / scale`` when the arrays are stored; comparison sets take that of the data"""
    notes: tuple[str, ...] = ()
    """What was converted or skipped, a sentence each; logged and kept in the index"""
    placed: Mapping[str, Placed] | None = None
    """Where the samples of each split lie, if they stay in the user's own tars"""


def hold_out(data: Arrays, count: int, purpose: str) -> tuple[Arrays, Arrays]:
    """Return ``(rest, held out)``: ``count`` samples are held out by a fixed random choice."""
    return split_off(Arrays(data.x.copy(), data.y), count, purpose)


def split_off(data: Arrays, count: int, purpose: str) -> tuple[Arrays, Arrays]:
    """Return what :func:`hold_out` does, in the memory of ``data.x``, which is reordered."""
    order = numpy_stream(0, purpose).permutation(len(data.x))
    rest_rows, held_rows = np.sort(order[count:]), np.sort(order[:count])
    x = data.x if data.x.flags.writeable else data.x.copy()
    held = x[held_rows]
    for part in in_parts(len(rest_rows)):
        x[part] = x[rest_rows[part]]  # from the same row or a later one
    x[len(rest_rows) :] = held
    return (
        Arrays(x[: len(rest_rows)], None if data.y is None else data.y[rest_rows]),
        Arrays(x[len(rest_rows) :], None if data.y is None else data.y[held_rows]),
    )


def in_parts(num_samples: int, size: int = 4096) -> Iterator[slice]:
    """Yield slices of at most ``size`` samples, for work on large arrays in little memory."""
    return (slice(i, min(i + size, num_samples)) for i in range(0, num_samples, size))
