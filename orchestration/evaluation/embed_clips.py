"""The callable of the embedding actors: from a block of clips to their embeddings.

Ray Data unpickles it in processes that use no network, so torch is imported only where an encoder is used.

Shapes: N clips, T samples, F bands, D embedding.
"""

from collections.abc import Mapping

import numpy as np

from sepscene.augment.audio import AudioFormat, ClipError, read_sound


class EmbedClips:
    """Maps clips to h of several encoders; a clip that cannot be read becomes a row with a `fault`."""

    def __init__(self, bundles: Mapping[str, str], audio: AudioFormat, device: str) -> None:
        from sepscene.models.encoders.encoder import load_encoder

        self.encoders = {name: load_encoder(bundle).to(device) for name, bundle in bundles.items()}
        self.audio = audio
        self.device = device

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the sound of each clip without padding.

        Args:
            columns: `uri`, `offset_seconds`, `position`.

        Returns:
            `position`; `fault`, empty or the reason why the clip cannot be read; `samples`, the length of its sound;
            `silent`, whether all samples are zero; `background` (N, F) and `level` of its log-mel; h:<name> (N, D)
            float32. All values of a clip with a fault are zero.
        """
        from sepscene.tasks.evaluation.embed_sounds import embed_sounds, logmel_of
        from sepscene.tasks.evaluation.shortcuts import clip_features

        count = len(columns["uri"])
        fault_N = np.array([""] * count, object)
        sample_N = np.zeros(count, np.int64)
        silent_N = np.zeros(count, bool)
        waves: list[np.ndarray] = []
        for n, (uri, offset) in enumerate(zip(columns["uri"], columns["offset_seconds"], strict=True)):
            try:
                waves.append(read_sound(str(uri), self.audio, float(offset)))
                sample_N[n] = len(waves[-1])
                silent_N[n] = not waves[-1].any()
            except ClipError as error:
                fault_N[n] = error.cause
        h: dict[str, np.ndarray] = {}
        for name, encoder in self.encoders.items():
            h[f"h:{name}"] = np.zeros((count, encoder.embedding_dim), np.float32)
            if waves:
                h[f"h:{name}"][fault_N == ""] = embed_sounds(encoder, waves, self.device)
        encoder = next(iter(self.encoders.values()))  # the encoders of a run share their front-end
        h["background"] = np.zeros((count, encoder.front_end.config.mel_bands))
        h["level"] = np.zeros(count)
        if waves:
            features = clip_features([logmel_of(encoder, wave_T, self.device) for wave_T in waves])
            h["background"][fault_N == ""] = features.background_NF
            h["level"][fault_N == ""] = features.level_N
        return {**h, "position": columns["position"], "fault": fault_N, "samples": sample_N, "silent": silent_N}
