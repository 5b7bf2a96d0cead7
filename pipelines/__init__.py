"""The stages of the pipeline, a module each: ``python -m pipelines.train --help``."""

import argparse
import sys
from pathlib import Path

from ebm_dist import config
from ebm_dist.cli import run as run

ROOT = Path(__file__).resolve().parent.parent


class _Settings(argparse.Action):
    """``--settings``: print every key of a parameter file, from the docstrings."""

    def __call__(self, *_: object) -> None:
        print("\n".join(config.reference()))
        sys.exit(0)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a stage. It takes paths; values come from the parameter file."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="parameter file (default: params.yaml)",
    )
    options.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed that replaces the file's seed, for replicates of a recipe",
    )
    options.add_argument(
        "--settings", action=_Settings, nargs=0, help="list every key of a parameter file, and exit"
    )
    return options
