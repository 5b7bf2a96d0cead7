"""Training on Ray Train: the only file that knows it.

Ray starts and restarts the workers. What a worker resumes from is our own checkpoints, because Ray may forget the newest one when a
worker is killed, and ties a checkpoint to the number of workers.
"""

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebm_dist import checkpoint, config
from ebm_dist.config import Count, Index, Params, Positive, section
from ebm_dist.errors import ClusterError, EbmError, NonFiniteError
from ebm_dist.reporting import STOP, FileReporter
from ebm_dist.trainer import Row

_LOCK_WAIT_S = 10


@section
class Config:
    workers: Count = 2
    """Training processes. The result does not depend on it, so it is in no digest; at most train.num_shards."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for each worker."""
    use_gpu: bool = False
    """One GPU for each worker (NCCL), else CPUs (gloo)."""
    max_failures: Index = 3
    """How often Ray restarts the workers after one has died."""
    timeout_s: Count = 120
    """How long a collective may take before the workers are restarted, in seconds."""

    def check(self, params: Params) -> None:
        if self.workers > params.train.num_shards:
            raise config.Mismatch(
                "cluster.workers",
                f"{self.workers} workers cannot share train.num_shards = {params.train.num_shards} logical shards",
            )


class RayReporter(FileReporter):
    """Keeps the record, and tells Ray at each checkpoint, on every rank.

    Not oftener: a report waits until the controller has fetched the one before, which it does every two seconds.
    """

    def saved(self, row: Row) -> None:
        import ray.train

        ray.train.report(row)


def fit(params: Params, data: Path, run: Path, digest: str) -> int:
    """Train in the run's folder, from where it stands, and return the step reached.

    Uses the cluster that ``RAY_ADDRESS`` names, else starts one on this machine and ends it afterwards. Raises
    :class:`ClusterError` where resources are missing or workers keep dying, and whatever error of ours a worker raised.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning on machines without GPUs
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster: Config = params.cluster
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        _check_resources(cluster, {"CPU": float(len(os.sched_getaffinity(0)))} | ({} if not cluster.use_gpu else _gpus()))
    threads = {name: str(params.train.num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    local: dict[str, Any] = {"num_cpus": math.ceil(cluster.workers * cluster.cpus_per_worker), "include_dashboard": False}
    ray.init(
        address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": threads},
        **({"object_store_memory": 200 << 20} | local if address == "local" else {}),
    )
    try:
        if address != "local":
            _check_resources(cluster, ray.cluster_resources())
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "params": params.as_dict(),
                "data": str(data.resolve()),
                "run": str(run.resolve()),
                "digest": digest,
            },
            torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=cluster.timeout_s),
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                name=digest,
                storage_path=str((run.parent / "ray").resolve()),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        outcome: Any = trainer.fit().return_value
    except ray.train.TrainingFailedError as failed:
        raise _our_error(failed) from None
    finally:
        ray.shutdown()
    if outcome["error"]:
        raise NonFiniteError(outcome["error"])
    return int(outcome["step"])


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    """One rank of the job."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ebm_dist import shards, trainer
    from ebm_dist.comm import TorchComm

    params, device, context = config.from_values(job["params"], Path("job")), get_device(), ray.train.get_context()
    torch.set_num_threads(params.train.num_threads)
    run = Path(job["run"])
    facts = {"world_size": context.get_world_size(), "ray_job": ray.get_runtime_context().get_job_id()}
    own = trainer.build(params, shards.read_index(Path(job["data"])), TorchComm(device), device, job["digest"])
    try:
        step = own.fit(run, RayReporter(run, context.get_world_rank(), facts))
    except NonFiniteError as error:  # all ranks together; doing it again would end in the same way, so Ray is not to retry
        return {"step": own.step, "error": str(error)}
    return {"step": step, "error": None}


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold the run's folder, so that two commands do not train the same thing at once. Raises :class:`ClusterError` if it is held.

    A held lock is waited for a little: workers of a driver that was just killed may live for some seconds.
    """
    run.mkdir(parents=True, exist_ok=True)
    (run / STOP).unlink(missing_ok=True)
    with (run / "lock").open("w") as lock:
        for attempt in range(_LOCK_WAIT_S):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _LOCK_WAIT_S - 1:
                    raise ClusterError(f"{run}: this very training is running already; wait for it or stop it") from None
                time.sleep(1)
        yield


def is_finished(run: Path, digest: str, num_steps: int) -> bool:
    """Whether the run's latest checkpoint is its last, so that nothing is left to train."""
    folder = checkpoint.latest(run, digest)
    return folder is not None and checkpoint.verify(folder, digest) >= num_steps


def _gpus() -> dict[str, float]:
    import torch

    return {"GPU": float(torch.cuda.device_count())}


def _check_resources(cluster: Config, available: dict[str, float]) -> None:
    asked = {"CPU": cluster.workers * cluster.cpus_per_worker} | ({"GPU": float(cluster.workers)} if cluster.use_gpu else {})
    for kind, amount in asked.items():
        if amount > available.get(kind, 0.0):
            raise ClusterError(
                f"cluster.workers = {cluster.workers} workers need {amount:g} {kind}s, {available.get(kind, 0.0):g} are there:"
                f" lower cluster.workers (the result stays the same) or cluster.{'use_gpu' if kind == 'GPU' else 'cpus_per_worker'}"
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
    return ClusterError(f"the training job failed: {failed}; run the same command again to go on from the last checkpoint")
