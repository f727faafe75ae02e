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
        """
        with torch.inference_mode():
            return self.encoder(_waveforms(model_input)).numpy()


def _waveforms(given: Any) -> np.ndarray:
    """(B, T), float32, full scale 1."""
    if hasattr(given, "to_numpy"):  # a DataFrame
        given = given.to_numpy()
    wave = np.asarray(given)
    if wave.dtype == object:
        wave = np.array([np.asarray(cell, np.float32).ravel() for cell in wave.ravel()])
    if wave.dtype.kind == "i":
        wave = wave / -float(np.iinfo(wave.dtype).min)
    if wave.dtype.kind != "f" or wave.ndim not in (1, 2):
        raise ValueError(f"give waveforms as (T) or (B, T) numbers, not {wave.dtype} of shape {wave.shape}")
    return np.ascontiguousarray(np.atleast_2d(wave), dtype=np.float32)


mlflow.models.set_model(EncoderModel())
