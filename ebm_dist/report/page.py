"""The page of a run: one self-contained HTML file of its reports, readable offline.

The page follows the reader's light or dark mode and can be used by mouse, keyboard or screen
reader, without scripts. Headline figures come first, then the suites, then the training. Its markup
is in ``page.html.j2``.
"""

import base64
import csv
import io
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import pydantic
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt

from ebm_dist.errors import DataError, printable
from ebm_dist.files import flat, read_json
from ebm_dist.report import figures
from ebm_dist.report.headlines import Headline, headlines
from ebm_dist.report.suites import read_suite, read_suites
from ebm_dist.report.table import interval

_KINDS = {".png": "image/png", ".gif": "image/gif"}
_WIDTH, _HEIGHT = 240, 90  # of a curve, in pixels
_ORDER = ("anomaly", "classification", "samples", "histogram", "ood", "chains")
"""of the suites; others follow"""
_TITLES = {"histogram": "Energies", "ood": "Out-of-distribution detection"}

_Schema = TypeVar("_Schema", bound=BaseModel)


_Count = Annotated[PositiveInt, Field(le=10**9)]


class _Hardware(BaseModel):
    cpu: str
    cores: _Count


class _Run(BaseModel):
    """What ``run.json`` has for the page."""

    seconds: FiniteFloat
    workers: _Count | Annotated[list[_Count], Field(min_length=1)]
    hardware: _Hardware
    watts_a_worker: FiniteFloat | None = None
    dataset: str = ""
    commit: str = ""


class _Gate(BaseModel):
    metric: str
    value: float | None
    bound: str
    passes: bool
    skipped: str = ""
    """Why the gate cannot be applied"""


class _Registration(BaseModel):
    """What ``registry.json`` has for the page."""

    model: str
    version: int | str
    aliases: list[str]
    gates: list[_Gate]


def _read(path: Path, schema: type[_Schema], made_by: str) -> _Schema:
    try:
        return schema.model_validate(read_json(path, made_by))
    except pydantic.ValidationError as failed:
        fault = failed.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "content"
        raise DataError(
            f"{path}: {place}: {fault['msg']}, found {reprlib.repr(fault['input'])}",
            f"delete it and run 'dvc repro {made_by}'",
        ) from None


class _Picture(NamedTuple):
    anchor: str
    name: str
    text: str
    """what it shows, in words"""
    url: str
    """the content itself, as a data URL"""
    is_animated: bool


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
    origins: list[str]
    """data and commit of the runs"""
    runs: list[str]
    pictures: list[_Picture]
    curves: list[_Curve] | None


class _Metric(NamedTuple):
    key: str
    value: float | None
    """None if infinite"""
    interval: tuple[float, float] | None
    """95 % interval over the seeds"""
    reference: float | None


class _Suite(NamedTuple):
    anchor: str
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
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    registry = reports / "registry.json"
    return environment.get_template("page.html.j2").render(
        title=reports.resolve().name,
        registration=_read(registry, _Registration, "register") if registry.exists() else None,
        training=_training(reports),
        headlines=leading_figures(suites),
        suites=[
            _suite(reports / name, suites[name], read_suite(reference, name) if reference else {})
            for name in sorted(suites, key=_place)
        ],
        curve_width=_WIDTH,
        curve_height=_HEIGHT,
    )


def leading_figures(suites: Mapping[str, Mapping[str, Any]]) -> list[Headline]:
    """Return the headline figures of the metrics of suites, by suite.

    With anomalies in the test split, its energies do not tell whether training data are memorised.
    """
    hidden = {"histogram"} if "anomaly" in suites else set[str]()
    return headlines({name: suites[name] for name in suites if name not in hidden})


def _place(suite: str) -> tuple[int, str]:
    return (_ORDER.index(suite) if suite in _ORDER else len(_ORDER), suite)


def _training(reports: Path) -> _Training:
    """Collect what each run cost, a picture of the chains and the curves of the first run."""
    runs = {
        path.parent.relative_to(reports): _read(path, _Run, "train")
        for path in sorted(reports.glob("train/**/run.json"))
    }
    pictures = [
        _picture(path, "Chains over the training", "train-0")
        for path in sorted(reports.glob("train/**/chains.png"))[:1]
    ]
    curves_file = next(iter(sorted(reports.glob("train/**/curves.csv"))), None)
    return _Training(
        _origins(runs),
        [_cost(name, run) for name, run in runs.items()],
        pictures,
        None if curves_file is None else _curves(curves_file),
    )


def _origins(runs: Mapping[Path, _Run]) -> list[str]:
    """Return the data and the commits of the runs, where they are recorded."""
    datasets = dict.fromkeys(run.dataset for run in runs.values() if run.dataset)
    commits = dict.fromkeys(
        run.commit[:10] + "+" * run.commit.endswith("+") for run in runs.values() if run.commit
    )
    return [
        *([f"Data: {', '.join(datasets)}"] if datasets else []),
        *([f"code: commit {', '.join(commits)}"] if commits else []),
    ]


def _curves(path: Path) -> list[_Curve]:
    """Return the curves of a table whose column ``step`` has the training steps.

    Raise :class:`DataError` for a file that is no such table.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8")), strict=True)
        columns: dict[str, list[tuple[float, float]]] = {
            key: [] for key in reader.fieldnames or () if key != "step"
        }
        for row in reader:
            for key, points in columns.items():
                if row[key]:
                    points.append((float(row["step"]), float(row[key])))
    except (ValueError, KeyError, TypeError, csv.Error) as failed:
        raise DataError(
            f"{path}: expected a table of numbers with a column step ({failed})",
            "delete it and run 'dvc repro train'",
        ) from None
    curves = (_curve(key, points) for key, points in columns.items())
    return [curve for curve in curves if curve is not None]


def _cost(name: Path, run: _Run) -> str:
    """Describe time, workers and energy of a run."""
    workers = run.workers if isinstance(run.workers, list) else [run.workers]
    # from the fewest workers to the most
    cost, most = run.seconds * workers[-1], "at most " if len(workers) > 1 else ""
    watts = run.watts_a_worker
    energy = "" if watts is None else f", {watts * cost / 1000:.0f} kJ by NVML"
    count = " to ".join(map(str, workers))
    machine = f"{run.hardware.cpu}, {run.hardware.cores} cores"
    return (
        f"{name}: {run.seconds:.0f} s on {count} workers ({machine}): "
        f"{most}{cost:.0f} device-seconds{energy}."
    )


def _curve(name: str, points: Sequence[tuple[float, float]]) -> _Curve | None:
    """Return the curve of the finite points ``(step, value)``, or None without any."""
    shown = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not shown:
        return None
    xs, ys = zip(*shown, strict=True)
    low, high = min(ys), max(ys)
    path = " ".join(
        f"{_share(x, min(xs), max(xs)) * _WIDTH:.1f},{(1 - _share(y, low, high)) * _HEIGHT:.1f}"
        for x, y in shown
    )
    return _Curve(name, low, high, ys[-1], min(xs), max(xs), path)


def _share(value: float, low: float, high: float) -> float:
    """Return where a value lies between two others, also where their difference overflows."""
    return (value / 2 - low / 2) / ((high / 2 - low / 2) or 1.0)


def _suite(folder: Path, metrics: dict[str, Any], reference: dict[str, Any]) -> _Suite:
    paths = sorted(
        (path for path in folder.glob("plots/*") if path.suffix in _KINDS),
        key=lambda path: (path.suffix == ".gif", path.stem != folder.name, path),
    )  # animations last, the picture with the name of the suite first
    anchor = _anchor(folder.name)
    pictures = [
        _picture(path, f"{folder.name}: {path.stem.replace('_', ' ')}", f"{anchor}-{i}")
        for i, path in enumerate(paths)
    ]
    replicates = [flat(replicate) for replicate in metrics.get("seeds", {}).values()]
    reference = flat(reference)
    rows = [
        _Metric(
            key,
            value,
            interval(
                [float(replicate[key]) for replicate in replicates if key in replicate],
                f"{folder.name}.{key}",
            )
            if value is not None
            else None,
            reference.get(key),
        )
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items()
    ]
    name = _TITLES.get(folder.name, folder.name.replace("_", " ").capitalize())
    return _Suite(anchor, name, pictures, rows, bool(reference))


def _anchor(name: str) -> str:
    return "suite-" + re.sub(r"[^\w-]+", "-", name.lower())


def _picture(path: Path, name: str, anchor: str) -> _Picture:
    content = path.read_bytes()
    try:
        text = figures.description(content)
    except (OSError, ValueError) as failed:
        raise DataError(
            f"{path}: not readable as a picture ({failed})",
            "delete it and run 'dvc repro evaluate', or 'dvc repro train' for chains.png",
        ) from None
    url = f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(content).decode()}"
    return _Picture(anchor, name, text or name, url, path.suffix == ".gif")
