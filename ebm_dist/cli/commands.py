"""The command ``ebm-dist``: inspect settings, results and models. ``dvc repro`` runs the stages."""

import argparse
import io
import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import shtab

from ebm_dist.cli import run, scaffold
from ebm_dist.errors import ConfigError, ResultsError, printable

_URI = "models:/name@champion, or models:/name/version"
_SHIPPED = "the name of a shipped model"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``main`` has the name of a command's function."""
    root = argparse.ArgumentParser(prog="ebm-dist", description=__doc__)
    shtab.add_argument_to(root, "--completion", help="print a script for completion in the shell")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, main: str, text: str, **arguments: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(main=main)
        for argument, meaning in arguments.items():
            subparser.add_argument(argument, help=meaning)
        return subparser

    for added in (
        command(
            "doctor",
            "examine",
            "check installation, settings and surroundings; exit with code 1 if something needs a"
            " fix",
        ),
        command("plan", "plan_training", "dry run: sizes, disk, memory and time of a training"),
        command(
            "submit",
            "submit",
            "run the pipeline as a job of the Ray cluster; exit with the exit code of the job",
        ),
    ):
        added.add_argument(
            "--params",
            type=Path,
            default=Path("params.yaml"),
            help="parameter file (default: params.yaml)",
        )
        added.add_argument(
            "--data",
            type=Path,
            default=Path("data/main"),
            help="prepared data (default: data/main)",
        )
    added.add_argument("targets", nargs="*", help="targets of dvc repro (default: all of dvc.yaml)")
    added.add_argument("--no-wait", action="store_true", help="print the job's name and return")
    added.add_argument("--dry-run", action="store_true", help="plan on this machine instead")
    added = command(
        "init", "init", "look at the user's own data, and write the files of a project on them"
    )
    added.add_argument("name", nargs="?", help="name of the model (default: that of the data)")
    added.add_argument(
        "--data",
        type=Path,
        required=True,
        help="an .npz, .npy, .csv or .parquet, or a folder of images",
    )
    added.add_argument("--task", choices=("generate", "anomaly", "classify"), default="generate")
    added.add_argument("--labels", help="array or column of the labels (default: labels, y, ...)")
    added.add_argument(
        "--anomalies", nargs="+", default=(), help="classes that are anomalies (task anomaly)"
    )
    added = command("run", "run_project", "run the stages of a project; again to resume")
    added.add_argument(
        "name", nargs="?", help="name of the project (default: the one that is here)"
    )
    added = command(
        "score",
        "score",
        "write the energy of each sample of a file: high = unusual",
        model=f"folder of a model on the user's own data, {_SHIPPED}, {_URI}",
    )
    added.add_argument("file", type=Path, help="samples of the kind that the model has learnt")
    added.add_argument(
        "--out", type=Path, default=Path("scores.csv"), help="file to write (default: scores.csv)"
    )
    added = command(
        "settings", "settings", "list the keys of a parameter file: types, defaults and meaning"
    )
    added.add_argument(
        "section", nargs="?", help="section, such as train, sampler or sampler.mala (default: all)"
    )
    added.add_argument(
        "--schema", action="store_true", help="print a JSON schema for editors instead"
    )
    added = command(
        "sample",
        "sample",
        "sample a trained model by chains from noise",
        model=f"its folder, such as model/energy, {_SHIPPED}, {_URI}",
    )
    added.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="figure or .npy file (default: samples.png)",
    )
    for name, default in (("count", 100), ("steps", 200), ("seed", 0)):
        added.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    command(
        "reproduce",
        "reproduce",
        "retrain a registered version from its lineage and compare the bits",
        uri=_URI,
    )
    added = command("new", "new", "write a new plugin as a working copy of another")
    added.add_argument("kind", choices=list(scaffold.KINDS), help="kind of plugin")
    added.add_argument("name", help="name of the plugin and of its file")
    added.add_argument("--like", help="plugin to copy (default: a plain one of its kind)")
    added = command("recipes", "recipes", "list the recipes, and since when their results stand")
    added.add_argument(
        "--update",
        action="store_true",
        help="write the rows and digests of the recipes in the folder first",
    )
    added = command(
        "results", "show_results", "list the rows of the results, and whether they are current"
    )
    added.add_argument("--status", action="store_true", help="print why a row is stale")
    added.add_argument(
        "--check",
        action="store_true",
        help="exit with code 1 if a lock claims a run that did not happen",
    )
    added = command(
        "check", "check_rows", "evaluate rows of the results again from the shipped models"
    )
    added.add_argument(
        "rows", nargs="*", metavar="ROW", help="row of docs/results.md (default: list them)"
    )
    command(
        "compare",
        "compare",
        "compare the metrics that two recipes share",
        a=f"recipe with results, or {_SHIPPED}",
        b="recipe to compare it with",
    )
    added = command(
        "report",
        "report",
        "write a run as one self-contained page",
        reports=f"folder of reports, such as reports/main, or {_SHIPPED}",
    )
    added.add_argument(
        "--compare-with", metavar="REPORTS", help=f"another folder, {_SHIPPED}, {_URI}"
    )
    added.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)"
    )
    model = "name of the registered model"
    command(
        "promote",
        "promote",
        "make a version champion, if its gates passed",
        model=model,
        version="its version",
    )
    command("rollback", "roll_back", "make the previous champion champion again", model=model)
    command(
        "history",
        "history",
        "list the promotions of a model: who, when, by which metrics",
        model=model,
    )
    return root


def main() -> None:
    """Parse the command line and run the command."""
    args = parser().parse_args()
    run(lambda: globals()[args.main](args))


def examine(args: Namespace) -> None:
    """Print what :mod:`ebm_dist.cli.doctor` finds; exit with code 1 if something needs a fix."""
    from ebm_dist import config
    from ebm_dist.cli import doctor

    findings = list(doctor.examine(config.load(args.params), args.data))
    for finding in findings:
        state = "ok  " if finding.fix is None else "FIX "
        print(printable(f"{state}  {finding.check}: {finding.seen}"))
        if finding.fix is not None:
            print(printable(f"        -> {finding.fix}"))
    sys.exit(any(finding.fix is not None for finding in findings))


def plan_training(args: Namespace) -> None:
    """Print the cost of a training. Raise :class:`DataError` if no data are prepared."""
    from ebm_dist import config
    from ebm_dist.cli import plan

    for line in plan.lines(config.load(args.params), args.data):
        print(line)


def submit(args: Namespace) -> None:
    """Replace this process by the submitter of the pipeline, ``infra/submit.py``.

    With ``--dry-run`` print the plan instead. Raise :class:`ConfigError` outside a checkout: an
    installed package has no ``infra/``.
    """
    from ebm_dist.runs.lineage import ROOT

    if args.dry_run:
        return plan_training(args)
    script = ROOT / "infra/submit.py"
    if not script.exists():
        raise ConfigError(
            f"{script}: missing, because this is an installed package; submit from a checkout of"
            " the repository"
        )
    options = ["--no-wait"] if args.no_wait else []
    words = [str(script), *options, "--", "python", "infra/repro.py", *args.targets]
    os.chdir(ROOT)
    # replaced, so that signals reach the submitter and the exit code is the job's
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606


def init(args: Namespace) -> None:
    """Write the files of a project, and print what the data are.

    Raise :class:`ConfigError` for a file that exists, :class:`DataError` for data that cannot be
    used.
    """
    from ebm_dist.cli import project

    name = args.name or project.default_name(args.data)
    project.check_free(name)
    seen = project.inspect(args.data, args.task, args.labels, tuple(args.anomalies))
    for line in project.describe(seen):
        print(line)
    content = project.files(seen, args.task, name)
    for suite, reason in content.left_out.items():
        print(f"left out    suite {suite}: {reason}")
    print(f"written     {', '.join(map(str, project.write(name, content)))}")
    print("next        ebm-dist run")


def run_project(args: Namespace) -> None:
    """Run a project and its report. Raise :class:`ConfigError` where there is none."""
    from ebm_dist import config
    from ebm_dist.cli import project
    from ebm_dist.report import page
    from ebm_dist.storage import write_whole

    name = (args.name or project.name_here()).removesuffix(".yaml")
    for path in (Path(f"{name}.yaml"), project.STAGES):
        if not path.exists():
            raise ConfigError(f"{path}: missing here", "run ebm-dist init --data FILE first")
    config.load(Path(f"{name}.yaml"))
    if exit_code := project.repro():
        print(
            "error: a stage failed, see above; afterwards run again: ebm-dist run",
            file=sys.stderr,
        )
        sys.exit(exit_code)
    text, out = page.build(Path("reports") / name), Path("report.html")
    write_whole(out, text.encode(errors="backslashreplace"))
    for line in project.results(name):
        print(line)
    print(f"report    {out}")


def _check_folder(out: Path) -> None:
    """Raise :class:`ConfigError` if the folder of a file that is to be written does not exist."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: no folder {out.parent}", "create it, or name another file")


def score(args: Namespace) -> None:
    """Write the energy of each sample as CSV, in their order.

    Raise :class:`DataError` for samples that the model cannot read.
    """
    from ebm_dist.api.model import load
    from ebm_dist.datasets import arrays
    from ebm_dist.errors import DataError
    from ebm_dist.files import write_csv

    _check_folder(args.out)
    trained = load(args.model)
    dataset = getattr(trained.params.dataset, "of", trained.params.dataset)
    if not isinstance(dataset, arrays.Config):
        raise DataError(f"{args.model}: is no model of the user's own data, which have a file")
    x = arrays.read_samples(dataset, args.file, trained.card.get("divisor"))
    try:
        energies = trained.energies(x)
    except DataError as failed:
        raise DataError(f"{args.file}: {failed.what}", failed.fix) from None
    write_csv(args.out, [{"row": i, "score": e} for i, e in enumerate(energies.tolist())])
    print(f"{args.out}: {len(x):,} scores, high = unusual")


def settings(args: Namespace) -> None:
    """Print the keys of a parameter file. Raise :class:`ConfigError` for an unknown section."""
    from ebm_dist import config

    print(
        json.dumps(config.schema(), indent=2)
        if args.schema
        else "\n".join(config.reference(args.section))
    )


def sample(args: Namespace) -> None:
    """Write samples of a model as a figure or an array.

    Raise :class:`ConfigError` for a figure of samples that are no images.
    """
    import numpy as np

    from ebm_dist.models import requests
    from ebm_dist.registry import versions
    from ebm_dist.report import figures
    from ebm_dist.storage import write_whole

    if args.count < 1:
        raise ConfigError(f"--count {args.count}: expected at least 1")
    if (suffix := args.out.suffix.lower()) not in (".npy", ".png"):
        raise ConfigError(f"--out {args.out}: expected a .png or .npy file")
    _check_folder(args.out)
    trained = versions.load(args.model)
    # a sampling request needs only the number and shape of its input
    template = np.zeros((args.count, *trained.card["shape"]), np.float32)
    x = requests.answer(
        trained, template, {"task": "sample", "num_steps": args.steps, "seed": args.seed}
    )
    title = f"{args.count} chains of {args.steps} steps from noise{trained.classes_caption}"
    if suffix == ".npy":
        content = io.BytesIO()
        np.save(content, x)
        write_whole(args.out, content.getvalue())
    elif x.ndim == 4:
        write_whole(
            args.out,
            figures.image_grid(x, 10, title),
        )
    else:
        raise ConfigError(
            f"--out {args.out}: samples of shape {x.shape[1:]} are no images; name a .npy file"
        )
    mean_energy = trained.energies(trained.to_model(x)).mean()
    print(f"{args.out}: {args.count} samples, mean energy {mean_energy:.4g}")


def reproduce(args: Namespace) -> None:
    """Retrain a registered version, a line per step. Raise :class:`DataError` if bits differ."""
    from ebm_dist.registry import reproduce as reproduction

    for line in reproduction.again(args.uri):
        print(line, flush=True)


def new(args: Namespace) -> None:
    """Write a new plugin. Raise :class:`ConfigError` for a name that is invalid or taken."""
    from ebm_dist.runs.lineage import ROOT

    path, use = scaffold.write(args.kind, args.name, ROOT, args.like)
    print(f"{path.relative_to(ROOT)}: change it; it works already")
    print(f"use it:  {use}")
    print(f"test it: pytest tests/contract -k {args.name}")


def recipes(args: Namespace) -> None:
    """List the recipes with the day and the commit of their results, and the shipped models.

    With ``--update`` write their rows and digests first.
    """
    from ebm_dist.registry import shipped
    from ebm_dist.report import table
    from ebm_dist.runs.lineage import ROOT, recorded_on

    if args.update:
        exit_code = os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-m", "pipelines.digests")  # noqa: S606
        if exit_code:
            sys.exit(exit_code)
    recorded = recorded_on(ROOT / "reports")
    names = {entry["recipe"]: name for name, entry in shipped.lock()["models"].items()}
    print(f"{'recipe':28} {'results recorded in':20} {'shipped as':18}  title")
    for recipe in table.recipes(ROOT / "pipelines/recipes", ROOT / "reports"):
        since = recorded.get(recipe.name, "not in git") if recipe.is_run else "-"
        name = names.get(recipe.name, "-")
        print(f"{recipe.name:28} {since:20} {name:18}  {printable(recipe.title)}")


def show_results(args: Namespace) -> None:
    """List the rows of the results with their commits.

    With ``--check``, raises :class:`ResultsError` if a lock claims a run that did not happen.
    """
    from ebm_dist.runs import provenance
    from ebm_dist.runs.lineage import ROOT

    rows = json.loads((ROOT / "docs/results.json").read_text())
    num_current = 0
    for row in rows:
        status = provenance.of_row(row, ROOT / "pipelines/recipes", ROOT / "reports")
        num_current += not status.reasons
        state = "current" if not status.reasons else f"stale: {status.reasons[0]}"
        more = f" (and {len(status.reasons) - 1} more)" if len(status.reasons) > 1 else ""
        print(
            f"{row['id']:36} {row['reached']:<10.4g} {status.commit[:10] or 'unknown':10}  "
            + (state + more if args.status else state[:7].strip(":"))
        )
    print(f"{len(rows)} rows: {num_current} of this code, {len(rows) - num_current} stale")
    if args.check:
        faults = [
            fault
            for lock in (ROOT / "pipelines/recipes/dvc.lock",)
            for fault in provenance.lock_faults(lock, ROOT)
        ]
        if faults:
            raise ResultsError(
                "; ".join(faults)
                + ": run the stages, or record python -m pipelines.verify --record"
            )


def check_rows(args: Namespace) -> None:
    """Evaluate rows again, or list them.

    Raise :class:`ConfigError` for a row that no shipped model gives, :class:`ResultsError` if a
    figure differs from the committed one.
    """
    from ebm_dist.cli import check
    from ebm_dist.registry import shipped

    if not args.rows:
        print("\n".join(check.listed()))
        return
    failed = []
    for name, rows in check.rows_by_model(args.rows).items():
        print(f"{name}: preparing the data", file=sys.stderr, flush=True)
        entries = shipped.lock()["models"][name]["rows"]
        for result in check.results(name, {row: entries[row] for row in rows}):
            print("\n".join(check.described(result)), flush=True)
            failed += [] if result.is_reproduced else [result]
    if failed:
        raise check.failure(failed)


def _recipe_reports(name: str) -> Path:
    """Return the committed reports of a recipe or a shipped model."""
    from ebm_dist.registry import shipped
    from ebm_dist.runs.lineage import IS_CHECKOUT, ROOT

    if not IS_CHECKOUT:
        raise ConfigError(
            f"{name}: an installed package has no reports of recipes",
            "work in a checkout of the repository; ebm-dist check has figures of shipped models",
        )
    return ROOT / "reports" / (shipped.recipe_of(name) or name)


def compare(args: Namespace) -> None:
    """Print the metrics that two recipes share. Raise :class:`DataError` if they share none."""
    from ebm_dist.report import table

    rows = table.compare(_recipe_reports(args.a), _recipe_reports(args.b))
    width = max(len(printable(key)) for key, _, _ in rows)
    print(f"{'':{width}} {args.a[-20:]:>20} {args.b[-20:]:>20} {'difference':>12}")
    for key, a, b in rows:
        print(f"{printable(key):{width}} {a:20.5g} {b:20.5g} {b - a:+12.4g}")


def report(args: Namespace) -> None:
    """Write the page of a run. Raise :class:`DataError` if there are no reports."""
    from ebm_dist.registry import shipped, versions
    from ebm_dist.report import page
    from ebm_dist.storage import write_whole

    def reports(name: str) -> Path:
        is_name = not Path(name).exists() and shipped.recipe_of(name) is not None
        return _recipe_reports(name) if is_name else Path(name)

    with tempfile.TemporaryDirectory() as folder:
        reference = args.compare_with
        if str(reference or "").startswith("models:"):
            reference = versions.reports_of(reference, Path(folder))
        text = page.build(reports(args.reports), reference and reports(str(reference)))
        write_whole(args.out, text.encode(errors="backslashreplace"))  # names may be no UTF-8
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, open it in a browser")


def promote(args: Namespace) -> None:
    """Make a version champion. Raise :class:`RegistryError` if a gate did not pass."""
    from ebm_dist.registry import promotion

    event = promotion.call(lambda mlflow: promotion.promote(mlflow, args.model, args.version))
    print(
        f"{args.model}/{args.version} is champion"
        + (f", in place of {event.before}" if event and event.before else "")
    )


def roll_back(args: Namespace) -> None:
    """Make the previous champion champion again.

    Raise :class:`RegistryError` if there was none.
    """
    from ebm_dist.registry import promotion

    event = promotion.call(lambda mlflow: promotion.roll_back(mlflow, args.model))
    instead = f", in place of {event.before}" if event.before else ""
    print(f"{args.model}/{event.version} is champion again{instead}")


def history(args: Namespace) -> None:
    """List the promotions of a model."""
    from ebm_dist.registry import promotion

    for event in promotion.call(lambda mlflow: promotion.log(mlflow, args.model)):
        gates = "; ".join(f"{metric} {verdict}" for metric, verdict in event.gates.items())
        change = f"{event.before or '-'} -> {event.version or '-'}"
        print(printable(f"{event.at} UTC  {change}  by {event.who} ({event.why}): {gates}"))
