"""How processes that compute with torch on a CPU keep their memory: trainers and embedding actors."""

import os

MALLOC = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "arena_max=1", f"mmap_threshold={4 * 2**30}", f"trim_threshold={4 * 2**30}")
)
"""From batch to batch, in huge pages. Otherwise glibc gives every large tensor back to the system, which hands it out
again page by page: a tenth of the time of a training step on a CPU, a quarter of an embedding's. (Ray trains in a
thread, whose own arena would hold 64 MiB at most.)"""


def kept_memory() -> dict[str, str]:
    """The environment variable that says so; what is set where the driver runs wins."""
    return {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC)}
