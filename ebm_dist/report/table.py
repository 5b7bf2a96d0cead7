"""The table of results: committed metrics against published figures, a row an id, made by no hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from ebm_dist.errors import DataError
from ebm_dist.files import flat, read_json
from ebm_dist.report.suites import has_suites, read_suite, read_suites

_COLUMNS = (
    "id",
    "what",
    "published",
    "reached",
    "95 % interval",
    "seeds",
    "beside it",
    "time",
    "command",
)

_MARK, _END = "<!-- python -m pipelines.results -->", "<!-- end -->"


class Recipe(NamedTuple):
    """A recipe, and whether there is anything to see of it."""

    name: str
    title: str
    """the first line of its file"""
    is_run: bool
    """whether its metrics are here"""


def recipes(folder: Path, reports: Path) -> list[Recipe]:
    """Every recipe of a folder of parameter files."""
    found = [
        path for path in sorted(folder.glob("*.yaml")) if path.name not in ("dvc.yaml", "rows.yaml")
    ]
    return [
        Recipe(
            path.stem,
            path.read_text().partition("\n")[0].lstrip("# "),
            has_suites(reports / path.stem),
        )
        for path in found
    ]


def compare(a: Path, b: Path) -> list[tuple[str, float, float]]:
    """The metrics ``<suite>.<key>`` that two folders of reports share. Raises :class:`DataError` where there is none."""
    ours, theirs = (flat(read_suites(x)) for x in (a, b))
    rows = [
        (key, float(value), float(theirs[key]))
        for key, value in ours.items()
        if key in theirs and ".seeds." not in key
    ]
    if not rows:
        raise DataError(
            f"{a} and {b}: no suite judged both; ebm-dist recipes shows what has been run"
        )
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
    runs = [
        read_json(path, "train")
        for recipe in recipes
        for path in sorted((reports / recipe / "train").glob("*/run.json"))
    ]
    return {
        "id": name,
        **{field: entry[field] for field in ("system", "source", "what", "metric", "published")},
        "reached": float(np.mean(values)),
        "interval": interval(values),
        "seeds": each if len(each) > 1 else {},
        "beside": {
            label: _beside(beside, recipes, reports) for label, beside in entry["beside"].items()
        },
        "hardware": runs[0]["hardware"],
        "workers": runs[0]["workers"],
        "seconds": [run["seconds"] for run in runs],
        "data": {key: runs[0][key] for key in ("dataset", "is_official", "data_digest")},
        "recipes": recipes,
        "command": _command(recipes),
    }


def _command(recipes: list[str]) -> str:
    return " ".join(
        ["dvc repro", *(f"pipelines/recipes/dvc.yaml:results@{recipe}" for recipe in recipes)]
    )


def _replicates(metric: str, recipes: list[str], reports: Path) -> dict[str, float]:
    """The values of ``<suite>.<key>``: of each seed, or of each of several recipes."""
    suite, key = metric.split(".", 1)
    every = {
        r: read_suite(reports / r, suite, f"pipelines/recipes/dvc.yaml:results@{r}")
        for r in recipes
    }
    if len(recipes) > 1:
        return {recipe: value_at(metrics, key) for recipe, metrics in every.items()}
    (metrics,) = every.values()
    return {seed: value_at(one, key) for seed, one in metrics.get("seeds", {"0": metrics}).items()}


def _beside(beside: float | str, recipes: list[str], reports: Path) -> float:
    if not isinstance(beside, str):
        return float(beside)
    other, slash, metric = beside.partition("/")
    is_of_another = slash and "." not in other  # else a stroke in the key itself
    found = (
        _replicates(metric, [other], reports)
        if is_of_another
        else _replicates(beside, recipes, reports)
    )
    return float(np.mean(list(found.values())))


def interval(values: list[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def systems(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each system, by the name of its page; the first is the one that speaks for it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["system"], []).append(row)
    return {own[0]["recipes"][0].removesuffix("-0"): own for own in found.values()}


def summary(rows: list[dict[str, Any]], place: str) -> str:
    """A line a system, published beside reached. ``place``: where its name leads, such as ``systems/{}.md``."""
    lines = [
        _line("system", "source", "figure", "published", "reached", "beside it", "made by"),
        "|" + "---|" * 7,
    ]
    for name, (first, *_) in systems(rows).items():
        reached = f"**{first['reached']:.4g}**" + (
            f" ({_range(first)})" if first["interval"] else ""
        )
        link = f"[{first['system']}]({place.format(name)})"
        lines.append(
            _line(
                link,
                first["source"],
                first["what"],
                _published(first),
                reached,
                _beside_it(first, 2),
                f"`{first['command']}`",
            )
        )
    return "\n".join(lines)


def renewed(page: str, rows: list[dict[str, Any]]) -> str:
    """The README with its table made anew. Raises :class:`DataError` where its marks are gone."""
    before, found, rest = page.partition(_MARK)
    _, ends, after = rest.partition(_END)
    if not (found and ends):
        raise DataError(
            f"README.md: no place for the table; put {_MARK!r} and {_END!r} where it belongs"
        )
    return f"{before}{_MARK}\n{summary(rows, 'docs/results.md#{}')}\n{_END}{after}"


def markdown(rows: list[dict[str, Any]], unmeasured: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as a page: the summary, a section a system, and the entries that nobody has run, with the reason."""
    lines = [
        "# Results",
        "",
        "Made by `python -m pipelines.results` from the committed `reports/<recipe>/*/metrics.json`; nothing is typed by hand.",
        "Means over seeds with 95 % t-intervals. FID-clf is in the features of the pipeline's own classifier and is not comparable",
        "with published FID: read it against real images (the floor) and the Gaussian beside it.",
        "",
        summary(rows, "#{}"),
    ]
    for name, own in systems(rows).items():
        lines += ["", f'<a id="{name}"></a>', "", f"## {own[0]['system']}", "", _origin(own[0]), ""]
        lines += [
            _line(*_COLUMNS),
            "|" + "---|" * len(_COLUMNS),
            *(_line(*_cells(row)) for row in own),
        ]
    if unmeasured:
        lines += [
            "",
            "## Not measured",
            "",
            _line("id", "what", "why", "command"),
            "|" + "---|" * 4,
        ]
        lines += [
            _line(
                f"`{name}`", entry["what"], entry["unmeasured"], f"`{_command([entry['recipe']])}`"
            )
            for name, entry in unmeasured.items()
        ]
    return "\n".join(lines) + "\n"


def system_page(
    own: list[dict[str, Any]], pictures: Sequence[str], heads: Mapping[str, str]
) -> str:
    """A page for one system: its pictures, by link, its figures, and the parameter files that made them, by recipe."""
    lines = [f"# {own[0]['system']}", "", _origin(own[0]), ""]
    for link in pictures:
        lines += [f"![{own[0]['system']}]({link})", ""]
    for row in own:
        facts = {
            "reached": f"**{row['reached']:.4g}**",
            **(
                {"95 % interval": _range(row), "seeds": _cells(row)[5]}
                if row["interval"]
                else {"seeds": "one"}
            ),
            "published": f"{_published(row)} ({row['source']})",
            **{label: f"{value:.4g}" for label, value in row["beside"].items()},
        }
        lines += [
            f"## {row['id']}",
            "",
            f"{row['what'][0].upper()}{row['what'][1:]}.",
            "",
            "| figure | value |",
            "|---|---|",
        ]
        lines += [_line(name, value) for name, value in facts.items()]
        lines += ["", f"`{row['command']}`, {np.mean(row['seconds']):.0f} s of training a seed", ""]
    for recipe, text in heads.items():
        lines += [f"## pipelines/recipes/{recipe}.yaml", "", "```yaml", text.rstrip(), "```", ""]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _origin(row: dict[str, Any]) -> str:
    data, cpu = row["data"], row["hardware"]
    mark = "" if data["is_official"] else ", own files"
    return (
        f"Source: {row['source']}. Data: {data['dataset']}{mark}, index SHA-256 `{data['data_digest'][:16]}`.\n"
        f"Trained on {row['workers']} workers ({cpu['cpu']}, {cpu['cores']} cores)."
    )


def _published(row: dict[str, Any]) -> str:
    return "none" if row["published"] is None else f"{row['published']:g}"


def _range(row: dict[str, Any]) -> str:
    return " to ".join(f"{end:.4g}" for end in row["interval"])


def _beside_it(row: dict[str, Any], most: int | None) -> str:
    return "; ".join(f"{label} {value:.4g}" for label, value in list(row["beside"].items())[:most])


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"`{row['id']}`",
        row["what"],
        _published(row),
        f"**{row['reached']:.4g}**",
        _range(row) if row["interval"] else "-",
        ", ".join(f"{value:.4g}" for value in row["seeds"].values()) or "1",
        _beside_it(row, None),
        f"{np.mean(row['seconds']):.0f} s a seed",
        f"`{row['command']}`",
    ]
