"""Memory allocator settings of processes that compute with torch on a CPU: trainers and embedding actors."""

import os

MALLOC = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "arena_max=1", f"mmap_threshold={4 * 2**30}", f"trim_threshold={4 * 2**30}")
)
"""Keep freed memory for the next batch, in huge pages. By default, glibc returns the memory of each large tensor to the
system, and allocating it again page by page takes a tenth of the time of a training step on a CPU, and a quarter of
that of an embedding. One arena, because Ray trains in a thread, whose arena would be limited to 64 MiB."""


def allocator_variables() -> dict[str, str]:
    """The environment variable with these settings; the driver's own GLIBC_TUNABLES has precedence."""
    return {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC)}
