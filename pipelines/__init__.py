"""The stages of the pipeline, one module each: ``python -m pipelines.train --help``."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ebm_dist import config
from ebm_dist.errors import DataError, EbmError


ROOT = Path(__file__).resolve().parent.parent


class _Help(argparse.Action):
    """``--settings``: every key of a parameter file, from the docstrings."""

    def __call__(self, *_: object) -> None:
        print("\n".join(config.reference()))
        sys.exit(0)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A stage's command line: paths only. Values come from the parameter file."""
    own = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)")
    own.add_argument("--seed", type=int, default=None, help="seed instead of the file's: for replicates of a recipe")
    own.add_argument("--settings", action=_Help, nargs=0, help="list every key of a parameter file, and exit")
    return own


def run(main: Callable[[], None]) -> None:
    """Run a stage; an error of ours becomes one message and its exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except EbmError as error:
        sys.exit(_say(str(error), error.exit_code))
    except BrokenPipeError:  # whoever reads us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the last flush to complain
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a full or read-only disk can show anywhere
        sys.exit(_say(f"{error.filename or 'disk'}: {error.strerror or error}", DataError.exit_code))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; run the same command again to go on", 130))


def _say(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
