"""Arrays that are read as they are asked for: samples of data sets larger than memory."""

from collections.abc import Callable
from typing import Any

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
