"""Everything about Ray: connections, placement checks, jobs, and the workarounds for this version of Ray."""
