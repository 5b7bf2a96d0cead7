"""The registered model as MLflow loads it: a model from code, with safetensors and no pickle.

MLflow runs this file when a version is loaded. It passes arrays in and returns the answers of
:mod:`ebm_dist.models.requests`. The limit of the work of a request is that module's ``MAX_WORK``,
or ``max_work`` of the ``model_config`` with which the model is loaded.
"""

import os
from pathlib import Path
from typing import Any

import mlflow

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
