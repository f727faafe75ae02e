"""Clips of different lengths through an encoder, each as it is: what is evaluated is what `sepscene embed` gives.

Shapes: N clips, T samples, L frames, F mel bands, D embedding.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from sepscene.models.encoders.encoder import Encoder


def embed_sounds(encoder: Encoder, waves: Sequence[np.ndarray], device: str) -> np.ndarray:
    """The representation of each clip, float32 (N, D); clips of one length share a pass, nothing is padded.

    Args:
        encoder: on `device`.
        waves: float32 (T,), each of its own length; at least one.
        device: e.g. "cpu" or "cuda".
    """
    places: dict[int, list[int]] = defaultdict(list)
    for n, wave_T in enumerate(waves):
        places[len(wave_T)].append(n)
    h_ND = np.zeros((len(waves), encoder.embedding_dim), np.float32)
    with torch.inference_mode():
        for some in places.values():
            wave_BT = torch.from_numpy(np.stack([waves[n] for n in some])).to(device)
            h_ND[some] = encoder(wave_BT).float().cpu().numpy()
    return h_ND


def logmel_of(encoder: Encoder, wave_T: np.ndarray, device: str) -> np.ndarray:
    """The log-mel (L, F) of a whole clip by the encoder's front-end; a clip shorter than it needs is padded."""
    wave_T = np.pad(wave_T, (0, max(0, encoder.shortest_samples - len(wave_T))))
    with torch.inference_mode():
        return encoder.front_end(torch.from_numpy(wave_T)[None].to(device))[0].cpu().numpy()
