"""A density in the plane that is known exactly, against what a model makes of it (Kumar et al. 2019, Figure 2 and section 4.1).

Samples are judged by the modes that they hit, the share of good ones (within 4 standard deviations of a centre) and how evenly they
fall to the modes. The energy is judged as a density, ``p_E = exp(-E / T) / Z`` with Z summed over a grid, by KL(p || p_E) there.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp

from ebm_dist import figures, latent
from ebm_dist.config import Count, Mismatch, Params, Positive, module_of, section
from ebm_dist.evaluation import Report, Subject
from ebm_dist.model import TrainedModel
from ebm_dist.rng import numpy_stream

_GOOD = 4.0  # standard deviations
_SHOWN = 5000  # at most

Array = npt.NDArray[np.float64]


@section
class Config:
    num_samples: Count = 10000
    """Samples of each kind."""
    num_steps: Count = 20
    """Steps of the chains in latent space."""
    grid: Count = 1000
    """Points a side of the grid."""
    extent: Positive = 2.0
    """The grid covers the square from minus this to plus this."""
    temperatures: tuple[Positive, ...] = (1.0, 0.1, 0.01)
    """The energy as a density at each."""

    def check(self, params: Params) -> None:
        if not hasattr(module_of(params.dataset), "density"):
            raise Mismatch("evaluation.density", "needs a data set whose density is known; use toy2d")


def evaluate(config: Config, subject: Subject) -> Report:
    model = subject.model
    truth = module_of(model.params.dataset).density(model.params.dataset)
    num_modes = int(truth.mode.max()) + 1
    kinds = {
        "generator": latent.draw(model, config.num_samples, "density"),
        "generator, chains": latent.draw(model, config.num_samples, "density", num_steps=config.num_steps),
        "generator, chains with prior": latent.draw(
            model, config.num_samples, "density", num_steps=config.num_steps, with_prior=True
        ),
    }
    rows: list[dict[str, Any]] = []
    for name, drawn in kinds.items():
        rows.append({"samples": name, **quality(truth, drawn.x.double().numpy(), num_modes)})
        rows[-1] |= {"acceptance_rate": drawn.acceptance_rate, "squared_norm": drawn.squared_norm}
    real = truth.draw(config.num_samples, numpy_stream(0, "density/real"))
    rows.append({"samples": "the density itself", **quality(truth, real, num_modes)})

    points = _grid(config)
    log_p, energy = truth.log_prob(points), _energies(model, points)
    kl = {f"temperature_{t:g}".replace(".", "_"): grid_kl(log_p, -energy / t) for t in config.temperatures}
    generator, chains, with_prior, floor = ({k: v for k, v in row.items() if k != "samples"} for row in rows)
    metrics = {"num_modes": num_modes, **generator, "chains": chains, "chains_with_prior": with_prior, "real": floor}
    metrics["energy_kl"] = kl | {"uniform": grid_kl(log_p, np.zeros_like(log_p))}
    shown = {
        "data": real,
        "generator": kinds["generator"].x.numpy(),
        "chains in latent space": kinds["generator, chains"].x.numpy(),
    }
    best = config.temperatures[int(np.argmin(list(kl.values())))]
    field = (-energy / best).reshape(config.grid, config.grid)
    title = f"{model.params.dataset.density}: {min(_SHOWN, config.num_samples):,} samples each, and exp(-E / {best:g}) / Z"
    picture = figures.planes({name: x[:_SHOWN] for name, x in shown.items()}, field, config.extent, title)
    return Report(metrics, {"samples": rows}, {"density.png": picture})


def quality(truth: Any, x: Array, num_modes: int) -> dict[str, float]:
    """``modes``: hit by a good sample; ``quality``: share of good ones; ``kl``: of the modes' shares, by nearest centre, to even
    ones."""
    mode, distance = truth.nearest(x)
    shares = np.bincount(mode, minlength=num_modes) / len(x)
    present = shares[shares > 0]
    return {
        "modes": float(len(np.unique(mode[distance < _GOOD]))),
        "quality": float((distance < _GOOD).mean()),
        "kl": float((present * np.log(present * num_modes)).sum()),
    }


def grid_kl(log_p: Array, log_q: Array) -> float:
    """KL(p || q) in nats over a grid of equal cells, on which both are made to sum to 1."""
    log_p, log_q = (values - logsumexp(values) for values in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def _grid(config: Config) -> Array:
    width = 2 * config.extent / config.grid
    side = -config.extent + width * (np.arange(config.grid) + 0.5)
    return np.stack(np.meshgrid(side, side, indexing="xy"), axis=-1).reshape(-1, 2)


@torch.no_grad()
def _energies(model: TrainedModel, points: Array) -> Array:
    x = torch.from_numpy(points).float()
    return torch.cat([model.energy(part) for part in x.split(20000)]).double().numpy()
