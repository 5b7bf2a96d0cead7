"""A run on one page: a self-contained HTML file of its reports, to read offline, in light and dark, by mouse or keyboard."""

import base64
import csv
import io
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ebm_dist.errors import DataError
from ebm_dist.files import flat, read_json
from ebm_dist.report.suites import read_suite, read_suites
from ebm_dist.report.table import interval

_KINDS = {".png": "image/png", ".gif": "image/gif"}
_WIDTH, _HEIGHT = 240, 90  # of a curve
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #fff; --soft: #6b7280; --line: #d7dbe0; --mark: #0b6fb8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #16181c; --soft: #9aa3ad; --line: #3a4048; --mark: #6db8f2 } }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.5rem 4rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
a { color: var(--mark) } :focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
figure { margin: 1rem 0 } figure img { max-width: 100%; background: #fff; padding: .4rem; box-sizing: border-box }
figcaption, .soft { color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line) } td.n { text-align: right }
.curves { display: flex; flex-wrap: wrap; gap: 1rem } .curves figure { margin: 0 }
svg path { fill: none; stroke: var(--mark); stroke-width: 1.5 } svg rect { fill: none; stroke: var(--line) }
summary { cursor: pointer; padding: .3rem 0 } .bad { color: #c62828; font-weight: 600 }
@media (prefers-color-scheme: dark) { .bad { color: #ff8a80 } }
"""


def build(reports: Path, beside: Path | None = None) -> str:
    """The page of a folder of reports; ``beside`` is another, such as the champion's, whose metrics stand in a second column.

    Raises :class:`DataError` where there are no reports.
    """
    suites = read_suites(reports)
    suites.pop("train", None)
    if not suites:
        raise DataError(f"{reports}: no suite's metrics.json; run 'dvc repro'")
    theirs = {name: read_suite(beside, name) or {} for name in suites} if beside else {}
    sections = {"Training": "".join(_training(reports))}
    for name, metrics in suites.items():
        sections[name.replace("_", " ").capitalize()] = "".join(
            _suite(reports / name, metrics, theirs.get(name))
        )
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections)
    body = "".join(
        f'<section><h2 id="{_anchor(name)}">{escape(name)}</h2>{text}</section>'
        for name, text in sections.items()
    )
    title = escape(reports.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><header><h1>{title}</h1>{_gates(reports)}<nav aria-label='Sections'><ul>{links}</ul></nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _gates(reports: Path) -> str:
    """What the registry said, where the run is registered."""
    path = reports / "registry.json"
    if not path.exists():
        return ""
    said = read_json(path, "register")
    rows = [
        (
            gate["metric"],
            f"{gate['value']:.4g}",
            gate["bound"],
            "pass" if gate["passes"] else '<span class="bad">fail</span>',
        )
        for gate in said["gates"]
    ]
    aliases = ", ".join(said["aliases"])
    return f"<p>{escape(said['model'])}, version {said['version']}: {escape(aliases)}</p>" + _table(
        ("gate", "value", "bound", "verdict"), rows
    )


def _training(reports: Path) -> Iterator[str]:
    """Curves, and what the run cost."""
    for path in sorted(reports.glob("train/**/run.json")):
        run = read_json(path, "train")
        workers = (
            run["workers"] if isinstance(run["workers"], list) else [run["workers"]]
        )  # from the fewest to the most
        cost, most = run["seconds"] * workers[-1], "at most " if len(workers) > 1 else ""
        energy = (
            f", {run['watts_a_worker'] * cost / 1000:.0f} kJ by NVML"
            if "watts_a_worker" in run
            else ""
        )
        name, count = path.parent.relative_to(reports), " to ".join(map(str, workers))
        machine = f"{run['hardware']['cpu']}, {run['hardware']['cores']} cores"
        said = f"{name}: {run['seconds']:.0f} s on {count} workers ({machine}): {most}{cost:.0f} device-seconds{energy}."
        yield f'<p class="soft">{escape(said)}</p>'
    for path in sorted(reports.glob("train/**/chains.png"))[:1]:
        yield _picture(path, "Chains over the training")
    first = next(iter(sorted(reports.glob("train/**/curves.csv"))), None)
    if first is not None:
        rows = list(csv.DictReader(io.StringIO(first.read_text())))
        curves = [
            _curve(key, [(float(r["step"]), float(r[key])) for r in rows if r[key]])
            for key in rows[0]
            if key != "step"
        ]
        yield f'<div class="curves">{"".join(curves)}</div>'


def _curve(name: str, points: list[tuple[float, float]]) -> str:
    """One metric over the steps, with its range and last value."""
    shown = [(x, y) for x, y in points if math.isfinite(y)]
    if not shown:
        return ""
    xs, ys = zip(*shown, strict=True)
    low, high = min(ys), max(ys)
    across, up = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    path = " ".join(
        f"{(x - min(xs)) / across * _WIDTH:.1f},{(high - y) / up * _HEIGHT:.1f}" for x, y in shown
    )
    label = (
        f"{name}: {low:.3g} to {high:.3g}, last {ys[-1]:.3g}, steps {min(xs):.0f} to {max(xs):.0f}"
    )
    return (
        f'<figure><svg role="img" aria-label="{escape(label)}" viewBox="-2 -2 {_WIDTH + 4} {_HEIGHT + 4}" width="{_WIDTH}"'
        f' height="{_HEIGHT}"><rect width="{_WIDTH}" height="{_HEIGHT}"/><path d="M{path}"/></svg>'
        f"<figcaption>{escape(name)}: {ys[-1]:.3g}<br>from {low:.3g} to {high:.3g}</figcaption></figure>"
    )


def _suite(folder: Path, metrics: dict[str, Any], theirs: dict[str, Any] | None) -> Iterator[str]:
    for path in sorted(folder.glob("plots/*")):
        if path.suffix in _KINDS:
            yield _picture(path, f"{folder.name}: {path.stem.replace('_', ' ')}")
    seeds = [flat(one) for one in metrics.get("seeds", {}).values()]
    other = flat(theirs or {})
    rows = []
    for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items():
        between = interval([float(one[key]) for one in seeds]) if seeds else None
        scatter = "" if between is None else f"{between[0]:.4g} to {between[1]:.4g}"
        rows.append(
            (
                escape(key),
                f"{value:.5g}",
                scatter,
                *((f"{other[key]:.5g}" if key in other else "",) if theirs else ()),
            )
        )
    head = ("metric", "value", "95 % interval", *(("beside it",) if theirs else ()))
    yield f"<details{' open' if len(rows) <= 12 else ''}><summary>{len(rows)} metrics</summary>{_table(head, rows)}</details>"


def _picture(path: Path, name: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(name)}" src="data:{_KINDS[path.suffix]};base64,{content}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are HTML; the first column is text, the others are numbers."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    cells = [
        "".join(f"<td{' class=n' if i else ''}>{cell}</td>" for i, cell in enumerate(row))
        for row in rows
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )
