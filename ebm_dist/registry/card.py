"""The model card of a registered version (Mitchell et al. 2019): what it learnt, how, how well, and what it is not good for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist.config import Params, plugin_name
from ebm_dist.errors import DataError
from ebm_dist.files import flat
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report.suites import read_suites
from ebm_dist.report.table import interval

_MOST_METRICS = 40  # of those without a gate


class Verdict(NamedTuple):
    """A gate, and what was found."""

    metric: str
    value: float
    bound: str
    passes: bool


def write(
    trained: TrainedModel,
    params: Params,
    reports: Path,
    verdicts: Sequence[Verdict],
    lineage: Mapping[str, str],
) -> str:
    """Markdown. Raises :class:`DataError` that names each gap: a card with gaps is not published."""
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
            f"{reports}: the model card has gaps, so nothing is published: {', '.join(gaps)}; run 'dvc repro'"
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
    mark = "" if card["is_official"] else " **The user's own files.**"
    about = f"Samples of shape {tuple(card['shape'])}, {card['num_classes'] or 'no'} classes."
    return f"{card['dataset']}: {card['source']}.{mark} {about}"


def _method(trained: TrainedModel, params: Params) -> str:
    networks = {"energy": trained.energy, **trained.other_players}
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}"
        for name, network in networks.items()
    )
    return (
        f"{_settings(params.objective)}\n\nEnergy: {_settings(params.energy)}\n\n{params.train.num_steps:,} steps of"
        f" {params.train.batch_size} samples, seed {params.seed}. Parameters: {sizes}."
    )


def _settings(config: Any) -> str:
    """A plugin and its values, as in a parameter file."""
    values = {name: getattr(config, name) for name in type(config).__dataclass_fields__}
    inner = {
        name: f"({_settings(value)})" if plugin_name(value) else str(value)
        for name, value in values.items()
    }
    return ", ".join(
        [f"`{plugin_name(config)}`", *(f"{name} {value}" for name, value in inner.items())]
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
    """Means over seeds with their 95 % t-intervals, where there are several."""
    rows = []
    for suite, metrics in suites.items():
        seeds = [flat(one) for one in metrics.get("seeds", {}).values()]
        for key, value in flat({k: v for k, v in metrics.items() if k != "seeds"}).items():
            between = interval([float(one[key]) for one in seeds]) if seeds else None
            rows.append(
                f"| {suite}.{key} | {value:.4g} | {'one seed' if between is None else '{:.4g} to {:.4g}'.format(*between)} |"
            )
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


def _limits(card: Mapping[str, Any], suites: Mapping[str, Any], own: str) -> str:
    judged = ", ".join(suites) or "no suite"
    lines = [
        "- Energies are known up to a constant, and in a scale of their own: they compare samples under this model, no models.",
        f"- It was judged by {judged}; about anything else nothing is known.",
        f"- It takes samples like those of {card['dataset']}; on others energies are extrapolations.",
    ]
    return "\n".join(lines + ([f"- {own}"] if own else []))


def _origin(card: Mapping[str, Any], lineage: Mapping[str, str]) -> dict[str, str]:
    return {
        "run digest": card["run_digest"],
        "data digest": card["data_digest"],
        "weights SHA-256": card["sha256"]["energy.safetensors"],
        "settings digest": lineage.get("config.digest", ""),
        "hardware": lineage.get("hardware", ""),
        **({"git commit": lineage["git.commit"]} if "git.commit" in lineage else {}),
    }
