"""The model card of a registered version (Mitchell et al. 2019): data, method, metrics, limits."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist.config import Params, plugin_name
from ebm_dist.errors import DataError
from ebm_dist.files import flat
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report.suites import read_suites
from ebm_dist.report.table import interval

_FIRST_SUITE = "samples"
_MIXED_RHAT = 1.1  # Gelman et al. 2013, Bayesian Data Analysis, section 11.5
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
        f"- `reports/{path.relative_to(reports)}`"
        for path in plots
        if path.suffix in (".png", ".gif")
    ]
    card = trained.card
    sections = {
        "Data": _data(card),
        "Method": _method(trained, params),
        "Sampler": _settings(params.sampler),
        "Gates": _gates(verdicts),
        "Metrics": _metrics(suites, verdicts),
        "Limits": _limits(card, suites, params.register.limits),
        "Lineage": "\n".join(
            f"- {key}: `{value}`" for key, value in _origin(card, lineage).items() if value
        ),
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
                f"# {model}",
                *(f"## {name}\n\n{text}" for name, text in sections.items()),
            ]
        )
        + "\n"
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
    classes = f" Classes: {', '.join(card['class_names'])}." if "class_names" in card else ""
    units = (
        " Standardised; requests are in the units of the data." if "standardisation" in card else ""
    )
    return f"{card['dataset']}: {card['source']}.{origin} {samples}{classes}{units}"


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
    rows = [
        f"| {v.metric} | {'-' if v.value is None else f'{v.value:.4g}'} | {v.bound} |"
        f" {'pass' if v.passes else f'skipped: {v.skipped}' if v.skipped else '**fail**'} |"
        for v in verdicts
    ]
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
            rows[name] = f"| {name} | {text} | {spread} |"

    def place(name: str) -> int:
        suite = name.partition(".")[0]
        order = (suite == _FIRST_SUITE, name in gated, suite != _TRAINING)
        return order.index(True) if any(order) else len(order)

    if not rows:
        return ""
    ordered = [rows[name] for name in sorted(rows, key=place)]  # keeps the order of equal places
    return "\n".join(["| metric | value | 95 % interval |", "|---|---|---|", *ordered])


def _limits(card: Mapping[str, Any], suites: Mapping[str, Any], model_limits: str) -> str:
    names = ", ".join(suite for suite in suites if suite != _TRAINING) or "no suite"
    lines = [
        "- Energies have an unknown constant and scale: they compare samples under this model,"
        " not models.",
        f"- It was evaluated by {names}; nothing is known about other uses.",
        f"- Its input is samples like those of {card['dataset']};"
        " energies of other samples are extrapolations.",
        *_mixing(suites),
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
    texts = [f"{k} {v:.3g}" if is_number(v) else f"{k} not finite" for k, v in values.items()]
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
