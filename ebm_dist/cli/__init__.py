"""The command ``ebm-dist``, and the error handling that all commands and stages share."""

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ebm_dist.errors import DataError, EbmError, printable, redact


def run(main: Callable[[], None]) -> None:
    """Run a command; turn an :class:`EbmError` into one message and its exit code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    signal.signal(signal.SIGTERM, _interrupt)
    atexit.register(gc.freeze)  # the last collections look at all objects, for up to two seconds
    try:
        main()
    except EbmError as error:
        sys.exit(_report(str(error), error.exit_code))
    except BrokenPipeError:  # the reader has closed the pipe
        # keeps the flush at exit from raising again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a full or read-only disk, which any write can hit
        sys.exit(
            _report(f"{error.filename or 'disk'}: {error.strerror or error}", DataError.exit_code)
        )
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        sys.exit(_report("stopped; run the same command again to resume", 128 + number))


class _Redacted(logging.Formatter):
    """Leaves out passwords and control characters, also those in the messages of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


def _report(message: str, exit_code: int) -> int:
    print(f"error: {printable(redact(message))}", file=sys.stderr, flush=True)
    return exit_code


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
