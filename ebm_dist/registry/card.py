"""The model card of a registered version (Mitchell et al. 2019): data, method, metrics, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist.config import Params, plugin_name
from ebm_dist.errors import DataError
from ebm_dist.files import flat
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report.suites import read_suites
from ebm_dist.report.table import interval

_MOST_METRICS = 40  # rows of the table of metrics
_TRAINING = "train"
"""The folder of reports with the metrics of the training, which are no evaluation."""


class Verdict(NamedTuple):
    """The outcome of a gate: the metric, its value, the bound such as ``>= 0.9``."""

    metric: str
    value: float
    bound: str
    passes: bool

    def __str__(self) -> str:
        return f"{self.value:.6g} {self.bound} {'pass' if self.passes else 'FAIL'}"


def write(
    trained: TrainedModel,
    params: Params,
    reports: Path,
    verdicts: Sequence[Verdict],
    lineage: Mapping[str, str],
) -> str:
    """Return the card as Markdown.

    Raise :class:`DataError`, with the names of the empty sections, for a card with gaps.
    """
    suites = read_suites(reports)
    pictures = sorted(
        str(path.relative_to(reports))
        for path in reports.glob("*/plots/*")
        if path.suffix in (".png", ".gif")
    )
    card = trained.card
    sections = {
        "Data": _data(card),
        "Method": _method(trained, params),
        "Sampler": _settings(params.sampler),
        "Gates": _gates(verdicts),
        "Metrics": _metrics(suites),
        "Limits": _limits(card, suites, params.register.limits),
        "Lineage": "\n".join(
            f"- {key}: `{value}`" for key, value in _origin(card, lineage).items() if value
        ),
        "Pictures": "\n".join(f"- `reports/{name}`" for name in pictures),
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
                f"# {params.register.model}",
                *(f"## {name}\n\n{text}" for name, text in sections.items()),
            ]
        )
        + "\n"
    )


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
        f"| {v.metric} | {v.value:.4g} | {v.bound} | {'pass' if v.passes else '**fail**'} |"
        for v in verdicts
    ]
    return "\n".join(["| gate | value | bound | |", "|---|---|---|---|", *rows])


def _metrics(suites: Mapping[str, Any]) -> str:
    """Return a table of means over seeds, with 95 % t-intervals where there are several seeds."""
    rows = []
    for suite, metrics in suites.items():
        seeds = [flat(seed_metrics) for seed_metrics in metrics.get("seeds", {}).values()]
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items():
            values = [float(seed_metrics[key]) for seed_metrics in seeds]
            ends = interval(values, f"{suite}.{key}")
            spread = "one seed" if ends is None else "{:.4g} to {:.4g}".format(*ends)
            rows.append(f"| {suite}.{key} | {value:.4g} | {spread} |")
    more = (
        [f"\nand {len(rows) - _MOST_METRICS} more in `reports/`."]
        if len(rows) > _MOST_METRICS
        else []
    )
    return (
        "\n".join(
            ["| metric | value | 95 % interval |", "|---|---|---|", *rows[:_MOST_METRICS], *more]
        )
        if rows
        else ""
    )


def _limits(card: Mapping[str, Any], suites: Mapping[str, Any], model_limits: str) -> str:
    judges = ", ".join(suite for suite in suites if suite != _TRAINING) or "no suite"
    lines = [
        "- Energies have an unknown constant and scale: they compare samples under this model,"
        " not models.",
        f"- It was judged by {judges}; nothing is known about other uses.",
        f"- Its input is samples like those of {card['dataset']};"
        " energies of other samples are extrapolations.",
    ]
    return "\n".join(lines + ([f"- {model_limits}"] if model_limits else []))


def _origin(card: Mapping[str, Any], lineage: Mapping[str, str]) -> dict[str, str]:
    return {
        "run digest": card["run_digest"],
        "data digest": card["data_digest"],
        "weights SHA-256": card["sha256"]["energy.safetensors"],
        "settings digest": lineage.get("config.digest", ""),
        "hardware": lineage.get("hardware", ""),
        **({"git commit": lineage["git.commit"]} if "git.commit" in lineage else {}),
    }
