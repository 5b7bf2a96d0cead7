"""The model card of a registered version (Mitchell et al. 2019).

Headline figures and limits come first, then data, method, metrics, lineage and how to cite it.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist.config import Params, module_of, plugin_name
from ebm_dist.errors import DataError, printable
from ebm_dist.files import flat
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report.headlines import headlines
from ebm_dist.report.suites import read_suites
from ebm_dist.report.table import interval

_FIRST_SUITE = "samples"
_MIXED_RHAT = 1.1  # Gelman et al. 2013, Bayesian Data Analysis, section 11.5
_ENTITIES = re.compile(r"[<>]|&(?=#?\w)")
# punctuation that Markdown may read as markup; an underscore within a word is not
_MARKUP = re.compile(r"[\\`*{}\[\]#|~!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_PAPER = re.compile(r"[A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)? (?:19|20)\d\d")
_TRAINING = "train"
"""The folder of reports with the metrics of the training, which are no evaluation."""


class Verdict(NamedTuple):
    """The outcome of a gate: the metric, its value, the bound such as ``>= 0.9``."""

    metric: str
    value: float | None
    """None if the reports have no finite value"""
    bound: str
    passes: bool
    skipped: str = ""
    """Why the gate cannot be applied; then it has not passed"""

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.bound} skipped: {self.skipped}"
        value = "not finite" if self.value is None else f"{self.value:.6g}"
        return f"{value} {self.bound} {'pass' if self.passes else 'FAIL'}"


def write(
    model: str,
    trained: TrainedModel,
    params: Params,
    reports: Path,
    verdicts: Sequence[Verdict],
    lineage: Mapping[str, str],
) -> str:
    """Return the card of a version of the registered model ``model``, as Markdown.

    Raise :class:`DataError`, with the names of the empty sections, for a card with gaps.
    """
    suites = read_suites(reports)
    plots = sorted(path for path in reports.glob("*/plots/*") if path.is_file())
    pictures = [
        f"- {_code(f'reports/{path.relative_to(reports)}')}"
        for path in plots
        if path.suffix in (".png", ".gif")
    ]
    card = trained.card
    sections = {
        "Headline figures": _headlines(suites),
        "Limits": _limits(card, suites, params.register.limits),
        "Data": _data(card),
        "Method": _method(trained, params),
        "Sampler": _settings(params.sampler),
        "Gates": _gates(verdicts),
        "Metrics": _metrics(suites, verdicts),
        "Lineage": "\n".join(
            f"- {key}: {_code(value)}" for key, value in _origin(card, lineage).items() if value
        ),
        "How to cite": _citation(model, card, params),
        "Pictures": "\n".join(pictures) or ("None: the suites wrote tables only." if plots else ""),
    }
    gaps = [name for name, text in sections.items() if not text]
    gaps += [f"Lineage: {key}" for key, value in _origin(card, lineage).items() if not value]
    if gaps:
        raise DataError(
            f"{reports}: the model card has gaps, so nothing is published: {', '.join(gaps)};"
            " run 'dvc repro'"
        )
    return (
        "\n\n".join(
            [
                f"# {escaped(model)}",
                *(f"## {name}\n\n{text}" for name, text in sections.items()),
            ]
        )
        + "\n"
    )


def escaped(text: str) -> str:
    """Return a text that Markdown shows as typed, in a paragraph and in a cell of a table.

    Angle brackets become entities, because MLflow's Markdown has no backslash before them.
    """
    escapes = _MARKUP.sub(r"\\\g<0>", printable(text).replace("\n", " "))
    return _ENTITIES.sub(lambda match: html.escape(match[0]), escapes)


def _code(text: str) -> str:
    """Return a text as Markdown code; its fence is longer than any row of backticks in it."""
    shown = printable(text).replace("\n", " ")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _headlines(suites: Mapping[str, Any]) -> str:
    lines = [
        f"- {line.name}: **{line.value:.4g}**" + (f" ({line.reading})" if line.reading else "")
        for line in headlines(suites)
    ]
    return "\n".join(lines) or "None of the suites has one: see the metrics below."


def _citation(model: str, card: Mapping[str, Any], params: Params) -> str:
    about = module_of(params.objective).__doc__ or ""
    papers = "; ".join(dict.fromkeys(_PAPER.findall(" ".join(about.split()))))
    method = f"{escaped(about.partition(chr(10))[0])} {f'Papers: {papers}.' if papers else ''}"
    return "\n".join(
        [
            f"- Model: {escaped(model)}, energy-based model trained with ebm-dist (CITATION.cff of"
            f" its repository), weights {_code(card['sha256']['energy.safetensors'][:16])}.",
            f"- Method: {method.strip()}",
            f"- Data: {escaped(card['source'])}.",
        ]
    )


def shortened(card_text: str, max_length: int) -> str:
    """Return a card of at most ``max_length`` characters: the last rows of metrics are left out."""
    head, title, rest = card_text.partition("\n\n## Metrics\n\n")
    table, next_title, tail = rest.partition("\n\n## ")
    rows = table.splitlines()
    note = "\n\nThe other metrics are in the artifact model-card.md of the run."
    while len(card_text) > max_length and len(rows) > 2:
        rows.pop()
        card_text = "".join([head, title, "\n".join(rows), note, next_title, tail])
    return card_text[:max_length]


def _data(card: Mapping[str, Any]) -> str:
    if not card["source"]:
        return ""
    origin = "" if card["is_official"] else " **The user's own files.**"
    samples = f"Samples of shape {tuple(card['shape'])}, {card['num_classes'] or 'no'} classes."
    names = ", ".join(map(escaped, card.get("class_names", ())))
    classes = f" Classes: {names}." if names else ""
    units = (
        " Standardised; requests are in the units of the data." if "standardisation" in card else ""
    )
    source = f"{escaped(card['dataset'])}: {escaped(card['source'])}"
    return f"{source}.{origin} {samples}{classes}{units}"


def _method(trained: TrainedModel, params: Params) -> str:
    networks = {"energy": trained.energy, **trained.other_players}
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}"
        for name, network in networks.items()
    )
    return (
        f"{_settings(params.objective)}\n\nEnergy: {_settings(params.energy)}\n\n"
        f"{params.train.num_steps:,} steps of {params.train.batch_size} samples, seed"
        f" {params.seed}. Parameters: {sizes}."
    )


def _settings(config: Any) -> str:
    """Return a plugin and its values, as in a parameter file."""
    values = {name: getattr(config, name) for name in type(config).__dataclass_fields__}
    texts = {
        name: f"({_settings(value)})" if plugin_name(value) else str(value)
        for name, value in values.items()
    }
    return ", ".join(
        [f"`{plugin_name(config)}`", *(f"{name} {value}" for name, value in texts.items())]
    )


def _gates(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "None are set, so it cannot become champion."
    rows = []
    for v in verdicts:
        outcome = f"skipped: {escaped(v.skipped)}" if v.skipped else "**fail**"
        rows.append(
            f"| {escaped(v.metric)} | {'-' if v.value is None else f'{v.value:.4g}'} | {v.bound} |"
            f" {'pass' if v.passes else outcome} |"
        )
    return "\n".join(["| gate | value | bound | |", "|---|---|---|---|", *rows])


def _metrics(suites: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """Return a table of means over seeds, with 95 % t-intervals where there are several seeds.

    The suite of samples comes first, then the metrics of gates, the other suites, the training.
    """
    gated = {verdict.metric for verdict in verdicts}
    rows = dict[str, str]()
    for suite, metrics in suites.items():
        seeds = [flat(seed_metrics) for seed_metrics in metrics.get("seeds", {}).values()]
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items():
            values = [seed_metrics.get(key) for seed_metrics in seeds]
            numbers = [float(v) for v in values if isinstance(v, int | float)]
            name = f"{suite}.{key}"
            is_whole = numbers and len(numbers) == len(values)
            ends = interval(numbers, name) if is_whole else None
            spread = "one seed" if ends is None else "{:.4g} to {:.4g}".format(*ends)
            text = f"{value:.4g}" if isinstance(value, int | float) else str(value)
            rows[name] = f"| {escaped(name)} | {text} | {spread} |"

    def place(name: str) -> int:
        suite = name.partition(".")[0]
        order = (suite == _FIRST_SUITE, name in gated, suite != _TRAINING)
        return order.index(True) if any(order) else len(order)

    if not rows:
        return ""
    ordered = [rows[name] for name in sorted(rows, key=place)]  # keeps the order of equal places
    return "\n".join(["| metric | value | 95 % interval |", "|---|---|---|", *ordered])


def _limits(card: Mapping[str, Any], suites: Mapping[str, Any], model_limits: str) -> str:
    names = ", ".join(escaped(name) for name in suites if name != _TRAINING) or "no suite"
    lines = [
        *_mixing(suites),
        "- Energies have an unknown constant and scale: they compare samples under this model,"
        " not models.",
        f"- It was evaluated by {names}; nothing is known about other uses.",
        f"- Its input is samples like those of {escaped(card['dataset'])};"
        " energies of other samples are extrapolations.",
    ]
    return "\n".join(lines + ([f"- {model_limits}"] if model_limits else []))


def _mixing(suites: Mapping[str, Any]) -> list[str]:
    """Return a line that says so if a suite found that chains have not mixed."""
    values = {
        f"{suite}.{key}": value
        for suite, metrics in suites.items()
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items()
        if key.rpartition(".")[2] == "rhat" and not (is_number(value) and value <= _MIXED_RHAT)
    }
    if not values:
        return []
    texts = [
        f"{escaped(key)} {f'{value:.3g}' if is_number(value) else 'not finite'}"
        for key, value in values.items()
    ]
    return [
        f"- Its chains have not mixed: R-hat is over {_MIXED_RHAT} ({', '.join(texts)}). Samples"
        " depend on where chains start and on their number of steps."
    ]


def is_number(value: Any) -> bool:
    """Return whether a metric is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _origin(card: Mapping[str, Any], lineage: Mapping[str, str]) -> dict[str, str]:
    return {
        "run digest": card["run_digest"],
        "data digest": card["data_digest"],
        "weights SHA-256": card["sha256"]["energy.safetensors"],
        "settings digest": lineage.get("config.digest", ""),
        "hardware": lineage.get("hardware", ""),
        **({"git commit": lineage["git.commit"]} if "git.commit" in lineage else {}),
    }
