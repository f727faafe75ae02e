"""Many runs: search spaces, Ray Tune, and the reproduction of the paper's tables."""
