"""Compare objectives in the plane at equal compute: ours, and the losses of TorchEBM and ebmkit.

    pip install -c constraints.txt -e '.[benchmarks]'
    python -m benchmarks.objectives --seconds 60

All train the same network on the same samples for the same CPU seconds of one thread, with the same
optimizer, batch size and moving average. First each candidate of an objective's settings is trained
for a sixth of the time with a seed of its own; the lowest mean negative log-likelihood of the
validation split chooses, with Z by importance sampling from a histogram of the training data. Then
the chosen settings are trained with each seed, and the same likelihood chooses one of six points of
the training. The figure is KL(p || exp(-E) / Z) there over the grid of the recipes, from which
nothing is chosen; the error of the learnt log Z where an objective learns it; and the CPU seconds
until KL is below 0.01. Chance is a uniform density over the grid. Rows are written as they come,
and a call goes on where an earlier one stopped. Writes reports/benchmarks/objectives.json.
"""

import argparse
import base64
import importlib.util
import itertools
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from benchmarks import circumstances, steps_within
from benchmarks.langevin import torchebm_model
from ebm_dist import config
from ebm_dist.config import Params
from ebm_dist.data import shards
from ebm_dist.datasets import toy2d
from ebm_dist.energies import averages_of
from ebm_dist.errors import DivergedError
from ebm_dist.evaluation.density import grid_kl
from ebm_dist.files import read_json, write_json
from ebm_dist.generators import histogram as noise_of
from ebm_dist.metrics.importance import importance
from ebm_dist.rng import stream
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm

DENSITIES: dict[str, dict[str, Any]] = {
    "8gaussians": {"density": "8gaussians", "scale": 2.0, "sd": 0.354},
    "checkerboard": {"density": "checkerboard"},
    "spirals": {"density": "spirals"},
    "25gaussians": {"density": "25gaussians", "scale": 1.5, "sd": 0.1},
}
FREQUENCIES = {"8gaussians": 1.0, "checkerboard": 4.0, "spirals": 2.0, "25gaussians": 2.0}
_NUM_TRAIN, _SIDE, _EXTENT = 1_000_000, 400, 5.0
_TIMED, _BRIEFLY = 120, 40  # steps timed to decide how many fit
_TRIES, _LEEWAY = 3, 0.4  # of a row, and of its seconds
_GOOD_KL = 0.01
_TILE = 50  # side of the pictures
_POINTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the budget at which KL is measured
_CHOICE, _CHOICE_SEED = 1 / 6, 1000
_NUM_DRAWS = 200_000  # of the importance sampling


class Ours(NamedTuple):
    """An objective of ebm-dist: section ``objective``, learning rate, and more of the settings."""

    objective: dict[str, Any]
    lr: float
    more: dict[str, dict[str, Any]] = {}
    """values of other sections"""


class Theirs(NamedTuple):
    """A loss of another library, and its learning rate."""

    loss: str
    options: dict[str, Any]
    lr: float


def noise(num_cells: int, box_share: float) -> dict[str, Any]:
    """Return the settings of a histogram."""
    return {"name": "histogram", "num_cells": num_cells, "box_share": box_share}


def ours() -> dict[str, list[Ours]]:
    """Return the candidates of our objectives."""
    histograms = [noise(50, 0.1), noise(50, 0.5)]
    matching = {"name": "energy_matching", "num_langevin": 15}
    gaussian, flow = {"name": "gaussian"}, {"name": "flow", "num_couplings": 8, "hidden": [64]}
    nce, levels = {"name": "noise_contrastive"}, [0.0, 0.03, 0.1, 0.3, 1.0]
    chains = {"sampler": {"name": "mala", "step_size": 0.05, "num_steps": 10}}
    recovery = {"name": "recovery_likelihood", "sigmas": [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]}
    inner = {"sampler": {"name": "mala", "step_size": 0.3, "num_steps": 15}}
    return {
        "NCE, histogram": [
            Ours(nce | {"generator": near, "pretraining": 0}, lr)
            for near in histograms
            for lr in (3e-3, 8e-3)
        ],
        "NCE, Gaussian": [
            Ours(nce | {"generator": gaussian, "pretraining": 300}, lr) for lr in (3e-3, 8e-3)
        ],
        "flow contrastive estimation": [
            Ours(
                nce
                | {"generator": flow, "pretraining": 400, "noise_learns": "value", "max_turn": 1},
                lr,
            )
            for lr in (3e-3, 8e-3)
        ],
        "level classification": [
            Ours(
                {"name": "level_classification", "generator": near, "sigmas": levels},
                lr,
                {"energy": {"heads": True}},
            )
            for near in histograms
            for lr in (3e-3, 8e-3)
        ],
        "energy discrepancy": [
            Ours({"name": "energy_discrepancy", "sigma": sigma}, lr)
            for sigma in (0.25, 0.5)
            for lr in (3e-3, 8e-3)
        ],
        "energy matching": [
            Ours(matching | {"epsilon": epsilon, "warm_up": warm_up}, 8e-3)
            for epsilon in (0.15, 0.8)
            for warm_up in (0.5, 0.9)
        ],
        "denoising score matching": [
            Ours({"name": "score_matching", "sigmas": [sigma]}, lr)
            for sigma in (0.05, 0.1)
            for lr in (3e-3, 8e-3)
        ],
        "exact score matching": [
            Ours({"name": "score_matching", "criterion": "exact"}, lr) for lr in (1e-3, 3e-3)
        ],
        "recovery likelihood": [Ours(recovery, lr, inner) for lr in (1e-3, 3e-3)],
        "persistent CD, MALA": [
            Ours({"name": "contrastive_divergence"}, lr, chains) for lr in (3e-3, 8e-3)
        ],
    }


def theirs() -> dict[str, list[Theirs]]:
    """Return the candidates of the losses of the peers that are installed."""
    sigmas, found = (0.05, 0.1), dict[str, list[Theirs]]()
    if importlib.util.find_spec("ebm"):
        found |= {
            "ebmkit NCE": [Theirs("ebmkit/NCE", {}, lr) for lr in (3e-3, 8e-3)],
            "ebmkit energy discrepancy": [
                Theirs("ebmkit/ED", {"sigma": sigma}, lr)
                for sigma in (0.25, 0.5)
                for lr in (3e-3, 8e-3)
            ],
            "ebmkit denoising score matching": [
                Theirs("ebmkit/DSM", {"sigma": sigma}, lr)
                for sigma in sigmas
                for lr in (3e-3, 8e-3)
            ],
        }
    if importlib.util.find_spec("torchebm"):
        found |= {
            "TorchEBM denoising score matching": [
                Theirs("TorchEBM/DSM", {"noise_scale": sigma}, lr)
                for sigma in sigmas
                for lr in (3e-3, 8e-3)
            ],
            "TorchEBM sliced score matching": [
                Theirs("TorchEBM/SSM", {}, lr) for lr in (1e-3, 3e-3)
            ],
        }
    return found


def loss_of(way: Theirs, network: nn.Module) -> tuple[Callable[[Tensor], Tensor], list[Any]]:
    """Return the loss of a batch, and its own parameters."""
    library, name = way.loss.split("/")
    if library == "ebmkit":
        from ebm import losses as kit

        loss = {
            "NCE": kit.NoiseContrastiveEstimation,
            "ED": kit.EnergyDiscrepancy,
            "DSM": kit.DenoisingScoreMatching,
        }[name](**way.options)
        return lambda x: loss(network, x).loss, list(loss.parameters())
    from torchebm.losses import score_matching as torchebm

    kind = {"DSM": torchebm.DenoisingScoreMatching, "SSM": torchebm.SlicedScoreMatching}[name]
    return kind(torchebm_model(network), **way.options), []


def settings(density: str, way: Ours, seed: int, num_steps: int) -> Params:
    """Return the parameters of a training."""
    values: dict[str, Any] = {
        "seed": seed,
        "dataset": {"name": "toy2d", **DENSITIES[density], "num_train": _NUM_TRAIN},
        "comparison_datasets": {},
        "energy": {
            "name": "mlp",
            "hidden": [128, 128, 128],
            "num_frequencies": 32,
            "frequency": FREQUENCIES[density],
            "confinement": 1.0,
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
    for section, more in way.more.items():
        values[section] = values[section] | more
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
    loss, more = loss_of(way, network)
    own = torch.optim.Adam(more, lr=way.lr) if more else None

    def run(count: int) -> None:
        for _ in range(count):
            parameters = list(network.parameters())
            value = loss(training.batch(0).x)
            gradients = torch.autograd.grad(
                value, [*parameters, *more], allow_unused=True, materialize_grads=True
            )
            for parameter, gradient in zip(more, gradients[len(parameters) :], strict=True):
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
def energies(network: nn.Module, points: Tensor) -> np.ndarray:
    """Return the energies of the points of the grid."""
    return torch.cat([network(part) for part in points.split(10000)]).double().numpy()


def tile(log_p: np.ndarray, highest: float) -> str:
    """Return a small picture of a log density over the grid, for :func:`picture_of`.

    Grey levels are the square root of the density in units of ``highest``.
    """
    p = np.exp(log_p - logsumexp(log_p)).reshape(_SIDE, _SIDE)
    n = _SIDE // _TILE
    small = p.reshape(_TILE, n, _TILE, n).mean(axis=(1, 3))
    grey = (255 * np.sqrt(small / highest).clip(max=1)).round().astype(np.uint8)
    return base64.b64encode(zlib.compress(grey.tobytes(), 9)).decode()


def picture_of(tile: str) -> np.ndarray:
    """Return grey levels ``(n, n)``; x grows along the first axis, y along the second."""
    return np.frombuffer(zlib.decompress(base64.b64decode(tile)), np.uint8).reshape(_TILE, _TILE)


def begin(
    density: str,
    index: shards.Index,
    way: Ours | Theirs,
    seed: int,
    budget: float,
    timed: int = _TIMED,
) -> Any:
    """Return the training of as many steps as take ``budget`` CPU seconds, and their number."""
    start = our_steps if isinstance(way, Ours) else their_steps
    first = way.objective.get("pretraining", 0) if isinstance(way, Ours) else 0

    def seconds_of(steps: int) -> float:
        trial = start(density, index, way, seed, steps)  # type: ignore[arg-type]
        began = time.process_time()
        trial.run(steps)
        return time.process_time() - began

    num_steps = max(len(_POINTS), steps_within(budget, seconds_of, timed, first))
    return start(density, index, way, seed, num_steps), num_steps  # type: ignore[arg-type]


def choose(
    density: str, ways: Sequence[Ours | Theirs], index: shards.Index, budget: float
) -> list[dict[str, Any]]:
    """Return the candidates' settings and held-out log-likelihoods, the best first."""
    x, proposal = shards.read_split(index, "val")[0], histogram(index)
    found = []
    for number, way in enumerate(ways):
        try:
            training, num_steps = begin(
                density, index, way, _CHOICE_SEED, _CHOICE * budget, _BRIEFLY
            )
            training.run(num_steps)
            nll = held_out(training.average, x, proposal)
        except DivergedError:
            nll = math.inf
        found.append(
            {
                "candidate": number,
                "settings": way._asdict(),
                "nll": nll if math.isfinite(nll) else None,
            }
        )
    return sorted(found, key=lambda row: math.inf if row["nll"] is None else row["nll"])


def histogram(index: shards.Index) -> Any:
    """Return the proposal of the importance sampling: noise near the training data."""
    chosen = noise_of.Config(num_cells=64, box_share=0.3)
    proposal = noise_of.build(chosen, shape=index.shape)
    proposal.initialise(averages_of(shards.read_split(index, "train")[0]))
    return proposal


@torch.no_grad()
def held_out(network: nn.Module, x: Tensor, proposal: Any) -> float:
    """Return mean E(x) + log Z, with Z by importance sampling."""
    draws = torch.randn(_NUM_DRAWS, proposal.latent_size, generator=stream(0, "benchmark/proposal"))
    total = []
    for z in draws.split(20_000):
        noise, log_q = proposal.draw(z)
        total.append(-network(noise).double() - log_q.double())
    return float(network(x).double().mean()) + importance(torch.cat(total)).log_z


def row(
    density: str, name: str, way: Ours | Theirs, seed: int, index: shards.Index, budget: float
) -> dict[str, Any]:
    """Train for ``budget`` CPU seconds, and return the figures."""
    truth, points = toy2d.density(toy2d.Config(**DENSITIES[density])), grid()
    log_p, used, done = truth.log_prob(points.double().numpy()), 0.0, 0
    highest, pictures = float(np.exp(log_p - logsumexp(log_p)).max()), list[str]()
    x, proposal = shards.read_split(index, "val")[0], histogram(index)
    training, num_steps = begin(density, index, way, seed, budget)
    curve: list[dict[str, Any]] = []
    for share in _POINTS:
        began = time.process_time()
        try:
            training.run(round(share * num_steps) - done)
        except DivergedError:
            break
        used, done = used + time.process_time() - began, round(share * num_steps)
        log_q = -energies(training.average, points)
        kl = grid_kl(log_p, log_q) if np.isfinite(log_q).all() else math.inf
        exact = float(logsumexp(log_q)) + 2 * math.log(2 * _EXTENT / _SIDE)
        nll, learnt = held_out(training.average, x, proposal), training.log_z()
        if not math.isfinite(kl) or not math.isfinite(nll):
            break
        error = None if learnt is None else abs(learnt - exact)
        curve.append({"seconds": used, "nll": nll, "kl": kl, "log_z_error": error})
        pictures.append(tile(log_q, highest))
    best = min(curve, key=lambda point: float(point["nll"]), default={})
    picture = pictures[curve.index(best)] if curve and seed == 0 else None
    good = [point["seconds"] for point in curve if point["kl"] <= _GOOD_KL]
    return {
        "density": density,
        "objective": name,
        "seed": seed,
        "steps": done,
        "seconds": used,
        "kl": best.get("kl"),
        "kl_at_end": curve[-1]["kl"] if len(curve) == len(_POINTS) else None,
        "log_z_error": best.get("log_z_error"),
        "seconds_to_good": good[0] if good else None,
        "curve": curve,
        "chance": grid_kl(log_p, np.zeros_like(log_p)),
    } | ({"picture": picture, "truth": tile(log_p, highest)} if picture else {})


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
    content = circumstances("torchebm", "ebmkit") | {
        "seconds": args.seconds,
        "choices": {},
        "rows": [],
    }
    if args.out.exists():
        previous = read_json(args.out, "benchmark")
        content |= {key: previous[key] for key in ("choices", "rows")}
    have = {(r["density"], r["objective"], r["seed"]) for r in content["rows"]}
    ways: dict[str, Any] = {**ours(), **theirs()}
    with tempfile.TemporaryDirectory() as folder:
        for seed, density, name in itertools.product(range(args.seeds), DENSITIES, ways):
            place = f"{density}, {name}"
            if args.only not in place or (density, name, seed) in have:
                continue
            index = prepared(Path(folder) / density, density)
            if place not in content["choices"]:
                content["choices"][place] = choose(density, ways[name], index, args.seconds)
                print(place, [(c["candidate"], c["nll"]) for c in content["choices"][place]])
            way = ways[name][content["choices"][place][0]["candidate"]]
            for _ in range(_TRIES):
                found = row(density, name, way, seed, index, args.seconds)
                if found["kl"] is None or abs(found["seconds"] / args.seconds - 1) < _LEEWAY:
                    break  # else other work on the machine disturbed the timing of the steps
            content["rows"].append(found)
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
