"""Mixing of the sampler by split R-hat and effective sample size (Vehtari et al. 2021).

Single pixels say little and many never vary, so the diagnostics follow the energy and the leading
principal components of the training data. Chains from noise and chains continued from the replay
buffer are each compared among themselves, and then with each other. Only if both kinds agree do
samples depend on the model alone and not on where a chain started. The labels of a conditional
energy stay fixed, so only chains of the same class are compared. ``num_constant`` counts the
quantities that never vary; R-hat and sample sizes are those of the others. They are absent if
nothing varies, and R-hat if no chain moves. R-hat at one length says little: ``steps_to_rhat`` is
the number of steps, of 24 lengths, from which on R-hat is at most 1.1. It is absent where the last
R-hat is larger.

By default the sampler is that of the training. ``warm_up`` adapts its step size first, and
``temperatures`` adds replicas that exchange positions (parallel tempering). With both, the
temperatures between the ends are adapted too, until all pairs swap about equally often.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebm_dist.chains import exchange, tempering
from ebm_dist.chains.adaptation import adapt
from ebm_dist.chains.build import check_temperatures, temperature_of
from ebm_dist.chains.diagnostics import (
    Floats,
    Trace,
    ess_bulk,
    ess_tail,
    mixed_from,
    rhat,
    rhat_by_length,
)
from ebm_dist.config import (
    Mismatch,
    NonNegativeInt,
    Params,
    Positive,
    PositiveInt,
    module_of,
    plugin_name,
    section,
)
from ebm_dist.data import shards
from ebm_dist.energies import EnergyFn, frozen, given, is_conditional
from ebm_dist.evaluation import Needs, Report, Subject, check_finite, defined
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import Info, Kernel, State, noise, run_chain

_SEED = 0  # of the evaluation, the same for all models
_FEWEST_DRAWS = 8
_NUM_PATHS, _NUM_DOTS = 5, 2000
_ROUNDS = 4  # that adapt the temperatures


@section
class Config:
    num_chains: PositiveInt = 100
    """Chains from noise, and as many from the replay buffer."""
    num_draws: PositiveInt = 200
    """Draws of each chain. The first half is discarded; the second half is evaluated."""
    thin: PositiveInt = 5
    """Steps of the sampler from one draw to the next."""
    num_components: PositiveInt = 5
    """Principal components of the training data to follow, in addition to the energy; fewer where
    the data vary in fewer directions."""
    temperatures: tuple[Positive, ...] = ()
    """Temperatures of parallel tempering, from 1 up, in units of the sampler's; plain chains if
    empty."""
    warm_up: NonNegativeInt = 0
    """Steps before the draws that adapt the step size of the sampler, and in each of four rounds
    the temperatures between the ends; 0 keeps both."""

    def check(self, params: Params) -> None:
        if self.num_draws < _FEWEST_DRAWS:
            raise Mismatch(
                "evaluation.chains.num_draws",
                f"at least {_FEWEST_DRAWS}, of which the second half is evaluated",
            )
        if self.warm_up and not hasattr(module_of(params.sampler), "ACCEPTANCE"):
            name = plugin_name(params.sampler)
            raise Mismatch(
                "evaluation.chains.warm_up",
                f"needs a sampler that accepts or rejects, not {name}; use mala, or leave it out",
            )
        if self.warm_up and getattr(params.sampler, "proposal", "") == "noise":
            raise Mismatch(
                "evaluation.chains.warm_up",
                "the acceptance rate does not tell how wide independent proposals should be; leave"
                " it out",
            )
        if self.temperatures:
            check_temperatures("evaluation.chains.temperatures", self.temperatures, params)


class _Components(NamedTuple):
    """Directions of the largest variance of the data, each in units of its standard deviation."""

    mean: Tensor
    directions: Tensor
    """``(num_pixels, num_components)``"""

    def of(self, x: Tensor) -> Tensor:
        """``(n, *shape) -> (n, num_components)``"""
        return (x.flatten(1) - self.mean) @ self.directions


class _Run(NamedTuple):
    trace: Trace
    followed: Floats
    """``(num_chains, num_draws, 1 + num_components)``: energy, then components"""
    labels: Tensor
    """``(num_chains,)``; all zero for an energy without labels"""
    metrics: dict[str, Any]
    """of the warm-up and of tempering, if there were any"""


def check(config: Config, needs: Needs) -> None:
    needs.split("train")


def evaluate(config: Config, subject: Subject) -> Report:
    model = subject.model
    train, _ = shards.read_split(subject.data, "train")
    components = _principal_components(train, config.num_components)
    n = min(config.num_chains, len(model.chains))
    start = noise((n, *model.card["shape"]), model.bounds, stream(_SEED, "chains/noise"))
    labels = torch.arange(n) % max(1, model.card["num_classes"])
    runs = {
        "noise": _run(config, subject, "noise", start, labels, components),
        "replay": _run(config, subject, "replay", model.chains[:n], model.labels[:n], components),
    }
    names = ["energy", *(f"component {i + 1}" for i in range(components.directions.shape[1]))]
    rows, lengths, metrics = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, Any]()
    for name, parts in {
        **{name: [run] for name, run in runs.items()},
        "both": list(runs.values()),
    }.items():
        whole = np.concatenate([run.followed for run in parts])
        classes = torch.cat([run.labels for run in parts]).numpy()
        wholes = [whole[classes == y] for y in np.unique(classes)]
        groups = [group[:, config.num_draws // 2 :] for group in wholes]
        # NaN where all draws of a class are equal
        diagnostics = {
            "rhat": np.fmax.reduce([rhat(group) for group in groups]),
            "ess_bulk": np.nansum([ess_bulk(group) for group in groups], axis=0),
            "ess_tail": np.nansum([ess_tail(group) for group in groups], axis=0),
        }
        curve = rhat_by_length(wholes)
        lengths += [
            {
                "chains": name,
                "steps": n * config.thin,
                "rhat": value if math.isfinite(value) else None,
            }
            for n, value in curve
        ]
        varies = ~np.isnan(diagnostics["rhat"])
        rows += [
            {"chains": name, "of": of} | {k: float(v[i]) for k, v in diagnostics.items()}
            for i, of in enumerate(names)
        ]
        metrics[name] = {
            "num_constant": int((~varies).sum()),
            "draws": sum(group.shape[0] * group.shape[1] for group in groups),
        }
        if varies.any():
            largest = float(diagnostics["rhat"][varies].max())
            metrics[name]["rhat"] = None if math.isinf(largest) else largest
            if (mixed := mixed_from(curve)) is not None:
                metrics[name]["steps_to_rhat"] = mixed * config.thin
            metrics[name] |= defined(
                {
                    "ess_bulk": float(diagnostics["ess_bulk"][varies].min()),
                    "ess_tail": float(diagnostics["ess_tail"][varies].min()),
                }
            )
    for name, run in runs.items():
        report = run.trace.report(model.bounds)
        metrics[name] |= {
            key: getattr(report, key)
            for key in ("acceptance_rate", "num_not_finite", "moved", "at_bounds")
        }
        metrics[name] |= run.metrics
    return Report(
        metrics,
        {"mixing": rows, "rhat_by_length": lengths},
        _pictures(config, subject, runs, components.of(train[:_NUM_DOTS])),
    )


def _principal_components(x: Tensor, num: int) -> _Components:
    flat = x.flatten(1)
    mean = flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(((flat - mean).T @ (flat - mean) / len(flat)).double())
    # the covariance is of 32-bit numbers: smaller values are rounding errors
    smallest = values.max() * len(values) * torch.finfo(torch.float32).eps
    num = min(num, int((values > smallest).sum()))
    largest = vectors.flip(1)[:, :num] / values.flip(0)[:num].sqrt()
    return _Components(mean, largest.float())


def _run(
    config: Config,
    subject: Subject,
    name: str,
    start: Tensor,
    labels: Tensor,
    components: _Components,
) -> _Run:
    model, trace = subject.model, Trace(every=config.thin)
    labels = labels if is_conditional(model.params) else torch.zeros_like(labels)
    metrics = dict[str, Any]()
    sampler, temperatures = model.params.sampler, config.temperatures
    journey: exchange.Journey | None = None

    def target_of(num_replicas: int) -> EnergyFn:
        repeated = labels.repeat(num_replicas)  # replica after replica
        return given(model.energy, repeated if is_conditional(model.params) else None)

    def observe(step: int, state: State, info: Info) -> None:
        nonlocal journey
        trace(step, state, info)
        if isinstance(state, tempering.State):
            journey = state.journey

    def tempered(betas: Sequence[float]) -> Kernel:
        return tempering.tempered(
            kernel,
            [1 / beta for beta in betas],
            bounds=model.bounds,
            temperature=temperature_of(sampler),
        )

    def trial(betas: Sequence[float]) -> exchange.Journey:
        tried, target = tempered(betas), target_of(len(betas))
        state, generator = tried.init(target, start), stream(_SEED, f"chains/{name}/ladder")
        with torch.no_grad():
            for _ in range(config.warm_up):
                state, _ = tried.step(target, state, generator)
        found: exchange.Journey = state.journey
        return found

    with frozen(model.energy):
        kernel = model.kernel()
        if config.warm_up:
            generator = stream(_SEED, f"chains/{name}/warm_up")
            sampler, start = adapt(
                sampler, target_of(1), start, config.warm_up, generator, bounds=model.bounds
            )
            kernel = module_of(sampler).build(sampler, bounds=model.bounds)
            metrics["step_size"] = sampler.step_size
        if temperatures:
            betas = [1 / t for t in temperatures]
            if config.warm_up:
                betas, _ = exchange.adapt_ladder(trial, betas, _ROUNDS)
            metrics["temperatures"] = {f"replica_{i + 1}": 1 / b for i, b in enumerate(betas)}
            kernel = tempered(betas)
        run_chain(
            kernel,
            target_of(max(1, len(temperatures))),
            start,
            config.thin * config.num_draws,
            stream(_SEED, f"chains/{name}"),
            observe=observe,
        )
    if journey is not None:
        rates = (1 - journey.refusal_rates).tolist()
        metrics["swap_rates"] = {f"pair_{i + 1}": rate for i, rate in enumerate(rates)}
        metrics["barrier"] = journey.barrier
        metrics["round_trips"] = float(journey.round_trips.mean())
    along = torch.stack([components.of(x) for x in trace.positions], dim=1)
    followed = torch.cat([torch.stack(trace.energies, dim=1)[:, :, None], along], dim=2).double()
    check_finite(followed, f"evaluation.chains: energies and positions of chains from {name}")
    return _Run(
        trace,
        followed.numpy(),
        labels,
        metrics,
    )


@torch.no_grad()
def _pictures(
    config: Config, subject: Subject, runs: dict[str, _Run], dots: Tensor
) -> dict[str, bytes]:
    split = next(split for split in ("val", "test", "train") if split in subject.data.splits)
    x, y = shards.read_split(subject.data, split)
    data = given(subject.model.energy, y if is_conditional(subject.model.params) else None)(x)
    steps = [config.thin * (i + 1) for i in range(config.num_draws)]
    lines = {
        f"chains from {name}": (steps, *_band(run.followed[:, :, 0])) for name, run in runs.items()
    }
    lines[f"{split} data"] = (
        [0, steps[-1]],
        *(np.repeat(v, 2) for v in _band(data.numpy()[:, None])),
    )
    pictures = {
        "energy.png": figures.bands(
            lines,
            "step of the chain",
            "energy: median and 90 % of the chains",
            "Energy along the chains",
        )
    }
    if dots.shape[1] > 1:
        pictures["paths.png"] = figures.paths(
            {f"chain from {name}": run.followed[:_NUM_PATHS, :, 1:3] for name, run in runs.items()},
            dots[:, :2].numpy(),
            ("first principal component (sd of the data)", "second principal component"),
            f"{_NUM_PATHS} chains of each kind over the training data",
        )
    return pictures


def _band(energies: Floats) -> Floats:
    """Return median, 5 % and 95 % quantile over the first axis."""
    return np.quantile(energies, [0.5, 0.05, 0.95], axis=0)
