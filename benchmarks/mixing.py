"""Steps to mix: plain chains, and chains with replicas, at equal work.

Run ``python -m benchmarks.mixing --data data/rbm-mnist --digits data/digits``. Trains in this
process with one thread, and keeps checkpoints. 40 chains from uniform noise then sample

- RBMs of 784 x 20 and 784 x 500 units by Gibbs sampling alone, by replica exchange over the path
  from the biases to the weights (the path of AIS), and over the checkpoints (trajectory tempering);
- an energy of 8x8 digits by Langevin dynamics alone and tempered; the energy is trained with plain
  and with tempered replay, at equal numbers of gradients in the chains.

Ladders are adapted to equal refusal rates. The figure is the work, in steps of all replicas of a
chain, until the largest split R-hat over the energy and five principal components of the data is at
most 1.1 in the second half of the chains. Writes reports/benchmarks/mixing.json.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import circumstances
from benchmarks.rbm import build, steps
from ebm_dist import config
from ebm_dist.chains import exchange, tempering
from ebm_dist.chains.diagnostics import mixed_from, rhat_by_length
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.energies import EnergyFn, EnergyModel, frozen, rbm
from ebm_dist.files import write_json
from ebm_dist.rng import bernoulli, stream
from ebm_dist.samplers import Kernel, gibbs, noise, run_chain
from pipelines import run

NUM_CHAINS, NUM_COMPONENTS, GOOD = 40, 5, 1.1
LADDER = 4, 4.0  # replicas, and the highest of their temperatures, for images
_CHECKPOINTS = 300
_TRIAL, _ROUNDS = 300, 4  # steps of each round that adapts a ladder


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
    kernel: Kernel,
    target: EnergyFn,
    start: Tensor,
    axes: Tensor,
    work_of_a_step: int,
    budget: int,
) -> dict[str, Any]:
    """Run chains for a budget of work; return R-hat at growing work, and the work to GOOD."""
    num_steps = budget // work_of_a_step
    rows: list[Tensor] = []
    state: Any = None

    def observe(step: int, after: Any, info: Any) -> None:
        nonlocal state
        state = after
        along = after.position.flatten(1) @ axes
        rows.append(torch.cat([info.energy[:, None], along], dim=1))

    began = time.process_time()
    run_chain(kernel, target, start, num_steps, stream(0, "benchmark/mixing"), observe=observe)
    seconds, draws = time.process_time() - began, torch.stack(rows, dim=1).double().numpy()
    curve = rhat_by_length([draws])
    mixed = mixed_from(curve, GOOD)
    row: dict[str, Any] = {
        "work": num_steps * work_of_a_step,
        "rhat": finite(curve[-1][1]),
        "work_to_good": mixed and mixed * work_of_a_step,
        "seconds": seconds,
        "curve": [(length * work_of_a_step, finite(value)) for length, value in curve],
    }
    if isinstance(state, exchange.State | tempering.State):
        rates = state.journey.refusal_rates
        row |= {
            "replicas": work_of_a_step,
            "refused": [float(rates.min()), float(rates.max())],
            "barrier": state.journey.barrier,
            "round_trips": float(state.journey.round_trips.mean()),
        }
    return row


def finite(value: float) -> float | None:
    """Return the value, or None in place of infinity: R-hat of chains that do not move."""
    return value if np.isfinite(value) else None


def on_path(base: Tensor, weights: rbm.Weights, num_replicas: int) -> list[rbm.Weights]:
    """Return a path of machines with equal refusal rates, the whole machine first."""

    def machines(ladder: Sequence[float]) -> list[rbm.Weights]:
        return [weights.annealed(base, beta) for beta in ladder]

    start = np.linspace(1.0, 0.0, num_replicas).tolist()
    adapted, _ = exchange.adapt_ladder(lambda ladder: _trial(machines(ladder)), start, _ROUNDS)
    return machines(adapted)


def over_training(checkpoints: list[rbm.Weights], num_replicas: int) -> list[rbm.Weights]:
    """Return checkpoints with about equal refusal rates, the last one first."""
    machines = checkpoints[::-1]

    def chosen(ladder: Sequence[float]) -> list[rbm.Weights]:
        return [machines[round(place)] for place in ladder]

    start = np.linspace(0.0, len(machines) - 1, num_replicas).tolist()
    adapted, _ = exchange.adapt_ladder(lambda ladder: _trial(chosen(ladder)), start, _ROUNDS)
    return chosen(adapted)


def _trial(path: list[rbm.Weights]) -> exchange.Journey:
    start = _bits(len(path[0].visible_bias))
    return _journey(exchange.exchange(_gibbs(), path[1:]), path[0], start)


def _journey(kernel: Kernel, target: EnergyFn, start: Tensor) -> exchange.Journey:
    generator = stream(0, "benchmark/ladder")
    state = exchange.final_state(kernel, target, start, _TRIAL, generator)
    journey: exchange.Journey = state.journey
    return journey


def _bits(num_visible: int) -> Tensor:
    return bernoulli(torch.full((NUM_CHAINS, num_visible), 0.5), stream(0, "benchmark/start"))


def _gibbs() -> Kernel:
    return gibbs.build(gibbs.Config(), bounds=None)


def machines_of(
    values: dict[str, Any], index: shards.Index, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train the RBMs, and yield a row for each and each way to sample it."""
    x = shards.read_split(index, "train")[0][:10000].flatten(1)
    axes, base = axes_of(x), x.mean(dim=0).clamp(0.01, 0.99).logit()
    for num_hidden in args.hidden:
        checkpoints = trained(values, index, num_hidden, args.steps)
        target = checkpoints[-1]
        ways: dict[str, list[rbm.Weights]] = {
            "Gibbs": [target],
            "tempered": on_path(base, target, args.replicas),
            "trajectory": over_training(checkpoints, args.replicas),
        }
        for way, machines in ways.items():
            kernel = exchange.exchange(_gibbs(), machines[1:]) if machines[1:] else _gibbs()
            row = follow(kernel, target, _bits(len(base)), axes, len(machines), args.sweeps)
            yield {"energy": f"RBM 784 x {num_hidden}", "way": way} | row


def images(
    values: dict[str, Any], index: shards.Index, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train an energy of images with each kind of replay; yield a row for each and each way."""
    axes = axes_of(shards.read_split(index, "train")[0].flatten(1))
    start = noise((NUM_CHAINS, *index.shape), index.bounds, stream(0, "benchmark/start"))
    hot = tempering.geometric(*LADDER)
    for replay, temperatures in {"plain": [1.0], "tempered": hot}.items():
        changed = values | {
            "sampler": values["sampler"]
            | {"num_steps": values["sampler"]["num_steps"] * len(hot) // len(temperatures)},
            "replay": values["replay"] | {"temperatures": temperatures[1:] and temperatures},
        }
        training = build(changed, index, args.image_steps)
        seconds = steps(training, args.image_steps)
        energy = cast(EnergyModel, training.averages["energy"])
        sampler = training.params.sampler
        inner = module_of(sampler).build(sampler, bounds=index.bounds)

        def tempered(betas: Sequence[float], inner: Kernel = inner, t: float = sampler.temperature):
            return tempering.tempered(
                inner, [1 / beta for beta in betas], bounds=index.bounds, temperature=t
            )

        with frozen(energy), torch.no_grad():
            betas, _ = exchange.adapt_ladder(
                lambda ladder, energy=energy: _journey(tempered(ladder), energy, start),
                [1 / t for t in hot],
                _ROUNDS,
            )
            for way, kernel, work in (
                ("Langevin", inner, 1),
                ("tempered", tempered(betas), len(betas)),
            ):
                row = follow(kernel, energy, start, axes, work, args.gradients)
                name = f"MLP of 8x8 digits, {replay} replay"
                yield {"energy": name, "way": way, "training_seconds": seconds} | row


def axes_of(x: Tensor) -> Tensor:
    """Return the leading principal directions ``(pixels, NUM_COMPONENTS)`` of ``x (n, pixels)``."""
    return torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)[2][:NUM_COMPONENTS].T


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = Path("pipelines/recipes")
    options.add_argument("--params", type=Path, default=recipes / "rbm-mnist.yaml")
    options.add_argument("--data", type=Path, default=Path("data/rbm-mnist"))
    options.add_argument("--hidden", type=int, nargs="*", default=[20, 500])
    options.add_argument("--steps", type=int, default=6000, help="training steps")
    options.add_argument("--sweeps", type=int, default=40000, help="sweeps of each chain")
    options.add_argument("--replicas", type=int, default=20)
    options.add_argument("--digits-params", type=Path, default=recipes / "digits.yaml")
    options.add_argument("--digits", type=Path, default=Path("data/digits"))
    options.add_argument("--image-steps", type=int, default=3000, help="training steps")
    options.add_argument("--gradients", type=int, default=40000, help="gradients of each chain")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/mixing.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    content = circumstances() | {"threads": 1, "steps": args.steps, "rows": []}
    for rows_of, params, data in (
        (images, args.digits_params, args.digits),
        (machines_of, args.params, args.data),
    ):
        values, index = config.load(params).as_dict(), shards.read_index(data / "dataset")
        for row in rows_of(values, index, args):
            content["rows"].append(row)
            write_json(args.out, content)
            shown = {key: value for key, value in row.items() if key != "curve"}
            print(shown, flush=True)


if __name__ == "__main__":
    run(main)
