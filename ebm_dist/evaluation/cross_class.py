"""Whether a conditional energy makes what is asked: from noise, and from images of other classes (Du & Mordatch 2019, Figure 6).

A classifier that never saw the model tells which class it sees. Chance is one in the number of classes; the classifier's share on
real test images is the ceiling.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject
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
    """Looks at the chains on their way."""
    steps_per_round: PositiveInt = 20
    """Steps between two looks."""


def evaluate(config: Config, subject: Subject) -> Report:
    if not is_conditional(subject.model.params) or subject.classifier is None:
        raise ConfigError(
            "evaluation.cross_class: needs a model that learnt labels (objective.conditional: true) and a classifier"
        )
    x, y = shards.read_split(subject.data, "test")
    num_classes = subject.data.num_classes
    asked = torch.arange(config.num_samples) % num_classes
    origin = other_classes(y, asked, num_classes)
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
        looks, rows = (
            walk(config, subject, start, asked, name),
            tables.setdefault(f"rounds_from_{name}", []),
        )
        for count, look in enumerate(looks):
            distance = (look - start).flatten(1).norm(dim=1).mean().item()
            row = {
                "steps": count * config.steps_per_round,
                "hit_rate": hits(subject, look, asked).mean().item(),
            }
            if name == "images":  # how many still look like what they came from
                row["stayed"] = hits(subject, look, y[origin]).mean().item()
            rows.append(row | {"distance": distance})
        metrics[name] = dict(rows[-1])
        metrics[name]["worst_class_hit_rate"] = min(
            hits(subject, looks[-1][asked == k], asked[asked == k]).mean().item()
            for k in range(num_classes)
        )
        shown = torch.cat([look[:_SHOWN] for look in looks])
        steps = f"{config.steps_per_round} steps a row"
        pictures[f"{name}.png"] = figures.image_grid(
            shown.numpy(), _SHOWN, f"Request for classes 0, 1, 2 ... from {name}; {steps}"
        )
    lines = {
        f"from {name}": _band(tables[f"rounds_from_{name}"], config.num_samples) for name in starts
    }
    title = f"What a classifier sees (chance {1 / num_classes:.2g}, real images {metrics['hit_rate_of_real']:.3f})"
    pictures["hit_rate.png"] = figures.bands(
        lines, "Langevin steps", "share of the asked class, 95 % interval", title
    )
    return Report(metrics, tables, pictures)


def other_classes(y: Tensor, asked: Tensor, num_classes: int) -> Tensor:
    """For each asked class ``(n,)`` the index of an image of another class, all others in turn."""
    taken = dict.fromkeys(range(num_classes), 0)
    places = {k: (y == k).nonzero().flatten() for k in range(num_classes)}
    found = []
    for i, k in enumerate(asked.tolist()):
        other = (k + 1 + (i // num_classes) % (num_classes - 1)) % num_classes
        found.append(places[other][taken[other] % len(places[other])])
        taken[other] += 1
    return torch.stack(found)


def walk(config: Config, subject: Subject, start: Tensor, asked: Tensor, name: str) -> list[Tensor]:
    """Where chains of the asked classes are at the start and after each round, ``num_rounds + 1`` times ``(n, *shape)``."""
    model, looks = subject.model, [start]
    with frozen(model.energy):
        for count in range(config.num_rounds):
            chain = stream(0, f"cross_class/{name}", step=count)
            end, _ = run_chain(
                model.kernel(), given(model.energy, asked), looks[-1], config.steps_per_round, chain
            )
            looks.append(end)
    return looks


def _band(rows: list[dict[str, Any]], count: int) -> tuple[Any, ...]:
    """Steps, the share of so many samples, and the ends of its interval (Wilson 1927)."""
    steps, share, z = (
        np.array([row["steps"] for row in rows]),
        np.array([row["hit_rate"] for row in rows]),
        1.96,
    )
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return steps, share, middle - half, middle + half


def hits(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """``(n,)`` 1 where the classifier sees class ``y`` in ``x``, else 0."""
    assert subject.classifier is not None
    seen = torch.from_numpy(features.classify(subject.classifier, x).probabilities.argmax(axis=1))
    return (seen == y).float()
