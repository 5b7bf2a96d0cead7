"""Evaluation suites, one per file.

Each has a ``Config``, ``evaluate(config, subject) -> Report`` and ``check(config, needs)``, which
refuses data and settings that the suite cannot evaluate; it runs before a training. A suite reads
the model and the data and writes nothing. Its report is deterministic for fixed weights and
settings.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ebm_dist.config import Params, module_of, plugin_name
from ebm_dist.data import shards
from ebm_dist.energies import is_conditional
from ebm_dist.errors import ConfigError, DivergedError
from ebm_dist.files import write_csv, write_json
from ebm_dist.metrics import features
from ebm_dist.metrics.features import Classifier
from ebm_dist.models.trained import TrainedModel
from ebm_dist.storage import write_whole


class Subject(NamedTuple):
    """A model and the data to evaluate it on."""

    model: TrainedModel
    data: shards.Index
    comparison_datasets: Mapping[str, shards.Index]
    """real data sets of another kind"""
    classifier: Classifier | None
    """None where the data are not labelled images"""


class Needs(NamedTuple):
    """Settings and prepared data, against which a suite states its needs before a training.

    Each method raises :class:`ConfigError` where one is not met.
    """

    suite: str
    params: Params
    data: shards.Index
    comparison_datasets: Mapping[str, shards.Index]

    def error(self, what: str, fix: str = "leave this suite out") -> ConfigError:
        """Return the error for a need that is not met."""
        return ConfigError(f"evaluation.{self.suite}: {what}", fix)

    def split(self, name: str, num_samples: int = 2) -> None:
        """Need a split with a number of samples."""
        if name not in self.data.splits:
            there = ", ".join(self.data.splits)
            raise self.error(
                f"needs the {name} split, and {self.data.dataset} has only {there}",
                "prepare data with this split, choose another split, or leave this suite out",
            )
        if (count := self.data.num_samples(name)) < num_samples:
            raise self.error(
                f"needs {num_samples} samples in the {name} split of {self.data.dataset}, which"
                f" has {count}",
                "prepare more data, or leave this suite out",
            )

    def probabilities(self) -> None:
        """Need values that are probabilities of ones."""
        if self.data.bounds != (0.0, 1.0):
            raise self.error(
                f"needs values in [0, 1], the probabilities of ones, and {self.data.dataset} has"
                f" the bounds {self.data.bounds}"
            )

    def images(self) -> None:
        """Need images ``(channels, height, width)``."""
        if len(self.data.shape) != 3:
            raise self.error(
                f"needs images, and samples of {self.data.dataset} have the shape {self.data.shape}"
            )

    def label_counts(self, split: str) -> list[int]:
        """Need labels in a split, and return the number of samples of each class."""
        counts: list[int] = self.data.statistics[split]["class_counts"] or []
        if not counts:
            raise self.error(f"needs labels in the {split} split of {self.data.dataset}")
        return counts

    def classes(self, split: str) -> None:
        """Need samples of each class in a split."""
        counts = self.label_counts(split)
        absent = [k for k in range(self.data.num_classes) if not any(counts[k : k + 1])]
        if absent:
            raise self.error(
                f"needs samples of each class, and the {split} split of {self.data.dataset} has"
                f" none of {', '.join(map(str, absent))}",
                "prepare more data, or leave this suite out",
            )

    def labels_learnt(self) -> None:
        """Need a model of ``E(x, y)``."""
        if not is_conditional(self.params):
            raise self.error(
                "needs a model that learns labels",
                "set objective.conditional: true, or leave this suite out",
            )

    def classifier_data(self) -> shards.Index:
        """Need data for the classifier of FID-clf, and return them."""
        name = self.params.features.dataset
        index = self.comparison_datasets[name] if name else self.data
        if not features.is_measurable(index):
            raise self.error(
                f"needs a classifier, and {index.dataset} has no labelled images of two classes"
                " with a test split",
                "name such a set in features.dataset, or leave this suite out",
            )
        return index

    def generator(self) -> None:
        """Need a model that draws samples without chains."""
        if "generator" not in self.params.objective.other_players:
            raise self.error(
                f"needs a generator, and {plugin_name(self.params.objective)} trains none",
                "use objective meg, or leave this suite out",
            )

    def chains_of_parts(self) -> None:
        """Need a sampler that can follow a function of a part of the sample."""
        if plugin_name(self.params.sampler) == "gibbs":
            raise self.error(
                "needs a sampler for any function of x, and gibbs needs the whole energy"
            )
        if self.params.objective.ladder:
            raise self.error("needs chains of E(x), and these go over a ladder of noise levels")

    def comparable_sets(self) -> None:
        """Need comparison sets with a test split, and of the shape of the data if not images."""
        for name, other in self.comparison_datasets.items():
            fix = f"drop comparison_datasets.{name}, or leave this suite out"
            if "test" not in other.splits:
                raise self.error(f"needs the test split of comparison set {name}", fix)
            are_images = len(self.data.shape) == len(other.shape) == 3
            if not are_images and other.shape != self.data.shape:
                raise self.error(
                    f"cannot compare samples of shape {self.data.shape} with those of {name},"
                    f" {other.shape}",
                    fix,
                )


def check(
    params: Params,
    data: shards.Index,
    comparison_datasets: Mapping[str, shards.Index],
    suites: Iterable[str] | None = None,
) -> None:
    """Raise :class:`ConfigError` if a suite cannot evaluate a model of these settings and data.

    ``suites``: names of those to check; all of the parameter file by default.
    """
    for name in params.evaluation if suites is None else suites:
        suite = params.evaluation[name]
        module_of(suite).check(suite, Needs(name, params, data, comparison_datasets))


class Report(NamedTuple):
    """Results of a suite."""

    metrics: dict[str, Any]
    """numbers, possibly nested by set"""
    tables: dict[str, list[dict[str, Any]]]
    """rows for ``<name>.csv``"""
    figures: dict[str, bytes]
    """``<name>.png`` or ``.gif``"""

    def write(self, folder: Path) -> None:
        """Write ``metrics.json``, and tables and figures under ``plots/``."""
        plots = folder / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for name, content in self.figures.items():
            write_whole(plots / name, content)
        for name, rows in self.tables.items():
            write_csv(plots / f"{name}.csv", rows)
        write_json(folder / "metrics.json", self.metrics)


def check_finite(values: Tensor | npt.NDArray[np.floating[Any]], what: str) -> None:
    """Check values of any shape, which ``what`` names.

    Raise :class:`DivergedError` if one is NaN or infinite.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if num_bad := np.count_nonzero(~np.isfinite(array)):
        raise DivergedError(
            f"{what}: {num_bad} of {array.size} values are NaN or infinite",
            "train the model again with a smaller optimizer.lr or sampler.step_size, or leave"
            " this suite out",
        )


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are finite: one that the data leave undefined is absent."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def over_seeds(reports: Mapping[int, Report]) -> Report:
    """Combine the reports of several seeds into one.

    Metrics are means, with those of every seed under ``seeds``. A metric that a seed lacks has no
    mean, and one that is infinite for a seed is None. Tables and figures are those of the first
    seed.
    """
    first = next(iter(reports.values()))
    if len(reports) == 1:
        return first
    by_seed = {str(seed): report.metrics for seed, report in reports.items()}
    return first._replace(metrics=_mean(list(by_seed.values())) | {"seeds": by_seed})


def _mean(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _mean([m[key] for m in metrics])
        if isinstance(value, dict)
        else None
        if any(m[key] is None for m in metrics if key in m)
        else sum(m[key] for m in metrics) / len(metrics)
        for key, value in metrics[0].items()
        if all(key in m for m in metrics)
    }
