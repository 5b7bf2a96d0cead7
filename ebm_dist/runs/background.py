"""Looking on while something runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_every(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """While the block runs, call ``look`` every so many seconds, beside it, and once more at its end. It must not raise."""
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
