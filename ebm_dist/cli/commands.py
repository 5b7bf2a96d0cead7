"""What the command ``ebm-dist`` does: each takes the parsed arguments and prints for a person."""

import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from ebm_dist import config, models
from ebm_dist.cli import doctor, plan, scaffold
from ebm_dist.errors import ConfigError
from ebm_dist.models import requests
from ebm_dist.registry import promotion, versions
from ebm_dist.registry import reproduce as reproduction
from ebm_dist.report import figures, page, table
from ebm_dist.runs.lineage import ROOT
from ebm_dist.storage import write_whole


def examine(given: Namespace) -> None:
    """Print what :mod:`ebm_dist.cli.doctor` finds; exit code 1 if anything needs mending."""
    findings = list(doctor.examine(config.load(given.params), given.data))
    for finding in findings:
        print(f"{'ok  ' if finding.mend is None else 'MEND'}  {finding.check}: {finding.seen}")
        if finding.mend is not None:
            print(f"        -> {finding.mend}")
    sys.exit(any(finding.mend is not None for finding in findings))


def new(given: Namespace) -> None:
    """Write a new plugin. Raises :class:`ConfigError` for a name that is none, or taken."""
    path, use = scaffold.write(given.kind, given.name, ROOT, given.like)
    print(f"{path.relative_to(ROOT)}: change it; it works already")
    print(f"use it:  {use}")
    print(f"test it: pytest tests/contract -k {given.name}")


def recipes(given: Namespace) -> None:
    """List the recipes."""
    for recipe in table.recipes(ROOT / "pipelines/recipes", ROOT / "reports"):
        print(f"{recipe.name:28} {'run' if recipe.is_run else '-':4} {recipe.title}")


def compare(given: Namespace) -> None:
    """Print the metrics that two recipes share. Raises :class:`DataError` where they share none."""
    rows = table.compare(*(ROOT / "reports" / name for name in (given.a, given.b)))
    width = max(len(key) for key, _, _ in rows)
    print(f"{'':{width}} {given.a[-20:]:>20} {given.b[-20:]:>20} {'difference':>12}")
    for key, a, b in rows:
        print(f"{key:{width}} {a:20.5g} {b:20.5g} {b - a:+12.4g}")


def plan_training(given: Namespace) -> None:
    """Print what a training will take. Raises :class:`DataError` where no data are prepared."""
    for line in plan.lines(config.load(given.params), given.data):
        print(line)


def submit(given: Namespace) -> None:
    """Become the submitter of the pipeline, ``infra/submit.py``; or, asked for a dry run, print the plan."""
    if given.dry_run:
        return plan_training(given)
    options = ["--no-wait"] if given.no_wait else []
    words = [str(ROOT / "infra/submit.py"), *options, "--", "python", "infra/repro.py", *given.targets]
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 (signals and exit code are the job's)


def reproduce(given: Namespace) -> None:
    """Make a registered version again, telling how it goes. Raises :class:`DataError` if other bits come out."""
    for line in reproduction.again(given.uri):
        print(line, flush=True)


def sample(given: Namespace) -> None:
    """Draw chains from noise into a picture or an array. Raises :class:`ConfigError` for samples that are no images."""
    trained = models.load(Path(given.model))
    start = np.zeros((given.count, *trained.card["shape"]), np.float32)  # only the number counts
    x = requests.answer(trained, start, {"task": "sample", "num_steps": given.steps, "seed": given.seed})
    if given.out.suffix == ".npy":
        np.save(given.out, x)
    elif x.ndim == 4:
        write_whole(given.out, figures.image_grid(x, 10, f"{given.count} chains of {given.steps} steps from noise"))
    else:
        raise ConfigError(f"--out {given.out}: samples of shape {x.shape[1:]} are no images; name a .npy file")
    print(f"{given.out}: {given.count} samples, energies {trained.energies(torch.from_numpy(x)).mean():.4g} on average")


def report(given: Namespace) -> None:
    """Write the page of a run. Raises :class:`DataError` where there are no reports."""
    with tempfile.TemporaryDirectory() as folder:
        beside = given.beside
        if str(beside or "").startswith("models:"):
            beside = versions.reports_of(beside, Path(folder))
        write_whole(given.out, page.build(Path(given.reports), beside and Path(beside)).encode())
    print(f"{given.out}: {given.out.stat().st_size / 2**20:.1f} MiB, open it in a browser")


def promote(given: Namespace) -> None:
    """Make a version champion. Raises :class:`RegistryError` if its gates did not pass."""
    event = promotion.ask(lambda mlflow: promotion.promote(mlflow, given.model, given.version))
    print(f"{given.model}/{given.version} is champion" + (f", in place of {event.before}" if event and event.before else ""))


def roll_back(given: Namespace) -> None:
    """Make the last champion champion again. Raises :class:`RegistryError` where there was none."""
    event = promotion.ask(lambda mlflow: promotion.roll_back(mlflow, given.model))
    print(f"{given.model}/{event.version} is champion again, in place of {event.before}")


def history(given: Namespace) -> None:
    """Print the log of promotions."""
    for event in promotion.ask(lambda mlflow: promotion.log(mlflow, given.model)):
        gates = "; ".join(f"{metric} {said}" for metric, said in event.gates.items())
        print(f"{event.at} UTC  {event.before or '-'} -> {event.version}  by {event.who} ({event.why}): {gates}")
