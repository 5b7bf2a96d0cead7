"""Data sets: one file per source, each with a ``Config`` and a ``load(config) -> Dataset``.

Images are ``(n, channels, height, width)`` bytes. Samples drawn or published as floats are float32.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.rng import numpy_stream


class Arrays(NamedTuple):
    """Samples and optional labels."""

    x: npt.NDArray[Any]
    """``(n, *shape)`` uint8 or float32"""
    y: npt.NDArray[np.int64] | None
    """``(n,)`` classes from 0, or None without labels"""


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


def hold_out(data: Arrays, count: int, purpose: str) -> tuple[Arrays, Arrays]:
    """Return ``(rest, held out)``: ``count`` samples are held out by a fixed random choice."""
    order = numpy_stream(0, purpose).permutation(len(data.x))
    rest_rows, held_rows = np.sort(order[count:]), np.sort(order[:count])
    return (
        Arrays(data.x[rest_rows], None if data.y is None else data.y[rest_rows]),
        Arrays(data.x[held_rows], None if data.y is None else data.y[held_rows]),
    )
