"""Named points at which a test can make this process die or fail: a no-op unless the environment says otherwise.

``EBM_FAULT=write.rename:3:kill`` kills the process at the third pass of the point ``write.rename``; ``EBM_FAULT_RANK=1`` does so in
that rank only. Only the tests set them, and a process that is armed says so.
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
"""In the sampler, around the reduction and the update, before each system call of a durable write, between the steps of a
checkpoint, before a line of the record."""


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "full": lambda: _raise(errno.ENOSPC),
    "broken": lambda: _raise(errno.EIO),
    "slow": lambda: time.sleep(10),
}


@dataclass
class Plan:
    """What is to happen, and at which pass of which point."""

    name: str
    count: int
    action: str

    def __post_init__(self) -> None:
        if self.name not in POINTS or self.action not in ACTIONS or self.count < 1:
            raise ValueError(
                f"EBM_FAULT: {self.name}:{self.count}:{self.action}: points {POINTS}, actions {tuple(ACTIONS)}"
            )
        logging.getLogger(__name__).warning(
            "a fault is armed in this process: %s:%d:%s", self.name, self.count, self.action
        )


_plan: Plan | None = None


def arm(text: str | None) -> None:
    """Plan a fault, as ``EBM_FAULT`` does; None for none."""
    global _plan  # noqa: PLW0603 (a fault is a thing of the whole process)
    if text:
        name, count, action = text.split(":")
        _plan = Plan(name, int(count), action)
    else:
        _plan = None


def arm_from_environment(rank: int) -> None:
    """Called once by each rank as it starts."""
    if os.environ.get("EBM_FAULT_RANK", str(rank)) == str(rank):
        arm(os.environ.get("EBM_FAULT"))


def point(name: str) -> None:
    """Pass a point."""
    if _plan is None or _plan.name != name:
        return
    _plan.count -= 1
    if _plan.count == 0:
        ACTIONS[_plan.action]()
