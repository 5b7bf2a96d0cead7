"""The live line of a training run, read from its record: the trainer needs no code for it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from ebm_dist.errors import DataError
from ebm_dist.runs import record
from ebm_dist.runs.record import EVENTS, METRICS, read_lines
from ebm_dist.samplers import STEPPED

log = logging.getLogger(__name__)
_PLAIN_EVERY_S = 10.0  # interval between lines without a terminal, such as in CI logs


def line(run: Path, num_steps: int, waiting: str) -> str:
    """Return step, energy gap, speed, time left, workers and restarts in at most 100 characters.

    Return ``waiting`` until the run has an event.
    """
    rows, events = list(read_lines(run / METRICS)), list(read_lines(run / EVENTS))
    if not events:
        return waiting
    workers = events[-1].get("world_size", 1)
    rollbacks = events[-1].get("rollbacks", 0)
    restarts = sum(event["event"] == "resumed" for event in events)
    tail = f"{workers} worker{'s' if workers != 1 else ''}  {restarts} restarts" + (
        f"  {rollbacks} rollbacks" if rollbacks else ""
    )
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return f"step {events[-1]['step']}/{num_steps}  {tail}"
    last, before = timed[-1], timed[max(0, len(timed) - 11)]
    seconds = last["seconds"] - before["seconds"]
    speed = (
        (last["step"] - before["step"]) / seconds
        if seconds > 0
        else last["step"] / max(last["seconds"], 1e-9)
    )
    seconds_left = (num_steps - last["step"]) / speed
    gap = f"E+ - E- {last['energy_gap']:+.3f}  " if "energy_gap" in last else ""
    time_left = f"{seconds_left // 60:.0f}:{seconds_left % 60:02.0f} left"
    return f"step {last['step']}/{num_steps}  {gap}{speed:.1f} steps/s  {time_left}  {tail}"


@contextmanager
def live(run: Path, num_steps: int, waiting: str = "starting Ray ...") -> Iterator[None]:
    """Show the line on the terminal while the block runs."""
    shown_last, num_noted = [waiting], len(record.changes(run))

    def current() -> str:
        nonlocal num_noted
        try:
            shown_last[0] = line(run, num_steps, waiting)
            for change in record.changes(run)[num_noted:]:
                num_noted += 1
                log.warning("%s: %s", run, change)
        except DataError as damaged:
            shown_last[0] = str(damaged)
        except OSError:  # the object store is unreachable: repeat the last line
            pass
        return shown_last[0]

    with live_display(lambda: Text(current(), no_wrap=True, overflow="ellipsis"), current):
        yield


@contextmanager
def counted(what: str, num_steps: int) -> Iterator[Callable[[int], None]]:
    """Show ``what: step n/num_steps`` while the block runs; it calls the result with each ``n``."""
    began, done = time.monotonic(), [0]

    def current() -> str:
        if not done[0]:
            return f"{what}: step 0/{num_steps}"
        left = (time.monotonic() - began) / done[0] * (num_steps - done[0])
        return f"{what}: step {done[0]}/{num_steps}  {left // 60:.0f}:{left % 60:02.0f} left"

    with live_display(lambda: Text(current()), current):
        yield lambda step: done.__setitem__(0, step)


@contextmanager
def chains(what: str) -> Iterator[None]:
    """Show ``what``, the time, and the steps of chains done while the block runs."""
    began, done = time.monotonic(), [0]

    def current() -> str:
        seconds = time.monotonic() - began
        return f"{what}: {seconds // 60:.0f}:{seconds % 60:02.0f}  {done[0]:,} steps of chains"

    token = STEPPED.set(lambda: done.__setitem__(0, done[0] + 1))
    try:
        with live_display(lambda: Text(current()), current):
            yield
    finally:
        STEPPED.reset(token)


@contextmanager
def live_display(picture: Callable[[], RenderableType], line: Callable[[], str]) -> Iterator[None]:
    """Show ``picture()`` on the terminal while the block runs.

    Without a terminal, print ``line()`` every few seconds if it has changed.
    """
    console, done = Console(stderr=True), threading.Event()

    def show() -> None:
        if console.is_terminal:
            with Live(picture(), console=console, refresh_per_second=4) as display:
                while not done.wait(0.5):
                    display.update(picture())
                display.update(picture())
            return
        printed_at, printed = 0.0, ""
        while not done.wait(0.5):
            if time.monotonic() - printed_at >= _PLAIN_EVERY_S and (text := line()) != printed:
                print(text, flush=True)
                printed_at, printed = time.monotonic(), text
        print(line(), flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
