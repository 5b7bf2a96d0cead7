"""Call a function at intervals while a block of code runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_every(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call ``look`` every ``every_s`` seconds while the block runs, and once at its end.

    The calls are made by a thread. ``look`` must not raise.
    """
    done = threading.Event()

    def repeat() -> None:
        while True:
            is_last = done.is_set()
            look()
            if is_last:
                return
            done.wait(every_s)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=60)
