"""ebm-dist: what the stages of the pipeline leave to a person. The stages themselves are run by dvc repro."""

import argparse
from pathlib import Path

import shtab

from ebm_dist.cli import scaffold
from pipelines import run


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="ebm-dist", description=__doc__)
    shtab.add_argument_to(own, "--completion", help="print a script that makes the shell complete commands")
    added = own.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, main: str, text: str, **arguments: str) -> argparse.ArgumentParser:
        one = added.add_parser(name, help=text, description=text)
        one.set_defaults(main=main)
        for argument, meaning in arguments.items():
            one.add_argument(argument, help=meaning)
        return one

    for one in (
        command("doctor", "examine", "what is wrong here, and the mend; exit code 1 if anything is"),
        command("plan", "plan_training", "a dry run: what a training will take, and a few steps of it"),
        command("submit", "submit", "the pipeline as a job of the Ray cluster; ends with the job's exit code"),
    ):
        one.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)")
        one.add_argument("--data", type=Path, default=Path("data/main"), help="prepared data (default: data/main)")
    one.add_argument("targets", nargs="*", help="of dvc repro (default: all of dvc.yaml)")
    one.add_argument("--no-wait", action="store_true", help="print the job's name and leave it alone")
    one.add_argument("--dry-run", action="store_true", help="plan instead, on this machine")
    one = command("sample", "sample", "chains of a trained model, from noise", model="its folder, such as model/energy")
    one.add_argument("--out", type=Path, default=Path("samples.png"), help="a picture, or a .npy file (default: samples.png)")
    for name, default in (("count", 100), ("steps", 200), ("seed", 0)):
        one.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    uri = "models:/name@champion, or models:/name/version"
    command("reproduce", "reproduce", "a registered version made again from its lineage, to the same bits", uri=uri)
    one = command("new", "new", "a new plugin, which passes the tests over its folder at once")
    one.add_argument("kind", choices=list(scaffold.KINDS), help="what it is")
    one.add_argument("name", help="its name, and its file's")
    one.add_argument("--like", help="the plugin to start from")
    command("recipes", "recipes", "every recipe, and whether its results are here")
    command("compare", "compare", "the metrics that two recipes share, side by side", a="a recipe with results", b="another")
    one = command("report", "report", "a run on one self-contained page", reports="folder of reports, such as reports/main")
    one.add_argument("--beside", help=f"another folder, or {uri}, to compare with")
    one.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    model = "name of the registered model"
    command("promote", "promote", "make a version champion, if its gates passed", model=model, version="its version")
    command("rollback", "roll_back", "make the champion before this one champion again", model=model)
    command("history", "history", "who made which version champion, when, by which figures", model=model)
    return own


def main() -> None:
    given = parser().parse_args()
    from ebm_dist.cli import commands  # after the parsing: help and completion come at once

    run(lambda: getattr(commands, given.main)(given))
