"""The search on Ray Tune: each trial is a training job of :mod:`ebm_dist.runs.cluster`.

``runs/tune/<digest>/`` is the record. ``search.json`` has the trials with all their scores, and
``search/trial-0007/`` the runs of a trial; ``final-...`` has those of the comparison. The digest is
of the search's settings, the file's values, data, classifier and code, so the same command resumes
an interrupted search: trials that were over stay as they were and their scores are passed to the
scheduler, others resume from their own checkpoints. Ray's own state is not read again, because it
is pickled.

Rank 0 of a trial scores a checkpoint as it is written (:mod:`ebm_dist.search.scores`).
"""

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ebm_dist import storage
from ebm_dist.config import Params, from_values
from ebm_dist.data import shards
from ebm_dist.errors import ClusterError, ConfigError, DataError, DivergedError
from ebm_dist.files import sha256
from ebm_dist.metrics import features
from ebm_dist.runs import cluster, code, lineage
from ebm_dist.search import report, space, trials
from ebm_dist.search.mlflow import Family
from ebm_dist.search.schedulers import scheduler, search_algorithm
from ebm_dist.search.trial_job import Job, run_trial, trial_index
from ebm_dist.search.trials import SearchResult, Trial, TrialStore

_DRIVER_CPUS = 0.01  # Ray Tune accepts no 0
_SLOT = "trial"  # resource of a local cluster that keeps PBT from starting more trials than fit
_KEPT = ("step", "digest", "inherited", "diverged", "failed", *trials.SCORES)  # of a result
_FREE_EVERY_S = 1.0


def start(params: Params, index: shards.Index, classifier: Path, runs: Path) -> Job:
    """Compute the digest of the search and create its folder.

    Raise :class:`DataError` without a validation split, :class:`ConfigError` for a metric that
    cannot be computed for this data set.
    """
    if "val" not in index.splits:
        raise DataError(
            f"{index.folder}: has no val split to choose settings by, only"
            f" {', '.join(index.splits)}; prepare it with a validation split"
        )
    if params.tune.metric == "fid_clf" and features.load(classifier) is None:
        raise ConfigError(
            f"tune.metric: fid_clf needs labelled images, {index.dataset} has none;"
            f" use {' or '.join(trials.METRICS[1:])}"
        )
    settings = {k: v for k, v in params.as_dict("tune")["tune"].items() if k not in _NO_RESULT}
    settings["space"] = {key: repr(span) for key, span in params.tune.ranges(params).items()}
    parts = [
        lineage.run_digest(params, index.digest),
        settings,
        params.as_dict("evaluation"),
        sha256(classifier / features.CARD),
        code.tune_digest(),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    # absolute, because Tune changes the working folder
    home = storage.location(os.path.abspath(runs)) if storage.is_local(runs) else runs
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
        params=params.as_dict(),
        data=str(data.absolute()),
        classifier=str(home / "classifier"),
        home=str(home),
        digest=digest,
        code=code.tune_digest(),
        rungs=tuple(rungs),
        every=rungs[0],
        shares_checkpoints=params.tune.scheduler == "pbt",
        timeout_s=params.tune.trial_timeout_s,
    )


_NO_RESULT = (
    "max_concurrent",
    "trial_timeout_s",
    "workers",
    "finalists",
    "final_seeds",
    "final_steps",
)


def max_concurrent_trials(
    nodes: list[Mapping[str, float]], workers: int, cpus: float, gpus: float = 0.0
) -> int:
    """Return how many trials fit on machines with these resources at once.

    The number holds for any placement by Ray. Each of a trial's ``workers`` needs ``cpus`` and
    ``gpus`` on one machine; its driver takes a small share of any machine.
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
    """Connect to the cluster, or start one here, and yield how many trials may run at once.

    Raise :class:`ClusterError` before anything is started if no trial fits.
    """
    tune, config = params.tune, params.cluster
    first_params = space.trial_params(params, {}, params.seed, tune.num_steps, tune.num_steps)
    need = (tune.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    before = signal.getsignal(signal.SIGTERM)
    if cluster.address() == "local":
        cpus = len(os.sched_getaffinity(0))
        # for the drivers, which are idle nearly all the time
        spare = math.ceil(cpus * _DRIVER_CPUS / config.cpus_per_worker)
        nodes: list[Mapping[str, float]] = [
            {"CPU": cpus + cpus * _DRIVER_CPUS / config.cpus_per_worker, **_gpus(config.use_gpu)}
        ]
        count = _slots(params, nodes, need)
        cluster.connect(first_params, num_cpus=cpus + spare, resources={_SLOT: float(count)})
    else:
        cluster.connect(first_params)
        import ray

        free = ray.available_resources()
        try:
            count = min(
                _slots(params, [node["Resources"] for node in ray.nodes() if node["Alive"]], need),
                _slots(params, [free], need),
            )
            if tune.scheduler == "pbt" and count < tune.num_trials:
                raise ClusterError(
                    f"tune.num_trials = {tune.num_trials}: on a cluster all trials of pbt train at"
                    f" once, and {count} fit; lower it"
                )
        except ClusterError:
            cluster.disconnect()
            raise
    signal.signal(signal.SIGTERM, before)  # Ray has set its own handler
    try:
        yield count
    finally:
        cluster.disconnect()


def _gpus(use_gpu: bool) -> dict[str, float]:
    import torch

    return {"GPU": float(torch.cuda.device_count())} if use_gpu else {}


def _slots(params: Params, nodes: list[Mapping[str, float]], need: tuple[int, float, float]) -> int:
    count, (workers, cpus, gpus) = max_concurrent_trials(nodes, *need), need
    if not count:
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        needed = f"{workers * cpus:g} CPUs" + (f" and {workers * gpus:g} GPUs" if gpus else "")
        available = f"{math.floor(free['CPU'] * 10) / 10:g} CPUs" + (
            f" and {free['GPU']:g} GPUs" if gpus else ""
        )
        key = "use_gpu" if gpus and free["GPU"] < workers * gpus else "cpus_per_worker"
        raise ClusterError(
            f"tune.workers = {workers}: a trial needs {needed}, {available} are free: lower"
            f" tune.workers (the result stays the same) or cluster.{key}"
        )
    return min(count, params.tune.max_concurrent or count)


_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # a report, and the end of a short training, wait for the next health check
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # kills the driver, and with it the workers, of an ended trial that does not exit
    "TUNE_FORCE_TRIAL_CLEANUP_S": "20",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


def find(params: Params, job: Job, family: Family, *, compares: bool = True) -> SearchResult:
    """Run the whole search: the trials, then the comparison if ``compares``.

    The comparison trains the best trials and the file's own values over several seeds. An
    interrupted search is resumed. Raise :class:`DivergedError` if no trial has a score.
    """
    tune, home, began = params.tune, storage.location(job.home), time.monotonic()
    draws = [
        {} if tune.search == "optuna" else space.draw(params, i) for i in range(tune.num_trials)
    ]
    first = TrialStore(
        storage.location(job.home),
        "search",
        [Trial(i, values, params.seed, tune.num_steps) for i, values in enumerate(draws)],
    )
    phases = {"search": first.all}
    with (
        cluster.exclusive_lock(home, job.digest),
        family.sync_while_running(phases, first.path),
        ExitStack() as stack,
    ):
        # connected only when there is something to train
        slots = cache(lambda: stack.enter_context(connected(params)))
        with report.live_trials(first.all, tune.metric, home / "search"):
            run(job, "search", first, slots)
        searched = time.monotonic()
        best = [
            trial
            for trial in trials.ranked(first.all, tune.metric)
            if trial.score(tune.metric) is not None
        ][: tune.finalists]
        if not best:
            reasons = "; ".join(dict.fromkeys(trial.reason for trial in first.all if trial.reason))
            raise DivergedError(
                f"no trial of the search has a score: {reasons[:1000]}; see {first.path}"
            )
        if not compares:
            return SearchResult(first.all, [], [], 0, {"search": searched - began})
        steps, count = tune.final_steps or params.train.num_steps, tune.final_seeds
        final_job = replace(
            job, rungs=(steps,), every=params.train.checkpoint_every, shares_checkpoints=False
        )

        def train_finals(kind: str, pairs: list[tuple[dict[str, Any], int]]) -> list[Trial]:
            phase = f"{kind}-{hashlib.sha256(json.dumps([pairs, steps]).encode()).hexdigest()[:8]}"
            store = TrialStore(
                storage.location(job.home),
                phase,
                [Trial(i, *pair, steps) for i, pair in enumerate(pairs)],
            )
            phases[kind] = store.all
            with report.live_trials(store.all, tune.metric, home / phase):
                run(final_job, phase, store, slots)
            return store.all

        if len(best) > 1:
            # over the full length with another seed: an early lead may not last
            heats = train_finals("heat", [(trial.values, count) for trial in best])
            best = trials.ranked(heats, tune.metric)
        compared = [dict[str, Any](), best[0].values]
        finals = train_finals(
            "final", [(values, seed) for values in compared for seed in range(count)]
        )
    seconds = {"search": searched - began, "comparison": time.monotonic() - searched}
    return SearchResult(first.all, finals, compared, steps, seconds)


def run(job: Job, phase: str, store: TrialStore, slots: Callable[[], int]) -> None:
    """Run the trials of a phase that are not over, ``slots()`` at once.

    A trial that crashes or hangs does not end the others.
    """
    params = from_values(job.params, Path("tune"))
    if not store.left:
        return
    most = slots()
    from ray import tune

    home = storage.location(job.home) / phase
    job = replace(job, home=str(home), seeds={trial.index: trial.seed for trial in store.all})
    settings = params.tune if phase == "search" else None
    by_index = {trial.index: trial for trial in store.all}
    param_space = {
        "trial": tune.grid_search([trial.index for trial in store.left]),
        "values": tune.sample_from(lambda spec: by_index[spec["config"]["trial"]].values),
    }
    is_pbt, is_optuna = (
        settings is not None and settings.scheduler == "pbt",
        settings is not None and settings.search == "optuna",
    )
    resources = {"CPU": _DRIVER_CPUS} | ({_SLOT: 1} if cluster.address() == "local" else {})
    path, filesystem = cluster.ray_storage(home)
    if filesystem is None:  # Ray's state of an interrupted session
        shutil.rmtree(Path(path) / phase, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(partial(run_trial, job=job), resources),
        param_space=None if is_optuna else param_space,
        tune_config=tune.TuneConfig(
            metric=params.tune.metric,
            mode="min",
            num_samples=len(store.left) if is_optuna else 1,
            scheduler=scheduler(params, store, home) if settings else None,
            search_alg=search_algorithm(params, store) if is_optuna else None,
            max_concurrent_trials=None if is_pbt else most,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=phase,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[_recorder(store, job)],
        ),
    )
    # it logs the error of a trial with its traceback; the recorder has the reason
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        # its advice would let actors outlive a trial, but their process must end with it
        warnings.filterwarnings("ignore", "Consider boosting PBT")
        tuner.fit()
    if is_code_changed(job):
        raise code.changed(home)


def is_code_changed(job: Job) -> bool:
    """Return whether the source files are no longer those with which the search began."""
    code.forget()
    return code.tune_digest() != job.code


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _recorder(store: TrialStore, job: Job) -> Any:
    """Return the callback of Tune that records trials and frees resources of ended trials."""
    from ray import tune

    by_index = {trial.index: trial for trial in store.all}
    began = dict[int, float]()

    class Recorder(tune.Callback):  # type: ignore[misc]
        looked_at = 0.0

        def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
            if time.monotonic() - self.looked_at >= _FREE_EVERY_S:
                cluster.free(
                    {
                        job.resource_tag(trial_index(str(trial)))
                        for trial in trials
                        if trial.status != "RUNNING"
                    }
                )
                self.looked_at = time.monotonic()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._change(trial, "running")

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            recorded = by_index[trial_index(str(trial))]
            recorded.values = result["values"]
            store.add(recorded, {name: result[name] for name in _KEPT if name in result})
            self._change(trial, recorded.state)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            recorded = by_index[trial_index(str(trial))]
            row = recorded.rows[-1] if recorded.rows else {"failed": "it ended without a score"}
            state = next((state for state in ("diverged", "failed") if state in row), None)
            recorded.reason = str(row[state]) if state else ""
            is_finished = recorded.step >= recorded.num_steps
            self._change(trial, state or ("finished" if is_finished else "stopped"))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            if is_code_changed(job):  # the trial has refused, and goes on when the code is restored
                return
            by_index[trial_index(str(trial))].reason = "its process ended: killed, or out of memory"
            self._change(trial, "failed")

        def _change(self, trial: Any, state: Any) -> None:
            recorded, now = by_index[trial_index(str(trial))], time.monotonic()
            recorded.seconds += now - began.get(recorded.index, now)
            began[recorded.index] = now
            if state != "running":
                began.pop(recorded.index, None)
            recorded.state = state
            store.save()

    return Recorder()
