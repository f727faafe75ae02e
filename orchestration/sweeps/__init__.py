"""Many runs: search spaces, trials with Ray Tune, and the reproduction of the paper's tables."""
