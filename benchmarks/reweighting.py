"""Persistent chains with Jarzynski weights: do the weights survive (Carbone et al. 2023)?

Run ``python -m benchmarks.reweighting --data data/rbm-mnist``. A machine of 784 x 16 units learns
binarised MNIST by PCD. Each chain x_i has a weight exp(A_i): after an update from theta to theta'

    A_i <- A_i + E_theta(x_i) - E_theta'(x_i),      then some Gibbs sweeps of theta'

so weighted averages over chains are exact for theta' although the chains lag, and the logs of the
mean weights add up to log Z of theta' less that of the start. Where the effective number of chains
falls below half, the chains are resampled by weight. Both kinds of negative phase, weighted and
plain, are compared with the exact log-likelihood of the validation split, which 16 hidden units
allow. Writes reports/benchmarks/reweighting.json.
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import circumstances
from ebm_dist.data import shards
from ebm_dist.energies import rbm
from ebm_dist.files import write_json
from ebm_dist.metrics.ais import exact_log_z
from ebm_dist.rng import bernoulli, stream
from pipelines import run

NUM_HIDDEN, BATCH = 16, 100
RATES, CHAINS, SWEEPS = (0.1, 0.01), (100, 2000), (1, 5)
_RESAMPLE = 0.5  # of the chains


def log_likelihood(weights: rbm.Weights, log_z: float, x: Tensor) -> float:
    """Return the mean log-likelihood of ``x (n, 784)``, in nats."""
    return -weights.free_energy(x).double().mean().item() - log_z


def moments(weights: rbm.Weights, x: Tensor, share: Tensor) -> rbm.Weights:
    """Return the expected -dF/d(parameters) over ``x (n, 784)`` with shares ``(n,)``."""
    h = weights.hidden_input(x).sigmoid()
    return rbm.Weights((share[:, None] * x).T @ h, share @ x, share @ h)


def train(
    x: Tensor, held_out: Tensor, rate: float, num_chains: int, num_sweeps: int, num_steps: int
) -> dict[str, dict[str, Any]]:
    """Train with plain and with weighted chains; return the figures of both."""
    found = {}
    for is_weighted in (False, True):
        generator, mean = stream(0, "benchmark/reweighting"), x.mean(dim=0).clamp(0.01, 0.99)
        weights = rbm.Weights(
            0.01 * torch.randn(len(mean), NUM_HIDDEN, generator=generator),
            mean.logit(),
            torch.zeros(NUM_HIDDEN),
        )
        start = exact_log_z(weights)
        v = bernoulli(mean.expand(num_chains, -1), generator)
        a, log_ratio, ess, num_resampled = torch.zeros(num_chains, dtype=torch.double), 0.0, [], 0
        began = time.process_time()
        for step in range(num_steps):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            data = bernoulli(x[rows], generator)
            share = (a if is_weighted else torch.zeros_like(a)).softmax(dim=0).float()
            ahead = moments(weights, data, torch.full((BATCH,), 1 / BATCH))
            behind = moments(weights, v, share)
            scale = rate * (1 - step / num_steps)
            before = weights
            weights = rbm.Weights(
                *(w + scale * (p - n) for w, p, n in zip(before, ahead, behind, strict=True))
            )
            a = a + (before.free_energy(v) - weights.free_energy(v)).double()
            ess.append(float((2 * a.logsumexp(0) - (2 * a).logsumexp(0)).exp()) / num_chains)
            if ess[-1] < _RESAMPLE and is_weighted:
                log_ratio += float(a.logsumexp(0)) - math.log(num_chains)
                v = v[torch.multinomial(a.softmax(0), num_chains, True, generator=generator)]
                a, num_resampled = torch.zeros_like(a), num_resampled + 1
            for _ in range(num_sweeps):
                v = weights.sweep(v, generator)
        log_ratio += float(a.logsumexp(0)) - math.log(num_chains)
        seconds, log_z = time.process_time() - began, exact_log_z(weights)
        found["weighted" if is_weighted else "plain"] = {
            "nats": log_likelihood(weights, log_z, held_out),
            "seconds": seconds,
            "log_z_error": log_ratio - (log_z - start),
            "lowest_ess": min(ess),
            "ess_at_end": ess[-1],
            "num_resampled": num_resampled,
        }
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("data/rbm-mnist"))
    options.add_argument("--steps", type=int, default=5000)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/reweighting.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    index = shards.read_index(args.data / "dataset")
    x = shards.read_split(index, "train")[0].flatten(1)
    held_out = bernoulli(shards.read_split(index, "val")[0].flatten(1), stream(0, "benchmark/val"))
    content = circumstances() | {"threads": 1, "steps": args.steps, "rows": []}
    for rate, num_chains, num_sweeps in itertools.product(RATES, CHAINS, SWEEPS):
        found = train(x, held_out, rate, num_chains, num_sweeps, args.steps)
        row = {"rate": rate, "chains": num_chains, "sweeps": num_sweeps} | found
        content["rows"].append(row)
        write_json(args.out, content)
        print(row, flush=True)


if __name__ == "__main__":
    run(main)
