"""The search on Ray Tune: each trial is a training job as :mod:`ebm_dist.cluster` starts it, scored at its rungs.

``runs/tune/<digest>/`` is the record: ``search.json`` has the trials with all their scores, ``search/trial-0007/`` the runs of one,
``final-...`` the same of the comparison. The digest is of the search's settings, the file's values, data, classifier and code, so
the same command goes on where an earlier one was interrupted: trials that were over stay as they were and are told to the
scheduler, others resume from their own checkpoints. Ray's own notes are not read again, because they are pickles.

Rank 0 of a trial scores a checkpoint as it is written (:mod:`ebm_dist.search.judge`).
"""

import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ebm_dist import checkpoint, cluster, features, lineage, shards, storage, tracking
from ebm_dist.comm import LocalComm
from ebm_dist.config import Params, from_values
from ebm_dist.errors import ClusterError, ConfigError, DataError, DivergedError, EbmError
from ebm_dist.files import read_json, sha256, write_json
from ebm_dist.reporting import STOP, Row, read_lines
from ebm_dist.rng import numpy_stream
from ebm_dist.search import report, study
from ebm_dist.search.judge import SCORES, Judge
from ebm_dist.search.proposals import Proposals
from ebm_dist.search.study import WORST, Found, Trial

if TYPE_CHECKING:
    from ray import tune

_NOTE = "trial.json"
_DRIVER_CPUS = 0.01  # Ray Tune takes no 0
_SLOT = "trial"  # a resource of a cluster of our own: PBT must not have more trials at once than there is room for
_LOOK_EVERY_S = 0.3
_FREE_EVERY_S = 1.0


@dataclass(frozen=True)
class Job:
    """What every trial is to know; plain values, because it is sent to other machines."""

    params: dict[str, Any]
    data: str
    classifier: str
    home: str
    digest: str
    rungs: tuple[int, ...]
    """steps at which trials are scored, the last at their end"""
    every: int
    """steps between two checkpoints; divides the rungs"""
    seeds: dict[int, int] = field(default_factory=dict)
    """the seed of each trial"""
    hands_on: bool = False
    """whether a trial's checkpoints go to Tune, for others to go on from"""
    timeout_s: float = math.inf

    def mark(self, index: int) -> int:
        """By which the workers of a trial are known on the cluster: a number of bytes, at most 64 MiB, that no other trial has."""
        return 1 + int.from_bytes(hashlib.sha256(f"{self.home}/{index}".encode()).digest()[:4], "big") % (1 << 26)


def start(params: Params, index: shards.Index, classifier: Path, runs: Path) -> Job:
    """Name the search and lay out its folder. Raises :class:`DataError` or :class:`ConfigError` for what cannot be scored."""
    if "val" not in index.splits:
        raise DataError(f"{index.folder}: has no val split to choose settings by, only {', '.join(index.splits)}")
    if params.tune.metric == "fid_clf" and features.load(classifier) is None:
        raise ConfigError(
            f"tune.metric: fid_clf needs labelled images, {index.dataset} has none; use {' or '.join(study.METRICS[1:])}"
        )
    settings = {k: v for k, v in params.as_dict("tune")["tune"].items() if k not in _NO_RESULT}
    settings["space"] = {key: repr(chosen) for key, chosen in params.tune.ranges(params).items()}
    code = {str(path): sha256(lineage.ROOT / path) for path in lineage.import_closure("ebm_dist.search.judge")}
    parts = [
        lineage.run_digest(params, index.digest),
        settings,
        params.as_dict("evaluation"),
        sha256(classifier / features.CARD),
        code,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    home = storage.location(os.path.abspath(runs)) if storage.is_local(runs) else runs  # Tune changes the folder
    home = home / "tune" / digest[:16]
    (home / "classifier").mkdir(parents=True, exist_ok=True)
    for name in (features.CARD, features.WEIGHTS):
        if (classifier / name).exists():
            storage.write_whole(home / "classifier" / name, (classifier / name).read_bytes())
    data = shards.publish(index, storage.store("shards")).folder
    rungs = params.tune.rungs
    if params.tune.scheduler == "pbt":
        rungs = list(range(rungs[0], params.tune.num_steps + 1, rungs[0]))
    return Job(
        params=params.as_dict(), data=str(data.absolute()), classifier=str(home / "classifier"), home=str(home), digest=digest,
        rungs=tuple(rungs), every=rungs[0], hands_on=params.tune.scheduler == "pbt", timeout_s=params.tune.trial_timeout_s,
    )  # fmt: skip


_NO_RESULT = ("max_concurrent", "trial_timeout_s", "workers", "finalists", "final_seeds", "final_steps")


class Trials:
    """The trials of one phase, in memory and in a file of the search's folder, written at each change."""

    def __init__(self, job: Job, phase: str, planned: list[Trial]) -> None:
        self.path = storage.location(job.home) / f"{phase}.json"
        known = {trial.index: trial for trial in study.read_trials(storage.read_bytes(self.path))} if self.path.exists() else {}
        self.all = [known.get(trial.index, trial) for trial in planned]
        for trial in self.all:
            trial.state = "waiting" if trial.state == "running" else trial.state
        self.save()

    def save(self) -> None:
        storage.write_whole(self.path, study.write_trials(self.all))

    def add(self, trial: Trial, row: dict[str, Any]) -> None:
        """A score has come; one that is known already, told again by a trial that was resumed, changes nothing."""
        if all((row["step"], row["digest"]) != (known["step"], known["digest"]) for known in trial.rows):
            trial.rows.append(row | {"order": sum(len(other.rows) for other in self.all)})

    @property
    def left(self) -> list[Trial]:
        """Those that are not over."""
        return [trial for trial in self.all if not trial.is_over]


def room(nodes: list[Mapping[str, float]], workers: int, cpus: float, gpus: float = 0.0) -> int:
    """How many trials fit on machines with these resources at once, each with so many workers, wherever Ray puts what.

    A worker lies on one machine; each trial's driver takes a little of any.
    """

    def places(node: Mapping[str, float], num_drivers: int) -> int:
        free = node.get("CPU", 0.0) - num_drivers * _DRIVER_CPUS
        by_gpu = node.get("GPU", 0.0) // gpus if gpus else math.inf
        return int(max(0, min(free // cpus, by_gpu)))

    count = 0
    while sum(places(node, count + 1) for node in nodes) >= (count + 1) * workers:
        count += 1
    return count


@contextmanager
def connected(params: Params) -> Iterator[int]:
    """Connect to the cluster, or start one here, and tell how many trials may run at once.

    Raises :class:`ClusterError` before anything is started if not even one fits.
    """
    own, config = params.tune, params.cluster
    chosen = study.trial_params(params, {}, params.seed, own.num_steps, own.num_steps)
    need = (own.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    before = signal.getsignal(signal.SIGTERM)
    if cluster.address() == "local":
        cpus = len(os.sched_getaffinity(0))
        spare = math.ceil(cpus * _DRIVER_CPUS / config.cpus_per_worker)  # for the drivers, which do next to nothing
        nodes: list[Mapping[str, float]] = [{"CPU": cpus + cpus * _DRIVER_CPUS / config.cpus_per_worker, **_gpus(config.use_gpu)}]
        count = _slots(params, nodes, need)
        cluster.connect(chosen, num_cpus=cpus + spare, resources={_SLOT: float(count)})
    else:
        cluster.connect(chosen)
        import ray

        free = ray.available_resources()
        try:
            count = min(
                _slots(params, [node["Resources"] for node in ray.nodes() if node["Alive"]], need), _slots(params, [free], need)
            )
            if own.scheduler == "pbt" and count < own.num_trials:
                raise ClusterError(
                    f"tune.num_trials = {own.num_trials}: on a cluster a population trains at once; {count} trials fit; lower it"
                )
        except ClusterError:
            cluster.disconnect()
            raise
    signal.signal(signal.SIGTERM, before)  # Ray has set its own
    try:
        yield count
    finally:
        cluster.disconnect()


def _gpus(use_gpu: bool) -> dict[str, float]:
    import torch

    return {"GPU": float(torch.cuda.device_count())} if use_gpu else {}


def _slots(params: Params, nodes: list[Mapping[str, float]], need: tuple[int, float, float]) -> int:
    count, (workers, cpus, gpus) = room(nodes, *need), need
    if not count:
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        asked = f"{workers * cpus:g} CPUs" + (f" and {workers * gpus:g} GPUs" if gpus else "")
        there = f"{math.floor(free['CPU'] * 10) / 10:g} CPUs" + (f" and {free['GPU']:g} GPUs" if gpus else "")
        raise ClusterError(
            f"tune.workers = {workers}: a trial needs {asked}, {there} are free: lower tune.workers (the result stays the same) or"
            f" cluster.{'use_gpu' if gpus and free['GPU'] < workers * gpus else 'cpus_per_worker'}"
        )
    return min(count, params.tune.max_concurrent or count)


_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for that look, and so does the end of a short training
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "20",  # an ended trial whose driver does not go is killed, and its workers with it
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


def find(params: Params, job: Job, family: tracking.Family, *, compares: bool = True) -> Found:
    """The whole search: trials, then (``compares``) the best of them and the file's own values trained over several seeds.

    Goes on where an earlier one was interrupted. Raises :class:`DivergedError` if no trial has a score.
    """
    own, home, began = params.tune, storage.location(job.home), time.monotonic()
    draws = [{} if own.search == "optuna" else study.draw(params, i) for i in range(own.num_trials)]
    first = Trials(job, "search", [Trial(i, values, params.seed, own.num_steps) for i, values in enumerate(draws)])
    phases = {"search": first.all}
    with cluster.exclusive(home, job.digest), family.following(phases, first.path), ExitStack() as stack:
        slots = cache(lambda: stack.enter_context(connected(params)))  # not before there is something to train
        with report.live_trials(first.all, own.metric, home / "search"):
            run(job, "search", first, slots)
        searched = time.monotonic()
        best = [trial for trial in study.ranked(first.all, own.metric) if trial.score(own.metric) is not None][: own.finalists]
        if not best:
            reasons = "; ".join(dict.fromkeys(trial.reason for trial in first.all if trial.reason))
            raise DivergedError(f"no trial of the search came to a score: {reasons[:1000]}; see {first.path}")
        if not compares:
            return Found(first.all, [], [], 0, {"search": searched - began})
        steps, count = own.final_steps or params.train.num_steps, own.final_seeds
        whole = replace(job, rungs=(steps,), every=params.train.checkpoint_every, hands_on=False)

        def train_whole(kind: str, pairs: list[tuple[dict[str, Any], int]]) -> list[Trial]:
            phase = f"{kind}-{hashlib.sha256(json.dumps([pairs, steps]).encode()).hexdigest()[:8]}"
            trials = Trials(job, phase, [Trial(i, *pair, steps) for i, pair in enumerate(pairs)])
            phases[kind] = trials.all
            with report.live_trials(trials.all, own.metric, home / phase):
                run(whole, phase, trials, slots)
            return trials.all

        if len(best) > 1:  # with a seed of their own, over the whole length: what is good after few steps may not last
            best = study.ranked(train_whole("heat", [(trial.values, count) for trial in best]), own.metric)
        compared = [dict[str, Any](), best[0].values]
        finals = train_whole("final", [(values, seed) for values in compared for seed in range(count)])
    seconds = {"search": searched - began, "comparison": time.monotonic() - searched}
    return Found(first.all, finals, compared, steps, seconds)


def run(job: Job, phase: str, trials: Trials, slots: Callable[[], int]) -> None:
    """Run those trials of a phase that are not over, ``slots()`` at once. A trial that crashes or hangs ends alone."""
    params = from_values(job.params, Path("tune"))
    if not trials.left:
        return
    most = slots()
    from ray import tune

    home = storage.location(job.home) / phase
    job = replace(job, home=str(home), seeds={trial.index: trial.seed for trial in trials.all})
    own = params.tune if phase == "search" else None
    by_index = {trial.index: trial for trial in trials.all}
    space = {
        "trial": tune.grid_search([trial.index for trial in trials.left]),
        "values": tune.sample_from(lambda spec: by_index[spec["config"]["trial"]].values),
    }
    is_pbt, is_optuna = own is not None and own.scheduler == "pbt", own is not None and own.search == "optuna"
    resources = {"CPU": _DRIVER_CPUS} | ({_SLOT: 1} if cluster.address() == "local" else {})
    path, filesystem = cluster.ray_storage(home)
    shutil.rmtree(Path(path) / phase, ignore_errors=True) if filesystem is None else None  # Ray's notes of an interrupted session
    tuner = tune.Tuner(
        tune.with_resources(partial(_trial, job=job), resources),
        param_space=None if is_optuna else space,
        tune_config=tune.TuneConfig(
            metric=params.tune.metric,
            mode="min",
            num_samples=len(trials.left) if is_optuna else 1,
            scheduler=_scheduler(params, trials, home) if own else None,
            search_alg=_searcher(params, trials) if is_optuna else None,
            max_concurrent_trials=None if is_pbt else most,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=phase, storage_path=path, storage_filesystem=filesystem, verbose=0, callbacks=[_recorder(trials, job)]
        ),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Consider boosting PBT"
        )  # by actors that outlive a trial, and its process is to end with it
        tuner.fit()


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _index(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def _trial(point: dict[str, Any], *, job: Job) -> None:
    """The driver of one trial, in a process of its own: starts the training, and tells Tune the scores as they are written."""
    from ray import tune

    index, values = _index(tune.get_context().get_trial_name()), point["values"]
    home = storage.location(job.home) / f"trial-{index:04d}"
    params = from_values(job.params, Path("tune"))
    try:
        chosen = study.trial_params(params, values, job.seeds[index], job.rungs[-1], job.every)
        note = _settle(
            home, values, hashlib.sha256(f"{job.digest}/{index}/{chosen.digest()}".encode()).hexdigest(), tune.get_checkpoint()
        )
        told, ending = 0, dict[str, Any]()
        digest, last = str(note["digest"]), {"step": note["inherited"], "values": values, "digest": note["digest"]}
        run, data = home / digest[:16], storage.location(job.data)
        judge = Judge(chosen.as_dict(), job.data, job.classifier, digest, job.rungs, params.tune.num_samples)
        training = (ending, chosen, data, run, digest, partial(ScoringReporter, judge=judge), job.mark(index))
        thread = threading.Thread(target=_train, args=training, daemon=True)
        deadline = time.monotonic() + job.timeout_s
        is_trained = cluster.is_finished(run, digest, chosen.train.num_steps) and (run / SCORES).exists()
        if not is_trained and not (run / STOP).exists():
            thread.start()
        while True:
            is_over = not thread.is_alive()
            rows = list(read_lines(run / SCORES))
            for row in rows[told:]:
                last |= row | {"inherited": note["inherited"]}
                newest = checkpoint.latest(run, digest) if job.hands_on else None
                tune.report(last, checkpoint=tune.Checkpoint.from_directory(newest) if newest and row is rows[-1] else None)
            told = len(rows)
            if is_over:
                break
            if time.monotonic() > deadline:
                ending = {"failed": f"not over after tune.trial_timeout_s = {job.timeout_s:g} s, at step {last['step']}"}
                break
            thread.join(_LOOK_EVERY_S)
        if unknown := ending.pop("unknown", None):
            raise unknown
    except EbmError as failed:
        ending = {"failed": str(failed)}
        last = {"step": 0, "values": values, "digest": ""}
    if ending:
        beyond = next((rung for rung in job.rungs if rung > last["step"]), job.rungs[-1])
        tune.report(last | {**dict.fromkeys(study.METRICS, WORST), "step": beyond, **ending})


def _train(ending: dict[str, Any], *training: Any) -> None:
    try:
        cluster.train(*training)
    except DivergedError as diverged:
        ending["diverged"] = str(diverged)
    except EbmError as failed:
        ending["failed"] = str(failed)
    except BaseException as unknown:  # noqa: BLE001 (raised again where Tune sees it)
        ending["unknown"] = unknown


def _settle(home: Path, values: dict[str, Any], digest: str, given: "tune.Checkpoint | None") -> dict[str, Any]:
    """Which run of a trial this is: ``{values, digest, inherited}``, as noted in its folder.

    A checkpoint of another digest is what PBT gives: the weights, averages, moments and chains of a better trial. They become
    the first checkpoint of a new run, whose digest tells the settings and where it comes from.
    """
    note: dict[str, Any] = read_json(home / _NOTE, "tune") if (home / _NOTE).exists() else {}
    if given is not None:
        with given.as_directory() as local:
            donor = Path(local)
            manifest = json.loads((donor / checkpoint.MANIFEST).read_bytes())
            if manifest["digest"] != note.get("digest"):
                return inherit(home, values, digest, donor)
    if note.get("values") != values:
        note = {"values": values, "digest": digest, "inherited": 0}
        write_json(home / _NOTE, note)
    return note


def inherit(home: Path, values: dict[str, Any], digest: str, donor: Path) -> dict[str, Any]:
    """Begin a run of a trial with the checkpoint of another; returns its note. Raises :class:`CheckpointError`."""
    step = checkpoint.verify(donor)
    manifest = json.loads((donor / checkpoint.MANIFEST).read_bytes())
    own = hashlib.sha256(f"{digest} from {sha256(donor / checkpoint.MANIFEST)}".encode()).hexdigest()
    content = {name: (donor / name).read_bytes() for name in manifest["files"]}
    checkpoint.save(home / own[:16], step, content, LocalComm(), digest=own, keep=2)
    note = {"values": values, "digest": own, "inherited": step, "from": {"digest": manifest["digest"], "step": step}}
    write_json(home / _NOTE, note)
    return note


class ScoringReporter(cluster.RayReporter):
    """A reporter of training that scores each checkpoint on rank 0 before anyone trains on."""

    def __init__(self, *arguments: Any, judge: Judge) -> None:
        super().__init__(*arguments)
        self.judge = judge

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        super().started(step, history, rollbacks, reason)
        self._score()  # should the last attempt have ended between a checkpoint and its score

    def saved(self, row: Row) -> None:
        self._score()
        super().saved(row)

    def _score(self) -> None:
        from ray.train.collective import barrier

        if self.rank == 0:
            self.judge.look(self.run)
        barrier()  # not one of training's, which would run into cluster.timeout_s


def _scheduler(params: Params, trials: Trials, home: Path) -> Any:
    from ray.tune import schedulers

    own, rungs = params.tune, params.tune.rungs
    if own.scheduler == "none":
        return None
    if own.scheduler == "pbt":
        count = iter(range(1 << 62))

        def explore(point: dict[str, Any]) -> dict[str, Any]:
            generator = numpy_stream(own.seed, "tune/explore", 0, next(count))
            return {**point, "values": study.perturbed(params, point["values"], generator)}

        return schedulers.PopulationBasedTraining(
            "step", perturbation_interval=rungs[0], custom_explore_fn=explore, log_config=False
        )

    class Asha(schedulers.ASHAScheduler):  # type: ignore[misc]
        """Knows the scores of earlier sessions: of trials that are over, and of those that are to go on.

        A trial to be ended is asked to stop, as a training is at SIGTERM, so that its workers and what watches them end in order.
        """

        is_told = False

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if super().on_trial_result(controller, trial, result) == self.STOP and result["digest"]:
                storage.write_whole(home / str(trial) / result["digest"][:16] / STOP, b"")
            return str(self.CONTINUE)

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            if not self.is_told:
                self.is_told = True
                for known in trials.all:
                    if known.is_over:
                        self.tell(controller, SimpleNamespace(trial_id=f"earlier-{known.index}"), known)
            self.tell(controller, trial, trials.all[_index(str(trial))])

        def tell(self, controller: Any, trial: Any, known: Trial) -> None:
            super().on_trial_add(controller, trial)
            for row in known.rows:
                super().on_trial_result(controller, trial, {"step": row["step"], own.metric: row[own.metric]})

    return Asha("step", max_t=own.num_steps, grace_period=rungs[0], reduction_factor=max(2, own.reduction_factor))


def _searcher(params: Params, trials: Trials) -> Any:
    """What Tune asks for the values of the next trial, where they depend on the scores so far."""
    from ray.tune.search import Searcher

    class Proposing(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params.tune.metric, "min")
            self.proposals, self.waiting, self.asked = Proposals(params, trials.all), list(trials.left), dict[str, Trial]()

        def suggest(self, trial_id: str) -> Any:
            if not self.waiting:
                return Searcher.FINISHED
            trial = self.asked[trial_id] = self.waiting.pop(0)
            trial.values = trial.values or self.proposals.next(trial.index)
            trials.save()
            return {"trial": trial.index, "values": trial.values}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.proposals.learn(self.asked[trial_id])

    return Proposing()


def _recorder(store: Trials, job: Job) -> Any:
    """What Tune calls in this process: keeps the record of the trials, and frees what ended ones have left behind."""
    from ray import tune

    by_index = {trial.index: trial for trial in store.all}
    began = dict[int, float]()

    class Recorder(tune.Callback):  # type: ignore[misc]
        looked_at = 0.0

        def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
            if time.monotonic() - self.looked_at >= _FREE_EVERY_S:
                cluster.free({job.mark(_index(str(trial))) for trial in trials if trial.status != "RUNNING"})
                self.looked_at = time.monotonic()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._change(trial, "running")

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            own = by_index[_index(str(trial))]
            kept = ("step", "digest", "inherited", "diverged", "failed", *study.SCORES)
            own.values = result["values"]
            store.add(own, {name: result[name] for name in kept if name in result})
            self._change(trial, own.state)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            own = by_index[_index(str(trial))]
            row = own.rows[-1] if own.rows else {"failed": "it ended without a score"}
            state = next((state for state in ("diverged", "failed") if state in row), None)
            own.reason = str(row[state]) if state else ""
            self._change(trial, state or ("finished" if own.step >= own.num_steps else "stopped"))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            by_index[_index(str(trial))].reason = "its process ended: killed, or out of memory"
            self._change(trial, "failed")

        def _change(self, trial: Any, state: Any) -> None:
            own, now = by_index[_index(str(trial))], time.monotonic()
            own.seconds += now - began.get(own.index, now)
            began[own.index] = now
            if state != "running":
                began.pop(own.index, None)
            own.state = state
            store.save()

    return Recorder()
