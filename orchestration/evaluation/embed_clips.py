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

        fault_N = np.array([""] * len(columns["uri"]), object)
        waves: list[np.ndarray] = []
        for n, (uri, offset) in enumerate(zip(columns["uri"], columns["offset_seconds"], strict=True)):
            try:
                waves.append(read_sound(str(uri), self.audio, float(offset)))
            except ClipError as error:
                fault_N[n] = error.cause
        first = next(iter(self.encoders.values()))  # the encoders of a run share their front-end
        features = clip_features([logmel_of(first, wave_T, self.device) for wave_T in waves])
        shape_NF = (len(waves), first.front_end.config.mel_bands)
        of_readable = {
            "samples": np.array([len(wave_T) for wave_T in waves], np.int64),
            "silent": np.array([not wave_T.any() for wave_T in waves], bool),
            "background": features.background_NF.reshape(shape_NF).astype(np.float64),
            "level": features.level_N,
            **{f"h:{name}": embed_sounds(encoder, waves, self.device) for name, encoder in self.encoders.items()},
        }
        found = {"position": columns["position"], "fault": fault_N}
        for name, values in of_readable.items():
            found[name] = np.zeros((len(fault_N), *values.shape[1:]), values.dtype)
            found[name][fault_N == ""] = values
        return found
