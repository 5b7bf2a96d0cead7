"""A search for settings, without the platform that runs it: the space, the draws, the trials and their order, the resulting file.

A trial is a short training with some values of the parameter file replaced. It is scored at its *rungs*; the scores of a trial that
diverged or failed count as the worst of all, whatever they were before.
"""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import Count, Index, Mismatch, Params, section
from ebm_dist.errors import ConfigError
from ebm_dist.rng import numpy_stream

WORST = 1e30
"""Stands for the score of what diverged or failed: finite, so that quantiles of scores stay numbers."""
METRICS = ("fid_clf", "abs_gap", "abs_energy")
SCORES = (*METRICS, "energy_gap", "at_bounds")
_SECTIONS = ("energy", "sampler", "objective", "train", "replay", "optimizer")
_OWN = ("train.num_steps", "train.log_every", "train.checkpoint_every", "train.max_rollbacks")  # set by the search itself
_KEEP_SHAPES = ("sampler.", "objective.", "optimizer.")  # of weights and chains, which PBT hands on
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


@section
class Config:
    space: dict[str, Range] | None = None
    """Dotted key of the file -> range. If absent: step size, L2 weight and noise of the chains, over decades."""
    num_trials: Count = 16
    """Trials; with pbt the size of the population."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """``asha`` ends the worse trials at each rung (Li et al. 2020), ``pbt`` lets them go on from a copy of a better one (Jaderberg
    et al. 2017), ``none`` trains all to the end."""
    search: Literal["random", "optuna"] = "random"
    """Where values come from: random draws, evenly spread, or Optuna's model of the scores so far."""
    metric: Literal["fid_clf", "abs_gap", "abs_energy"] = "fid_clf"
    """What to make small, on the validation split: FID-clf of chains from noise, or |E+ - E-| with these, or the mean of |E|."""
    num_steps: Count = 1350
    """Training steps of a trial that is not ended early."""
    reduction_factor: Count = 3
    """ASHA lets the best one in so many go on at a rung; each rung is so many times as far as the one before."""
    num_rungs: Count = 3
    """Rungs, the last at num_steps. PBT looks at its population at each multiple of the first."""
    num_samples: Count = 500
    """Chains from noise behind a score; their steps are those of evaluation.samples."""
    workers: Count = 1
    """Training processes of each trial; the result does not depend on it."""
    max_concurrent: Count | None = None
    """Most trials at once; as many as the free CPUs and GPUs can hold if absent."""
    trial_timeout_s: Count = 3600
    """Seconds after which a trial that has not ended is given up."""
    seed: Index = 0
    """Of the draws. All trials train with the file's own seed, so that they differ in their values only."""
    finalists: Count = 1
    """So many of the best trials are trained again over several seeds, beside the file's own values."""
    final_seeds: Count = 3
    """Seeds of that comparison, from 0."""
    final_steps: Count | None = None
    """Training steps of that comparison; train.num_steps if absent."""

    @property
    def rungs(self) -> list[int]:
        """Steps at which trials are compared, ascending."""
        return [self.num_steps // self.reduction_factor**k for k in reversed(range(self.num_rungs))]

    def ranges(self, params: Params) -> dict[str, Range]:
        """The space: the file's, or the default keys as far as the file has them."""
        known = keys(params)
        return self.space or {key: chosen for key, chosen in DEFAULT_SPACE.items() if key in known}

    def check(self, params: Params) -> None:
        if self.num_rungs > 1 and (self.reduction_factor < 2 or self.num_steps % self.reduction_factor ** (self.num_rungs - 1)):
            text = f"{self.num_steps} is not divisible into {self.num_rungs} rungs by a reduction_factor of {self.reduction_factor}"
            raise Mismatch("tune.num_steps", text)
        if self.scheduler == "pbt" and self.search != "random":
            raise Mismatch("tune.search", "pbt changes the values of running trials itself; use search: random")
        if self.scheduler == "pbt" and self.num_trials < 2:
            raise Mismatch("tune.num_trials", "a population has at least two members")
        if self.workers > params.train.num_shards:
            text = f"{self.workers} workers cannot share train.num_shards = {params.train.num_shards} logical shards"
            raise Mismatch("tune.workers", text)
        for key, chosen in (self.space or {}).items():
            self._check_range(params, key, chosen)

    def _check_range(self, params: Params, key: str, chosen: Range) -> None:
        place, known = ("tune", "space", key), keys(params)
        if key not in known:
            raise Mismatch(place, "no such value decides the result of training" + config.nearest(key, list(known)))
        if self.scheduler == "pbt" and not key.startswith(_KEEP_SHAPES):
            raise Mismatch(place, f"pbt hands on weights and chains, so only {', '.join(k + '*' for k in _KEEP_SHAPES)} can change")
        given = {kind: value for kind, value in asdict(chosen).items() if value is not None}
        if len(given) != 1:
            raise Mismatch(place, "one of log, linear and choice is needed")
        ((kind, ends),) = given.items()
        if kind != "choice" and not (0 < ends[0] < ends[1] if kind == "log" else ends[0] < ends[1]):
            raise Mismatch(place, f"{kind}: expected [low, high]{' above 0' if kind == 'log' else ''}, found {list(ends)}")
        if kind != "choice" and (isinstance(known[key], bool) or not isinstance(known[key], int | float)):
            raise Mismatch(place, f"{kind}: the value in the file, {known[key]!r}, is no number; use choice")
        for value in ends:
            try:
                with_values(params, {key: _of_type(value, known[key]) if kind != "choice" else value})
            except ConfigError as refused:
                raise Mismatch(place, f"{value!r} is refused: {str(refused).split(': ', 1)[1]}") from None


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


def trial_params(params: Params, values: Mapping[str, Any], seed: int, num_steps: int, checkpoint_every: int) -> Params:
    """What a trial trains with: its values, and no rollbacks, because a trial that diverges has shown what it is worth."""
    own = {"seed": seed, "train.num_steps": num_steps, "train.checkpoint_every": checkpoint_every, "train.max_rollbacks": 0}
    return with_values(params, values, **own, **{"cluster.workers": params.tune.workers})


def _of_type(value: float, example: Any) -> float:
    return round(value) if isinstance(example, int) else float(f"{value:.{_DIGITS}g}")


def rounded(value: Any, example: Any) -> Any:
    """A value as a drawn one is written: four digits, whole where the key's value is; anything but numbers as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _of_type(value, example) if is_number else value


def draw(params: Params, index: int) -> dict[str, Any]:
    """The values of a trial: a function of ``tune.seed`` and its index. Combinations that the settings refuse are redrawn.

    Trials are spread more evenly than independent draws: they are points of a scrambled Sobol sequence. Redraws are independent.
    Raises :class:`ConfigError` if every one is refused.
    """
    ranges, known = params.tune.ranges(params), keys(params)
    from scipy.stats.qmc import Sobol  # a second to import, and every process reads this file's Config

    sequence = Sobol(len(ranges), rng=params.tune.seed)
    places = sequence.fast_forward(index).random(1)[0] if index else sequence.random(1)[0]
    generator = numpy_stream(params.tune.seed, "tune/redraw", index)
    for _ in range(_MAX_DRAWS):
        values = {key: _one(chosen, float(u), known[key]) for u, (key, chosen) in zip(places, ranges.items(), strict=True)}
        if is_possible(params, values):
            return values
        places = generator.random(len(ranges))
    raise ConfigError(f"tune.space: {_MAX_DRAWS} draws, and no combination that the settings allow; narrow it")


def _one(chosen: Range, u: float, example: Any) -> Any:
    """The value at the quantile ``u`` of a range."""
    if chosen.choice:
        return chosen.choice[int(u * len(chosen.choice))]
    if chosen.log:
        low, high = map(math.log, chosen.log)
        return _of_type(math.exp(low + u * (high - low)), example)
    assert chosen.linear
    return _of_type(chosen.linear[0] + u * (chosen.linear[1] - chosen.linear[0]), example)


def perturbed(params: Params, values: Mapping[str, Any], generator: Any) -> dict[str, Any]:
    """PBT's exploration: each number times 0.8 or 1.25, kept in its range; each choice drawn anew one time in four."""
    known, out = keys(params), dict(values)
    for key, chosen in params.tune.ranges(params).items():
        if chosen.choice:
            out[key] = _one(chosen, generator.random(), known[key]) if generator.random() < 0.25 else values[key]
        else:
            low, high = chosen.log or chosen.linear or (0.0, 0.0)
            out[key] = _of_type(min(max(values[key] * generator.choice([0.8, 1.25]), low), high), known[key])
    return out if is_possible(params, out) else dict(values)


def is_possible(params: Params, values: Mapping[str, Any]) -> bool:
    """Whether the settings allow these values together."""
    try:
        with_values(params, values)
    except ConfigError:
        return False
    return True


State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]


@dataclass
class Trial:
    """A trial as it stands, and as ``trials.json`` keeps it."""

    index: int
    values: dict[str, Any]
    """of the dotted keys searched; pbt changes them on the way"""
    seed: int
    num_steps: int
    state: State = "waiting"
    """``stopped``: ended early by the scheduler; ``failed``: it crashed, hung or could not be restarted"""
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """scores, in the order in which they came: ``step``, the metrics, ``order`` among all trials, ``digest`` of the run"""
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in ("waiting", "running")

    @property
    def step(self) -> int:
        """The step of its latest score; 0 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @staticmethod
    def scores(row: Mapping[str, Any]) -> dict[str, float]:
        """What of a row is a score, and counts."""
        found = {name: row.get(name) for name in SCORES}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value) and value < WORST}

    def score(self, metric: str) -> float | None:
        """The latest score; None if there is none, or none that counts."""
        if self.state in ("diverged", "failed") or not self.rows:
            return None
        return self.scores(self.rows[-1]).get(metric)


def read_trials(text: bytes) -> list[Trial]:
    """What :func:`write_trials` wrote."""
    return [Trial(**entry) for entry in json.loads(text)]


def write_trials(trials: Iterable[Trial]) -> bytes:
    """Trials as JSON."""
    return (json.dumps([asdict(trial) for trial in trials]) + "\n").encode()


def ranked(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """The best first: by latest score, the smaller the better; then those without one, of which the farther are better."""

    def place(trial: Trial) -> tuple[bool, float, int, int]:
        score = trial.score(metric)
        return (score is None, 0.0 if score is None else score, -trial.step, trial.index)

    return sorted(trials, key=place)


class Found(NamedTuple):
    """What a search and the comparison after it came to."""

    trials: list[Trial]
    """of the search"""
    finals: list[Trial]
    """of the comparison: the file's own values, then each finalist's, over the seeds"""
    finalists: list[dict[str, Any]]
    """values that were compared; the first are the file's own: none"""
    num_steps: int
    """training steps of the comparison"""
    seconds: dict[str, float]
    """that this session took: ``search``, and ``comparison`` if there was one"""

    def scores(self, metric: str) -> list[list[float | None]]:
        """Of each that was compared, a score for each seed."""
        count = len(self.finals) // len(self.finalists)
        return [[trial.score(metric) for trial in self.finals[i * count : (i + 1) * count]] for i in range(len(self.finalists))]

    def winner(self, metric: str) -> int:
        """Which finalist has the smallest mean, from 1; one that failed with any seed only if all did."""
        means = [math.inf if None in scores else sum(s or 0.0 for s in scores) for scores in self.scores(metric)[1:]]
        return 1 + means.index(min(means))


class Progress(NamedTuple):
    """What a search had found when."""

    used_steps: list[int]
    """training steps of all trials together"""
    best: list[float]
    """the smallest score so far"""


def progress(trials: Sequence[Trial], metric: str) -> Progress:
    """Best score so far over training steps used, in the order in which scores came."""
    rows = sorted(((row["order"], trial, row) for trial in trials for row in trial.rows), key=lambda entry: entry[0])
    used, best, reached, out = 0, math.inf, dict[tuple[int, str], int](), Progress([], [])
    for _, trial, row in rows:
        run = (trial.index, row["digest"])
        used += max(0, row["step"] - reached.get(run, row.get("inherited", 0)))
        reached[run] = row["step"]
        best = min(best, Trial.scores(row).get(metric, math.inf))
        if best < math.inf:
            out.used_steps.append(used)
            out.best.append(best)
    return out


def tuned(source: Path, values: Mapping[str, Any], head: str) -> str:
    """A whole parameter file: the source with some values replaced, its comments kept, under a head comment."""
    editor = YAML()  # keeps comments and order
    editor.width, editor.preserve_quotes = 4096, True
    content = editor.load(source.read_text())
    content.pop("recipe", None)
    for key, value in values.items():
        *path, name = key.split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[name] = list(value) if isinstance(value, tuple) else value
    out = io.StringIO()
    editor.dump(content, out)
    body = out.getvalue()
    while body.startswith(("#", "\n")):  # the source's own head comment
        body = body.partition("\n")[2]
    return "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines()) + "\n" + body


def table(trials: Sequence[Trial], metric: str) -> list[dict[str, Any]]:
    """A row for each trial, for ``trials.csv``: the best first."""
    return [
        {
            "trial": trial.index,
            "state": trial.state,
            **trial.values,
            "step": trial.step,
            **{name: float(f"{value:.6g}") if (value := last.get(name)) is not None else None for name in SCORES},
            "seconds": round(trial.seconds),
        }
        for trial in ranked(trials, metric)
        for last in [trial.scores(trial.rows[-1]) if trial.rows else {}]
    ]
