"""A look at some clips of a data set before a run depends on it: how long they are, and whether anything is heard.

The audit looks at all of them; this takes seconds, so that every run does it.
"""

import numpy as np

from sepscene.augment.audio import AudioFormat, ClipError, read_sound
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.manifest import Manifest

CLIPS = 24
"""Clips that are looked at, spread over the manifest."""


def first_look(manifest: Manifest, audio: AudioFormat) -> list[str]:
    """What a user should know of the clips, in plain lines.

    Clips that cannot be read are left to the readers, which quarantine them.

    Raises:
        ManifestError: every clip that was looked at is silent.
    """
    places = np.unique(np.linspace(0, len(manifest) - 1, CLIPS).round().astype(int)).tolist()
    seconds = []
    silent = 0
    for clip in manifest.clips.take(places).to_pylist():
        try:
            sound_T = read_sound(clip["uri"], audio, clip["offset_seconds"])
        except ClipError:
            continue
        seconds.append(len(sound_T) / audio.sample_rate)
        silent += not sound_T.any()
    if not seconds:
        return []
    if silent == len(seconds):
        raise ManifestError(
            f"all {silent} clips that were looked at are silent, every sample is 0, e.g. "
            f"{manifest.clips['uri'][places[0]]}: nothing can be learned from them; see `sepscene data audit`"
        )
    lines = [f"{silent} of {len(seconds)} clips that were looked at are silent; see `sepscene data audit`"]
    lines = lines if silent else []
    short = [length for length in seconds if length < 0.999 * audio.clip_seconds]
    if short:
        lines.append(
            f"{len(short)} of {len(seconds)} clips that were looked at are shorter than audio.clip_seconds "
            f"({audio.clip_seconds:g} s), half of them than {np.median(short):.2f} s: views are cropped within their "
            "sound, and they are evaluated as long as they are; a smaller audio.clip_seconds computes less"
        )
    return lines
