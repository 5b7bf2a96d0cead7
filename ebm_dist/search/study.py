"""Settings of a search, and the parameter file that it writes; independent of Ray Tune.

A trial is a short training with some values of the parameter file replaced. It is scored at its
*rungs*. The score of a trial that diverged or failed counts as the worst, whatever it was before.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import Mismatch, NonNegativeInt, Params, PositiveInt, section
from ebm_dist.errors import ConfigError
from ebm_dist.search.space import DEFAULT_SPACE, Range, integer_ends, keys, with_values

# settings that keep the shapes of weights and chains, which PBT copies between trials
_KEEP_SHAPES = ("sampler.", "objective.", "optimizer.")


@section
class Config:
    space: dict[str, Range] | None = None
    """Range of each dotted key. Default: decades of the chains' step size and noise, and of the
    weight of the L2 penalty."""
    num_trials: PositiveInt = 16
    """Number of trials; with pbt the size of the population."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """``asha`` ends the worse trials at each rung (Li et al. 2020), ``pbt`` continues them from a
    copy of a better trial (Jaderberg et al. 2017), ``none`` trains all to the end."""
    search: Literal["random", "optuna"] = "random"
    """Source of values: evenly spread random draws, or Optuna's model of the scores so far."""
    metric: Literal["fid_clf", "abs_gap", "abs_energy"] = "fid_clf"
    """Score to minimise on the validation split: FID-clf of chains from noise, the absolute energy
    gap to these chains, or the mean absolute energy."""
    num_steps: PositiveInt = 1350
    """Training steps of a trial that is not ended early."""
    reduction_factor: PositiveInt = 3
    """Of the trials at a rung, ASHA continues the best 1 / reduction_factor; each rung has
    reduction_factor times the steps of the rung before."""
    num_rungs: PositiveInt = 3
    """Number of rungs, the last at num_steps. PBT compares trials at each multiple of the first."""
    num_samples: PositiveInt = 500
    """Chains from noise behind a score; they run for the steps of evaluation.samples."""
    workers: PositiveInt = 1
    """Training processes of each trial; the result does not depend on it."""
    max_concurrent: PositiveInt | None = None
    """Most trials at once. Default: as many as the free CPUs and GPUs can hold."""
    trial_timeout_s: PositiveInt = 3600
    """Seconds after which a trial that has not ended fails."""
    seed: NonNegativeInt = 0
    """Seed of the draws. All trials train with the file's seed, so they differ only in values."""
    finalists: PositiveInt = 1
    """Number of best trials that are compared with the file's own values over several seeds."""
    final_seeds: PositiveInt = 3
    """Number of seeds of that comparison, from 0."""
    final_steps: PositiveInt | None = None
    """Training steps of that comparison. Default: train.num_steps."""

    @property
    def rungs(self) -> list[int]:
        """Return the steps at which trials are compared, ascending."""
        return [self.num_steps // self.reduction_factor**k for k in reversed(range(self.num_rungs))]

    def ranges(self, params: Params) -> dict[str, Range]:
        """Return the space of the file, or the default ranges of the keys that the file has."""
        searchable = keys(params)
        return self.space or {key: s for key, s in DEFAULT_SPACE.items() if key in searchable}

    def check(self, params: Params) -> None:
        if self.num_rungs > 1 and (
            self.reduction_factor < 2
            or self.num_steps % self.reduction_factor ** (self.num_rungs - 1)
        ):
            raise Mismatch(
                "tune.num_steps",
                f"{self.num_steps} is not divisible into {self.num_rungs} rungs by a"
                f" reduction_factor of {self.reduction_factor}",
            )
        if self.scheduler == "pbt" and self.search != "random":
            raise Mismatch(
                "tune.search", "pbt changes the values of running trials itself; use search: random"
            )
        if self.scheduler == "pbt" and self.num_trials < 2:
            raise Mismatch("tune.num_trials", "a population has at least two members")
        if self.workers > params.train.num_shards:
            raise Mismatch(
                "tune.workers",
                f"{self.workers} workers cannot share train.num_shards ="
                f" {params.train.num_shards} logical shards",
            )
        for key, span in (self.space or {}).items():
            self._check_range(params, key, span)

    def _check_range(self, params: Params, key: str, span: Range) -> None:
        place, defaults = ("tune", "space", key), keys(params)
        if key not in defaults:
            raise Mismatch(
                place,
                "no such value decides the result of training",
                config.nearest(key, list(defaults)),
            )
        if self.scheduler == "pbt" and not key.startswith(_KEEP_SHAPES):
            raise Mismatch(
                place,
                "pbt copies weights and chains between trials, so only"
                f" {', '.join(k + '*' for k in _KEEP_SHAPES)} can change",
            )
        kinds = {kind: value for kind, value in asdict(span).items() if value is not None}
        if len(kinds) != 1:
            raise Mismatch(place, "exactly one of log, linear and choice is needed")
        ((kind, ends),) = kinds.items()
        if kind != "choice" and not (0 < ends[0] < ends[1] if kind == "log" else ends[0] < ends[1]):
            raise Mismatch(
                place,
                f"{kind}: expected [low, high]{' above 0' if kind == 'log' else ''},"
                f" found {list(ends)}",
            )
        default = defaults[key]
        if kind != "choice" and (isinstance(default, bool) or not isinstance(default, int | float)):
            raise Mismatch(
                place, f"{kind}: the value in the file, {default!r}, is no number; use choice"
            )
        if kind == "choice":
            if not ends:
                raise Mismatch(place, "choice: expected at least one value, found none")
        elif isinstance(default, int):
            ends = integer_ends(span)
            if ends[0] > ends[1]:
                raise Mismatch(place, f"{kind}: no integer in the range", "widen it")
        elif not math.isfinite(ends[1] - ends[0]):
            raise Mismatch(place, f"{kind}: the range is too wide for floating point")
        for value in ends:
            try:
                with_values(params, {key: value})
            except ConfigError as refused:
                raise Mismatch(
                    place, f"{value!r} is refused: {str(refused).split(': ', 1)[1]}"
                ) from None


def tuned(source: Path, values: Mapping[str, Any], head: str) -> str:
    """Return a parameter file: the source with some values replaced, under a new head comment.

    Other comments of the source are kept.
    """
    editor = YAML()  # keeps comments and order
    editor.width, editor.preserve_quotes = 4096, True
    content = editor.load(source.read_text())
    content.pop("recipe", None)
    for key, value in values.items():
        *path, name = key.split(".")
        target = content
        for part in path:
            target = target.setdefault(part, {})
        target[name] = list(value) if isinstance(value, tuple) else value
    out = io.StringIO()
    editor.dump(content, out)
    body = out.getvalue()
    while body.startswith(("#", "\n")):  # the source's own head comment
        body = body.partition("\n")[2]
    return "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines()) + "\n" + body
