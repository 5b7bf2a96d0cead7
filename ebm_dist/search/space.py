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
    "train.validate_every",
    "train.max_rollbacks",
)
_MAX_DRAWS = 1000
_MAX_PERTURBATIONS = 20
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
        "train.validate_every": 0,
        "train.max_rollbacks": 0,
    }
    return with_values(params, values, **trial_config, **{"cluster.workers": params.tune.workers})


def integer_ends(span: Range) -> tuple[int, int]:
    """Return the smallest and the largest integer of a numeric range."""
    low, high = _ends(span)
    return math.ceil(low), math.floor(high)


def rounded(value: Any, span: Range, example: Any) -> Any:
    """Round a number of a range so that it stays in the range; return other values unchanged.

    The result is an integer if the example is one. Otherwise it has four significant digits, or
    more where four would leave the range or move the value by over a thousandth of its width.
    """
    if span.choice:
        return value
    if isinstance(example, int):
        low, high = integer_ends(span)
        return min(max(round(value), low), high)
    ends = _ends(span)
    value = min(max(value, ends[0]), ends[1])
    candidates = (float(f"{value:.{digits}g}") for digits in range(_DIGITS, 17))
    tolerance = (ends[1] - ends[0]) / 1000
    return next(
        (x for x in candidates if ends[0] <= x <= ends[1] and abs(x - value) <= tolerance), value
    )


def _ends(span: Range) -> tuple[float, float]:
    ends = span.log or span.linear
    assert ends
    return ends


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
    """Return the value at the quantile ``u`` in [0, 1) of a range.

    An integer k stands for the interval from k - 1/2 to k + 1/2, so the ends of the range have
    their full weight.
    """
    if span.choice:
        return span.choice[int(u * len(span.choice))]
    low, high = _ends(span)
    if isinstance(example, int):
        first, last = integer_ends(span)
        low, high = first - 0.5, last + 0.5
    if span.log:
        low, high = math.log(low), math.log(high)
    value = low + u * (high - low)
    return rounded(math.exp(value) if span.log else value, span, example)


def perturbed(params: Params, values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    """Perturb values as PBT explores (Jaderberg et al. 2017).

    Each number is multiplied by 0.8 or 1.25 and clipped to its range; each choice is drawn again
    with probability 1/4. An integer moves by at least 1, a number of a linear range by at least a
    hundredth of its width, so that no value is absorbing. Combinations that the settings refuse are
    drawn again; if all are refused, the values are returned unchanged.
    """
    for _ in range(_MAX_PERTURBATIONS):
        out = _moved(params, values, generator)
        if is_possible(params, out):
            return out
    return dict(values)


def _moved(params: Params, values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    defaults, out = keys(params), dict(values)
    for key, span in params.tune.ranges(params).items():
        if span.choice:
            if generator.random() < 0.25:
                out[key] = _quantile(span, generator.random(), defaults[key])
            continue
        factor = generator.choice([0.8, 1.25])
        low, high = _ends(span)
        smallest = 0.0 if span.log else (high - low) / 100
        smallest = max(smallest, 1.0) if isinstance(defaults[key], int) else smallest
        step = max(abs(values[key] * (factor - 1)), smallest)
        sign = 1 if factor > 1 else -1
        out[key] = rounded(values[key] + sign * step, span, defaults[key])
    return out


def is_possible(params: Params, values: Mapping[str, Any]) -> bool:
    """Return whether the settings allow these values together."""
    try:
        with_values(params, values)
    except ConfigError:
        return False
    return True
