"""Evaluations. One file, one suite; each has a ``Config`` and an ``evaluate(config, subject) -> Report``.

A suite reads the model and data and writes nothing; what it returns is deterministic for given weights and settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist.data import shards
from ebm_dist.files import write_csv, write_json
from ebm_dist.metrics.features import Classifier
from ebm_dist.models.trained import TrainedModel
from ebm_dist.storage import write_whole


class Subject(NamedTuple):
    """What is judged, and the data to judge it by."""

    model: TrainedModel
    data: shards.Index
    comparison_datasets: Mapping[str, shards.Index]
    """real data sets of another kind"""
    classifier: Classifier | None
    """None where the data has no labels or is no images"""


class Report(NamedTuple):
    """What a suite found."""

    metrics: dict[str, Any]
    """numbers, possibly nested by set"""
    tables: dict[str, list[dict[str, Any]]]
    """rows for ``<name>.csv``"""
    figures: dict[str, bytes]
    """``<name>.png`` or ``.gif``"""

    def write(self, folder: Path) -> None:
        """``metrics.json``, and tables and pictures under ``plots/``."""
        plots = folder / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for name, content in self.figures.items():
            write_whole(plots / name, content)
        for name, rows in self.tables.items():
            write_csv(plots / f"{name}.csv", rows)
        write_json(folder / "metrics.json", self.metrics)


def over_seeds(reports: Mapping[int, Report]) -> Report:
    """One report of several replicates: metrics are means, with each under ``seeds``; tables and pictures are the first's."""
    first = next(iter(reports.values()))
    if len(reports) == 1:
        return first
    each = {str(seed): report.metrics for seed, report in reports.items()}
    return first._replace(metrics=_mean(list(each.values())) | {"seeds": each})


def _mean(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _mean([m[key] for m in metrics])
        if isinstance(value, dict)
        else sum(m[key] for m in metrics) / len(metrics)
        for key, value in metrics[0].items()
    }
