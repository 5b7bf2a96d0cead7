"""Ctrl-C in a terminal, and code that changes while a training goes on: real processes, a real Ray cluster."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ebm_dist.runs.record import EVENTS, read_lines
from ebm_dist.training import checkpoint
from infra.local import descendants
from tests.helpers import copy_project, state_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_STEPS, TOLD_AT = 300, 60
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "EBM", "RAY", "DVC"))
} | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
SAMPLER = "ebm_dist/samplers/langevin.py"
TRAIN = ["-m", "pipelines.train", "--params", "params.yaml", "--data", "data/main",
         "--out", "out", "--report", "report"]  # fmt: skip


class Terminal:
    """A command in a terminal of its own, as the process group that its keys reach."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.pid, self.keyboard = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = ENVIRONMENT | {"PYTHONPATH": str(folder)}
            os.execve(sys.executable, [sys.executable, *arguments], environment)
        self.output = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how the end of the terminal shows
            while part := os.read(self.keyboard, 4096):
                self.output += part

    def press(self, key: bytes) -> None:
        os.write(self.keyboard, key)

    def wait(self) -> tuple[int, str]:
        deadline = time.monotonic() + 120
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.1)
        self.reader.join(5)
        return os.waitstatus_to_exitcode(ended[1]), self.output.decode()


def project(folder: Path) -> Path:
    copy_project(folder)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values["train"] |= {"num_steps": NUM_STEPS, "checkpoint_every": 20}
    values["cluster"] = {"workers": 1}
    yaml.dump(values, folder / "params.yaml")
    execute(folder, "-m", "pipelines.digests")
    execute(folder, "-m", "pipelines.prepare", "--out", "data/main")
    return folder


def execute(folder: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": str(folder)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:]
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    return done.stdout


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").glob("*") if path.name != "ray")


def await_step(folder: Path, step: int, run: Path | None = None) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in [run] if run else runs(folder):
            if max(checkpoint.whole(path), default=0) >= step:
                return path
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def workers(pid: int) -> list[int]:
    named = [child for child in descendants(pid) if "RayTrainWorker" in command_of(child)]
    assert named, "no worker"
    return named


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("undisturbed") / "project")
    execute(folder, *TRAIN)
    return folder


@pytest.fixture
def fresh(undisturbed, tmp_path):
    """The same project without a run."""
    folder = tmp_path / "project"
    shutil.copytree(undisturbed, folder)
    for name in ("runs", "out", "report"):
        shutil.rmtree(folder / name)
    return folder


def same_model(folder: Path, other: Path) -> bool:
    names = ("energy.safetensors", "chains.safetensors")
    return all((folder / "out" / n).read_bytes() == (other / "out" / n).read_bytes() for n in names)


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(undisturbed, fresh):
    terminal = Terminal(fresh, *TRAIN)
    run = await_step(fresh, TOLD_AT)
    terminal.press(b"\x03")
    code, output = terminal.wait()
    assert code == 130, output
    assert "Traceback" not in output, output
    stopped = checkpoint.verify(checkpoint.latest(run))
    assert TOLD_AT <= stopped < NUM_STEPS
    assert f"stopped at step {stopped} of {NUM_STEPS}" in output
    assert not (fresh / "out").exists()
    execute(fresh, *TRAIN)
    assert [event["step"] for event in read_lines(run / EVENTS)] == [0, stopped]
    assert same_model(fresh, undisturbed)


def test_ctrl_c_twice_ends_at_once_and_the_last_checkpoint_is_whole(fresh):
    terminal = Terminal(fresh, *TRAIN)
    run = await_step(fresh, TOLD_AT)
    terminal.press(b"\x03")
    time.sleep(0.1)
    terminal.press(b"\x03")
    code, output = terminal.wait()
    assert code == 130 and "Traceback" not in output, output
    assert checkpoint.verify(checkpoint.latest(run)) >= TOLD_AT


def change(folder: Path) -> None:
    """Change what a step of Langevin dynamics computes."""
    file = folder / SAMPLER
    changed = file.read_text().replace("alpha=config.noise_scale", "alpha=2 * config.noise_scale")
    assert changed != file.read_text()
    file.write_text(changed)


def restore(folder: Path, original: Path) -> None:
    for name in (SAMPLER, "pipelines/code.yaml"):
        shutil.copy(original / name, folder / name)


def test_a_worker_that_restarts_on_changed_code_is_refused_and_nothing_is_mixed(undisturbed, fresh):
    process = subprocess.Popen(
        [sys.executable, *TRAIN], cwd=fresh, env=ENVIRONMENT | {"PYTHONPATH": str(fresh)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    run = await_step(fresh, TOLD_AT)
    change(fresh)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 6 and "the code changed while this training went on" in output
    assert "Traceback" not in output and not (fresh / "out").exists()
    assert [event["step"] for event in read_lines(run / EVENTS)] == [0]
    reached = checkpoint.verify(checkpoint.latest(run))
    before = state_of(run)

    # the new code is another run, from step 0
    execute(fresh, "-m", "pipelines.digests")
    execute(fresh, *TRAIN)
    (other,) = (path for path in runs(fresh) if path != run)
    assert [event["step"] for event in read_lines(other / EVENTS)] == [0]
    assert state_of(run) == before and not same_model(fresh, undisturbed)

    # the old code goes on with its run
    restore(fresh, undisturbed)
    execute(fresh, *TRAIN)
    assert [event["step"] for event in read_lines(run / EVENTS)] == [0, reached]
    assert same_model(fresh, undisturbed)


def test_a_run_whose_code_changed_meanwhile_is_not_exported(undisturbed, fresh):
    """No worker is killed: the weights are of the old code, and DVC would note the new one for them."""
    process = subprocess.Popen(
        [sys.executable, *TRAIN], cwd=fresh, env=ENVIRONMENT | {"PYTHONPATH": str(fresh)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    await_step(fresh, TOLD_AT)
    change(fresh)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 6 and "changed while stage train ran" in output, output
    assert not (fresh / "out").exists()
    restore(fresh, undisturbed)
    execute(fresh, *TRAIN)
    assert same_model(fresh, undisturbed)
    record = json.loads((fresh / "report/run.json").read_text())
    assert record["resumed_with"] == [] and set(record["versions"]) >= {"torch", "ray"}
