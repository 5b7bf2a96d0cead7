"""Energies under several labels."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def by_class(energy: Callable[..., Any], x: Tensor, labels: Tensor) -> Tensor:
    """Return energies ``(n, k)`` of samples ``(n, *shape)`` under each of the labels ``(k,)``."""
    if getattr(getattr(energy, "module", energy), "has_heads", False):  # of a wrapper for gradients
        return energy(x, labels.expand(len(x), -1))  # type: ignore[no-any-return]
    energies: Tensor = energy(x.repeat_interleave(len(labels), dim=0), labels.repeat(len(x)))
    return energies.view(len(x), -1)
