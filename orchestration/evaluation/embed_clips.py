"""What an embedding actor does with a block of clips, apart from the judging.

Ray Data hands it through processes that need no network of their own, so torch is imported where encoders are.

Shapes: N clips, T samples, D embedding.
"""

from collections.abc import Mapping

import numpy as np

from sepscene.augment.audio import AudioFormat, ClipError, read_clip


class EmbedClips:
    """Maps clips to the h of several encoders; a clip that can't be read becomes a row with a `fault`."""

    def __init__(self, bundles: Mapping[str, str], audio: AudioFormat, device: str) -> None:
        from sepscene.models.encoders.encoder import load_encoder

        self.encoders = {name: load_encoder(bundle).to(device) for name, bundle in bundles.items()}
        self.audio, self.device = audio, device

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`uri`, `offset_seconds`, `position` in; `position`, `fault` and h:<name> (N, D) float32 out."""
        import torch

        wave_NT = np.zeros((len(columns["uri"]), self.audio.samples), np.float32)
        fault_N = np.array([""] * len(wave_NT), object)
        for n, (uri, offset) in enumerate(zip(columns["uri"], columns["offset_seconds"], strict=True)):
            try:
                wave_NT[n] = read_clip(str(uri), self.audio, float(offset))
            except ClipError as error:
                fault_N[n] = error.cause
        with torch.inference_mode():
            wave = torch.from_numpy(wave_NT).to(self.device)
            h = {f"h:{name}": encoder(wave).float().cpu().numpy() for name, encoder in self.encoders.items()}
        return {**h, "position": columns["position"], "fault": fault_N}
