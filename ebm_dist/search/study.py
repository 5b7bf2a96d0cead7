"""A search for settings, without the platform that runs it: the space, the draws, the trials and their order, the resulting file.

A trial is a short training with some values of the parameter file replaced. It is scored at its *rungs*; the scores of a trial that
diverged or failed count as the worst of all, whatever they were before.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import Mismatch, NonNegativeInt, Params, PositiveInt, section
from ebm_dist.errors import ConfigError
from ebm_dist.search.space import DEFAULT_SPACE, Range, keys, of_type, with_values

_KEEP_SHAPES = ("sampler.", "objective.", "optimizer.")  # of weights and chains, which PBT hands on


@section
class Config:
    space: dict[str, Range] | None = None
    """Dotted key of the file -> range. If absent: step size, L2 weight and noise of the chains, over decades."""
    num_trials: PositiveInt = 16
    """Trials; with pbt the size of the population."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """``asha`` ends the worse trials at each rung (Li et al. 2020), ``pbt`` lets them go on from a copy of a better one (Jaderberg
    et al. 2017), ``none`` trains all to the end."""
    search: Literal["random", "optuna"] = "random"
    """Where values come from: random draws, evenly spread, or Optuna's model of the scores so far."""
    metric: Literal["fid_clf", "abs_gap", "abs_energy"] = "fid_clf"
    """What to make small, on the validation split: FID-clf of chains from noise, or |E+ - E-| with these, or the mean of |E|."""
    num_steps: PositiveInt = 1350
    """Training steps of a trial that is not ended early."""
    reduction_factor: PositiveInt = 3
    """ASHA lets the best one in so many go on at a rung; each rung is so many times as far as the one before."""
    num_rungs: PositiveInt = 3
    """Rungs, the last at num_steps. PBT looks at its population at each multiple of the first."""
    num_samples: PositiveInt = 500
    """Chains from noise behind a score; their steps are those of evaluation.samples."""
    workers: PositiveInt = 1
    """Training processes of each trial; the result does not depend on it."""
    max_concurrent: PositiveInt | None = None
    """Most trials at once; as many as the free CPUs and GPUs can hold if absent."""
    trial_timeout_s: PositiveInt = 3600
    """Seconds after which a trial that has not ended is given up."""
    seed: NonNegativeInt = 0
    """Of the draws. All trials train with the file's own seed, so that they differ in their values only."""
    finalists: PositiveInt = 1
    """So many of the best trials are trained again over several seeds, beside the file's own values."""
    final_seeds: PositiveInt = 3
    """Seeds of that comparison, from 0."""
    final_steps: PositiveInt | None = None
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
        if self.num_rungs > 1 and (
            self.reduction_factor < 2
            or self.num_steps % self.reduction_factor ** (self.num_rungs - 1)
        ):
            text = f"{self.num_steps} is not divisible into {self.num_rungs} rungs by a reduction_factor of {self.reduction_factor}"
            raise Mismatch("tune.num_steps", text)
        if self.scheduler == "pbt" and self.search != "random":
            raise Mismatch(
                "tune.search", "pbt changes the values of running trials itself; use search: random"
            )
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
            raise Mismatch(
                place,
                "no such value decides the result of training" + config.nearest(key, list(known)),
            )
        if self.scheduler == "pbt" and not key.startswith(_KEEP_SHAPES):
            raise Mismatch(
                place,
                f"pbt hands on weights and chains, so only {', '.join(k + '*' for k in _KEEP_SHAPES)} can change",
            )
        given = {kind: value for kind, value in asdict(chosen).items() if value is not None}
        if len(given) != 1:
            raise Mismatch(place, "one of log, linear and choice is needed")
        ((kind, ends),) = given.items()
        if kind != "choice" and not (0 < ends[0] < ends[1] if kind == "log" else ends[0] < ends[1]):
            raise Mismatch(
                place,
                f"{kind}: expected [low, high]{' above 0' if kind == 'log' else ''}, found {list(ends)}",
            )
        if kind != "choice" and (
            isinstance(known[key], bool) or not isinstance(known[key], int | float)
        ):
            raise Mismatch(
                place, f"{kind}: the value in the file, {known[key]!r}, is no number; use choice"
            )
        for value in ends:
            try:
                with_values(
                    params, {key: of_type(value, known[key]) if kind != "choice" else value}
                )
            except ConfigError as refused:
                raise Mismatch(
                    place, f"{value!r} is refused: {str(refused).split(': ', 1)[1]}"
                ) from None


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
