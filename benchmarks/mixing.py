"""Steps to mix an RBM: Gibbs sampling alone, over a tempered path, and over its training.

Run ``python -m benchmarks.mixing --data data/rbm-mnist``. Trains 784 x 20 and 784 x 500 machines
in this process with one thread, and keeps checkpoints. 40 chains from uniform noise then sample
each machine in three ways: Gibbs sampling alone; replica exchange over the path from its biases to
its weights (the path of AIS); and over the checkpoints (trajectory tempering). Both ladders are
adapted to equal refusal rates. The figure is the work, in sweeps of all replicas of a chain, until
the largest split R-hat over the energy and five principal components of the data is at most 1.1 in
the second half of the chains. Writes reports/benchmarks/mixing.json.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import circumstances
from benchmarks.rbm import build
from ebm_dist import config
from ebm_dist.chains import exchange
from ebm_dist.chains.diagnostics import rhat
from ebm_dist.data import shards
from ebm_dist.energies import rbm
from ebm_dist.files import write_json
from ebm_dist.rng import bernoulli, stream
from ebm_dist.samplers import Kernel, gibbs, run_chain
from pipelines import run

NUM_CHAINS, NUM_COMPONENTS, GOOD = 40, 5, 1.1
_LOOKS = 24  # evenly spaced in the logarithm of the work
_CHECKPOINTS = 300
_TRIAL, _ROUNDS = 300, 4  # steps of each round that adapts a ladder


class Machine:
    """The energy of fixed weights, with what Gibbs sampling needs."""

    num_blocks = 1

    def __init__(self, weights: rbm.Weights) -> None:
        self.weights = weights

    def __call__(self, x: Tensor) -> Tensor:
        return self.weights.free_energy(x)

    def resample(self, block: int, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.weights.sweep(x, generator)


def between(base: Tensor, weights: rbm.Weights, share: float) -> Machine:
    """Return the machine at a share of the path from independent units of logits ``base``."""
    return Machine(
        rbm.Weights(
            share * weights.weight,
            base + share * (weights.visible_bias - base),
            share * weights.hidden_bias,
        )
    )


def trained(
    values: dict[str, Any], index: shards.Index, num_hidden: int, num_steps: int
) -> list[rbm.Weights]:
    """Train a machine; return its averaged weights at growing steps, the last ones last."""
    values = values | {"energy": values["energy"] | {"num_hidden": num_hidden}}
    training, found = build(values, index, num_steps), []
    looks = {round(num_steps ** (i / _CHECKPOINTS)) for i in range(_CHECKPOINTS + 1)}
    for step in range(1, num_steps + 1):
        training.advance()
        training.step = step
        if step in looks:
            machine: Any = training.averages["energy"]
            found.append(rbm.Weights(*(value.detach().clone() for value in machine.weights())))
    return found


def follow(
    kernel: Kernel, target: Machine, axes: Tensor, work_of_a_step: int, budget: int
) -> dict[str, Any]:
    """Run chains for a budget of sweeps; return R-hat at growing work, and the work to GOOD."""
    num_steps, start = budget // work_of_a_step, stream(0, "benchmark/start")
    x = bernoulli(torch.full((NUM_CHAINS, len(axes)), 0.5), start)
    rows: list[Tensor] = []
    state: Any = None

    def observe(step: int, after: Any, info: Any) -> None:
        nonlocal state
        state = after
        rows.append(torch.cat([info.energy[:, None], after.position @ axes], dim=1))

    began = time.process_time()
    run_chain(kernel, target, x, num_steps, stream(0, "benchmark/mixing"), observe=observe)
    seconds, draws = time.process_time() - began, torch.stack(rows, dim=1).double().numpy()
    curve = []
    for look in np.geomspace(min(8 * 4, num_steps), num_steps, _LOOKS):
        half = draws[:, round(look) // 2 : round(look)]
        thinned = half[:, :: max(1, half.shape[1] // 1000)]
        curve.append((round(look) * work_of_a_step, float(np.nanmax(rhat(thinned)))))
    good = [
        work
        for i, (work, _) in enumerate(curve)
        if all(later <= GOOD for _, later in curve[i:])  # and stays there
    ]
    row: dict[str, Any] = {
        "work": num_steps * work_of_a_step,
        "rhat": curve[-1][1],
        "work_to_good": good[0] if good else None,
        "seconds": seconds,
        "curve": curve,
    }
    if isinstance(state, exchange.State):
        rates = state.refusal_rates
        row |= {
            "replicas": work_of_a_step,
            "refused": [float(rates.min()), float(rates.max())],
            "barrier": float(rates.sum()),
            "round_trips": float(state.round_trips.mean()),
        }
    return row


def on_path(base: Tensor, weights: rbm.Weights, num_replicas: int) -> list[Machine]:
    """Return a path of machines with equal refusal rates, the whole machine first."""

    def machines(ladder: Sequence[float]) -> list[Machine]:
        return [between(base, weights, share) for share in ladder]

    def state_of(ladder: Sequence[float]) -> exchange.State:
        return _trial(machines(ladder), num_visible=len(base))

    start = np.linspace(1.0, 0.0, num_replicas).tolist()
    return machines(exchange.adapt_ladder(state_of, start, _ROUNDS)[0])


def over_training(checkpoints: list[rbm.Weights], num_replicas: int) -> list[Machine]:
    """Return checkpoints with about equal refusal rates, the last one first."""
    machines = [Machine(weights) for weights in reversed(checkpoints)]

    def chosen(ladder: Sequence[float]) -> list[Machine]:
        return [machines[round(place)] for place in ladder]

    def state_of(ladder: Sequence[float]) -> exchange.State:
        return _trial(chosen(ladder), num_visible=len(checkpoints[0].visible_bias))

    start = np.linspace(0.0, len(machines) - 1, num_replicas).tolist()
    return chosen(exchange.adapt_ladder(state_of, start, _ROUNDS)[0])


def _trial(machines: list[Machine], num_visible: int) -> exchange.State:
    kernel = exchange.exchange(_gibbs(), machines[1:])
    x = bernoulli(torch.full((NUM_CHAINS, num_visible), 0.5), stream(0, "benchmark/start"))
    generator = stream(0, "benchmark/ladder")
    state = kernel.init(machines[0], x)
    for _ in range(_TRIAL):
        state, _ = kernel.step(machines[0], state, generator)
    found: exchange.State = state
    return found


def _gibbs() -> Kernel:
    return gibbs.build(gibbs.Config(), bounds=None)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, default=Path("pipelines/recipes/rbm-mnist.yaml"))
    options.add_argument("--data", type=Path, default=Path("data/rbm-mnist"))
    options.add_argument("--hidden", type=int, nargs="+", default=[20, 500])
    options.add_argument("--steps", type=int, default=6000, help="training steps")
    options.add_argument("--sweeps", type=int, default=40000, help="sweeps of each chain")
    options.add_argument("--replicas", type=int, default=20)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/mixing.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    values, index = config.load(args.params).as_dict(), shards.read_index(args.data / "dataset")
    x = shards.read_split(index, "train")[0][:10000].flatten(1)
    axes = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)[2][:NUM_COMPONENTS].T
    content = circumstances() | {"threads": 1, "steps": args.steps, "rows": []}
    for num_hidden in args.hidden:
        checkpoints = trained(values, index, num_hidden, args.steps)
        base = x.mean(dim=0).clamp(0.01, 0.99).logit()
        target = Machine(checkpoints[-1])
        ways: dict[str, list[Machine]] = {
            "Gibbs": [target],
            "tempered": on_path(base, target.weights, args.replicas),
            "trajectory": over_training(checkpoints, args.replicas),
        }
        for name, machines in ways.items():
            kernel = exchange.exchange(_gibbs(), machines[1:]) if machines[1:] else _gibbs()
            row = follow(kernel, target, axes, len(machines), args.sweeps)
            content["rows"].append({"hidden": num_hidden, "way": name} | row)
            write_json(args.out, content)
            shown = {key: value for key, value in row.items() if key != "curve"}
            print(num_hidden, name, shown, flush=True)


if __name__ == "__main__":
    run(main)
