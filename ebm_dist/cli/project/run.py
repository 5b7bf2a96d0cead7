"""Run a project by DVC, and say where its results are."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ebm_dist.files import read_json
from ebm_dist.report import page
from ebm_dist.report.suites import read_suites


def repro() -> int:
    """Run the stages in the working directory by DVC; return its exit code.

    Signals go to all its processes, so a stage ends as after Ctrl-C and the next run resumes it.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "true",
    }
    dvc = [sys.executable, "-m", "dvc"]
    if not Path(".dvc").exists():
        options = [] if Path(".git").exists() else ["--no-scm"]
        done = subprocess.run([*dvc, "init", "--quiet", *options], env=environment, check=False)  # noqa: S603
        if done.returncode:
            return done.returncode
    process = subprocess.Popen(  # noqa: S603
        [*dvc, "repro"],
        env=environment,
        start_new_session=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 (there are no threads)
    )
    stopped: KeyboardInterrupt | None = None
    while True:
        try:
            exit_code = process.wait()
            break
        except KeyboardInterrupt as signalled:
            stopped = signalled
            os.killpg(process.pid, signal.SIGINT)
    if stopped:
        raise stopped
    return exit_code


def _heed_interrupts() -> None:
    """Undo that a shell has background jobs ignore SIGINT: else no signal would stop the stages."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(name: str) -> Iterator[str]:
    """Yield the headline figures of a run, and where its results are.

    Raise :class:`DataError` if it is not registered.
    """
    reports, model = Path("reports") / name, Path("models") / name / "energy"
    registered = read_json(reports / "registry.json", "register")
    suites = read_suites(reports)
    for headline in page.leading_figures(suites):
        reading = f" ({headline.reading})" if headline.references else ""
        yield f"figure    {headline.name}: {headline.value:.4g}{reading}"
    more = f"ebm-dist sample {model} --out samples"
    if "samples" in suites:  # chains of other lengths may be worse
        yield f"samples   {reports / 'samples/plots/samples.png'}"
        yield f"          more: {more}.png --steps {suites['samples']['num_steps']:.0f}"
    else:
        yield f"samples   {more}.npy"
    yield f"scores    ebm-dist score {model} FILE --out scores.csv"
    aliases = " ".join(f"@{alias}" for alias in registered["aliases"])
    yield f"model     models:/{registered['model']}/{registered['version']} {aliases}".rstrip()
    for gate in registered["gates"]:
        if not gate["passes"]:
            yield f"          not champion: {gate['metric']} is {gate['value']}, {gate['bound']}"
