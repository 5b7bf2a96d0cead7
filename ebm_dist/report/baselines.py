"""The baselines that a suite measured beside a figure, found by the names of its metrics."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_OWN = re.compile(r"model")
"""Names of scores of the model itself."""
_SAME_SUITE: tuple[tuple[str, dict[str, str]], ...] = (
    (
        r"samples\.fid_clf",
        {
            "fitted Gaussian": "samples.fid_clf_gaussian",
            "mixture of Gaussians": "samples.fid_clf_mixture",
        },
    ),
    (
        r"completion\.mse_over_mean_image",
        {
            "mean image": "completion.test.mse_mean_image / completion.test.mse_mean_image",
            "mean image of the class": (
                "completion.test.mse_class_mean / completion.test.mse_mean_image"
            ),
            "training image with the nearest upper half": (
                "completion.test.mse_nearest / completion.test.mse_mean_image"
            ),
        },
    ),
    (
        r"continual\.accuracy",
        {
            "chance": "continual.chance",
            "nearest class mean": "continual.nearest_class_mean",
            "a Gaussian for each class": "continual.class_gaussians",
        },
    ),
    (
        r"density\.energy_kl",
        {"uniform": "density.energy_kl.uniform", "the noise": "density.noise.kl"},
    ),
    (r"ood\.([^.]+)\.auroc", {"best no-model baseline": r"ood.\1.best_baseline"}),
    *(
        (
            rf"{suite}\.[^.]+\.test",
            {"independent pixels": f"{suite}.independent_pixels", "uniform": f"{suite}.uniform"},
        )
        for suite in ("likelihood", "annealed_likelihood")
    ),
)
"""Pattern of a figure's key, and the keys of its baselines by name."""


def measured(metric: str, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of the baselines of a figure, by name.

    ``metric`` is ``<suite>.<key>``, and ``metrics`` are those of the suite.
    """
    found = dict(_scores(metric, metrics))
    for pattern, keys in _SAME_SUITE:
        if match := re.match(pattern, metric):
            found |= {name: match.expand(key) for name, key in keys.items()}
    return {
        name: key
        for name, key in found.items()
        if key != metric and all(_has(metrics, part) for part in key.split(" / "))
    }


def _scores(metric: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the other scores of the same kind: of suites that compare several."""
    suite, _, key = metric.partition(".")
    if key == "mean_auroc":
        for name in metrics.get("mean_auroc_of", {}):
            if not _OWN.search(name):
                yield name, f"{suite}.mean_auroc_of.{name}"
    kind = key.rpartition(".")[2]
    for name, values in metrics.get("scores", {}).items():
        if not _OWN.search(name) and kind in values:
            yield name, f"{suite}.scores.{name}.{kind}"


def _has(metrics: Mapping[str, Any], metric: str) -> bool:
    value: Any = metrics
    for part in metric.split(".")[1:]:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return value is not None
