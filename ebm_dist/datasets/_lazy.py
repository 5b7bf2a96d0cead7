"""Samples of data sets larger than memory: read as they are asked for, or left where they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class Lazy:
    """Samples ``(n, *shape)`` behind a function that reads some rows.

    It has what the writers of shards use of an array: shape, dtype, length and ``x[rows]``.
    """

    def __init__(
        self,
        read: Callable[[Rows], npt.NDArray[Any]],
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> None:
        self.read, self.shape, self.dtype = read, shape, np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Rows) -> npt.NDArray[Any]:
        """Read some rows; those of a slice are consecutive."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        return self.read(rows)

    def select(self, rows: Rows) -> "Lazy":
        """Return a view of some rows."""
        return Lazy(
            lambda chosen: self.read(rows[chosen]), (len(rows), *self.shape[1:]), self.dtype
        )

    def map(
        self,
        function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        dtype: npt.DTypeLike,
        shape: tuple[int, ...] | None = None,
    ) -> "Lazy":
        """Return samples that a function of some rows makes of these, of a ``shape`` each."""
        own = self.shape[1:] if shape is None else shape
        return Lazy(lambda rows: function(self.read(rows)), (len(self), *own), dtype)


class Placed(NamedTuple):
    """Samples of a split that stay in tars of the user's own."""

    files: tuple[str, ...]
    """Absolute paths"""
    kind: str
    """``npy`` or the suffix of a picture"""
    places: npt.NDArray[np.int64]
    """``(n, 3)``: offset, bytes and class of each sample, file after file"""
    packs: npt.NDArray[np.int64]
    """``(m, 3)``: file, first of ``places`` and number of samples that follow each other in it"""

    def of_packs(self, chosen: npt.NDArray[np.int64]) -> "Placed":
        """Return some packs alone, with their places."""
        packs = self.packs[chosen]
        starts = np.concatenate([[0], np.cumsum(packs[:, 2])])[:-1]
        moved = np.stack([packs[:, 0], starts, packs[:, 2]], axis=1)
        return self._replace(places=self.places[rows_of(packs)], packs=moved)


def rows_of(packs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the samples of packs ``(m, 3)``, in their order."""
    return np.concatenate(
        [np.arange(first, first + count) for _, first, count in packs.tolist()]
        or [np.empty(0, np.int64)]
    )
