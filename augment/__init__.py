"""From a clip to two views: decoding, draws, separation, crops and SpecAugment."""
