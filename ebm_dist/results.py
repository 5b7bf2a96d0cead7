"""The table of results: committed metrics against published figures, a row an id, made by no hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from ebm_dist.errors import DataError
from ebm_dist.files import flat, read_json

_COLUMNS = ("id", "what", "published", "reached", "95 % interval", "seeds", "beside it", "time", "command")


class Recipe(NamedTuple):
    name: str
    title: str
    """the first line of its file"""
    is_run: bool
    """whether its metrics are here"""


def recipes(folder: Path, reports: Path) -> list[Recipe]:
    """Every recipe of a folder of parameter files."""
    found = [path for path in sorted(folder.glob("*.yaml")) if path.name != "dvc.yaml"]
    return [
        Recipe(path.stem, path.read_text().partition("\n")[0].lstrip("# "), any((reports / path.stem).glob("*/metrics.json")))
        for path in found
    ]


def compare(a: Path, b: Path) -> list[tuple[str, float, float]]:
    """The metrics ``<suite>.<key>`` that two folders of reports share. Raises :class:`DataError` where there is none."""
    ours, theirs = (
        flat({path.parent.name: read_json(path, "evaluate") for path in sorted(x.glob("*/metrics.json"))}) for x in (a, b)
    )
    rows = [(key, float(value), float(theirs[key])) for key, value in ours.items() if key in theirs and ".seeds." not in key]
    if not rows:
        raise DataError(f"{a} and {b}: no suite judged both; ebm-dist recipes shows what has been run")
    return rows


def value_at(metrics: Mapping[str, Any], key: str) -> float:
    """The number under a dotted key. Raises KeyError."""
    for part in key.split("."):
        metrics = metrics[part]
    return float(metrics)  # type: ignore[arg-type]


def row(name: str, entry: Mapping[str, Any], reports: Path) -> dict[str, Any]:
    """One row: mean over the seeds with its 95 % t-interval, the numbers to read it by, and where it comes from."""
    recipes = [entry["recipe"]] if isinstance(entry["recipe"], str) else entry["recipe"]
    each = _replicates(entry["metric"], recipes, reports)
    values = list(each.values())
    runs = [read_json(path, "train") for recipe in recipes for path in sorted((reports / recipe / "train").glob("*/run.json"))]
    return {
        "id": name,
        **{field: entry[field] for field in ("system", "source", "what", "metric", "published")},
        "reached": float(np.mean(values)),
        "interval": interval(values),
        "seeds": each if len(each) > 1 else {},
        "beside": {label: _beside(beside, recipes, reports) for label, beside in entry["beside"].items()},
        "hardware": runs[0]["hardware"],
        "workers": runs[0]["workers"],
        "seconds": [run["seconds"] for run in runs],
        "data": {key: runs[0][key] for key in ("dataset", "is_official", "data_digest")},
        "command": " ".join(["dvc repro", *(f"pipelines/recipes/dvc.yaml:results@{recipe}" for recipe in recipes)]),
    }


def _replicates(metric: str, recipes: list[str], reports: Path) -> dict[str, float]:
    """The values of ``<suite>.<key>``: of each seed, or of each of several recipes."""
    suite, key = metric.split(".", 1)
    every = {r: read_json(reports / r / suite / "metrics.json", f"pipelines/recipes/dvc.yaml:results@{r}") for r in recipes}
    if len(recipes) > 1:
        return {recipe: value_at(metrics, key) for recipe, metrics in every.items()}
    (metrics,) = every.values()
    return {seed: value_at(one, key) for seed, one in metrics.get("seeds", {"0": metrics}).items()}


def _beside(beside: float | str, recipes: list[str], reports: Path) -> float:
    if not isinstance(beside, str):
        return float(beside)
    other, slash, metric = beside.partition("/")
    is_of_another = slash and "." not in other  # else a stroke in the key itself
    found = _replicates(metric, [other], reports) if is_of_another else _replicates(beside, recipes, reports)
    return float(np.mean(list(found.values())))


def interval(values: list[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as a page, a section a system."""
    lines = [
        "# Results",
        "",
        "Made by `python -m pipelines.results` from the committed `reports/<recipe>/*/metrics.json`; nothing is typed by hand.",
        "Means over seeds with 95 % t-intervals. FID-clf is in the features of the pipeline's own classifier and is not comparable",
        "with published FID: read it against real images (the floor) and the Gaussian beside it.",
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        first = own[0]
        data = first["data"]
        mark = "" if data["is_official"] else ", own files"
        lines += [
            "",
            f"## {system}",
            "",
            f"Source: {first['source']}. Data: {data['dataset']}{mark}, index SHA-256 `{data['data_digest'][:16]}`.",
            f"Trained on {first['workers']} workers ({first['hardware']['cpu']}, {first['hardware']['cores']} cores).",
            "",
            "| " + " | ".join(_COLUMNS) + " |",
            "|" + "---|" * len(_COLUMNS),
        ]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in own]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    low_high = "-" if row["interval"] is None else f"{row['interval'][0]:.4g} to {row['interval'][1]:.4g}"
    return [
        f"`{row['id']}`",
        row["what"],
        "none" if row["published"] is None else f"{row['published']:g}",
        f"**{row['reached']:.4g}**",
        low_high,
        ", ".join(f"{value:.4g}" for value in row["seeds"].values()) or "1",
        "; ".join(f"{label} {value:.4g}" for label, value in row["beside"].items()),
        f"{np.mean(row['seconds']):.0f} s a seed",
        f"`{row['command']}`",
    ]
