"""Measurements that take turns in one process: ratios, not times, are what a shared machine can tell."""

import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ebm_dist.lineage import hardware


class Timing(NamedTuple):
    """Medians over the rounds; a ratio is taken within each round."""

    seconds: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    """Of the reference's time to each one's: median, least, most. Above 1 is faster than the reference."""


def take_turns(works: Mapping[str, Callable[[], object]], reference: str, rounds: int = 7, warm_up: int = 1) -> Timing:
    """Run each work once a round, in an order that is turned round every time."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for count in range(warm_up + rounds):
        for name in list(works) if count % 2 else reversed(list(works)):
            began = time.perf_counter()
            works[name]()
            if count >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    ratios = {name: sorted(a / b for a, b in zip(seconds[reference], own, strict=True)) for name, own in seconds.items()}
    return Timing(
        {name: statistics.median(own) for name, own in seconds.items()},
        {name: (statistics.median(own), own[0], own[-1]) for name, own in ratios.items()},
    )


def peak_gflops(size: int = 2048, rounds: int = 5) -> float:
    """What a large float32 matrix product reaches here with the threads that torch has now: the machine's limit for a network."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    best = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def circumstances(*packages: str) -> dict[str, Any]:
    """Machine, load and versions, to stand beside every figure. Ends with one message where a package is missing."""
    try:
        versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    except importlib.metadata.PackageNotFoundError as missing:
        raise SystemExit(f"{missing.name} is not installed; pip install -c constraints.txt -e '.[benchmarks]'") from None
    return {"hardware": hardware(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2), "versions": versions}
