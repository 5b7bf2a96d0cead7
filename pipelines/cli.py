"""ebm-dist: what the stages of the pipeline leave to a person. The stages themselves are run by dvc repro."""

import argparse
from pathlib import Path

import shtab

from ebm_dist import scaffold
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

    for name, main, text in (
        ("doctor", "examine", "what is wrong here, and the mend; exit code 1 if anything is"),
        ("plan", "plan_training", "a dry run: what a training will take, and a few steps of it"),
    ):
        one = command(name, main, text)
        one.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)")
        one.add_argument("--data", type=Path, default=Path("data/main"), help="prepared data (default: data/main)")
    one = command("sample", "sample", "chains of a trained model, from noise")
    one.add_argument("model", type=Path, help="folder of a trained model, such as model/energy")
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
    text = "a recipe with results"
    command("compare", "compare", "the metrics that two recipes share, side by side", a=text, b=text)
    one = command("report", "report", "a run on one self-contained page")
    one.add_argument("reports", type=Path, help="folder of reports, such as reports/main")
    one.add_argument("--beside", type=Path, help="another, such as the champion's, to compare with")
    one.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    model = "name of the registered model"
    command("promote", "promote", "make a version champion, if its gates passed", model=model, version="its version")
    command("rollback", "roll_back", "make the champion before this one champion again", model=model)
    command("history", "history", "who made which version champion, when, by which figures", model=model)
    return own


def main() -> None:
    given = parser().parse_args()
    from ebm_dist import commands  # after the parsing: help and completion come at once

    run(lambda: getattr(commands, given.main)(given))
