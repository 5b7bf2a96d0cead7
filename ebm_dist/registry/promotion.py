"""Who made which version champion, when, and by which figures: a log that only grows, and a way back."""

import getpass
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ebm_dist.errors import RegistryError
from ebm_dist.runs import tracking

_TAG = "ebm.promotion."
_GATE = "gate."
T = TypeVar("T")


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
    """what each gate said"""


def log(mlflow: Any, model: str) -> list[Event]:
    """All changes so far, the first first."""
    tags = mlflow.get_registered_model(model).tags
    return [
        Event(**json.loads(tags[key]))
        for key in sorted(key for key in tags if key.startswith(_TAG))
    ]


def champion(mlflow: Any, model: str) -> str | None:
    """The version that is champion now."""
    found = mlflow.get_registered_model(model).aliases.get("champion")
    return None if found is None else str(found)


def promote(mlflow: Any, model: str, version: str, why: str = "gates") -> Event | None:
    """Make a version champion; None if it is already. Raises :class:`RegistryError` unless all its gates have passed."""
    tags = mlflow.get_model_version(model, version).tags
    gates = {key.removeprefix(_GATE): value for key, value in tags.items() if key.startswith(_GATE)}
    failed = [f"{metric} {said}" for metric, said in gates.items() if not said.endswith("pass")]
    if failed or not gates:
        reason = "; ".join(failed) if failed else "it has no gates"
        raise RegistryError(
            f"{model}/{version} cannot become champion: {reason}; mend the model, or the gates in register.gates"
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
        gates,
    )
    mlflow.set_registered_model_tag(
        model, f"{_TAG}{len(log(mlflow, model)):06d}", json.dumps(event._asdict())
    )
    mlflow.set_registered_model_alias(model, "champion", version)
    return event


def roll_back(mlflow: Any, model: str) -> Event:
    """Make the champion before this one champion again. Raises :class:`RegistryError` if there was none."""
    now = champion(mlflow, model)
    reached = next(
        (
            event
            for event in reversed(log(mlflow, model))
            if event.version == now and event.why != "roll-back"
        ),
        None,
    )
    if reached is None or reached.before is None:
        raise RegistryError(
            f"{model}: no champion before {now or 'any'}; the log: ebm-dist history {model}"
        )
    event = promote(mlflow, model, reached.before, "roll-back")
    if event is None:
        raise RegistryError(f"{model}/{now} is champion already; the log: ebm-dist history {model}")
    return event


def ask(question: Callable[[Any], T]) -> T:
    """An answer of the registry. Raises :class:`RegistryError` where it cannot be reached, or does not know the model."""
    try:
        return question(tracking.client())
    except RegistryError:
        raise
    except Exception as failed:  # noqa: BLE001 (MLflow raises many kinds)
        said = str(failed).splitlines()[0][:300]
        raise RegistryError(
            f"MLflow at {tracking.tracking_uri()}: {said}; see ebm-dist doctor"
        ) from None
