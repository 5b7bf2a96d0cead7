"""A storm of SIGKILLs, Ctrl-C and changed code: ``python -m tests.faults.storm --kills 200 --seed 7``.

Groups of 4, 2 and 1 gloo processes train a small model. In each group one rank kills itself at a random pass of a random point
(in the sampler, around the reduction and the update, before each system call of the checkpoint's writes); the others are then killed
too, as a cluster does that restarts a group, and the next group goes on from what is on disk. In some groups a rank sends SIGINT to
the whole process group instead, as Ctrl-C does: all ranks must stop at the same step, with a checkpoint of it. After some kills the
source of the sampler has changed when the next group starts: it must refuse, and leave the run as it was; then the source is
restored. With ``--store`` groups read the data from a real object store that answers 503 now and then, pack by pack or into memory in
turn; the undisturbed run has them in memory from the disk. Whenever a run ends, weights, averages, chains, moments and metrics must be
those of an undisturbed run, bit for bit. The exit status is 0 only if all are.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import itertools
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ebm_dist import faults, storage
from ebm_dist.data import shards
from ebm_dist.datasets import digits
from ebm_dist.runs import cluster, code
from ebm_dist.runs.record import METRICS, STOP, FileReporter, read_lines
from ebm_dist.training import checkpoint
from ebm_dist.training.reduce import LocalComm
from infra.local import Stack
from tests import helpers
from tests.faults.proxy import SOMETIMES, Proxy

WORLD_SIZES = (4, 2, 1)
INTERRUPTS, CODE_CHANGES = 0.15, 0.1  # share of the groups, and of the starts after a kill
SAMPLER = "ebm_dist/samplers/langevin.py"
REFUSED = 3  # exit status of a rank that refuses the code
SETTINGS = helpers.values(train={"num_steps": 12, "log_every": 1, "checkpoint_every": 2})
PASSES = {  # of a point, at most, before the kill: in about eight steps of one of two ranks; beyond the run's end nobody is killed
    "chain.step": 48,
    "reduce.before": 8, "reduce.after": 8, "update.before": 8, "update.after": 8,
    "write.open": 32, "write.content": 32, "write.sync": 32, "write.rename": 32, "write.folder": 32,
    "checkpoint.begin": 4, "checkpoint.parts": 4, "checkpoint.manifest": 4, "checkpoint.delete": 4,
    "record.append": 8,
}  # fmt: skip


class Timed(FileReporter):
    """Notes when the first step after a restart is done."""

    def metrics(self, row: dict[str, float], seconds: float) -> None:
        super().metrics(row, seconds)
        (self.run / "alive").touch()


def params(cache: str = "auto") -> helpers.config.Params:
    values = SETTINGS | {"train": SETTINGS["train"] | {"cache": cache}}
    return helpers.config.from_values(values, Path("storm"))


def load_sampler(tree: Path) -> None:
    """Run the sampler as it is in the tree now, as a new process would."""
    name = SAMPLER.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, tree / SAMPLER)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


class Group(NamedTuple):
    """Ranks that train together, and what happens to them."""

    data: Path
    run: Path
    world_size: int
    expected: str
    """Digest of the code"""
    victim: int = 0
    fault: str | None = None
    """of the victim"""
    cache: str = "auto"


def rank(group: Group, number: int, meeting: Path) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray's workers do
    torch.set_num_threads(1)
    run, tree = group.run, group.run.parent / "tree"
    load_sampler(tree)
    comm = LocalComm()
    if group.world_size > 1:
        comm = helpers.join_group(number, group.world_size, meeting)
    settings = params(group.cache)
    trainer = helpers.build(settings, group.data, comm)
    if cluster.is_code_changed(settings, group.expected, comm, tree):
        return REFUSED
    faults.arm(group.fault if number == group.victim else None)
    # a clock that runs fast, because the reporter looks for a stop file once per second
    step = trainer.fit(run, Timed(run, number, now=lambda: 1000 * time.time()))
    (run.parent / f"reached-{number}").write_text(str(step))
    return 0


def end_of(group: Group) -> str:
    """Run a group of forked ranks to its end: whether it "ended", was "stopped", "killed" or "refused"."""
    run, world_size = group.run, group.world_size
    (run / STOP).unlink(missing_ok=True)
    with contextlib.redirect_stderr(io.StringIO()), cluster.stop_by_signal(run) as signals:
        outcome = run_group(group)
    if outcome == "ended" and signals:
        reached = {int((run.parent / f"reached-{n}").read_text()) for n in range(world_size)}
        assert reached == {checkpoint.verify(checkpoint.latest(run))}, f"stopped at {reached}"
        return "ended" if reached == {SETTINGS["train"]["num_steps"]} else "stopped"
    return outcome


def run_group(group: Group) -> str:
    run, victim = group.run, group.victim
    meeting = run.parent / f"meeting-{time.monotonic_ns()}"
    ranks = []
    for number in range(group.world_size):
        child = os.fork()
        if child == 0:
            exit_code = 1
            try:
                exit_code = rank(group, number, meeting)
            except RuntimeError:  # what gloo raises where another rank has gone
                (run.parent / f"rank-{number}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(exit_code)
        ranks.append(child)
    waiting, outcome = set(ranks), "ended"
    while waiting:
        child, status = os.wait()
        waiting.discard(child)
        if os.waitstatus_to_exitcode(status) == REFUSED:
            outcome = "refused"
        elif status and outcome == "ended":
            outcome = "killed"
            how = (
                status if child == ranks[victim] else os.waitpid(ranks[victim], os.WNOHANG)[1]
            )  # the others fail as they lose it
            if os.waitstatus_to_exitcode(how) != -signal.SIGKILL:
                raise RuntimeError(
                    f"rank {ranks.index(child)} failed, though rank {victim} was not killed; see {run.parent}/rank-*.txt"
                )
            waiting.discard(ranks[victim])
            for other in waiting:
                os.kill(other, signal.SIGKILL)
    return outcome


def contents(run: Path) -> dict[str, object]:
    """What must not depend on how the run went."""
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "time")}
        for row in read_lines(run / METRICS)
    ]
    return {**helpers.state_of(run), "metrics": rows}


def files_of(run: Path) -> dict[str, bytes]:
    """All that a run has on disk."""
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def change_code(tree: Path) -> None:
    """Change what a step of the sampler computes, as an edit while a run goes on does."""
    text = (tree / SAMPLER).read_text()
    changed = text.replace("config.noise_scale * noise", "2 * config.noise_scale * noise").replace(
        "alpha=config.noise_scale", "alpha=2 * config.noise_scale"
    )
    assert changed != text
    (tree / SAMPLER).write_text(changed)
    code.forget()


def restore_code(tree: Path) -> str:
    """Restore the sampler; return the digest of the code."""
    shutil.copy(helpers.ROOT / SAMPLER, tree / SAMPLER)
    code.forget()
    return code.train_digest(params(), tree)


def end_on_changed_code(group: Group) -> str:
    """Run a group while the code is another; it must be "refused" and leave the run as it was."""
    before, tree = files_of(group.run), group.run.parent / "tree"
    change_code(tree)
    outcome = end_of(group)
    restore_code(tree)
    return outcome if files_of(group.run) == before else f"{outcome}, and the run was changed"


@contextlib.contextmanager
def in_store(data: Path) -> Iterator[tuple[Path, Callable[[], int]]]:
    """Where a data set is in a real store behind the proxy, and a function that counts the requests refused."""
    with tempfile.TemporaryDirectory(prefix="ebm-store-") as folder:
        stack = Stack(Path(folder))
        stack.prepare()
        stack.store()
        proxy = Proxy(stack.ports["store"])
        os.environ |= {
            name: value
            for name, value in stack.settings().items()
            if name.startswith(("AWS_", "EBM_"))
        } | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        child = os.fork()  # a process that has used the store must not fork
        if child == 0:
            shards.publish(shards.read_index(data), storage.store("shards"))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the data could not be published"
        proxy.mode = SOMETIMES
        try:
            digest = shards.read_index(data).digest
            yield storage.store("shards") / digest[:16], lambda: proxy.num_faults
        finally:
            proxy.close()
            stack.down()


def storm(num_kills: int, seed: int, with_store: bool = False) -> None:
    with contextlib.suppress(PermissionError):  # a leader of a session has a group already
        os.setpgid(0, 0)  # Ctrl-C is for this group alone
    chance, kills, lost = random.Random(seed), collections.Counter(), list[str]()
    num_interrupts = num_changes = 0
    since, recovery, runs, began = None, [0.0], 0, time.monotonic()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp(prefix="ebm-storm-"))
    data, tree = work / "data", work / "tree"
    shutil.copytree(
        helpers.ROOT / "ebm_dist", tree / "ebm_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    expected = restore_code(tree)
    shards.write(data, "digits", digits.load(digits.Config()))
    helpers.build(params(), data)  # imports what each rank would import again
    # in a process of its own: a process that has used autograd must not fork
    end_of(Group(data, work / "golden", 1, expected))
    golden, world_sizes = contents(work / "golden"), itertools.cycle(WORLD_SIZES)
    place = in_store(data) if with_store else contextlib.nullcontext((data, lambda: 0))
    caches = itertools.cycle(("stream", "stream", "memory", "memory") if with_store else ("auto",))
    with place as (data, num_refused):
        while kills.total() < num_kills:
            run, plans, outcome = work / f"run-{runs}", list[str](), ""
            while outcome != "ended":
                world_size = next(world_sizes)
                if outcome == "killed" and chance.random() < CODE_CHANGES:
                    outcome = end_on_changed_code(Group(data, run, world_size, expected))
                    if outcome != "refused":
                        sys.exit(f"{run}: changed code {outcome}, after " + ", ".join(plans))
                    num_changes += 1
                    plans.append("code changed and restored")
                name = chance.choice(list(PASSES))
                enough = kills.total() >= num_kills
                action = "interrupt" if chance.random() < INTERRUPTS else "kill"
                fault = None if enough else f"{name}:{chance.randint(1, PASSES[name])}:{action}"
                victim = (
                    0
                    if name in ("checkpoint.manifest", "checkpoint.delete", "record.append")
                    else chance.randrange(world_size)
                )
                (run / "alive").unlink(missing_ok=True)
                outcome = end_of(
                    Group(data, run, world_size, expected, victim, fault, next(caches))
                )
                if since is not None and (run / "alive").exists():
                    recovery.append((run / "alive").stat().st_mtime - since)
                if outcome == "stopped":
                    num_interrupts += 1
                if outcome == "killed":
                    since = time.time()
                    kills[name] += 1
                if outcome != "ended":
                    plans.append(f"{fault} in rank {victim} of {world_size}")
                    print(
                        f"\r{kills.total()} of {num_kills} kills, {runs} runs ended",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
            since, runs = None, runs + 1
            if contents(run) != golden:
                lost.append(f"{run}: differs from the undisturbed run after " + ", ".join(plans))
            else:
                shutil.rmtree(run)
        refused = num_refused()
    print(file=sys.stderr)
    for name in PASSES:
        print(f"  {name:20} {kills[name]:4}")
    print(
        f"{kills.total()} SIGKILLs, {num_interrupts} Ctrl-C, {num_changes} changes of the code (seed {seed}) in {runs} runs,"
        f"{f' {refused} requests refused by the store,' if with_store else ''}"
        f" worlds {' -> '.join(map(str, WORLD_SIZES))} and over:"
        f" {runs - len(lost)} of {runs} runs bitwise equal; slowest first step after a kill {max(recovery):.1f} s;"
        f" {time.monotonic() - began:.0f} s in all"
    )
    if lost:
        sys.exit("\n".join(lost))
    shutil.rmtree(work)


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--store", action="store_true", help="data in a store that answers 503")
    given = options.parse_args()
    storm(given.kills, given.seed, given.store)
