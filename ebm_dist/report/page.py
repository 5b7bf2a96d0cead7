"""The page of a run: one self-contained HTML file of its reports, readable offline.

The page follows the reader's light or dark mode and can be used by mouse or keyboard. Its markup is
in ``page.html.j2``.
"""

import base64
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ebm_dist.errors import DataError
from ebm_dist.files import flat, read_json
from ebm_dist.report.suites import read_suite, read_suites
from ebm_dist.report.table import interval

_KINDS = {".png": "image/png", ".gif": "image/gif"}
_WIDTH, _HEIGHT = 240, 90  # of a curve, in pixels


class _Picture(NamedTuple):
    name: str
    url: str
    """the content itself, as a data URL"""


class _Curve(NamedTuple):
    """One metric over the training steps."""

    name: str
    low: float
    high: float
    last: float
    first_step: float
    last_step: float
    path: str
    """points of an SVG path in pixels"""


class _Training(NamedTuple):
    runs: list[str]
    pictures: list[_Picture]
    curves: list[_Curve] | None


class _Metric(NamedTuple):
    key: str
    value: float
    interval: tuple[float, float] | None
    """95 % interval over the seeds"""
    reference: float | None


class _Suite(NamedTuple):
    name: str
    pictures: list[_Picture]
    rows: list[_Metric]
    has_reference: bool


def build(reports: Path, reference: Path | None = None) -> str:
    """Return the page of a folder of reports as HTML.

    ``reference`` is another folder of reports, such as the champion's; its metrics are a second
    column. Raise :class:`DataError` where there are no reports.
    """
    suites = read_suites(reports)
    suites.pop("train", None)
    if not suites:
        raise DataError(f"{reports}: no suite's metrics.json; run 'dvc repro'")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["anchor"] = lambda name: name.lower().replace(" ", "-")
    registry = reports / "registry.json"
    return environment.get_template("page.html.j2").render(
        title=reports.name,
        registration=read_json(registry, "register") if registry.exists() else None,
        training=_training(reports),
        suites=[
            _suite(reports / name, metrics, read_suite(reference, name) if reference else {})
            for name, metrics in suites.items()
        ],
        curve_width=_WIDTH,
        curve_height=_HEIGHT,
    )


def _training(reports: Path) -> _Training:
    """Collect what each run cost, a picture of the chains and the curves of the first run."""
    runs = [
        _cost(path.parent.relative_to(reports), read_json(path, "train"))
        for path in sorted(reports.glob("train/**/run.json"))
    ]
    pictures = [
        _picture(path, "Chains over the training")
        for path in sorted(reports.glob("train/**/chains.png"))[:1]
    ]
    curves_file = next(iter(sorted(reports.glob("train/**/curves.csv"))), None)
    if curves_file is None:
        return _Training(runs, pictures, None)
    rows = list(csv.DictReader(io.StringIO(curves_file.read_text())))
    curves = [
        _curve(key, [(float(row["step"]), float(row[key])) for row in rows if row[key]])
        for key in rows[0]
        if key != "step"
    ]
    return _Training(runs, pictures, [curve for curve in curves if curve is not None])


def _cost(name: Path, run: dict[str, Any]) -> str:
    """Describe time, workers and energy of a run."""
    workers = run["workers"] if isinstance(run["workers"], list) else [run["workers"]]
    # from the fewest workers to the most
    cost, most = run["seconds"] * workers[-1], "at most " if len(workers) > 1 else ""
    energy = (
        f", {run['watts_a_worker'] * cost / 1000:.0f} kJ by NVML" if "watts_a_worker" in run else ""
    )
    count = " to ".join(map(str, workers))
    machine = f"{run['hardware']['cpu']}, {run['hardware']['cores']} cores"
    return (
        f"{name}: {run['seconds']:.0f} s on {count} workers ({machine}): "
        f"{most}{cost:.0f} device-seconds{energy}."
    )


def _curve(name: str, points: Sequence[tuple[float, float]]) -> _Curve | None:
    """Return the curve of the finite points ``(step, value)``, or None without any."""
    shown = [(x, y) for x, y in points if math.isfinite(y)]
    if not shown:
        return None
    xs, ys = zip(*shown, strict=True)
    low, high = min(ys), max(ys)
    across, up = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    path = " ".join(
        f"{(x - min(xs)) / across * _WIDTH:.1f},{(high - y) / up * _HEIGHT:.1f}" for x, y in shown
    )
    return _Curve(name, low, high, ys[-1], min(xs), max(xs), path)


def _suite(folder: Path, metrics: dict[str, Any], reference: dict[str, Any]) -> _Suite:
    pictures = [
        _picture(path, f"{folder.name}: {path.stem.replace('_', ' ')}")
        for path in sorted(folder.glob("plots/*"))
        if path.suffix in _KINDS
    ]
    replicates = [flat(replicate) for replicate in metrics.get("seeds", {}).values()]
    reference = flat(reference)
    rows = [
        _Metric(
            key,
            value,
            interval([float(replicate[key]) for replicate in replicates], f"{folder.name}.{key}"),
            reference.get(key),
        )
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items()
    ]
    name = folder.name.replace("_", " ").capitalize()
    return _Suite(name, pictures, rows, bool(reference))


def _picture(path: Path, name: str) -> _Picture:
    content = base64.b64encode(path.read_bytes()).decode()
    return _Picture(name, f"data:{_KINDS[path.suffix]};base64,{content}")
