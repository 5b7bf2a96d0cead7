"""Compare effective draws per second of MALA and HMC with blackjax and ebmkit; and a funnel.

    pip install -c constraints.txt -e '.[benchmarks]'
    python -m benchmarks.samplers --out a.json      # and again, to b.json and c.json
    python -m benchmarks.samplers --merge a.json b.json c.json \
        --out reports/benchmarks/samplers.json

All libraries run the same algorithm with the same step size, in float32, for the same numbers of
chains and draws, from one call of the public function each. They take turns several times, and
medians are compared. The ESS is the bulk ESS of the worst dimension, by one function for all.
Seconds are CPU seconds of the process, which depend little on other load: torch uses one thread,
jax also others. First calls, which compile, are reported separately.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ebm_dist as ebm
from ebm_dist.chains import adaptation, diagnostics
from ebm_dist.config import module_of
from ebm_dist.rng import stream
from ebm_dist.samplers import hmc, mala, metropolis, run_chain

VARIANCES = np.geomspace(1, 0.01, 32).astype(np.float32)
ANGLES = np.arange(8) * 2 * np.pi / 8
CENTRES = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


class Case(NamedTuple):
    """A target, a sampler, and the numbers of chains and draws."""

    target: str
    dim: int
    sampler: str
    step_size: float
    settings: dict[str, Any]
    num_chains: int
    num_draws: int


CASES = [
    Case(target, dim, sampler, step_size, settings, num_chains, num_draws)
    for target, dim, sampler, step_size, settings, sizes in (
        ("gaussian", 32, "mala", 0.008, {}, ((100, 500), (4000, 100))),
        ("gaussian", 32, "hmc", 0.12, {"num_leapfrog": 10}, ((100, 200), (4000, 40))),
        ("mixture", 2, "mala", 0.25, {}, ((100, 500), (4000, 100))),
        ("mixture", 2, "hmc", 0.35, {"num_leapfrog": 6}, ((100, 200), (4000, 40))),
        ("mlp", 2, "mala", 0.4, {}, ((100, 500), (4000, 100))),
        ("mlp", 2, "hmc", 0.5, {"num_leapfrog": 6}, ((100, 200), (4000, 40))),
    )
    for num_chains, num_draws in sizes
]


class Run(NamedTuple):
    """The draws of a run and its time."""

    draws: np.ndarray
    """``(num_chains, num_draws, dim)``"""
    acceptance: float
    cpu_seconds: float
    wall_seconds: float


def timed(work: Callable[[], tuple[np.ndarray, float]]) -> Run:
    """Run the work and measure its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    draws, acceptance = work()
    return Run(draws, acceptance, time.process_time() - cpu, time.perf_counter() - wall)


def start(case: Case) -> np.ndarray:
    """Draw the starts ``(num_chains, dim)`` from the target, so that no burn-in is timed.

    Those of the network are from a normal distribution, which it changes little.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((case.num_chains, case.dim)).astype(np.float32)
    if case.target == "mixture":
        return CENTRES[rng.integers(8, size=case.num_chains)] + z / 2
    return z * VARIANCES**0.5 if case.target == "gaussian" else z


def network() -> nn.Sequential:
    """Return the network of the target ``mlp``: 2 x 128 hidden units."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1)
    ).requires_grad_(False)


class Energy(nn.Module):
    """A target in torch: ``(n, dim) -> (n,)``."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("precision", torch.from_numpy(1 / VARIANCES))
        self.register_buffer("centres", torch.from_numpy(CENTRES))
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        if self.target == "gaussian":
            return (x**2 * self.precision).sum(1) / 2
        if self.target == "mixture":
            return -torch.logsumexp(-2 * ((x[:, None] - self.centres) ** 2).sum(2), dim=1)
        return self.network(x).squeeze(1) + (x**2).sum(1) / 2


def ours(case: Case, *, compiles: bool) -> tuple[Callable[[int], Run], float]:
    """Return the run of a case by ebm_dist, and the seconds of the first call."""
    energy, x0 = Energy(case.target).eval(), torch.from_numpy(start(case))
    settings = case.settings | ({"jitter": 0.0} if case.sampler == "hmc" else {})

    def work(seed: int) -> tuple[np.ndarray, float]:
        draws = ebm.sample(
            energy,
            x0,
            case.sampler,
            num_samples=case.num_draws,
            num_warmup=0,
            step_size=case.step_size,
            seed=seed,
            compile=compiles,
            **settings,
        )
        return draws.x.transpose(0, 1).numpy(), draws.acceptance_rate

    first = timed(lambda: work(0)).wall_seconds
    return lambda seed: timed(lambda: work(seed)), first


def blackjax(case: Case) -> tuple[Callable[[int], Run], float]:
    """Return the run of a case by blackjax, and the seconds of the first call, which compiles."""
    import blackjax as library
    import jax
    import jax.numpy as jnp

    layers = [
        (layer.weight.numpy(), layer.bias.numpy())
        for layer in network()
        if isinstance(layer, nn.Linear)
    ]

    def mlp(x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.silu(weight @ x + bias)
        weight, bias = layers[-1]
        return (weight @ x + bias)[0]

    logdensity = {
        "gaussian": lambda x: -(x**2 / VARIANCES).sum() / 2,
        "mixture": lambda x: jax.nn.logsumexp(-2 * ((x - CENTRES) ** 2).sum(1)),
        "mlp": lambda x: -mlp(x) - (x**2).sum() / 2,
    }[case.target]
    if case.sampler == "mala":
        kernel = library.mala(logdensity, case.step_size)
    else:
        kernel = library.hmc(
            logdensity, case.step_size, jnp.ones(case.dim), case.settings["num_leapfrog"]
        )
    position = jnp.asarray(start(case))

    @jax.jit
    def chain(key: Any) -> tuple[Any, Any]:
        def step(states: Any, key: Any) -> tuple[Any, tuple[Any, Any]]:
            states, info = jax.vmap(kernel.step)(jax.random.split(key, case.num_chains), states)
            return states, (states.position, info.is_accepted)

        _, (draws, accepted) = jax.lax.scan(
            step, jax.vmap(kernel.init)(position), jax.random.split(key, case.num_draws)
        )
        return draws, accepted.mean()

    def work(seed: int) -> tuple[np.ndarray, float]:
        draws, acceptance = jax.block_until_ready(chain(jax.random.key(seed)))
        return np.asarray(draws).swapaxes(0, 1), float(acceptance)

    first = timed(lambda: work(0)).wall_seconds
    return lambda seed: timed(lambda: work(seed)), first


def ebmkit(case: Case) -> tuple[Callable[[int], Run], float]:
    """Return the run of a case by ebmkit, and the seconds of the first call."""
    from ebm.samplers import HMC, MALA

    energy, x0 = Energy(case.target).eval(), torch.from_numpy(start(case))
    if case.sampler == "mala":
        sampler = MALA(case.step_size)
    else:
        sampler = HMC(case.step_size, case.settings["num_leapfrog"])

    def work(seed: int) -> tuple[np.ndarray, float]:
        torch.manual_seed(seed)
        draws = sampler.sample(energy, x0, steps=case.num_draws, return_trajectory=True)[1:]
        moved = (draws[1:] != draws[:-1]).any(dim=2).float().mean()
        return draws.transpose(0, 1).numpy(), moved.item()

    first = timed(lambda: work(0)).wall_seconds
    return lambda seed: timed(lambda: work(seed)), first


def worst_ess(draws: np.ndarray, most: int = 400) -> float:
    """Return the bulk ESS of the worst dimension of draws ``(num_chains, num_draws, dim)``.

    Chains are independent, so it is extrapolated from the first ``most``: ranking all takes long.
    """
    return float(np.min(diagnostics.ess_bulk(draws[:most]))) * len(draws) / min(most, len(draws))


def compare(case: Case, num_repeats: int) -> dict[str, Any]:
    """Measure the libraries on a case, in turn, and ours also without compiling."""
    ready = {
        "compiled": ours(case, compiles=True),
        "plain": ours(case, compiles=False),
        "blackjax": blackjax(case),
        "ebmkit": ebmkit(case),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ready}
    for repeat in range(num_repeats + 1):
        # interleaved, and none always first
        for name in sorted(ready, reverse=bool(repeat % 2)):
            run = ready[name][0](repeat + 1)
            if repeat:  # the first one warms up
                runs[name].append(run)
    row: dict[str, Any] = case._asdict()
    rates = {}
    for name, several in runs.items():
        ess = [worst_ess(run.draws) for run in several]
        rates[name] = [e / run.cpu_seconds for e, run in zip(ess, several, strict=True)]
        row[name] = {
            "acceptance": statistics.median(run.acceptance for run in several),
            "ess": statistics.median(ess),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in several),
            "wall_seconds": statistics.median(run.wall_seconds for run in several),
            "ess_per_cpu_second": statistics.median(rates[name]),
            "first_call_seconds": ready[name][1],
        }
    for name in ("compiled", "plain", "ebmkit"):
        ratios = [a / b for a, b in zip(rates[name], rates["blackjax"], strict=True)]
        row[name]["ratio"] = {
            "median": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return row


def funnel(x: Tensor) -> Tensor:
    """Return the energy ``(n,)`` of the funnel (Neal 2003, section 8) at ``x (n, 10)``.

    x_0 ~ N(0, 9), and the nine others ~ N(0, exp(x_0)).
    """
    return x[:, 0] ** 2 / 18 + ((x[:, 1:] ** 2).sum(1) * torch.exp(-x[:, 0]) + 9 * x[:, 0]) / 2


def funnel_report(num_chains: int = 500, num_gradients: int = 2000) -> list[dict[str, Any]]:
    """Measure mean and deviation of x_0, exactly 0 and 3, after equally many evaluations.

    No fixed step size suits all of a funnel.
    """
    rows = []
    for config in (
        metropolis.Config(step_size=0.5),
        mala.Config(step_size=0.1),
        hmc.Config(step_size=0.2),
    ):
        num_steps = num_gradients // getattr(config, "num_leapfrog", 1)
        adapted, x = adaptation.adapt(
            config, funnel, torch.zeros(num_chains, 10), 300, stream(0, "warmup"), bounds=None
        )
        kernel = module_of(config).build(adapted, bounds=None)
        x, chains = run_chain(kernel, funnel, x, num_steps, stream(1, "chain"))
        name = module_of(config).__name__.rpartition(".")[2]
        neck = x[:, 0]
        rows.append(
            {
                "sampler": name,
                "step_size": adapted.step_size,
                "acceptance": chains.acceptance_rate.item(),
                "mean": neck.mean().item(),
                "standard_error": 3 / math.sqrt(num_chains),
                "deviation": neck.std().item(),
            }
        )
    return rows


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the report of several processes: medians of their medians, ranges over all rounds."""
    first, *_ = reports
    if any(report["versions"] != first["versions"] for report in reports):
        raise SystemExit("these reports are of different versions of the libraries")
    rows = []
    for same in zip(*(report["rows"] for report in reports), strict=True):
        row = dict(same[0])
        for name in [
            name for name, part in row.items() if isinstance(part, dict) and "ess" in part
        ]:
            parts = [one[name] for one in same]
            row[name] = {
                key: statistics.median(part[key] for part in parts)
                for key in parts[0]
                if key != "ratio"
            }
            if "ratio" in parts[0]:
                ratios = [part["ratio"] for part in parts]
                row[name]["ratio"] = {
                    "median": statistics.median(ratio["median"] for ratio in ratios),
                    "low": min(ratio["low"] for ratio in ratios),
                    "high": max(ratio["high"] for ratio in ratios),
                }
        rows.append(row)
    return {**first, "processes": len(reports), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs per library (default: 5)"
    )
    parser.add_argument(
        "--merge", type=Path, nargs="+", help="combine these reports of several processes"
    )
    args = parser.parse_args()
    if args.merge:
        report = merged([json.loads(path.read_text()) for path in args.merge])
        args.out.write_text(json.dumps(report, indent=1))
        return
    # before jax is imported; one thread for both
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    torch.set_num_threads(1)
    try:
        versions = {
            name: importlib.metadata.version(name)
            for name in ("torch", "blackjax", "jax", "jaxlib", "ebmkit", "numpy")
        }
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed; pip install -c constraints.txt -e '.[benchmarks]'"
        ) from None
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "processor": platform.machine()}
    print(" ".join(f"{name} {value}" for name, value in (versions | machine).items()))
    print(
        "\nESS is the bulk ESS of the worst dimension, per CPU second, of ebm_dist and blackjax;"
        " ratios are to blackjax"
    )
    print(
        "target   sampler chains draws  accepted     ESS per CPU second"
        "           ratio (range)          plain ebmkit   first calls"
    )
    rows = []
    for case in CASES:
        row = compare(case, args.repeats)
        rows.append(row)
        a, b, ratio = row["compiled"], row["blackjax"], row["compiled"]["ratio"]
        print(
            f"{case.target:9}{case.sampler:6}{case.num_chains:8}{case.num_draws:6}"
            f"  {a['acceptance']:.3f} {b['acceptance']:.3f}"
            f"{a['ess_per_cpu_second']:9.0f}{b['ess_per_cpu_second']:9.0f}"
            f"    {ratio['median']:6.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            f"{row['plain']['ratio']['median']:12.2f}{row['ebmkit']['ratio']['median']:7.2f}"
            f"{a['first_call_seconds']:8.1f}{b['first_call_seconds']:6.1f} s",
            flush=True,
        )
    print("\nfunnel (x_0 is N(0, 9)), for information")
    on_funnel = funnel_report()
    for row in on_funnel:
        print(
            f"{row['sampler']:11} step {row['step_size']:.3f}  accepted {row['acceptance']:.2f}"
            f"  mean {row['mean']:+.2f} +- {row['standard_error']:.2f}"
            f"  deviation {row['deviation']:.2f}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                {"versions": versions, "machine": machine, "rows": rows, "funnel": on_funnel},
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
