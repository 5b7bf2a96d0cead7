"""The trials of a search: their states and scores, their order, and the result of the search."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ebm_dist import storage

WORST = 1e30
"""Score of a trial that diverged or failed: finite, so that quantiles of scores are finite."""
METRICS = ("fid_clf", "abs_gap", "abs_energy")
SCORES = (*METRICS, "energy_gap", "at_bounds")


State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]


@dataclass
class Trial:
    """The state of a trial, in memory and in the file of its phase."""

    index: int
    values: dict[str, Any]
    """values of the dotted keys searched; pbt changes them during training"""
    seed: int
    num_steps: int
    state: State = "waiting"
    """``stopped``: ended early by the scheduler; ``failed``: crashed, hung or not restartable"""
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """scores in order of arrival: ``step``, metrics, ``order`` among all trials, run ``digest``,
    ``time`` in seconds since 1970"""
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Return whether the trial has ended, in whatever way."""
        return self.state not in ("waiting", "running")

    @property
    def step(self) -> int:
        """Return the step of the latest score; 0 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @staticmethod
    def scores(row: Mapping[str, Any]) -> dict[str, float]:
        """Return the scores in a row that are finite and not ``WORST``."""
        values = {name: row.get(name) for name in SCORES}
        return {
            name: value
            for name, value in values.items()
            if value is not None and math.isfinite(value) and value < WORST
        }

    def score(self, metric: str) -> float | None:
        """Return the latest score; None if there is no valid one."""
        if self.state in ("diverged", "failed") or not self.rows:
            return None
        return self.scores(self.rows[-1]).get(metric)


def read_trials(text: bytes) -> list[Trial]:
    """Decode what :func:`write_trials` has encoded."""
    return [Trial(**entry) for entry in json.loads(text)]


def write_trials(trials: Iterable[Trial]) -> bytes:
    """Encode trials as JSON."""
    return (json.dumps([asdict(trial) for trial in trials]) + "\n").encode()


class TrialStore:
    """The trials of one phase, in memory and in a file that is written at each change."""

    def __init__(self, folder: Path, phase: str, planned: list[Trial]) -> None:
        self.path = folder / f"{phase}.json"
        recorded = (
            {trial.index: trial for trial in read_trials(storage.read_bytes(self.path))}
            if self.path.exists()
            else {}
        )
        self.all = [recorded.get(trial.index, trial) for trial in planned]
        for trial in self.all:
            trial.state = "waiting" if trial.state == "running" else trial.state
        self.save()

    def save(self) -> None:
        storage.write_whole(self.path, write_trials(self.all))

    def add(self, trial: Trial, row: dict[str, Any]) -> None:
        """Add a score to a trial, unless a resumed trial reports a score that it has already."""
        if all(
            (row["step"], row["digest"]) != (other["step"], other["digest"]) for other in trial.rows
        ):
            order = sum(len(other.rows) for other in self.all)
            trial.rows.append(row | {"order": order, "time": time.time()})

    @property
    def left(self) -> list[Trial]:
        """Return the trials that are not over."""
        return [trial for trial in self.all if not trial.is_over]


def ranked(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """Sort trials, best first: by latest score, ascending; then those without one by step."""

    def place(trial: Trial) -> tuple[bool, float, int, int]:
        score = trial.score(metric)
        return (score is None, 0.0 if score is None else score, -trial.step, trial.index)

    return sorted(trials, key=place)


class SearchResult(NamedTuple):
    """The result of a search and of the comparison after it."""

    trials: list[Trial]
    """trials of the search"""
    finals: list[Trial]
    """trials of the comparison: the file's own values, then each finalist's, over the seeds"""
    finalists: list[dict[str, Any]]
    """values that were compared; the first, for the file itself, is empty"""
    num_steps: int
    """training steps of the comparison"""
    seconds: dict[str, float]
    """wall time of this session by part: ``search``, and ``comparison`` if there was one"""

    def scores(self, metric: str) -> list[list[float | None]]:
        """Return the scores over seeds of each finalist."""
        count = len(self.finals) // len(self.finalists)
        return [
            [trial.score(metric) for trial in self.finals[i * count : (i + 1) * count]]
            for i in range(len(self.finalists))
        ]

    def winner(self, metric: str) -> int:
        """Return the index, from 1, of the finalist with the smallest mean.

        A finalist that failed with any seed wins only if all did.
        """
        means = [
            math.inf if None in scores else sum(s or 0.0 for s in scores)
            for scores in self.scores(metric)[1:]
        ]
        return 1 + means.index(min(means))


class Progress(NamedTuple):
    """The best score of a search over training steps used."""

    used_steps: list[int]
    """training steps of all trials together"""
    best: list[float]
    """the smallest score so far"""


def progress(trials: Sequence[Trial], metric: str) -> Progress:
    """Return the best score so far over training steps used, in order of arrival."""
    rows = sorted(
        ((row["order"], trial, row) for trial in trials for row in trial.rows),
        key=lambda entry: entry[0],
    )
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


def table(trials: Sequence[Trial], metric: str) -> list[dict[str, Any]]:
    """Return a row per trial for ``trials.csv``, best first."""
    return [
        {
            "trial": trial.index,
            "state": trial.state,
            **trial.values,
            "step": trial.step,
            **{
                name: float(f"{value:.6g}") if (value := last.get(name)) is not None else None
                for name in SCORES
            },
            "seconds": round(trial.seconds),
        }
        for trial in ranked(trials, metric)
        for last in [trial.scores(trial.rows[-1]) if trial.rows else {}]
    ]
