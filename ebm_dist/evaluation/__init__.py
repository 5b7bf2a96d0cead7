"""Evaluation suites, one per file.

Each has a ``Config`` and ``evaluate(config, subject) -> Report``. A suite reads the model and the
data and writes nothing. Its report is deterministic for fixed weights and settings.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ebm_dist.data import shards
from ebm_dist.errors import DivergedError
from ebm_dist.files import write_csv, write_json
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

    Raises :class:`DivergedError` if one is NaN or infinite.
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
    mean. Tables and figures are those of the
    first seed.
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
        else sum(m[key] for m in metrics) / len(metrics)
        for key, value in metrics[0].items()
        if all(key in m for m in metrics)
    }
