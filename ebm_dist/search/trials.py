"""The trials of a search: their state and scores, their order, and what the search came to."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ebm_dist import storage

WORST = 1e30
"""Stands for the score of what diverged or failed: finite, so that quantiles of scores stay numbers."""
METRICS = ("fid_clf", "abs_gap", "abs_energy")
SCORES = (*METRICS, "energy_gap", "at_bounds")


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
        return {
            name: value
            for name, value in found.items()
            if value is not None and math.isfinite(value) and value < WORST
        }

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


class TrialStore:
    """The trials of one phase, in memory and in a file of the search's folder, written at each change."""

    def __init__(self, folder: Path, phase: str, planned: list[Trial]) -> None:
        self.path = folder / f"{phase}.json"
        known = (
            {trial.index: trial for trial in read_trials(storage.read_bytes(self.path))}
            if self.path.exists()
            else {}
        )
        self.all = [known.get(trial.index, trial) for trial in planned]
        for trial in self.all:
            trial.state = "waiting" if trial.state == "running" else trial.state
        self.save()

    def save(self) -> None:
        storage.write_whole(self.path, write_trials(self.all))

    def add(self, trial: Trial, row: dict[str, Any]) -> None:
        """A score has come; one that is known already, told again by a trial that was resumed, changes nothing."""
        if all(
            (row["step"], row["digest"]) != (known["step"], known["digest"]) for known in trial.rows
        ):
            trial.rows.append(row | {"order": sum(len(other.rows) for other in self.all)})

    @property
    def left(self) -> list[Trial]:
        """Those that are not over."""
        return [trial for trial in self.all if not trial.is_over]


def ranked(trials: Iterable[Trial], metric: str) -> list[Trial]:
    """The best first: by latest score, the smaller the better; then those without one, of which the farther are better."""

    def place(trial: Trial) -> tuple[bool, float, int, int]:
        score = trial.score(metric)
        return (score is None, 0.0 if score is None else score, -trial.step, trial.index)

    return sorted(trials, key=place)


class SearchResult(NamedTuple):
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
        return [
            [trial.score(metric) for trial in self.finals[i * count : (i + 1) * count]]
            for i in range(len(self.finalists))
        ]

    def winner(self, metric: str) -> int:
        """Which finalist has the smallest mean, from 1; one that failed with any seed only if all did."""
        means = [
            math.inf if None in scores else sum(s or 0.0 for s in scores)
            for scores in self.scores(metric)[1:]
        ]
        return 1 + means.index(min(means))


class Progress(NamedTuple):
    """What a search had found when."""

    used_steps: list[int]
    """training steps of all trials together"""
    best: list[float]
    """the smallest score so far"""


def progress(trials: Sequence[Trial], metric: str) -> Progress:
    """Best score so far over training steps used, in the order in which scores came."""
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
    """A row for each trial, for ``trials.csv``: the best first."""
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
