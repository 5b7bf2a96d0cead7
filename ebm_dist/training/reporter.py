"""The interface between the training loop and the platform that it runs on."""

from enum import IntEnum
from typing import Protocol

Row = dict[str, float]


class Request(IntEnum):
    """Requests of a platform to training, between two steps."""

    NOTHING = 0
    SAVE = 1
    """Write a checkpoint: this machine is about to go"""
    STOP = 2
    """Write a checkpoint and end"""


class Reporter(Protocol):
    """Receives the events of training. Every rank calls it at the same steps."""

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        """Report that training starts, resumes or rolls back after ``step``, and the reason.

        ``history`` has the metrics up to this step.
        """

    def metrics(self, row: Row, seconds: float) -> None:
        """Report a row of metrics, which is equal on all ranks and in every repetition.

        ``seconds`` of training so far are not.
        """

    def saved(self, row: Row) -> None:
        """Report that a checkpoint is on disk; ``row`` has the latest metrics, if any."""

    def requested(self) -> Request:
        """Return the request to this rank for the next step boundary."""
