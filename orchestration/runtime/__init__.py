"""Ray itself: connect, check that a run fits, submit jobs, and every workaround of a Ray version."""
