"""The training objectives: MixIT, NT-Xent, coincidence prediction, triplet, and their joint form."""
