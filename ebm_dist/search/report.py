"""Reports of a search: live table, ``metrics.json``, ``trials.csv``, figures, parameter file."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ebm_dist.config import Params
from ebm_dist.files import write_csv, write_json
from ebm_dist.report import figures
from ebm_dist.report.table import interval
from ebm_dist.runs.progress import live_display
from ebm_dist.runs.record import METRICS, read_lines
from ebm_dist.search import study, trials
from ebm_dist.search.trials import SearchResult, Trial
from ebm_dist.storage import is_local, write_whole

_NAMES = {
    "fid_clf": "FID-clf against the validation split",
    "abs_gap": "|E+ - E-| on the validation split",
    "abs_energy": "mean |E| on the validation split",
}
_ROWS = 12  # of the live table
_SURFACE = ("sampler.step_size", "objective.energy_penalty")


def summary(params: Params, result: SearchResult) -> dict[str, Any]:
    """Return the content of ``metrics.json``: the search, and the comparison over seeds.

    The comparison is between the file's own values and the best ones.
    """
    tune, best = params.tune, trials.ranked(result.trials, params.tune.metric)[0]
    states = {
        f"num_{state}": sum(t.state == state for t in result.trials)
        for state in ("finished", "stopped", "diverged", "failed")
    }
    winner = result.winner(tune.metric)
    scores = result.scores(tune.metric)
    file_scores, tuned_scores = scores[0], scores[winner]
    differences = [
        b - a
        for a, b in zip(file_scores, tuned_scores, strict=True)
        if a is not None and b is not None
    ]
    difference = _spread([*differences] if len(differences) == len(tuned_scores) else [None])
    return {
        "metric": tune.metric,
        "scheduler": tune.scheduler,
        "search": tune.search,
        "num_trials": len(result.trials),
        **states,
        "used_steps": trials.progress(result.trials, tune.metric).used_steps[-1],
        "best": {
            "trial": best.index,
            "step": best.step,
            "score": best.score(tune.metric),
            "values": best.values,
        },
        "comparison": {
            "num_steps": result.num_steps,
            "num_seeds": tune.final_seeds,
            "split": "val",
            "file": _spread(file_scores, tune.metric),
            "tuned": _spread(tuned_scores, tune.metric),
            "difference": difference,
            "values": result.finalists[winner],
            "is_better": None not in tuned_scores
            and (None in file_scores or difference["mean"] < 0),
            "is_certain": difference["high"] is not None and difference["high"] < 0,
        },
    }


def _spread(values: list[float | None], metric: str = "") -> dict[str, Any]:
    """Return the mean with its 95 % t-interval; all are None if a training diverged or failed."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "low": None, "high": None, "each": values}
    low, high = interval(numbers, metric) or (None, None)
    return {"mean": sum(numbers) / len(numbers), "low": low, "high": high, "each": values}


def verdict(metrics: dict[str, Any]) -> str:
    """Return the comparison as text."""
    compared = metrics["comparison"]
    rows = "\n".join(
        f"  {label:<10} {_words(compared[name])}"
        for label, name in (("the file", "file"), ("tuned", "tuned"))
    )
    difference = _words(compared["difference"])
    if not compared["is_better"]:
        conclusion = "the search found nothing better than the file's own values"
    elif compared["is_certain"]:
        conclusion = f"tuned values are better: difference {difference}"
    else:
        conclusion = (
            "tuned values are better in the mean, within the spread over seeds:"
            f" difference {difference}"
        )
    head = (
        f"{_NAMES[metrics['metric']]}, {compared['num_steps']} steps,"
        f" {compared['num_seeds']} seeds (mean, 95 % interval):"
    )
    return f"{head}\n{rows}\n{conclusion}"


def _words(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "no score: training diverged or failed with a seed"
    each = ", ".join(f"{value:.4g}" for value in spread["each"])
    ends = "" if spread["low"] is None else f" [{spread['low']:.4g}, {spread['high']:.4g}]"
    return f"{spread['mean']:.4g}{ends}  ({each})"


def write(
    params: Params, result: SearchResult, folder: Path, source: Path, tuned: Path
) -> dict[str, Any]:
    """Write all files and return the metrics.

    ``tuned`` is the parameter file to write: the source with the best values, if they are better.
    """
    metrics = summary(params, result)
    for name, content in pictures(params, result).items():
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "plots" / name, content)
    write_csv(folder / "trials.csv", trials.table(result.trials, params.tune.metric))
    write_json(folder / "metrics.json", metrics)
    compared = metrics["comparison"]
    head = f"The values of {source}" + (
        " with those that a search found: "
        if compared["is_better"]
        else "; a search found none better: "
    )
    head += (
        f"{params.tune.scheduler}, {len(result.trials)} trials of at most"
        f" {params.tune.num_steps} steps.\n"
    )
    head += f"Adopt and retrain: dvc exp run dvc.yaml -S recipe={tuned}\n\n{verdict(metrics)}"
    write_whole(
        tuned,
        study.tuned(source, compared["values"] if compared["is_better"] else {}, head).encode(),
    )
    return metrics


def pictures(params: Params, result: SearchResult) -> dict[str, bytes]:
    """Draw PNG figures by file name.

    They are parallel coordinates, the scores over each pair of values on logarithmic axes, and the
    best score so far.
    """
    metric, valued = params.tune.metric, [trial for trial in result.trials if trial.values]
    scores = np.array(
        [math.nan if (score := trial.score(metric)) is None else score for trial in valued]
    )
    ranges = params.tune.ranges(params)
    columns = {
        key.split(".")[-1]: figures.Column(
            [t.values[key] for t in valued], bool(span.log), span.log or span.linear
        )
        for key, span in ranges.items()
    }
    num_failed = sum(not np.isfinite(score) for score in scores)
    num_stopped = sum(trial.state == "stopped" for trial in valued)
    title = (
        f"{len(valued)} trials at their last step; {num_stopped} stopped early,"
        f" {num_failed} diverged or failed"
    )
    out = {"parallel.png": figures.parallel_coordinates(columns, scores, metric, title)}
    for x, y in itertools.combinations([key for key, span in ranges.items() if span.log], 2):
        name = (
            "surface.png"
            if (x, y) == _SURFACE
            else f"surface-{x.split('.')[-1]}-{y.split('.')[-1]}.png"
        )
        across, up = (
            figures.Column([t.values[key] for t in valued], True, ranges[key].log) for key in (x, y)
        )
        out[name] = figures.scatter(across, up, scores, (x, y, metric), title)
    best = trials.progress(result.trials, metric)
    label = _NAMES[metric]
    out["best.png"] = figures.best_so_far(
        {params.tune.scheduler: best}, "training steps used", label, "Best score so far"
    )
    return out


def table(
    all_trials: Sequence[Trial], metric: str, started: float, now: float, steps: Mapping[int, int]
) -> Table:
    """Return a search as a table: the best trials, then the running ones.

    ``steps`` has the present training step of each running trial by index.
    """
    num_over = sum(trial.is_over for trial in all_trials)
    rich_table = Table(
        title=f"{num_over} of {len(all_trials)} trials over, {_minutes(now - started)}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in (
        "trial",
        "state",
        "step",
        metric,
        *(next((list(t.values) for t in all_trials if t.values), [])),
        "time",
    ):
        rich_table.add_column(
            name.split(".")[-1], justify="left" if name == "state" else "right", no_wrap=True
        )
    ordered = trials.ranked(
        [trial for trial in all_trials if trial.rows or trial.state == "running"], metric
    )
    running = [trial for trial in ordered if trial.state == "running"]
    for trial in [
        *[trial for trial in ordered if trial.state != "running"][: max(2, _ROWS - len(running))],
        *running,
    ]:
        score, step = trial.score(metric), steps.get(trial.index, trial.step)
        numbers = [
            f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in trial.values.values()
        ]
        cells = [
            str(trial.index),
            trial.state,
            f"{step}/{trial.num_steps}",
            "-" if score is None else f"{score:.4g}",
            *numbers,
        ]
        rich_table.add_row(
            *cells,
            _minutes(trial.seconds),
            style="dim" if trial.state in ("diverged", "failed") else "",
        )
    return rich_table


def trials_line(all_trials: Sequence[Trial], metric: str, seconds: float) -> str:
    """Return a search as one line: the number of trials in each state, and the best so far."""
    counts = {
        state: sum(trial.state == state for trial in all_trials)
        for state in dict.fromkeys(trial.state for trial in all_trials)
    }
    best = next(
        (trial for trial in trials.ranked(all_trials, metric) if trial.score(metric) is not None),
        None,
    )
    tail = (
        f"  best {metric} {best.score(metric):.4g} (trial {best.index}, step {best.step})"
        if best
        else ""
    )
    return (
        f"{_minutes(seconds)}  "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
        + tail
    )


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


@contextmanager
def live_trials(all_trials: Sequence[Trial], metric: str, folder: Path) -> Iterator[None]:
    """Show the table of a search on the terminal while the block runs.

    ``folder`` has the records of its trials.
    """
    started = time.monotonic()

    def current() -> Table:
        running = (
            [trial.index for trial in all_trials if trial.state == "running"]
            if is_local(folder)
            else []
        )
        return table(
            all_trials,
            metric,
            started,
            time.monotonic(),
            {index: _newest_step(folder / f"trial-{index:04d}") for index in running},
        )

    with live_display(current, lambda: trials_line(all_trials, metric, time.monotonic() - started)):
        yield


def _newest_step(trial: Path) -> int:
    records = sorted(trial.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    return max((int(row["step"]) for row in read_lines(records[-1])), default=0) if records else 0
