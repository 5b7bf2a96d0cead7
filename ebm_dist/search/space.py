"""The space of a search: ranges of dotted keys, draws from them, and the settings of a trial."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebm_dist import config
from ebm_dist.config import Params, section
from ebm_dist.errors import ConfigError
from ebm_dist.rng import numpy_stream

_SECTIONS = ("energy", "sampler", "objective", "train", "replay", "optimizer")
_SET_BY_SEARCH = (
    "train.num_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_rollbacks",
)
_MAX_DRAWS = 1000
_DIGITS = 4  # significant digits of a drawn value: the tuned file stays readable


@section
class Range:
    """Values that a key may take: exactly one of the three kinds."""

    log: tuple[float, float] | None = None
    """[low, high], uniform in the logarithm; integers if the key's value is an integer."""
    linear: tuple[float, float] | None = None
    """[low, high], uniform; integers if the key's value is an integer."""
    choice: tuple[Any, ...] | None = None
    """List of values."""


DEFAULT_SPACE = {
    "sampler.step_size": Range(log=(1e-4, 1.0)),
    "objective.energy_penalty": Range(log=(1e-3, 1.0)),
    "sampler.noise_scale": Range(log=(3e-3, 0.3)),
}


def keys(params: Params) -> dict[str, Any]:
    """Return dotted key -> value of all settings that a search may change.

    They decide the result of training. Data, seed and length are left out.
    """
    flat_values: dict[str, Any] = {}

    def collect(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                collect(f"{prefix}{name}.", value)
            elif name != "name":
                flat_values[prefix + name] = value

    collect("", params.as_dict(*_SECTIONS))
    return {key: value for key, value in flat_values.items() if key not in _SET_BY_SEARCH}


def with_values(params: Params, values: Mapping[str, Any], **more: Any) -> Params:
    """Return the settings with some dotted keys replaced, without the search.

    Raise :class:`ConfigError` for values that the settings refuse.
    """
    plain = params.as_dict()
    del plain["tune"]
    for key, value in {**values, **more}.items():
        *path, name = key.split(".")
        target = plain
        for part in path:
            target = target[part]
        target[name] = list(value) if isinstance(value, tuple) else value
    return config.from_values(plain, Path("tune"))


def trial_params(
    params: Params, values: Mapping[str, Any], seed: int, num_steps: int, checkpoint_every: int
) -> Params:
    """Return the settings of a trial: its values, and no rollbacks, so that divergence counts."""
    trial_config = {
        "seed": seed,
        "train.num_steps": num_steps,
        "train.checkpoint_every": checkpoint_every,
        "train.max_rollbacks": 0,
    }
    return with_values(params, values, **trial_config, **{"cluster.workers": params.tune.workers})


def of_type(value: float, example: Any) -> float:
    """Round to four significant digits, or to an integer if the example is an integer."""
    return round(value) if isinstance(example, int) else float(f"{value:.{_DIGITS}g}")


def rounded(value: Any, example: Any) -> Any:
    """Round a number as drawn values are rounded; return other values unchanged."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return of_type(value, example) if is_number else value


def draw(params: Params, index: int) -> dict[str, Any]:
    """Draw the values of a trial, a function of ``tune.seed`` and its index.

    Trials are points of a scrambled Sobol sequence (Sobol 1967), which is spread more evenly than
    independent draws. Combinations that the settings refuse are drawn again, independently. Raise
    :class:`ConfigError` if all draws are refused.
    """
    from scipy.stats.qmc import Sobol  # slow to import, and every process imports this module

    ranges, defaults = params.tune.ranges(params), keys(params)
    sequence = Sobol(len(ranges), rng=params.tune.seed)
    places = sequence.fast_forward(index).random(1)[0] if index else sequence.random(1)[0]
    generator = numpy_stream(params.tune.seed, "tune/redraw", index)
    for _ in range(_MAX_DRAWS):
        values = {
            key: _quantile(span, float(u), defaults[key])
            for u, (key, span) in zip(places, ranges.items(), strict=True)
        }
        if is_possible(params, values):
            return values
        places = generator.random(len(ranges))
    raise ConfigError(
        f"tune.space: {_MAX_DRAWS} draws gave no combination that the settings allow; narrow it"
    )


def _quantile(span: Range, u: float, example: Any) -> Any:
    """Return the value at the quantile ``u`` of a range."""
    if span.choice:
        return span.choice[int(u * len(span.choice))]
    if span.log:
        low, high = map(math.log, span.log)
        return of_type(math.exp(low + u * (high - low)), example)
    assert span.linear
    return of_type(span.linear[0] + u * (span.linear[1] - span.linear[0]), example)


def perturbed(params: Params, values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    """Perturb values as PBT explores (Jaderberg et al. 2017).

    Each number is multiplied by 0.8 or 1.25 and clipped to its range; each choice is drawn again
    with probability 1/4. Return the values unchanged if the settings refuse the result.
    """
    defaults, out = keys(params), dict(values)
    for key, span in params.tune.ranges(params).items():
        if span.choice:
            out[key] = (
                _quantile(span, generator.random(), defaults[key])
                if generator.random() < 0.25
                else values[key]
            )
        else:
            low, high = span.log or span.linear or (0.0, 0.0)
            out[key] = of_type(
                min(max(values[key] * generator.choice([0.8, 1.25]), low), high), defaults[key]
            )
    return out if is_possible(params, out) else dict(values)


def is_possible(params: Params, values: Mapping[str, Any]) -> bool:
    """Return whether the settings allow these values together."""
    try:
        with_values(params, values)
    except ConfigError:
        return False
    return True
