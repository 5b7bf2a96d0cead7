"""The space of a search: ranges of dotted keys, draws from them, and the parameters of a trial."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebm_dist import config
from ebm_dist.config import Params, section
from ebm_dist.errors import ConfigError
from ebm_dist.rng import numpy_stream

_SECTIONS = ("energy", "sampler", "objective", "train", "replay", "optimizer")
_OWN = (
    "train.num_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_rollbacks",
)  # set by the search itself
_MAX_DRAWS = 1000
_DIGITS = 4  # significant digits of a drawn value: the tuned file is to be read


@section
class Range:
    """Values that a key may take: one of the three."""

    log: tuple[float, float] | None = None
    """[low, high], uniform in the logarithm; whole numbers where the key is one."""
    linear: tuple[float, float] | None = None
    """[low, high], uniform; whole numbers where the key is one."""
    choice: tuple[Any, ...] | None = None
    """Any of these."""


DEFAULT_SPACE = {
    "sampler.step_size": Range(log=(1e-4, 1.0)),
    "objective.energy_penalty": Range(log=(1e-3, 1.0)),
    "sampler.noise_scale": Range(log=(3e-3, 0.3)),
}


def keys(params: Params) -> dict[str, Any]:
    """Dotted key -> value of all that a search may change: what decides the result of training, but data, seed and length."""
    found: dict[str, Any] = {}

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{name}.", value)
            elif name != "name":
                found[prefix + name] = value

    walk("", params.as_dict(*_SECTIONS))
    return {key: value for key, value in found.items() if key not in _OWN}


def with_values(params: Params, values: Mapping[str, Any], **more: Any) -> Params:
    """The parameters with the values of some dotted keys replaced, and no search. Raises :class:`ConfigError`."""
    plain = params.as_dict()
    del plain["tune"]
    for key, value in {**values, **more}.items():
        *path, name = key.split(".")
        place = plain
        for part in path:
            place = place[part]
        place[name] = list(value) if isinstance(value, tuple) else value
    return config.from_values(plain, Path("tune"))


def trial_params(
    params: Params, values: Mapping[str, Any], seed: int, num_steps: int, checkpoint_every: int
) -> Params:
    """What a trial trains with: its values, and no rollbacks, because a trial that diverges has shown what it is worth."""
    own = {
        "seed": seed,
        "train.num_steps": num_steps,
        "train.checkpoint_every": checkpoint_every,
        "train.max_rollbacks": 0,
    }
    return with_values(params, values, **own, **{"cluster.workers": params.tune.workers})


def of_type(value: float, example: Any) -> float:
    """Round to four digits, or to a whole number where the example is one."""
    return round(value) if isinstance(example, int) else float(f"{value:.{_DIGITS}g}")


def rounded(value: Any, example: Any) -> Any:
    """A value as a drawn one is written: four digits, whole where the key's value is; anything but numbers as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return of_type(value, example) if is_number else value


def draw(params: Params, index: int) -> dict[str, Any]:
    """The values of a trial: a function of ``tune.seed`` and its index. Combinations that the settings refuse are redrawn.

    Trials are spread more evenly than independent draws: they are points of a scrambled Sobol sequence. Redraws are independent.
    Raises :class:`ConfigError` if every one is refused.
    """
    ranges, known = params.tune.ranges(params), keys(params)
    from scipy.stats.qmc import (
        Sobol,
    )  # a second to import, and every process reads this file's Config

    sequence = Sobol(len(ranges), rng=params.tune.seed)
    places = sequence.fast_forward(index).random(1)[0] if index else sequence.random(1)[0]
    generator = numpy_stream(params.tune.seed, "tune/redraw", index)
    for _ in range(_MAX_DRAWS):
        values = {
            key: _one(chosen, float(u), known[key])
            for u, (key, chosen) in zip(places, ranges.items(), strict=True)
        }
        if is_possible(params, values):
            return values
        places = generator.random(len(ranges))
    raise ConfigError(
        f"tune.space: {_MAX_DRAWS} draws, and no combination that the settings allow; narrow it"
    )


def _one(chosen: Range, u: float, example: Any) -> Any:
    """The value at the quantile ``u`` of a range."""
    if chosen.choice:
        return chosen.choice[int(u * len(chosen.choice))]
    if chosen.log:
        low, high = map(math.log, chosen.log)
        return of_type(math.exp(low + u * (high - low)), example)
    assert chosen.linear
    return of_type(chosen.linear[0] + u * (chosen.linear[1] - chosen.linear[0]), example)


def perturbed(params: Params, values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    """PBT's exploration: each number times 0.8 or 1.25, kept in its range; each choice drawn anew one time in four."""
    known, out = keys(params), dict(values)
    for key, chosen in params.tune.ranges(params).items():
        if chosen.choice:
            out[key] = (
                _one(chosen, generator.random(), known[key])
                if generator.random() < 0.25
                else values[key]
            )
        else:
            low, high = chosen.log or chosen.linear or (0.0, 0.0)
            out[key] = of_type(
                min(max(values[key] * generator.choice([0.8, 1.25]), low), high), known[key]
            )
    return out if is_possible(params, out) else dict(values)


def is_possible(params: Params, values: Mapping[str, Any]) -> bool:
    """Whether the settings allow these values together."""
    try:
        with_values(params, values)
    except ConfigError:
        return False
    return True
