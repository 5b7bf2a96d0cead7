"""The command ``ebm-dist``, and what every command and stage shares: one message and an exit code for an error."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ebm_dist.errors import DataError, EbmError


def run(main: Callable[[], None]) -> None:
    """Run a command; turn an error of ours into one message and its exit code."""
    logging.basicConfig(
        format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except EbmError as error:
        sys.exit(_say(str(error), error.exit_code))
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the last flush must not complain
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a full or read-only disk can show anywhere
        sys.exit(
            _say(f"{error.filename or 'disk'}: {error.strerror or error}", DataError.exit_code)
        )
    except KeyboardInterrupt:
        sys.exit(_say("stopped; run the same command again to go on", 130))


def _say(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
