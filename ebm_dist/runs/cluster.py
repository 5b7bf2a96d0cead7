"""Training on Ray Train: the only file that knows it (the search, :mod:`ebm_dist.search.driver`, starts its trainings here).

Ray starts and restarts the workers. What a worker resumes from is our own checkpoints, because Ray may forget the newest one when a
worker is killed, and ties a checkpoint to the number of workers.

Without ``RAY_ADDRESS`` a cluster is started on this machine for the time of the training. With it (``ray job submit`` sets it) the
workers are on other machines, so data and run must lie where all can reach them: in the object store that ``EBM_STORE`` names.
"""

import fcntl
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ebm_dist import config, faults, storage
from ebm_dist.config import NonNegativeInt, Params, Positive, PositiveInt, section
from ebm_dist.errors import ClusterError, DivergedError, EbmError, Stopped
from ebm_dist.runs.record import STOP, FileReporter
from ebm_dist.training import checkpoint
from ebm_dist.training.reporter import Request, Row

_LOCK_WAIT_S = 10
_NAMESPACE = "ebm-dist"
_RESIZE_EVERY_S = 20.0
_PATIENCE_S = 5.0
# for glibc: keep freed memory. Each step of a chain allocates its activations anew, and pages from the kernel come zeroed
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_LOOK_EVERY_STEPS = 10  # for a preemption notice: the look is a barrier of all workers
_WATCHES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # Ray hands it on to the workers


@section
class Config:
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Training processes, or the fewest and most, [1, 4], to follow machines as they come and go. At most train.num_shards. The
    result does not depend on it, so it is in no digest."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for each worker."""
    use_gpu: bool = False
    """One GPU for each worker (NCCL), else CPUs (gloo)."""
    max_failures: NonNegativeInt = 3
    """How often Ray restarts the workers after one has died."""
    timeout_s: PositiveInt = 120
    """How long a worker may be silent before all are restarted, in seconds."""

    @property
    def fewest_and_most(self) -> tuple[int, int]:
        """Of ``workers``; the same twice where the number is fixed."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    def check(self, params: Params) -> None:
        fewest, most = self.fewest_and_most
        if fewest > most:
            raise config.Mismatch(
                "cluster.workers", f"the fewest come first, found [{fewest}, {most}]"
            )
        if most > params.train.num_shards:
            raise config.Mismatch(
                "cluster.workers",
                f"{most} workers cannot share train.num_shards = {params.train.num_shards} logical shards",
            )


class RayReporter(FileReporter):
    """Keeps the record, and tells Ray at each checkpoint, on every rank.

    Not oftener: a report waits until the controller has fetched the one before, which it does twice a second.
    """

    _num_asked, _is_warned = 0, False

    def metrics(self, row: Row, seconds: float) -> None:
        """With the watts that the GPU of rank 0 draws, where NVML tells: ``pip install 'ebm-dist[gpu]'``."""
        import torch

        with suppress(Exception):  # no GPU, no NVML, no leave to ask it
            row = row | {"watts": torch.cuda.power_draw() / 1000}
        super().metrics(row, seconds)

    def saved(self, row: Row) -> None:
        import ray.train

        super().saved(row)
        ray.train.report(row)

    def requested(self) -> Request:
        """Stop if the stop file is there; save once when a machine is about to be taken away."""
        import ray.train

        stops = self.stops()
        self._num_asked += 1
        watches = os.environ.get(_WATCHES) != "0"
        if (
            watches and not self._is_warned and self._num_asked % _LOOK_EVERY_STEPS == 0
        ):  # at the same steps on all ranks
            self._is_warned = ray.train.get_preemption_info() is not None
            if self._is_warned and not stops:
                return Request.SAVE
        return Request.STOP if stops else Request.NOTHING


def fit(params: Params, data: Path, run: Path, digest: str) -> None:
    """Train in the run's folder, from where it stands, to the end; at once if it is there already.

    SIGTERM and SIGINT lead to an agreed stop with a checkpoint, a second one to the end at once. Raises :class:`Stopped` after such
    a stop, :class:`ClusterError` where resources are missing or workers keep dying, and whatever error of ours a worker raised.
    """
    from ray.exceptions import RayActorError, RaySystemError, RpcError

    connect(params)
    try:
        with nullcontext() if address() == "local" else _lease(digest):
            if is_finished(run, digest, params.train.num_steps):
                return
            (run / STOP).unlink(missing_ok=True)
            with _stop_by_signal(run):
                step = train(params, data, run, digest)
    except (
        RayActorError,
        RaySystemError,
        RpcError,
    ) as lost:  # SIGTERM to the whole process group ends Ray too
        reason = str(lost).strip().splitlines() or [type(lost).__name__]
        raise ClusterError(
            f"lost the Ray cluster: {reason[0]}; run the same command again to go on"
        ) from None
    finally:
        disconnect()
    if step < params.train.num_steps:
        raise Stopped(
            f"stopped at step {step} of {params.train.num_steps}; run the same command again to go on"
        )


def train(
    params: Params,
    data: Path,
    run: Path,
    digest: str,
    reporter: Callable[..., FileReporter] = RayReporter,
    resource_tag: int | None = None,
) -> int:
    """The training job on the cluster that this process is connected to; returns the step reached.

    ``reporter(run, rank, facts)`` is made on each rank. ``resource_tag``: bytes of memory to reserve for each worker, by which :func:`free`
    knows the job. Raises :class:`DivergedError`, :class:`ClusterError` where workers keep
    dying, and whatever error of ours a worker raised.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster: Config = params.cluster
    fewest, most = cluster.fewest_and_most
    path, filesystem = ray_storage(run)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "params": params.as_dict(),
            "data": str(data.absolute()),
            "run": str(run.absolute()),
            "digest": digest,
            "reporter": reporter,
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
        ),
    )
    try:
        outcome: Any = trainer.fit().return_value
    except ray.train.TrainingFailedError as failed:
        raise _our_error(failed) from None
    if outcome["error"]:
        raise DivergedError(outcome["error"])
    return int(outcome["step"])


def address() -> str:
    """Of the Ray cluster; ``local`` for one of our own on this machine."""
    return os.environ.get("RAY_ADDRESS", "local")


def free(resource_tags: Container[int]) -> None:
    """Take back what jobs with these tags hold, and end their workers.

    Ray does so itself when a job's driver ends, but not when a trial does, unless its dashboard can be asked whether that is alive.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, group in placement_group_table().items():
        held = {int(bundle.get("memory", 0)) for bundle in group["bundles"].values()}
        if group["state"] != "REMOVED" and any(tag in resource_tags for tag in held):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def disconnect() -> None:
    """Leave the cluster, and end it if it was started here.

    Now and then Ray's own processes hang on their way out; what is still there some seconds later is killed.
    """
    import ray

    workers = _workers()
    ray.shutdown()
    for left in psutil.wait_procs(workers, timeout=_PATIENCE_S)[1]:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def _workers() -> list[psutil.Process]:
    """The processes that do the work of a cluster that was started here."""
    with suppress(psutil.NoSuchProcess):
        nodes = [child for child in psutil.Process().children() if child.name() == "raylet"]
        return [worker for node in nodes for worker in node.children(recursive=True)]
    return []


def connect(
    params: Params, num_cpus: int | None = None, resources: dict[str, float] | None = None
) -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, else start one here; raises :class:`ClusterError` if it is too small.

    A cluster here has as many CPUs as the workers ask for, or the given number, and the given resources of other kinds. With those,
    that is for a search, it has a dashboard too: watchers of Ray's ask it whether what they watch is gone, and go themselves.
    """
    cluster: Config = params.cluster
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # silences a warning on machines without GPUs
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(cluster.timeout_s))
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
    )  # each checkpoint waits for the controller's next look
    where, own = address(), dict[str, Any]()
    if where == "local":
        # SIGTERM to all ends the cluster's head first, for which the others would wait a minute
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
        # what is sent all the time and read by nobody; and a look for machines that are taken away, which are these
        for name in (
            "RAY_enable_metrics_collection",
            "RAY_task_events_report_interval_ms",
            _WATCHES,
        ):
            os.environ.setdefault(name, "0")
    import ray

    if where == "local":
        cpus, (fewest, most) = len(os.sched_getaffinity(0)), cluster.fewest_and_most
        _check_resources(cluster, {"CPU": float(cpus)} | (_gpus() if cluster.use_gpu else {}))
        wanted = math.ceil(
            max(fewest * cluster.cpus_per_worker, min(most * cluster.cpus_per_worker, cpus))
        )
        own = {
            "num_cpus": num_cpus or wanted,
            "include_dashboard": bool(resources),
            "object_store_memory": 200 << 20,
            "resources": resources,
        }
    own_env = {
        name: str(params.train.num_threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    own_env |= _KEEP_MEMORY
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(where, namespace=_NAMESPACE, runtime_env={"env_vars": own_env}, **quiet, **own)
    if where != "local":
        try:
            _check_resources(cluster, ray.cluster_resources())
        except ClusterError:
            ray.shutdown()
            raise


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    """One rank of the job."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ebm_dist.data import shards
    from ebm_dist.training import trainer
    from ebm_dist.training.reduce import TorchComm

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
    }
    own = trainer.build(params, shards.read_index(data), TorchComm(device), device, job["digest"])
    try:
        step = own.fit(run, job["reporter"](run, context.get_world_rank(), facts))
    except DivergedError as error:  # all ranks together; doing it again would end in the same way, so Ray is not to retry
        return {"step": own.step, "error": str(error)}
    return {"step": step, "error": None}


@contextmanager
def exclusive_lock(run: Path, digest: str) -> Iterator[None]:
    """Hold the run on this machine, so that two commands do not train the same thing at once; raises :class:`ClusterError`.

    A held lock is waited for a little: workers of a driver that was just killed may live for some seconds. On a cluster
    commands wait for each other there instead, see :func:`_lease`.
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
    with path.open("w") as lock:
        for attempt in range(_LOCK_WAIT_S):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _LOCK_WAIT_S - 1:
                    raise ClusterError(
                        f"{run}: this very training is running already; wait for it or stop it"
                    ) from None
                time.sleep(1)
        yield


@contextmanager
def _lease(digest: str) -> Iterator[None]:
    """Hold this training on the whole cluster: an actor of its name, which goes when its driver does. Waits for another's end."""
    import ray

    class Lease:
        def ping(self) -> None:
            pass

    said = False
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
            if not said:
                print(
                    "this very training is running already on the cluster; waiting for it",
                    file=sys.stderr,
                    flush=True,
                )
            said = True
            time.sleep(2)
    try:
        yield
    finally:
        ray.kill(lease)


@contextmanager
def _stop_by_signal(run: Path) -> Iterator[None]:
    """SIGTERM and SIGINT ask the workers to stop together; after the first, they do again what they did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: FrameType | None) -> None:
        restore()
        storage.write_whole(run / STOP, b"")
        print(
            "stopping at the next step, with a checkpoint; once more to end at once",
            file=sys.stderr,
            flush=True,
        )

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


def ray_storage(run: Path) -> tuple[str, Any]:
    """Where Ray keeps its own notes: beside the runs, as a path and, for an object store, a file system of Arrow's."""
    folder = run.parent / "ray"
    if storage.is_local(folder):
        return str(folder.absolute()), None
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # type: ignore[import-untyped]

    return folder.path, PyFileSystem(FSSpecHandler(folder.fs))  # type: ignore[attr-defined]


def is_finished(run: Path, digest: str, num_steps: int) -> bool:
    """Whether the run's latest checkpoint is its last, so that nothing is left to train."""
    folder = checkpoint.latest(run, digest)
    return folder is not None and checkpoint.verify(folder, digest) >= num_steps


def _gpus() -> dict[str, float]:
    import torch

    return {"GPU": float(torch.cuda.device_count())}


def _check_resources(cluster: Config, available: dict[str, float]) -> None:
    fewest, _ = cluster.fewest_and_most
    asked = {"CPU": fewest * cluster.cpus_per_worker} | (
        {"GPU": float(fewest)} if cluster.use_gpu else {}
    )
    for kind, amount in asked.items():
        if amount > available.get(kind, 0.0):
            key = "use_gpu" if kind == "GPU" else "cpus_per_worker"
            raise ClusterError(
                f"cluster.workers = {cluster.workers}: {fewest} workers need {amount:g} {kind}s, {available.get(kind, 0.0):g} are"
                f" there: lower cluster.workers (the result stays the same) or cluster.{key}"
            )


def _our_error(failed: Exception) -> EbmError:
    """The error of ours that a worker raised, or a :class:`ClusterError` that says how the workers ended."""
    for rank, failure in getattr(failed, "worker_failures", {}).items():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, EbmError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        return ClusterError(
            f"worker {rank} failed: {lines[-1] if lines else type(failure).__name__}; run the same command again to go on from the"
            " last checkpoint"
        )
    return ClusterError(
        f"the training job failed: {failed}; run the same command again to go on from the last checkpoint"
    )
