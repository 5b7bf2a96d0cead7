"""The MLflow runs of a search: a parent run and a child run per trial."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebm_dist.config import Params
from ebm_dist.files import flat
from ebm_dist.runs import tracking
from ebm_dist.search.trials import Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_PREFIX = "search/"  # of metrics: MLflow groups them by it


class Family:
    """The runs of a search: a parent, and a child for each trial that has begun.

    A child has the trial's values as parameters, scores as metrics by step, and the state as status
    and tags.
    """

    _STATUS = {
        "finished": "FINISHED",
        "stopped": "KILLED",
        "diverged": "FAILED",
        "failed": "FAILED",
    }

    def __init__(self, params: Params, digest: str, name: str, facts: Mapping[str, Any]) -> None:
        self.params, self.digest, self.name, self.facts = params, digest, name, facts
        self._parent, self._children, self._logged = "", dict[str, str](), dict[str, Any]()

    @contextmanager
    def sync_while_running(
        self, phases: Mapping[str, Sequence[Trial]], where: Path
    ) -> Iterator[None]:
        """Sync the trials of each phase of the search to MLflow while the block runs."""
        with tracking.keep_in_sync(
            lambda mlflow: self.bring(mlflow, phases),
            f"trials are kept in {where}",
            self.params.tracking.poll_s,
        ):
            yield

    def bring(self, mlflow: "MlflowClient", phases: Mapping[str, Sequence[Trial]]) -> None:
        """Log the present state of parent and children. Raise what MLflow raises."""
        values = flat(self.params.as_dict("tune")) | dict(self.facts)
        self._parent = self._parent or tracking.find_or_create_run(
            mlflow, self.params, self.digest, self.name, values, {"ebm.kind": "search"}
        )
        for phase, trials in list(phases.items()):  # a copy: phases are added meanwhile
            for trial in trials:
                if trial.rows or trial.state != "waiting":
                    self._child(mlflow, phase, trial)

    def _child(self, mlflow: "MlflowClient", phase: str, trial: Trial) -> None:
        from mlflow.entities import Metric, Param, RunTag

        key, state = f"{phase}-{trial.index:04d}", (trial.state, len(trial.rows))
        if self._logged.get(key) == state:
            return
        if key not in self._children:
            tags = {"mlflow.parentRunId": self._parent, "ebm.kind": "trial", "ebm.phase": phase}
            values = {**trial.values, "seed": trial.seed, "num_steps": trial.num_steps}
            self._children[key] = tracking.find_or_create_run(
                mlflow, self.params, f"{self.digest}/{key}", key, values, tags
            )
        child = self._children[key]
        # rows logged before have the same keys, steps, times and values: the store keeps one
        metrics = [
            Metric(_PREFIX + name, float(value), int(row["time"] * 1000), row["step"])
            for row in trial.rows
            for name, value in (trial.scores(row) | {"step": row["step"]}).items()
        ]
        tags = {
            "ebm.state": trial.state,
            "ebm.diverged": str(trial.state == "diverged").lower(),
            "ebm.reason": trial.reason[:5000],
        }
        changed = (
            [Param(f"latest.{name}", str(value)) for name, value in trial.values.items()]
            if trial.is_over
            else []
        )
        for start in range(0, len(metrics), 900):
            mlflow.log_batch(child, metrics=metrics[start : start + 900])
        mlflow.log_batch(
            child, params=changed, tags=[RunTag(name, value) for name, value in tags.items()]
        )
        if trial.is_over:
            mlflow.set_terminated(child, self._STATUS[trial.state])
        self._logged[key] = state

    def finish(
        self,
        phases: Mapping[str, Sequence[Trial]],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        report: Path,
    ) -> bool:
        """Log everything, with the report as artifacts of the parent, and end the parent run.

        Return False, with a warning, if MLflow cannot be reached.
        """
        try:
            mlflow = tracking.client()
            self.bring(mlflow, phases)
            for name, value in metrics.items():
                mlflow.log_metric(self._parent, _PREFIX + name, value)
            for name, text in tags.items():
                mlflow.set_tag(self._parent, name, text)
            mlflow.log_artifacts(self._parent, str(report))
            mlflow.set_terminated(self._parent)
        except Exception as failed:  # noqa: BLE001 (the search is done whatever MLflow raises)
            log.warning(
                "MLflow at %s is away (%s); run the same command again to log the search there",
                tracking.tracking_uri(),
                tracking.first_line(failed),
            )
            return False
        return True
