"""Comparison of a model with a known density in the plane (Kumar et al. 2019, section 4.1).

Samples are scored by the modes that they hit, by the share of good samples (within 4 standard
deviations of a centre) and by how evenly they cover the modes. The energy is scored as a density,
``p_E = exp(-E / T) / Z`` with Z summed over a grid, by KL(p || p_E) on that grid. A model that
learns log Z (Gao et al. 2020, section 5.1) is compared with log Z of the grid, and its noise with
the density.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from torch import Tensor

from ebm_dist.config import (
    Mismatch,
    NonNegativeInt,
    Params,
    Positive,
    PositiveInt,
    module_of,
    section,
)
from ebm_dist.data import shards
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.generators import FlowModel
from ebm_dist.metrics.importance import importance
from ebm_dist.models import latent
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream

_GOOD = 4.0  # standard deviations
_SHOWN = 5000  # at most

Array = npt.NDArray[np.float64]


@section
class Config:
    num_samples: PositiveInt = 10000
    """Samples of each kind."""
    num_steps: NonNegativeInt = 20
    """Steps of the chains in a generator's latent space; 0 for none."""
    grid: PositiveInt = 1000
    """Points per side of the grid."""
    extent: Positive = 2.0
    """Half the side of the square that the grid covers."""
    temperatures: tuple[Positive, ...] = (1.0, 0.1, 0.01)
    """Temperatures at which the energy is compared as a density."""

    def check(self, params: Params) -> None:
        if not hasattr(module_of(_whole(params)), "density"):
            raise Mismatch("evaluation.density", "needs a data set with a known density; use toy2d")


def _whole(params: Params) -> Any:
    """Return the settings of the data set, or of the one of which a few labels are kept."""
    return getattr(params.dataset, "of", params.dataset)


def check(config: Config, needs: Needs) -> None:
    if config.num_steps:
        needs.generator()
    needs.split("test")


def evaluate(config: Config, subject: Subject) -> Report:
    model = subject.model
    dataset = _whole(model.params)
    truth = module_of(dataset).density(dataset)
    num_modes = int(truth.mode.max()) + 1
    kinds = {}
    if "generator" in model.other_players:
        kinds["generator"] = latent.draw(model, config.num_samples, "density")
    if config.num_steps:
        for name, with_prior in (("chains", False), ("chains with prior", True)):
            drawn = latent.draw(
                model,
                config.num_samples,
                "density",
                num_steps=config.num_steps,
                with_prior=with_prior,
            )
            kinds[f"generator, {name}"] = drawn
    rows: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        check_finite(kind.x, f"evaluation.density: samples of the {name}")
        rows.append({"samples": name, **quality(truth, kind.x.double().numpy(), num_modes)})
        rows[-1] |= {"acceptance_rate": kind.acceptance_rate, "squared_norm": kind.squared_norm}
    real, _ = truth.draw(config.num_samples, numpy_stream(0, "density/real"))
    rows.append({"samples": "the density itself", **quality(truth, real, num_modes)})

    points = _grid(config)
    log_p, energy = truth.log_prob(points), _on_grid(model.energy, points)
    check_finite(energy, "evaluation.density: energies on the grid")
    kl = {
        f"temperature_{t:g}".replace(".", "_"): grid_kl(log_p, -energy / t)
        for t in config.temperatures
    }
    *by_kind, floor = ({k: v for k, v in row.items() if k != "samples"} for row in rows)
    metrics: dict[str, Any] = {"num_modes": num_modes, "real": floor}
    if by_kind:
        chains = zip(("chains", "chains_with_prior"), by_kind[1:], strict=False)
        metrics |= {**by_kind[0], **dict(chains)}
    metrics["energy_kl"] = kl | {"uniform": grid_kl(log_p, np.zeros_like(log_p))}
    best = config.temperatures[int(np.argmin(list(kl.values())))]
    fields = {f"exp(-E / {best:g}) / Z" if best != 1 else "exp(-E) / Z": -energy / best}
    if "log_z" in model.other_players:
        partition, log_q = _partition(config, subject, truth, energy, log_p, points)
        metrics |= partition
        fields["density of the noise"] = log_q
    shown = {"data": real}
    if by_kind:
        name = "noise" if "log_z" in model.other_players else "generator"
        shown[name] = kinds["generator"].x.numpy()
    if config.num_steps:
        shown["chains in latent space"] = kinds["generator, chains"].x.numpy()
    count = min(_SHOWN, config.num_samples)
    title = f"{dataset.density}: {count:,} samples each, and densities"
    maps = {name: field.reshape(config.grid, config.grid) for name, field in fields.items()}
    picture = figures.planes(
        {name: x[:_SHOWN] for name, x in shown.items()}, maps, config.extent, title
    )
    return Report(metrics, {"samples": rows}, {"density.png": picture})


@torch.no_grad()
def _partition(
    config: Config, subject: Subject, truth: Any, energy: Array, log_p: Array, points: Array
) -> tuple[dict[str, Any], Array]:
    """Return metrics of the learnt log Z and of the noise, and log q of the noise on the grid.

    Likelihoods are in nats.
    """
    model, flow = subject.model, cast(FlowModel, subject.model.generator)
    cell = np.log((2 * config.extent / config.grid) ** 2)
    learnt = float(cast(Any, model.other_players["log_z"])().flatten()[0])  # of the first level
    exact = float(logsumexp(-energy) + cell)
    x = shards.read_split(subject.data, "test")[0][: config.num_samples]
    z = torch.randn(config.num_samples, flow.latent_size, generator=stream(0, "density/noise"))
    noise, log_q_noise = (part.double() for part in flow.draw(z))
    energy_data, energy_noise = (model.energies(part.float()).double() for part in (x, noise))
    log_true, log_q_data = truth.log_prob(x.double().numpy()), flow.log_prob(x).double()
    by_noise = importance(-energy_noise - log_q_noise)
    log_q = _on_grid(flow.log_prob, points)
    accuracy = (
        (-energy_data - learnt > log_q_data).double().mean()
        + (-energy_noise - learnt < log_q_noise).double().mean()
    ) / 2
    metrics = {
        "log_z": {
            "learnt": learnt,
            "grid": exact,
            "error": abs(learnt - exact),
            "importance": by_noise.log_z,
            "importance_ess": by_noise.ess,
        },
        "nll": {
            "truth": float(-log_true.mean()),
            "by_grid": float(energy_data.mean()) + exact,
            "by_learnt": float(energy_data.mean()) + learnt,
            "noise": float(-log_q_data.mean()),
        },
        "log_density_mse": float(((-energy_data.numpy() - exact - log_true) ** 2).mean()),
        "discriminator_accuracy": float(accuracy),
        "noise": {
            "kl": grid_kl(log_p, log_q),
            "js": grid_js(log_p, log_q),
            "integral": float(np.exp(logsumexp(log_q) + cell)),
        },
    }
    return metrics, log_q


def quality(truth: Any, x: Array, num_modes: int) -> dict[str, float]:
    """Return ``modes``, ``quality`` and ``kl`` of samples ``x (n, 2)``.

    ``modes`` counts the modes that a good sample hits, ``quality`` is the share of good samples.
    ``kl`` is KL(shares || uniform) in nats; each sample counts for its nearest centre.
    """
    mode, distance = truth.nearest(x)
    shares = np.bincount(mode, minlength=num_modes) / len(x)
    present = shares[shares > 0]
    return {
        "modes": float(len(np.unique(mode[distance < _GOOD]))),
        "quality": float((distance < _GOOD).mean()),
        "kl": float((present * np.log(present * num_modes)).sum()),
    }


def grid_kl(log_p: Array, log_q: Array) -> float:
    """Return KL(p || q) in nats over a grid of equal cells; both are normalised to sum to 1."""
    log_p, log_q = (values - logsumexp(values) for values in (log_p, log_q))
    support = log_p > -np.inf
    return float((np.exp(log_p[support]) * (log_p[support] - log_q[support])).sum())


def grid_js(log_p: Array, log_q: Array) -> float:
    """Return the Jensen-Shannon divergence on the grid, between 0 and log 2."""
    log_p, log_q = (values - logsumexp(values) for values in (log_p, log_q))
    middle = np.logaddexp(log_p, log_q) - np.log(2)
    return (grid_kl(log_p, middle) + grid_kl(log_q, middle)) / 2


def _grid(config: Config) -> Array:
    width = 2 * config.extent / config.grid
    side = -config.extent + width * (np.arange(config.grid) + 0.5)
    return np.stack(np.meshgrid(side, side, indexing="xy"), axis=-1).reshape(-1, 2)


@torch.no_grad()
def _on_grid(function: Callable[[Tensor], Tensor], points: Array) -> Array:
    x = torch.from_numpy(points).float()
    return torch.cat([function(part) for part in x.split(20000)]).double().numpy()
