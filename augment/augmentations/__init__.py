"""What changes the views of a row at random: a seam, with SpecAugment, gain, mix-back and a resized crop built in."""
