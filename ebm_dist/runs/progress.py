"""The live line of a training run, read from its record; whoever trains, and wherever, does not know of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from ebm_dist.runs.record import EVENTS, METRICS, read_lines

_PLAIN_EVERY_S = 10.0  # without a terminal, such as in CI logs, a line now and then


def line(run: Path, num_steps: int, waiting: str) -> str:
    """Step, energy gap, speed, time left, workers and restarts, in at most 100 characters."""
    rows, starts = list(read_lines(run / METRICS)), list(read_lines(run / EVENTS))
    if not starts:
        return waiting
    workers = starts[-1].get("world_size", 1)
    rollbacks = starts[-1].get("rollbacks", 0)
    restarts = sum(event["event"] == "resumed" for event in starts)
    tail = f"{workers} worker{'s' if workers != 1 else ''}  {restarts} restarts" + (
        f"  {rollbacks} rollbacks" if rollbacks else ""
    )
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return f"step {starts[-1]['step']}/{num_steps}  {tail}"
    last, before = timed[-1], timed[max(0, len(timed) - 11)]
    seconds = last["seconds"] - before["seconds"]
    speed = (
        (last["step"] - before["step"]) / seconds
        if seconds > 0
        else last["step"] / max(last["seconds"], 1e-9)
    )
    left = (num_steps - last["step"]) / speed
    gap = f"E+ - E- {last['energy_gap']:+.3f}  " if "energy_gap" in last else ""
    return f"step {last['step']}/{num_steps}  {gap}{speed:.1f} steps/s  {left // 60:.0f}:{left % 60:02.0f} left  {tail}"


@contextmanager
def live(run: Path, num_steps: int, waiting: str = "starting Ray ...") -> Iterator[None]:
    """Show the line on the terminal while the block runs."""
    shown_last = [waiting]

    def current() -> str:
        with suppress(OSError):  # an object store that is away: the line stands still
            shown_last[0] = line(run, num_steps, waiting)
        return shown_last[0]

    with live_display(lambda: Text(current(), no_wrap=True, overflow="ellipsis"), current):
        yield


@contextmanager
def live_display(picture: Callable[[], RenderableType], line: Callable[[], str]) -> Iterator[None]:
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
