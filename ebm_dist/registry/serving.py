"""The registered model as MLflow loads it: models from code, with safetensors beside it and no pickle.

MLflow runs this file when a version is loaded; it gets arrays and gives what :mod:`ebm_dist.models.requests` answers.
"""

from pathlib import Path
from typing import Any

import mlflow

from ebm_dist import models
from ebm_dist.errors import RequestError
from ebm_dist.models import requests


class _Predict:
    """Apart from the class that MLflow knows: it would take this method's type hints for a schema, in place of the signature."""

    model: models.TrainedModel

    def load_context(self, context: Any) -> None:
        self.model = models.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        try:
            return requests.answer(self.model, model_input, params)
        except RequestError as refused:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(refused)) from None


class EnergyService(_Predict, mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """``predict``: samples ``(n, *shape)`` float32 to energies ``(n,)``; low = likely. Other tasks by params."""


mlflow.models.set_model(EnergyService())
