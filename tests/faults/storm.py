"""A storm of SIGKILLs: ``python -m tests.faults.storm --kills 200 --seed 7``.

Groups of 4, 2 and 1 gloo processes train a small model. In each group one rank kills itself at a random pass of a random point
(in the sampler, around the reduction and the update, before each system call of the checkpoint's writes); the others are then killed
too, as a cluster does that restarts a group, and the next group goes on from what is on disk. Whenever a run ends, weights,
averages, chains, moments and metrics must be those of an undisturbed run, bit for bit. The exit status is 0 only if all are.
"""

import argparse
import collections
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
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ebm_dist import faults
from ebm_dist.data import shards
from ebm_dist.datasets import digits
from ebm_dist.runs.record import METRICS, FileReporter, read_lines
from ebm_dist.training.reduce import LocalComm, TorchComm
from tests import helpers

WORLD_SIZES = (4, 2, 1)
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


def rank(
    data: Path, run: Path, number: int, world_size: int, meeting: Path, fault: str | None
) -> None:
    torch.set_num_threads(1)
    comm = LocalComm()
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            f"file://{meeting}",
            rank=number,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        comm = TorchComm(torch.device("cpu"))
    faults.arm(fault)
    trainer = helpers.build(helpers.config.from_values(SETTINGS, Path("storm")), data, comm)
    trainer.fit(run, Timed(run, number))


def group(data: Path, run: Path, world_size: int, victim: int, fault: str | None) -> bool:
    """Run a group of forked ranks to its end; False if one was killed, and then all."""
    meeting = run.parent / f"meeting-{time.monotonic_ns()}"
    ranks = []
    for number in range(world_size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rank(data, run, number, world_size, meeting, fault if number == victim else None)
                code = 0
            except RuntimeError:  # what gloo raises where another rank has gone
                (run.parent / f"rank-{number}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        ranks.append(child)
    waiting, ended_well = set(ranks), True
    while waiting:
        child, status = os.wait()
        waiting.discard(child)
        if status and ended_well:
            ended_well = False
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
    return ended_well


def contents(run: Path) -> dict[str, object]:
    """What must not depend on how the run went."""
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "time")}
        for row in read_lines(run / METRICS)
    ]
    return {**helpers.state_of(run), "metrics": rows}


def storm(num_kills: int, seed: int) -> None:
    chance, kills, lost = random.Random(seed), collections.Counter(), list[str]()
    since, recovery, runs, began = None, [0.0], 0, time.monotonic()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp(prefix="ebm-storm-"))
    data = work / "data"
    shards.write(data, "digits", digits.load(digits.Config()))
    helpers.build(
        helpers.config.from_values(SETTINGS, Path("storm")), data
    )  # imports what each rank would import again
    group(
        data, work / "golden", 1, 0, None
    )  # in a process of its own: a process that has used autograd must not fork
    golden, world_sizes = contents(work / "golden"), itertools.cycle(WORLD_SIZES)
    while kills.total() < num_kills:
        run, plans, ended = work / f"run-{runs}", list[str](), False
        while not ended:
            world_size = next(world_sizes)
            name = chance.choice(list(PASSES))
            enough = kills.total() >= num_kills
            fault = None if enough else f"{name}:{chance.randint(1, PASSES[name])}:kill"
            victim = (
                0
                if name in ("checkpoint.manifest", "checkpoint.delete", "record.append")
                else chance.randrange(world_size)
            )
            (run / "alive").unlink(missing_ok=True)
            ended = group(data, run, world_size, victim, fault)
            if since is not None and (run / "alive").exists():
                recovery.append((run / "alive").stat().st_mtime - since)
            if not ended:
                since = time.time()
                kills[name] += 1
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
    print(file=sys.stderr)
    for name in PASSES:
        print(f"  {name:20} {kills[name]:4}")
    print(
        f"{kills.total()} SIGKILLs (seed {seed}) in {runs} runs, worlds {' -> '.join(map(str, WORLD_SIZES))} and over:"
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
    given = options.parse_args()
    storm(given.kills, given.seed)
