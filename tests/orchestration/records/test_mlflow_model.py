"""The inputs of an encoder as an MLflow model."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sepscene.models.config import SepsceneError
from tests.models.encoders.test_encoder import small_encoder

PCM_BT = np.random.default_rng(0).integers(-3000, 3000, (2, 16_000), np.int16)


@pytest.fixture(scope="module")
def model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about missing type hints of `predict`
        from sepscene.orchestration.records.mlflow_model import EncoderModel
    model = EncoderModel()
    model.encoder = small_encoder().eval()
    return model


@pytest.mark.parametrize("given", [PCM_BT.tolist(), PCM_BT.astype(np.int64), pd.DataFrame({"wave": PCM_BT.tolist()})])
def test_integers_without_a_full_scale_are_refused(model: Any, given: Any) -> None:
    """They have been converted to int64; relative to its full scale, they would be silence."""
    with pytest.raises(SepsceneError, match=r"int64 has no full scale: pass floats in \[-1, 1\], or int16"):
        model.predict(None, given)


@pytest.mark.parametrize("given", [PCM_BT, pd.DataFrame(PCM_BT), pd.DataFrame({"wave": [*PCM_BT]})])
def test_16_bit_sound_has_the_full_scale_of_its_type(model: Any, given: Any) -> None:
    expected_BD = model.predict(None, PCM_BT / np.float32(32768))
    np.testing.assert_array_equal(model.predict(None, given), expected_BD)


@pytest.mark.parametrize("given", [np.zeros((1, 2, 3)), [["a"]], pd.DataFrame({"name": ["a.wav"]})])
def test_input_that_is_not_sound_is_refused(model: Any, given: Any) -> None:
    with pytest.raises(SepsceneError, match=r"shape \(B, T\)|not a"):
        model.predict(None, given)
