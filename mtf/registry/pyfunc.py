"""A policy bundle as an MLflow model: `mlflow.pyfunc.load_model("models:/mtf-feed@champion").predict(states)`.

Logged as code and read as safetensors: loading one unpickles nothing. MLflow runs this file with `bundle` among the artefacts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from mtf import load_policy


class BundleModel(PythonModel):  # type: ignore[misc]
    """states float32 [n, S] -> actions float32 [n, A]; the scaler is inside."""

    def load_context(self, context: Any) -> None:
        """Read and verify the bundle."""
        self._policy = load_policy(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The policy's actions."""
        return self._policy.act(np.asarray(model_input, np.float32))


set_model(BundleModel())
