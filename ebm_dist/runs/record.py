"""The record of a run: metrics and events as JSON lines, complete even without a tracking server.

``metrics.jsonl`` has one row per logged step. A restart drops the rows after its checkpoint and
writes them again. ``events.jsonl`` has a line per start, restart and rollback. A file ``stop``
requests that the run end at the next step boundary.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ebm_dist import faults
from ebm_dist.storage import is_local, read_bytes, write_whole
from ebm_dist.training.reporter import Request, Row

METRICS, EVENTS, STOP = "metrics.jsonl", "events.jsonl", "stop"
_LOOK_EVERY_S = 1.0
_UPLOAD_EVERY_S = 5.0


class Lines:
    """A file of JSON lines that grows.

    An object store cannot append, so the whole file is written again there, at most every few
    seconds.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self.path, self.now = path, now
        self._lines, self._is_written, self._written_at = list[str](), True, 0.0

    def replace(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the content of the file by these rows."""
        self._lines, self._is_written = [json.dumps(row) + "\n" for row in rows], False
        self.flush()

    def append(self, row: dict[str, Any]) -> None:
        """Append a row: at once on a disk, within seconds in an object store."""
        faults.point("record.append")
        line = json.dumps(row) + "\n"
        if is_local(self.path):
            with self.path.open("a") as out:
                out.write(line)
            return
        self._lines.append(line)
        self._is_written = False
        if self.now() - self._written_at >= _UPLOAD_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write pending rows to the object store."""
        if not self._is_written:
            write_whole(self.path, "".join(self._lines).encode())
            self._is_written, self._written_at = True, self.now()


class FileReporter:
    """A :class:`Reporter` that keeps the record. Only rank 0 writes and checks for a stop file."""

    def __init__(
        self,
        run: Path,
        rank: int = 0,
        facts: dict[str, Any] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.rank, self.facts, self.now = run, rank, facts or {}, now
        self._metrics, self._events = Lines(run / METRICS, now), Lines(run / EVENTS, now)
        self._looked_at, self._stops = 0.0, False

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        if self.rank:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        recorded = {
            row["step"]: row for row in read_lines(self.run / METRICS) if row["step"] <= step
        }
        # rows that the disk lost come from the checkpoint
        self._metrics.replace([recorded.get(row["step"], row) for row in history])
        event = {
            "event": reason,
            "step": step,
            "rollbacks": rollbacks,
            "time": self.now(),
        } | self.facts
        self._events.replace([*read_lines(self.run / EVENTS), event])

    def metrics(self, row: Row, seconds: float) -> None:
        if self.rank == 0:
            self._metrics.append(row | {"seconds": seconds, "time": self.now()})

    def saved(self, row: Row) -> None:
        if self.rank == 0:
            self._metrics.flush()

    def stops(self) -> bool:
        """Whether the stop file exists; checked at most once per second."""
        if (
            self.rank == 0
            and not self._stops
            and abs(self.now() - self._looked_at) >= _LOOK_EVERY_S
        ):
            self._stops, self._looked_at = (self.run / STOP).exists(), self.now()
        return self._stops

    def requested(self) -> Request:
        return Request.STOP if self.stops() else Request.NOTHING


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; none if it is missing.

    Reading ends at a line that was cut off while it was written.
    """
    try:
        lines = read_bytes(path).decode().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
