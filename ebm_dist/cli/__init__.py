"""The command ``ebm-dist``, and the error handling that all commands and stages share."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ebm_dist.errors import DataError, EbmError


def run(main: Callable[[], None]) -> None:
    """Run a command; turn an :class:`EbmError` into one message and its exit code."""
    logging.basicConfig(
        format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr
    )
    signal.signal(signal.SIGTERM, _interrupt)
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
    except KeyboardInterrupt:
        sys.exit(_report("stopped; run the same command again to resume", 130))


def _report(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
