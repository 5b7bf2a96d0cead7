"""Composition of two classes by the sum of their energies (Du & Mordatch 2019, section 4.3).

The sum is a product of experts (Hinton 2002). Chains from noise follow E(x, a) + E(x, b) for every
pair of classes. A classifier that was trained without the model scores the images: the metric is
the share of images with a and b as the two likeliest classes. The baseline is the same share for
chains of E(x, a) alone, where the second class is the one that looks most like a.
"""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.energies import frozen, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject, check_finite
from ebm_dist.metrics import features
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain


@section
class Config:
    samples_per_pair: PositiveInt = 20
    """Chains for each pair of classes, and as many for each class of the pair alone."""
    num_steps: PositiveInt = 80
    """Steps of the chains."""


def evaluate(config: Config, subject: Subject) -> Report:
    if not is_conditional(subject.model.params) or subject.classifier is None:
        raise ConfigError(
            "evaluation.composition: needs a model that learnt labels "
            "(objective.conditional: true) and a classifier"
        )
    num_classes, n = subject.data.num_classes, config.samples_per_pair
    pairs = torch.tensor(list(combinations(range(num_classes), 2))).repeat_interleave(n, dim=0)
    samples = {
        "both": sample(config, subject, pairs),
        "first": sample(config, subject, pairs[:, :1]),
        "second": sample(config, subject, pairs[:, 1:]),
    }
    has_both = {name: _has_both(subject, x, pairs) for name, x in samples.items()}
    shares = {name: hits.mean().item() for name, hits in has_both.items()}
    energies = {name: _energies(subject, x, pairs).mean().item() for name, x in samples.items()}
    metrics: dict[str, Any] = {
        "num_samples": len(pairs),
        "share_with_both": shares["both"],
        "share_with_both_alone": (shares["first"] + shares["second"]) / 2,
        "chance": 2 / (num_classes * (num_classes - 1)),
        "energy_of_both": energies["both"],
        "energy_of_both_alone": (energies["first"] + energies["second"]) / 2,
    }
    names = subject.data.class_names
    by_pair = has_both["both"].view(-1, n).mean(dim=1).tolist()
    rows = [
        {"first": names[a], "second": names[b], "share": share}
        for (a, b), share in zip(pairs[::n], by_pair, strict=True)
    ]
    triples = torch.stack([samples[name][::n] for name in ("first", "both", "second")], dim=1)
    shown = triples.flatten(0, 1)[: 3 * 15]
    title = "Triples: one class, the sum of two energies, the other class"
    return Report(
        metrics, {"pairs": rows}, {"pairs.png": figures.image_grid(shown.numpy(), 15, title)}
    )


def sample(config: Config, subject: Subject, labels: Tensor) -> Tensor:
    """Return ends ``(n, *shape)`` of chains from noise.

    The energy of each chain is the sum over its ``labels (n, k)``.
    """
    model = subject.model
    start = noise((len(labels), *model.card["shape"]), model.bounds, stream(0, "composition/noise"))
    with frozen(model.energy):
        target = lambda x: _energies(subject, x, labels)  # noqa: E731
        end, _ = run_chain(
            model.kernel(), target, start, config.num_steps, stream(0, "composition/chain")
        )
    check_finite(end, f"evaluation.composition: ends of chains of {config.num_steps} steps")
    return end


def _energies(subject: Subject, x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([subject.model.energy(x, y) for y in labels.T]).sum(dim=0)


def _has_both(subject: Subject, x: Tensor, pairs: Tensor) -> Tensor:
    """Return ``(n,)``: 1 where the two likeliest classes are the pair, else 0."""
    assert subject.classifier is not None
    probabilities = features.classify(subject.classifier, x).probabilities
    likeliest = torch.from_numpy(probabilities).topk(2, dim=1).indices
    return (likeliest.sort(dim=1).values == pairs).all(dim=1).float()
