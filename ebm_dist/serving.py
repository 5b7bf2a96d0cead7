"""The registered model as MLflow loads it: models from code, with safetensors beside it and no pickle.

MLflow runs this file when a version is loaded; it gets arrays and gives energies.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch

from ebm_dist import model


class _Predict:
    """Apart from the class that MLflow knows: it would take this method's type hints for a schema, in place of the signature."""

    model: model.TrainedModel

    def load_context(self, context: Any) -> None:
        self.model = model.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        shape = tuple(self.model.card["shape"])
        try:
            x = np.asarray(model_input, np.float32)
        except (ValueError, TypeError, OverflowError) as failed:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(f"not an array of numbers: {failed}") from None
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(
                f"expected samples of shape (n, {', '.join(map(str, shape))}), found {x.shape}"
            )
        if not np.isfinite(x).all():
            raise mlflow.exceptions.MlflowException.invalid_parameter_value("samples must be finite; found NaN or infinity")
        return self.model.energies(torch.from_numpy(x)).numpy()


class EnergyService(_Predict, mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """``predict``: samples ``(n, *shape)`` float32 in the model's range to energies ``(n,)``; low = likely."""


mlflow.models.set_model(EnergyService())
