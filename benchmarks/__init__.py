"""Measurements that take turns in one process: ratios, not times, are what a shared machine can tell."""

import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ebm_dist.runs.lineage import hardware


class Timing(NamedTuple):
    """Medians over the rounds; a ratio is taken within each round."""

    seconds: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    """Of the reference's time to each one's: median, least, most. Above 1 is faster than the reference."""


def take_turns(
    works: Mapping[str, Callable[[], object]], reference: str, rounds: int = 7, warm_up: int = 1
) -> Timing:
    """Run each work once a round, in an order that is turned round every time."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for count in range(warm_up + rounds):
        for name in list(works) if count % 2 else reversed(list(works)):
            taken = seconds_of(works[name])
            if count >= warm_up:
                seconds[name].append(taken)
    ratios = {
        name: sorted(a / b for a, b in zip(seconds[reference], own, strict=True))
        for name, own in seconds.items()
    }
    return Timing(
        {name: statistics.median(own) for name, own in seconds.items()},
        {name: (statistics.median(own), own[0], own[-1]) for name, own in ratios.items()},
    )


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes, on a GPU to its end."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_gflops(device: str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 6) -> float:
    """What a large matrix product reaches here, with the threads that torch has now: the machine's limit for a network."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b)) for _ in range(rounds)) / 1e9


def circumstances(*packages: str) -> dict[str, Any]:
    """Machine, load and versions, to stand beside every figure. Ends with one message where a package is missing."""
    try:
        versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    except importlib.metadata.PackageNotFoundError as missing:
        raise SystemExit(
            f"{missing.name} is not installed; pip install -c constraints.txt -e '.[benchmarks]'"
        ) from None
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }
