"""What the training loop tells its platform, and what a platform may ask of it."""

from enum import IntEnum
from typing import Protocol

Row = dict[str, float]


class Request(IntEnum):
    """What a platform may ask of training between two steps."""

    NOTHING = 0
    SAVE = 1
    """a checkpoint, because this machine is about to go"""
    STOP = 2
    """a checkpoint, and to end"""


class Reporter(Protocol):
    """What a platform does with news from training; called on every rank at the same steps."""

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        """Training starts, goes on or goes back to after this step, with the metrics up to it, and why."""

    def metrics(self, row: Row, seconds: float) -> None:
        """A row of metrics, equal on all ranks and in every repetition; ``seconds`` of training so far are not."""

    def saved(self, row: Row) -> None:
        """A checkpoint is on disk; ``row`` has the latest metrics, if any yet."""

    def requested(self) -> Request:
        """What this rank has been asked to do at the next step boundary."""
