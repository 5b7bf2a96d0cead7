"""Log-likelihood of any energy of binary data, between two bounds by annealed importance sampling.

Chains with the sampler of the training go from independent pixels to the energy and back
(metrics/annealing.py; Grathwohl et al. 2021, section 6.2). Each step has one change of a single
variable more, without which chains may be stuck. On average the forward run overestimates the
likelihood, and the reverse run underestimates it if the replayed chains that it starts from are
draws of the energy, after ``burn_in`` more steps; ``still_sinks`` is by how many nats their mean
energy fell in the second half of these, 0 on average for draws. ``worst`` is the lower of both.
Grey levels become ones and zeros once, as in suite ``likelihood``, which is for restricted
Boltzmann machines and has more to say about them.
"""

from typing import Any

import torch

from ebm_dist.config import Mismatch, Params, PositiveInt, plugin_name, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen
from ebm_dist.evaluation import Needs, Report, Subject, defined
from ebm_dist.metrics import annealing
from ebm_dist.metrics.ais import binarised, independent_log_likelihood, schedule
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import run_chain


@section
class Config:
    num_betas: PositiveInt = 10000
    """Inverse temperatures of each run; a step of the sampler at each."""
    num_chains: PositiveInt = 100
    """Chains of each run."""
    burn_in: PositiveInt = 10000
    """Steps of the replayed chains before the reverse run."""
    split: str = "test"
    """The split to score in addition to train: ``val`` to choose settings, ``test`` to report."""

    def check(self, params: Params) -> None:
        if plugin_name(params.sampler) not in ("gibbs_with_gradients", "dmala"):
            raise Mismatch(
                "evaluation.annealed_likelihood",
                f"needs a sampler of binary states, not {plugin_name(params.sampler)}",
                "set sampler.name: dmala, or leave this suite out",
            )
        if getattr(params.sampler, "categories", False):
            raise Mismatch("evaluation.annealed_likelihood", "is for binary variables")
        if params.sampler.temperature != 1:
            raise Mismatch(
                "evaluation.annealed_likelihood",
                f"is that of exp(-E), and sampler.temperature is {params.sampler.temperature:g}",
                "set sampler.temperature: 1.0, or leave this suite out",
            )
        if params.objective.conditional:
            raise Mismatch(
                "evaluation.annealed_likelihood", "is that of p(x); leave it out for E(x, y)"
            )
        if not 2 <= self.num_chains <= params.replay.capacity:
            raise Mismatch(
                "evaluation.annealed_likelihood.num_chains",
                "needs at least 2, for an interval, and no more than replay.capacity ="
                f" {params.replay.capacity}",
            )


def check(config: Config, needs: Needs) -> None:
    needs.probabilities()
    needs.split("train")
    needs.split(config.split)


def evaluate(config: Config, subject: Subject) -> Report:
    model, betas = subject.model, schedule(config.num_betas)
    data = {
        name: binarised(shards.read_split(subject.data, name)[0], name)
        for name in ("train", config.split)
    }
    mean = data["train"].mean(dim=0).clamp(0.01, 0.99)
    with frozen(model.energy):
        kernel = annealing.with_single_changes(model.kernel())
        halfway, _ = run_chain(
            kernel,
            model.energy,
            model.chains[: config.num_chains],
            config.burn_in // 2,
            stream(0, "annealed/burn_in"),
        )
        draws, chains = run_chain(
            kernel,
            model.energy,
            halfway,
            config.burn_in - config.burn_in // 2,
            stream(0, "annealed/burn_in/rest"),
        )
        parts = (model.energy, kernel, mean.logit(), betas)
        estimates = {
            "ais": annealing.forward(*parts, config.num_chains, stream(0, "annealed/forward")),
            "reverse_ais": annealing.reverse(*parts, draws, stream(0, "annealed/reverse")),
        }
    estimates["worst"] = max(estimates.values(), key=lambda e: e.log_z)
    energies = {name: model.energies(x).double().mean().item() for name, x in data.items()}
    metrics: dict[str, Any] = {
        name: {"log_z": e.log_z, **{split: -f - e.log_z for split, f in energies.items()}}
        for name, e in estimates.items()
    }
    for name in ("ais", "reverse_ais"):
        e = estimates[name]
        metrics[name] |= defined({"low": e.low, "high": e.high, "ess": e.ess})
    low, high = estimates["worst"].likelihoods(energies[config.split])
    metrics["worst"] |= defined({f"{config.split}_low": low, f"{config.split}_high": high})
    scored = data[config.split].flatten(1)
    metrics |= {
        "gap": estimates["reverse_ais"].log_z - estimates["ais"].log_z,
        "acceptance": chains.acceptance_rate.item(),
        "still_sinks": (model.energies(halfway) - model.energies(draws)).mean().item(),
        "independent_pixels": independent_log_likelihood(scored, mean.flatten()),
        "uniform": -mean.numel() * torch.log(torch.tensor(2.0)).item(),
    }
    rows = [{"log Z by": name, **metrics[name]} for name in estimates]
    report = Report(metrics, {"log_z": rows}, {})
    if len(subject.data.shape) == 3:
        title = f"Replayed chains after {config.burn_in} more steps"
        report.figures["chains.png"] = figures.image_grid(draws[:100].numpy(), 10, title)
    return report
