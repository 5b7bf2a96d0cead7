"""MLflow model versions: logged with signature and lineage, promoted by gates."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ebm_dist import models, storage
from ebm_dist.config import Mismatch, Params, PlainName, plugin_name, section
from ebm_dist.errors import DataError, RegistryError
from ebm_dist.files import flat
from ebm_dist.models import requests
from ebm_dist.registry import card, promotion
from ebm_dist.registry.card import Verdict
from ebm_dist.report.suites import read_suites
from ebm_dist.runs import tracking
from ebm_dist.runs.lineage import ROOT, dvc_hashes, git_state, hardware
from ebm_dist.runs.record import EVENTS, METRICS, read_lines

MODEL_TAG = "ebm.model_sha256"


@section
class Gate:
    """A bound on a metric that a version must meet to become champion."""

    metric: str
    """``<suite>.<key>`` of the suite's metrics.json, such as ``samples.fid_clf_over_floor``."""
    at_least: float | None = None
    """Smallest value that passes."""
    at_most: float | None = None
    """Largest value that passes."""


@section
class Config:
    model: PlainName = "ebm"
    """Name of the registered model."""
    gates: tuple[Gate, ...] = ()
    """Bounds that all must hold for the alias ``champion``; each version becomes ``candidate``."""
    limits: str = ""
    """Limits of this model for its card, in addition to those that every card states."""

    def check(self, params: Params) -> None:
        for i, gate in enumerate(self.gates):
            if (gate.at_least is None) == (gate.at_most is None):
                raise Mismatch(
                    f"register.gates.{i}", "a gate needs exactly one of at_least and at_most"
                )
            suite = gate.metric.split(".")[0]
            if suite not in params.evaluation:
                raise Mismatch(
                    f"register.gates.{i}.metric",
                    f"no suite {suite!r} under evaluation; there: {', '.join(params.evaluation)}",
                )


def check_gates(gates: tuple[Gate, ...], metrics: dict[str, Any]) -> list[Verdict]:
    """Check metrics, by dotted key, against the gates.

    Raise :class:`DataError` for a metric that is missing.
    """
    verdicts = []
    for gate in gates:
        if gate.metric not in metrics:
            raise DataError(
                f"register.gates: no metric {gate.metric!r} in the reports; there:"
                f" {', '.join(sorted(metrics))}"
            )
        value = float(metrics[gate.metric])
        low, high = gate.at_least, gate.at_most
        passes = (low is None or value >= low) and (high is None or value <= high)
        bound = f">= {low:g}" if low is not None else f"<= {high:g}"
        verdicts.append(Verdict(gate.metric, value, bound, passes))
    return verdicts


def register(params: Params, folder: Path, reports: Path, run: Path, name: str) -> dict[str, Any]:
    """Log a trained model and its reports on its run, make it a version, and set its aliases.

    A second call finds the same run and version. Return the content of ``registry.json``. Raise
    :class:`RegistryError` if MLflow refuses, :class:`DataError` if the card would have gaps.
    """
    trained = models.load(folder)
    metrics = flat(read_suites(reports))
    verdicts = check_gates(params.register.gates, metrics)
    lineage = _lineage(params, trained, run)
    card_text = card.write(trained, params, reports, verdicts, lineage)
    mlflow, run_id = tracking.open_run(params, trained.card["run_digest"], name, run)
    try:
        version = _version(mlflow, run_id, params, trained, folder)
        _log_results(mlflow, run_id, metrics, reports, run)
        tags = lineage | promotion.gate_tags(verdicts)
        for key, value in tags.items():
            mlflow.set_tag(run_id, key, value)
            mlflow.set_model_version_tag(params.register.model, version, key, value)
        is_champion = bool(verdicts) and all(v.passes for v in verdicts)
        mlflow.update_model_version(params.register.model, version, description=card_text)
        mlflow.log_text(run_id, card_text, "model-card.md")
        mlflow.set_registered_model_alias(params.register.model, "candidate", version)
        if is_champion:
            promotion.promote(mlflow, params.register.model, version)
        mlflow.set_terminated(run_id)
    except Exception as failed:
        raise RegistryError(
            f"MLflow at {tracking.tracking_uri()} refused: {failed}; run 'dvc repro register' again"
        ) from failed
    return {
        "model": params.register.model,
        "version": int(version),
        "aliases": ["candidate", *(["champion"] if is_champion else [])],
        "sha256": trained.card["sha256"]["energy.safetensors"],
        "run_digest": trained.card["run_digest"],
        "gates": [v._asdict() for v in verdicts],
    }


def _version(
    mlflow: Any, run_id: str, params: Params, trained: models.TrainedModel, folder: Path
) -> str:
    """Return the version of these weights, found by their hash; create it if there is none."""
    from mlflow.exceptions import MlflowException

    name, digest = params.register.model, trained.card["sha256"]["energy.safetensors"]
    with contextlib.suppress(MlflowException):  # the model exists already
        mlflow.create_registered_model(
            name, description="Energy-based model: low energy is likely, p(x) = exp(-E(x)) / Z."
        )
    for version in mlflow.search_model_versions(f"name = '{name}'"):
        if version.tags.get(MODEL_TAG) == digest:
            return str(version.version)
    info = _log_model(run_id, trained, folder)
    return str(
        mlflow.create_model_version(
            name, info.model_uri, run_id, tags={MODEL_TAG: digest}, model_id=info.model_id
        ).version
    )


def _log_model(run_id: str, trained: models.TrainedModel, folder: Path) -> Any:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    shape = tuple(trained.card["shape"])
    options = [
        ParamSpec(k, "string" if isinstance(v, str) else "long", v)
        for k, v in requests.Options._field_defaults.items()
    ]
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
        # the output of the task "energy"; other tasks return what their docstrings say
        Schema([TensorSpec(np.dtype(np.float32), (-1,))]),
        ParamSchema(options),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with (
        mlflow.start_run(run_id=run_id),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about missing type hints of predict
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(ROOT / "ebm_dist" / "registry" / "serving.py"),
            artifacts={"model": str(folder)},
            code_paths=[str(ROOT / "ebm_dist")],
            signature=signature,
            input_example=trained.from_model(trained.chains[:2]).float().numpy(),
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    from importlib.metadata import version

    names = (
        "mlflow",
        "torch",
        "numpy",
        "safetensors",
        "pydantic",
        "ruamel.yaml",
        "webdataset",
        "scikit-learn",
    )
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def _log_results(
    mlflow: Any, run_id: str, metrics: dict[str, Any], reports: Path, run: Path
) -> None:
    from mlflow.entities import Metric

    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    logged = mlflow.get_run(run_id).data.metrics
    new_metrics = [
        Metric(f"eval.{_metric_name(k)}", float(v), 0, 0)
        for k, v in numbers.items()
        if logged.get(f"eval.{_metric_name(k)}") != v
    ]
    for start in range(0, len(new_metrics), 500):
        mlflow.log_batch(run_id, metrics=new_metrics[start : start + 500])
    mlflow.log_artifacts(run_id, str(reports), "reports")
    for record in (METRICS, EVENTS):
        if (run / record).exists():
            mlflow.log_text(run_id, storage.read_bytes(run / record).decode(), f"record/{record}")


def _metric_name(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)


def _lineage(params: Params, trained: models.TrainedModel, run: Path) -> dict[str, str]:
    starts = list(read_lines(run / EVENTS))
    return {
        **git_state(),
        **dvc_hashes(Path("dvc.lock")),
        **{
            name: plugin_name(getattr(params, name))
            for name in ("dataset", "objective", "energy", "sampler")
        },
        "config.digest": params.digest(),
        "data.digest": trained.card["data_digest"],
        "data.source": trained.card["source"],
        "data.is_official": str(trained.card["is_official"]).lower(),
        "train.starts": str(len(starts)),
        "train.resumed_from": ",".join(str(event["step"]) for event in starts if event["step"]),
        "train.rollbacks": str(max((event.get("rollbacks", 0) for event in starts), default=0)),
        "train.workers": ",".join(str(event.get("world_size", 1)) for event in starts),
        "train.ray_jobs": ",".join(str(event.get("ray_job", "")) for event in starts),
        "hardware": json.dumps(hardware()),
    }


def origin(uri: str) -> tuple[dict[str, Any], str]:
    """Return the card of a registered version and its commit, "" if it names none.

    ``uri`` is ``models:/name@alias`` or ``models:/name/version``. Raise :class:`RegistryError` if
    the registry cannot be reached or has no such version.
    """
    with _opened(uri) as (version, fetch):
        (path,) = Path(fetch(f"models:/{version.name}/{version.version}")).rglob("model.json")
        return json.loads(path.read_bytes()), str(version.tags.get("git.commit", ""))


def reports_of(uri: str, folder: Path) -> Path:
    """Fetch the reports of a registered version into ``folder`` and return their path.

    Raise :class:`RegistryError` as :func:`origin` does.
    """
    with _opened(uri) as (version, fetch):
        return Path(fetch(f"runs:/{version.run_id}/reports", dst_path=str(folder)))


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[Any, Callable[..., str]]]:
    """Yield a version and a function that downloads artifacts."""
    client = tracking.client()
    try:
        import mlflow

        name, _, which = uri.removeprefix("models:/").replace("@", "/").partition("/")
        yield (
            client.get_model_version_by_alias(name, which)
            if "@" in uri
            else client.get_model_version(name, which),
            mlflow.artifacts.download_artifacts,
        )
    except Exception as failed:
        raise RegistryError(
            f"{uri}: {tracking.first_line(failed)}; see ebm-dist doctor"
        ) from failed
