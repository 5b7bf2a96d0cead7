"""Named points at which a test can kill or fail this process. By default they do nothing.

``EBM_FAULT=write.rename:3:kill`` kills the process at the third pass of the point ``write.rename``.
``EBM_FAULT_RANK=1`` limits the fault to that rank. Only tests set these variables, and an armed
process logs a warning.
"""

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

POINTS = (
    "chain.step",
    "reduce.before",
    "reduce.after",
    "update.before",
    "update.after",
    "write.open",
    "write.content",
    "write.sync",
    "write.rename",
    "write.folder",
    "checkpoint.begin",
    "checkpoint.parts",
    "checkpoint.manifest",
    "checkpoint.delete",
    "record.append",
)
"""In the sampler, around the reduction and the update, before each system call of a durable write,
between the steps of a checkpoint, and before each line of the record."""


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda: os.killpg(os.getpgrp(), signal.SIGINT),  # as Ctrl-C in a terminal
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "full": lambda: _raise(errno.ENOSPC),
    "broken": lambda: _raise(errno.EIO),
    "slow": lambda: time.sleep(10),
}


@dataclass
class Plan:
    """An action, and the point and pass at which it happens."""

    name: str
    count: int
    action: str

    def __post_init__(self) -> None:
        if self.name not in POINTS or self.action not in ACTIONS or self.count < 1:
            raise ValueError(
                f"EBM_FAULT: {self.name}:{self.count}:{self.action}: points are {POINTS},"
                f" actions are {tuple(ACTIONS)}"
            )
        logging.getLogger(__name__).warning(
            "a fault is armed in this process: %s:%d:%s", self.name, self.count, self.action
        )


_plan: Plan | None = None


def arm(text: str | None) -> None:
    """Plan the fault of a text such as that of ``EBM_FAULT``; None removes the plan."""
    global _plan  # noqa: PLW0603 (a fault concerns the whole process)
    if text:
        name, count, action = text.split(":")
        _plan = Plan(name, int(count), action)
    else:
        _plan = None


def arm_from_environment(rank: int) -> None:
    """Plan the fault of the environment; each rank calls this once as it starts."""
    if os.environ.get("EBM_FAULT_RANK", str(rank)) == str(rank):
        arm(os.environ.get("EBM_FAULT"))


def point(name: str) -> None:
    """Pass a point, and perform the planned action if its pass has come."""
    if _plan is None or _plan.name != name:
        return
    _plan.count -= 1
    if _plan.count == 0:
        ACTIONS[_plan.action]()
