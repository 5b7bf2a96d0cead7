"""Measure samplers that tune their own length, in effective draws per gradient, beside our HMC.

    pip install -c constraints.txt -e '.[benchmarks]'
    python -m benchmarks.adaptive

NUTS, adjusted microcanonical dynamics and MEADS are those of blackjax; HMC is ours, with jittered
steps. Targets are a Gaussian of 32 dimensions and condition number 100, and Neal's funnel of 10.
All but MEADS and our HMC with adapted scales have a unit mass matrix. Each has the best of a grid
of step sizes and lengths, so a ratio compares best with best. The ESS is the smallest bulk ESS over
the dimensions and their squares; 64 chains start from the target. Writes
reports/benchmarks/adaptive.json.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import ebm_dist as ebm
from benchmarks import circumstances
from benchmarks.samplers import VARIANCES, funnel
from ebm_dist.chains import diagnostics
from ebm_dist.files import write_json

NUM_CHAINS = 64
HMC = "HMC, jittered steps (ours)"
_RATE = "ess_per_1000_gradients"


class Result(NamedTuple):
    """The draws of a sampler with one setting."""

    sampler: str
    setting: str
    draws: np.ndarray
    """``(num_chains, num_draws, dim)``"""
    acceptance: float
    gradients: float
    """per draw and chain"""

    def row(self, target: str) -> dict[str, Any]:
        """Return the row of the report. The mean and deviation of x_0 show a biased sampler."""
        ess = min(diagnostics.ess_bulk(f).min() for f in (self.draws, self.draws**2))
        first = self.draws[..., 0]
        return {
            "target": target,
            "sampler": self.sampler,
            "setting": self.setting,
            "acceptance": self.acceptance,
            "gradients_per_draw": self.gradients,
            _RATE: 1e3 * float(ess) / (first.size * self.gradients),
            "mean_of_first": float(first.mean()),
            "deviation_of_first": float(first.std()),
        }


def starts(target: str) -> np.ndarray:
    """Draw the starts ``(num_chains, dim)`` from the target."""
    rng = np.random.default_rng(0)
    if target == "gaussian":
        return (rng.standard_normal((NUM_CHAINS, 32)) * VARIANCES**0.5).astype(np.float32)
    neck = 3 * rng.standard_normal((NUM_CHAINS, 1))
    others = np.exp(neck / 2) * rng.standard_normal((NUM_CHAINS, 9))
    return np.concatenate([neck, others], axis=1).astype(np.float32)


def ours(target: str, budget: int) -> Iterator[Result]:
    """Run our HMC; ``budget`` is the number of gradients per chain."""
    precision = torch.from_numpy(1 / VARIANCES)
    energy = funnel if target == "funnel" else lambda x: (x**2 * precision).sum(1) / 2
    for step_size in (0.12, 0.16, 0.2) if target == "gaussian" else (0.2, 0.3, 0.4, 0.6):
        for length in (5, 7, 10, 20, 40):
            drawn = ebm.sample(
                energy,
                torch.from_numpy(starts(target)),
                "hmc",
                num_samples=max(40, budget // length),
                num_warmup=0,
                step_size=step_size,
                num_leapfrog=length,
            )
            draws = drawn.x.transpose(0, 1).numpy()
            setting = f"step {step_size}, {length} steps"
            yield Result(HMC, setting, draws, drawn.acceptance_rate, length)
    for length in (2, 3, 5, 7, 10, 20):
        drawn = ebm.sample(
            energy,
            torch.from_numpy(starts(target)),
            "hmc",
            num_samples=max(40, budget // length),
            adapt_scales=True,
            num_leapfrog=length,
        )
        draws, setting = drawn.x.transpose(0, 1).numpy(), f"adapted, {length} steps"
        yield Result("the same, adapted scales", setting, draws, drawn.acceptance_rate, length)


def theirs(target: str, budget: int) -> Iterator[Result]:
    """Run the samplers of blackjax."""
    import blackjax
    import jax
    import jax.numpy as jnp

    def log_density(x: Any) -> Any:
        if target == "gaussian":
            return -(x**2 / VARIANCES).sum() / 2
        return -(x[0] ** 2 / 18 + ((x[1:] ** 2).sum() * jnp.exp(-x[0]) + 9 * x[0]) / 2)

    position, is_gaussian = jnp.asarray(starts(target)), target == "gaussian"
    unit = jnp.ones(position.shape[1])

    def run(sampler: Any, states: Any, num_draws: int) -> tuple[np.ndarray, float, float]:
        @jax.jit
        def chain(states: Any, key: Any) -> Any:
            def step(states: Any, key: Any) -> Any:
                states, info = jax.vmap(sampler.step)(jax.random.split(key, NUM_CHAINS), states)
                steps = getattr(info, "num_integration_steps", jnp.ones(NUM_CHAINS))
                return states, (states.position, info.acceptance_rate, steps)

            return jax.lax.scan(step, states, jax.random.split(key, num_draws))

        _, (x, acceptance, steps) = chain(states, jax.random.key(1))
        return np.asarray(x).swapaxes(0, 1), float(jnp.nanmean(acceptance)), float(steps.mean())

    for step_size in (0.12, 0.16, 0.2, 0.25) if is_gaussian else (0.2, 0.4, 0.6, 0.8):
        nuts = blackjax.nuts(log_density, step_size, unit)
        found = run(nuts, jax.vmap(nuts.init)(position), max(40, budget // 20))
        yield Result("NUTS", f"step {step_size}", *found)
    for step_size in (0.7, 1.0, 1.4, 2.0) if is_gaussian else (1.0, 2.0, 3.0, 4.0):
        for length in (3, 5, 8, 12, 25, 50):
            adjusted = blackjax.adjusted_mclmc_dynamic(
                log_density,
                step_size,
                inverse_mass_matrix=unit,
                next_random_arg_fn=lambda key: jax.random.split(key)[1],
                integration_steps_fn=lambda key, most=2 * length: jnp.ceil(
                    jax.random.uniform(key) * most
                ).astype(int),
            )
            keys = jax.random.split(jax.random.key(2), NUM_CHAINS)
            states = jax.vmap(adjusted.init)(position, keys)
            x, acceptance, steps = run(adjusted, states, max(40, budget // (2 * length)))
            setting = f"step {step_size}, {length} steps on average"
            # its integrator takes two gradients a step
            yield Result("adjusted microcanonical", setting, x, acceptance, 2 * steps)
    warmup = blackjax.meads_adaptation(log_density, NUM_CHAINS)
    (states, settings), _ = warmup.run(jax.random.key(3), position, 500)
    found = run(blackjax.ghmc(log_density, **settings), states, budget)
    yield Result("MEADS, with its mass matrix", "adapted", *found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--gradients", type=int, default=3000, help="per chain (default: 3000)")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/adaptive.json"))
    args = options.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    torch.set_num_threads(1)
    content = circumstances("blackjax", "jax") | {"gradients": args.gradients, "best": []}
    for target in ("gaussian", "funnel"):
        best: dict[str, dict[str, Any]] = {}
        for kind in (ours, theirs):
            for result in kind(target, args.gradients):
                row = result.row(target)
                if row[_RATE] > best.get(result.sampler, {_RATE: 0})[_RATE]:  # not NaN
                    best[result.sampler] = row
        for row in best.values():
            row["ratio_to_hmc"] = row[_RATE] / best[HMC][_RATE]
            print(
                f"{target:9}{row['sampler']:28}{row['setting']:34}"
                f"{row[_RATE]:8.2f} draws per 1,000 gradients,"
                f" {row['ratio_to_hmc']:.2f} of HMC; accepted {row['acceptance']:.2f};"
                f" x_0 {row['mean_of_first']:+.2f} +- {row['deviation_of_first']:.2f}",
                flush=True,
            )
        content["best"] += best.values()
    write_json(args.out, content)


if __name__ == "__main__":
    main()
