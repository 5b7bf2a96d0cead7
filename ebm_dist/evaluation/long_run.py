"""Chains far longer than in training (Nijkamp et al. 2020, section 4).

A short-run model draws images in the number of steps of its training and loses them when the chain
continues: energies fall below those of all data, and pixels saturate. The suite reports the last
look at which the median energy of the chains is within the middle 98 % of the energies of the
training data, for chains from test images and from noise. Chains of a conditional energy keep their
label.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.evaluation import Report, Subject, check_finite
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain

_SHOWN = 10
_RANGE = torch.tensor([0.01, 0.5, 0.99], dtype=torch.double)
_BAND = torch.tensor([0.05, 0.5, 0.95], dtype=torch.double)


@section
class Config:
    num_steps: PositiveInt = 10000
    """Steps of each chain."""
    num_chains: PositiveInt = 50
    """Chains from test images, and as many from noise."""
    looks_per_decade: PositiveInt = 3
    """Looks at the chains per decade of steps, spread evenly in the logarithm."""
    max_samples: PositiveInt = 10000
    """Training samples for the range of energies to compare with."""


def evaluate(config: Config, subject: Subject) -> Report:
    model = subject.model
    x, y = shards.read_split(subject.data, "test")
    train, train_labels = (
        part[: config.max_samples] for part in shards.read_split(subject.data, "train")
    )
    low, middle, high = _energies(subject, train, train_labels).quantile(_RANGE).tolist()
    x, y = x[: config.num_chains], y[: config.num_chains]
    starts = {"data": x, "noise": noise(tuple(x.shape), model.bounds, stream(0, "long_run/noise"))}
    metrics: dict[str, Any] = {
        "num_steps": config.num_steps,
        "num_chains": len(x),
        "train": {
            "p01": low,
            "median": middle,
            "p99": high,
            "at_bounds": _at_bounds(subject, train),
        },
    }
    rows, pictures, lines = list[dict[str, Any]](), dict[str, bytes](), dict[str, tuple[Any, ...]]()
    for name, start in starts.items():
        looks = walk(config, subject, start, y, name)
        look_rows = []
        for step, position in looks.items():
            quantiles = _energies(subject, position, y).quantile(_BAND).tolist()
            look_rows.append(
                {
                    "chains_from": name,
                    "step": step,
                    **dict(zip(("p05", "median", "p95"), quantiles, strict=True)),
                    "at_bounds": _at_bounds(subject, position),
                    "distance": (position - start).flatten(1).norm(dim=1).mean().item(),
                }
            )
        rows += look_rows
        within = [row["step"] for row in look_rows if low <= row["median"] <= high]
        metrics[name] = {
            "median_energy": look_rows[-1]["median"],
            "at_bounds": look_rows[-1]["at_bounds"],
            "is_within_data": float(low <= look_rows[-1]["median"] <= high),
            "last_step_within": float(max(within, default=0)),
        }
        lines[f"chains from {name}"] = tuple(
            np.array([row[column] for row in look_rows[1:]])
            for column in ("step", "median", "p05", "p95")
        )
        if x.ndim == 4:
            shown = torch.cat([position[:_SHOWN] for position in looks.values()])
            steps = ", ".join(f"{step:,}" for step in [*looks][:5])
            title = f"Chains from {name}. Rows: steps {steps} ... {config.num_steps:,}"
            pictures[f"{name}.png"] = figures.image_grid(shown.numpy(), min(_SHOWN, len(x)), title)
    lines["training data"] = (
        np.array([1, config.num_steps]),
        *(np.array([v, v]) for v in (middle, low, high)),
    )
    pictures["energy.png"] = figures.bands(
        lines,
        "Langevin steps",
        "energy: median and 90 % (data: 98 %)",
        "Chains far longer than in training",
        log_x=True,
    )
    return Report(metrics, {"long_run": rows}, pictures)


def walk(
    config: Config, subject: Subject, start: Tensor, y: Tensor, name: str
) -> dict[int, Tensor]:
    """Return the positions ``(n, *shape)`` of the chains at each look, by step, from the start.

    ``y (n,)`` are their labels. ``name`` addresses the random streams.
    """
    model, looks, done = subject.model, {0: start}, 0
    decades = torch.tensor(float(config.num_steps)).log10().item()
    count = round(decades * config.looks_per_decade)
    steps = (
        sorted({round(10 ** (decades * i / count)) for i in range(1, count + 1)})
        if count
        else [config.num_steps]
    )
    target = given(model.energy, y if is_conditional(model.params) else None)
    with frozen(model.energy):
        for step in steps:
            chain = stream(0, f"long_run/{name}", step=step)
            looks[step], _ = run_chain(model.kernel(), target, looks[done], step - done, chain)
            done = step
    return looks


@torch.no_grad()
def _energies(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    model = subject.model
    labels = y.split(1000) if is_conditional(model.params) else [None] * len(x)
    energies = torch.cat(
        [given(model.energy, y)(part) for part, y in zip(x.split(1000), labels, strict=False)]
    ).double()
    check_finite(energies, "evaluation.long_run: energies of training data or of chains")
    return energies


def _at_bounds(subject: Subject, x: Tensor) -> float:
    if subject.model.bounds is None:
        return 0.0
    low, high = subject.model.bounds
    return ((x <= low) | (x >= high)).float().mean().item()
