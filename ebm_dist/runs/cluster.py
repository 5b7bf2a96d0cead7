"""Training on Ray Train. The search (:mod:`ebm_dist.search.driver`) starts its trainings here.

Ray starts and restarts the workers. A worker resumes from the project's own checkpoints: Ray may
lose its newest checkpoint when a worker is killed, and ties a checkpoint to the number of workers.

Without ``RAY_ADDRESS`` a cluster is started on this machine for the duration of the training. With
it (``ray job submit`` sets it) the workers run on other machines, so data and run must be in the
object store that ``EBM_STORE`` names.
"""

import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
from filelock import FileLock, Timeout

from ebm_dist import config, faults, storage
from ebm_dist.config import NonNegativeInt, Params, Positive, PositiveInt, section
from ebm_dist.errors import CheckpointError, ClusterError, DivergedError, EbmError, Stopped, reason
from ebm_dist.runs import code, lineage, provenance
from ebm_dist.runs.record import STOP, FileReporter
from ebm_dist.training import checkpoint, state, trainer
from ebm_dist.training.reduce import Comm, TorchComm
from ebm_dist.training.reporter import Request, Row

T = TypeVar("T")
R = TypeVar("R")
_LOCK_WAIT_S = 9
_NAMESPACE = "ebm-dist"
_RESIZE_EVERY_S = 20.0
# glibc keeps freed memory: each step of a chain allocates its activations, and the kernel zeroes
# each new page
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_LOOK_EVERY_STEPS = 10  # between checks for a preemption notice: each is a barrier of all workers
_WATCHES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # Ray passes it to the workers


@section
class Config:
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Training processes, or [fewest, most], such as [1, 4], to follow machines that join and
    leave. At most train.num_shards. The result does not depend on it, so no digest has it."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for each worker."""
    use_gpu: bool = False
    """One GPU for each worker (NCCL), else CPUs (gloo)."""
    max_failures: NonNegativeInt = 3
    """How often Ray restarts the workers after a worker has died."""
    timeout_s: PositiveInt = 120
    """Seconds without a sign of life from a worker after which all workers are restarted."""

    @property
    def fewest_and_most(self) -> tuple[int, int]:
        """Return both ends of ``workers``; they are equal if the number is fixed."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    def check(self, params: Params) -> None:
        fewest, most = self.fewest_and_most
        if fewest > most:
            raise config.Mismatch(
                "cluster.workers", f"expected [fewest, most], found [{fewest}, {most}]"
            )
        if most > params.train.num_shards:
            raise config.Mismatch(
                "cluster.workers",
                f"{most} workers cannot share train.num_shards = {params.train.num_shards} logical"
                " shards",
            )


class RayReporter(FileReporter):
    """Write the record, and report to Ray at each checkpoint, on every rank.

    Reports are limited to checkpoints because a report waits until the controller has fetched the
    previous one, and the controller polls twice per second.
    """

    _num_requests, _is_warned = 0, False
    validate_every, job = 0, dict[str, Any]()

    def metrics(self, row: Row, seconds: float) -> None:
        """Add the power draw of rank 0's GPU in watts, if NVML is there (``ebm-dist[gpu]``)."""
        import torch

        with suppress(Exception):  # no GPU, no NVML, or no permission to read it
            row = row | {"watts": torch.cuda.power_draw() / 1000}
        super().metrics(row, seconds)

    def saved(self, row: Row) -> None:
        import ray.train

        super().saved(row)
        ray.train.report(row, **self._validation())

    def _validation(self) -> dict[str, Any]:
        """Return what asks Ray to validate the newest checkpoint: a copy, since old ones go."""
        import ray.train

        if self.rank or not self.validate_every:
            return {}
        step, folder = max(checkpoint.whole(self.run).items())
        if step % self.validate_every:
            return {}
        copy = Path(tempfile.mkdtemp())
        for file in folder.iterdir():
            (copy / file.name).write_bytes(storage.read_bytes(file))
        return {
            "checkpoint": ray.train.Checkpoint.from_directory(copy),
            "delete_local_checkpoint_after_upload": True,
            "validation": ray.train.ValidationTaskConfig(fn_kwargs={"step": step, "job": self.job}),
        }

    def requested(self) -> Request:
        """Return STOP if the stop file exists, SAVE once if a machine is about to be preempted."""
        import ray.train

        stops = self.stops()
        self._num_requests += 1
        watches = os.environ.get(_WATCHES) != "0"
        is_due = self._num_requests % _LOOK_EVERY_STEPS == 0  # at the same steps on all ranks
        if watches and not self._is_warned and is_due:
            self._is_warned = ray.train.get_preemption_info() is not None
            if self._is_warned and not stops:
                return Request.SAVE
        return Request.STOP if stops else Request.NOTHING


def fit(
    params: Params,
    data: Path,
    run: Path,
    digest: str,
    validate: Callable[..., dict[str, float]] | None = None,
) -> None:
    """Train in the run's folder from its latest checkpoint to the end; return at once if finished.

    ``validate(checkpoint, step, job)`` scores a checkpoint where ``train.validate_every`` says so.
    SIGTERM and SIGINT request a stop with a checkpoint; a second signal ends the process at once.
    Raise :class:`Stopped` after such a stop, :class:`ClusterError` where resources are missing or
    workers keep dying, :class:`CodeChangedError`, and any :class:`EbmError` that a worker raised.
    """
    from ray.exceptions import RayActorError, RaySystemError, RpcError

    start(params.cluster, params.train.num_threads, num_spare=bool(params.train.validate_every))
    try:
        with nullcontext() if address() == "local" else _lease(digest):
            if is_finished(run, digest, params.train):
                return
            (run / STOP).unlink(missing_ok=True)
            with stop_by_signal(run) as signals:
                step = _in_thread(lambda: train(params, data, run, digest, validate=validate))
    except (RayActorError, RaySystemError, RpcError) as lost:
        # SIGTERM to the whole process group ends Ray too
        reason = str(lost).strip().splitlines() or [type(lost).__name__]
        raise ClusterError(
            f"lost the Ray cluster: {reason[0]}; run the same command again to resume"
        ) from None
    finally:
        disconnect()
    if step < params.train.num_steps:
        raise Stopped(
            f"stopped at step {step} of {params.train.num_steps}; run the same command again to"
            " resume",
            signal=signals[0] if signals else signal.SIGTERM,
        )


def _in_thread(call: Callable[[], int]) -> int:
    """Return what a call returns that a thread makes.

    In the main thread Ray Train would replace the handler of Ctrl-C by one that aborts the job.
    """
    outcome: Future[int] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as failed:  # noqa: BLE001 (raised again by the main thread)
            outcome.set_exception(failed)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


def train(
    params: Params,
    data: Path,
    run: Path,
    digest: str,
    reporter: Callable[..., FileReporter] = RayReporter,
    resource_tag: int | None = None,
    validate: Callable[..., dict[str, float]] | None = None,
) -> int:
    """Run the training job on the connected cluster and return the step reached.

    ``validate``: as in :func:`fit`.
    ``reporter(run, rank, facts)`` is called on each rank. ``resource_tag`` is a number of bytes of
    memory to reserve for each worker, by which :func:`free` recognises the job. Raise
    :class:`DivergedError`, :class:`CodeChangedError` where a worker starts on other code than this
    process, :class:`ClusterError` where workers keep dying, and any :class:`EbmError` that a worker
    raised.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster: Config = params.cluster
    fewest, most = cluster.fewest_and_most
    path, filesystem = ray_storage(run)
    validates = validate is not None and params.train.validate_every > 0
    job = TorchTrainer(
        _worker,
        train_loop_config={
            "params": params.as_dict(),
            "data": str(data.absolute()),
            "run": str(run.absolute()),
            "digest": digest,
            "code": code.train_digest(params),
            "reporter": reporter,
            "validates": validates,
        },
        torch_config=TorchConfig(
            backend="nccl" if cluster.use_gpu else "gloo", timeout_s=cluster.timeout_s
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": 1} if cluster.use_gpu else {})
            | ({} if resource_tag is None else {"memory": resource_tag}),
        ),
        run_config=ray.train.RunConfig(
            name=digest,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2 if validates else None),
        ),
        validation_config=ray.train.ValidationConfig(validate, ray_remote_kwargs={"num_cpus": 1})
        if validates
        else None,
    )
    try:
        outcome: Any = job.fit().return_value
    except ray.train.TrainingFailedError as failed:
        raise _our_error(failed) from None
    if outcome["error"]:
        raise outcome["error"]
    return int(outcome["step"])


def address() -> str:
    """Return the address of the Ray cluster; ``local`` for one that is started on this machine."""
    return os.environ.get("RAY_ADDRESS", "local")


def free(resource_tags: Container[int]) -> None:
    """Release the resources of jobs with these tags, and end their workers.

    Ray does so when a job's driver ends. When a trial ends it needs the dashboard to find out.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, group in placement_group_table().items():
        held = {int(bundle.get("memory", 0)) for bundle in group["bundles"].values()}
        if group["state"] != "REMOVED" and any(tag in resource_tags for tag in held):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def disconnect() -> None:
    """Disconnect from the cluster, and end it if it was started here.

    Its workers are killed, because they notice the end only after seconds, and sometimes hang. All
    that is to be kept is in the record by then.
    """
    import ray

    workers = _workers()
    ray.shutdown()
    for process in workers:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _workers() -> list[psutil.Process]:
    """Return the worker processes of a cluster that was started here."""
    with suppress(psutil.NoSuchProcess):
        nodes = [child for child in psutil.Process().children() if child.name() == "raylet"]
        return [worker for node in nodes for worker in node.children(recursive=True)]
    return []


def connect(
    params: Params, num_cpus: int | None = None, resources: dict[str, float] | None = None
) -> None:
    """Connect to the cluster of a parameter file; see :func:`start`."""
    start(params.cluster, params.train.num_threads, num_cpus, resources)


def start(
    cluster: Config,
    num_threads: int,
    num_cpus: int | None = None,
    resources: dict[str, float] | None = None,
    num_spare: int = 0,
) -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start one on this machine.

    It must have ``num_spare`` CPUs beside those of the workers. Workers have ``num_threads``
    threads. A cluster that is started has ``num_cpus`` CPUs (default: as many as the workers need)
    and the given ``resources`` of other kinds. With ``resources``, that is for a search, it has a
    dashboard: Ray's watchers ask it whether the process they watch has ended, and then end too.
    Raise :class:`ClusterError` if the cluster is too small.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # silences a warning on machines without GPUs
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(cluster.timeout_s))
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    # each checkpoint waits for the controller's next health check
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    where, local_options = address(), dict[str, Any]()
    if where == "local":
        # SIGTERM to all processes ends the cluster's head first; the others would wait a minute
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
        # reports that nobody reads, processes that nobody uses (those of the workers have another
        # environment), and the preemption watcher, which is useless on one machine
        for name in (
            "RAY_prestart_worker_first_driver",
            "RAY_enable_metrics_collection",
            "RAY_task_events_report_interval_ms",
            _WATCHES,
        ):
            os.environ.setdefault(name, "0")
    import ray

    if where == "local":
        cpus, (fewest, most) = len(os.sched_getaffinity(0)), cluster.fewest_and_most
        at_hand = {"CPU": float(cpus)} | (_gpus() if cluster.use_gpu else {})
        _check_resources(cluster, at_hand, num_spare)
        default_cpus = math.ceil(
            max(
                fewest * cluster.cpus_per_worker + num_spare,
                min(most * cluster.cpus_per_worker + num_spare, cpus),
            )
        )
        local_options = {
            "num_cpus": num_cpus or default_cpus,
            "include_dashboard": bool(resources),
            "object_store_memory": 200 << 20,
            "resources": resources,
        }
    environment = {
        name: str(num_threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    } | _KEEP_MEMORY
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    handlers = _handlers()
    ray.init(
        where,
        namespace=_NAMESPACE,
        runtime_env={"env_vars": environment},
        **quiet,
        **local_options,
    )
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has set its own
    if where != "local":
        try:
            _check_resources(cluster, ray.cluster_resources(), num_spare)
        except ClusterError:
            ray.shutdown()
            raise


def each(work: Callable[[T], R], items: Sequence[T], num_workers: int) -> Iterator[R]:
    """Yield ``work(item)`` for each item, as they end, from processes of one thread.

    ``work`` is a function of a module. Connects to a cluster, and disconnects at the end. Raise
    :class:`ClusterError` where a process keeps dying, and what ``work`` raises.
    """
    if not items:
        return
    import ray

    start(Config(workers=num_workers), 1)
    try:
        task = ray.remote(num_cpus=1)(work)
        waiting = [task.remote(item) for item in items]
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as failed:
                raise failed.cause from None
            except ray.exceptions.RayError as failed:
                raise ClusterError(f"a task ended without a result ({reason(failed)})") from None
    finally:
        disconnect()


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of the job."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ebm_dist.data import shards

    params, device, context = (
        config.from_values(job["params"], Path("job")),
        get_device(),
        ray.train.get_context(),
    )
    torch.set_num_threads(params.train.num_threads)
    faults.arm_from_environment(context.get_world_rank())
    run, data = storage.location(job["run"]), storage.location(job["data"])
    facts = {
        "world_size": context.get_world_size(),
        "ray_job": ray.get_runtime_context().get_job_id(),
        "versions": provenance.versions(),
        "device": lineage.device_name(device.type),
    }
    index, comm = shards.read_index(data), TorchComm(device)
    rank_trainer = trainer.build(params, index, comm, device, job["digest"])
    # all ranks return these errors together: Ray must not retry what would fail again
    if is_code_changed(params, job["code"], comm):
        return {"step": 0, "error": code.changed(run)}
    reporter = job["reporter"](run, context.get_world_rank(), facts)
    if job["validates"]:
        reporter.validate_every, reporter.job = (
            params.train.validate_every,
            {key: job[key] for key in ("params", "data", "run", "digest")},
        )
    try:
        step = rank_trainer.fit(run, reporter)
    except DivergedError as error:
        return {"step": rank_trainer.step, "error": error}
    return {"step": step, "error": None}


def is_code_changed(params: Params, digest: str, comm: Comm, root: Path = code.ROOT) -> bool:
    """Return whether any rank has other code than that of a digest; all ranks return the same."""
    return bool(comm.agree(code.train_digest(params, root) != digest))


@contextmanager
def exclusive_lock(run: Path, digest: str) -> Iterator[None]:
    """Lock the run on this machine while the block runs, so that no two commands train it at once.

    The lock is waited for briefly: workers of a driver that was just killed may live for some
    seconds. On a cluster commands wait for each other there instead, see :func:`_lease`. Raise
    :class:`ClusterError` if another command holds the lock.
    """
    if address() != "local":
        yield
        return
    path = (
        run / "lock"
        if storage.is_local(run)
        else Path(tempfile.gettempdir()) / f"ebm-dist-{digest[:16]}.lock"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=_LOCK_WAIT_S, poll_interval=1.0)
    except Timeout:
        raise ClusterError(
            f"{run}: this very training is running already; wait for it or stop it"
        ) from None
    except OSError as refused:
        raise ClusterError(
            f"{path}: cannot be locked ({refused.strerror}): expected a file of this user, not a"
            " link",
            "remove it and run again",
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lease(digest: str) -> Iterator[None]:
    """Hold this training on the whole cluster while the block runs; wait for another holder to end.

    The lease is a named actor, which ends with its driver.
    """
    import ray

    class Lease:
        def ping(self) -> None:
            pass

    is_announced = False
    while True:
        try:
            lease = (
                ray.remote(num_cpus=0)(Lease)
                .options(name=f"lease-{digest}", namespace=_NAMESPACE)
                .remote()
            )
            ray.get(lease.ping.remote())
            break
        except ValueError:  # the name is taken
            if not is_announced:
                print(
                    "this very training is running already on the cluster; waiting for it",
                    file=sys.stderr,
                    flush=True,
                )
            is_announced = True
            time.sleep(2)
    try:
        yield
    finally:
        ray.kill(lease)


@contextmanager
def stop_by_signal(run: Path) -> Iterator[list[int]]:
    """Turn SIGTERM and SIGINT into a stop request to all workers, once.

    Yield the list of the signals received. The first one restores the earlier handlers.
    """
    received = list[int]()
    before = _handlers()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, _frame: FrameType | None) -> None:
        restore()
        received.append(number)
        storage.write_whole(run / STOP, b"")
        print(
            "stopping at the next step, with a checkpoint; send the signal again to end at once",
            file=sys.stderr,
            flush=True,
        )

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield received
    finally:
        restore()


def ray_storage(run: Path) -> tuple[str, Any]:
    """Return where Ray keeps its own state: a path next to the runs, and a file system.

    The file system is None on a disk, and an Arrow file system for an object store.
    """
    folder = run.parent / "ray"
    if storage.is_local(folder):
        return str(folder.absolute()), None
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # type: ignore[import-untyped]

    return folder.path, PyFileSystem(FSSpecHandler(folder.fs))  # type: ignore[attr-defined]


def is_finished(run: Path, digest: str, config: trainer.Config) -> bool:
    """Return whether the run's latest checkpoint is its last, so that nothing is left to train.

    Raise :class:`CheckpointError` if the run has rolled back more often than ``max_rollbacks``
    allows, which is no part of the digest: from the beginning it would diverge.
    """
    folder = checkpoint.latest(run, digest)
    if folder is None:
        return False
    rollbacks = state.read_progress(folder).rollbacks
    if rollbacks > config.max_rollbacks:
        raise CheckpointError(
            f"{run}: has rolled back {rollbacks} times, train.max_rollbacks ="
            f" {config.max_rollbacks}",
            f"set train.max_rollbacks to {rollbacks} or more, or remove {run} to start again",
        )
    return checkpoint.verify(folder, digest) >= config.num_steps


def _gpus() -> dict[str, float]:
    import torch

    return {"GPU": float(torch.cuda.device_count())}


def _check_resources(cluster: Config, available: dict[str, float], num_spare: int) -> None:
    fewest, _ = cluster.fewest_and_most
    if num_spare and fewest * cluster.cpus_per_worker + num_spare > available.get("CPU", 0.0):
        raise ClusterError(
            f"train.validate_every: needs {num_spare} CPU beside those of {fewest} workers,"
            f" {available.get('CPU', 0.0):g} are there",
            "set it to 0, or cluster.workers to fewer (the result stays the same)",
        )
    required = {"CPU": fewest * cluster.cpus_per_worker} | (
        {"GPU": float(fewest)} if cluster.use_gpu else {}
    )
    for kind, amount in required.items():
        if amount > available.get(kind, 0.0):
            key = "use_gpu" if kind == "GPU" else "cpus_per_worker"
            raise ClusterError(
                f"cluster.workers = {cluster.workers}: {fewest} workers need {amount:g} {kind}s,"
                f" {available.get(kind, 0.0):g} are there: lower cluster.workers (the result stays"
                f" the same) or cluster.{key}"
            )


def _our_error(failed: Exception) -> EbmError:
    """Return the :class:`EbmError` that a worker raised, else a :class:`ClusterError`."""
    for rank, failure in getattr(failed, "worker_failures", {}).items():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, EbmError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        return ClusterError(
            f"worker {rank} failed: {lines[-1] if lines else type(failure).__name__};"
            " run the same command again to resume from the last checkpoint"
        )
    return ClusterError(
        f"the training job failed: {failed}; run the same command again to resume from the last"
        " checkpoint"
    )
