"""The HEAR interface (hearbenchmark.com), with which any encoder bundle can be evaluated on that benchmark.

Pass `sepscene.models.encoders.hear` as the module and the bundle's folder as the weights. Sound is mono, in [-1, 1],
at `model.sample_rate`; embeddings are float32, on the model's device.

Shapes: N sounds, T samples, K timestamps, R rows of a batch, D embedding.
"""

import torch
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, load_encoder
from sepscene.models.sound import limited_sound

STEPS_PER_SECOND = 20
"""One timestamp every 50 ms, the longest spacing that HEAR's event tasks tolerate."""


def load_model(model_file_path: str = "") -> Encoder:
    """Load an encoder bundle for HEAR.

    Args:
        model_file_path: folder or MLflow URI of the bundle.

    Raises:
        SepsceneError: no bundle is given (there are no default weights), or it cannot be loaded.
    """
    if not model_file_path:
        raise SepsceneError("Sepscene has no default weights: pass the folder of an encoder bundle to load_model")
    return load_encoder(model_file_path)


def get_scene_embeddings(audio_NT: Tensor, model: Encoder) -> Tensor:
    """One embedding per sound (N, D), the mean over its patches.

    Raises:
        SepsceneError: the sound has another shape.
    """
    with torch.no_grad():
        return model(audio_NT).float()


def get_timestamp_embeddings(audio_NT: Tensor, model: Encoder) -> tuple[Tensor, Tensor]:
    """An embedding every 50 ms, from 0 to the end of the sound, each of a window centred on its timestamp.

    The window is the shortest that the encoder accepts (0.96 s by default); the sound is zero-padded at both ends. If
    50 ms is not a whole number of samples, each centre is rounded separately, so that errors do not accumulate.

    Returns:
        Embeddings (N, K, D) and timestamps (N, K) in milliseconds.

    Raises:
        SepsceneError: the sound has another shape.
    """
    audio_NT = limited_sound(audio_NT, model.front_end.window.device)
    window = model.shortest_samples
    device = audio_NT.device
    step_K = torch.arange(audio_NT.shape[1] * STEPS_PER_SECOND // model.sample_rate + 1, device=device)
    centre_K = (step_K * model.sample_rate + STEPS_PER_SECOND // 2) // STEPS_PER_SECOND
    padded_NT = nn.functional.pad(audio_NT, (window // 2, window - window // 2))
    offsets_T = torch.arange(window, device=device)
    embedded = []
    with torch.no_grad():
        # Windows overlap 19-fold: they are cut a few at a time, or those of a long sound would fill the memory.
        for some_K in centre_K.split(64):
            windows_NKT = padded_NT[:, some_K[:, None] + offsets_T]
            h_RD = model.encode_patches(windows_NKT.flatten(0, 1)).float()
            embedded.append(h_RD.unflatten(0, windows_NKT.shape[:2]))
    timestamps_K = step_K.float() * (1000 // STEPS_PER_SECOND)
    return torch.cat(embedded, dim=1), timestamps_K.repeat(len(audio_NT), 1)
