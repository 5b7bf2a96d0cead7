"""PCD-1 against CD-1 and CD-25 at equal compute: ``python -m benchmarks.rbm --data data/rbm-mnist``.

Each trains the same 784 x 500 machine in this process for the same CPU seconds; what its averaged weights make of the validation
split is measured by AIS on the way, outside the time. The rate falls to 0 over as many steps as the budget pays for, so the ends
are what is compared. Writes reports/benchmarks/rbm.json and rbm.png.
"""

import argparse
import copy
import json
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
    """Log-likelihood of the validation split over CPU seconds of training."""
    held_out = bernoulli(shards.read_split(index, "val")[0].flatten(1), stream(0, "benchmark/val"))
    num_steps = round(_NUM_TIMED * budget / steps(build(values, index, 10**6), _NUM_TIMED))
    own, used = build(values, index, num_steps), 0.0
    found: dict[str, list[float]] = {"seconds": [], "steps": [], "nats": [], "low": [], "high": []}
    for point in range(1, points + 1):
        used += steps(own, num_steps * point // points - own.step)
        low, nats, high = likelihood(own.averages["energy"], held_out)
        for key, value in zip(found, (used, own.step, nats, low, high), strict=True):
            found[key].append(value)
        print(json.dumps({key: round(row[-1], 2) for key, row in found.items()}), flush=True)
    return found


def build(values: dict[str, Any], index: shards.Index, num_steps: int) -> trainer.Trainer:
    values = values | {"train": values["train"] | {"num_steps": num_steps}}
    return trainer.build(
        config.from_values(values, Path("rbm")),
        index,
        LocalComm(),
        torch.device("cpu"),
        "benchmark",
    )


def steps(own: trainer.Trainer, count: int) -> float:
    """So many training steps; the CPU seconds that they took."""
    began = time.process_time()
    for _ in range(count):
        own.advance()
        own.step += 1
    return time.process_time() - began


def likelihood(machine: Any, held_out: Tensor) -> tuple[float, float, float]:
    assert isinstance(machine, rbm.RBM)
    weights = rbm.Weights(*(value.detach() for value in machine.weights()))
    mean = held_out.mean(dim=0).clamp(0.01, 0.99)
    bases = (
        mean.logit(),
        torch.zeros_like(mean),
    )  # the larger log Z counts: each may miss what the other sees
    log_z = max(
        (ais(weights, base, schedule(2900), 100, stream(0, "benchmark/ais")) for base in bases),
        key=lambda e: e.log_z,
    )
    free = weights.free_energy(held_out).double().mean().item()
    return -free - log_z.high, -free - log_z.log_z, -free - log_z.low


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, default=Path("pipelines/recipes/rbm-mnist.yaml"))
    options.add_argument("--data", type=Path, default=Path("data/rbm-mnist"))
    options.add_argument(
        "--seconds", type=float, default=180.0, help="CPU seconds of training for each"
    )
    options.add_argument("--points", type=int, default=6, help="measurements on the way")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    given = options.parse_args()
    torch.set_num_threads(1)
    base, curves = config.load(given.params).as_dict(), {}
    for name, changes in METHODS.items():
        values = copy.deepcopy(base)
        for section, change in changes.items():
            values[section] |= change
        print(name, flush=True)
        curves[name] = curve(
            values, shards.read_index(given.data / "dataset"), given.seconds, given.points
        )
    write_json(given.out / "rbm.json", {"threads": 1, "curves": curves})
    title = f"RBM 784 x 500 on MNIST: {given.seconds:.0f} CPU seconds each"
    lines = {name: (c["seconds"], c["nats"], c["low"], c["high"]) for name, c in curves.items()}
    picture = figures.curves(
        lines, "CPU seconds of training", "validation log-likelihood by AIS, nats", title
    )
    write_whole(given.out / "rbm.png", picture)


if __name__ == "__main__":
    run(main)
