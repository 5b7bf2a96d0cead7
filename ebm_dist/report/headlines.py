"""Headline figures: the few metrics of each suite that answer first how good a model is."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ebm_dist.files import flat

_OF_THE_MODEL = re.compile(r"\bE \(")  # names of scores by an energy: they are no baselines


class Headline(NamedTuple):
    """One figure, with those that it is read against."""

    metric: str
    """``<suite>.<key>``"""
    name: str
    """what it is, and which direction is better"""
    value: float
    references: dict[str, float]

    @property
    def reading(self) -> str:
        """Return the references as text, such as ``real images 18.3``; "" without any."""
        return ", ".join(f"{label} {value:.4g}" for label, value in self.references.items())


_HEADLINES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "samples.fid_clf",
        "FID-clf of samples (lower is better)",
        {"real images": "samples.fid_clf_floor", "fitted Gaussian": "samples.fid_clf_gaussian"},
    ),
    (
        "samples.copies",
        "share of samples that copy training data (lower is better)",
        {"real images": "samples.copies_of_real"},
    ),
    (
        "histogram.train_test_auroc",
        "AUROC of training against test energies (0.5 without memorisation)",
        {},
    ),
    (
        "ood.mean_auroc",
        "mean AUROC against other data (higher is better)",
        {"best single baseline": "ood.mean_auroc_of.*"},
    ),
    (
        "anomaly.auroc",
        "AUROC of anomalies (higher is better)",
        {"best baseline": "anomaly.best_baseline.auroc"},
    ),
    ("chains.both.rhat", "R-hat of chains from noise and replay (up to 1.1 if they mix)", {}),
    ("density.kl", "KL divergence from the data in nats (lower is better)", {}),
    (
        "likelihood.worst.test",
        "test log-likelihood in nats by the largest estimate of log Z (higher is better)",
        {"independent pixels": "likelihood.independent_pixels"},
    ),
    (
        "annealed_likelihood.worst.test",
        "test log-likelihood in nats by the largest estimate of log Z (higher is better)",
        {"independent pixels": "annealed_likelihood.independent_pixels"},
    ),
    ("modes.modes", "modes that samples reach", {"modes of the data": "modes.num_modes"}),
    (
        "classification.accuracy",
        "accuracy (higher is better)",
        {"chance": "classification.scores.chance.accuracy"},
    ),
    (
        "continual.accuracy",
        "accuracy after all tasks (higher is better)",
        {"each task right after it was learnt": "continual.accuracy_at_once"},
    ),
    (
        "completion.mse_over_mean_image",
        "error of completions over that of the mean image (lower is better)",
        {},
    ),
    (
        "composition.share_with_both",
        "share of samples with both classes (higher is better)",
        {"chance": "composition.chance"},
    ),
    (
        "cross_class.noise.hit_rate",
        "share of samples of the requested class (higher is better)",
        {"chance": "cross_class.chance", "real images": "cross_class.hit_rate_of_real"},
    ),
)


def headlines(suites: Mapping[str, Mapping[str, Any]]) -> list[Headline]:
    """Return the headline figures that the metrics of suites, by suite, have."""
    values = {
        key: float(value) for key, value in flat(suites).items() if isinstance(value, int | float)
    }
    return [
        Headline(metric, name, values[metric], _references(references, values))
        for metric, name, references in _HEADLINES
        if metric in values
    ]


def _references(keys: Mapping[str, str], values: Mapping[str, float]) -> dict[str, float]:
    """Return the references that there are; a key that ends with ``*`` is the largest baseline."""
    references = dict[str, float]()
    for label, key in keys.items():
        prefix, is_group = key.removesuffix("*"), key.endswith("*")
        numbers = [
            value
            for name, value in values.items()
            if name == key
            or (is_group and name.startswith(prefix) and not _OF_THE_MODEL.search(name))
        ]
        if numbers:
            references[label] = max(numbers)
    return references
