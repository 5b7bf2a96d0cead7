"""The table of results: committed metrics against published figures, one generated row per id."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebm_dist.config import nearest
from ebm_dist.errors import DataError
from ebm_dist.files import flat, read_json
from ebm_dist.report.baselines import measured
from ebm_dist.report.suites import has_suites, read_suite, read_suites

_COLUMNS = (
    "id",
    "what",
    "published",
    "reached",
    "95 % interval",
    "seeds",
    "strongest baseline",
    "verdict",
    "beside",
    "time",
    "code",
    "command",
)

_SIGNS = {"higher": 1, "lower": -1}
_MARK, _END = "<!-- python -m pipelines.results -->", "<!-- end -->"


_SHARE = re.compile(
    r"^(ood|continual)\.(?!forgetting|num_)|accuracy|auroc|auprc|prevalence|quality|copies"
    r"|(^|[._])(f1|precision|recall|share|rate|stayed|at_bounds|calibration_error|is_within_data)"
    r"($|[._])|chance$"
)
"""Dotted keys of metrics between 0 and 1."""
_NOT_NEGATIVE = re.compile(
    r"fid_clf|distance|(^|[._])(kl|js|mse|modes|ess|variance|moved|squared_norm|error)($|[._])"
)
"""Dotted keys of metrics from 0 up."""


class Recipe(NamedTuple):
    """A recipe, and whether it has results."""

    name: str
    title: str
    """the first line of its file"""
    is_run: bool
    """whether the folder of reports has its metrics"""


def recipes(folder: Path, reports: Path) -> list[Recipe]:
    """Return every recipe of a folder of parameter files."""
    paths = [
        path for path in sorted(folder.glob("*.yaml")) if path.name not in ("dvc.yaml", "rows.yaml")
    ]
    return [
        Recipe(
            path.stem,
            path.read_text().partition("\n")[0].lstrip("# "),
            has_suites(reports / path.stem),
        )
        for path in paths
    ]


def compare(a: Path, b: Path) -> list[tuple[str, float, float]]:
    """Return the metrics ``<suite>.<key>`` that two folders of reports share.

    Raise :class:`DataError` where one has no metrics, or where they share none.
    """
    if absent := [folder for folder in (a, b) if not has_suites(folder)]:
        there = sorted(path.name for path in a.parent.glob("*") if has_suites(path))
        raise DataError(
            f"{' and '.join(map(str, absent))}: no metrics of a suite",
            nearest(absent[0].name, there),
        )
    first, second = (flat(read_suites(x)) for x in (a, b))
    rows = [
        (key, float(value), float(second[key]))
        for key, value in first.items()
        if None not in (value, second.get(key)) and ".seeds." not in key
    ]
    if not rows:
        raise DataError(
            f"{a} and {b}: no suite judged both",
            "compare recipes with the same suite; their metrics are in reports/<recipe>/<suite>/",
        )
    return rows


def value_at(metrics: Mapping[str, Any], key: str) -> float:
    """Return the number under a dotted key. Raise :class:`DataError` where there is none.

    A figure that a run leaves undefined is absent.
    """
    value: Any = metrics
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"no metric {key} in the report", "compare by another metric")
        value = value[part]
    if value is None:
        raise DataError(f"metric {key} of the report is undefined", "compare by another metric")
    return float(value)


def recipes_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the recipes of an entry of results.yaml."""
    return [entry["recipe"]] if isinstance(entry["recipe"], str) else list(entry["recipe"])


def row(name: str, entry: Mapping[str, Any], reports: Path) -> dict[str, Any]:
    """Return one row: the mean over seeds, its 95 % t-interval, its references and its origin."""
    recipes = recipes_of(entry)
    replicates = _replicates(
        entry["metric"], recipes, reports, is_average=entry.get("is_average", False)
    )
    values = list(replicates.values())
    runs = [
        read_json(path, "train")
        for recipe in recipes
        for path in sorted((reports / recipe / "train").glob("*/run.json"))
    ]
    return {
        "id": name,
        **{field: entry[field] for field in ("system", "source", "what", "metric", "published")},
        "reached": float(np.mean(values)),
        "interval": interval(values, entry["metric"]) or _ends(entry, recipes, reports),
        "seeds": replicates if len(replicates) > 1 else {},
        "better": entry.get("better"),
        "rounding": entry.get("rounding", 0.0),
        "baselines": _baselines(entry, recipes, reports),
        "beside": {
            label: _reference(reference, recipes, reports)
            for label, reference in entry.get("beside", {}).items()
        }
        | {
            label: _reached(metric, recipes, reports)
            for label, metric in entry.get("reached_after", {}).items()
        },
        "hardware": runs[0]["hardware"],
        "workers": runs[0]["workers"],
        "seconds": [run["seconds"] for run in runs],
        "data": {key: runs[0][key] for key in ("dataset", "is_official", "data_digest")},
        "recipes": recipes,
        "command": _command(recipes),
        "headline": entry.get("headline", ""),
        "seen": entry.get("seen", ""),
        "why": entry.get("why", ""),
        "commit": "",
        "stale": [],
    }


def _baselines(entry: Mapping[str, Any], recipes: list[str], reports: Path) -> dict[str, float]:
    """Return the baselines that the suite measured, and those of the entry."""
    suite = entry["metric"].partition(".")[0]
    found = measured(entry["metric"], _metrics(suite, recipes[0], reports))
    return {
        label: _reference(reference, recipes, reports)
        for label, reference in {**found, **entry.get("baselines", {})}.items()
    }


def _reached(metric: float | str, recipes: list[str], reports: Path) -> float | None:
    """Return the mean of ``<suite>.<key>``, or None where a seed has none: it was not reached."""
    try:
        return _reference(metric, recipes, reports)
    except DataError:
        return None


def _ends(
    entry: Mapping[str, Any], recipes: list[str], reports: Path
) -> tuple[float, float] | None:
    """Return the interval of the estimate itself, where an entry and its metrics have one."""
    ends = [_reached(metric, recipes, reports) for metric in entry.get("interval", [])]
    if not ends or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]


def ranked(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the baselines of a row, the strongest first; none without a direction."""
    sign = _SIGNS.get(row["better"])
    return sorted(row["baselines"].items(), key=lambda item: -sign * item[1]) if sign else []


def _metrics(suite: str, recipe: str, reports: Path) -> dict[str, Any]:
    return read_suite(reports / recipe, suite, f"pipelines/recipes/dvc.yaml:results@{recipe}")


def _command(recipes: list[str]) -> str:
    return " ".join(
        ["dvc repro", *(f"pipelines/recipes/dvc.yaml:results@{recipe}" for recipe in recipes)]
    )


def _replicates(
    metric: str, recipes: list[str], reports: Path, *, is_average: bool = False
) -> dict[str, float]:
    """Return the values of ``<suite>.<key>``: by seed, or by recipe where there are several.

    Recipes that are parts of one average, such as digits, are no replicates: then they are by seed
    too, of the seeds that all recipes have.
    """
    suite, key = metric.split(".", 1)
    by_recipe = {recipe: _metrics(suite, recipe, reports) for recipe in recipes}
    if len(recipes) > 1 and not is_average:
        return {recipe: value_at(metrics, key) for recipe, metrics in by_recipe.items()}
    by_seed = [metrics.get("seeds", {"0": metrics}) for metrics in by_recipe.values()]
    return {
        seed: float(np.mean([value_at(replicates[seed], key) for replicates in by_seed]))
        for seed in by_seed[0]
        if all(seed in replicates for replicates in by_seed)
    }


def _reference(reference: float | str, recipes: list[str], reports: Path) -> float:
    """Return a constant, a mean of ``<suite>.<key>``, ``<recipe>/<suite>.<key>``, or ``a / b``."""
    if not isinstance(reference, str):
        return float(reference)
    if " / " in reference:
        above, below = reference.split(" / ")
        return _reference(above, recipes, reports) / _reference(below, recipes, reports)
    other, slash, metric = reference.partition("/")
    is_of_another = slash and "." not in other  # else the slash is part of the key
    replicates = (
        _replicates(metric, [other], reports)
        if is_of_another
        else _replicates(reference, recipes, reports)
    )
    return float(np.mean(list(replicates.values())))


def interval(values: list[float], metric: str = "") -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by Student's t, or None for a single value.

    It ends at the range of ``metric``, ``<suite>.<key>``, such as 0 and 1 of a share.
    """
    from scipy.stats import t  # slow to import

    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    low = 0.0 if _SHARE.search(metric) or _NOT_NEGATIVE.search(metric) else -np.inf
    high = 1.0 if _SHARE.search(metric) else np.inf
    mean = np.mean(values)
    return float(max(mean - half, low)), float(min(mean + half, high))


def systems(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by system, under the name of its page. The first row of a system heads it."""
    by_system: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_system.setdefault(row["system"], []).append(row)
    return {
        system_rows[0]["recipes"][0].removesuffix("-0"): system_rows
        for system_rows in by_system.values()
    }


def summary(rows: list[dict[str, Any]], place: str) -> str:
    """Return a table with one line per system.

    ``place`` is the pattern of the link of a system's name, such as ``systems/{}.md``.
    """
    lines = [
        _line(
            "system",
            "source",
            "figure",
            "published",
            "reached",
            "strongest baseline",
            "verdict",
            "code",
            "command",
        ),
        "|" + "---|" * 9,
    ]
    for name, (first, *_) in systems(rows).items():
        link = f"[{first['system']}]({place.format(name)})"
        lines.append(
            _line(
                link,
                first["source"],
                first["what"],
                *_against(first),
                _code(first),
                f"`{first['command']}`",
            )
        )
    return "\n".join(lines)


def headlines(rows: list[dict[str, Any]], place: str) -> str:
    """Return a table of the rows that have a ``headline``, their name there."""
    lines = [
        _line("figure", "published", "reached", "strongest baseline", "verdict", "code"),
        "|" + "---|" * 6,
    ]
    pages = {row["system"]: name for name, rows_ in systems(rows).items() for row in rows_}
    for row in rows:
        if row["headline"]:
            name = f"[{row['headline']}]({place.format(pages[row['system']])})"
            lines.append(_line(name, *_against(row), _code(row)))
    return "\n".join(lines)


def _against(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return published figure, figure reached, strongest baseline and verdict."""
    reached = f"**{row['reached']:.4g}**" + (f" ({_range(row)})" if row["interval"] else "")
    return _published(row), reached, _strongest(row), verdict(row)


def _strongest(row: dict[str, Any]) -> str:
    return "; ".join(f"{value:.4g} ({label})" for label, value in ranked(row)[:1]) or "none"


def verdict(row: dict[str, Any]) -> str:
    """Say whether a row won or lost against the published figure and its strongest baseline.

    It tied with a value within its interval, or with a published one that may be within it before
    it was rounded. A row without an interval says that it is of one seed.
    """
    if not row["better"]:
        return "-"
    found: dict[str, list[str]] = {}
    rivals = [("published", row["published"]), *(("baseline", v) for _, v in ranked(row)[:1])]
    for name, value in rivals:
        if value is not None:
            low, high = row["interval"] or (row["reached"], row["reached"])
            lead = _SIGNS[row["better"]] * (row["reached"] - value)
            rounding = row["rounding"] if name == "published" else 0.0
            is_tied = low - rounding <= value <= high + rounding
            found.setdefault("tied" if is_tied else "won" if lead > 0 else "lost", []).append(name)
    words = {"won": "won", "tied": "tied", "lost": "**lost**"}
    said = [f"{words[word]}: {' and '.join(names)}" for word, names in found.items()]
    return ", ".join(said) + ("" if row["interval"] or not said else " (one seed)") or "-"


def renewed(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the README with its table replaced. Raise :class:`DataError` without its marks."""
    before, mark, rest = page.partition(_MARK)
    _, end, after = rest.partition(_END)
    if not (mark and end):
        raise DataError(
            f"README.md: no place for the table; put {_MARK!r} and {_END!r} where it belongs"
        )
    return f"{before}{_MARK}\n{headlines(rows, 'docs/results.md#{}')}\n{_END}{after}"


def markdown(rows: list[dict[str, Any]], unmeasured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of results: summary, a section per system, and what was not measured."""
    lines = [
        "# Results",
        "",
        "`python -m pipelines.results` writes this page from the committed",
        "`reports/<recipe>/*/metrics.json`. Values are means over seeds with 95 % t-intervals.",
        "FID-clf uses the features of the pipeline's own classifier and is not comparable with",
        "published FID: compare it with real images (the floor) and with the baselines.",
        "",
        "The *strongest baseline* is the best of all that the metrics of a row hold. A row is",
        "*tied* with a value within its interval; a row of one seed has that of its estimate",
        "(three standard errors of AIS), or none, and then its verdict says *one seed*. Settings",
        "were chosen without the judged data; a row says where these had been seen before.",
        "",
        "*code* is the commit that made a row. A row is *stale* where code or settings that it",
        "depends on have changed since, and no `python -m pipelines.verify` shows equal bits;",
        "`ebm-dist results --status` gives the reason. Rows made before the commit was recorded",
        "have the commit that added the figures.",
        "",
        summary(rows, "#{}"),
    ]
    for name, system_rows in systems(rows).items():
        first = system_rows[0]
        lines += ["", f'<a id="{name}"></a>', "", f"## {first['system']}", "", _origin(first), ""]
        lines += [
            _line(*_COLUMNS),
            "|" + "---|" * len(_COLUMNS),
            *(_line(*_cells(row)) for row in system_rows),
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
                f"`{name}`", entry["what"], entry["unmeasured"], f"`{_command(recipes_of(entry))}`"
            )
            for name, entry in unmeasured.items()
        ]
    return "\n".join(lines) + "\n"


def lost(rows: list[dict[str, Any]]) -> str:
    """Return the page of what was lost: each system with a lost row, and the reason."""
    lines = [
        "# What we lost, and why",
        "",
        "`python -m pipelines.results` writes this page: each figure that lost against the",
        "published one or against the strongest baseline, with the reason as far as it is known.",
        "Tables with anomalies have [a page of their own](tabular.md).",
    ]
    for name, system_rows in systems(rows).items():
        losers = [row for row in system_rows if "**lost**" in verdict(row)]
        if losers:
            why = " ".join(row["why"] for row in system_rows if row["why"])
            lines += ["", f"## [{losers[0]['system']}](results.md#{name})", "", why, ""]
            lines += [_line("figure", "published", "reached", "strongest baseline", "verdict")]
            lines += ["|" + "---|" * 5]
            lines += [_line(row["what"], *_against(row)) for row in losers]
    return "\n".join(lines) + "\n"


def system_page(
    rows: list[dict[str, Any]], pictures: Sequence[str], heads: Mapping[str, str]
) -> str:
    """Return the page of one system: linked pictures, its rows, and its parameter files.

    ``heads`` has the text of the parameter file of each recipe.
    """
    lines = [f"# {rows[0]['system']}", "", _origin(rows[0]), ""]
    for link in pictures:
        lines += [f"![{rows[0]['system']}]({link})", ""]
    for row in rows:
        facts = {
            "reached": f"**{row['reached']:.4g}**",
            **(
                {"95 % interval": _range(row), "seeds": _cells(row)[5]}
                if row["interval"]
                else {"seeds": "one"}
            ),
            "published": f"{_published(row)} ({row['source']})",
            "verdict": verdict(row),
            **{f"baseline: {label}": f"{value:.4g}" for label, value in ranked(row)},
            **{label: number(value) for label, value in row["beside"].items()},
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
        lines += [f"\n{text[0].upper()}{text[1:]}." for text in _seen(row)]
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
        f"Source: {row['source']}. Data: {data['dataset']}{mark}, "
        f"index SHA-256 `{data['data_digest'][:16]}`.\n"
        f"Trained on {row['workers']} workers ({cpu['cpu']}, {cpu['cores']} cores)."
    )


def _published(row: dict[str, Any]) -> str:
    return "none" if row["published"] is None else f"{row['published']:g}"


def _range(row: dict[str, Any]) -> str:
    return " to ".join(f"{end:.4g}" for end in row["interval"])


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"`{row['id']}`",
        row["what"],
        _published(row),
        f"**{row['reached']:.4g}**",
        _range(row) if row["interval"] else "-",
        ", ".join(f"{value:.4g}" for value in row["seeds"].values()) or "1",
        _strongest(row),
        verdict(row),
        "; ".join([*(f"{k} {v}" for k, v in _others(row).items()), *_seen(row)]) or "-",
        f"{np.mean(row['seconds']):.0f} s a seed",
        _code(row),
        f"`{row['command']}`",
    ]


def _seen(row: dict[str, Any]) -> list[str]:
    return [f"judged data seen before: {row['seen']}"] if row["seen"] else []


def _others(row: dict[str, Any]) -> dict[str, str]:
    """Return the baselines after the strongest, and the numbers beside."""
    numbers = {**dict(ranked(row)[1:]), **row["beside"]}
    return {label: number(value) for label, value in numbers.items()}


def number(value: float | None) -> str:
    """Return a number as the pages show it."""
    return "not reached" if value is None else f"{value:.4g}"


def _code(row: dict[str, Any]) -> str:
    return (row["commit"][:10] or "unknown") + (", stale" if row["stale"] else "")
