"""Compare PCD-1 with CD-1 and CD-25 at equal compute.

Run ``python -m benchmarks.rbm --data data/rbm-mnist``. Each method trains the same 784 x 500
machine in this process for the same CPU seconds. AIS measures the likelihood of the validation
split under the averaged weights at several points; this time is not counted. The learning rate
falls to 0 over the steps that the budget allows, so compare the ends of the curves. Writes
reports/benchmarks/rbm.json and rbm.png.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.energies import rbm
from ebm_dist.files import write_json
from ebm_dist.metrics.ais import ais, schedule
from ebm_dist.report import figures
from ebm_dist.rng import bernoulli, stream
from ebm_dist.storage import write_whole
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from pipelines import run

METHODS: dict[str, dict[str, Any]] = {
    "PCD-1": {"objective": {"start": "replay"}, "sampler": {"num_sweeps": 1}},
    "CD-1": {"objective": {"start": "data"}, "sampler": {"num_sweeps": 1}},
    "CD-25": {"objective": {"start": "data"}, "sampler": {"num_sweeps": 25}},
}
_NUM_TIMED = 100


def curve(
    values: dict[str, Any], index: shards.Index, budget: float, points: int
) -> dict[str, list[float]]:
    """Train, and return the log-likelihood of the validation split over CPU seconds."""
    held_out = bernoulli(shards.read_split(index, "val")[0].flatten(1), stream(0, "benchmark/val"))
    num_steps = round(_NUM_TIMED * budget / steps(build(values, index, 10**6), _NUM_TIMED))
    training, used = build(values, index, num_steps), 0.0
    columns: dict[str, list[float]] = {
        "seconds": [],
        "steps": [],
        "nats": [],
        "low": [],
        "high": [],
    }
    for point in range(1, points + 1):
        used += steps(training, num_steps * point // points - training.step)
        low, nats, high = likelihood(training.averages["energy"], held_out)
        for key, value in zip(columns, (used, training.step, nats, low, high), strict=True):
            columns[key].append(value)
        print(json.dumps({key: round(row[-1], 2) for key, row in columns.items()}), flush=True)
    return columns


def build(values: dict[str, Any], index: shards.Index, num_steps: int) -> trainer.Trainer:
    """Build the trainer of a method."""
    values = values | {"train": values["train"] | {"num_steps": num_steps}}
    return trainer.build(
        config.from_values(values, Path("rbm")),
        index,
        LocalComm(),
        torch.device("cpu"),
        "benchmark",
    )


def steps(training: trainer.Trainer, count: int) -> float:
    """Do ``count`` training steps; return their CPU seconds."""
    began = time.process_time()
    for _ in range(count):
        training.advance()
        training.step += 1
    return time.process_time() - began


def likelihood(machine: Any, held_out: Tensor) -> tuple[float, float, float]:
    """Return the mean log-likelihood of data ``(n, units)`` in nats: low, estimate, high."""
    assert isinstance(machine, rbm.RBM)
    weights = rbm.Weights(*(value.detach() for value in machine.weights()))
    mean = held_out.mean(dim=0).clamp(0.01, 0.99)
    bases = (
        mean.logit(),
        torch.zeros_like(mean),
    )  # the larger log Z counts, because each estimate can miss modes
    log_z = max(
        (ais(weights, base, schedule(2900), 100, stream(0, "benchmark/ais")) for base in bases),
        key=lambda e: e.log_z,
    )
    free = weights.free_energy(held_out).double().mean().item()
    return -free - log_z.high, -free - log_z.log_z, -free - log_z.low


def _without_infinity(
    curves: dict[str, dict[str, list[float]]],
) -> dict[str, dict[str, list[float | None]]]:
    """Return the curves with None for the infinite ends of intervals."""
    return {
        name: {
            key: [value if math.isfinite(value) else None for value in values]
            for key, values in columns.items()
        }
        for name, columns in curves.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, default=Path("pipelines/recipes/rbm-mnist.yaml"))
    options.add_argument("--data", type=Path, default=Path("data/rbm-mnist"))
    options.add_argument(
        "--seconds", type=float, default=180.0, help="CPU seconds of training per method"
    )
    options.add_argument("--points", type=int, default=6, help="measurements per curve")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    args = options.parse_args()
    torch.set_num_threads(1)
    base, curves = config.load(args.params).as_dict(), {}
    for name, changes in METHODS.items():
        values = copy.deepcopy(base)
        for section, change in changes.items():
            values[section] |= change
        print(name, flush=True)
        curves[name] = curve(
            values, shards.read_index(args.data / "dataset"), args.seconds, args.points
        )
    write_json(args.out / "rbm.json", {"threads": 1, "curves": _without_infinity(curves)})
    title = f"RBM 784 x 500 on MNIST: {args.seconds:.0f} CPU seconds each"
    lines = {name: (c["seconds"], c["nats"], c["low"], c["high"]) for name, c in curves.items()}
    picture = figures.curves(
        lines, "CPU seconds of training", "validation log-likelihood by AIS, nats", title
    )
    write_whole(args.out / "rbm.png", picture)


if __name__ == "__main__":
    run(main)
