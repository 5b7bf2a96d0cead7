"""The record of a run: metrics and events as JSON lines, complete even without a tracking server.

``metrics.jsonl`` has one row per logged step. A restart drops the rows after its checkpoint and
writes them again. ``events.jsonl`` has a line per start, restart and rollback, with the versions of
the libraries and the device. A file ``stop`` requests that the run end at the next step boundary.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ebm_dist.errors import DataError
from ebm_dist.files import read_json
from ebm_dist.storage import append, is_local, read_bytes, write_whole
from ebm_dist.training.reporter import Request, Row

METRICS, EVENTS, STOP = "metrics.jsonl", "events.jsonl", "stop"
VALIDATION = "validation"
"""Folder with the scores of validated checkpoints, a file of each"""
_LOOK_EVERY_S = 1.0
_UPLOAD_EVERY_S = 5.0

log = logging.getLogger(__name__)


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
        line = json.dumps(row) + "\n"
        if is_local(self.path):
            append(self.path, line.encode())
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


def validations(run: Path) -> list[dict[str, Any]]:
    """Return the scores of the checkpoints that were validated, in the order of their steps."""
    if not (run / VALIDATION).exists():
        return []
    rows = [
        read_json(path, "train") for path in (run / VALIDATION).iterdir() if path.suffix == ".json"
    ]
    return sorted(rows, key=lambda row: int(row["step"]))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; none if it is missing.

    A last line that was cut off while it was written is left out. Raise :class:`DataError` for any
    other line that is no row.
    """
    try:
        *lines, last = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            raise DataError(
                f"{path}:{number}: damaged: expected a JSON object with a step and numbers, found"
                f" {line[:60].decode(errors='replace')!r}",
                f"move {path.name} away and run again: checkpoints have the metrics up to them",
            )
        yield row
    if (row := _row(last)) is not None:
        yield row


_NUMBERS = ("time", "seconds", "world_size", "rollbacks")


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, None if it is none.

    A row has a step. Its values are numbers, except in a row that has an ``event``.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    if not isinstance(row.get("versions", {}), dict):
        return None
    numbers = [row[name] for name in _NUMBERS if name in row] if "event" in row else row.values()
    return row if all(isinstance(value, int | float) for value in numbers) else None


def check(run: Path) -> None:
    """Read the record of a run; warn of a line that was cut off.

    Raise :class:`DataError` for a damaged record, which no training can add to.
    """
    for path in (run / METRICS, run / EVENTS):
        num_rows = sum(1 for _ in read_lines(path))
        if path.exists() and len(read_bytes(path).splitlines()) > num_rows:
            log.warning("%s: the last line was cut off; training writes it again", path)


def changes(run: Path) -> list[str]:
    """Return a line per start of the run with other libraries or another device than before."""
    events = [event for event in read_lines(run / EVENTS) if "versions" in event]
    return [
        f"step {after['step']}: resumed with {', '.join(differences)}: the bits may differ from"
        " those of a run without the change"
        for before, after in pairwise(events)
        if (differences := list(_differences(before, after)))
    ]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in sorted({**before["versions"], **after["versions"]}):
        old, new = before["versions"].get(name), after["versions"].get(name)
        if old != new:
            yield f"{name} {new} (before: {old})"
    if before.get("device") != after.get("device"):
        yield f"{after.get('device')} (before: {before.get('device')})"
