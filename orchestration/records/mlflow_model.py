"""The encoder as an MLflow model. MLflow stores this file as the model's code, so nothing is pickled.

It is loaded by `mlflow.pyfunc.load_model`; `sepscene.load_encoder("models:/…")` loads the same bundle as plain PyTorch.
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
        """Load the bundle that was logged with the model; loading the model also runs the code stored with it."""
        self.encoder = load_encoder(context.artifacts["bundle"], trust_code=True)

    # No type hint for the input: MLflow would enforce it, and several types are allowed.
    def predict(self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None) -> np.ndarray:
        """h of each waveform.

        Args:
            model_input: one waveform (T) or several (B, T): an array, a list, or a DataFrame with one clip per row,
                as samples in columns or as one column of lists. The full scale of floats is 1, that of integers the
                range of their type.

        Raises:
            SepsceneError: for anything else, see `models.sound.checked_sound`.
        """
        with torch.inference_mode():
            return self.encoder(_waveforms(model_input)).numpy()


def _waveforms(given: Any) -> np.ndarray:
    """The input as (B, T) without conversion of its type: the encoder validates and scales it."""
    wave = np.asarray(given)
    if wave.dtype == object:  # a DataFrame whose cells contain lists
        wave = np.array([np.asarray(cell).ravel() for cell in wave.ravel()])
    return np.atleast_2d(wave)


mlflow.models.set_model(EncoderModel())
