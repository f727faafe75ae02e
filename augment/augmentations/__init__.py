"""Random augmentations of views: an interface, and SpecAugment, gain, mix-back and a random resized crop."""
