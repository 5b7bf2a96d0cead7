"""ebm-dist: what the stages of the pipeline leave to a person. The stages themselves are run by dvc repro."""

import argparse
import sys
from pathlib import Path

from ebm_dist import config, doctor, results, scaffold
from ebm_dist.lineage import ROOT
from pipelines import run


def _doctor(given: argparse.Namespace) -> None:
    findings = list(doctor.examine(config.load(given.params), given.data))
    for finding in findings:
        print(f"{'ok  ' if finding.mend is None else 'MEND'}  {finding.check}: {finding.seen}")
        if finding.mend is not None:
            print(f"        -> {finding.mend}")
    sys.exit(any(finding.mend is not None for finding in findings))


def _new(given: argparse.Namespace) -> None:
    path, use = scaffold.write(given.kind, given.name, ROOT, given.like)
    print(f"{path.relative_to(ROOT)}: change it; it works already")
    print(f"use it:  {use}")
    print(f"test it: pytest tests/contract -k {given.name}")


def _recipes(given: argparse.Namespace) -> None:
    for recipe in results.recipes(ROOT / "pipelines/recipes", ROOT / "reports"):
        print(f"{recipe.name:28} {'run' if recipe.is_run else '-':4} {recipe.title}")


def _compare(given: argparse.Namespace) -> None:
    for key, a, b in results.compare(*(ROOT / "reports" / name for name in (given.a, given.b))):
        print(f"{key:60} {a:12.5g} {b:12.5g} {b - a:+12.4g}")


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="ebm-dist", description=__doc__)
    commands = own.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("doctor", help="what is wrong here, and the mend; exit code 1 if anything is")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)")
    command.add_argument("--data", type=Path, default=Path("data/main"), help="prepared data (default: data/main)")
    command.set_defaults(main=_doctor)
    command = commands.add_parser("new", help="a new plugin that passes its tests at once")
    command.add_argument("kind", choices=scaffold.KINDS, help="what it is")
    command.add_argument("name", help="its name, and its file's")
    command.add_argument("--like", help="the plugin to start from")
    command.set_defaults(main=_new)
    command = commands.add_parser("recipes", help="every recipe, and whether its results are here")
    command.set_defaults(main=_recipes)
    command = commands.add_parser("compare", help="the metrics that two recipes share, side by side")
    command.add_argument("a", help="a recipe with results")
    command.add_argument("b", help="another")
    command.set_defaults(main=_compare)
    return own


def main() -> None:
    given = parser().parse_args()
    run(lambda: given.main(given))
