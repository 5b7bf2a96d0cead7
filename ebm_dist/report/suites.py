"""Metrics of evaluation suites: the only reader of ``<reports>/<suite>/metrics.json``."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ebm_dist.errors import DataError
from ebm_dist.files import read_json

_METRICS = "metrics.json"
_MAX_DEPTH = 20


def read_suites(reports: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of every suite of a folder of reports, by suite.

    Raise :class:`DataError` for a broken file.
    """
    return {
        path.parent.name: _read(path, "evaluate") for path in sorted(reports.glob(f"*/{_METRICS}"))
    }


def read_suite(reports: Path, suite: str, made_by: str = "evaluate") -> dict[str, Any]:
    """Return the metrics of one suite.

    Raise :class:`DataError` without them; the message names the stage to run.
    """
    return _read(reports / suite / _METRICS, made_by)


def has_suites(reports: Path) -> bool:
    """Return whether any suite has written its metrics."""
    return any(reports.glob(f"*/{_METRICS}"))


def _read(path: Path, made_by: str) -> dict[str, Any]:
    metrics = read_json(path, made_by)
    for fault in _faults(metrics):
        raise DataError(f"{path}: {fault}", f"delete it and run 'dvc repro {made_by}'")
    return cast(dict[str, Any], metrics)


def _faults(metrics: Any) -> Iterator[str]:
    """Yield what is wrong with metrics: numbers by name, in mappings, and ``seeds`` of them.

    None stands for a number that is infinite.
    """
    if not isinstance(metrics, dict):
        yield f"expected numbers by name, found {reprlib.repr(metrics)}"
        return
    yield from _number_faults(metrics)
    seeds = metrics.get("seeds", {})
    for name, replicate in seeds.items() if isinstance(seeds, dict) else [("", seeds)]:
        if not isinstance(replicate, dict):
            found = reprlib.repr(replicate)
            yield f"seeds.{name}: expected metrics of one seed, found {found}"


def _number_faults(metrics: dict[str, Any], *keys: str) -> Iterator[str]:
    if len(keys) > _MAX_DEPTH:
        yield f"expected at most {_MAX_DEPTH} mappings in each other, found more"
        return
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from _number_faults(value, *keys, key)
        elif value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not _fits(value)
        ):
            yield f"{'.'.join([*keys, key])}: expected a number, found {reprlib.repr(value)}"


def _fits(number: float) -> bool:
    try:
        float(number)
    except OverflowError:
        return False
    return True
