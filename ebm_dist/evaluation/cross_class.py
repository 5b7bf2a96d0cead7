"""Samples of a requested class by a conditional energy (Du & Mordatch 2019, Figure 6).

Chains start from noise and from images of other classes. A classifier that was trained without the
model predicts the class of the samples. Chance is 1 / num_classes; the accuracy of the classifier
on real test images is the ceiling.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject, check_finite
from ebm_dist.metrics import features
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain

_SHOWN = 10


@section
class Config:
    num_samples: PositiveInt = 1000
    """Chains from noise, and chains from images of other classes."""
    num_rounds: PositiveInt = 10
    """Rounds after which the samples are classified."""
    steps_per_round: PositiveInt = 20
    """Steps of the chains per round."""


def evaluate(config: Config, subject: Subject) -> Report:
    if not is_conditional(subject.model.params) or subject.classifier is None:
        raise ConfigError(
            "evaluation.cross_class: needs a model that learnt labels "
            "(objective.conditional: true) and a classifier"
        )
    x, y = shards.read_split(subject.data, "test")
    num_classes = subject.data.num_classes
    names = ", ".join(subject.data.class_names[: min(num_classes, 3)])
    requested = torch.arange(config.num_samples) % num_classes
    origin = other_classes(y, requested, num_classes)
    starts = {
        "noise": noise(
            (config.num_samples, *x.shape[1:]), subject.model.bounds, stream(0, "cross_class/start")
        ),
        "images": x[origin],
    }
    metrics: dict[str, Any] = {
        "num_samples": config.num_samples,
        "chance": 1 / num_classes,
        "hit_rate_of_real": hits(subject, x, y).mean().item(),
    }
    tables, pictures = dict[str, list[dict[str, Any]]](), {}
    for name, start in starts.items():
        looks = walk(config, subject, start, requested, name)
        rows = tables.setdefault(f"rounds_from_{name}", [])
        for count, look in enumerate(looks):
            distance = (look - start).flatten(1).norm(dim=1).mean().item()
            row = {
                "steps": count * config.steps_per_round,
                "hit_rate": hits(subject, look, requested).mean().item(),
            }
            if name == "images":  # share that still has the class of the start
                row["stayed"] = hits(subject, look, y[origin]).mean().item()
            rows.append(row | {"distance": distance})
        metrics[name] = dict(rows[-1])
        metrics[name]["worst_class_hit_rate"] = min(
            hits(subject, looks[-1][requested == k], requested[requested == k]).mean().item()
            for k in requested.unique().tolist()
        )
        shown = torch.cat([look[:_SHOWN] for look in looks])
        steps = f"{config.steps_per_round} steps a row"
        pictures[f"{name}.png"] = figures.image_grid(
            shown.numpy(), _SHOWN, f"Request for classes {names} ... from {name}; {steps}"
        )
    lines = {
        f"from {name}": _band(tables[f"rounds_from_{name}"], config.num_samples) for name in starts
    }
    title = (
        f"Predicted classes (chance {1 / num_classes:.2g}, "
        f"real images {metrics['hit_rate_of_real']:.3f})"
    )
    pictures["hit_rate.png"] = figures.bands(
        lines, "Langevin steps", "share of the requested class, 95 % interval", title
    )
    return Report(metrics, tables, pictures)


def other_classes(y: Tensor, requested: Tensor, num_classes: int) -> Tensor:
    """Return for each requested class ``(n,)`` the index of an image of another class, in turn."""
    num_used = dict.fromkeys(range(num_classes), 0)
    images = {k: (y == k).nonzero().flatten() for k in range(num_classes)}
    origins = []
    for i, k in enumerate(requested.tolist()):
        other = (k + 1 + (i // num_classes) % (num_classes - 1)) % num_classes
        origins.append(images[other][num_used[other] % len(images[other])])
        num_used[other] += 1
    return torch.stack(origins)


def walk(
    config: Config, subject: Subject, start: Tensor, requested: Tensor, name: str
) -> list[Tensor]:
    """Return positions ``(n, *shape)`` of the chains at the start and after each round.

    ``requested (n,)`` are the classes of the chains. ``name`` addresses the random streams.
    """
    model, looks = subject.model, [start]
    with frozen(model.energy):
        for count in range(config.num_rounds):
            chain = stream(0, f"cross_class/{name}", step=count)
            target = given(model.energy, requested)
            end, _ = run_chain(model.kernel(), target, looks[-1], config.steps_per_round, chain)
            check_finite(end, f"evaluation.cross_class: chains from {name} after round {count + 1}")
            looks.append(end)
    return looks


def _band(rows: list[dict[str, Any]], count: int) -> tuple[Any, ...]:
    """Return steps, hit rates of ``count`` samples and ends of their intervals (Wilson 1927)."""
    steps = np.array([row["steps"] for row in rows])
    share, z = np.array([row["hit_rate"] for row in rows]), 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # rounding may exceed the range of a share
    return steps, share, (middle - half).clip(min=0), (middle + half).clip(max=1)


def hits(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """Return ``(n,)``: 1 where the classifier predicts class ``y (n,)`` for ``x``, else 0."""
    assert subject.classifier is not None
    probabilities = features.classify(subject.classifier, x).probabilities
    return (torch.from_numpy(probabilities.argmax(axis=1)) == y).float()
