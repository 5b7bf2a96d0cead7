"""Data sets. One file, one source; each has a ``Config`` and a ``load(config) -> Dataset``.

Images are ``(n, channels, height, width)`` bytes. What is drawn or published as float stays float32.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ebm_dist.rng import numpy_stream


class Arrays(NamedTuple):
    """Samples and, where there are any, labels."""

    x: npt.NDArray[Any]
    """``(n, *shape)`` uint8 or float32"""
    y: npt.NDArray[np.int64] | None
    """``(n,)`` classes from 0"""


class Dataset(NamedTuple):
    """What ``load`` returns: everything that the index says about the data, and the data."""

    splits: dict[str, Arrays]
    """``train`` to learn from, ``val`` to choose settings by, ``test`` to report on; a set for comparison may have only ``test``"""
    scale: float
    """The value in the arrays that stands for 1.0: a model sees ``x / scale``"""
    bounds: tuple[float, float] | None
    """Interval of the model's inputs, to which chains are clamped; None for unbounded data"""
    num_classes: int
    """0 where there are no labels; one of the test that is beyond them is an anomaly's"""
    source: str
    """Who published it and where; shown beside every result"""
    is_official: bool
    """False for a user's own files: results on them say so"""


def hold_out(data: Arrays, count: int, purpose: str) -> tuple[Arrays, Arrays]:
    """Split off ``count`` random samples, always the same ones: ``(the rest, held out)``."""
    order = numpy_stream(0, purpose).permutation(len(data.x))
    rest, held = np.sort(order[count:]), np.sort(order[:count])
    return (
        Arrays(data.x[rest], None if data.y is None else data.y[rest]),
        Arrays(data.x[held], None if data.y is None else data.y[held]),
    )
