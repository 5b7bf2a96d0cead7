"""MLflow model versions: logged with signature and lineage, promoted by gates."""

import contextlib
import io
import json
import logging
import math
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ebm_dist import models, storage
from ebm_dist.config import Mismatch, Params, PlainName, nearest, plugin_name, section
from ebm_dist.errors import DataError, EbmError, RegistryError
from ebm_dist.files import flat
from ebm_dist.models import requests
from ebm_dist.registry import card, promotion, shipped
from ebm_dist.registry.card import Verdict
from ebm_dist.report.suites import read_suites
from ebm_dist.runs import tracking
from ebm_dist.runs.lineage import ROOT, dvc_hashes, git_state, hardware
from ebm_dist.runs.record import EVENTS, METRICS, read_lines

MODEL_TAG = "ebm.model_sha256"
URI = "models:/"
_EVAL, _EVAL_BEFORE = "eval/", "eval."  # prefixes of metrics, now and in 0.1
_TRAINING = "train."  # metrics of the training, which the run has by step
_MAX_DESCRIPTION = 5000  # of a version, in MLflow's databases
_LISTED = ("gate.", "dvc.", "git.")  # groups of tags: those that are not set again are deleted


@section
class Gate:
    """Bounds on a metric that a version must meet to become champion."""

    metric: str
    """``<suite>.<key>`` of the suite's metrics.json, such as ``samples.fid_clf_over_floor``."""
    at_least: float | None = None
    """Smallest value that passes."""
    at_most: float | None = None
    """Largest value that passes."""

    @property
    def bound(self) -> str:
        """Return the bounds as text, such as ``>= 0.9``."""
        texts = [f">= {self.at_least:g}"] if self.at_least is not None else []
        texts += [f"<= {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(texts)


@section
class Config:
    model: PlainName | None = None
    """Name of the registered model. Default: ``ebm-`` and the name of the data set, for own files
    also that of the file or folder."""
    gates: tuple[Gate, ...] = ()
    """Bounds that all must hold for the alias ``champion``; each version becomes ``candidate``. A
    gate on a metric that the reports do not have is skipped, and the version stays candidate."""
    limits: str = ""
    """Limits of this model for its card, in addition to those that every card states."""

    def check(self, params: Params) -> None:
        metrics = [gate.metric for gate in self.gates]
        for i, gate in enumerate(self.gates):
            if gate.at_least is None and gate.at_most is None:
                raise Mismatch(f"register.gates.{i}", "a gate needs at_least or at_most")
            if gate.metric in metrics[:i]:
                raise Mismatch(
                    f"register.gates.{i}.metric",
                    f"a second gate on {gate.metric}",
                    "give both at_least and at_most in one gate",
                )
            suite, _, key = gate.metric.partition(".")
            if suite not in params.evaluation:
                raise Mismatch(
                    f"register.gates.{i}.metric",
                    f"no suite {suite!r} under evaluation; there: {', '.join(params.evaluation)}",
                )
            if not key:
                raise Mismatch(
                    f"register.gates.{i}.metric", f"expected {suite}.<metric>, found {suite!r}"
                )


def model_name(params: Params) -> str:
    """Return the name of the registered model of these settings."""
    if params.register.model is not None:
        return str(params.register.model)
    path = getattr(params.dataset, "path", None)
    parts = ["ebm", plugin_name(params.dataset) or "", *([Path(path).stem] if path else [])]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def check_gates(gates: tuple[Gate, ...], metrics: dict[str, Any]) -> list[Verdict]:
    """Check metrics, by dotted key, against the gates.

    A gate on a metric that is missing or has no number is skipped: it has not passed.
    """
    verdicts = []
    for gate in gates:
        value = metrics.get(gate.metric)
        if not isinstance(value, int | float):
            reason = (
                f"the reports have no metric {gate.metric}; {nearest(gate.metric, list(metrics))}"
                if gate.metric not in metrics
                else f"the reports have no number for it, but {value!r}"
            )
            verdicts.append(Verdict(gate.metric, None, gate.bound, False, reason))
            continue
        low, high = gate.at_least, gate.at_most
        if not math.isfinite(value):
            verdicts.append(Verdict(gate.metric, None, gate.bound, False))
            continue
        passes = (low is None or value >= low) and (high is None or value <= high)
        verdicts.append(Verdict(gate.metric, float(value), gate.bound, passes))
    return verdicts


def register(params: Params, folder: Path, reports: Path, run: Path, name: str) -> dict[str, Any]:
    """Log a trained model and its reports on its run, make it a version, and set its aliases.

    A version becomes champion if all its gates pass, and a champion with gates that do not pass
    loses the alias.
    A second call finds the same run and version. Return the content of ``registry.json``. Raise
    :class:`RegistryError` if MLflow refuses, :class:`DataError` if the card would have gaps.
    """
    trained = models.load(folder)
    metrics = flat(read_suites(reports))
    verdicts = check_gates(params.register.gates, metrics)
    lineage = _lineage(params, trained, run)
    model = model_name(params)
    card_text = card.write(model, trained, params, reports, verdicts, lineage)
    data = tracking.Data(*(trained.card[key] for key in ("dataset", "data_digest", "source")))
    mlflow, run_id = tracking.open_run(params, trained.card["run_digest"], name, data, run)
    try:
        version = _version(mlflow, run_id, model, trained, folder)
        _log_results(mlflow, run_id, metrics, trained.params.train.num_steps, reports, run)
        _set_tags(mlflow, run_id, model, version, lineage | promotion.gate_tags(verdicts))
        description = card.shortened(card_text, _MAX_DESCRIPTION)
        mlflow.update_model_version(model, version, description=description)
        mlflow.log_text(run_id, card_text, "model-card.md")
        mlflow.set_registered_model_alias(model, "candidate", version)
        if verdicts and all(verdict.passes for verdict in verdicts):
            promotion.promote(mlflow, model, version)
        else:
            promotion.demote(mlflow, model, version)
        aliases = mlflow.get_registered_model(model).aliases
        mlflow.set_terminated(run_id)
    except EbmError:
        raise
    except Exception as failed:
        raise RegistryError(
            f"MLflow at {tracking.tracking_uri()} refused: {tracking.first_line(failed)}",
            "run 'dvc repro register' again",
        ) from failed
    return {
        "model": model,
        "version": int(version),
        "aliases": sorted(alias for alias, of in aliases.items() if str(of) == version),
        "sha256": trained.card["sha256"]["energy.safetensors"],
        "run_digest": trained.card["run_digest"],
        "gates": [v._asdict() for v in verdicts],
    }


def _set_tags(mlflow: Any, run_id: str, model: str, version: str, tags: dict[str, str]) -> None:
    """Set tags of the run and the version, and delete listed ones of an earlier registration."""
    for key in mlflow.get_run(run_id).data.tags.keys() - tags.keys():
        if key.startswith(_LISTED):
            mlflow.delete_tag(run_id, key)
    for key in mlflow.get_model_version(model, version).tags.keys() - tags.keys():
        if key.startswith(_LISTED):
            mlflow.delete_model_version_tag(model, version, key)
    for key, value in tags.items():
        mlflow.set_tag(run_id, key, value)
        mlflow.set_model_version_tag(model, version, key, value)


def _version(
    mlflow: Any, run_id: str, name: str, trained: models.TrainedModel, folder: Path
) -> str:
    """Return the version of these weights, found by their hash; create it if there is none."""
    from mlflow.exceptions import MlflowException

    digest = trained.card["sha256"]["energy.safetensors"]
    try:
        mlflow.create_registered_model(
            name, description="Energy-based model: low energy is likely, p(x) = exp(-E(x)) / Z."
        )
    except MlflowException as refused:
        if refused.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
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

    options = [
        ParamSpec(k, "string" if isinstance(v, str) else "long", v)
        for k, v in requests.Options._field_defaults.items()
    ]
    # MLflow would refuse float64 for an input of float32, and its message would print the samples.
    # Therefore the input is in the metadata, and requests.answer checks and casts it.
    shape, bounds = [-1, *trained.card["shape"]], trained.card["bounds"]
    signature = ModelSignature(
        # the output of the task "energy"; other tasks return what their docstrings say
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,))]),
        params=ParamSchema(options),
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
            metadata={"input": {"dtype": "float32", "shape": shape, "bounds": bounds}},
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
    mlflow: Any, run_id: str, metrics: dict[str, Any], num_steps: int, reports: Path, run: Path
) -> None:
    """Log metrics at the last step of the training, so that MLflow shows the latest evaluation.

    MLflow cannot delete metrics: those that the reports no longer have are named in a tag.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = {
        _EVAL + tracking.mlflow_name(key.replace(".", "/", 1)): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not key.startswith(_TRAINING)
    }
    logged = mlflow.get_run(run_id).data.metrics
    changed = [
        Metric(name, value, now, num_steps)
        for name, value in values.items()
        if not (name in logged and _is_same(logged[name], value))
    ]
    for start in range(0, len(changed), 500):
        mlflow.log_batch(run_id, metrics=changed[start : start + 500])
    outdated = sorted(
        name for name in logged.keys() - values.keys() if name.startswith((_EVAL, _EVAL_BEFORE))
    )
    mlflow.set_tag(run_id, "ebm.outdated_metrics", ", ".join(outdated))
    mlflow.log_artifacts(run_id, str(reports), "reports")
    for record in (METRICS, EVENTS):
        if (run / record).exists():
            mlflow.log_text(run_id, storage.read_bytes(run / record).decode(), f"record/{record}")


def _is_same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _lineage(params: Params, trained: models.TrainedModel, run: Path) -> dict[str, str]:
    starts = list(read_lines(run / EVENTS))
    return {
        **git_state(),
        **{tracking.mlflow_name(k): v for k, v in dvc_hashes(Path("dvc.lock")).items()},
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


def load(model: str | Path) -> models.TrainedModel:
    """Load a model from its folder, a registered version, or a shipped model.

    ``model`` is a path, ``models:/name@alias``, ``models:/name/version``, or a name of
    :mod:`ebm_dist.registry.shipped`. A folder of this name comes first if it has a model. The
    present code computes its answers. Raise :class:`RegistryError` as :func:`origin` does, and
    :class:`DataError` if there is no such model.
    """
    if not str(model).startswith(URI):
        return models.load(_folder(str(model)))
    with _opened(str(model)) as (version, fetch), tempfile.TemporaryDirectory() as folder:
        return models.load(_model_file(version, fetch, folder).parent)


def _folder(model: str) -> Path:
    """Return the folder of a local or shipped model."""
    if not (Path(model) / "model.json").exists():
        if shipped.recipe_of(model) is not None:
            return shipped.verified(model)
        if not Path(model).is_dir():
            raise DataError(
                f"{model}: is not an exported model, and no shipped model has this name",
                nearest(model, list(shipped.lock()["models"])),
            )
    return Path(model)


def _model_file(version: Any, fetch: Callable[..., str], folder: str | None = None) -> Path:
    downloaded = fetch(f"{URI}{version.name}/{version.version}", dst_path=folder)
    (path,) = Path(downloaded).rglob("model.json")
    return path


def origin(uri: str) -> tuple[dict[str, Any], str]:
    """Return the card of a registered version and its commit, "" if it names none.

    ``uri`` is ``models:/name@alias`` or ``models:/name/version``. Raise :class:`RegistryError` if
    the registry cannot be reached or has no such version.
    """
    with _opened(uri) as (version, fetch):
        card_json = _model_file(version, fetch).read_bytes()
        return json.loads(card_json), str(version.tags.get("git.commit", ""))


def reports_of(uri: str, folder: Path) -> Path:
    """Fetch the reports of a registered version into ``folder`` and return their path.

    Raise :class:`RegistryError` as :func:`origin` does.
    """
    with _opened(uri) as (version, fetch):
        return Path(fetch(f"runs:/{version.run_id}/reports", dst_path=str(folder)))


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[Any, Callable[..., str]]]:
    """Yield a version and a function that downloads artifacts."""
    match = re.fullmatch(r"models:/+([^/@]+)(?:@([^/@]+)|/([0-9]+))", uri)
    if match is None:
        raise RegistryError(
            f"{uri}: expected models:/name@alias or models:/name/version",
            "such as models:/ebm-digits@champion",
        )
    name, alias, number = match.groups()
    client = tracking.client()
    try:
        import mlflow

        yield (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number),
            mlflow.artifacts.download_artifacts,
        )
    except EbmError:
        raise
    except Exception as failed:
        raise RegistryError(
            f"{uri}: {tracking.first_line(failed)}; see ebm-dist doctor"
        ) from failed
