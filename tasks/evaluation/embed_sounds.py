"""Embed clips of different lengths without padding, exactly as `sepscene embed` does.

Shapes: N clips, B clips of a batch, T samples, L frames, F mel bands, D embedding.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from sepscene.models.encoders.encoder import Encoder


def embed_sounds(encoder: Encoder, waves: Sequence[np.ndarray], device: str) -> np.ndarray:
    """The representation of each clip, float32 (N, D); clips of equal length are embedded together, without padding.

    Args:
        encoder: on `device`.
        waves: float32 (T,), of any length.
        device: e.g. "cpu" or "cuda".
    """
    clips_of_length: dict[int, list[int]] = defaultdict(list)
    for n, wave_T in enumerate(waves):
        clips_of_length[len(wave_T)].append(n)
    h_ND = np.zeros((len(waves), encoder.embedding_dim), np.float32)
    with torch.inference_mode():
        for clips in clips_of_length.values():
            wave_BT = torch.from_numpy(np.stack([waves[n] for n in clips])).to(device)
            h_ND[clips] = encoder(wave_BT).float().cpu().numpy()
    return h_ND


def logmel_of(encoder: Encoder, wave_T: np.ndarray, device: str) -> np.ndarray:
    """The log-mel (L, F) of a whole clip from the encoder's front-end; a clip that is too short for it is padded."""
    wave_T = np.pad(wave_T, (0, max(0, encoder.shortest_samples - len(wave_T))))
    with torch.inference_mode():
        return encoder.front_end(torch.from_numpy(wave_T)[None].to(device))[0].cpu().numpy()
