"""Where accept and reject dies: independent draws for each 1,000 energies, over the dimension.

Run ``python -m benchmarks.accept_reject``. The target is a Gaussian of deviation 1 and correlation
.5 between all coordinates; its largest deviation is that of the proposals, so M is known. Rejection
sampling, importance sampling and MALA get the same number of energies, of which MALA takes a
gradient too. The figure is the number of effective draws: accepted ones, the effective sample size
of the weights, and the smallest over the coordinates by Vehtari et al. 2021. Beside it is the error
of the mean of x_0^2, which is 1. Five seeds. Writes reports/benchmarks/accept_reject.json and .png.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ebm_dist as ebm
from benchmarks import circumstances
from ebm_dist.files import write_json
from ebm_dist.metrics.importance import importance, weighted_mean
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import rejection
from ebm_dist.storage import write_whole
from pipelines import run

DIMENSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CORRELATION, NUM_CHAINS = 0.5, 100


class Target:
    """``x^T A x / 2`` with the covariance above in ``d`` dimensions."""

    def __init__(self, d: int) -> None:
        covariance = (1 - CORRELATION) * torch.eye(d) + CORRELATION
        self.precision = covariance.inverse()
        self.log_z = (d * math.log(math.tau) + float(covariance.logdet())) / 2
        self.scale = float(torch.linalg.eigvalsh(covariance).max()) ** 0.5
        self.num_energies = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.num_energies += len(x)
        return ((x @ self.precision) * x).sum(dim=1) / 2


def by_rejection(d: int, budget: int, seed: int) -> dict[str, float]:
    """Return effective draws for each 1,000 energies, and the error of the second moment."""
    target = Target(d)
    log_bound = d * math.log(target.scale * math.sqrt(math.tau)) + 1e-4
    config = rejection.Config(num_proposals=1, scale=target.scale, log_bound=log_bound)
    kernel, generator = rejection.build(config, bounds=None), stream(seed, "benchmark")
    state, kept = kernel.init(target, torch.zeros(budget // 100, d)), []
    for _ in range(100):
        state, info = kernel.step(target, state, generator)
        kept.append(state.position[info.is_accepted, 0])
    x = torch.cat(kept)
    error = float((x**2).mean() - 1) if len(x) else math.nan
    return {"draws": 1000 * len(x) / target.num_energies, "error": error}


def by_importance(d: int, budget: int, seed: int) -> dict[str, float]:
    """Return the same by weights of draws from the same proposals."""
    target, generator = Target(d), stream(seed, "benchmark")
    x = target.scale * torch.randn(budget, d, generator=generator)
    log_q = -((x / target.scale) ** 2).sum(1) / 2 - d * math.log(target.scale * math.tau**0.5)
    log_w = -target(x) - log_q
    found = importance(log_w)
    second = float(weighted_mean(log_w, x[:, :1] ** 2)[0])
    log_z_error = found.log_z - target.log_z
    return {"draws": 1000 * found.ess, "error": second - 1, "log_z_error": log_z_error}


def by_mala(d: int, budget: int, seed: int) -> dict[str, float]:
    """Return the same by chains, after a warm-up that counts too."""
    target, steps = Target(d), budget // NUM_CHAINS
    start = torch.randn(NUM_CHAINS, d, generator=stream(seed, "benchmark/start"))
    draws = ebm.sample(target, start, num_samples=steps * 4 // 5, num_warmup=steps // 5, seed=seed)
    error = float((draws.x[..., 0] ** 2).mean() - 1)
    return {"draws": 1000 * draws.diagnostics.ess_bulk / target.num_energies, "error": error}


WAYS = {"rejection": by_rejection, "importance": by_importance, "MALA": by_mala}


def rows(budget: int, num_seeds: int) -> list[dict[str, Any]]:
    """Return the figures of each dimension and way, over seeds."""
    found = []
    for d in DIMENSIONS:
        for name, way in WAYS.items():
            runs = [way(d, budget, seed) for seed in range(num_seeds)]
            draws = [r["draws"] for r in runs]
            errors = np.array([r["error"] for r in runs])
            missing = bool(np.isnan(errors).any())
            row = {
                "dimensions": d,
                "way": name,
                "draws": float(np.mean(draws)),
                "range": [min(draws), max(draws)],
                "rms_error": None if missing else float(np.sqrt((errors**2).mean())),
            }
            found.append(row)
            print(row, flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--energies", type=int, default=200_000, help="of each way and seed")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/accept_reject.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    content = circumstances() | {"threads": 1, "energies": args.energies, "seeds": args.seeds}
    content["rows"] = rows(args.energies, args.seeds)
    write_json(args.out, content)
    lines = {}
    for name in WAYS:
        own = [r for r in content["rows"] if r["way"] == name and r["draws"] > 0]
        columns = [[r["draws"] for r in own], *zip(*(r["range"] for r in own), strict=True)]
        lines[name] = ([r["dimensions"] for r in own], *map(np.array, columns))
    picture = figures.bands(
        lines, "dimensions", "effective draws for 1,000 energies", "Accept and reject", log_y=True
    )
    write_whole(args.out.with_suffix(".png"), picture)


if __name__ == "__main__":
    run(main)
