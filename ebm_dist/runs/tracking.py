"""MLflow runs: one for each training, however often it was restarted; for a search a parent and a child for each trial.

They are fed from the run's record on disk, never by the workers, so training neither waits for a tracking server
nor notices when it is away.
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
_ROWS_A_CALL = 40  # MLflow takes at most 1,000 metrics a call


@section
class Config:
    experiment: str = "ebm-dist"
    """MLflow experiment of the runs."""
    poll_s: Positive = 3.0
    """Seconds between two looks at the record of a training run."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, else SQLite in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def client() -> "MlflowClient":
    """A client that gives up within seconds. Importing MLflow takes seconds too, so only who needs it does."""
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
    """The id of the run of this training, made at the first call and found again by its digest afterwards."""
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
    """The id of the run with this digest; made, with these parameters and tags, if there is none yet."""
    experiment = mlflow.get_experiment_by_name(params.tracking.experiment)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else mlflow.create_experiment(params.tracking.experiment)
    )
    found = mlflow.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{digest}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    run = mlflow.create_run(experiment_id, run_name=name, tags={RUN_TAG: digest, **tags})
    for key, value in values.items():
        mlflow.log_param(run.info.run_id, key, str(value)[:6000])
    return str(run.info.run_id)


def sync(mlflow: "MlflowClient", run_id: str, run: Path) -> int:
    """Bring the rows of the record that MLflow does not have yet; return how many. No step is logged twice."""
    from mlflow.entities import Metric

    last = float(mlflow.get_run(run_id).data.tags.get("ebm.synced_step", 0))
    rows = list(read_lines(run / METRICS))
    fresh = [
        (before, row)
        for before, row in zip([None, *rows], rows, strict=False)
        if row["step"] > last
    ]
    for start in range(0, len(fresh), _ROWS_A_CALL):
        block = fresh[start : start + _ROWS_A_CALL]
        metrics = [
            Metric(key, value, int(row.get("time", 0) * 1000), int(row["step"]))
            for before, row in block
            for key, value in {**row, **_speed(before, row)}.items()
            if key not in _NOT_METRICS
        ]
        # a block repeated after a crash between these two calls has the same keys, times, steps and values: the store keeps one
        mlflow.log_batch(run_id, metrics=metrics)
        mlflow.set_tag(run_id, "ebm.synced_step", str(int(block[-1][1]["step"])))
    _sync_pictures(mlflow, run_id, run)
    return len(fresh)


def _sync_pictures(mlflow: "MlflowClient", run_id: str, run: Path) -> None:
    """Bring the pictures of the chains that MLflow does not have yet: it shows them by step."""
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
    """While the block runs, keep MLflow up to date with the record; if it is away, say so once and go on trying."""
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
    """Call ``bring(client)`` now and then while the block runs, and once at its end."""
    known, is_away = list["MlflowClient"](), [False]

    def look() -> None:
        try:
            if not known:
                known.append(client())
            bring(known[0])
            is_away[0] = False
        except Exception as failed:  # noqa: BLE001 (whatever is wrong with tracking, training goes on)
            if not is_away[0]:
                log.warning(
                    "MLflow at %s is away (%s); %s and brought there later",
                    tracking_uri(),
                    first_line(failed),
                    where,
                )
            is_away[0] = True

    return call_every(look, poll_s)


def open_run(
    params: Params, digest: str, name: str, run: Path, *, attempts: int = 3
) -> tuple["MlflowClient", str]:
    """The run of a finished training, with all its metrics. Raises :class:`RegistryError` if the server cannot be reached."""
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
        f"MLflow at {tracking_uri()} cannot be reached ({first_line(error)}); start it or unset MLFLOW_TRACKING_URI,"
        " then run 'dvc repro register': nothing is lost"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
