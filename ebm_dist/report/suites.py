"""Metrics of evaluation suites: the only reader of ``<reports>/<suite>/metrics.json``."""

from pathlib import Path
from typing import Any

from ebm_dist.files import read_json

_METRICS = "metrics.json"


def read_suites(reports: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of every suite of a folder of reports, by suite.

    Raise :class:`DataError` for a broken file.
    """
    return {
        path.parent.name: read_json(path, "evaluate")
        for path in sorted(reports.glob(f"*/{_METRICS}"))
    }


def read_suite(reports: Path, suite: str, made_by: str = "evaluate") -> dict[str, Any]:
    """Return the metrics of one suite.

    Raise :class:`DataError` without them; the message names the stage to run.
    """
    metrics: dict[str, Any] = read_json(reports / suite / _METRICS, made_by)
    return metrics


def has_suites(reports: Path) -> bool:
    """Return whether any suite has written its metrics."""
    return any(reports.glob(f"*/{_METRICS}"))
