"""Measurements in turns within one process: on a shared machine only ratios are reliable."""

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
    """Time of the reference / time of the work: median, minimum, maximum. Above 1 is faster."""


def take_turns(
    works: Mapping[str, Callable[[], object]], reference: str, rounds: int = 7, warm_up: int = 1
) -> Timing:
    """Run each work once per round; the order alternates between rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for count in range(warm_up + rounds):
        for name in list(works) if count % 2 else reversed(list(works)):
            duration = seconds_of(works[name])
            if count >= warm_up:
                seconds[name].append(duration)
    ratios = {
        name: sorted(a / b for a, b in zip(seconds[reference], times, strict=True))
        for name, times in seconds.items()
    }
    return Timing(
        {name: statistics.median(times) for name, times in seconds.items()},
        {name: (statistics.median(row), row[0], row[-1]) for name, row in ratios.items()},
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes, including the work it queues on a GPU."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def steps_within(
    budget: float, seconds_of: Callable[[int], float], timed: int, first: int = 0
) -> int:
    """Return how many steps of a training take ``budget`` CPU seconds, and at least ``timed``.

    ``seconds_of(n)`` starts the training and returns the seconds of n steps. ``first`` of them are
    a pretraining, which may be faster or slower than the others. What every training does before
    its first step may vary by seconds, so the steps that are timed take a twentieth of the budget.
    """
    seconds_of(timed)  # warms up
    short, more = seconds_of(first + timed), 3 * timed
    while (long := seconds_of(first + more)) - short < budget / 20:
        more *= 3
    per_step = (long - short) / (more - timed)
    return max(timed, first + timed + int((budget - short) / per_step))


def peak_gflops(device: str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 6) -> float:
    """Return the GFLOP/s of a large matrix product with the present number of torch threads.

    This is the limit of the machine for a network.
    """
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b)) for _ in range(rounds)) / 1e9


def circumstances(*packages: str) -> dict[str, Any]:
    """Return machine, load and versions, for the record of a measurement.

    Exits with a message where a package is missing.
    """
    try:
        versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed; pip install -c constraints.txt -e '.[benchmarks]'"
        ) from None
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }
