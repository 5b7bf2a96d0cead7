"""A drill on the real local cluster: ``python -m tests.faults.drill [NAME ...]``.

Each fault befalls a training job that runs on two worker nodes, with its shards and checkpoints in the object store and MLflow on
PostgreSQL. The job must end with the weights and chains of an undisturbed one, bit for bit, in one MLflow run with each step once.
``docs/reliability.md`` has the table that it prints.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from ebm_dist.runs.record import EVENTS, METRICS, read_lines
from ebm_dist.training import checkpoint
from infra.local import Stack, descendants
from tests import helpers
from tests.faults.proxy import CUT, PASS, UNAVAILABLE, Proxy

NUM_STEPS, LOG_EVERY = 900, 5
PREPARE = "python -m pipelines.prepare --out data/main"
TRAIN = "python -m pipelines.train --data data/main --out out --report report"
ROW = "| {} | {} | {} of {} | {:.0f} s | {} |"


class Outcome(NamedTuple):
    """What a fault led to."""

    fault: str
    injected: int
    recovered: int
    seconds: float
    """from the (last) fault to the first step beyond those done before it"""
    note: str


class Drill:
    """A stack, a small project, the golden result, and what the scenarios need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack(folder / "stack")
        self.stack.up(2, 1)
        os.environ.update(self.stack.settings())
        self.project = helpers.copy_project(folder / "project")
        self.golden: dict[str, bytes] = {}
        self.next_worker = 2

    @property
    def client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(os.environ["RAY_API_SERVER_ADDRESS"])

    def configure(self, name: str, workers: Any, num_steps: int = NUM_STEPS) -> None:
        """Small settings, in an experiment of the scenario's own."""
        yaml = YAML()
        values = yaml.load(self.project / "params.yaml")
        values["train"] |= {"num_steps": num_steps, "log_every": LOG_EVERY, "checkpoint_every": 25}
        values["cluster"] = {"workers": workers, "timeout_s": 20, "max_failures": 20}
        values["tracking"] = {"experiment": name}
        yaml.dump(values, self.project / "params.yaml")

    def submit(self, name: str, **environment: str) -> str:
        variables = {"EBM_STORE": f"{self.stack.settings()['EBM_STORE']}/{name}"} | environment
        entrypoint, runtime = (
            f"sh -c '{PREPARE} && exec {TRAIN}'",
            {"working_dir": str(self.project), "env_vars": variables},
        )
        for _ in range(20):
            with contextlib.suppress(
                RuntimeError
            ):  # the job server answers before the agent that starts jobs is there
                return str(self.client.submit_job(entrypoint=entrypoint, runtime_env=runtime))
            time.sleep(1)
        raise AssertionError(f"{name}: the job server takes no job")

    def run_folder(self, name: str) -> Path:
        """The run in the store's own folder on this host."""
        found = [
            p
            for p in (self.stack.folder / "store/ebm" / name / "runs").glob("*")
            if p.name != "ray" and p.is_dir()
        ]
        return found[0] if found else Path("none yet")

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(read_lines(self.run_folder(name) / METRICS))

    def step(self, name: str) -> int:
        return max((int(row["step"]) for row in self.rows(name)), default=0)

    def await_step(self, name: str, step: int, job: str, limit: float = 150) -> None:
        deadline = time.monotonic() + limit
        while self.step(name) < step:
            assert time.monotonic() < deadline, (
                f"{name}: step {step} not reached\n{self.client.get_job_logs(job)[-3000:]}"
            )
            assert self.client.get_job_status(job).name in ("PENDING", "RUNNING"), (
                self.client.get_job_logs(job)[-3000:]
            )
            time.sleep(0.3)

    def await_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.stack.nodes()) != count:
            assert time.monotonic() < deadline, f"{len(self.stack.nodes())} nodes, not {count}"
            time.sleep(0.5)

    def finish(self, job: str, expected: str = "SUCCEEDED", limit: float = 300) -> str:
        deadline = time.monotonic() + limit
        while not (status := self.client.get_job_status(job)).is_terminal():
            assert time.monotonic() < deadline, f"{status}\n{self.client.get_job_logs(job)[-3000:]}"
            time.sleep(0.5)
        logs: str = self.client.get_job_logs(job)
        assert status.name == expected, f"{status}\n{logs[-3000:]}"
        assert "Traceback" not in logs, logs[-3000:]
        return logs

    def workers_of(self, name: str = "RayTrainWorker") -> list[int]:
        """Processes of the training job, on any node."""
        nodes = [pid for service, pid in self.stack.pids.items() if service.startswith("worker-")]
        family = [child for pid in nodes for child in descendants(pid)]
        return [pid for pid in family if name in command_of(pid)]

    def check(self, name: str, min_starts: int = 1) -> str:
        """The promises; returns how often training started and from where."""
        run = self.run_folder(name)
        result = helpers.state_of(run)
        self.golden = self.golden or result
        assert result == self.golden, f"{name}: weights or chains differ from the undisturbed run's"
        steps = [row["step"] for row in self.rows(name)]
        assert steps == list(range(LOG_EVERY, NUM_STEPS + 1, LOG_EVERY)), (
            f"{name}: steps in the record: {steps}"
        )
        events = list(read_lines(run / EVENTS))
        assert len(events) >= min_starts, (
            f"{name}: {len(events)} starts, expected at least {min_starts}"
        )
        logged = self.logged_steps(name)
        assert logged == steps, f"{name}: steps in MLflow: {logged}"
        return "starts " + ", ".join(f"{e['step']} ({e['world_size']})" for e in events)

    def logged_steps(self, name: str) -> list[int]:
        """Steps of one metric in the experiment's one run, asked of the server over HTTP."""
        script = f"""
import json, mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name({name!r}).experiment_id])
print(json.dumps(sorted(m.step for m in client.get_metric_history(run.info.run_id, "train/energy_gap"))))
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        return list(json.loads(done.stdout.splitlines()[-1]))

    def recovery(self, name: str, since: float, step: int) -> float:
        """Seconds from a moment to the first row beyond a step; 0 if that was there before, though not seen yet in the store."""
        return max(0.0, min(row["time"] for row in self.rows(name) if row["step"] > step) - since)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def undisturbed(d: Drill, name: str) -> Outcome:
    d.configure(name, 2)
    d.finish(d.submit(name))
    return Outcome("none (the reference)", 0, 0, 0, d.check(name))


def worker_killed(d: Drill, name: str) -> Outcome:
    d.configure(name, 2)
    job, times = d.submit(name), []
    for at in (60, 200, 340):
        d.await_step(name, at, job)
        since, step = time.time(), d.step(name)
        os.kill(d.workers_of()[0], signal.SIGKILL)
        d.await_step(name, step + 2 * LOG_EVERY, job)
        times.append(d.recovery(name, since, step))
    d.finish(job)
    return Outcome("training worker killed (SIGKILL)", 3, 3, max(times), d.check(name, 4))


def worker_stopped(d: Drill, name: str) -> Outcome:
    """A rank that hangs: the others wait in a collective until it times out."""
    d.configure(name, 2)
    job = d.submit(name)
    d.await_step(name, 100, job)
    since, step = time.time(), d.step(name)
    os.kill(d.workers_of()[0], signal.SIGSTOP)
    d.finish(job)
    return Outcome(
        "training worker hangs (SIGSTOP)", 1, 1, d.recovery(name, since, step), d.check(name, 2)
    )


def node_killed(d: Drill, name: str) -> Outcome:
    """A machine dies, the run goes on with one worker; another machine comes, and it uses both again."""
    d.configure(name, [1, 2])
    d.await_nodes(3)
    job = d.submit(name)
    d.await_step(name, 60, job)
    since, step = time.time(), d.step(name)
    d.stack.stop(_last_worker(d), signal.SIGKILL)
    d.await_step(name, step + 2 * LOG_EVERY, job, 240)
    seconds = d.recovery(name, since, step)
    d.stack.worker(d.next_worker)
    d.next_worker += 1
    d.finish(job, limit=400)
    starts = d.check(name, 3)
    assert starts.startswith("starts 0 (2), ") and "(1)" in starts and starts.endswith("(2)"), (
        f"not from 2 to 1 to 2 workers: {starts}"
    )
    return Outcome("worker node killed (raylet and all), another joins", 1, 1, seconds, starts)


def node_cut_off(d: Drill, name: str) -> Outcome:
    """All processes of a machine stop answering, as behind a cut cable."""
    d.configure(name, [1, 2])
    d.await_nodes(3)
    job = d.submit(name)
    d.await_step(name, 60, job)
    since, step = time.time(), d.step(name)
    service = _last_worker(d)
    pid = d.stack.pids[service]
    for member in [pid, *descendants(pid)]:
        os.kill(member, signal.SIGSTOP)
    d.finish(job, limit=400)
    seconds = d.recovery(name, since, step)
    d.stack.stop(service, signal.SIGKILL)
    d.stack.worker(d.next_worker)
    d.next_worker += 1
    return Outcome(
        "worker node cut off (all its processes stopped)", 1, 1, seconds, d.check(name, 2)
    )


def node_drained(d: Drill, name: str) -> Outcome:
    """A preemption notice: a checkpoint at the notice, and on with what is left when the machine goes."""
    d.configure(name, [1, 2])
    d.await_nodes(3)
    job = d.submit(name)
    d.await_step(name, 60, job)
    since = time.time()
    node = next(n for n in d.stack.nodes() if not n["is_head_node"])
    command = [Path(sys.executable).parent / "ray", "drain-node", "--address", f"127.0.0.1:{d.stack.ports['gcs']}", "--node-id",
               node["node_id"], "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill",
               "--deadline-remaining-seconds", "20"]  # fmt: skip
    before = d.step(name)
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    steps = lambda: [
        int(p.parent.name.removeprefix("step-"))
        for p in d.run_folder(name).glob("step-*/manifest.json")
    ]
    deadline = time.monotonic() + 20
    while not (asked_for := [s for s in steps() if s % 25]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert asked_for, f"no checkpoint between the regular ones within 20 s of the notice: {steps()}"
    saved = time.time() - since
    d.finish(job, limit=400)
    d.stack.worker(d.next_worker)
    d.next_worker += 1
    starts = d.check(name)
    return Outcome(
        "preemption notice (ray drain-node, 20 s)",
        1,
        1,
        saved,
        f"checkpoint at {asked_for[0]} after the notice at {before}; {starts}",
    )


def driver_killed(d: Drill, name: str) -> Outcome:
    d.configure(name, 2)
    job = d.submit(name)
    d.await_step(name, 100, job)
    since, step = time.time(), d.step(name)
    head = d.stack.pids["head"]
    for pid in [p for p in descendants(head) if "pipelines.train" in command_of(p)]:
        os.kill(pid, signal.SIGKILL)
    d.finish(job, "FAILED")
    again = d.submit(name)
    d.finish(again)
    return Outcome(
        "driver killed (SIGKILL), job submitted again",
        1,
        1,
        d.recovery(name, since, step),
        d.check(name, 2),
    )


def job_stopped(d: Drill, name: str) -> Outcome:
    """SIGTERM: an agreed stop with a checkpoint; the same job again goes on from that very step."""
    d.configure(name, 2)
    job = d.submit(name)
    d.await_step(name, 100, job)
    since = time.time()
    d.client.stop_job(job)
    logs = d.finish(job, "STOPPED")
    run = d.run_folder(name)
    stopped = checkpoint.verify(checkpoint.latest(run))
    seconds = time.time() - since
    assert 100 <= stopped < NUM_STEPS and f"stopped at step {stopped} of" in logs, (
        f"checkpoint at {stopped}\n{logs[-2000:]}"
    )
    d.finish(d.submit(name))
    starts = d.check(name, 2)
    assert f"{stopped} (2)" in starts, starts
    return Outcome(
        "SIGTERM (ray job stop), submitted again", 1, 1, seconds, f"stopped at {stopped}; {starts}"
    )


def submitted_twice(d: Drill, name: str) -> Outcome:
    d.configure(name, 2)
    first = d.submit(name)
    d.await_step(name, 50, first)
    second = d.submit(name)
    logs = d.finish(second)
    assert "running already on the cluster; waiting" in logs, logs
    d.finish(first)
    starts = d.check(name)
    assert starts == "starts 0 (2)", starts
    return Outcome("the same job submitted twice", 1, 1, 0, f"the second waited; {starts}")


def tracking_killed(d: Drill, name: str) -> Outcome:
    """MLflow's server, then PostgreSQL, are killed and come back; training neither stops nor waits."""
    d.configure(name, 2)
    job = d.submit(name)
    d.await_step(name, 60, job)
    d.stack.stop("mlflow", signal.SIGKILL)
    d.await_step(name, 160, job)
    d.stack.mlflow()
    d.await_step(name, 260, job)
    d.stack.stop("postgres", signal.SIGKILL)
    d.await_step(name, 360, job)
    d.stack.postgres()
    d.finish(job)
    gaps = [b["time"] - a["time"] for a, b in zip(d.rows(name), d.rows(name)[1:], strict=False)]
    starts = d.check(name)
    assert starts == "starts 0 (2)", starts
    return Outcome(
        "MLflow server killed and back; PostgreSQL killed and back",
        2,
        2,
        0,
        f"longest pause between two rows {max(gaps):.1f} s; {starts}",
    )


def store_misbehaves(d: Drill, name: str) -> Outcome:
    """503 to everything for 15 s, then every upload cut in the middle for 10 s, then the store killed for 5 s."""
    d.configure(name, 2)
    proxy = Proxy(d.stack.ports["store"])
    job = d.submit(name, AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}")
    d.await_step(name, 60, job)
    times, faults = [], []
    for at, mode, seconds in ((100, UNAVAILABLE, 15), (250, CUT, 10)):
        d.await_step(name, at, job)
        before = proxy.num_faults
        proxy.mode = mode
        time.sleep(seconds)
        proxy.mode = PASS
        since, step = time.time(), d.step(name)
        d.await_step(name, step + 2 * LOG_EVERY, job, 240)
        times.append(d.recovery(name, since, step))
        faults.append(proxy.num_faults - before)
    d.stack.stop("store", signal.SIGKILL)
    time.sleep(5)
    d.stack.store()
    since, step = time.time(), d.step(name)
    d.finish(job, limit=400)
    times.append(d.recovery(name, since, step))
    proxy.close()
    assert min(faults) > 0, faults
    return Outcome(
        "store answers 503 (15 s), cuts uploads (10 s), is killed (5 s)",
        3,
        3,
        max(times),
        f"{faults[0]} requests refused, {faults[1]} cut; {d.check(name)}",
    )


SCENARIOS: dict[str, Callable[[Drill, str], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (undisturbed, worker_killed, worker_stopped, node_killed, node_cut_off, node_drained, driver_killed, job_stopped,
                     submitted_twice, tracking_killed, store_misbehaves)
}  # fmt: skip


def _last_worker(d: Drill) -> str:
    return [name for name in d.stack.pids if name.startswith("worker-")][-1]


@contextlib.contextmanager
def drill() -> Iterator[Drill]:
    logging.disable(logging.INFO)  # of the uploads
    folder = Path(tempfile.mkdtemp(prefix="ebm-drill-"))
    folder.chmod(0o755)  # for PostgreSQL, which does not run as root
    ready = Drill(folder)
    try:
        yield ready
    finally:
        ready.stack.down()
    shutil.rmtree(folder)  # kept, with the logs, where something failed


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}; all if none is given"
    )
    given = options.parse_args()
    chosen = dict.fromkeys(["undisturbed", *(given.names or SCENARIOS)])
    failed = []
    with drill() as ready:
        print(
            "| fault | injected | recovered | time to recover | how |\n|---|---|---|---|---|",
            flush=True,
        )
        for name in chosen:
            began = time.monotonic()
            try:
                o = SCENARIOS[name](ready, name)
                print(
                    ROW.format(o.fault, o.injected, o.recovered, o.injected, o.seconds, o.note),
                    flush=True,
                )
            except AssertionError as wrong:
                failed.append(f"{name}: {wrong}")
                print(f"| {name} | FAILED | | | {str(wrong).splitlines()[0]} |", flush=True)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if failed:
            sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
