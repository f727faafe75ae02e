"""The encoder as an MLflow model. MLflow stores this file as the model's code, so that nothing is pickled.

Loaded by `mlflow.pyfunc.load_model`; `sepscene.load_encoder("models:/…")` reads the same bundle as plain PyTorch.
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
        """Load the bundle that was logged with the model; whoever loads this model runs the code that came with it."""
        self.encoder = load_encoder(context.artifacts["bundle"], trust_code=True)

    # MLflow would check a type hint of the input, which is any of several.
    def predict(self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None) -> np.ndarray:
        """h of each waveform.

        Args:
            model_input: one waveform (T) or several (B, T): an array, a list, or a DataFrame with a clip in each row,
                as samples in columns or as one column of lists. Floats have full scale 1; integers that of their type.

        Raises:
            SepsceneError: for what is no such sound, see `models.sound.checked_sound`.
        """
        with torch.inference_mode():
            return self.encoder(_waveforms(model_input)).numpy()


def _waveforms(given: Any) -> np.ndarray:
    """(B, T), of the type in which it was given: the encoder checks and scales it."""
    wave = np.asarray(given)
    if wave.dtype == object:  # of a DataFrame, whose cells hold lists
        wave = np.array([np.asarray(cell).ravel() for cell in wave.ravel()])
    return np.atleast_2d(wave)


mlflow.models.set_model(EncoderModel())
