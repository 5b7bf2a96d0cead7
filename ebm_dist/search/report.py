"""A search for people: the live table, ``metrics.json``, ``trials.csv``, pictures, and the parameter file with the best values."""

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


def summary(params: Params, found: SearchResult) -> dict[str, Any]:
    """What ``metrics.json`` holds: the search, and the comparison of the file's own values with the best over seeds."""
    own, best = params.tune, trials.ranked(found.trials, params.tune.metric)[0]
    states = {
        f"num_{state}": sum(t.state == state for t in found.trials)
        for state in ("finished", "stopped", "diverged", "failed")
    }
    winner = found.winner(own.metric)
    theirs, ours = found.scores(own.metric)[0], found.scores(own.metric)[winner]
    pairs = [b - a for a, b in zip(theirs, ours, strict=True) if a is not None and b is not None]
    difference = _spread([*pairs] if len(pairs) == len(ours) else [None])
    return {
        "metric": own.metric,
        "scheduler": own.scheduler,
        "search": own.search,
        "num_trials": len(found.trials),
        **states,
        "used_steps": trials.progress(found.trials, own.metric).used_steps[-1],
        "best": {
            "trial": best.index,
            "step": best.step,
            "score": best.score(own.metric),
            "values": best.values,
        },
        "comparison": {
            "num_steps": found.num_steps,
            "num_seeds": own.final_seeds,
            "split": "val",
            "file": _spread(theirs),
            "tuned": _spread(ours),
            "difference": difference,
            "values": found.finalists[winner],
            "is_better": None not in ours and (None in theirs or difference["mean"] < 0),
            "is_certain": difference["high"] is not None and difference["high"] < 0,
        },
    }


def _spread(values: list[float | None]) -> dict[str, Any]:
    """Mean with its 95 % t-interval; all None where a value is missing because training diverged or failed."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "low": None, "high": None, "each": values}
    low, high = interval(numbers) or (None, None)
    return {"mean": sum(numbers) / len(numbers), "low": low, "high": high, "each": values}


def verdict(metrics: dict[str, Any]) -> str:
    """The comparison in words."""
    compared = metrics["comparison"]
    rows = "\n".join(
        f"  {label:<10} {_words(compared[name])}"
        for label, name in (("the file", "file"), ("tuned", "tuned"))
    )
    if not compared["is_better"]:
        end = "the search found nothing better than the file's own values"
    elif compared["is_certain"]:
        end = f"tuned values are better: difference {_words(compared['difference'])}"
    else:
        end = f"tuned values are better in the mean, within what seeds do: difference {_words(compared['difference'])}"
    head = f"{_NAMES[metrics['metric']]}, {compared['num_steps']} steps, {compared['num_seeds']} seeds (mean, 95 % interval):"
    return f"{head}\n{rows}\n{end}"


def _words(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "no score: it diverged or failed with a seed"
    each = ", ".join(f"{value:.4g}" for value in spread["each"])
    ends = "" if spread["low"] is None else f" [{spread['low']:.4g}, {spread['high']:.4g}]"
    return f"{spread['mean']:.4g}{ends}  ({each})"


def write(
    params: Params, found: SearchResult, folder: Path, source: Path, tuned: Path
) -> dict[str, Any]:
    """Write all files; returns the metrics. ``tuned`` has the values that were found, if they are better than the source's."""
    metrics = summary(params, found)
    for name, content in pictures(params, found).items():
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "plots" / name, content)
    write_csv(folder / "trials.csv", trials.table(found.trials, params.tune.metric))
    write_json(folder / "metrics.json", metrics)
    compared = metrics["comparison"]
    head = f"The values of {source}" + (
        " with those that a search found: "
        if compared["is_better"]
        else "; a search found none better: "
    )
    head += f"{params.tune.scheduler}, {len(found.trials)} trials of at most {params.tune.num_steps} steps.\n"
    head += f"Adopt and retrain: dvc exp run -S recipe={tuned}\n\n{verdict(metrics)}"
    write_whole(
        tuned,
        study.tuned(source, compared["values"] if compared["is_better"] else {}, head).encode(),
    )
    return metrics


def pictures(params: Params, found: SearchResult) -> dict[str, bytes]:
    """Parallel coordinates, the response surface of each pair of values on logarithmic axes, and the best score so far."""
    metric, valued = params.tune.metric, [trial for trial in found.trials if trial.values]
    scores = np.array(
        [math.nan if (score := trial.score(metric)) is None else score for trial in valued]
    )
    ranges = params.tune.ranges(params)
    columns = {
        key.split(".")[-1]: figures.Column(
            [t.values[key] for t in valued], bool(chosen.log), chosen.log or chosen.linear
        )
        for key, chosen in ranges.items()
    }
    title = f"{len(valued)} trials, {sum(not np.isfinite(s) for s in scores)} of them diverged or failed"
    out = {"parallel.png": figures.parallel_coordinates(columns, scores, metric, title)}
    for x, y in itertools.combinations([key for key, chosen in ranges.items() if chosen.log], 2):
        name = (
            "surface.png"
            if (x, y) == _SURFACE
            else f"surface-{x.split('.')[-1]}-{y.split('.')[-1]}.png"
        )
        across, up = (
            figures.Column([t.values[key] for t in valued], True, ranges[key].log) for key in (x, y)
        )
        out[name] = figures.surface(across, up, scores, (x, y, metric), title)
    best = trials.progress(found.trials, metric)
    label = _NAMES[metric]
    out["best.png"] = figures.best_so_far(
        {params.tune.scheduler: best}, "training steps used", label, "Best score so far"
    )
    return out


def table(
    known: Sequence[Trial], metric: str, started: float, now: float, steps: Mapping[int, int]
) -> Table:
    """A search as a table: best trials, then those that run, with what they have reached; ``steps``: where running ones are."""
    over = sum(trial.is_over for trial in known)
    shown = Table(
        title=f"{over} of {len(known)} trials over, {_minutes(now - started)}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in (
        "trial",
        "state",
        "step",
        metric,
        *(next((list(t.values) for t in known if t.values), [])),
        "time",
    ):
        shown.add_column(
            name.split(".")[-1], justify="left" if name == "state" else "right", no_wrap=True
        )
    ordered = trials.ranked(
        [trial for trial in known if trial.rows or trial.state == "running"], metric
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
        shown.add_row(
            *cells,
            _minutes(trial.seconds),
            style="dim" if trial.state in ("diverged", "failed") else "",
        )
    return shown


def trials_line(known: Sequence[Trial], metric: str, seconds: float) -> str:
    """A search in one line: how many trials are where, and the best so far."""
    counts = {
        state: sum(trial.state == state for trial in known)
        for state in dict.fromkeys(trial.state for trial in known)
    }
    best = next(
        (trial for trial in trials.ranked(known, metric) if trial.score(metric) is not None), None
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
def live_trials(known: Sequence[Trial], metric: str, folder: Path) -> Iterator[None]:
    """Show the table of a search on the terminal while the block runs; ``folder`` has the records of its trials."""
    started = time.monotonic()

    def current() -> Table:
        running = (
            [trial.index for trial in known if trial.state == "running"] if is_local(folder) else []
        )
        return table(
            known,
            metric,
            started,
            time.monotonic(),
            {index: _newest_step(folder / f"trial-{index:04d}") for index in running},
        )

    with live_display(current, lambda: trials_line(known, metric, time.monotonic() - started)):
        yield


def _newest_step(trial: Path) -> int:
    records = sorted(trial.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    return max((int(row["step"]) for row in read_lines(records[-1])), default=0) if records else 0
