"""Promotion of versions to champion: gates, an append-only log, and rollback."""

import getpass
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from ebm_dist.errors import RegistryError
from ebm_dist.registry.card import Verdict
from ebm_dist.runs import tracking

_TAG = "ebm.promotion."
_GATE = "gate."
T = TypeVar("T")


def gate_tags(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Return the tags of a version that hold the verdicts of its gates, as JSON."""
    return {
        _GATE + metric: json.dumps({"value": value, "bound": bound, "passes": passes})
        for metric, value, bound, passes in verdicts
    }


def read_gates(tags: Mapping[str, str]) -> dict[str, Verdict | str]:
    """Return the verdicts in the tags of a version, by metric.

    Tags of versions that were registered before verdicts were JSON are returned as their text.
    """
    return {
        key.removeprefix(_GATE): _read_gate(key.removeprefix(_GATE), text)
        for key, text in tags.items()
        if key.startswith(_GATE)
    }


def _read_gate(metric: str, text: str) -> Verdict | str:
    try:
        return Verdict(metric, **json.loads(text))
    except (ValueError, TypeError):
        return text


def passes(verdict: Verdict | str) -> bool:
    """Return whether a gate passed.

    A tag in the old format passed if it ends with "pass".
    """
    return verdict.endswith("pass") if isinstance(verdict, str) else verdict.passes is True


class Event(NamedTuple):
    """One change of the champion."""

    version: str
    before: str | None
    who: str
    at: str
    """UTC"""
    why: str
    """``gates`` or ``roll-back``"""
    gates: dict[str, str]
    """verdict of each gate, as text"""


def log(mlflow: Any, model: str) -> list[Event]:
    """Return all changes of the champion, oldest first."""
    tags = mlflow.get_registered_model(model).tags
    return [
        Event(**json.loads(tags[key]))
        for key in sorted(key for key in tags if key.startswith(_TAG))
    ]


def champion(mlflow: Any, model: str) -> str | None:
    """Return the version that is champion now, or None."""
    version = mlflow.get_registered_model(model).aliases.get("champion")
    return None if version is None else str(version)


def promote(mlflow: Any, model: str, version: str, why: str = "gates") -> Event | None:
    """Make a version champion, or return None if it already is the champion.

    Raise :class:`RegistryError` unless it has gates and all have passed.
    """
    gates = read_gates(mlflow.get_model_version(model, version).tags)
    failed = [f"{metric} {verdict}" for metric, verdict in gates.items() if not passes(verdict)]
    if failed or not gates:
        reason = "; ".join(failed) if failed else "it has no gates"
        raise RegistryError(
            f"{model}/{version} cannot become champion: {reason};"
            " improve the model, or change the gates in register.gates"
        )
    before = champion(mlflow, model)
    if before == version:
        return None
    event = Event(
        version,
        before,
        getpass.getuser(),
        time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        why,
        {metric: str(verdict) for metric, verdict in gates.items()},
    )
    mlflow.set_registered_model_tag(
        model, f"{_TAG}{len(log(mlflow, model)):06d}", json.dumps(event._asdict())
    )
    mlflow.set_registered_model_alias(model, "champion", version)
    return event


def roll_back(mlflow: Any, model: str) -> Event:
    """Make the previous champion champion again.

    Raise :class:`RegistryError` if there was none.
    """
    current_version = champion(mlflow, model)
    current_promotion = next(
        (
            event
            for event in reversed(log(mlflow, model))
            if event.version == current_version and event.why != "roll-back"
        ),
        None,
    )
    if current_promotion is None or current_promotion.before is None:
        raise RegistryError(
            f"{model}: no previous champion to roll back to"
            f" (champion now: {current_version or 'none'}); see 'ebm-dist history {model}'"
        )
    event = promote(mlflow, model, current_promotion.before, "roll-back")
    if event is None:
        raise RegistryError(
            f"{model}/{current_version} is already the champion; see 'ebm-dist history {model}'"
        )
    return event


def call(function: Callable[[Any], T]) -> T:
    """Call a function with the registry's client, and return its result.

    Raise :class:`RegistryError` if it cannot be reached or does not have the model.
    """
    try:
        return function(tracking.client())
    except RegistryError:
        raise
    except Exception as failed:  # noqa: BLE001 (MLflow raises many kinds)
        reason = tracking.first_line(failed)
        raise RegistryError(
            f"MLflow at {tracking.tracking_uri()}: {reason}; see ebm-dist doctor"
        ) from None
