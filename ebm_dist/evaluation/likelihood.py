"""Log-likelihood of a restricted Boltzmann machine, exact or by annealed importance sampling (AIS).

Protocol of Salakhutdinov & Murray 2008: grey levels become ones and zeros once, with the grey level
as probability. On average AIS underestimates log Z, so it overestimates the likelihood. Reverse AIS
errs the other way. The true value is between the two if the reverse chains have forgotten their
start: they come from the replay buffer, and exchange positions with replicas on the path of AIS
(:mod:`ebm_dist.chains.exchange`) until ``burn_in``. ``round_trips`` counts how often the copy of a
chain went to the end of the path, where units are independent, and came back.

Neither notices a mode that its chains never enter; interval and weights then look as good as ever.
Training with persistent chains can leave such modes far from the data, with more mass than all of
the data. So AIS also starts from uniform units, and chains from noise search for states: the sum of
their weights is a lower bound of Z. ``worst`` is the likelihood by the largest of these estimates
of log Z, or by the exact value. ``low`` and ``high`` are absent where the interval of AIS has no
such end, because the weights of its chains differ too much.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ebm_dist.chains import exchange
from ebm_dist.config import Mismatch, Params, PositiveInt, plugin_name, section
from ebm_dist.data import shards
from ebm_dist.energies import EnergyFn, rbm
from ebm_dist.evaluation import Needs, Report, Subject, check_finite, defined
from ebm_dist.metrics.ais import (
    Estimate,
    ais,
    binarised,
    exact_log_z,
    independent_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
    reverse_ais,
    schedule,
)
from ebm_dist.report import figures
from ebm_dist.rng import bernoulli, stream
from ebm_dist.samplers import gibbs

_ROUNDS = 4  # that adapt the path


@section
class Config:
    num_betas: PositiveInt = 14500
    """Inverse temperatures of AIS and of reverse AIS."""
    num_chains: PositiveInt = 100
    """Chains of AIS, and of reverse AIS."""
    burn_in: PositiveInt = 1000
    """Sweeps of the replayed chains before reverse AIS, and of the chains from noise."""
    num_replicas: PositiveInt = 10
    """Replicas of each replayed chain; 1: it makes its sweeps alone."""
    max_exact_hidden: PositiveInt = 20
    """Largest number of hidden units for the exact sum; it takes a minute at 20."""
    split: str = "test"
    """The split to score in addition to train: ``val`` to choose settings, ``test`` to report."""

    def check(self, params: Params) -> None:
        if plugin_name(params.energy) != "rbm":
            raise Mismatch(
                "evaluation.likelihood",
                f"needs energy rbm, not {plugin_name(params.energy)}; leave this suite out",
            )
        if params.objective.conditional:
            raise Mismatch(
                "evaluation.likelihood",
                "is that of p(x), and a conditional machine has none; leave this suite out",
            )
        if self.num_chains > params.replay.capacity:
            raise Mismatch(
                "evaluation.likelihood.num_chains",
                f"reverse AIS starts from replay.capacity = {params.replay.capacity}",
            )
        if self.num_chains < 2:
            raise Mismatch("evaluation.likelihood.num_chains", "needs at least 2, for an interval")


def check(config: Config, needs: Needs) -> None:
    needs.probabilities()
    needs.split("train")
    needs.split(config.split)


def evaluate(config: Config, subject: Subject) -> Report:
    machine = subject.model.energy
    assert isinstance(machine, rbm.RBM)
    weights = machine.weights()
    data = {
        name: binarised(shards.read_split(subject.data, split)[0], name).flatten(1)
        for name, split in _sides(config).items()
    }
    mean = data["train"].mean(dim=0).clamp(0.01, 0.99)
    base, betas = mean.logit(), schedule(config.num_betas)
    start = subject.model.chains[: config.num_chains].flatten(1)
    particles, _, journey = _tempered(config, weights, base, start)
    noise = bernoulli(torch.full_like(particles, 0.5), stream(0, "likelihood/noise"))
    wanderers = _swept(weights, base, [1.0], noise, config.burn_in, "wander").position

    estimates = {
        "ais": ais(weights, base, betas, config.num_chains, stream(0, "likelihood/ais")),
        "ais_uniform": ais(
            weights,
            torch.zeros_like(base),
            betas,
            config.num_chains,
            stream(0, "likelihood/uniform"),
        ),
        "reverse_ais": reverse_ais(
            weights, base, betas, particles, stream(0, "likelihood/reverse")
        ),
    }
    if weights.weight.shape[1] <= config.max_exact_hidden:
        exact = exact_log_z(weights)
        estimates["exact"] = Estimate(exact, exact, exact, float("inf"))
    for name, parameter in weights._asdict().items():
        check_finite(parameter, f"evaluation.likelihood: {name}")
    energies = {name: subject.model.energies(x).double().mean().item() for name, x in data.items()}
    log_weights = -weights.free_energy(torch.cat([particles, wanderers]).unique(dim=0)).double()
    log_sum = log_weights.logsumexp(0).item()
    estimates["states"] = Estimate(log_sum, log_sum, float("inf"), float("inf"))
    estimates["worst"] = estimates.get("exact") or max(estimates.values(), key=lambda e: e.log_z)
    rows = [
        {"log Z by": name, **e._asdict(), **{s: -f - e.log_z for s, f in energies.items()}}
        for name, e in estimates.items()
    ]

    metrics: dict[str, Any] = {
        name: {"log_z": e.log_z, **{s: -f - e.log_z for s, f in energies.items()}}
        for name, e in estimates.items()
    }
    for name in ("ais", "ais_uniform", "reverse_ais"):
        e = estimates[name]
        metrics[name] |= defined({"low": e.low, "high": e.high, "ess": e.ess})
    low, high = estimates["worst"].likelihoods(energies[config.split])
    metrics["worst"] |= defined({f"{config.split}_low": low, f"{config.split}_high": high})
    metrics["reverse_ais"] |= {
        "barrier": journey.barrier,
        "round_trips": journey.round_trips.mean().item(),
    }
    if "exact" in estimates:
        metrics["ais_gap"] = abs(estimates["ais"].log_z - estimates["exact"].log_z)
        metrics |= defined({"ais_three_sigma": (estimates["ais"].high - estimates["ais"].low) / 2})
    scored = data[config.split]
    pseudo = pseudo_log_likelihood(machine, scored, stream(0, "likelihood/pseudo"))
    metrics |= {
        "pseudo": pseudo.double().mean().item(),
        "reconstruction_error": reconstruction_error(weights, scored),
        "independent_pixels": independent_log_likelihood(scored, mean),
        "uniform": -len(mean) * torch.log(torch.tensor(2.0)).item(),
    }
    report = Report(metrics, {"log_z": rows}, {})
    if len(subject.data.shape) == 3:
        shape = (-1, *subject.data.shape)
        filters = weights.weight.T[:100]
        spread = filters.abs().quantile(0.995).clamp(min=torch.finfo(filters.dtype).tiny)
        report.figures["filters.png"] = figures.image_grid(
            ((filters / spread).clamp(-1, 1) / 2 + 0.5).view(shape).numpy(),
            10,
            f"Filters: weights of {len(filters)} hidden units",
        )
        means = weights.visible_input(weights.hidden_input(particles).sigmoid()).sigmoid()
        title = f"Fantasy particles, {config.burn_in} sweeps: p(v | h)"
        report.figures["fantasy.png"] = figures.image_grid(means.view(shape).numpy(), 10, title)
        title = f"Chains from noise after {config.burn_in} sweeps"
        report.figures["noise.png"] = figures.image_grid(wanderers.view(shape).numpy(), 10, title)
    return report


def _tempered(config: Config, weights: rbm.Weights, base: Tensor, start: Tensor) -> exchange.State:
    """Return chains from ``start (n, num_visible)`` after ``burn_in`` sweeps with replicas."""
    betas = torch.linspace(1, 0, config.num_replicas).tolist()
    if config.num_replicas > 2:
        few = max(1, config.burn_in // 10)
        betas, _ = exchange.adapt_ladder(
            lambda b: _swept(weights, base, b, start, few, "ladder").journey, betas, _ROUNDS
        )
    return _swept(weights, base, betas, start, config.burn_in, "burn_in")


def _swept(
    weights: rbm.Weights,
    base: Tensor,
    betas: Sequence[float],
    start: Tensor,
    num_sweeps: int,
    purpose: str,
) -> exchange.State:
    """Return chains after sweeps of replicas at ``betas``, the first of which is 1."""
    target, *path = (cast(EnergyFn, weights.annealed(base, beta)) for beta in betas)
    kernel = exchange.exchange(gibbs.build(gibbs.Config(), bounds=None), path)
    generator = stream(0, f"likelihood/{purpose}")
    state: exchange.State = exchange.final_state(kernel, target, start, num_sweeps, generator)
    return state


def _sides(config: Config) -> dict[str, str]:
    return {"train": "train", config.split: config.split}
