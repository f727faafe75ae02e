"""The encoder as an MLflow model. MLflow stores this file as the model's code, so that nothing is pickled.

Loaded by `mlflow.pyfunc.load_model`; `models.load_encoder("models:/…")` reads the same bundle as plain PyTorch.
"""

from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sepscene.models.encoders.encoder import load_encoder


class EncoderModel(PythonModel):
    """Waveforms (B, T) at the encoder's sample rate to representations (B, D), float32."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that was logged with the model."""
        self.encoder = load_encoder(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """h of each waveform of full scale 1."""
        with torch.inference_mode():
            return self.encoder(model_input).numpy()


mlflow.models.set_model(EncoderModel())
