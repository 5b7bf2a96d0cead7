"""MLflow runs: one per training, over all its restarts; for a search a parent and its trials.

They are filled from the run's record on disk, never by the workers. Training neither waits for a
tracking server nor notices that it is down.
"""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ebm_dist.config import Params, Positive, section
from ebm_dist.errors import RegistryError
from ebm_dist.files import flat
from ebm_dist.runs import snapshots
from ebm_dist.runs.background import call_every
from ebm_dist.runs.record import METRICS, read_lines
from ebm_dist.storage import read_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

RUN_TAG = "ebm.run_digest"
_NOT_METRICS = ("step", "time")
_ROWS_A_CALL = 40  # MLflow accepts at most 1,000 metrics per call


@section
class Config:
    experiment: str = "ebm-dist"
    """MLflow experiment of the runs."""
    poll_s: Positive = 3.0
    """Seconds between two reads of the record of a training run."""


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


def run_of(mlflow: "MlflowClient", params: Params, digest: str, name: str) -> str:
    """Return the id of the run of this training; create the run if no run has its digest."""
    values = flat({key: value for key, value in params.as_dict().items() if key != "tune"})
    temperature = getattr(params.sampler, "temperature", None)
    return find_or_create_run(
        mlflow,
        params,
        digest,
        name,
        values | ({} if temperature is None else {"sampler.temperature": temperature}),
        {},
    )


def find_or_create_run(
    mlflow: "MlflowClient",
    params: Params,
    digest: str,
    name: str,
    values: Mapping[str, Any],
    tags: dict[str, str],
) -> str:
    """Return the id of the run with this digest; if new, create it with these values and tags."""
    experiment = mlflow.get_experiment_by_name(params.tracking.experiment)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else mlflow.create_experiment(params.tracking.experiment)
    )
    runs = mlflow.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{digest}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    run = mlflow.create_run(experiment_id, run_name=name, tags={RUN_TAG: digest, **tags})
    for key, value in values.items():
        mlflow.log_param(run.info.run_id, key, str(value)[:6000])
    return str(run.info.run_id)


def sync(mlflow: "MlflowClient", run_id: str, run: Path) -> int:
    """Log the new rows of the record to MLflow and return their number. No step is logged twice."""
    from mlflow.entities import Metric

    last = float(mlflow.get_run(run_id).data.tags.get("ebm.synced_step", 0))
    rows = list(read_lines(run / METRICS))
    new_rows = [
        (before, row)
        for before, row in zip([None, *rows], rows, strict=False)
        if row["step"] > last
    ]
    for start in range(0, len(new_rows), _ROWS_A_CALL):
        block = new_rows[start : start + _ROWS_A_CALL]
        metrics = [
            Metric(key, value, int(row.get("time", 0) * 1000), int(row["step"]))
            for before, row in block
            for key, value in {**row, **_speed(before, row)}.items()
            if key not in _NOT_METRICS
        ]
        # after a crash between these two calls the block is logged again with the same keys,
        # times, steps and values, of which the store keeps one
        mlflow.log_batch(run_id, metrics=metrics)
        mlflow.set_tag(run_id, "ebm.synced_step", str(int(block[-1][1]["step"])))
    _sync_pictures(mlflow, run_id, run)
    return len(new_rows)


def _sync_pictures(mlflow: "MlflowClient", run_id: str, run: Path) -> None:
    """Log the new pictures of the chains by step."""
    last = int(mlflow.get_run(run_id).data.tags.get("ebm.synced_picture", -1))
    for step, path in snapshots.taken(run).items():
        if step > last:
            mlflow.log_image(
                run_id, Image.open(io.BytesIO(read_bytes(path))), key="chains", step=step
            )
            mlflow.set_tag(run_id, "ebm.synced_picture", str(step))


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


@contextmanager
def sync_while_running(params: Params, digest: str, name: str, run: Path) -> Iterator[None]:
    """Sync the record to MLflow while the block runs; warn once and retry if MLflow is down."""
    ids = list[str]()

    def bring(mlflow: "MlflowClient") -> None:
        if not ids:
            ids.append(run_of(mlflow, params, digest, name))
        sync(mlflow, ids[0], run)

    with keep_in_sync(bring, f"metrics are kept in {run / METRICS}", params.tracking.poll_s):
        yield


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
                    "MLflow at %s is away (%s); %s and are logged to it later",
                    tracking_uri(),
                    first_line(failed),
                    where,
                )
            is_away[0] = True

    return call_every(look, poll_s)


def open_run(
    params: Params, digest: str, name: str, run: Path, *, attempts: int = 3
) -> tuple["MlflowClient", str]:
    """Return the client and the run of a finished training, with all its metrics.

    Raise :class:`RegistryError` if the server cannot be reached.
    """
    for attempt in range(attempts):
        try:
            mlflow = client()
            run_id = run_of(mlflow, params, digest, name)
            sync(mlflow, run_id, run)
            return mlflow, run_id
        except Exception as failed:  # noqa: BLE001 (MLflow raises many kinds)
            error = failed
            time.sleep(2 * attempt)
    raise RegistryError(
        f"MLflow at {tracking_uri()} cannot be reached ({first_line(error)}); start it or unset"
        " MLFLOW_TRACKING_URI, then run 'dvc repro register': nothing is lost"
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
