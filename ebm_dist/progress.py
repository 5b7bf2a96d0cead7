"""The live line of a training run and the live table of a search, read from their records; whoever trains does not know of it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ebm_dist import search
from ebm_dist.reporting import EVENTS, METRICS, read_lines
from ebm_dist.search import Trial
from ebm_dist.storage import is_local

_ROWS = 12  # of the table of a search
_PLAIN_EVERY_S = 10.0  # without a terminal, such as in CI logs, a line now and then


def line(run: Path, num_steps: int, waiting: str) -> str:
    """Step, energy gap, speed, time left, workers and restarts, in at most 100 characters."""
    rows, starts = list(read_lines(run / METRICS)), list(read_lines(run / EVENTS))
    if not starts:
        return waiting
    workers = starts[-1].get("world_size", 1)
    rollbacks = starts[-1].get("rollbacks", 0)
    restarts = sum(event["event"] == "resumed" for event in starts)
    tail = f"{workers} worker{'s' if workers != 1 else ''}  {restarts} restarts" + (f"  {rollbacks} rollbacks" if rollbacks else "")
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return f"step {starts[-1]['step']}/{num_steps}  {tail}"
    last, before = timed[-1], timed[max(0, len(timed) - 11)]
    seconds = last["seconds"] - before["seconds"]
    speed = (last["step"] - before["step"]) / seconds if seconds > 0 else last["step"] / max(last["seconds"], 1e-9)
    left = (num_steps - last["step"]) / speed
    gap = f"E+ - E- {last['energy_gap']:+.3f}  " if "energy_gap" in last else ""
    return f"step {last['step']}/{num_steps}  {gap}{speed:.1f} steps/s  {left // 60:.0f}:{left % 60:02.0f} left  {tail}"


def trials(known: Sequence[Trial], metric: str, started: float, now: float, steps: Mapping[int, int]) -> Table:
    """A search as a table: best trials, then those that run, with what they have reached; ``steps``: where running ones are."""
    over = sum(trial.is_over for trial in known)
    shown = Table(title=f"{over} of {len(known)} trials over, {_minutes(now - started)}", title_justify="left", box=None, pad_edge=False)
    for name in ("trial", "state", "step", metric, *(next((list(t.values) for t in known if t.values), [])), "time"):
        shown.add_column(name.split(".")[-1], justify="left" if name == "state" else "right", no_wrap=True)
    ordered = search.ranked([trial for trial in known if trial.rows or trial.state == "running"], metric)
    running = [trial for trial in ordered if trial.state == "running"]
    for trial in [*[trial for trial in ordered if trial.state != "running"][: max(2, _ROWS - len(running))], *running]:
        score, step = trial.score(metric), steps.get(trial.index, trial.step)
        numbers = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in trial.values.values()]
        cells = [str(trial.index), trial.state, f"{step}/{trial.num_steps}", "-" if score is None else f"{score:.4g}", *numbers]
        shown.add_row(*cells, _minutes(trial.seconds), style="dim" if trial.state in ("diverged", "failed") else "")
    return shown


def trials_line(known: Sequence[Trial], metric: str, seconds: float) -> str:
    """A search in one line: how many trials are where, and the best so far."""
    counts = {state: sum(trial.state == state for trial in known) for state in dict.fromkeys(trial.state for trial in known)}
    best = next((trial for trial in search.ranked(known, metric) if trial.score(metric) is not None), None)
    tail = f"  best {metric} {best.score(metric):.4g} (trial {best.index}, step {best.step})" if best else ""
    return f"{_minutes(seconds)}  " + ", ".join(f"{count} {state}" for state, count in counts.items()) + tail


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


@contextmanager
def live(run: Path, num_steps: int, waiting: str = "starting Ray ...") -> Iterator[None]:
    """Show the line on the terminal while the block runs."""
    shown_last = [waiting]

    def current() -> str:
        with suppress(OSError):  # an object store that is away: the line stands still
            shown_last[0] = line(run, num_steps, waiting)
        return shown_last[0]

    with showing(lambda: Text(current(), no_wrap=True, overflow="ellipsis"), current):
        yield


@contextmanager
def live_trials(known: Sequence[Trial], metric: str, folder: Path) -> Iterator[None]:
    """Show the table of a search on the terminal while the block runs; ``folder`` has the records of its trials."""
    started = time.monotonic()

    def table() -> Table:
        running = [trial.index for trial in known if trial.state == "running"] if is_local(folder) else []
        return trials(known, metric, started, time.monotonic(), {index: _newest_step(folder / f"trial-{index:04d}") for index in running})

    with showing(table, lambda: trials_line(known, metric, time.monotonic() - started)):
        yield


def _newest_step(trial: Path) -> int:
    records = sorted(trial.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    return max((int(row["step"]) for row in read_lines(records[-1])), default=0) if records else 0


@contextmanager
def showing(picture: Callable[[], RenderableType], line: Callable[[], str]) -> Iterator[None]:
    """While the block runs, keep the picture on the terminal; without one, print the line now and then."""
    console, done = Console(stderr=True), threading.Event()

    def show() -> None:
        if console.is_terminal:
            with Live(picture(), console=console, refresh_per_second=4) as display:
                while not done.wait(0.5):
                    display.update(picture())
                display.update(picture())
            return
        shown, last = 0.0, ""
        while not done.wait(0.5):
            if time.monotonic() - shown >= _PLAIN_EVERY_S and (text := line()) != last:
                print(text, flush=True)
                shown, last = time.monotonic(), text
        print(line(), flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
