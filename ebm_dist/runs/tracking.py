"""MLflow runs: one per training, over all its restarts; for a search a parent and its trials.

They are filled from the run's record on disk, never by the workers. Training neither waits for a
tracking server nor notices that it is down.

MLflow groups metrics by what is before a ``/`` in their name: ``train/energy_gap``,
``eval/ood/uniform.auroc``, ``system/...``, in a search ``search/...``. Up to version 0.1 the names
were ``energy_gap`` and ``eval.ood.uniform.auroc``: a run with these gets its metrics once more by
the present names.
"""

import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from ebm_dist.config import Params, Positive, section
from ebm_dist.errors import EbmError, RegistryError
from ebm_dist.files import flat
from ebm_dist.runs import snapshots
from ebm_dist.runs.background import call_every
from ebm_dist.runs.record import EVENTS, METRICS, read_lines, validations

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

RUN_TAG = "ebm.run_digest"
DIVERGED_TAG = "ebm.diverged_run_digest"
"""Replaces the run tag of a run that has metrics of a branch that a rollback has discarded."""
CHANGED_TAG = "ebm.changed_params"
"""Present values, as JSON, of parameters that have changed since they were logged."""
_STEP_TAG, _ROLLBACKS_TAG = "ebm.synced_train_step", "ebm.synced_rollbacks"
_STRIP_TAG, _STRIP = "ebm.synced_strip", "chains.png"
_VALIDATIONS_TAG = "ebm.synced_validations"
TRAIN = "train/"
"""Prefix of the metrics of the training"""
VALIDATION = "validation/"
"""Prefix of the scores of checkpoints"""
_NOT_METRICS = ("step", "time")
_ROWS_A_CALL, _METRICS_A_CALL = 40, 1000  # MLflow accepts at most 1,000 metrics per call
_PARAMS_A_CALL = 100  # MLflow's limit
_LONGEST_VALUE, _LONGEST_DIGEST = 6000, 36  # MLflow's limits
_SYSTEM_EVERY_S = 10.0


class Data(NamedTuple):
    """The data set of a run, logged as MLflow's dataset input."""

    name: str
    digest: str
    source: str


@section
class Config:
    experiment: str = "ebm-dist"
    """MLflow experiment of the runs."""
    poll_s: Positive = 3.0
    """Seconds between two reads of the record of a training run."""
    system_metrics: bool = True
    """Log CPU, memory, disk, network and GPU use of the driver's machine during training."""


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or SQLite in the working folder by default."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def client() -> "MlflowClient":
    """Return a client that gives up within seconds. MLflow is imported here: that takes seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def run_of(mlflow: "MlflowClient", params: Params, digest: str, name: str, data: Data) -> str:
    """Return the id of the run of this training; create the run if no run has its digest.

    Params and dataset that an interrupted call has not logged are logged.
    """
    values = flat({key: value for key, value in params.as_dict().items() if key != "tune"})
    temperature = getattr(params.sampler, "temperature", None)
    values |= {} if temperature is None else {"sampler.temperature": temperature}
    run_id = find_or_create_run(mlflow, params, digest, name, values, {})
    _log_data(mlflow, run_id, data)
    return run_id


def find_or_create_run(
    mlflow: "MlflowClient",
    params: Params,
    digest: str,
    name: str,
    values: Mapping[str, Any],
    tags: dict[str, str],
) -> str:
    """Return the id of the run with this digest, with all these values as params.

    A new run gets the tags. MLflow never changes a param, so values that differ from those logged
    are in the tag ``ebm.changed_params``. Raise :class:`RegistryError` for a deleted experiment.
    """
    experiment_id = _experiment(mlflow, params.tracking.experiment)
    runs = mlflow.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{digest}'", max_results=1)
    if runs:
        run = runs[0]
    else:
        run = mlflow.create_run(experiment_id, run_name=name, tags={RUN_TAG: digest, **tags})
        for diverged in mlflow.search_runs(
            [experiment_id], f"tags.`{DIVERGED_TAG}` = '{digest}'"
        ):  # shown below the run that replaces them
            mlflow.set_tag(diverged.info.run_id, "mlflow.parentRunId", run.info.run_id)
    _log_params(mlflow, run, values)
    return str(run.info.run_id)


def _experiment(mlflow: "MlflowClient", name: str) -> str:
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        return str(mlflow.create_experiment(name))
    if experiment.lifecycle_stage == "deleted":
        raise RegistryError(
            f"MLflow experiment {name!r} at {tracking_uri()} is deleted",
            f"restore it with 'mlflow experiments restore -x {experiment.experiment_id}', or name"
            " another one in tracking.experiment",
        )
    return str(experiment.experiment_id)


def _log_params(mlflow: "MlflowClient", run: "Run", values: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    texts = {key: str(value)[:_LONGEST_VALUE] for key, value in values.items()}
    logged = run.data.params
    missing = [Param(key, text) for key, text in texts.items() if key not in logged]
    for start in range(0, len(missing), _PARAMS_A_CALL):
        mlflow.log_batch(run.info.run_id, params=missing[start : start + _PARAMS_A_CALL])
    changed = {key: text for key, text in texts.items() if logged.get(key, text) != text}
    if changed or CHANGED_TAG in run.data.tags:
        mlflow.set_tag(run.info.run_id, CHANGED_TAG, json.dumps(changed, sort_keys=True))


def _log_data(mlflow: "MlflowClient", run_id: str, data: Data) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if mlflow.get_run(run_id).inputs.dataset_inputs:
        return
    source = json.dumps({"tags": {"mlflow.source.name": data.source}})
    dataset = Dataset(data.name, data.digest[:_LONGEST_DIGEST], "code", source)
    tags = [InputTag("mlflow.data.context", "training"), InputTag("ebm.data_digest", data.digest)]
    mlflow.log_inputs(run_id, [DatasetInput(dataset, tags)])


def sync(mlflow: "MlflowClient", run_id: str, run: Path) -> int:
    """Log the new rows of the record to MLflow and return their number. No step is logged twice."""
    from mlflow.entities import Metric

    last = float(mlflow.get_run(run_id).data.tags.get(_STEP_TAG, 0))
    rows = list(read_lines(run / METRICS))
    new_rows = [
        (before, row)
        for before, row in zip([None, *rows], rows, strict=False)
        if row["step"] > last
    ]
    for start in range(0, len(new_rows), _ROWS_A_CALL):
        block = new_rows[start : start + _ROWS_A_CALL]
        metrics = [
            Metric(TRAIN + key, value, int(row.get("time", 0) * 1000), int(row["step"]))
            for before, row in block
            for key, value in {**row, **_speed(before, row)}.items()
            if key not in _NOT_METRICS
        ]
        # after a crash between these two calls the block is logged again with the same keys,
        # times, steps and values, of which the store keeps one
        mlflow.log_batch(run_id, metrics=metrics)
        mlflow.set_tag(run_id, _STEP_TAG, str(int(block[-1][1]["step"])))
    _sync_validations(mlflow, run_id, run)
    _sync_strip(mlflow, run_id, run)
    return len(new_rows)


def _retire_if_diverged(mlflow: "MlflowClient", run_id: str, run: Path) -> bool:
    """Retire a run whose metrics include steps that a rollback has discarded.

    MLflow cannot delete metrics. The run therefore loses its digest and ends as FAILED, and the
    next :func:`run_of` creates the run of the branch that was kept. Return whether it was retired.
    """
    tags = mlflow.get_run(run_id).data.tags
    if RUN_TAG not in tags:  # retired by a call that was interrupted at its end
        return True
    known = int(tags.get(_ROLLBACKS_TAG, 0))
    rollbacks = [row for row in read_lines(run / EVENTS) if row.get("rollbacks", 0) > known]
    if not rollbacks:
        return False
    first_discarded = min(row["step"] for row in rollbacks)
    if float(tags.get(_STEP_TAG, 0)) <= first_discarded:
        count = max(row["rollbacks"] for row in rollbacks)
        mlflow.set_tag(run_id, _ROLLBACKS_TAG, str(count))
        return False
    mlflow.set_tag(run_id, DIVERGED_TAG, tags[RUN_TAG])
    mlflow.set_tag(run_id, "ebm.kept_up_to_step", str(first_discarded))
    mlflow.set_terminated(run_id, "FAILED")
    mlflow.delete_tag(run_id, RUN_TAG)
    return True


def _sync_validations(mlflow: "MlflowClient", run_id: str, run: Path) -> None:
    """Log scores of validated checkpoints if there are new ones; the store keeps one of each."""
    from mlflow.entities import Metric

    rows = validations(run)
    if len(rows) <= int(mlflow.get_run(run_id).data.tags.get(_VALIDATIONS_TAG, 0)):
        return
    metrics = [
        Metric(VALIDATION + key, value, int(row["time"] * 1000), int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key not in _NOT_METRICS
    ]
    for start in range(0, len(metrics), _METRICS_A_CALL):
        mlflow.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])
    mlflow.set_tag(run_id, _VALIDATIONS_TAG, str(len(rows)))


def _sync_strip(mlflow: "MlflowClient", run_id: str, run: Path) -> None:
    """Replace the picture of the chains over the training if there is a new checkpoint."""
    newest = max(snapshots.taken(run), default=-1)
    if newest > int(mlflow.get_run(run_id).data.tags.get(_STRIP_TAG, -1)):
        if strip := snapshots.strip(run):
            mlflow.log_image(run_id, Image.open(io.BytesIO(strip)), artifact_file=_STRIP)
        mlflow.set_tag(run_id, _STRIP_TAG, str(newest))


def _speed(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, float]:
    if (
        before is None
        or "seconds" not in row
        or row["seconds"] <= before.get("seconds", row["seconds"])
    ):
        return {}
    return {
        "steps_per_second": (row["step"] - before["step"]) / (row["seconds"] - before["seconds"])
    }


def sync_run(
    mlflow: "MlflowClient", params: Params, digest: str, name: str, data: Data, run: Path
) -> str:
    """Log the record of a run to its MLflow run and return the id of that run."""
    run_id = run_of(mlflow, params, digest, name, data)
    if _retire_if_diverged(mlflow, run_id, run):
        run_id = run_of(mlflow, params, digest, name, data)
        _retire_if_diverged(mlflow, run_id, run)  # a new run is not retired: this counts rollbacks
    sync(mlflow, run_id, run)
    return run_id


@contextmanager
def sync_while_running(
    params: Params, digest: str, name: str, data: Data, run: Path
) -> Iterator[None]:
    """Sync the record to MLflow while the block runs; warn once and retry if MLflow is down."""
    ids = list[str]()

    def bring(mlflow: "MlflowClient") -> None:
        if not ids or _retire_if_diverged(mlflow, ids[0], run):
            ids[:] = [run_of(mlflow, params, digest, name, data)]
            if mlflow.get_run(ids[0]).info.status != "RUNNING":
                mlflow.update_run(ids[0], status="RUNNING")
            _retire_if_diverged(mlflow, ids[0], run)
        sync(mlflow, ids[0], run)
        if params.tracking.system_metrics:
            log_system_metrics(mlflow, ids[0])

    log_system_metrics = _system_metrics(run)
    with keep_in_sync(bring, f"metrics are kept in {run / METRICS}", params.tracking.poll_s):
        yield


def _system_metrics(run: Path) -> Callable[["MlflowClient", str], None]:
    """Return a function that logs the use of this machine, at most every ten seconds."""
    monitors, logged_at = list[Any](), [-_SYSTEM_EVERY_S]

    def sample(monitor: Any) -> dict[str, float]:
        monitor.collect_metrics()
        values: dict[str, float] = monitor.aggregate_metrics()
        for part in monitor.monitors:
            part.clear_metrics()
        return values

    def log_sample(mlflow: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Metric
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not monitors:
            logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
            monitors.append(SystemMetricsMonitor(run_id, tracking_uri=tracking_uri()))
            sample(monitors[0])  # CPU use is measured from one sample to the next
        elif time.monotonic() - logged_at[0] >= _SYSTEM_EVERY_S:
            logged_at[0], now = time.monotonic(), int(time.time() * 1000)
            step = max((int(row["step"]) for row in read_lines(run / METRICS)), default=0)
            values = sample(monitors[0]).items()
            metrics = [Metric(f"system/{name}", value, now, step) for name, value in values]
            mlflow.log_batch(run_id, metrics=metrics)

    return log_sample


def keep_in_sync(
    bring: Callable[["MlflowClient"], None], where: str, poll_s: float
) -> AbstractContextManager[None]:
    """Call ``bring(client)`` every ``poll_s`` seconds while the block runs, and once at its end."""
    clients, is_away = list["MlflowClient"](), [False]

    def look() -> None:
        try:
            if not clients:
                clients.append(client())
            bring(clients[0])
            is_away[0] = False
        except Exception as failed:  # noqa: BLE001 (training continues whatever MLflow raises)
            if not is_away[0]:
                log.warning(
                    "MLflow at %s %s (%s); %s and are logged to it later",
                    tracking_uri(),
                    "refuses" if _is_refusal(failed) else "is away",
                    first_line(failed),
                    where,
                )
            is_away[0] = True

    return call_every(look, poll_s)


def open_run(
    params: Params, digest: str, name: str, data: Data, run: Path, *, attempts: int = 3
) -> tuple["MlflowClient", str]:
    """Return the client and the run of a finished training, with all its metrics.

    Raise :class:`RegistryError` if the server cannot be reached or refuses.
    """
    for attempt in range(attempts):
        try:
            mlflow = client()
            return mlflow, sync_run(mlflow, params, digest, name, data, run)
        except RegistryError:
            raise
        except Exception as failed:
            if _is_refusal(failed):
                raise RegistryError(
                    f"MLflow at {tracking_uri()} refused: {first_line(failed)}",
                    "see 'ebm-dist doctor', then run 'dvc repro register': nothing is lost",
                ) from failed
            error = failed
            time.sleep(2 * attempt)
    raise RegistryError(
        f"MLflow at {tracking_uri()} cannot be reached ({first_line(error)}); start it or unset"
        " MLFLOW_TRACKING_URI, then run 'dvc repro register': nothing is lost"
    )


def _is_refusal(error: Exception) -> bool:
    """Return whether an error is an answer of MLflow, so that the same call would fail again."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, EbmError) or (
        isinstance(error, MlflowException) and error.get_http_status_code() < 500
    )


def mlflow_name(key: str) -> str:
    """Return a name that MLflow accepts for a metric or tag.

    ``-E (before training)`` becomes ``-E before training``, ``energy + entropy`` becomes
    ``energy and entropy``; any other character that MLflow refuses becomes ``_``.
    """
    text = key.replace("(", "").replace(")", "").replace("+", "and")
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
