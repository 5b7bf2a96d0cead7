"""Chains: whether the sampler mixes, by split R-hat and effective sample size (Vehtari et al. 2021).

Single pixels say little, and many never vary: what is followed is the energy and the leading principal components of the training
data. Chains from noise and chains continued from the replay buffer are each compared among themselves, and then with each other:
only if these agree do samples depend on the model alone and not on where a chain began. The labels of a conditional energy stay as
they are, so there only chains of the same class are compared.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebm_dist.chains.diagnostics import Floats, Trace, ess_bulk, ess_tail, rhat
from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.evaluation import Report, Subject
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain

_SEED = 0  # of the evaluation, the same for all models
_FEWEST_DRAWS = 8
_NUM_PATHS, _NUM_DOTS = 5, 2000


@section
class Config:
    num_chains: PositiveInt = 100
    """Chains from noise, and as many from the replay buffer."""
    num_draws: PositiveInt = 200
    """Draws of each chain; the first half is warm-up, and judged is the second."""
    thin: PositiveInt = 5
    """Steps of the sampler from one draw to the next."""
    num_components: PositiveInt = 5
    """Principal components of the training data to follow, beside the energy."""

    def check(self, params: Params) -> None:
        if self.num_draws < _FEWEST_DRAWS:
            raise Mismatch(
                "evaluation.chains.num_draws",
                f"at least {_FEWEST_DRAWS}, of which the second half is judged",
            )


class _Components(NamedTuple):
    """Directions in which the data vary most, each in units of its standard deviation."""

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
    """``(num_chains,)``; all zero where there are none"""


def evaluate(config: Config, subject: Subject) -> Report:
    model = subject.model
    train, _ = shards.read_split(subject.data, "train")
    components = _principal_components(train, config.num_components)
    n = min(config.num_chains, len(model.chains))
    start = noise((n, *model.card["shape"]), model.bounds, stream(_SEED, "chains/noise"))
    runs = {
        "noise": _run(
            config,
            subject,
            "noise",
            start,
            torch.arange(n) % max(1, model.card["num_classes"]),
            components,
        ),
        "replay": _run(config, subject, "replay", model.chains[:n], model.labels[:n], components),
    }
    names = ["energy", *(f"component {i + 1}" for i in range(config.num_components))]
    rows, metrics = list[dict[str, Any]](), dict[str, Any]()
    for name, parts in {
        **{name: [run] for name, run in runs.items()},
        "both": list(runs.values()),
    }.items():
        draws = np.concatenate([run.followed[:, config.num_draws // 2 :] for run in parts])
        classes = torch.cat([run.labels for run in parts]).numpy()
        groups = [draws[classes == y] for y in np.unique(classes)]
        found = {
            "rhat": np.max([rhat(group) for group in groups], axis=0),
            "ess_bulk": np.sum([ess_bulk(group) for group in groups], axis=0),
            "ess_tail": np.sum([ess_tail(group) for group in groups], axis=0),
        }
        rows += [
            {"chains": name, "of": of} | {k: float(v[i]) for k, v in found.items()}
            for i, of in enumerate(names)
        ]
        metrics[name] = {
            "rhat": float(found["rhat"].max()),
            "ess_bulk": float(found["ess_bulk"].min()),
            "ess_tail": float(found["ess_tail"].min()),
            "draws": draws.shape[0] * draws.shape[1],
        }
    for name, run in runs.items():
        report = run.trace.report(model.bounds)
        metrics[name] |= {
            key: getattr(report, key)
            for key in ("acceptance_rate", "num_not_finite", "moved", "at_bounds")
        }
    return Report(
        metrics,
        {"mixing": rows},
        _pictures(config, subject, runs, components.of(train[:_NUM_DOTS])),
    )


def _principal_components(x: Tensor, num: int) -> _Components:
    flat = x.flatten(1)
    mean = flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(((flat - mean).T @ (flat - mean) / len(flat)).double())
    largest = vectors[:, -num:].flip(1) / values[-num:].flip(0).sqrt()
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
    with frozen(model.energy):
        target = given(model.energy, labels if is_conditional(model.params) else None)
        run_chain(
            model.kernel(),
            target,
            start,
            config.thin * config.num_draws,
            stream(_SEED, f"chains/{name}"),
            observe=trace,
        )
    along = torch.stack([components.of(x) for x in trace.positions], dim=1)
    return _Run(
        trace,
        torch.cat([torch.stack(trace.energies, dim=1)[:, :, None], along], dim=2).double().numpy(),
        labels,
    )


@torch.no_grad()
def _pictures(
    config: Config, subject: Subject, runs: dict[str, _Run], dots: Tensor
) -> dict[str, bytes]:
    x, y = shards.read_split(subject.data, "val")
    data = given(subject.model.energy, y if is_conditional(subject.model.params) else None)(x)
    steps = [config.thin * (i + 1) for i in range(config.num_draws)]
    lines = {
        f"chains from {name}": (steps, *_band(run.followed[:, :, 0])) for name, run in runs.items()
    }
    found = {
        "energy.png": figures.bands(
            lines
            | {
                "validation data": (
                    [0, steps[-1]],
                    *(np.repeat(v, 2) for v in _band(data.numpy()[:, None])),
                )
            },
            "step of the chain",
            "energy: median and 90 % of the chains",
            "Energy along the chains",
        )
    }
    if config.num_components > 1:
        found["paths.png"] = figures.paths(
            {f"chain from {name}": run.followed[:_NUM_PATHS, :, 1:3] for name, run in runs.items()},
            dots[:, :2].numpy(),
            ("first principal component (sd of the data)", "second principal component"),
            f"{_NUM_PATHS} chains of each kind over the training data",
        )
    return found


def _band(energies: Floats) -> Floats:
    """Median, 5 % and 95 % over the first axis."""
    return np.quantile(energies, [0.5, 0.05, 0.95], axis=0)
