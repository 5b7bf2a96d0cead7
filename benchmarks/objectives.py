"""Compare objectives in the plane at equal compute: ours, and the losses of TorchEBM and ebmkit.

    pip install -c constraints.txt -e '.[benchmarks]'
    python -m benchmarks.objectives --seconds 60

All train the same network on the same samples for the same CPU seconds of one thread, with the same
optimizer, batch size and moving average; each objective has its own learning rate (SETTINGS). The
figure is KL(p || exp(-E) / Z) over the grid of the recipes, from which no setting was chosen; the
error of the learnt log Z where an objective learns it; and the CPU seconds until KL is below 0.01.
Chance is a uniform density over the grid. Rows are written as they come, and a call goes on where
an earlier one stopped. Writes reports/benchmarks/objectives.json.
"""

import argparse
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from benchmarks import circumstances
from ebm_dist import config
from ebm_dist.config import Params
from ebm_dist.data import shards
from ebm_dist.datasets import toy2d
from ebm_dist.evaluation.density import grid_kl
from ebm_dist.files import read_json, write_json
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm

DENSITIES: dict[str, dict[str, Any]] = {
    "8gaussians": {"density": "8gaussians", "scale": 2.0, "sd": 0.354},
    "checkerboard": {"density": "checkerboard"},
    "spirals": {"density": "spirals"},
}
FREQUENCIES = {"8gaussians": 1.0, "checkerboard": 4.0, "spirals": 2.0}
_NUM_TRAIN, _SIDE, _EXTENT = 1_000_000, 400, 5.0
_TIMED = 60  # steps whose time decides how many fit
_GOOD_KL = 0.01
_POINTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the budget at which KL is measured


class Ours(NamedTuple):
    """An objective of ebm-dist: section ``objective``, learning rate, and more of the network."""

    objective: dict[str, Any]
    lr: float
    energy: dict[str, Any] = {}


def noise(num_cells: int, box_share: float) -> dict[str, Any]:
    """Return the settings of a histogram."""
    return {"name": "histogram", "num_cells": num_cells, "box_share": box_share}


def ours(density: str) -> dict[str, Ours]:
    """Return our objectives for a density."""
    box = 0.5 if density == "checkerboard" else 0.1
    near = noise(50, box)
    levels = [0.0, 0.03, 0.1, 0.3, 1.0]
    return {
        "NCE, histogram": Ours(
            {"name": "noise_contrastive", "generator": near, "pretraining": 0}, 8e-3
        ),
        "NCE, Gaussian": Ours(
            {"name": "noise_contrastive", "generator": {"name": "gaussian"}, "pretraining": 300},
            3e-3,
        ),
        "level classification": Ours(
            {"name": "level_classification", "generator": near, "sigmas": levels},
            8e-3,
            {"heads": True},
        ),
        "energy discrepancy": Ours({"name": "energy_discrepancy", "sigma": 0.25}, 3e-3),
        "energy matching": Ours({"name": "energy_matching"}, 3e-3),
        "denoising score matching": Ours({"name": "score_matching", "sigmas": [0.05]}, 3e-3),
        "exact score matching": Ours({"name": "score_matching", "criterion": "exact"}, 1e-3),
    }


class Theirs(NamedTuple):
    """A loss of another library, and its learning rate."""

    loss_of: Callable[[nn.Module], Callable[[Tensor], Tensor]]
    """from a network to a loss of a batch"""
    lr: float
    parameters: tuple[nn.Parameter, ...] = ()
    """of the loss, which learn too"""


def theirs() -> dict[str, Theirs]:
    """Return the losses of the peers that are installed."""
    found: dict[str, Theirs] = {}
    if importlib.util.find_spec("ebm"):
        from ebm import losses as kit

        def of_kit(loss: nn.Module, lr: float) -> Theirs:
            return Theirs(
                lambda network: lambda x: loss(network, x).loss, lr, tuple(loss.parameters())
            )

        found |= {
            "ebmkit NCE": of_kit(kit.NoiseContrastiveEstimation(), 3e-3),
            "ebmkit energy discrepancy": of_kit(kit.EnergyDiscrepancy(sigma=0.25), 3e-3),
            "ebmkit denoising score matching": of_kit(kit.DenoisingScoreMatching(0.05), 3e-3),
        }
    if importlib.util.find_spec("torchebm"):
        from torchebm.core import BaseModel
        from torchebm.losses.score_matching import DenoisingScoreMatching, SlicedScoreMatching

        class Wrapped(BaseModel):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor, **_: Any) -> Tensor:
                return self.network(x)

        found |= {
            "TorchEBM denoising score matching": Theirs(
                lambda network: DenoisingScoreMatching(Wrapped(network), noise_scale=0.05), 3e-3
            ),
            "TorchEBM sliced score matching": Theirs(
                lambda network: SlicedScoreMatching(Wrapped(network)), 1e-3
            ),
        }
    return found


def settings(density: str, way: Ours, seed: int, num_steps: int) -> Params:
    """Return the parameters of a training."""
    values = {
        "seed": seed,
        "dataset": {"name": "toy2d", **DENSITIES[density], "num_train": _NUM_TRAIN},
        "comparison_datasets": {},
        "energy": {
            "name": "mlp",
            "hidden": [128, 128, 128],
            "num_frequencies": 32,
            "frequency": FREQUENCIES[density],
            "confinement": 1.0,
            **way.energy,
        },
        "sampler": {"name": "mala", "step_size": 0.01},
        "objective": way.objective,
        "replay": {"capacity": 500},
        "optimizer": {
            "lr": way.lr,
            "betas": [0.9, 0.99],
            "warmup": 0.02,
            "decay": 0.9,
            "ema_decay": 0.995,
        },
        "train": {"num_steps": num_steps, "batch_size": 500, "num_shards": 1, "max_energy": 1e8},
        "cluster": {"workers": 1},
    }
    return config.from_values(values, Path("benchmark"))


def build(params: Params, index: shards.Index) -> trainer.Trainer:
    """Build the trainer of the pipeline in this process."""
    return trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")


class Steps(NamedTuple):
    """A training that can be continued by steps, and its network of averages."""

    run: Callable[[int], None]
    average: nn.Module
    log_z: Callable[[], float | None]


def our_steps(density: str, index: shards.Index, way: Ours, seed: int, num_steps: int) -> Steps:
    """Return the training of one of our objectives."""
    training = build(settings(density, way, seed, num_steps), index)

    def run(count: int) -> None:
        for _ in range(count):
            training.advance()
            training.step += 1

    def log_z() -> float | None:
        if "log_z" not in training.averages:
            return None
        return float(training.averages["log_z"]().flatten()[0])

    return Steps(run, training.averages["energy"], log_z)


def their_steps(density: str, index: shards.Index, way: Theirs, seed: int, num_steps: int) -> Steps:
    """Return the training of a loss of another library, with our network, data and optimizer."""
    stand_in = Ours({"name": "energy_discrepancy"}, way.lr)  # its loss is not used
    training = build(settings(density, stand_in, seed, num_steps), index)
    network = training.objective.players["energy"]
    torch.manual_seed(seed)
    loss = way.loss_of(network)
    own = torch.optim.Adam(way.parameters, lr=way.lr) if way.parameters else None

    def run(count: int) -> None:
        for _ in range(count):
            parameters = list(network.parameters())
            value = loss(training.batch(0).x)
            gradients = torch.autograd.grad(
                value, [*parameters, *way.parameters], allow_unused=True, materialize_grads=True
            )
            for parameter, gradient in zip(
                way.parameters, gradients[len(parameters) :], strict=True
            ):
                parameter.grad = gradient
            if own:
                own.step()
            flat = [gradient.flatten() for gradient in gradients[: len(parameters)]]
            training.update("energy", torch.cat(flat))
            training.step += 1

    return Steps(run, training.averages["energy"], lambda: None)


def grid() -> Tensor:
    """Return the points ``(n, 2)`` at which densities are compared."""
    side = (torch.arange(_SIDE) + 0.5) / _SIDE * 2 * _EXTENT - _EXTENT
    return torch.cartesian_prod(side, side)


@torch.no_grad()
def fit(network: nn.Module, log_p: np.ndarray, points: Tensor) -> tuple[float, float]:
    """Return KL(p || exp(-E) / Z) over the grid, and log Z by the grid."""
    energy = torch.cat([network(part) for part in points.split(10000)]).double().numpy()
    if not np.isfinite(energy).all():
        return math.inf, math.nan
    return grid_kl(log_p, -energy), float(logsumexp(-energy)) + 2 * math.log(2 * _EXTENT / _SIDE)


def row(
    density: str, name: str, way: Ours | Theirs, seed: int, index: shards.Index, budget: float
) -> dict[str, Any]:
    """Train for ``budget`` CPU seconds, and return the figures."""
    start = our_steps if isinstance(way, Ours) else their_steps
    trial = start(density, index, way, seed, 10**6)  # type: ignore[arg-type]
    trial.run(_TIMED // 10)  # first steps are slower
    began = time.process_time()
    trial.run(_TIMED)
    per_step = (time.process_time() - began) / _TIMED
    num_steps = max(len(_POINTS), int(budget / per_step))
    training = start(density, index, way, seed, num_steps)  # type: ignore[arg-type]
    truth, points = toy2d.density(toy2d.Config(**DENSITIES[density])), grid()
    log_p, used, done = truth.log_prob(points.double().numpy()), 0.0, 0
    curve = []
    for share in _POINTS:
        began = time.process_time()
        training.run(round(share * num_steps) - done)
        used, done = used + time.process_time() - began, round(share * num_steps)
        kl, exact = fit(training.average, log_p, points)
        curve.append({"seconds": used, "kl": kl if math.isfinite(kl) else None})
        if not math.isfinite(kl):
            break
    learnt = training.log_z()
    good = [point["seconds"] for point in curve if (point["kl"] or math.inf) <= _GOOD_KL]
    return {
        "density": density,
        "objective": name,
        "seed": seed,
        "lr": way.lr,
        "steps": done,
        "seconds": used,
        "kl": curve[-1]["kl"],
        "log_z_error": None if learnt is None else abs(learnt - exact),
        "seconds_to_good": good[0] if good else None,
        "curve": curve,
        "chance": grid_kl(log_p, np.zeros_like(log_p)),
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of each training")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", default="", help="part of the name of an objective or density")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/objectives.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    previous = read_json(args.out, "benchmark")["rows"] if args.out.exists() else []
    content = circumstances("torchebm", "ebmkit") | {"seconds": args.seconds, "rows": previous}
    have = {(r["density"], r["objective"], r["seed"]) for r in previous}
    with tempfile.TemporaryDirectory() as folder:
        for density, seed in ((d, s) for s in range(args.seeds) for d in DENSITIES):
            index = prepared(Path(folder) / density, density)
            for name, way in {**ours(density), **theirs()}.items():
                key = (density, name, seed)
                if args.only not in f"{density} {name}" or key in have:
                    continue
                content["rows"].append(row(density, name, way, seed, index, args.seconds))
                write_json(args.out, content)
                last = content["rows"][-1]
                kl = "diverged" if last["kl"] is None else f"KL {last['kl']:.5f}"
                error = last["log_z_error"]
                print(
                    f"{density:13}{name:36}seed {seed}  {kl}"
                    + ("" if error is None else f", log Z within {error:.3f}")
                    + f"; {last['steps']} steps in {last['seconds']:.0f} s",
                    flush=True,
                )


def prepared(folder: Path, density: str) -> shards.Index:
    """Return the data of a density, written at the first call."""
    if not (folder / shards.INDEX).exists():
        chosen = toy2d.Config(**DENSITIES[density], num_train=_NUM_TRAIN)
        shards.write(folder, density, toy2d.load(chosen))
    return shards.read_index(folder)


if __name__ == "__main__":
    main()
