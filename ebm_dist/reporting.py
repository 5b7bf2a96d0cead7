"""The record of a run on disk: metrics and events as JSON lines, complete whatever else is away.

``metrics.jsonl`` has one row for each logged step, none twice; a restart cuts off what came after its checkpoint and
does it again. ``events.jsonl`` has a line for each start. A file ``stop`` asks the run to end at the next step boundary.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebm_dist import faults

if TYPE_CHECKING:
    from ebm_dist.trainer import Row

METRICS, EVENTS, STOP = "metrics.jsonl", "events.jsonl", "stop"


class FileReporter:
    """A :class:`ebm_dist.trainer.Reporter` that keeps the record; only rank 0 writes it."""

    def __init__(self, run: Path, rank: int = 0, facts: dict[str, Any] | None = None, now: Callable[[], float] = time.time) -> None:
        self.run, self.rank, self.facts, self.now = run, rank, facts or {}, now

    def started(self, step: int, history: "list[Row]") -> None:
        if self.rank:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        known = {row["step"]: row for row in read_lines(self.run / METRICS) if row["step"] <= step}
        rows = [known.get(row["step"], row) for row in history]  # rows that the disk lost come back from the checkpoint
        part = self.run / (METRICS + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        part.replace(self.run / METRICS)
        self._append(EVENTS, {"event": "start", "step": step, "time": self.now()} | self.facts)

    def metrics(self, row: "Row", seconds: float) -> None:
        if self.rank == 0:
            self._append(METRICS, row | {"seconds": seconds, "time": self.now()})

    def saved(self, row: "Row") -> None:
        pass

    def should_stop(self) -> bool:
        return (self.run / STOP).exists()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        faults.point("record.append")
        with (self.run / name).open("a") as out:
            out.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file; nothing if it is missing, and not the last line if it was cut off while being written."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return
