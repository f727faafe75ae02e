"""Log-mels between their frames.

Shapes: B patches, L frames, F mel bands, N places.
"""

from torch import Tensor, lerp


def frames_at(logmel_BLF: Tensor, place_BN: Tensor) -> Tensor:
    """The log-mels at places between frames, linear between the two beside: (B, N, F).

    Args:
        logmel_BLF: at least two frames.
        place_BN: in [0, L - 1], in frames.
    """
    low_BN = place_BN.floor().long().clamp(max=logmel_BLF.shape[1] - 2)
    part_BN1 = (place_BN - low_BN)[..., None]
    bands = logmel_BLF.shape[2]
    below = logmel_BLF.gather(1, low_BN[..., None].expand(-1, -1, bands))
    above = logmel_BLF.gather(1, (low_BN + 1)[..., None].expand(-1, -1, bands))
    return lerp(below, above, part_BN1)
