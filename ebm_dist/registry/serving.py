"""The registered model as MLflow loads it: a model from code, with safetensors and no pickle.

MLflow runs this file when a version is loaded. It passes arrays in and returns the answers of
:mod:`ebm_dist.models.requests`. The limit of the work of a request is that module's ``MAX_WORK``,
or ``max_work`` of the ``model_config`` with which the model is loaded.

A version has a copy of the package in ``code/``. MLflow puts it on the path of modules, but Python
keeps a package that the process has loaded before. :func:`_check_code` therefore refuses to answer
with code that differs from the code of the version.
"""

import json
import os
from pathlib import Path
from typing import Any

import mlflow


def _check_code() -> None:
    """Raise ImportError if the loaded package computes other answers than the version's copy."""
    version = Path(__file__).resolve().parent
    if not (version / "code/ebm_dist").is_dir():  # not loaded from a version
        return
    import ebm_dist

    loaded = Path(ebm_dist.__file__ or "").resolve().parents[1]
    if loaded == version / "code":
        return
    try:
        from ebm_dist.runs.code import serving_digest

        (model,) = version.glob("artifacts/*/model.json")
        params = json.loads(model.read_bytes())["params"]
        is_same = serving_digest(params, version / "code") == serving_digest(params, loaded)
    except (ImportError, KeyError):  # of another code
        is_same = False
    if not is_same:
        raise ImportError(
            f"this process has loaded ebm_dist from {loaded}, and its code is not that of the"
            f" version in {version}; load the version in a new process before ebm_dist is imported,"
            " or load its weights into the present code with ebm_dist.load('models:/...')"
        )


_check_code()

from ebm_dist import models
from ebm_dist.errors import BusyError, RequestError
from ebm_dist.models import requests

# MLflow's server has so many threads for requests; half of them are left for small ones.
_NUM_THREADS = min(32, (os.cpu_count() or 1) + 4)


class _Predict:
    """The methods of the service.

    They are not in the class that MLflow inspects, because MLflow would derive a schema from the
    type hints of ``predict`` and ignore the signature.
    """

    model: models.TrainedModel
    limits: requests.Limits

    def load_context(self, context: Any) -> None:
        self.model = models.load(Path(context.artifacts["model"]))
        max_work = (context.model_config or {}).get("max_work", requests.MAX_WORK)
        self.limits = requests.Limits(max_work, _NUM_THREADS // 2)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        try:
            return requests.answer(self.model, model_input, params, self.limits)
        except BusyError as busy:
            raise mlflow.exceptions.MlflowException(
                str(busy), mlflow.protos.databricks_pb2.REQUEST_LIMIT_EXCEEDED
            ) from None
        except RequestError as refused:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(refused)) from None


class EnergyService(_Predict, mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Compute energies ``(n,)`` of float32 samples ``(n, *shape)``; low = likely.

    Other tasks are chosen by params.
    """


mlflow.models.set_model(EnergyService())
