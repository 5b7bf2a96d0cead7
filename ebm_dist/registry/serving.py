"""The registered model as MLflow loads it: a model from code, with safetensors and no pickle.

MLflow runs this file when a version is loaded. It passes arrays in and returns the answers of
:mod:`ebm_dist.models.requests`.
"""

from pathlib import Path
from typing import Any

import mlflow

from ebm_dist import models
from ebm_dist.errors import RequestError
from ebm_dist.models import requests


class _Predict:
    """The methods of the service.

    They are not in the class that MLflow inspects, because MLflow would derive a schema from the
    type hints of ``predict`` and ignore the signature.
    """

    model: models.TrainedModel

    def load_context(self, context: Any) -> None:
        self.model = models.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        try:
            return requests.answer(self.model, model_input, params)
        except RequestError as refused:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(refused)) from None


class EnergyService(_Predict, mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Compute energies ``(n,)`` of float32 samples ``(n, *shape)``; low = likely.

    Other tasks are chosen by params.
    """


mlflow.models.set_model(EnergyService())
