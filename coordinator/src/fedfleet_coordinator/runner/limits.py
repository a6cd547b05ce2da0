"""What a runner's process may take: set before any code of an app is loaded, kept by all that it starts.

Address space is not bounded: torch reserves far more than it uses, and replies are mapped from their files. What counts
is the data that a process may write to (RLIMIT_DATA): its heap and its private copies.
"""

import resource

from fedfleet_sandbox import refuse_privileges


def limit(*, memory_bytes: int, file_bytes: int) -> None:
    """Bound memory and the size of each file, 0 for no bound; no core dumps, and no program gains rights from here.

    An app that wants more gets a `MemoryError` or an `OSError` (EFBIG), as on a small machine.
    """
    refuse_privileges()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, wanted in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_FSIZE, file_bytes)):
        if wanted:
            _, hard = resource.getrlimit(kind)
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (most, most))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:  # a reply of a large cohort is a file
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard > 0 else 1 << 20, hard))
